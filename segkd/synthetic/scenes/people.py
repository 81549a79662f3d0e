"""People, riders and their bicycles and motorcycles: flat limbs that keep a silhouette."""

import math
from collections.abc import Callable
from itertools import pairwise

from segkd.synthetic.scenes import classes as ids
from segkd.synthetic.scenes.dice import Colour, Dice, shaded
from segkd.synthetic.scenes.thing import ANY, Outline, Thing, disc, limb

CLOTHES: tuple[Colour, ...] = (
    (40, 42, 50),
    (66, 74, 96),
    (120, 118, 116),
    (178, 174, 166),
    (150, 44, 40),
    (52, 92, 66),
    (196, 162, 60),
    (110, 82, 60),
    (58, 90, 150),
)
_SKINS: tuple[Colour, ...] = ((222, 178, 150), (190, 140, 108), (120, 84, 62), (84, 58, 44))
_HAIRS: tuple[Colour, ...] = ((40, 30, 26), (92, 66, 44), (170, 140, 90), (120, 118, 116))
_RUBBER: Colour = (28, 28, 30)
_Part = Callable[[Outline, Colour], None]  # paints an outline


def person(thing: Thing, dice: Dice, label: int = ids.PERSON) -> None:
    """Someone who stands or walks, seen from the front, back or side."""
    tall = dice.uniform(1.56, 1.9) if dice.chance(0.87) else dice.uniform(1.0, 1.4)
    wide, stride = dice.uniform(0.85, 1.2), dice.uniform(-0.2, 0.2)
    coat, legs = dice.colour(CLOTHES), dice.colour(CLOTHES)
    skin, hair = dice.colour(_SKINS, 6), dice.colour(_HAIRS, 6)

    def part(corners: Outline, colour: Colour) -> None:
        thing.face([(x * tall * wide, y * tall, 0.0) for x, y in corners], colour, label)

    dim = shaded(legs, 0.8)
    for sign, colour in ((-1, dim), (1, legs)):
        knee = (0.05 * sign + 0.6 * stride * sign, 0.26)
        foot = (0.05 * sign + stride * sign, 0.02)
        part(limb((0.045 * sign, 0.52), knee, 0.1, 0.075), colour)
        part(limb(knee, foot, 0.075, 0.055), colour)
        part([(foot[0] - 0.04, 0), (foot[0] + 0.06, 0), (foot[0] + 0.03, 0.04)], _RUBBER)
    _arm(part, -1, stride, coat, skin)
    part(
        [(-0.1, 0.47), (0.1, 0.47), (0.135, 0.8), (0.07, 0.845), (-0.07, 0.845), (-0.135, 0.8)],
        coat,
    )
    if dice.chance(0.3):
        part([(-0.15, 0.3), (0.15, 0.3), (0.09, 0.62), (-0.09, 0.62)], coat)
    _arm(part, 1, stride, shaded(coat, 0.85), skin)
    if dice.chance(0.3):
        bag, side = dice.colour(CLOTHES), dice.pick((-0.14, 0.0, 0.14))
        part(
            [(side - 0.07, 0.5), (side + 0.07, 0.5), (side + 0.07, 0.76), (side - 0.07, 0.76)], bag
        )
    part([(-0.025, 0.83), (0.025, 0.83), (0.025, 0.88), (-0.025, 0.88)], skin)
    _head(part, 0.0, 0.925, 0.064, skin, hair, dice)
    thing.footprint = (-0.2, 0.2, -0.15, 0.15, tall)


def _arm(part: _Part, sign: int, stride: float, sleeve: Colour, skin: Colour) -> None:
    hand = (0.16 * sign - 0.5 * stride * sign, 0.48)
    elbow = (0.165 * sign, 0.64)
    part(limb((0.12 * sign, 0.81), elbow, 0.065, 0.055), sleeve)
    part(limb(elbow, hand, 0.055, 0.045), sleeve)
    part(disc(hand[0], hand[1] - 0.02, 0.024, 6), skin)


def _head(
    part: _Part, x: float, y: float, radius: float, skin: Colour, hair: Colour, dice: Dice
) -> None:
    """A head from the front, the back, or with a hat or helmet."""
    part(disc(x, y, radius, 9), skin)
    cover = dice.pick((0.35, 0.1, -0.9))
    top = [(a, max(b, y + cover * radius)) for a, b in disc(x, y + 0.01, radius * 1.08, 9)]
    part(top, hair)


def bicycle(thing: Thing, dice: Dice) -> None:
    """A bicycle, wheels along z."""
    frame = dice.colour(CLOTHES, 16)
    for z in (-0.52, 0.52):
        _wheel(thing, z, 0.34, 0.045, ids.BICYCLE)
    bars = [
        ((-0.52, 0.34), (-0.15, 0.82)),
        ((-0.52, 0.34), (-0.05, 0.3)),
        ((-0.05, 0.3), (-0.2, 0.9)),
        ((-0.05, 0.3), (0.38, 0.75)),
        ((-0.17, 0.76), (0.36, 0.82)),
        ((0.52, 0.34), (0.34, 0.98)),
    ]
    for start, stop in bars:
        _plate(thing, limb(start, stop, 0.045), frame, ids.BICYCLE)
    _plate(thing, limb((-0.34, 0.92), (-0.08, 0.92), 0.07), _RUBBER, ids.BICYCLE)
    _plate(thing, limb((0.34, 0.98), (0.2, 1.02), 0.05), _RUBBER, ids.BICYCLE)
    thing.panel((-0.28, 0.28), (0.97, 1.02), _RUBBER, ids.BICYCLE, 0.3)
    thing.panel((-0.09, 0.09), (0.88, 0.95), _RUBBER, ids.BICYCLE, -0.2)
    thing.panel((-0.035, 0.035), (0.3, 0.9), frame, ids.BICYCLE)
    if dice.chance(0.3):
        thing.panel((-0.16, 0.16), (0.8, 1.05), dice.colour(CLOTHES), ids.BICYCLE, 0.5)
    thing.footprint = (-0.2, 0.2, -0.8, 0.8, 0.8)


def motorcycle(thing: Thing, dice: Dice, lamps: float) -> None:
    """A motorcycle or scooter, wheels along z."""
    paint = dice.colour((*CLOTHES, (206, 206, 206), (190, 30, 30)), 14)
    dark = dice.colour(((44, 44, 46), (80, 80, 82)), 6)
    radius = dice.pick((0.31, 0.24))
    for z in (-0.68, 0.68):
        _wheel(thing, z, radius, 0.11, ids.MOTORCYCLE)
    _plate(
        thing,
        [(-0.75, 0.5), (-0.4, 0.3), (0.35, 0.25), (0.45, 0.6), (-0.6, 0.72)],
        dark,
        ids.MOTORCYCLE,
    )
    _plate(
        thing,
        [(-0.05, 0.6), (0.45, 0.6), (0.5, 0.85), (0.2, 0.98), (-0.05, 0.85)],
        paint,
        ids.MOTORCYCLE,
    )
    _plate(thing, [(-0.95, 0.78), (-0.7, 0.64), (0.0, 0.66), (0.0, 0.82)], dark, ids.MOTORCYCLE)
    _plate(thing, limb((0.68, radius), (0.42, 1.0), 0.09), dark, ids.MOTORCYCLE)
    _plate(thing, [(0.4, 0.75), (0.72, 0.8), (0.62, 1.15), (0.48, 1.2)], paint, ids.MOTORCYCLE)
    half = dice.uniform(0.15, 0.24)
    thing.panel((-0.07, 0.07), (0.0, 0.6), _RUBBER, ids.MOTORCYCLE, -0.9)
    for z, lamp in ((-0.9, (200, 30, 26)), (0.72, (250, 244, 220))):
        thing.end((-half, half), (0.45, 0.86 if z < 0 else 1.1), z, paint, ids.MOTORCYCLE)
        out = z * 1.02
        thing.end((-0.09, 0.09), (0.68, 0.82), out, lamp, ids.MOTORCYCLE, glow=lamps)
        thing.end((-0.1, 0.1), (0.46, 0.58), out, (208, 208, 200), ids.MOTORCYCLE)
    thing.panel((-0.36, 0.36), (1.0, 1.06), dark, ids.MOTORCYCLE, 0.45)
    for x in (-0.34, 0.34):
        thing.panel((x - 0.06, x + 0.06), (1.1, 1.2), dark, ids.MOTORCYCLE, 0.45)
    thing.footprint = (-0.3, 0.3, -1.0, 1.0, 1.0)


def rider(thing: Thing, dice: Dice, *, motor: bool, sideways: bool) -> None:
    """Someone on the seat of the bicycle or motorcycle in ``thing``.

    Args:
        thing: gets the rider.
        dice: source of all choices.
        motor: whether it is a motorcycle.
        sideways: whether the camera sees the flank.
    """
    coat, legs, skin = dice.colour(CLOTHES), dice.colour(CLOTHES), dice.colour(_SKINS, 6)
    helmet = motor or dice.chance(0.5)
    hat = dice.colour((*CLOTHES, (230, 230, 230)) if helmet else _HAIRS, 10)
    seat = 0.8 if motor else 0.93
    lean, neck = (0.12 if motor else 0.22), seat + 0.56

    def flank(corners: Outline, colour: Colour) -> None:
        _plate(thing, corners, colour, ids.RIDER)

    def across(corners: Outline, colour: Colour) -> None:
        thing.face([(x, y, 0.0) for x, y in corners], colour, ids.RIDER)

    part, hip = (flank, -0.25) if sideways else (across, 0.0)
    head = hip + lean + 0.08 if sideways else 0.0
    if sideways:
        knee, foot = (0.2, seat - 0.2), (0.0, 0.2 if not motor else 0.32)
        part(limb((hip, seat), knee, 0.19, 0.14), legs)
        part(limb(knee, foot, 0.14, 0.09), legs)
        part(limb((hip, seat - 0.06), (hip + lean, neck), 0.28, 0.24), coat)
        part(limb((hip + lean, neck - 0.06), (0.36, 1.03), 0.11, 0.08), shaded(coat, 0.8))
    else:
        for sign in (-1, 1):
            knee = (sign * 0.19, seat - 0.28)
            part(limb((sign * 0.1, seat), knee, 0.17, 0.14), legs)
            part(limb(knee, (sign * 0.15, 0.22), 0.13, 0.1), legs)
            part(limb((sign * 0.2, neck - 0.05), (sign * 0.3, 1.05), 0.12, 0.09), coat)
        body = [(-0.17, seat - 0.1), (0.17, seat - 0.1), (0.23, neck - 0.05), (0.1, neck + 0.03)]
        part([*body, (-0.1, neck + 0.03), (-0.23, neck - 0.05)], coat)
    part(disc(head, neck + 0.16, 0.12, 9), skin)
    cover = neck + (0.1 if helmet else 0.17)
    part([(a, max(b, cover)) for a, b in disc(head, neck + 0.17, 0.14, 10)], hat)


def _plate(thing: Thing, outline: Outline, colour: Colour, label: int) -> None:
    thing.face([(0.0, y, z) for z, y in outline], colour, label, ANY)


def _wheel(thing: Thing, z: float, radius: float, thick: float, label: int) -> None:
    """A ring in the plane of travel, its inside half transparent, and the tyre from the front."""
    inside = [(0.0, y, a) for a, y in disc(z, radius, radius * 0.95)]
    thing.face(inside, (96, 96, 98), label, kind="glaze", detail=0.35)
    ring, turns = [], [2 * math.pi * i / 10 for i in range(11)]
    for one, two in pairwise(turns):
        for turn, r in ((one, radius), (two, radius), (two, radius - thick), (one, radius - thick)):
            ring.append((0.0, radius + r * math.sin(turn), z + r * math.cos(turn)))
    thing.face(ring, _RUBBER, label, kind="quads")
    half = max(0.03, thick / 2)
    thing.panel((-half, half), (0.0, 2 * radius), _RUBBER, label, z)
