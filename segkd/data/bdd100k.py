"""Lanes of BDD100K: one class, no identity; 70 000 training and 10 000 validation images.

Yu et al., "BDD100K: A Diverse Driving Dataset for Heterogeneous Multitask Learning", CVPR 2020,
arXiv 1805.04687; https://bdd-data.berkeley.edu. Lanes as ENet-SAD uses them (Hou et al., ICCV
2019, arXiv 1908.00821): the line between the two annotated borders of a marking, 8 px wide for
training and 2 px for the score.

A marking is annotated by its two borders, as two lines without a common id, and the code that
paired them is not public. Here two borders of one image are a marking if they run side by side from
end to end, no farther apart than markings are wide (which increases towards the car); the closest
are paired first. Borders without a partner (curbs, and markings with one border) are lines
themselves.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt

from segkd.data.base import DataConfig
from segkd.data.culane_lists import Listed, read_listed
from segkd.data.lane_base import LaneAnnotation, LaneDataConfig
from segkd.data.lane_files import LaneFiles, read_lane_mask
from segkd.data.lane_masks import Slots, joined, painted
from segkd.data.paired import images_below
from segkd.data.reading import SampleError
from segkd.errors import DataError
from segkd.texts import is_number, json_kind, parse_json, read_text

_WIDEST = 60.0  # px between the borders of a marking, in the lowest row
_SMALLEST = 12.0  # px allowed in any row
_HEIGHT = 720.0  # of all images
_SAMPLES = 17  # points of a line for comparison, pieces of a Bézier curve
_ENDS = _SAMPLES // 8  # points at either end that are not compared

TEST_WIDTH = 2  # pixels, of lanes for the score
_IMAGES = "images/100k"
_LABELS = (
    "labels/lane/polygons/lane_{split}.json",
    "labels/bdd100k_labels_images_{split}.json",
    "bdd100k_labels_images_{split}.json",
)
_OLD_IMAGES = ("train_img", "val_img")  # folders in the lists of the ENet-SAD repository


class BDD100KConfig(LaneDataConfig):
    """Keys of ``data:`` for BDD100K."""

    num_lanes: Literal[1] = Field(1, description="slots; lanes have no identity here")
    lane_width: PositiveInt = Field(8, description="of painted lanes, pixels of the stored image")


class BDD100K(LaneFiles):
    """Lanes of BDD100K, from the official label files or from the masks of ENet-SAD.

    With ``list/<split>_gt_bdd.txt`` (lines: image, mask) the stored masks are used for training and
    score. Otherwise lanes are painted from the label file of the split.
    """

    name = "bdd100k"
    metric = "bdd100k"
    Config = BDD100KConfig
    config: BDD100KConfig
    curved = False
    expected_tree = """\
bdd100k/
  images/100k/{train,val}/0000f77c-6257be58.jpg
  labels/lane/polygons/lane_{train,val}.json   or labels/bdd100k_labels_images_{train,val}.json
  or, as ENet-SAD: list/{train,val,test}_gt_bdd.txt with lines `image mask`, and these masks"""

    def __init__(self, config: DataConfig, split: str) -> None:
        self.listed: list[Listed] | None = None
        self._frames: list[dict[str, Any]] = []
        super().__init__(config, split)

    def annotation(self, index: int) -> LaneAnnotation:
        """Lines, and for the score ``pixels``: the stored mask, or lines of 2 px."""
        size = self.image_size(index)
        mask = self._mask(index)
        if mask is not None:
            return LaneAnnotation([], size, pixels=mask)
        lines = self._centres(index)
        pixels = painted([joined(lines)], size, TEST_WIDTH, curved=False)
        return LaneAnnotation(lines, size, pixels=pixels)

    def raw_lanes(self, index: int) -> list[np.ndarray]:
        """The annotated borders (n, 2) of an image; none for stored masks."""
        return [] if self.listed else borders_of(self._frame(index), self.where(index))

    def has_both(self, index: int) -> bool:
        """Never: an image has either a stored mask or lines."""
        return False

    def files(self, index: int) -> tuple[Path, Path | None]:
        """Paths of image and label file; None for the latter if that has no entry for the image."""
        image, label = super().files(index)
        return image, label if self.listed or self._frames[index] else None

    def _find(self) -> list[tuple[Path, Path | None]]:
        path = self.root / "list" / f"{self.split}_gt_bdd.txt"
        if path.is_file():
            self.listed = read_listed(path)
            return [self._listed_pair(path, listed) for listed in self.listed]
        names = [name.format(split=self.split) for name in _LABELS]
        file = next((self.root / name for name in names if (self.root / name).is_file()), None)
        folder = self.root / _IMAGES / self.split
        images = images_below(folder) if folder.is_dir() else []
        if not images:
            raise self._missing(folder / "*.jpg")
        if file is None:
            raise self._missing(self.root / names[0])
        frames = _frames(file)
        self._frames = [frames.get(image.name, {}) for image in images]
        return [(image, file) for image in images]

    def _listed_pair(self, path: Path, listed: Listed) -> tuple[Path, Path]:
        if listed.mask is None:
            raise DataError(f"{path}: {listed.image} has no mask; expected lines `image mask`")
        image, first = self.root / listed.image, Path(listed.image).parts[0]
        if first in _OLD_IMAGES and not (self.root / first).is_dir():
            image = self.root / _IMAGES / Path(*Path(listed.image).parts[1:])
        return image, self.root / listed.mask

    def _centres(self, index: int) -> list[np.ndarray]:
        return centre_lines(borders_of(self._frame(index), self.where(index)))

    def _frame(self, index: int) -> dict[str, Any]:
        """The entry of an image in the label file; images without lanes have one, too."""
        frame = self._frames[index]
        if not frame:
            text = f"has no entry for {self.pairs[index][0].name}"
            raise SampleError(self.annotation_file(index), text, "Fetch the labels again.")
        return frame

    def _slots(self, index: int, size: tuple[int, int]) -> Slots:
        return (None if self.listed else joined(self._centres(index)),)

    def _mask(self, index: int) -> np.ndarray | None:
        if not self.listed:
            return None
        return read_lane_mask(self.annotation_file(index), 1, binary=True)


def _frames(file: Path) -> dict[str, dict[str, Any]]:
    """Entries of a label file by image name. Raises DataError for a missing key."""
    frames = parse_json(read_text(file), str(file))
    if not isinstance(frames, list):
        raise DataError(f"{file}: expected a list of frames, got {json_kind(frames)}")
    for number, frame in enumerate(frames, 1):
        if not isinstance(frame, dict) or not isinstance(frame.get("name"), str):
            text = "the key name is missing, or not a string"
            raise DataError(f"{file}, frame {number}: {text}. Fetch the labels again")
    return {Path(frame["name"]).name: frame for frame in frames}


def borders_of(frame: dict[str, Any], file: str) -> list[np.ndarray]:
    """Borders of the markings along the road, (n, 2) points each, from bottom to top.

    Markings across the road (``laneDirection: vertical``) and crosswalks are skipped.

    Args:
        frame: an entry of a label file, of either release.
        file: for messages.

    Raises:
        DataError: a key is missing, or a value is of another type.
    """
    borders = []
    labels = frame.get("labels") or []
    for number, label in enumerate(_list(labels, f"{file}, {frame['name']}: labels"), 1):
        where = f"{file}, {frame['name']}, label {number}"
        attributes = _object(label, where).get("attributes") or {}
        if "poly2d" not in label or "laneDirection" not in _object(attributes, where):
            continue  # cars, drivable areas
        # The newer release has the type as the category.
        kinds = (attributes.get("laneTypes"), attributes.get("laneType"), label.get("category"))
        if attributes["laneDirection"] == "vertical" or "crosswalk" in kinds:
            continue
        for line in _list(label["poly2d"], f"{where}: poly2d"):
            missing = [key for key in ("vertices", "types") if key not in _object(line, where)]
            if missing:
                raise DataError(f"{where}: poly2d has no key {missing[0]}. Fetch the labels again.")
            vertices = _vertices(line, where)
            if len(vertices) >= 2:
                points = _flattened(vertices, line["types"])
                borders.append(points if points[0, 1] >= points[-1, 1] else points[::-1])
    return borders


def _vertices(line: dict[str, Any], where: str) -> np.ndarray:
    """(n, 2) float64 points."""
    points = _list(line["vertices"], f"{where}: vertices")
    for number, point in enumerate(points, 1):
        pair = point[:2] if isinstance(point, list) else []
        if len(pair) < 2 or not all(map(is_number, pair)):
            raise _wrong(f"{where}: vertex {number}", point, "two numbers x and y")
    if not isinstance(line["types"], str):
        raise _wrong(f"{where}: types", line["types"], "a text like LLCC")
    if len(line["types"]) < len(points):
        text = f"{len(points)} vertices have {len(line['types'])} types"
        raise DataError(f"{where}: {text}; expected one letter each. Fetch the labels again")
    return np.array([point[:2] for point in points], np.float64).reshape(-1, 2)


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(where, value, "a list")
    return value


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    return value


def _wrong(where: str, value: object, expected: str) -> DataError:
    return DataError(f"{where} is {json_kind(value)}; expected {expected}. Fetch the labels again")


def centre_lines(borders: list[np.ndarray]) -> list[np.ndarray]:
    """One line per marking: midway between paired borders, and borders without a partner.

    Args:
        borders: points (n, 2) each, from bottom to top.

    Returns:
        Points (n, 2) float32 each.
    """
    distances = [
        (distance, i, j)
        for i in range(len(borders))
        for j in range(i)
        if (distance := _distance(borders[i], borders[j])) is not None
    ]
    lines: list[np.ndarray] = []
    single = set(range(len(borders)))
    for _, i, j in sorted(distances):
        if {i, j} <= single:
            single -= {i, j}
            lines.append(_midway(borders[i], borders[j]))
    lines += [borders[i] for i in sorted(single)]
    return [line.astype(np.float32) for line in lines]


def _distance(one: np.ndarray, other: np.ndarray) -> float | None:
    """Mean distance of two borders in pixels; None if they cannot belong to one marking."""
    one, other = _resampled(one), _resampled(other)
    both = []
    for line, partner in ((one, other), (other, one)):
        inner = line[_ENDS:-_ENDS]  # ends need not be at the same height
        distance = _to_line(inner, partner)
        allowed = np.maximum(_SMALLEST, _WIDEST * (inner[:, 1] / _HEIGHT) ** 2)
        if (distance > allowed).any():
            return None
        both.append(distance.mean())
    return float(np.mean(both))


def _midway(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = _resampled(one), _resampled(other)
    if np.hypot(*(one - other).T).sum() > np.hypot(*(one - other[::-1]).T).sum():
        other = other[::-1]
    return (one + other) / 2


def _resampled(line: np.ndarray) -> np.ndarray:
    """(_SAMPLES, 2) points at equal distances along a line."""
    steps = np.hypot(*np.diff(line, axis=0).T)
    along = np.append(0, np.cumsum(steps))
    wanted = np.linspace(0, along[-1], _SAMPLES)
    return np.stack([np.interp(wanted, along, line[:, axis]) for axis in (0, 1)], axis=1)


def _to_line(points: np.ndarray, line: np.ndarray) -> np.ndarray:
    """(n,) distances of points (n, 2) from a line."""
    start, piece = line[:-1], np.diff(line, axis=0)
    away = points[:, None] - start
    length = np.maximum((piece**2).sum(1), 1e-12)
    share = np.clip((away * piece).sum(2) / length, 0, 1)
    return np.hypot(*np.moveaxis(away - share[..., None] * piece, 2, 0)).min(1)


def _flattened(vertices: np.ndarray, types: str) -> np.ndarray:
    """Replaces Bézier pieces (a point, and ``C`` for two handles and the end) by straight ones."""
    points, at = [vertices[:1]], 1
    while at < len(vertices):
        if types[at] == "C" and at + 2 < len(vertices):
            points.append(_bezier(vertices[at - 1 : at + 3]))
            at += 3
        else:
            points.append(vertices[at : at + 1])
            at += 1
    return np.concatenate(points)


def _bezier(four: np.ndarray) -> np.ndarray:
    t = np.linspace(0, 1, _SAMPLES + 1)[1:, None]
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    return sum(weight * point for weight, point in zip(weights, four, strict=True))
