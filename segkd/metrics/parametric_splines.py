"""Cubic splines through points along their distances: natural, or through the knots of FITPACK."""

import numpy as np


def distinct(points: np.ndarray) -> np.ndarray:
    """Points (n, 2) float64 without consecutive duplicates and those that are not finite."""
    points = np.asarray(points, np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(1)]
    return points[np.append(True, (np.diff(points, axis=0) != 0).any(1))[: len(points)]]


def natural(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Second derivatives (n, 2) that vanish at both ends, and distances (n - 1,) of neighbours.

    Args:
        points: (n, 2), 2 or more, consecutive ones different.
    """
    length = np.linalg.norm(np.diff(points, axis=0), axis=1)
    matrix, right = _inner(points, length)
    matrix[0, 0] = matrix[-1, -1] = 1
    return np.linalg.solve(matrix, right), length


def not_a_knot(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As ``natural``, with a third derivative that is continuous at the second and last but one.

    This is what ``scipy.interpolate.splprep`` with ``s=0`` computes, of the degree n - 1 for fewer
    than 4 points.

    Args:
        points: (n, 2), 2 or more, consecutive ones different.
    """
    length = np.linalg.norm(np.diff(points, axis=0), axis=1)
    if len(points) == 2:
        return np.zeros((2, 2)), length
    matrix, right = _inner(points, length)
    if len(points) == 3:  # a parabola
        matrix[0, :2] = matrix[2, 1:] = 1, -1
        return np.linalg.solve(matrix, right), length
    matrix[0, :3] = length[1], -length[0] - length[1], length[0]
    matrix[-1, -3:] = length[-1], -length[-1] - length[-2], length[-2]
    return np.linalg.solve(matrix, right), length


def at(
    points: np.ndarray, bends: np.ndarray, length: np.ndarray, piece: np.ndarray, t: np.ndarray
) -> np.ndarray:
    """Points (m, 2) of a spline.

    Args:
        points, bends: (n, 2) points, and second derivatives there.
        length: (n - 1,).
        piece: (m,) index of the piece.
        t: (m,) distance from its beginning.
    """
    h, t = length[piece, None], t[:, None]
    rise = (points[piece + 1] - points[piece]) / h
    slope = rise - h * (2 * bends[piece] + bends[piece + 1]) / 6
    cubic = (bends[piece + 1] - bends[piece]) / (6 * h)
    return points[piece] + t * (slope + t * (bends[piece] / 2 + t * cubic))


def _inner(points: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The equations of the points between the ends, in the inner rows of (n, n) and (n, 2)."""
    number = len(points)
    matrix, right = np.zeros((number, number)), np.zeros((number, 2))
    inner = np.arange(1, number - 1)
    matrix[inner, inner - 1], matrix[inner, inner + 1] = length[:-1], length[1:]
    matrix[inner, inner] = 2 * (length[:-1] + length[1:])
    rises = np.diff(points, axis=0) / length[:, None]
    right[inner] = 6 * np.diff(rises, axis=0)
    return matrix, right
