"""Buildings: fronts with windows in a grid, roofs, shops."""

from segkd.synthetic.scenes import classes as ids
from segkd.synthetic.scenes.dice import Colour, Dice, shaded
from segkd.synthetic.scenes.roadside import FACADES, Stretch
from segkd.synthetic.scenes.thing import BACK, Point, Thing

_GLASS: tuple[Colour, ...] = ((52, 60, 70), (78, 92, 106), (120, 136, 150), (40, 44, 48))
_ROOFS: tuple[Colour, ...] = ((112, 62, 50), (78, 74, 74), (94, 84, 76))
_LIGHT: Colour = (250, 214, 140)
_SHAPES = {  # pitch in metres, width per bay, height and sill per storey
    "punched": (2.6, 0.46, 0.5, 0.28),
    "tall": (2.0, 0.5, 0.68, 0.16),
    "ribbon": (5.5, 0.96, 0.45, 0.32),
    "curtain": (1.5, 0.9, 0.86, 0.07),
}


def building(line: Stretch, dice: Dice, *, floors: int, shop: bool, lit: float) -> Thing:
    """A block with windows in a grid, cornices, a ground floor, sometimes a pitched roof.

    Args:
        line: where its front stands.
        dice: source of all choices.
        floors: number of storeys.
        shop: whether there are shops on the ground floor.
        lit: fraction of the windows with light.
    """
    thing = Thing(depth=line.zb)
    wall, storey = dice.colour(FACADES), dice.uniform(2.8, 3.5)
    deep, height = dice.uniform(8.0, 14.0), floors * storey + dice.uniform(0.4, 1.2)
    end = [line.at(0, 0), line.at(0, 0, -deep), line.at(0, height, -deep), line.at(0, height)]
    thing.face(end, wall, ids.BUILDING, BACK)
    thing.face(line.sheet((0, 1), (0, height)), wall, ids.BUILDING, line.normal)
    _roof(thing, line, dice, height, deep)
    glass = dice.colour(_GLASS)
    style = dice.pick(("punched", "punched", "tall", "ribbon", "curtain"))
    bands = range(1 if shop else 0, floors)
    _windows(thing, line, dice, [(b * storey, storey) for b in bands], glass, style, lit)
    _end_windows(thing, line, dice, storey, floors, deep, glass)
    shade = dice.pick((0.75, 1.2))
    trim = shaded(wall, shade)
    for floor in range(1, floors + 1) if dice.chance(0.5) else (floors,):
        y = floor * storey
        thing.face(line.sheet((0, 1), (y - 0.12, y + 0.12), 0.05), trim, ids.BUILDING, line.normal)
    if shop:
        _shopfront(thing, line, dice, storey, glass, lit)
    elif dice.chance(0.7):
        p = dice.uniform(0.1, 0.8)
        door = line.sheet((p, p + 1.2 / line.length), (0, 2.3), 0.04)
        thing.face(door, dice.colour(_ROOFS), ids.BUILDING, line.normal)
    if line.zb < 120:
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


def _windows(
    thing: Thing,
    line: Stretch,
    dice: Dice,
    storeys: list[tuple[float, float]],
    glass: Colour,
    style: str,
    lit: float,
) -> None:
    """Windows of the front; ``storeys`` are (floor, height) in metres."""
    pitch, wide, tall, sill = _SHAPES[style]
    count = max(1, round(line.length / pitch))
    margin = (1 - wide) / 2
    dark: list[Point] = []
    bright: list[Point] = []
    frames: list[Point] = []
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
    colour = shaded(thing.faces[0].colour, shade, limit=255)
    thing.face(frames, colour, ids.BUILDING, line.normal, kind="quads")
    thing.face(dark, glass, ids.BUILDING, line.normal, kind="quads")
    thing.face(bright, _LIGHT, ids.BUILDING, line.normal, kind="quads", glow=0.75)


def _end_windows(
    thing: Thing,
    line: Stretch,
    dice: Dice,
    storey: float,
    floors: int,
    deep: float,
    glass: Colour,
) -> None:
    """Some windows in the wall that faces the camera."""
    if dice.chance(0.45):
        return
    corners: list[Point] = []
    columns = max(1, int(deep / 3.2))
    for floor in range(floors):
        for column in range(columns):
            out = -deep * (column + 0.35) / columns
            low, high = (floor + 0.3) * storey, (floor + 0.78) * storey
            wide = -1.2
            corners += [line.at(0, low, out), line.at(0, low, out + wide)]
            corners += [line.at(0, high, out + wide), line.at(0, high, out)]
    thing.face(corners, glass, ids.BUILDING, BACK, kind="quads")


def _shopfront(
    thing: Thing, line: Stretch, dice: Dice, storey: float, glass: Colour, lit: float
) -> None:
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
