"""The ground as seen from a car that has come some way: paint and texture stay on the road."""

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np

from segkd.synthetic.roads.course import RoadCamera
from segkd.synthetic.roads.ground import ALONG, Ground
from segkd.synthetic.roads.lines import Line
from segkd.synthetic.scenes.stamps import tile


@dataclass(frozen=True)
class MovingGround(Ground):
    """Ground whose pattern is fixed to the road.

    Attributes:
        passed: metres that the camera has come.
    """

    passed: float = 0.0

    @classmethod
    def passing(cls, camera: RoadCamera, size: tuple[int, int], passed: float) -> Self:
        """The ground in an image of this (height, width), ``passed`` metres from the beginning."""
        ground = Ground.seen(camera, size)
        parts = {field.name: getattr(ground, field.name) for field in fields(Ground)}
        return cls(**parts, passed=passed)

    def along(self, values: np.ndarray, start: float = 0.0) -> np.ndarray:
        """As ``Ground.along`` of (n,) values that repeat along the road; the result is (R, 1)."""
        period = len(values) * ALONG
        cells = np.arange(len(values) + 1) * ALONG
        sums = np.concatenate([[0.0], np.cumsum(values)])

        def until(z: np.ndarray) -> np.ndarray:
            place = z + self.passed - start
            whole = np.floor(place / period)
            return whole * sums[-1] + np.interp(place - whole * period, cells, sums)

        cells_each = np.maximum((self.far - self.near) / ALONG, 1e-6)
        mean = ((until(self.far) - until(self.near)) / cells_each).astype(np.float32)
        # As of values that are given up to this depth alone
        return mean * self.between(start, start + period)

    def dashes(self, line: Line, rows: slice) -> np.ndarray:
        """As ``Ground.dashes``: (rows, 1)."""
        return super().dashes(replace(line, phase=(line.phase + self.passed) % line.period), rows)

    def noise(self, scale: float, shift: tuple[float, float], stretch: float = 1.0) -> np.ndarray:
        """As ``Ground.noise``: (R, W)."""
        side = len(tile())
        row = (shift[1] + self.passed * side / scale / stretch) % side
        return super().noise(scale, (shift[0], row), stretch)
