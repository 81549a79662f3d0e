"""Poles, lamps, traffic lights, signs, and the clutter that looks like them."""

import math

from segkd.synthetic.scenes import classes as ids
from segkd.synthetic.scenes.dice import Colour, Dice, shaded
from segkd.synthetic.scenes.thing import ANY, BACK, Outline, Thing, disc

METALS: tuple[Colour, ...] = ((116, 118, 120), (74, 78, 80), (150, 152, 150), (58, 70, 62))
_RED, _BLUE, _YELLOW = (196, 30, 34), (30, 84, 170), (236, 196, 40)
_WHITE, _BLACK, _GREEN = (236, 236, 232), (28, 28, 28), (24, 120, 74)
_BOARDS: tuple[Colour, ...] = (_RED, _BLUE, _YELLOW, _WHITE, (210, 110, 40), (90, 150, 90))


def pole(thing: Thing, height: float, width: float, colour: Colour, foot: float = 0.0) -> None:
    """Adds a post of this height and width in metres, with a dark flank, from ``foot`` up."""
    half = width / 2
    thing.panel((-half, half), (foot, height), colour, ids.POLE)
    dull = shaded(colour, 0.72)
    thing.panel((half * 0.2, half), (foot, height), dull, ids.POLE)
    thing.footprint = (-half, half, -half, half, height)


def lamp(thing: Thing, dice: Dice, towards: int, lamps: float) -> None:
    """A street lamp with an arm over the road (on side ``towards``), or a low one with a globe."""
    colour = dice.colour(METALS)
    if dice.chance(0.3):
        height = dice.uniform(3.4, 4.4)
        pole(thing, height, 0.14, colour)
        globe = [(x, y, 0.0) for x, y in disc(0, height + 0.2, 0.24)]
        thing.face(globe, (236, 230, 206), ids.POLE, glow=lamps)
        return
    height, reach = dice.uniform(6.0, 8.5), towards * dice.uniform(0.8, 2.4)
    pole(thing, height, dice.uniform(0.15, 0.22), colour)
    rise = dice.uniform(0.0, 0.5)
    arm = ((0, height - 0.12, 0), (reach, height + rise - 0.06, 0), (reach, height + rise, 0))
    thing.face((*arm, (0, height, 0)), colour, ids.POLE)
    x = sorted((reach - 0.1 * towards, reach + 0.65 * towards))
    y = (height + rise - 0.12, height + rise + 0.05)
    thing.panel(x, y, colour, ids.POLE)
    thing.panel(x, (y[0] - 0.04, y[0]), (250, 236, 196), ids.POLE, glow=lamps)


def traffic_light(thing: Thing, dice: Dice, towards: int) -> None:
    """A signal for the camera, next to the road or on an arm over it; or its back."""
    colour = dice.colour(METALS)
    backwards, lit = dice.chance(0.15), dice.integer(0, 2)
    if dice.chance(0.4):
        reach = towards * dice.uniform(2.5, 5.0)
        pole(thing, 6.0, 0.2, colour)
        thing.panel(sorted((0, reach)), (5.6, 5.74), colour, ids.POLE)
        _signal(thing, reach, 4.9, lit, backwards, 1.15)
    else:
        pole(thing, dice.uniform(3.2, 3.6), 0.14, colour)
    _signal(thing, 0.0, 2.3, lit, backwards, 1.0)


def _signal(thing: Thing, x: float, low: float, lit: int, backwards: bool, grow: float) -> None:
    half, tall = 0.2 * grow, 1.05 * grow
    if grow > 1:
        thing.panel(
            (x - half * 1.4, x + half * 1.4),
            (low - 0.1, low + tall + 0.1),
            (20, 20, 22),
            ids.TRAFFIC_LIGHT,
        )
    thing.panel((x - half, x + half), (low, low + tall), (32, 34, 34), ids.TRAFFIC_LIGHT)
    if backwards:
        return
    for number, bright in enumerate(((40, 210, 110), (250, 180, 40), (236, 40, 34))):
        on = number == lit
        colour = bright if on else shaded(bright, 0.22)
        centre = low + tall * (0.2 + 0.3 * number)
        bulb = [(a, b, 0.0) for a, b in disc(x, centre, 0.125 * grow, 8)]
        thing.face(bulb, colour, ids.TRAFFIC_LIGHT, glow=1.0 if on else 0.0)


def sign(thing: Thing, dice: Dice) -> None:
    """A post with one or two signs, seen from the front or from the grey back."""
    low, grey = dice.uniform(1.9, 2.5), dice.colour(METALS)
    pole(thing, low + 0.6, 0.08, grey)
    backwards = dice.chance(0.12)
    shape = dice.pick((_round, _round, _triangle, _triangle, _blue, _octagon, _diamond, _board))
    size = dice.uniform(0.32, 0.46)
    if backwards:
        _plate(thing, disc(0, low + size, size, dice.pick((3, 12))), grey)
        return
    shape(thing, dice, low + size, size)
    if dice.chance(0.35):
        colour = dice.pick((_WHITE, _YELLOW, _BLUE))
        thing.panel((-0.3, 0.3), (low - 0.42, low - 0.06), colour, ids.TRAFFIC_SIGN)
        thing.panel((-0.2, 0.2), (low - 0.28, low - 0.2), _BLACK, ids.TRAFFIC_SIGN)


def gantry(thing: Thing, dice: Dice, towards: int) -> None:
    """A direction board over or beside the road."""
    wide, tall, low = dice.uniform(1.6, 3.2), dice.uniform(1.0, 1.8), dice.uniform(2.4, 4.6)
    colour, grey = dice.pick((_BLUE, _GREEN, _YELLOW, _WHITE)), dice.colour(METALS)
    pole(thing, low + tall, 0.2, grey)
    x = sorted((-0.3 * towards, towards * wide))
    thing.panel(x, (low, low + tall), _WHITE, ids.TRAFFIC_SIGN)
    edge = (x[0] + 0.06, x[1] - 0.06)
    thing.panel(edge, (low + 0.06, low + tall - 0.06), colour, ids.TRAFFIC_SIGN)
    ink = _BLACK if colour in (_YELLOW, _WHITE) else _WHITE
    for row in range(dice.integer(1, 3)):
        y = low + tall - 0.36 - 0.42 * row
        stop = x[0] + (x[1] - x[0]) * dice.uniform(0.5, 0.9)
        thing.panel((x[0] + 0.25, stop), (y, y + 0.18), ink, ids.TRAFFIC_SIGN)


def _plate(thing: Thing, outline: Outline, colour: Colour) -> None:
    thing.face([(x, y, 0.0) for x, y in outline], colour, ids.TRAFFIC_SIGN, ANY)


def _polygon(
    x: float, y: float, radius: float, corners: int, turn: float
) -> list[tuple[float, float]]:
    step = 2 * math.pi / corners
    return [
        (x + radius * math.sin(turn + i * step), y + radius * math.cos(turn + i * step))
        for i in range(corners)
    ]


def _round(thing: Thing, dice: Dice, y: float, size: float) -> None:
    _plate(thing, disc(0, y, size, 14), _RED)
    if dice.chance(0.25):
        thing.panel((-size * 0.65, size * 0.65), (y - 0.07, y + 0.07), _WHITE, ids.TRAFFIC_SIGN)
        return
    _plate(thing, disc(0, y, size * 0.74, 12), _WHITE)
    for x in (-0.36, 0.08):
        across = (x * size, (x + 0.28) * size)
        thing.panel(across, (y - size * 0.3, y + size * 0.3), _BLACK, ids.TRAFFIC_SIGN)


def _triangle(thing: Thing, dice: Dice, y: float, size: float) -> None:
    turn = dice.pick((0.0, 0.0, math.pi))
    inside = dice.pick((_WHITE, _WHITE, _YELLOW))
    _plate(thing, _polygon(0, y, size * 1.15, 3, turn), _RED)
    _plate(thing, _polygon(0, y, size * 0.72, 3, turn), inside)
    if turn == 0.0:
        thing.panel((-0.05, 0.05), (y - size * 0.25, y + size * 0.35), _BLACK, ids.TRAFFIC_SIGN)


def _blue(thing: Thing, dice: Dice, y: float, size: float) -> None:
    _plate(thing, disc(0, y, size, dice.pick((4, 14))), _BLUE)
    _plate(thing, _polygon(0, y + 0.1, size * 0.5, 3, dice.pick((0.0, 1.57, -1.57))), _WHITE)
    thing.panel((-0.06, 0.06), (y - size * 0.6, y + 0.05), _WHITE, ids.TRAFFIC_SIGN)


def _octagon(thing: Thing, dice: Dice, y: float, size: float) -> None:
    _plate(thing, disc(0, y, size * 1.05, 8), _WHITE)
    _plate(thing, disc(0, y, size * 0.95, 8), _RED)
    thing.panel((-size * 0.7, size * 0.7), (y - 0.09, y + 0.09), _WHITE, ids.TRAFFIC_SIGN)


def _diamond(thing: Thing, dice: Dice, y: float, size: float) -> None:
    _plate(thing, _polygon(0, y, size * 1.1, 4, 0.0), _WHITE)
    _plate(thing, _polygon(0, y, size * 0.85, 4, 0.0), _YELLOW)


def _board(thing: Thing, dice: Dice, y: float, size: float) -> None:
    half = size * dice.uniform(0.7, 1.5)
    colour = dice.pick((_BLUE, _GREEN, _YELLOW, _WHITE))
    thing.panel((-half, half), (y - size, y + size), _WHITE, ids.TRAFFIC_SIGN)
    inner = half - 0.05
    thing.panel((-inner, inner), (y - size + 0.05, y + size - 0.05), colour, ids.TRAFFIC_SIGN)
    ink = _BLACK if colour in (_YELLOW, _WHITE) else _WHITE
    for row in (0.35, -0.2):
        thing.panel(
            (-half * 0.7, half * 0.5),
            (y + row * size, y + (row + 0.2) * size),
            ink,
            ids.TRAFFIC_SIGN,
        )


def billboard(thing: Thing, dice: Dice) -> None:
    """An advertisement on legs, in the colours of signs: void except for the legs."""
    wide, low, tall = dice.uniform(0.6, 1.7), dice.uniform(0.4, 2.2), dice.uniform(1.2, 2.4)
    grey = dice.colour(METALS)
    for x in (-wide * 0.6, wide * 0.6):
        thing.panel((x - 0.06, x + 0.06), (0, low), grey, ids.POLE)
    thing.panel((-wide, wide), (low, low + tall), grey, ids.VOID)
    poster(thing, dice, (-wide + 0.08, wide - 0.08), (low + 0.08, low + tall - 0.08), ids.VOID)
    thing.footprint = (-wide, wide, -0.1, 0.1, low + tall)


def poster(
    thing: Thing,
    dice: Dice,
    x: tuple[float, float],
    y: tuple[float, float],
    label: int,
    z: float = 0.0,
) -> None:
    """A picture on a surface: stripes, a disc, sometimes the shape of a person."""
    (x0, x1), (y0, y1) = x, y
    ground = dice.colour(_BOARDS)
    thing.panel(x, y, ground, label, z)
    split = y0 + (y1 - y0) * dice.uniform(0.2, 0.5)
    thing.panel((x0, x1), (y0, split), dice.colour(_BOARDS), label, z)
    middle, size = (x0 + x1) / 2, 0.32 * min(x1 - x0, y1 - y0)
    if dice.chance(0.5):
        outline = disc(middle, (y0 + 2 * y1) / 3, size, 10)
        thing.face([(a, b, z) for a, b in outline], dice.colour(_BOARDS), label)
    else:
        colour = dice.colour(((60, 60, 80), (150, 60, 50), (220, 190, 160)))
        half = size * 0.45
        thing.panel((middle - half, middle + half), (y0, (y0 + 2 * y1) / 3), colour, label, z)
        head = disc(middle, (y0 + 2 * y1) / 3 + half * 0.6, half * 0.7, 8)
        thing.face([(a, b, z) for a, b in head], (214, 172, 144), label)


def clutter(thing: Thing, dice: Dice) -> None:
    """A bin, box, bench or post that belongs to no class."""
    kind = dice.pick(("bin", "cabinet", "cone", "bench"))
    colour = dice.colour((*METALS, (60, 90, 60), (150, 90, 50)))
    if kind == "cone":
        thing.face(
            ((-0.2, 0, 0), (0.2, 0, 0), (0.03, 0.7, 0), (-0.03, 0.7, 0)), (220, 90, 30), ids.VOID
        )
        thing.panel((-0.11, 0.11), (0.3, 0.45), _WHITE, ids.VOID)
        return
    half, deep, tall = {
        "bin": (0.3, 0.3, 1.05),
        "cabinet": (0.5, 0.25, 1.3),
        "bench": (0.8, 0.25, 0.5),
    }[kind]
    thing.box((-half, half), (0.0, tall), (-deep, deep), colour, ids.VOID)
    lid = shaded(colour, 0.6)
    corners = [
        (x, y, -deep)
        for x, y in ((-half, tall - 0.12), (half, tall - 0.12), (half, tall), (-half, tall))
    ]
    thing.face(corners, lid, ids.VOID, BACK)
    thing.footprint = (-half, half, -deep, deep, tall)


def bollard(thing: Thing, dice: Dice) -> None:
    """A low post with a bright band."""
    pole(thing, dice.uniform(0.8, 1.1), 0.13, dice.colour((*METALS, (190, 190, 186))))
    thing.panel((-0.065, 0.065), (0.7, 0.8), dice.pick((_RED, _WHITE)), ids.POLE)
