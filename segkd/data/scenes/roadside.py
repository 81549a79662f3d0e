"""What lines a street: buildings, walls, fences, hedges, trees.

Stretches run along a chord in the world, from (xa, za) near to (xb, zb) far; their things have
world axes.
"""

import functools
import math
from dataclasses import dataclass

from segkd.data.scenes import classes as ids
from segkd.data.scenes import stamps
from segkd.data.scenes.dice import Colour, Dice
from segkd.data.scenes.furniture import METALS
from segkd.data.scenes.thing import BACK, Point, Thing

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
_GLASS: tuple[Colour, ...] = ((52, 60, 70), (78, 92, 106), (120, 136, 150), (40, 44, 48))
_ROOFS: tuple[Colour, ...] = ((112, 62, 50), (78, 74, 74), (94, 84, 76))
GREENS: tuple[Colour, ...] = (
    (62, 84, 42),
    (84, 104, 50),
    (104, 116, 62),
    (52, 70, 48),
    (128, 112, 56),
    (136, 88, 50),
)
_BARKS: tuple[Colour, ...] = ((78, 66, 54), (98, 90, 80), (60, 54, 48))
_LIGHT: Colour = (250, 214, 140)


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
        return math.hypot(self.xb - self.xa, self.zb - self.za)

    @functools.cached_property
    def normal(self) -> Point:
        """Towards the road."""
        dx, dz = self.xb - self.xa, self.zb - self.za
        return (-self.sign * dz / self.length, 0.0, self.sign * dx / self.length)

    def at(self, part: float, y: float, out: float = 0.0) -> Point:
        """A point at this part of the length, ``out`` metres towards the road."""
        nx, _, nz = self.normal
        x = self.xa + part * (self.xb - self.xa) + out * nx
        return (x, y, self.za + part * (self.zb - self.za) + out * nz)

    def sheet(self, parts, y, out: float = 0.0) -> list[Point]:
        (y0, y1), (xp, _, zp), (xq, _, zq) = y, self.at(parts[0], 0, out), self.at(parts[1], 0, out)
        return [(xp, y0, zp), (xq, y0, zq), (xq, y1, zq), (xp, y1, zp)]


def building(line: Stretch, dice: Dice, *, floors: int, shop: bool, lit: float) -> Thing:
    """A block with windows in a grid, cornices, a ground floor, sometimes a pitched roof."""
    thing = Thing(depth=line.zb)
    wall, storey = dice.colour(FACADES), dice.uniform(2.8, 3.5)
    deep, height = dice.uniform(8.0, 14.0), floors * storey + dice.uniform(0.4, 1.2)
    far = line.zb if line.zb > line.za else line.za
    end = [line.at(0, 0), line.at(0, 0, -deep), line.at(0, height, -deep), line.at(0, height)]
    thing.face(end, wall, ids.BUILDING, BACK)
    thing.face(line.sheet((0, 1), (0, height)), wall, ids.BUILDING, line.normal)
    _roof(thing, line, dice, height, deep)
    glass, style = (
        dice.colour(_GLASS),
        dice.pick(("punched", "punched", "tall", "ribbon", "curtain")),
    )
    bands = range(1 if shop else 0, floors)
    _windows(thing, line, dice, [(b * storey, storey) for b in bands], glass, style, lit)
    _end_windows(thing, line, dice, storey, floors, deep, glass)
    shade = dice.pick((0.75, 1.2))
    trim = [value * shade for value in wall]
    for floor in range(1, floors + 1) if dice.chance(0.5) else (floors,):
        y = floor * storey
        thing.face(line.sheet((0, 1), (y - 0.12, y + 0.12), 0.05), trim, ids.BUILDING, line.normal)
    if shop:
        _shopfront(thing, line, dice, storey, glass, lit)
    elif dice.chance(0.7):
        p = dice.uniform(0.1, 0.8)
        door = line.sheet((p, p + 1.2 / line.length), (0, 2.3), 0.04)
        thing.face(door, dice.colour(_ROOFS), ids.BUILDING, line.normal)
    if far < 120:
        back = line.at(1, 0, -deep)
        thing.footprint = (min(line.xa, back[0]), max(line.xa, back[0]), line.za, line.zb, height)
    return thing


def _roof(thing: Thing, line: Stretch, dice: Dice, height: float, deep: float) -> None:
    colour, kind = dice.colour(_ROOFS), dice.pick(("flat", "flat", "ridge", "gable"))
    if kind == "flat":
        return
    rise = dice.uniform(2.0, 3.6)
    if kind == "ridge":
        slope = [line.at(0, height), line.at(1, height)]
        slope += [line.at(1, height + rise, -deep / 2), line.at(0, height + rise, -deep / 2)]
        nx, _, nz = line.normal
        thing.face(slope, colour, ids.BUILDING, (nx * 0.6, 0.8, nz * 0.6))
    gable = [line.at(0, height), line.at(0, height, -deep), line.at(0, height + rise, -deep / 2)]
    thing.face(gable, thing.faces[0].colour, ids.BUILDING, BACK)
    if dice.chance(0.5):
        stack = line.sheet((0.4, 0.4 + 0.9 / line.length), (height, height + rise + 0.6), -1.5)
        thing.face(stack, colour, ids.BUILDING)


_SHAPES = {  # pitch in metres, width and height as parts of bay and storey, sill as part of storey
    "punched": (2.6, 0.46, 0.5, 0.28),
    "tall": (2.0, 0.5, 0.68, 0.16),
    "ribbon": (5.5, 0.96, 0.45, 0.32),
    "curtain": (1.5, 0.9, 0.86, 0.07),
}


def _windows(thing: Thing, line: Stretch, dice: Dice, storeys, glass, style: str, lit: float):
    pitch, wide, tall, sill = _SHAPES[style]
    count = max(1, round(line.length / pitch))
    margin, dark, bright, frames = (1 - wide) / 2, [], [], []
    framed = style in ("punched", "tall") and dice.chance(0.6) and line.za < 45
    for low, storey in storeys:
        y = (low + sill * storey, low + (sill + tall) * storey)
        for bay in range(count):
            parts = ((bay + margin) / count, (bay + 1 - margin) / count)
            group = bright if dice.random() < lit else dark
            group += line.sheet(parts, y, 0.03)
            if framed:
                edge = 0.12 / line.length
                rim = (parts[0] - edge, parts[1] + edge), (y[0] - 0.14, y[1] + 0.1)
                frames += line.sheet(*rim, 0.02)
    shade = dice.pick((0.7, 1.3))
    colour = [min(255, value * shade) for value in thing.faces[0].colour]
    thing.face(frames, colour, ids.BUILDING, line.normal, kind="quads")
    thing.face(dark, glass, ids.BUILDING, line.normal, kind="quads")
    thing.face(bright, _LIGHT, ids.BUILDING, line.normal, kind="quads", glow=0.75)


def _end_windows(thing: Thing, line: Stretch, dice: Dice, storey, floors, deep, glass) -> None:
    """Some windows in the wall that faces the camera."""
    if dice.chance(0.45):
        return
    corners, columns = [], max(1, int(deep / 3.2))
    for floor in range(floors):
        for column in range(columns):
            out = -deep * (column + 0.35) / columns
            low, high = (floor + 0.3) * storey, (floor + 0.78) * storey
            wide = -1.2
            corners += [line.at(0, low, out), line.at(0, low, out + wide)]
            corners += [line.at(0, high, out + wide), line.at(0, high, out)]
    thing.face(corners, glass, ids.BUILDING, BACK, kind="quads")


def _shopfront(thing: Thing, line: Stretch, dice: Dice, storey: float, glass, lit: float) -> None:
    """Wide panes, awnings and shop signs in the colours of traffic signs."""
    count = max(1, round(line.length / 5.0))
    for bay in range(count):
        parts = ((bay + 0.06) / count, (bay + 0.94) / count)
        bright = dice.random() < 0.35 + lit
        pane = line.sheet(parts, (0.4, storey * 0.72), 0.03)
        colour = _LIGHT if bright and lit else glass
        thing.face(pane, colour, ids.BUILDING, line.normal, glow=0.6 if bright and lit else 0.0)
        board = dice.colour(
            (
                (196, 40, 36),
                (40, 84, 160),
                (230, 200, 60),
                (40, 110, 70),
                (230, 228, 222),
                (40, 40, 42),
            )
        )
        fascia = line.sheet(parts, (storey * 0.76, storey * 0.95), 0.06)
        thing.face(fascia, board, ids.BUILDING, line.normal, glow=0.5 * lit)
        if dice.chance(0.3):
            awning = [line.at(parts[0], 2.5, 0.1), line.at(parts[1], 2.5, 0.1)]
            awning += [line.at(parts[1], 2.1, 1.2), line.at(parts[0], 2.1, 1.2)]
            thing.face(
                awning, dice.colour(((180, 60, 50), (60, 110, 80), (210, 200, 180))), ids.BUILDING
            )


def wall(line: Stretch, dice: Dice, low: bool) -> Thing:
    """A free-standing wall: courses of stone or brick, a coping, now and then a painting."""
    thing = Thing(depth=line.zb)
    height = dice.uniform(0.7, 1.2) if low else dice.uniform(1.7, 3.2)
    stone = dice.colour(FACADES)
    thing.face(line.sheet((0, 1), (0, height)), stone, ids.WALL, line.normal)
    end = [line.at(0, 0), line.at(0, 0, -0.35), line.at(0, height, -0.35), line.at(0, height)]
    thing.face(end, stone, ids.WALL, BACK)
    joint, rows = [value * 0.78 for value in stone], dice.integer(2, 7)
    corners = []
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
    coping = [min(255, value * 1.2) for value in stone]
    thing.face(line.sheet((0, 1), (height - 0.14, height), 0.05), coping, ids.WALL, line.normal)
    thing.footprint = _trace(line, height)
    return thing


def fence(line: Stretch, dice: Dice) -> Thing:
    """Bars, planks or mesh; what is behind shimmers through, but the label is fence."""
    thing = Thing(depth=line.zb)
    height, kind = dice.uniform(1.0, 2.1), dice.pick(("bars", "bars", "planks", "mesh", "rail"))
    if kind == "rail":
        height = dice.uniform(0.75, 1.0)
    wood = ((126, 96, 66), (160, 148, 126), (222, 220, 214))
    colour = dice.colour(wood if kind == "planks" else (*METALS, (34, 36, 36)))
    clear = {"bars": 0.2, "planks": 0.55, "mesh": 0.38, "rail": 0.15}[kind]
    thing.face(line.sheet((0, 1), (0.05, height)), colour, ids.FENCE, kind="glaze", detail=clear)
    pitch = {"bars": 0.3, "planks": 0.28, "mesh": 2.5, "rail": 1.8}[kind]
    wide = {"bars": 0.05, "planks": 0.2, "mesh": 0.06, "rail": 0.09}[kind]
    count = max(2, min(int(line.length / pitch), 40))
    corners = []
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


def hedge(line: Stretch, dice: Dice) -> list[Thing]:
    """Foliage in pieces of about two metres, each a billboard."""
    height, green, things = dice.uniform(0.9, 2.2), dice.colour(GREENS, 6), []
    count = max(1, round(line.length / 2.0))
    for piece in range(count):
        x, _, z = line.at((piece + 0.5) / count, 0)
        thing = Thing(x=x, z=z)
        half = 0.75 * line.length / count
        half = max(0.6, half * (0.35 + 0.65 * abs(line.xb - line.xa) / line.length))
        foliage(thing, (-half, half), (0, height), green, dice.pick(stamps.HEDGES))
        thing.footprint = (-half, half, -1.0, 1.0, height)
        things.append(thing)
    return things


def foliage(thing: Thing, x, y, colour: Colour, stamp: int) -> None:
    """Fills a rectangle across the view with a stamp of leaves."""
    thing.panel(x, y, colour, ids.VEGETATION, kind="foliage", detail=stamp)


def tree(dice: Dice, x: float, z: float, green: Colour, *, tall: float) -> Thing:
    """A trunk and one or two crowns; cones and bare branches too."""
    thing, kind = Thing(x=x, z=z), dice.weighted({"crown": 0.68, "cone": 0.16, "bare": 0.16})
    bark = dice.colour(_BARKS, 8)
    wide, foot = tall * dice.uniform(0.22, 0.36), tall * dice.uniform(0.2, 0.36)
    trunk = 0.018 * tall + 0.06
    top = foot * 1.3
    thing.face(
        ((-trunk, 0, 0), (trunk, 0, 0), (trunk * 0.8, top, 0), (-trunk * 0.8, top, 0)),
        bark,
        ids.VEGETATION,
    )
    thing.face(
        ((0, 0, 0), (trunk, 0, 0), (trunk * 0.8, top, 0), (0, top, 0)),
        [v * 0.7 for v in bark],
        ids.VEGETATION,
    )
    if kind == "bare":
        foliage(thing, (-wide * 1.3, wide * 1.3), (foot, tall), bark, dice.pick(stamps.BARE))
    elif kind == "cone":
        foliage(
            thing, (-wide * 0.7, wide * 0.7), (0.12 * tall, tall), green, dice.pick(stamps.CONES)
        )
    else:
        foliage(thing, (-wide, wide), (foot, tall), green, dice.pick(stamps.CROWNS))
        if dice.chance(0.6):
            shift, size = dice.uniform(-0.4, 0.4) * wide, dice.uniform(0.5, 0.8)
            high = (tall - size * (tall - foot), tall * dice.uniform(0.96, 1.08))
            shade = dice.uniform(0.9, 1.2)
            bright = [value * shade for value in green]
            span = (shift - size * wide, shift + size * wide)
            foliage(thing, span, high, bright, dice.pick(stamps.CROWNS))
    thing.footprint = (-wide * 0.7, wide * 0.7, -wide * 0.7, wide * 0.7, tall * 0.8)
    return thing


def bush(dice: Dice, x: float, z: float, green: Colour) -> Thing:
    thing, half = Thing(x=x, z=z), dice.uniform(0.5, 1.6)
    foliage(
        thing, (-half, half), (0, half * dice.uniform(0.9, 1.5)), green, dice.pick(stamps.BUSHES)
    )
    thing.footprint = (-half, half, -half, half, half)
    return thing
