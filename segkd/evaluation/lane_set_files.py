"""Scores of prediction files by a lane set of segkd: CurveLanes and LLAMAS."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segkd import registry
from segkd.data.curvelanes import lanes_of_json
from segkd.data.lane_base import LaneDataset, is_lane_set
from segkd.errors import DataError
from segkd.evaluation.batches import Progress
from segkd.evaluation.lane_result import CulaneResult
from segkd.evaluation.lane_tallies import TALLIES, CulaneTally
from segkd.metrics.culane_text import read_lanes
from segkd.runtime import Runtime


def score_set(
    name: str,
    root: Path,
    split: str,
    predictions: Path,
    thresholds: Sequence[float] = (0.5,),
    *,
    progress: Progress | None = None,
) -> tuple[CulaneResult, list[str]]:
    """Scores a file for each image of a split; a missing one is an image without lanes.

    Args:
        name: ``curvelanes`` or ``llamas``.
        root: of the set.
        split: of the set.
        predictions: folder of files named after the images, or after their names alone; of LLAMAS
            with or without ``_color_rect``.
        thresholds: of the IoU, exclusive; the first gives the score.
        progress: called after each image with (done, total).

    Returns:
        The result, and the missing files.

    Raises:
        DataError: the set or a file cannot be read, a line is not pairs of numbers, or there is no
            file for any image.
    """
    kind = registry.datasets.get(name)
    dataset = kind(kind.Config.model_validate({"name": name, "root": root}), split)
    assert is_lane_set(dataset)  # see the argument
    tally = TALLIES[dataset.metric](dataset, thresholds)
    assert isinstance(tally, CulaneTally)  # of both sets
    missing = []
    for index in range(len(dataset)):
        path = _file(dataset, index, predictions)
        if not path.is_file():
            missing.append(str(path))
        lanes = _read(path) if path.is_file() else []
        tally.add_points(index, dataset.annotation(index).size, lanes)
        if progress is not None:
            progress(index + 1, len(dataset))
    if len(missing) == len(dataset):
        raise DataError(
            f"{missing[0]}: there is no prediction file for any image of the split. Name files "
            "after the images"
        )
    return tally.result(0, Runtime.start("cpu")), missing


def _file(dataset: LaneDataset, index: int, folder: Path) -> Path:
    """The prediction file of an image; where there is none, the path at which it is expected."""
    expected = dataset.prediction_entry(index)
    # Named after the whole image: `segkd lane` writes NAME_color_rect.lines.txt for LLAMAS.
    entries = (expected, expected.with_name(dataset.entry(index).name))
    ending = ".lines.json" if dataset.metric == "curvelanes" else ".lines.txt"
    inside = [folder / entry.with_suffix(ending) for entry in entries]
    paths = [*inside, *(folder / path.name for path in inside)]
    return next((path for path in paths if path.is_file()), inside[0])


def _read(path: Path) -> list[np.ndarray]:
    return lanes_of_json(path) if path.suffix == ".json" else read_lanes(path, strict=True)
