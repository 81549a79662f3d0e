"""Noise tiles and foliage: textures that are the same in every scene, made once per process."""

import functools
import math

import numpy as np

from segkd.synthetic.scenes.dice import Dice

CROWNS, CONES, BUSHES, BARE, HEDGES = (0, 1, 2, 3), (4, 5), (6, 7), (8, 9), (10, 11)
_SIDE = 128


@functools.cache
def tile(octaves: tuple[int, ...] = (4, 8, 16, 32, 64, 128), size: int = 256) -> np.ndarray:
    """(size, size) float32 noise of zero mean and unit variance that tiles seamlessly.

    ``octaves`` are the grid sizes per side that are summed; coarser ones weigh more.
    """
    import cv2

    dice = Dice((20, 7, size))
    total: np.ndarray = np.zeros((size, size), np.float32)
    for cells in octaves:
        grid = dice.bytes(cells, cells).astype(np.float32) - 127.5
        pad = max(1, cells // 8)
        factor = size // cells
        wide = cv2.resize(
            np.pad(grid, pad, mode="wrap"),
            None,
            fx=factor,
            fy=factor,
            interpolation=cv2.INTER_CUBIC,
        )
        cut = pad * factor
        total += wide[cut : cut + size, cut : cut + size] / math.sqrt(cells)
    return (total - total.mean()) / total.std()


@functools.cache
def foliage(side: int = _SIDE) -> tuple[np.ndarray, ...]:
    """All stamps, each (side, side, 2) uint8: shade and opacity; the first row is the top."""
    import cv2

    if side != _SIDE:
        whole = foliage()
        return tuple(cv2.resize(s, (side, side), interpolation=cv2.INTER_AREA) for s in whole)
    shapes = [_crown(i) for i in CROWNS] + [_cone(i) for i in CONES] + [_bush(i) for i in BUSHES]
    return (*shapes, *(_bare(i) for i in BARE), *(_hedge(i) for i in HEDGES))


def _axes() -> tuple[np.ndarray, np.ndarray]:
    ramp = (np.arange(_SIDE, dtype=np.float32) + 0.5) / _SIDE * 2 - 1
    return np.meshgrid(ramp, ramp)


def _leaves(inside: np.ndarray, index: int, holes: float) -> np.ndarray:
    """Foliage where ``inside`` (positive within the outline, in half widths) and noise agree."""
    coarse = np.roll(tile((6, 12, 24, 48), _SIDE * 2), 37 * index, (0, 1))[:_SIDE, :_SIDE]
    fine = np.roll(tile((16, 32, 64), _SIDE * 2), 53 * index, (0, 1))[:_SIDE, :_SIDE]
    mask = (inside + 0.14 * coarse > 0.1) & (fine + inside * 7 > holes)
    _, y = _axes()
    shade = 128 + 34 * fine + 26 * coarse - 42 * y
    return np.dstack([np.clip(shade, 0, 255), mask * 255.0]).astype(np.uint8)


def _crown(index: int) -> np.ndarray:
    x, y = _axes()
    power = (2.0, 2.6, 2.0, 1.7)[index % 4]
    radius = (np.abs(x) ** power + np.abs(y * 1.02) ** power) ** (1 / power)
    return _leaves(0.92 - radius, index, 0.2)


def _cone(index: int) -> np.ndarray:
    x, y = _axes()
    saw = 0.12 * np.abs(((y + 1) * (4 + index % 2)) % 1.0)
    return _leaves((y + 1.0) * 0.42 + saw - np.abs(x), index, -0.6)


def _bush(index: int) -> np.ndarray:
    x, y = _axes()
    return _leaves(0.92 - np.hypot(x, (y - 0.9) * 0.52), index, -0.8)


def _hedge(index: int) -> np.ndarray:
    _, y = _axes()
    return _leaves(np.minimum(y + 0.92, 0.6), index, -2.0)


def _bare(index: int) -> np.ndarray:
    """A crown in winter: branches that fork."""
    import cv2

    dice, mask = Dice((20, 8, index)), np.zeros((_SIDE, _SIDE), np.uint8)
    twigs = [(0.5 * _SIDE, _SIDE - 1.0, -math.pi / 2, 0.27 * _SIDE, 6.0)]
    while twigs:
        column, row, angle, length, width = twigs.pop()
        end = column + length * math.cos(angle), row + length * math.sin(angle)
        start = (round(column), round(row))
        cv2.line(mask, start, (round(end[0]), round(end[1])), 255, max(1, round(width)))
        if length > 0.05 * _SIDE:
            for turn in (-0.55, 0.5, 0.06)[: dice.integer(2, 3)]:
                bend = angle + turn + dice.uniform(-0.2, 0.2)
                twigs.append((*end, bend, length * dice.uniform(0.66, 0.82), width * 0.66))
    shade = 110 + 30 * tile((16, 32, 64), _SIDE * 2)[:_SIDE, :_SIDE]
    return np.dstack([np.clip(shade, 0, 255).astype(np.uint8), mask])
