"""Lanes over images: lines in the colours of their slots, names and scores, attention maps."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

_REFERENCE = 960  # image width in pixels to which the sizes below refer
_LINE, _DOT, _TEXT = 4.0, 3.0, 0.55
_GLOW = 0.45  # opacity of the colour along a line
_EGO = (60, 200, 120)
_EGO_SHARE = 0.22
_FRACTION = 3  # bits of OpenCV's fixed point

_Box = tuple[int, int, int, int]  # left, top, right, bottom


def draw_lanes(
    image: np.ndarray,
    lanes: Sequence[np.ndarray | None],
    palette: np.ndarray,
    names: Sequence[str] | None = None,
    *,
    left: int | None = None,
    pixels: np.ndarray | None = None,
    fill: bool = True,
) -> np.ndarray:
    """A copy of an image with its lanes.

    Args:
        image: (H, W, 3) uint8 RGB.
        lanes: per slot the points (n, 2) as x, y in pixels; None where there is no lane.
        palette: (L, 3) uint8 RGB of the slots.
        names: texts at the lower ends of the lanes, e.g. ``"left 0.98"``; None: no texts.
        left: number of slots left of the car; None: half of them.
        pixels: (H, W), nonzero pixels are painted in the colour of the first slot (BDD100K).
        fill: tint the road between the two lanes beside the car.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    import cv2

    image = np.ascontiguousarray(image)
    scale = max(image.shape[1] / _REFERENCE, 0.35)
    if pixels is not None:
        image = _tinted(image, pixels != 0, palette[0], _GLOW + 0.3)
    if fill:
        image = _with_ego(image, lanes, len(lanes) // 2 if left is None else left)
    glow = image.copy()
    for lane, color in _present(lanes, palette):
        cv2.polylines(glow, [lane], False, color, _odd(3 * _LINE * scale), cv2.LINE_AA, _FRACTION)
    image = cv2.addWeighted(glow, _GLOW, image, 1 - _GLOW, 0)
    for lane, color in _present(lanes, palette):
        cv2.polylines(image, [lane], False, color, _odd(_LINE * scale), cv2.LINE_AA, _FRACTION)
        radius = round(_DOT * scale * 2**_FRACTION)
        for x, y in lane[:, 0].tolist():
            cv2.circle(image, (x, y), radius, (255, 255, 255), -1, cv2.LINE_AA, _FRACTION)
    taken: list[_Box] = []
    for points, name in zip(lanes, names or [], strict=False):
        if points is not None:
            _label(image, name, points, scale, taken)
    return image


def write_line(image: np.ndarray, text: str, *, smallest: float = 0.35, row: int = 0) -> None:
    """Writes a text into the upper left corner of an image (H, W, 3) uint8, in place.

    Args:
        image: is changed.
        text: of ASCII letters.
        smallest: scale of the letters in small images.
        row: 0 for the first line of text.
    """
    scale = max(image.shape[1] / _REFERENCE, smallest)
    _write(image, text, (14 * scale, (30 + 30 * row) * scale), scale)


def heat(image: np.ndarray, attention: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """An attention map over an image, blue to red.

    Args:
        image: (H, W, 3) uint8 RGB.
        attention: (h, w) in [0, 1].
        strength: opacity of the colours, 0 to 1.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    import cv2

    size = image.shape[1], image.shape[0]
    levels = cv2.resize(attention.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    levels = (255 * levels.clip(0, 1)).round().astype(np.uint8)
    colors = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(colors, strength, np.ascontiguousarray(image), 1 - strength, 0)


def side_panels(image: np.ndarray, panels: Mapping[str, np.ndarray]) -> np.ndarray:
    """An image with a column of titled panels at its right.

    Together they are as high as the image; the column is at most half as wide, and panels keep
    their aspect ratio.

    Args:
        image: (H, W, 3) uint8 RGB.
        panels: (h, w, 3) uint8 RGB by title.

    Returns:
        (H, W + column, 3) uint8 RGB; the image itself without panels.
    """
    import cv2

    if not panels:
        return image
    height, width = image.shape[:2]
    edges = np.linspace(0, height, len(panels) + 1).round().astype(int)
    tile = min(width // 2, round(width / len(panels)))
    column = np.zeros((height, max(2, tile), 3), np.uint8)
    for (title, panel), top, bottom in zip(panels.items(), edges[:-1], edges[1:], strict=True):
        rows = max(1, min(bottom - top, round(column.shape[1] * panel.shape[0] / panel.shape[1])))
        small = cv2.resize(panel, (column.shape[1], rows), interpolation=cv2.INTER_AREA)
        write_line(small, title, smallest=0.7)
        column[top : top + rows] = small
    return np.hstack([image, column])


def _present(
    lanes: Sequence[np.ndarray | None], palette: np.ndarray
) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Points (n, 1, 2) in OpenCV's fixed point, and colour, of each existing lane."""
    for lane, color in zip(lanes, palette, strict=False):
        if lane is not None and len(lane) > 1:
            points = np.rint(np.clip(lane, -1e4, 1e4) * 2**_FRACTION).astype(np.int32)
            yield points[:, None], tuple(int(part) for part in color)


def _with_ego(image: np.ndarray, lanes: Sequence[np.ndarray | None], border: int) -> np.ndarray:
    """The road between the slots beside the car, where both have a lane, tinted."""
    import cv2

    inside = 0 < border < len(lanes)
    left, right = (lanes[border - 1], lanes[border]) if inside else (None, None)
    if left is None or right is None:
        return image
    top = max(left[:, 1].min(), right[:, 1].min())
    left, right = left[left[:, 1] >= top], right[right[:, 1] >= top]
    if len(left) < 2 or len(right) < 2:
        return image
    mask = np.zeros(image.shape[:2], np.uint8)
    outline = np.concatenate([left, right[::-1]]).clip(-1e4, 1e4)
    cv2.fillPoly(mask, [np.rint(outline).astype(np.int32)], 1)
    return _tinted(image, mask != 0, _EGO, _EGO_SHARE)


def _tinted(image: np.ndarray, where: np.ndarray, color: ArrayLike, share: float) -> np.ndarray:
    tinted = image.copy()
    mixed = (1 - share) * image[where] + share * np.asarray(color, np.float32)
    tinted[where] = mixed.round().astype(np.uint8)
    return tinted


def _label(image: np.ndarray, text: str, lane: np.ndarray, scale: float, taken: list[_Box]) -> None:
    """A text next to the lowest point of a lane in the image, above earlier texts."""
    height, width = image.shape[:2]
    inside = lane[(lane[:, 0] >= 0) & (lane[:, 0] < width) & (lane[:, 1] < height)]
    if text and len(inside):
        x, y = inside[np.argmax(inside[:, 1])]
        _write(image, text, (x + 8 * scale, y - 8 * scale), scale, taken)


def _write(
    image: np.ndarray,
    text: str,
    place: tuple[float, float],
    scale: float,
    taken: list[_Box] | None = None,
) -> None:
    """White text on a dark box, moved into the image and off other texts.

    A box, since an outline of thicker letters does not fit: OpenCV 5 spaces them wider.
    """
    import cv2

    taken = [] if taken is None else taken
    font, size, thick = cv2.FONT_HERSHEY_SIMPLEX, _TEXT * scale, max(1, round(1.4 * scale))
    (wide, high), below = cv2.getTextSize(text, font, size, thick)
    edge = max(2, round(4 * scale))
    x = int(min(max(place[0], edge), max(image.shape[1] - wide - edge, edge)))
    y = int(min(max(place[1], high + edge), image.shape[0] - below - edge))
    lower = [box for box in taken if box[0] < x + wide + edge and x - edge < box[2]]
    for box in sorted(lower, key=lambda box: -box[3]):
        if box[1] < y + below + edge and y - high - edge < box[3]:
            y = box[1] - below - edge - 1
    y = max(y, high + edge)  # a small image has no room for all
    box = (max(x - edge, 0), max(y - high - edge, 0), x + wide + edge, y + below + edge)
    taken.append(box)
    part = image[box[1] : box[3], box[0] : box[2]]
    part[:] = part // 3
    cv2.putText(image, text, (x, y), font, size, (255, 255, 255), thick, cv2.LINE_AA)


def _odd(thickness: float) -> int:
    return max(1, 2 * round((thickness - 1) / 2) + 1)
