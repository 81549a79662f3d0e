"""The pinhole camera: metres to pixels.

World axes: X to the right, Y up from the ground, Z ahead; the camera stands at (0, height, 0).
Pitch is a shift of the horizon, so verticals stay vertical.
"""

from dataclasses import dataclass

import numpy as np

from segkd.synthetic.scenes.dice import Dice

NEAR = 0.8  # metres; what is nearer is pushed to this distance
_LIMIT = 20000.0  # pixels; keeps fixed-point drawing in range


@dataclass(frozen=True)
class Camera:
    """What the lens sees, independent of the image size.

    Attributes:
        focal: focal length in image widths.
        height: metres above ground.
        horizon: row of the horizon as a fraction of the image height.
    """

    focal: float
    height: float
    horizon: float

    @classmethod
    def sample(cls, dice: Dice) -> "Camera":
        """A random dashboard camera; in some scenes one of a larger vehicle."""
        height = dice.uniform(1.2, 1.7) if dice.chance(0.85) else dice.uniform(1.9, 2.6)
        return cls(dice.uniform(0.82, 1.15), height, dice.uniform(0.36, 0.52))

    def project(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(P, 3) metres to (P, 2) pixels (column, row) in an image of this (height, width)."""
        rows, columns = size
        scale = self.focal * columns / np.maximum(points[:, 2], NEAR)
        pixels = np.empty((len(points), 2))
        pixels[:, 0] = 0.5 * columns + scale * points[:, 0]
        pixels[:, 1] = self.horizon * rows + scale * (self.height - points[:, 1])
        return np.clip(pixels, -_LIMIT, _LIMIT)

    def ground(self, size: tuple[int, int]) -> tuple[int, np.ndarray, np.ndarray]:
        """Where the ground is visible in an image of this (height, width).

        Returns:
            Its first row r, the depth of each row (rows - r,) and the metres to the right of each
            pixel (rows - r, columns), both float32.
        """
        rows, columns = size
        first = min(int(np.ceil(self.horizon * rows)) + 1, rows - 1)
        below = np.arange(first, rows, dtype=np.float32) + 0.5 - self.horizon * rows
        depth = (self.focal * columns * self.height / below).astype(np.float32)
        across = (np.arange(columns, dtype=np.float32) + 0.5 - 0.5 * columns) / (
            self.focal * columns
        )
        return first, depth, depth[:, None] * across[None]
