"""Lanes in metres: from image to road by four points, curvature, and the place in the lane.

The road is taken for flat, so that a homography maps the image to it. Places on the road are x,
metres to the right of the car, and z, metres ahead of it. Curvatures are in 1/m, positive where the
road bends to the right; a lane x(z) = a + b z + c z² is fitted with weights 1/z, since a pixel
covers more of the road the farther away it is, and κ = 2c / (1 + b²)^(3/2) at the car.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from segkd.config.problems import explain, raise_if
from segkd.errors import ConfigError
from segkd.inference.lane_types import Lane
from segkd.yaml_tree import read_file

_Point = tuple[float, float]
_LEAST_POINTS = 4  # of a lane whose curvature is told
_WIDEST, _FARTHEST = 100, 500  # metres to a side and ahead: more are other units than metres
_LEAST_LENGTH = 0.3  # of the part of the road that is looked at, of such a lane
EXAMPLE = """\
image: [[210, 540], [415, 350], [560, 350], [860, 540]]  # four points of a flat, straight road
road: [[-1.8, 4], [-1.8, 25], [1.8, 25], [1.8, 4]]  # the same, metres right and ahead of the car"""


class RoadPoints(BaseModel):
    """The file of `segkd lane --bird`: four points, none of them between two others."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    image: list[_Point] = Field(min_length=4, max_length=4)
    road: list[_Point] = Field(min_length=4, max_length=4)
    size: tuple[int, int] | None = None
    reach: PositiveFloat | None = None


@dataclass(frozen=True)
class RoadFacts:
    """What four points tell of the lanes of an image; None where it cannot be told.

    Attributes:
        sides: per lane, metres to the right of the car where the view begins.
        curvatures: per lane, 1/m, positive to the right.
        offset: metres of the car to the right of the middle of its lane.
        width: metres between the lanes left and right of the car.
        curvature: 1/m of both of these lanes together.
    """

    sides: tuple[float | None, ...] = ()
    curvatures: tuple[float | None, ...] = ()
    offset: float | None = None
    width: float | None = None
    curvature: float | None = None

    @property
    def radius(self) -> float | None:
        """Metres, positive to the right; infinite for a straight road; None without curvature."""
        if self.curvature is None:
            return None
        return 1 / self.curvature if self.curvature else float("inf")


class BirdView:
    """The map from an image to the road.

    Args:
        image: four points (4, 2) as x, y in pixels.
        road: the same points (4, 2) as x, z in metres.
        size: (height, width) of the images to which the points refer; images of another size are
            scaled to it. None: images of any size, unscaled.
        reach: metres ahead up to which lanes are used; None: twice the farthest of the points.

    Attributes:
        near, reach: metres ahead of the car between which lanes are used.

    Raises:
        ConfigError: three of the points are on one line, both lists do not run the same way, or
            values are no pixels of images of this size or no metres of a road.
    """

    def __init__(
        self,
        image: Sequence[_Point] | np.ndarray,
        road: Sequence[_Point] | np.ndarray,
        size: tuple[int, int] | None = None,
        reach: float | None = None,
    ) -> None:
        pixels, metres = np.asarray(image, np.float64), np.asarray(road, np.float64)
        _check(pixels, metres)
        _require_metres(metres, reach)
        if size is not None:
            _require_inside(pixels, size)
        self.size = size
        self.near, farthest = float(metres[:, 1].min()), float(metres[:, 1].max())
        self.reach = 2 * farthest if reach is None else reach
        if self.reach <= self.near:
            raise ConfigError(
                f"reach: got {self.reach:g} m, expected more than the nearest point, "
                f"{self.near:g} m ahead"
            )
        self._matrix = _homography(pixels, metres)
        if (_depths(self._matrix, pixels) <= 0).any():
            raise ConfigError(
                "image: the horizon passes between the four points, so they are not on a flat road "
                "in front of the camera. Give them in one order around the same piece of road"
            )

    @classmethod
    def read(cls, path: str | Path) -> "BirdView":
        """The view of a YAML file with the keys image, road, and perhaps size and reach.

        Raises:
            ConfigError: the file cannot be read, or its points describe no road.
        """
        tree = read_file(Path(path).expanduser())
        try:
            points = RoadPoints.model_validate(tree.plain())
        except ValidationError as error:
            problems = explain(error, tree, RoadPoints)
            raise_if([f"{one}\nFor example:\n{EXAMPLE}" for one in problems[:1]], str(path))
            raise
        try:
            return cls(points.image, points.road, points.size, points.reach)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def matrix(self, shape: tuple[int, ...]) -> np.ndarray:
        """(3, 3) homography from pixels of an image of this (height, width) to metres x, z."""
        if self.size is None:
            return self._matrix
        across, down = self.size[1] / shape[1], self.size[0] / shape[0]
        # (x + 0.5) * across - 0.5, as the centres of pixels are whole numbers
        scaling = [[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1]]
        return self._matrix @ np.array(scaling)

    def to_road(self, points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Points (n, 2) of an image as (m, 2) metres x, z; only those up to ``reach`` ahead."""
        matrix = self.matrix(shape)
        depths = _depths(matrix, points)
        seen = depths > 1e-9  # others are at or above the horizon
        metres = _mapped(matrix, points[seen])
        return metres[(metres[:, 1] <= self.reach) & (metres[:, 1] > 0)]

    def measure(self, lanes: Sequence[Lane], shape: tuple[int, ...]) -> RoadFacts:
        """Where the lanes of an image of this (height, width) lie, and how they bend."""
        roads = [self.to_road(lane.points, shape) for lane in lanes]
        sides = [_side(road, self.near) for road in roads]
        bends = [_curvature([road], self._shortest) for road in roads]
        left = max((s for s in sides if s is not None and s <= 0), default=None)
        right = min((s for s in sides if s is not None and s > 0), default=None)
        own = [
            road
            for road, side in zip(roads, sides, strict=True)
            if side is not None and side in (left, right)
        ]
        offset = width = None
        if left is not None and right is not None:
            offset, width = -(left + right) / 2, right - left
        bend = _curvature(own, self._shortest)
        return RoadFacts(tuple(sides), tuple(bends), offset, width, bend)

    @property
    def _shortest(self) -> float:
        return _LEAST_LENGTH * (self.reach - self.near)


def _check(pixels: np.ndarray, metres: np.ndarray) -> None:
    """Raises ConfigError unless both are four corners (4, 2) in the same order."""
    turns = []
    for name, points in (("image", pixels), ("road", metres)):
        if points.shape != (4, 2) or not np.isfinite(points).all():
            raise ConfigError(f"{name}: got shape {points.shape}, expected four points [x, y]")
        areas = [_area(np.delete(points, left_out, 0)) for left_out in range(4)]
        largest = max(map(abs, areas))
        if min(map(abs, areas)) <= 1e-3 * largest:
            raise ConfigError(
                f"{name}: three of the four points are on one line: {points.tolist()}"
            )
        turns.append(np.sign(areas))
    # The image's y points down and the road's z ahead, so that triangles turn the other way
    if (turns[0] != -turns[1]).any():
        raise ConfigError(
            "image and road do not list the points in the same order: e.g. near left, far left, "
            "far right, near right in both, pixels down from the top, metres to the right and ahead"
        )
    if metres[:, 1].min() < 0:
        raise ConfigError("road: z, the second number, is metres ahead of the car: 0 or more")


def _require_metres(metres: np.ndarray, reach: float | None) -> None:
    """Raises ConfigError for places that no camera sees, as of centimetres."""
    aside, ahead = np.abs(metres[:, 0]).max(), metres[:, 1].max()
    for value, most, where in ((aside, _WIDEST, "to the side"), (ahead, _FARTHEST, "ahead")):
        if value > most:
            raise ConfigError(
                f"road: a point is {value:g} m {where}, expected up to {most}. Give metres, not "
                "centimetres or pixels"
            )
    if reach is not None and reach > 2 * _FARTHEST:
        raise ConfigError(f"reach: got {reach:g} m, expected up to {2 * _FARTHEST}. Give metres")


def _require_inside(pixels: np.ndarray, size: tuple[int, int]) -> None:
    """Raises ConfigError for points outside of images (height, width)."""
    outside = ((pixels < 0) | (pixels > size[::-1])).any(1)
    if not outside.any():
        return
    x, y = pixels[outside][0]
    hint = "Give the size of the images in which the points were measured"
    if ((pixels >= 0) & (pixels <= size)).all():
        hint = f"Height comes first: did you mean size: [{size[1]}, {size[0]}]?"
    raise ConfigError(
        f"size: the point [{x:g}, {y:g}] of `image` is outside of images of height {size[0]} and "
        f"width {size[1]}. {hint}"
    )


def _area(triangle: np.ndarray) -> float:
    (ax, ay), (bx, by), (cx, cy) = triangle
    return float((bx - ax) * (cy - ay) - (cx - ax) * (by - ay))


def _homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(3, 3) map of four points (4, 2) to four others, with positive depth at the first."""
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y, -u])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y, -v])
    matrix = np.linalg.svd(np.array(rows))[2][-1].reshape(3, 3)
    return matrix * np.sign(_depths(matrix, source[:1])[0])


def _depths(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[2, :2] + matrix[2, 2]


def _mapped(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (n, 2) through a homography."""
    ahead = points @ matrix[:, :2].T + matrix[:, 2]
    return ahead[:, :2] / ahead[:, 2:]


def _parabolas(roads: Sequence[np.ndarray], degree: int) -> np.ndarray:
    """Coefficients of x(z): an offset of each lane, then those of z, z² that all have in common."""
    metres = np.concatenate(roads)
    owner = np.repeat(np.arange(len(roads)), [len(road) for road in roads])
    x, z = metres.T
    basis = np.concatenate(
        [np.eye(len(roads))[owner], *(z[:, None] ** power for power in range(1, degree + 1))], 1
    )
    weight = 1 / np.maximum(z, 1.0)
    return np.linalg.lstsq(basis * weight[:, None], x * weight, rcond=None)[0]


def _side(road: np.ndarray, near: float) -> float | None:
    """x of a lane (n, 2) at depth ``near``."""
    if len(road) < 2:
        return None
    degree = 2 if len(road) >= _LEAST_POINTS else 1
    place, *further = _parabolas([road], degree)
    return float(place + sum(c * near**power for power, c in enumerate(further, 1)))


def _curvature(roads: Sequence[np.ndarray], shortest: float) -> float | None:
    """1/m of lanes (n, 2) that run in parallel; None if they are too short."""
    roads = [r for r in roads if len(r) >= _LEAST_POINTS and np.ptp(r[:, 1]) >= shortest]
    if not roads:
        return None
    lean, bend = _parabolas(roads, 2)[-2:]
    return float(2 * bend / (1 + lean**2) ** 1.5)
