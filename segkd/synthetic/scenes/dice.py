"""Random numbers of a scene: one stream per key, the same on every machine."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Colour = tuple[float, float, float]  # RGB, 0 … 255


class Dice:
    """Scalars from the raw words of PCG64, whose stream numpy keeps stable between versions.

    Args:
        key: non-negative integers; equal keys give equal streams, other keys independent ones.
    """

    _BLOCK = 2048

    def __init__(self, key: Sequence[int]) -> None:
        self._source = np.random.PCG64(np.random.SeedSequence(list(key)))
        self._numbers: list[float] = []

    def random(self) -> float:
        """Uniform in [0, 1)."""
        if not self._numbers:
            words = self._source.random_raw(self._BLOCK)
            self._numbers = ((words >> np.uint64(11)) * 2.0**-53).tolist()
        return self._numbers.pop()

    def uniform(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.random()

    def integer(self, low: int, high: int) -> int:
        """Uniform in low … high, both inclusive."""
        return low + int(self.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability, 0 … 1."""
        return self.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        return options[int(self.random() * len(options))]

    def weighted(self, weights: Mapping[T, float]) -> T:
        """A key, with probability proportional to its value."""
        mark = self.random() * sum(weights.values())
        for option, weight in weights.items():
            mark -= weight
            if mark < 0:
                return option
        return option

    def colour(self, options: Sequence[Colour], spread: float = 12.0) -> Colour:
        """One of the colours, its brightness and each channel shifted a little."""
        shift = self.uniform(-2 * spread, 2 * spread)
        tint = 0.6 * spread
        red, green, blue = self.pick(options)
        return (
            max(5.0, red + shift + self.uniform(-tint, tint)),
            max(5.0, green + shift + self.uniform(-tint, tint)),
            max(5.0, blue + shift + self.uniform(-tint, tint)),
        )

    def bytes(self, *shape: int) -> np.ndarray:
        """Uniform uint8 of this shape."""
        count = int(np.prod(shape))
        words = self._source.random_raw(-(-count // 8)).astype("<u8", copy=False)
        return words.view(np.uint8)[:count].reshape(shape)


def shaded(colour: Colour, factor: float, limit: float = math.inf) -> Colour:
    """A colour with all channels multiplied by a factor and capped at ``limit``."""
    red, green, blue = colour
    return min(limit, red * factor), min(limit, green * factor), min(limit, blue * factor)
