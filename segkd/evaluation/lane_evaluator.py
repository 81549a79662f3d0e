"""Evaluation of a network on a lane dataset with the set's official metric, in memory."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from segkd.data.lane_base import LaneDataset
from segkd.errors import ConfigError
from segkd.evaluation.batches import Progress, open_loader, placed_batches
from segkd.evaluation.lane_result import LaneResult
from segkd.evaluation.lane_tallies import TALLIES, annotated_rows
from segkd.inference.lane_decode import Found, Size
from segkd.inference.lane_maps import LaneMaps, lane_maps, lane_pixels
from segkd.inference.row_decode import decode_lanes
from segkd.models.query_error import naming_images
from segkd.ops.mode import eval_mode

if TYPE_CHECKING:
    from segkd.config.schema import EvalConfig
    from segkd.runtime import Runtime


@torch.no_grad()
def evaluate_lanes(
    network: nn.Module,
    dataset: LaneDataset,
    config: "EvalConfig",
    runtime: "Runtime",
    *,
    workers: int = 0,
    progress: Progress | None = None,
    on_found: Callable[[int, Found], None] | None = None,
) -> LaneResult:
    """``evaluate_network`` for lanes; see there for the other arguments.

    Args:
        on_found: called as ``on_found(index, found)`` for each image, e.g. to write files.

    Raises:
        DataError: an image without annotation, or one that cannot be read.
        ConfigError: options of label maps, or a network with another number of lanes.
    """
    check_options(config)
    loader = open_loader(dataset, config, runtime, workers)
    tally = TALLIES[dataset.metric](dataset, config.lanes.iou)
    with eval_mode(network):
        for batch in placed_batches(loader, dataset, progress, runtime.device):
            with runtime.autocast(), naming_images(dataset, batch.index):
                maps = lane_maps(network, batch.images)
            for index, size, found in _found(maps, batch.index, batch.labels, dataset, config):
                tally.add(index, size, found)
                if on_found is not None:
                    on_found(index, found)
    return tally.result(sum(loader.skipped.values()), runtime)


def check_options(config: "EvalConfig") -> None:
    """Raises ConfigError for options that only apply to label maps."""
    if config.flip or config.sliding is not None or list(config.scales) != [1.0]:
        raise ConfigError(
            "eval: lanes are read off the whole image at once. Remove eval.flip, eval.scales and "
            "eval.sliding; eval.lanes has the options of lanes"
        )
    if config.boundary:
        raise ConfigError("eval.boundary: lanes have no boundary IoU. Remove it")


def _found(
    maps: LaneMaps, index: Tensor, labels: Tensor, dataset: LaneDataset, config: "EvalConfig"
) -> Iterator[tuple[int, Size, Found]]:
    """Index, stored size, and lanes or lane pixels, of each image of a batch."""
    classes, expected = maps.probabilities.shape[1], len(dataset.classes)
    if classes != expected:
        raise ConfigError(
            f"the network has {classes} classes, but the dataset has {expected} (lanes and "
            "background): evaluate on the dataset it was trained on, or set data.num_lanes"
        )
    indices, cut_top = index.tolist(), dataset.config.cut_top
    height, width = labels.shape[1:]
    sizes = [(height + cut_top, width)] * len(indices)
    if dataset.metric == "bdd100k":
        return zip(indices, sizes, lane_pixels(maps, (height, width), cut_top), strict=True)
    rows = None
    if dataset.metric == "tusimple":
        rows = [annotated_rows(dataset.annotation(index)) for index in indices]
    found = decode_lanes(maps, sizes, config.lanes, cut_top=cut_top, rows=rows)
    return zip(indices, sizes, found, strict=True)
