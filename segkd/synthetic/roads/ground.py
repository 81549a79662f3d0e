"""The ground pixel by pixel: what each pixel covers, and the mean of what is painted there.

Stripes along the road and bands across it are averaged over a pixel exactly, so that far lines
fade as they do in photographs instead of breaking up.
"""

from dataclasses import dataclass

import numpy as np

from segkd.synthetic.roads.course import RoadCamera
from segkd.synthetic.roads.lines import Line
from segkd.synthetic.scenes.stamps import tile

_HALF, _TABLE = 60.0, 4800  # metres to each side that are tabulated; number of cells
ALONG = 0.1  # metres between the cells of a table along the road
Window = tuple[slice, slice]


@dataclass(frozen=True)
class Ground:
    """The R rows of an image (H, W) that show ground.

    Attributes:
        first: row of the image.
        z, near, far: (R, 1) depth in the middle of a row, at its lower and its upper edge.
        step: (R, 1) metres from one column to the next.
        edges: (R, W + 1) float32 side at the borders of the columns.
        sides: (R, W) float32 side in the middle of each pixel.
    """

    first: int
    z: np.ndarray
    near: np.ndarray
    far: np.ndarray
    step: np.ndarray
    edges: np.ndarray
    sides: np.ndarray

    @classmethod
    def seen(cls, camera: RoadCamera, size: tuple[int, int]) -> "Ground":
        """The ground in an image of this (height, width)."""
        rows, columns = size
        first = int(np.ceil(camera.horizon * rows + camera.top * columns))
        first = min(max(first, 0), rows - 1)
        edge = (np.arange(first, rows + 1) - camera.horizon * rows) / columns
        middle = edge[:-1] + 0.5 / columns
        depth, z = camera.depth(edge)[:, None], camera.depth(middle)[:, None]
        step = z / (camera.focal * columns)
        starts = np.arange(columns + 1, dtype=np.float32) - np.float32(0.5 * columns)
        edges = (starts * step - camera.course.across(z)).astype(np.float32)
        sides = edges[:, :-1] + (0.5 * step).astype(np.float32)
        return cls(first, z, depth[1:], depth[:-1], step, edges, sides)

    @property
    def shape(self) -> tuple[int, int]:
        """(R, W)."""
        rows, columns = self.sides.shape
        return rows, columns

    def bands(self, values: np.ndarray) -> np.ndarray:
        """(R, W, n) float32: the mean over each pixel of ``values`` (_TABLE, n) that are given at
        the sides ``across()``."""
        cell = 2 * _HALF / _TABLE
        sums = np.zeros((_TABLE + 1, values.shape[1]), np.float32)
        np.cumsum(values * cell, 0, out=sums[1:])
        place = (self.edges + _HALF) / np.float32(cell)
        cells = np.clip(place, 0, _TABLE - 1).astype(np.int32)
        rest = (place - cells)[..., None] * np.float32(
            cell
        )  # the outermost values continue beyond the table
        at = np.take(sums, cells, 0)
        at += rest * np.take(values.astype(np.float32), cells, 0)
        return (at[:, 1:] - at[:, :-1]) * (1.0 / self.step[..., None]).astype(np.float32)

    def along(self, values: np.ndarray, start: float = 0.0) -> np.ndarray:
        """(R, 1) float32: the mean over each row of ``values`` (n,), every 0.1 m of depth."""
        sums = np.concatenate([[0.0], np.cumsum(values)])
        cells = np.arange(len(sums)) * ALONG + start
        at = [np.interp(z, cells, sums) for z in (self.near, self.far)]
        cells_each = np.maximum((self.far - self.near) / ALONG, 1e-6)
        return ((at[1] - at[0]) / cells_each).astype(np.float32)

    def between(self, z0: float, z1: float) -> np.ndarray:
        """(R, 1) float32: the share of each row between two depths."""
        low, high = np.clip(z0, self.near, self.far), np.clip(z1, self.near, self.far)
        return ((high - low) / np.maximum(self.far - self.near, 1e-6)).astype(np.float32)

    def window(self, left: float, right: float) -> Window:
        """Rows and columns that contain all pixels between the sides left and right."""
        seen = (self.edges[:, 0] < right) & (self.edges[:, -1] > left)
        found = np.flatnonzero(seen)
        if not len(found):
            return slice(0, 0), slice(0, 0)
        rows = slice(int(found[0]), int(found[-1]) + 1)
        start, step = self.edges[rows, 0], self.step[rows, 0]
        first = int(np.clip((left - start) / step - 1, 0, self.shape[1]).min())
        last = int(np.ceil(np.clip((right - start) / step + 1, 0, self.shape[1]).max()))
        return rows, slice(first, last)

    def stripe(self, left: float, right: float, window: Window) -> np.ndarray:
        """(rows, columns) float32 of the window: the share of each pixel between two sides."""
        rows, columns = window
        edges = self.edges[rows, columns.start : columns.stop + 1]
        return np.diff(np.clip(edges, left, right), axis=1) / self.step[rows].astype(np.float32)

    def dashes(self, line: Line, rows: slice) -> np.ndarray:
        """(rows, 1) float32: the share of each row that the dashes of a line cover."""
        if line.dash >= line.period:
            return np.ones((rows.stop - rows.start, 1), np.float32)
        near, far = self.near[rows], self.far[rows]
        covered = _covered(far + line.phase, line) - _covered(near + line.phase, line)
        return (covered / np.maximum(far - near, 1e-6)).astype(np.float32)

    def noise(self, scale: float, shift: tuple[float, float], stretch: float = 1.0) -> np.ndarray:
        """(R, W) float32 noise on the ground that repeats after ``scale`` metres, ``stretch``
        times as many in depth."""
        import cv2

        grid = tile()
        factor = np.float32(len(grid) / scale)
        columns = self.sides * factor + np.float32(shift[0])
        rows = np.broadcast_to(self.z * factor / stretch + shift[1], self.shape)
        rows = np.ascontiguousarray(rows, np.float32)
        return cv2.remap(grid, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def across() -> np.ndarray:
    """(_TABLE,) the sides at which tables for ``Ground.bands`` have values."""
    return (np.arange(_TABLE) + 0.5) * (2 * _HALF / _TABLE) - _HALF


def _covered(z: np.ndarray, line: Line) -> np.ndarray:
    """Metres of dashes between 0 and z."""
    whole = np.floor(z / line.period)
    return whole * line.dash + np.minimum(z - whole * line.period, line.dash)
