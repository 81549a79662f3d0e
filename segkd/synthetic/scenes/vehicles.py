"""Cars, trucks, buses, trams: blocks with a profile, glass, wheels and lamps.

Own axes: z ahead, x to the right, the origin on the ground under the middle.
"""

from collections.abc import Callable, Sequence

from segkd.synthetic.scenes import classes as ids
from segkd.synthetic.scenes.dice import Colour, Dice, shaded
from segkd.synthetic.scenes.thing import BACK, FRONT, LEFT, RIGHT, Outline, Point, Thing, disc

PAINTS: tuple[Colour, ...] = (
    (205, 206, 208),
    (150, 153, 158),
    (88, 92, 98),
    (36, 38, 42),
    (128, 30, 30),
    (40, 62, 110),
    (30, 82, 62),
    (176, 160, 132),
    (190, 170, 60),
)
LIVERIES: tuple[Colour, ...] = (
    (196, 44, 40),
    (220, 176, 40),
    (222, 222, 218),
    (52, 96, 160),
    (64, 130, 80),
    (120, 124, 130),
)
_GLASS: tuple[Colour, ...] = ((48, 56, 64), (70, 82, 92), (104, 120, 132), (30, 34, 40))
_TYRE: Colour = (26, 26, 28)
_RED: Colour = (210, 30, 26)
_WHITE: Colour = (250, 244, 220)


def car(thing: Thing, dice: Dice, lamps: float) -> float:
    """A sedan, hatchback, estate or van. Returns its length in metres.

    Args:
        thing: gets the faces.
        dice: source of all choices.
        lamps: brightness of its lamps, 0 … 1.
    """
    kind = dice.weighted({"sedan": 0.35, "hatch": 0.3, "estate": 0.22, "van": 0.13})
    length, width, height = {
        "sedan": (4.6, 1.8, 1.44),
        "hatch": (4.0, 1.75, 1.5),
        "estate": (4.7, 1.88, 1.66),
        "van": (5.1, 1.95, 2.0),
    }[kind]
    length, height = length * dice.uniform(0.94, 1.06), height * dice.uniform(0.95, 1.05)
    a, w, belt = length / 2, width / 2, 0.62 * height
    paint, glass = dice.colour(PAINTS, 10), dice.colour(_GLASS, 8)
    body = [(-a, 0.3), (a, 0.3), (a, 0.42 * height), (0.5 * a, belt), (-a * 0.98, belt)]
    thing.prism(body, w, paint, ids.CAR)
    tail = {"sedan": -0.55, "hatch": -0.82, "estate": -0.9, "van": -0.95}[kind] * a
    nose = {"sedan": 0.1, "hatch": 0.15, "estate": 0.12, "van": 0.32}[kind] * a
    rear, front = tail - (0.26 if kind == "sedan" else 0.1) * a, nose + 0.36 * a
    cabin = [(max(rear, -0.99 * a), belt), (front, belt), (nose, height), (tail, height)]
    narrow = 0.88 * w
    thing.prism(cabin, narrow, paint, ids.CAR)
    _car_glass(thing, cabin, narrow, glass)
    thing.end((-w, w), (0.12, 0.32), -a + 0.05, (20, 20, 22), ids.CAR)
    thing.end((-w, w), (0.12, 0.32), a - 0.05, (24, 24, 26), ids.CAR)
    thing.sides(
        [(-0.9 * a, 0.14), (0.9 * a, 0.14), (0.9 * a, 0.34), (-0.9 * a, 0.34)],
        w * 0.98,
        (22, 22, 24),
        ids.CAR,
    )
    _wheels(thing, (-0.6 * a, 0.62 * a), 0.33, w + 0.01, ids.CAR, dice)
    _lights(thing, a + 0.01, w, 0.36 * height, belt * 0.93, lamps, ids.CAR)
    thing.end((-0.26, 0.26), (0.4, 0.52), -a - 0.01, (206, 206, 196), ids.CAR)
    thing.end((-0.26, 0.26), (0.34, 0.45), a + 0.02, (206, 206, 196), ids.CAR)
    thing.end((-0.5 * w, 0.5 * w), (0.48, 0.66 * belt), a + 0.01, (34, 34, 36), ids.CAR)
    thing.footprint = (-w, w, -a, a, height)
    return length


def _car_glass(thing: Thing, cabin: Outline, half: float, glass: Colour) -> None:
    """Panes within the outline of the cabin: rear, front and sides with a pillar."""
    (z0, y0), (z1, _), (z2, y2), (z3, _) = cabin
    for bottom, top, normal in ((z0, z3, BACK), (z1, z2, FRONT)):
        out = -0.015 if normal is BACK else 0.015
        corners = []
        for x, part in ((-0.88, 0.12), (0.88, 0.12), (0.8, 0.88), (-0.8, 0.88)):
            z = bottom + (top - bottom) * part + out
            corners.append((x * half, y0 + (y2 - y0) * part, z))
        thing.face(corners, glass, ids.CAR, normal)
    pillar = (z0 + z1) / 2 - 0.05
    y0, y2 = y0 + 0.03, y2 - 0.08
    for a, b, c, d in (
        (z0 + 0.14, pillar, pillar, z3 + 0.1),
        (pillar + 0.1, z1 - 0.18, z2 - 0.05, pillar + 0.1),
    ):
        thing.sides([(a, y0), (b, y0), (c, y2), (d, y2)], half + 0.01, glass, ids.CAR)


def _wheels(
    thing: Thing, places: Sequence[float], radius: float, half: float, label: int, dice: Dice
) -> None:
    hub = dice.colour(((150, 150, 152), (70, 70, 72)), 10)
    for z in places:
        thing.sides(disc(z, radius, radius), half, _TYRE, label)
        thing.sides(disc(z, radius, radius * 0.58, 8), half + 0.01, hub, label)
    for z in (places[0], places[-1]):
        for x in (-half + 0.01, half - 0.24):
            thing.end((x, x + 0.23), (0.0, 0.34), z, _TYRE, label)


def _lights(
    thing: Thing, end: float, half: float, low: float, high: float, lamps: float, label: int
) -> None:
    """Red lamps behind, white ones ahead."""
    for x in (-half * 0.97, half * 0.74):
        thing.end(
            (x, x + half * 0.23),
            (low + 0.35 * (high - low), high),
            -end,
            _RED,
            label,
            glow=0.75 * lamps,
        )
        top = low + (high - low) * 0.7
        thing.end((x, x + half * 0.23), (low, top), end, _WHITE, label, glow=lamps)


def truck(thing: Thing, dice: Dice, lamps: float) -> float:
    """A cab and a cargo box, tank-like tarpaulin or flat bed. Returns its length in metres."""
    long = dice.uniform(6.0, 11.0)
    a, w, top = long / 2, 1.22, dice.uniform(2.7, 3.8)
    paint, cargo = dice.colour(PAINTS, 12), dice.colour((*LIVERIES, *PAINTS), 12)
    cab = a - dice.uniform(1.7, 2.2)
    roof = dice.uniform(2.3, 3.0)
    thing.prism([(-a, 0.55), (a, 0.55), (a, 0.95), (-a, 0.95)], w * 0.9, (40, 40, 42), ids.TRUCK)
    box = [(-a, 0.95), (cab - 0.25, 0.95), (cab - 0.25, top), (-a, top)]
    front = [(cab, 0.5), (a, 0.5), (a, 1.4), (a - 0.25, roof), (cab, roof)]
    parts = [(box, cargo), (front, paint)]
    for profile, colour in parts:
        thing.prism(profile, w, colour, ids.TRUCK)
    stripe = dice.colour(LIVERIES, 14)
    if dice.chance(0.6):
        y0 = dice.uniform(1.3, 1.8)
        band = [(-a + 0.4, y0), (cab - 0.7, y0), (cab - 0.7, y0 + 0.6), (-a + 0.4, y0 + 0.6)]
        thing.sides(band, w + 0.01, stripe, ids.TRUCK)
        thing.end((-0.7 * w, 0.7 * w), (y0, y0 + 0.5), -a - 0.01, stripe, ids.TRUCK)
    seam = shaded(cargo, 0.6)
    thing.end((-0.02, 0.02), (0.95, top - 0.1), -a - 0.01, seam, ids.TRUCK)
    glass = dice.colour(_GLASS, 8)
    thing.end((-w * 0.88, w * 0.88), (1.45, roof - 0.3), a - 0.1, glass, ids.TRUCK)
    pane = [(cab + 0.5, 1.4), (a - 0.15, 1.4), (a - 0.3, roof - 0.4), (cab + 0.5, roof - 0.4)]
    thing.sides(pane, w + 0.01, glass, ids.TRUCK)
    thing.end((-w * 0.7, w * 0.7), (0.75, 1.2), a + 0.01, (38, 38, 40), ids.TRUCK)
    axles = (-a + 1.0, -a + 2.2, a - 1.0) if long > 8 else (-a + 1.2, a - 1.0)
    _wheels(thing, axles, 0.48, w + 0.01, ids.TRUCK, dice)
    _lights(thing, a + 0.02, w, 0.6, 0.82, lamps, ids.TRUCK)
    thing.footprint = (-w, w, -a, a, top)
    return long


def bus(thing: Thing, dice: Dice, lamps: float) -> float:
    """A city bus or coach. Returns its length in metres."""
    long, top = dice.uniform(9.5, 12.5), dice.uniform(2.9, 3.3)
    if dice.chance(0.12):
        top = 4.2
    a, w = long / 2, 1.26
    paint, glass = dice.colour(LIVERIES, 12), dice.colour(_GLASS, 8)
    second = dice.colour(LIVERIES, 12) if dice.chance(0.4) else paint
    thing.prism([(-a, 0.32), (a, 0.32), (a, top), (-a, top)], w, paint, ids.BUS)
    thing.sides([(-a, 0.32), (a, 0.32), (a, 1.0), (-a, 1.0)], w + 0.01, second, ids.BUS)
    decks = [(1.25, 2.35)] if top < 4 else [(1.2, 2.0), (2.7, 3.6)]
    for low, high in decks:
        _bays(
            thing,
            (-a + 0.3, a - 0.3),
            (low, high),
            dice.pick((1.3, 1.7, 2.2)),
            w + 0.015,
            glass,
            ids.BUS,
            0.7 * lamps,
        )
        thing.end((-w * 0.9, w * 0.9), (low, high + 0.1), a + 0.01, glass, ids.BUS)
        thing.end((-w * 0.8, w * 0.8), (low + 0.2, high), -a - 0.01, glass, ids.BUS)
    for door in (a - 1.7, -0.6):
        leaf = [(door, 0.4), (door + 1.2, 0.4), (door + 1.2, 2.3), (door, 2.3)]
        thing.face([(w + 0.02, y, z) for z, y in leaf], glass, ids.BUS, RIGHT)
    amber = (240, 150, 40)
    thing.end((-w * 0.75, w * 0.75), (top - 0.4, top - 0.12), a + 0.02, (18, 18, 18), ids.BUS)
    thing.end((-w * 0.6, w * 0.5), (top - 0.34, top - 0.18), a + 0.03, amber, ids.BUS, glow=0.8)
    thing.end((-0.3, 0.3), (top - 0.4, top - 0.15), -a - 0.02, amber, ids.BUS, glow=0.6)
    thing.end((-w * 0.6, w * 0.6), (0.5, 1.0), -a - 0.01, shaded(paint, 0.7), ids.BUS)
    _wheels(thing, (-a + 2.6, a - 2.5), 0.48, w + 0.02, ids.BUS, dice)
    _lights(thing, a + 0.03, w, 0.6, 0.9, lamps, ids.BUS)
    thing.footprint = (-w, w, -a, a, top)
    return long


def tram(thing: Thing, dice: Dice, lamps: float) -> float:
    """A tram or light train of two or three cars with bellows between. Returns its length in
    metres."""
    cars, one = dice.integer(2, 3), dice.uniform(8.5, 11.0)
    long, top, w = cars * one, dice.uniform(3.2, 3.7), 1.25
    a = long / 2
    paint, glass = dice.colour(LIVERIES, 12), dice.colour(_GLASS, 8)
    second = dice.colour(LIVERIES, 12)
    hull = [(-a, 0.25), (a, 0.25), (a, 1.2), (a - 0.7, top), (-a + 0.7, top), (-a, 1.2)]
    thing.prism(hull, w, paint, ids.TRAIN)
    thing.sides([(-a, 0.9), (a, 0.9), (a, 1.25), (-a, 1.25)], w + 0.01, second, ids.TRAIN)
    for number in range(cars):
        z = -a + number * one
        span = (z + (1.0 if number == 0 else 0.5), z + one - (1.0 if number == cars - 1 else 0.5))
        _bays(
            thing, span, (1.4, 2.6), dice.pick((1.2, 1.6)), w + 0.02, glass, ids.TRAIN, 0.7 * lamps
        )
        if number:
            gap = [(z - 0.3, 0.3), (z + 0.3, 0.3), (z + 0.3, top), (z - 0.3, top)]
            thing.sides(gap, w + 0.03, (40, 40, 42), ids.TRAIN)
    for z in (-a, a):
        out = 0.02 if z > 0 else -0.02
        slope = [z + out - 0.35 * (0.7 if z > 0 else -0.7) * part for part in (0.3, 1.6)]
        corners = [
            (x * w, y, s)
            for x, y, s in (
                (-0.85, 1.5, slope[0]),
                (0.85, 1.5, slope[0]),
                (0.75, 2.7, slope[1]),
                (-0.75, 2.7, slope[1]),
            )
        ]
        thing.face(corners, glass, ids.TRAIN, FRONT if z > 0 else BACK)
        thing.end((-w, w), (0.3, 0.65), z + out, (36, 36, 38), ids.TRAIN)
        thing.end(
            (-0.5, 0.5), (top - 0.5, top - 0.22), z * 0.95, (240, 150, 40), ids.TRAIN, glow=0.8
        )
    _lights(thing, a + 0.03, w, 0.75, 1.05, lamps, ids.TRAIN)
    arm = [(-0.6, top), (-0.5, top), (0.5, top + 0.9), (0.4, top + 0.9)]
    thing.face([(0.0, y, z) for z, y in arm], (50, 50, 52), ids.TRAIN)
    thing.footprint = (-w, w, -a, a, top)
    return long


def _bays(
    thing: Thing,
    span: tuple[float, float],
    y: tuple[float, float],
    pitch: float,
    half: float,
    glass: Colour,
    label: int,
    glow: float,
) -> None:
    """A row of windows along both sides."""
    (z0, z1), (y0, y1) = span, y
    count = max(1, round((z1 - z0) / pitch))
    step = (z1 - z0) / count
    for x, normal in ((-half, LEFT), (half, RIGHT)):
        corners: list[Point] = []
        for i in range(count):
            a, b = z0 + (i + 0.06) * step, z0 + (i + 0.94) * step
            corners += [(x, y0, a), (x, y0, b), (x, y1, b), (x, y1, a)]
        thing.face(corners, glass, label, normal, kind="quads", glow=glow)


BUILDERS: dict[str, Callable[[Thing, Dice, float], float]] = {
    "car": car,
    "truck": truck,
    "bus": bus,
    "tram": tram,
}
