"""Lanes painted onto photographs of streets: real textures and traffic, exact lanes.

A photograph with a label map shows where road is. Its own markings are removed, a camera is placed
so that the road's far end is its horizon, and the lines of a random, straight plan that fits onto
the road are painted in the light that lies on it. What stands on the road hides them, as in a
recording.
"""

from dataclasses import dataclass, replace

import numpy as np

from segkd.synthetic.roads import effects
from segkd.synthetic.roads.annotate import Lanes, lanes_of
from segkd.synthetic.roads.course import Course, RoadCamera
from segkd.synthetic.roads.ground import Ground
from segkd.synthetic.roads.plan import SLOTS, Road
from segkd.synthetic.roads.surface import Surface
from segkd.synthetic.scenes.dice import Dice

_TRIES = 16  # plans, before a photograph is given up
_CLEAR = 400.0  # metres of visibility
_LEAST_ROAD = 0.12  # share of the view
_EGO, _OUTER = 0.85, 0.7  # shares of a line that must lie on the road
_LEFT, _RIGHT = SLOTS // 2 - 1, SLOTS // 2


@dataclass(frozen=True)
class Photograph:
    """A photograph of a street.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        road: (H, W) bool, where the road's surface is seen.
        traffic: (H, W) bool, what stands on roads and hides them.
    """

    image: np.ndarray
    road: np.ndarray
    traffic: np.ndarray


@dataclass(frozen=True)
class _View(Photograph):
    """A part of a photograph in the size of the scene, and the camera's place in it.

    Attributes:
        zoom: image widths of the scene per width of the photograph.
        squash: as of ``RoadCamera``.
        vanishing: where the road ends: shares of the width and of the height.
    """

    zoom: float
    squash: float
    vanishing: tuple[float, float]


def paint_road(
    photograph: Photograph, category: str, size: tuple[int, int], dice: Dice
) -> tuple[np.ndarray, Lanes] | None:
    """A part of a photograph with lanes.

    Args:
        photograph: of a street; its own road markings are removed.
        category: one of CATEGORIES; "noline" leaves hardly any paint.
        size: height and width of the result.
        dice: source of all choices.

    Returns:
        Image (H, W, 3) uint8 RGB and its lanes by slot, each (n, 2) or None. None if no plan of a
        road fits, e.g. where the photograph hardly shows a road.
    """
    view = _look(photograph, size, dice)
    if view is None:
        return None
    for _ in range(_TRIES):
        road = replace(Road.sample(category, dice), crossing=None)
        camera = _camera(view, road, dice)
        lanes = lanes_of(road, camera, size, _CLEAR)
        kept = [_on_road(lane, view) for lane in lanes]
        if min(kept[_LEFT], kept[_RIGHT]) >= _EGO:
            break
    else:
        return None
    shown = [share >= _OUTER for share in kept]
    road = _with_lines(road, shown)
    image = _painted(view, road, camera, dice)
    if dice.chance(0.3):
        image = effects.motion(image, camera, dice)
    image = effects.windscreen(image, dice)
    return image, tuple(lane if seen else None for lane, seen in zip(lanes, shown, strict=True))


def without_paint(image: np.ndarray, road: np.ndarray) -> np.ndarray:
    """A copy of an image (H, W, 3) uint8 without bright marks that are narrow in a row or in a
    column, as paint is, where ``road`` (H, W) is True. Road around them takes their place."""
    import cv2

    grey: np.ndarray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    typical = _mean_of(grey[..., None].astype(np.float32), road, 0.05 * image.shape[1])
    grey = np.where(road, grey, typical[..., 0].astype(np.uint8))  # a kerb is no end of a mark
    long, above = max(5, round(0.1 * image.shape[1])) | 1, np.zeros_like(grey)
    for shape in ((1, long), (long, 1)):
        hat = cv2.morphologyEx(grey, cv2.MORPH_TOPHAT, np.ones(shape, np.uint8))
        above = np.maximum(above, hat)
    marks = road & (above > np.maximum(8, 0.1 * grey))
    marks = cv2.dilate(marks.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    bare = road & ~marks
    filled = image.astype(np.float32)
    near = _mean_of(filled, bare, 0.012 * image.shape[1])
    cover = cv2.GaussianBlur((marks & road).astype(np.float32), (0, 0), 0.8)[..., None]
    cover *= road[..., None]
    # A mark's own texture stays, so that no smooth patch tells where it was.
    texture = filled - cv2.GaussianBlur(filled, (0, 0), 1.0)
    filled += cover * (near + np.clip(texture, -6, 6) - filled)
    return np.clip(filled, 0, 255).astype(np.uint8)


def _mean_of(image: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W, n) float32: the mean of an image (H, W, n) around each pixel, over a mask (H, W); in
    wider and wider surroundings until there is some of it."""
    weight = mask.astype(np.float32)[..., None]
    both = np.concatenate([image * weight, weight], 2)
    means = _blurred(both, sigma, 1)
    for step in (1, 2):
        means += np.float32(1e-4**step) * _blurred(both, sigma * 3**step, 4**step)
    return means[..., :-1] / np.maximum(means[..., -1:], 1e-12)


def _blurred(image: np.ndarray, sigma: float, coarser: int) -> np.ndarray:
    """An image (H, W, n) after a Gaussian blur, computed at 1 / ``coarser`` of its size."""
    import cv2

    rows, columns = image.shape[:2]
    small = (max(1, columns // coarser), max(1, rows // coarser))
    less = cv2.resize(image, small, interpolation=cv2.INTER_AREA) if coarser > 1 else image
    blurred = cv2.GaussianBlur(less, (0, 0), sigma / coarser)
    if coarser > 1:
        blurred = cv2.resize(blurred, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return blurred.reshape(image.shape)


def _look(photograph: Photograph, size: tuple[int, int], dice: Dice) -> _View | None:
    """A random part with the road's far end in it; None without a road."""
    import cv2

    end = _far_end(photograph.road)
    if end is None:
        return None
    (rows, columns), (tall, wide) = size, photograph.road.shape
    squash = dice.uniform(1.2, 1.65) if dice.chance(0.3) else dice.uniform(0.95, 1.1)
    width = dice.uniform(0.6, 1.0) * wide
    height = width * rows / columns * squash
    shrink = min(1.0, tall / height)
    width, height = width * shrink, height * shrink
    left = float(np.clip(end[0] - dice.uniform(0.35, 0.65) * width, 0, wide - width))
    top = float(np.clip(end[1] - dice.uniform(0.28, 0.6) * height, 0, tall - height))
    part = (
        slice(int(top), max(int(top) + 2, int(top + height))),
        slice(int(left), max(int(left) + 2, int(left + width))),
    )
    road = photograph.road[part]
    if road.mean() < _LEAST_ROAD:
        return None
    clean = without_paint(photograph.image[part], road)
    masks = [
        cv2.resize(mask[part].astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
        for mask in (photograph.road, photograph.traffic)
    ]
    return _View(
        image=cv2.resize(clean, (columns, rows), interpolation=cv2.INTER_AREA),
        road=masks[0] > 0.5,
        traffic=masks[1] > 0.5,
        zoom=wide / width,
        squash=squash,
        vanishing=((end[0] - left) / width, (end[1] - top) / height),
    )


def _far_end(road: np.ndarray) -> tuple[float, float] | None:
    """Column and row just above the farthest piece of the largest surface; None without one."""
    import cv2

    count, parts, facts, _ = cv2.connectedComponentsWithStats(road.astype(np.uint8))
    if count < 2:
        return None
    tall, wide = road.shape
    surface = parts == 1 + int(np.argmax(facts[1:, cv2.CC_STAT_AREA]))
    rows = np.flatnonzero(surface.sum(1) >= max(2, 0.01 * wide))
    if len(rows) < 0.12 * tall:
        return None
    first = rows[: max(2, len(rows) // 12)]
    middle = np.median([np.flatnonzero(surface[row]).mean() for row in first])
    return float(middle), float(rows[0]) - 0.01 * tall


def _camera(view: _View, road: Road, dice: Dice) -> RoadCamera:
    """Above the plan, looking where the view does."""
    focal = dice.uniform(0.75, 1.2) * view.zoom
    turn = (view.vanishing[0] - 0.5) / focal + dice.uniform(-0.01, 0.01)
    course = Course.sample(dice, ego=road.ego, bend=0.0, hilly=False, turn=turn)
    return RoadCamera(focal, dice.uniform(1.1, 2.0), view.vanishing[1], course, view.squash)


def _on_road(lane: np.ndarray | None, view: _View) -> float:
    """The share of a lane's points on road or traffic; 0 if there is no lane."""
    if lane is None:
        return 0.0
    x, y = np.rint(lane).astype(int).T
    free = view.road | view.traffic
    y, x = np.clip(y, 0, free.shape[0] - 1), np.clip(x, 0, free.shape[1] - 1)
    return float(free[y, x].mean())


def _with_lines(road: Road, shown: list[bool]) -> Road:
    """The road with lines between ego lane and the last slots that are shown, and none beyond."""
    boundaries = list(road.boundaries)
    for number, boundary in enumerate(boundaries):
        slot = number - (road.left - _LEFT)
        if not (0 <= slot < SLOTS and shown[slot]):
            boundaries[number] = replace(boundary, lines=(), annotated=False)
    return replace(road, boundaries=tuple(boundaries))


def _painted(view: _View, road: Road, camera: RoadCamera, dice: Dice) -> np.ndarray:
    """The view's image (H, W, 3) uint8 with the lines of a road, in the light on its surface."""
    ground = Ground.seen(camera, view.road.shape)
    below = slice(ground.first, None)
    seen, mask = view.image[below].astype(np.float32), view.road[below].astype(np.float32)
    grey = seen.mean(2, keepdims=True)
    light = _mean_of(grey, view.road[below], 0.015 * grey.shape[1]).clip(1)
    light /= np.float32(dice.uniform(60, 130))  # of asphalt in white light
    surface = Surface(road, ground, dice, seen / light)
    surface.lines()
    lit = np.minimum(surface.colour * light, 255)
    image = view.image.copy()
    image[below] = seen + mask[..., None] * (lit - seen)
    return image
