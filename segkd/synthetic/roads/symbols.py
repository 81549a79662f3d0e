"""Paint other than lane lines: arrows, words, numbers, zebras, stop lines, hatching, cracks.

Shapes are polygons of (side, z) in metres.
"""

import math

import numpy as np

from segkd.synthetic.roads.course import RoadCamera
from segkd.synthetic.roads.ground import Ground
from segkd.synthetic.roads.plan import Road
from segkd.synthetic.roads.surface import Surface
from segkd.synthetic.scenes.dice import Dice, shaded

_FINE = 2  # supersampling factor
_BITS = 4  # fractional bits of coordinates in OpenCV
Shape = list[tuple[float, float]]


class Stencil:
    """Shapes that are painted in one go.

    Args:
        road, camera: where they lie, and who sees them.
    """

    def __init__(self, road: Road, camera: RoadCamera) -> None:
        self.road, self.camera = road, camera
        self._shapes: list[np.ndarray] = []

    def add(self, *shapes: Shape) -> None:
        """Adds polygons."""
        self._shapes += [np.array(shape, float) for shape in shapes]

    def box(self, left: float, right: float, near: float, far: float) -> None:
        """Adds a rectangle between two sides and two depths."""
        self.add([(left, near), (right, near), (right, far), (left, far)])

    def cover(self, ground: Ground, size: tuple[int, int]) -> np.ndarray | None:
        """(R, W) float32 share of each pixel that is painted; None if nothing is."""
        import cv2

        rows, columns = size
        seen = [shape for shape in self._shapes if self._shows(shape)]
        if not seen:
            return None
        points = np.concatenate(seen)
        world = np.zeros((len(points), 3))
        world[:, 2] = np.maximum(points[:, 1], 1.3)
        world[:, 0] = points[:, 0] + self.camera.course.across(world[:, 2])
        fine = (rows * _FINE, columns * _FINE)
        pixels = self.camera.project(world, fine) - (0.5, 0.5 + ground.first * _FINE)
        fixed = np.rint(np.clip(pixels, -9e3, 9e3) * 2**_BITS).astype(np.int32)
        canvas = np.zeros((ground.shape[0] * _FINE, columns * _FINE), np.uint8)
        ends = np.cumsum([len(shape) for shape in seen])[:-1]
        for outline in np.split(fixed, ends):
            cv2.fillPoly(canvas, [outline], 255, cv2.LINE_8, _BITS)
        small = cv2.resize(canvas, ground.shape[::-1], interpolation=cv2.INTER_AREA)
        return small * np.float32(1 / 255)

    def _shows(self, shape: np.ndarray) -> bool:
        near, far = shape[:, 1].min(), shape[:, 1].max()
        return far > 1.5 and near < 90 and not self.camera.hidden(near)


def paint_symbols(
    surface: Surface, camera: RoadCamera, size: tuple[int, int], category: str, dice: Dice
) -> None:
    """Paints random symbols, in a scene of category "arrow" always arrows."""
    road, painted = surface.road, Stencil(surface.road, camera)
    rate = {"highway": 0.04, "city": 0.22, "rural": 0.05}[road.place]
    if category == "arrow" or (category != "noline" and dice.chance(rate)):
        _arrows(painted, dice, sure=category == "arrow")
    if dice.chance(0.06 if road.place == "city" else 0.02):
        _word(painted, dice)
    if road.crossing is not None:
        _crossing(painted, road.crossing, dice)
    elif road.place != "highway" and dice.chance(0.05):
        _zebra(painted, dice.uniform(9, 50), dice)
    if category != "noline" and dice.chance(0.06):
        _hatching(painted, dice)
    cover = painted.cover(surface.ground, size)
    if cover is not None:
        worn = np.clip(1.1 + 0.5 * surface.fine - dice.uniform(0, 0.9), 0.15, 1.0)
        surface.layer(cover * worn, (226, 226, 220), dice.uniform(0.55, 1.0))
    dark = Stencil(road, camera)
    _repairs(dark, dice)
    cover = dark.cover(surface.ground, size)
    if cover is not None:
        shade = dice.pick((0.55, 0.75, 0.85, 1.15))
        tone = shaded(road.surface, shade)
        surface.layer(cover, tone, dice.uniform(0.3, 0.9))


def _arrows(painted: Stencil, dice: Dice, *, sure: bool) -> None:
    """One row of arrows or several, in some lanes or in all."""
    road, near = painted.road, dice.uniform(6.0, 22.0)
    rows, apart = dice.integer(1, 3), dice.uniform(18, 40)
    length = dice.uniform(3.0, 6.0)
    for lane in road.lanes:
        own = road.boundaries[road.left].side < lane.side < road.boundaries[road.left + 1].side
        if not lane.away or not (dice.chance(0.75) or (own and sure)):
            continue
        shapes = arrow(dice.weighted({"ahead": 0.5, "left": 0.15, "right": 0.15, "both": 0.2}))
        for row in range(rows):
            z = near + row * apart
            painted.add(*[[(lane.side + a, z + b * length) for a, b in s] for s in shapes])


def arrow(kind: str) -> list[Shape]:
    """Polygons of an arrow one unit long: ahead, left, right, or both (ahead and right)."""
    shaft = [(-0.08, 0.0), (0.08, 0.0), (0.08, 0.62), (-0.08, 0.62)]
    if kind == "ahead":
        return [shaft, [(-0.38, 0.58), (0.38, 0.58), (0.0, 1.0)]]
    side = -1.0 if kind == "left" else 1.0
    arm = [(0.0, 0.5), (0.42, 0.62), (0.42, 0.74), (0.0, 0.64)]
    head = [(0.36, 0.48), (0.9, 0.72), (0.36, 0.88)]
    turned = [[(side * a, b) for a, b in shape] for shape in (arm, head)]
    if kind == "both":
        return [*arrow("ahead"), *[[(a, b - 0.22) for a, b in shape] for shape in turned]]
    return [shaft, *turned]


def _word(painted: Stencil, dice: Dice) -> None:
    """Letters, stretched along the road: illegible strokes."""
    road = painted.road
    lane = dice.pick([lane for lane in road.lanes if lane.away])
    near, tall, count = dice.uniform(7, 30), dice.uniform(1.6, 4.5), dice.integer(2, 5)
    wide = min(0.75, 0.8 * road.lane / count)
    thick = 0.16 * wide
    for letter in range(count):
        left = lane.side + (letter - count / 2) * wide + 0.1 * wide
        right = left + 0.78 * wide
        for x in (left, right - thick, (left + right) / 2):
            if dice.chance(0.6):
                painted.box(x, x + thick, near, near + tall)
        for part in (0.0, 0.44, 0.88):
            if dice.chance(0.6):
                painted.box(left, right, near + part * tall, near + (part + 0.12) * tall)


def _crossing(painted: Stencil, crossing: tuple[float, float], dice: Dice) -> None:
    """Zebras and a stop line before the cross street, a zebra behind it, guide lines."""
    (near, far), road = crossing, painted.road
    if dice.chance(0.7):
        _zebra(painted, near - 5.0, dice)
        _zebra(painted, far + 1.5, dice)
    if dice.chance(0.8):
        first = min(lane.side for lane in road.lanes if lane.away) - road.lane / 2
        painted.box(first, road.boundaries[-1].side, near - 7.0, near - 6.6)
    if dice.chance(0.4):
        bend, start = dice.uniform(-0.03, 0.03), dice.pick(road.boundaries).side
        for step in range(int((far - near) / 3)):
            a, b = step * 3.0, step * 3.0 + 1.2
            left, right = (start + bend * value * value for value in (a, b))
            corners = [(left, near + a), (left + 0.15, near + a)]
            painted.add([*corners, (right + 0.15, near + b), (right, near + b)])
    if dice.chance(0.15):  # a box junction
        left, right = road.boundaries[road.left].side, road.boundaries[-1].side
        for start in np.arange(left - (far - near), right, 2.5):
            ends = [(start, near), (start + 0.2, near)]
            ends += [(start + far - near + 0.2, far), (start + far - near, far)]
            painted.add([(min(max(side, left), right), z) for side, z in ends])


def _zebra(painted: Stencil, z: float, dice: Dice) -> None:
    left, right = painted.road.edges
    pitch, deep = dice.uniform(0.85, 1.3), dice.uniform(2.5, 5.0)
    for side in np.arange(left + 0.3, right - 0.5, pitch):
        painted.box(side, side + 0.5 * pitch, z, z + deep)


def _hatching(painted: Stencil, dice: Dice) -> None:
    """Slanted bars on a shoulder where nobody may drive."""
    road = painted.road
    left, right = dice.pick(
        (
            (road.edges[0] + 0.2, road.boundaries[0].side - 0.3),
            (road.boundaries[-1].side + 0.3, road.edges[1] - 0.2),
        )
    )
    if right - left < 0.7:
        return
    lean, pitch = dice.pick((-1, 1)) * dice.uniform(0.5, 1.5), dice.uniform(2.0, 6.0)
    for z in np.arange(dice.uniform(2, 20), dice.uniform(30, 80), pitch):
        painted.add([(left, z), (right, z + lean), (right, z + lean + 0.5), (left, z + 0.5)])


def _repairs(dark: Stencil, dice: Dice) -> None:
    """Patches, lids and cracks filled with tar."""
    road = dark.road
    left, right = road.edges
    for _ in range(dice.pick((0, 0, 1, 2, 4))):
        side, z = dice.uniform(left, right), 3 + 40 * dice.random() ** 1.5
        if dice.chance(0.4):
            turns = [math.pi * i / 6 for i in range(12)]
            dark.add([(side + 0.35 * math.cos(t), z + 0.35 * math.sin(t)) for t in turns])
        else:
            wide, deep = dice.uniform(0.4, 3.0), dice.uniform(0.6, 9.0)
            dark.box(side, min(side + wide, right), z, z + deep)
    for _ in range(dice.integer(2, 7) if dice.chance(0.2) else 0):
        side, z, drift = dice.uniform(left, right), dice.uniform(3, 30), dice.uniform(-1, 1)
        for _ in range(dice.integer(3, 10)):
            on, ahead = side + drift * dice.uniform(-0.2, 0.8), z + dice.uniform(0.5, 2.0)
            dark.add([(side, z), (side + 0.06, z), (on + 0.06, ahead), (on, ahead)])
            side, z = on, ahead
