"""CurveLanes: curves, forks and many lanes, 100 000 training and 20 000 validation images.

Xu et al., CurveLane-NAS: Unifying Lane-Sensitive Architecture Search and Adaptive Point Blending,
ECCV 2020, arXiv 2007.12147; https://github.com/SoulmateB/CurveLanes. Images are of several sizes.
"""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from segkd.data.lane_base import LaneAnnotation, LaneDataConfig
from segkd.data.lane_files import LaneFiles
from segkd.data.lane_masks import Slots, arranged
from segkd.data.lists import likeliest
from segkd.data.paired import images_below
from segkd.data.reading import SampleError
from segkd.texts import is_number, parse_json, read_lines, read_text, require_below

_FOLDERS = {"train": "train", "val": "valid", "test": "test"}
_REPAIR = 'A lane is a list of points like {"x": "2079.41", "y": "1439.0"}: fetch the file again.'


class CurveLanesConfig(LaneDataConfig):
    """Keys of ``data:`` for CurveLanes."""

    any_sides = True
    num_lanes: int = Field(
        8, ge=2, le=12, description="slots by position relative to the car; the score has all lanes"
    )


class CurveLanes(LaneFiles):
    """CurveLanes; splits ``train``, ``val``, and ``test`` without annotations.

    The images of a split are those of its list, or without one all of its folder. Lanes get slots
    by their position; those beyond are not trained on, but count in the score.
    """

    name = "curvelanes"
    metric = "curvelanes"
    Config = CurveLanesConfig
    config: CurveLanesConfig
    expected_tree = """\
curvelanes/
  train/images/00a1.jpg and train/labels/00a1.lines.json
  train/train.txt               optional: lines: images/00a1.jpg
  valid/images/…, valid/labels/…, valid/valid.txt
  test/images/…                 optional: split test"""

    def annotation(self, index: int) -> LaneAnnotation:
        """The lanes. Raises SampleError for a missing or malformed file."""
        return LaneAnnotation(self._lanes(index), self.image_size(index))

    def _find(self) -> list[tuple[Path, Path | None]]:
        part = _FOLDERS.get(self.split, self.split)
        folder = self.root / part
        listed = folder / f"{part}.txt"
        if listed.is_file():
            lines = read_lines(listed)
            entries = [require_below(line, f"{listed}, line {n}") for n, line in lines]
            known = (likeliest(one, lambda name: _below(folder, name).is_file()) for one in entries)
            images = [_below(folder, name) for name in known]
        else:
            images = images_below(folder / "images") if folder.is_dir() else []
        if not images:
            raise self._missing(folder / "images")
        if part == "test":
            return [(image, None) for image in images]
        labels = folder / "labels"
        return [(image, labels / f"{image.stem}.lines.json") for image in images]

    def _slots(self, index: int, size: tuple[int, int]) -> Slots:
        sides = self.config.num_lanes, self.config.left_of_car
        return arranged(self._lanes(index), size, *sides)

    def _lanes(self, index: int) -> list[np.ndarray]:
        return lanes_of_json(self.annotation_file(index))


def _below(folder: Path, entry: str) -> Path:
    return folder / entry.lstrip("/")


def lanes_of_json(path: Path) -> list[np.ndarray]:
    """Lanes (n, 2) of an annotation or of a prediction in its form, without empty ones.

    Raises:
        SampleError: names the file and the lane that is malformed.
    """
    item = parse_json(read_text(path), str(path))
    lines = item.get("Lines") if isinstance(item, dict) else None
    if not isinstance(lines, list):
        raise SampleError(path, 'the key "Lines", a list of lanes, is missing', _REPAIR)
    return [_points(lane, number, path) for number, lane in enumerate(lines, 1) if lane]


def _points(lane: Any, number: int, path: Path) -> np.ndarray:
    """A lane (n, 2). Raises SampleError."""
    try:
        points = [(float(point["x"]), float(point["y"])) for point in lane]
    except (TypeError, KeyError, ValueError):
        raise SampleError(path, f"lane {number} is not a list of points", _REPAIR) from None
    if not all(is_number(value) for point in points for value in point):
        raise SampleError(path, f"lane {number} has a point that is not finite", _REPAIR)
    return np.array(points, np.float64)
