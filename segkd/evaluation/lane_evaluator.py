"""Scores a network on a lane dataset with the set's official metric, in memory."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from segkd.data.lane_base import LaneDataset
from segkd.errors import ConfigError, DataError
from segkd.evaluation.lane_result import LaneResult
from segkd.evaluation.lane_tallies import TALLIES
from segkd.inference.lane_decode import Lanes, Size, decode
from segkd.inference.lane_maps import LaneMaps, lane_maps, lane_pixels
from segkd.ops.mode import eval_mode
from segkd.structures import Batch

if TYPE_CHECKING:
    from segkd.config.schema import EvalConfig
    from segkd.runtime import Runtime

Found = Lanes | np.ndarray  # BDD100K asks for a map (H, W) of lane pixels


@torch.no_grad()
def evaluate_lanes(
    network: nn.Module,
    dataset: LaneDataset,
    config: "EvalConfig",
    runtime: "Runtime",
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    on_found: Callable[[int, Found], None] | None = None,
) -> LaneResult:
    """As ``segkd.evaluation.evaluator.evaluate``, for lanes.

    Args:
        on_found: called as ``on_found(index, found)`` for each image, e.g. to write files.

    Raises:
        DataError: an image without annotation, or one that cannot be read.
        ConfigError: options that lanes do not have, or a network of another number of lanes.
    """
    from segkd.data.loader import eval_loader

    check_options(config)
    loader = eval_loader(
        dataset,
        batch_size=config.batch_size,
        workers=workers,
        rank=runtime.rank,
        world=runtime.world,
        limit=config.limit,
    )
    tally, done = TALLIES[dataset.metric](dataset), 0
    with eval_mode(network):
        for batch, names in loader:
            _check_labelled(batch, names, dataset)
            with runtime.autocast():
                maps = lane_maps(network, batch.images.to(runtime.device))
            for index, size, found in _found(maps, batch, dataset, config):
                tally.add(index, size, found)
                if on_found is not None:
                    on_found(index, found)
            done += len(names)
            if progress is not None:
                progress(done, loader.images)
    return tally.result(sum(loader.skipped.values()), runtime)


def check_options(config: "EvalConfig") -> None:
    """Refuses options that only label maps have."""
    if config.flip or config.sliding is not None or list(config.scales) != [1.0]:
        raise ConfigError(
            "eval: lanes are read off the whole image at once. Leave out eval.flip, eval.scales "
            "and eval.sliding; eval.lanes has the options of lanes"
        )
    if config.boundary:
        raise ConfigError("eval.boundary: lanes have no boundary IoU. Leave it out")


def _found(
    maps: LaneMaps, batch: Batch, dataset: LaneDataset, config: "EvalConfig"
) -> Iterator[tuple[int, Size, Found]]:
    """Index, stored size, and what was found, of each image of a batch."""
    classes, expected = maps.probabilities.shape[1], len(dataset.classes)
    if classes != expected:
        raise ConfigError(
            f"the network has {classes} classes, but the dataset has {expected} (lanes and "
            "background): evaluate on the dataset it was trained on, or set data.num_lanes"
        )
    indices, cut_top = batch.index.tolist(), dataset.config.cut_top
    shown = tuple(batch.labels.shape[1:])
    sizes = [(shown[0] + cut_top, shown[1])] * len(indices)
    if dataset.metric == "bdd100k":
        found = lane_pixels(maps, shown, cut_top)
    else:
        rows = None
        if dataset.metric == "tusimple":
            rows = [dataset.annotation(index).rows for index in indices]
        lanes = config.lanes
        found = decode(maps.probabilities, maps.exist, sizes, lanes, cut_top=cut_top, rows=rows)
    return zip(indices, sizes, found, strict=True)


def _check_labelled(batch: Batch, names: list[str], dataset: LaneDataset) -> None:
    if batch.labels is None:
        raise DataError(
            f"image '{names[0]}' of '{dataset.name}' has no annotation, so it cannot be scored: "
            "use an annotated split (data.val_split=…)"
        )
