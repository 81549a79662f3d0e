"""Evaluation of a network on a lane dataset with the set's official metric, in memory."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from segkd.data.lane_base import LaneDataset
from segkd.errors import ConfigError
from segkd.evaluation.batches import Placed, Progress, open_loader, placed_batches
from segkd.evaluation.lane_result import LaneResult
from segkd.evaluation.lane_tallies import TALLIES, annotated_rows
from segkd.inference.lane_decode import Found, Lanes, Size
from segkd.inference.lane_maps import LaneMaps, lane_maps, lane_pixels
from segkd.inference.lane_output import check_rules, exported_lanes, is_whole_image, lane_output
from segkd.inference.lane_view import LaneView
from segkd.inference.row_decode import decode_lanes
from segkd.models.onnx_network import OnnxNetwork
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
                answers = _answers(network, batch, dataset, config)
            for index, size, found in answers:
                tally.add(index, size, found)
                if on_found is not None:
                    on_found(index, found)
    return tally.result(sum(loader.skipped.values()), runtime)


def _answers(
    network: nn.Module, batch: Placed, dataset: LaneDataset, config: "EvalConfig"
) -> Iterator[tuple[int, Size, Found]]:
    """Index, stored size, and lanes or lane pixels, of each image of a batch."""
    if lane_output(network) is not None:
        return _decoded(cast(OnnxNetwork, network), batch, dataset, config)
    maps = lane_maps(network, batch.images)
    return _found(maps, batch.index, batch.labels, dataset, config)


def _decoded(
    network: OnnxNetwork, batch: Placed, dataset: LaneDataset, config: "EvalConfig"
) -> Iterator[tuple[int, Size, Found]]:
    """As ``_found``, of a file that decodes lanes itself."""
    facts, cut_top = network.exported["lane_points"], dataset.config.cut_top
    check_rules(facts, config.lanes)
    if len(network.classes) != len(dataset.classes):
        raise ConfigError(
            f"the file has {len(network.classes) - 1} lanes, but the dataset has "
            f"{len(dataset.classes) - 1}: evaluate on the dataset it was trained on"
        )
    if is_whole_image(facts):
        raise ConfigError(
            "this file takes whole images of a camera, and an evaluation reads them as in "
            "training. Export it without --resize to score it"
        )
    indices = batch.index.tolist()
    height, width = batch.labels.shape[1:]
    size = (height + cut_top, width)
    view = LaneView(size, 0, cut_top, size)
    found = exported_lanes(network, batch.images, config.lanes, [view] * len(indices))
    if dataset.metric == "tusimple":
        found = [
            _at_rows(annotated_rows(dataset.annotation(index)), lanes, network)
            for index, lanes in zip(indices, found, strict=True)
        ]
    return zip(indices, [size] * len(indices), found, strict=True)


def _at_rows(wanted: np.ndarray, lanes: Lanes, network: OnnxNetwork) -> Lanes:
    """Lanes in the order of an annotation's rows. Raises ConfigError if these are others."""
    order, own = np.argsort(wanted), np.argsort(lanes.y)
    if len(wanted) != len(own) or np.abs(wanted[order] - lanes.y[own]).max() > 1e-3:
        raise ConfigError(
            f"{network.title} answers at rows y = {lanes.y.min():g} to {lanes.y.max():g}, and "
            f"the annotations have others ({wanted.min():g} to {wanted.max():g}): score a file of "
            "--bake normalize"
        )
    x = np.empty_like(lanes.x)
    x[:, order] = lanes.x[:, own]
    return Lanes(x, wanted, lanes.scores)


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
