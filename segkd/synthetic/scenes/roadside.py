"""What runs along a street: the line that it follows, walls and fences.

Things along a stretch have world axes.
"""

import functools
import math
from dataclasses import dataclass

from segkd.synthetic.scenes import classes as ids
from segkd.synthetic.scenes.dice import Colour, Dice, shaded
from segkd.synthetic.scenes.furniture import METALS
from segkd.synthetic.scenes.thing import BACK, Point, Thing

FACADES: tuple[Colour, ...] = (
    (176, 168, 156),
    (150, 146, 142),
    (112, 108, 106),
    (158, 104, 84),
    (128, 84, 70),
    (206, 196, 174),
    (196, 178, 140),
    (130, 142, 152),
    (150, 160, 140),
    (214, 212, 208),
)


@dataclass(frozen=True)
class Stretch:
    """A vertical plane along the street, on the side ``sign`` of the road."""

    xa: float
    za: float
    xb: float
    zb: float
    sign: int

    @functools.cached_property
    def length(self) -> float:
        """Metres."""
        return math.hypot(self.xb - self.xa, self.zb - self.za)

    @functools.cached_property
    def normal(self) -> Point:
        """Unit vector towards the road."""
        dx, dz = self.xb - self.xa, self.zb - self.za
        return (-self.sign * dz / self.length, 0.0, self.sign * dx / self.length)

    def at(self, part: float, y: float, out: float = 0.0) -> Point:
        """The point at a fraction of the length and a height, ``out`` metres towards the road."""
        nx, _, nz = self.normal
        x = self.xa + part * (self.xb - self.xa) + out * nx
        return (x, y, self.za + part * (self.zb - self.za) + out * nz)

    def sheet(
        self, parts: tuple[float, float], y: tuple[float, float], out: float = 0.0
    ) -> list[Point]:
        """Corners of the rectangle between two fractions of the length and two heights."""
        (y0, y1), (xp, _, zp), (xq, _, zq) = y, self.at(parts[0], 0, out), self.at(parts[1], 0, out)
        return [(xp, y0, zp), (xq, y0, zq), (xq, y1, zq), (xp, y1, zp)]


def wall(line: Stretch, dice: Dice, low: bool) -> Thing:
    """A free-standing wall: courses of stone or brick, a coping, sometimes graffiti."""
    thing = Thing(depth=line.zb)
    height = dice.uniform(0.7, 1.2) if low else dice.uniform(1.7, 3.2)
    stone = dice.colour(FACADES)
    thing.face(line.sheet((0, 1), (0, height)), stone, ids.WALL, line.normal)
    end = [line.at(0, 0), line.at(0, 0, -0.35), line.at(0, height, -0.35), line.at(0, height)]
    thing.face(end, stone, ids.WALL, BACK)
    joint, rows = shaded(stone, 0.78), dice.integer(2, 7)
    corners: list[Point] = []
    for row in range(1, rows):
        y = height * row / rows
        corners += line.sheet((0, 1), (y - 0.02, y + 0.02), 0.01)
    piers = max(1, round(line.length / 3))
    for pier in range(piers):
        part = (pier + 0.5) / piers
        corners += line.sheet((part - 0.06 / piers, part + 0.06 / piers), (0, height), 0.01)
    thing.face(corners, joint, ids.WALL, line.normal, kind="quads")
    if dice.chance(0.3):
        p = dice.uniform(0, 0.6)
        paint = line.sheet((p, p + 0.3), (height * 0.15, height * 0.8), 0.02)
        thing.face(
            paint,
            dice.colour(((190, 60, 60), (60, 110, 180), (220, 190, 70))),
            ids.WALL,
            line.normal,
        )
    coping = shaded(stone, 1.2, limit=255)
    thing.face(line.sheet((0, 1), (height - 0.14, height), 0.05), coping, ids.WALL, line.normal)
    thing.footprint = _trace(line, height)
    return thing


def fence(line: Stretch, dice: Dice) -> Thing:
    """Bars, planks or mesh; what is behind shows through, but the label is fence."""
    thing = Thing(depth=line.zb)
    height, kind = dice.uniform(1.0, 2.1), dice.pick(("bars", "bars", "planks", "mesh", "rail"))
    if kind == "rail":
        height = dice.uniform(0.75, 1.0)
    wood: tuple[Colour, ...] = ((126, 96, 66), (160, 148, 126), (222, 220, 214))
    colour = dice.colour(wood if kind == "planks" else (*METALS, (34, 36, 36)))
    clear = {"bars": 0.2, "planks": 0.55, "mesh": 0.38, "rail": 0.15}[kind]
    thing.face(line.sheet((0, 1), (0.05, height)), colour, ids.FENCE, kind="glaze", detail=clear)
    pitch = {"bars": 0.3, "planks": 0.28, "mesh": 2.5, "rail": 1.8}[kind]
    wide = {"bars": 0.05, "planks": 0.2, "mesh": 0.06, "rail": 0.09}[kind]
    count = max(2, min(int(line.length / pitch), 40))
    corners: list[Point] = []
    for bar in range(count):
        part, half = (bar + 0.5) / count, wide / 2 / line.length
        corners += line.sheet((part - half, part + half), (0, height))
    thing.face(corners, colour, ids.FENCE, kind="quads")
    rails = (0.2, height - 0.12) if kind != "rail" else (0.35, height - 0.14)
    for y in rails:
        thing.face(
            line.sheet((0, 1), (y, y + (0.07 if kind != "rail" else 0.14))), colour, ids.FENCE
        )
    return thing


def _trace(line: Stretch, height: float) -> tuple[float, float, float, float, float]:
    return (min(line.xa, line.xb), max(line.xa, line.xb), line.za, line.zb, height)
