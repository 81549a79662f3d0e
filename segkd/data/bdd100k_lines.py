"""Label files of BDD100K to lane lines.

A marking is annotated by its two borders, as two lines without a common id. Here two borders of
one image are a marking if they run side by side from end to end, no farther apart than markings
are wide (which grows with nearness to the car); the closest find each other first. Borders
without a partner (curbs, and markings with one border) are lines themselves.
"""

from typing import Any

import numpy as np

from segkd.errors import DataError
from segkd.texts import is_number, json_kind

_WIDEST = 60.0  # px between the borders of a marking, in the lowest row
_SMALLEST = 12.0  # px allowed in any row
_HEIGHT = 720.0  # of all images
_SAMPLES = 17  # points of a line when it is compared, pieces of a Bézier curve


def borders_of(frame: dict[str, Any], file: str) -> list[np.ndarray]:
    """Borders of the markings along the road, (n, 2) points each, from bottom to top.

    Markings across the road (``laneDirection: vertical``) and crosswalks are left out.

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
        kind = attributes.get("laneTypes", attributes.get("laneType", ""))
        if attributes["laneDirection"] == "vertical" or kind == "crosswalk":
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


def _list(value: object, where: str) -> list:
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
    """One line per marking: midway between paired borders, and borders without a partner."""
    distances = [
        (distance, i, j)
        for i in range(len(borders))
        for j in range(i)
        if (distance := _distance(borders[i], borders[j])) is not None
    ]
    lines, single = [], set(range(len(borders)))
    for _, i, j in sorted(distances):
        if {i, j} <= single:
            single -= {i, j}
            lines.append(_midway(borders[i], borders[j]))
    lines += [borders[i] for i in sorted(single)]
    return [line.astype(np.float32) for line in lines]


def _distance(one: np.ndarray, other: np.ndarray) -> float | None:
    """Mean distance of two borders of one marking; None if they cannot be that."""
    one, other = _resampled(one), _resampled(other)
    both = []
    for line, partner in ((one, other), (other, one)):
        inner = line[_SAMPLES // 8 : -_SAMPLES // 8]  # ends need not be level with each other
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
    """Points at equal distances along a line, from end to end."""
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
    """Straight pieces for Bézier ones: three ``C`` after a point are two handles and an end."""
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
