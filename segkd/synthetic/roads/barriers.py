"""Continuous structures along a road: rails, walls, fences, banks of earth."""

import math
from collections.abc import Sequence

from segkd.synthetic.roads.course import Course
from segkd.synthetic.scenes import classes as ids
from segkd.synthetic.scenes.dice import Colour, Dice, shaded
from segkd.synthetic.scenes.furniture import METALS
from segkd.synthetic.scenes.thing import Point, Thing

_CONCRETE: tuple[Colour, ...] = ((168, 164, 156), (142, 140, 136), (190, 184, 170))
_WALLS: tuple[Colour, ...] = ((168, 158, 140), (150, 146, 142), (120, 130, 118), (176, 140, 116))
_WOODS: tuple[Colour, ...] = ((146, 124, 96), (120, 104, 86), (170, 152, 124))
Profile = Sequence[tuple[float, float]]
Span = tuple[float, float]  # first and last depth in metres


def ribbon(
    course: Course, profile: Profile, colours: Sequence[Colour], z: Span, label: int
) -> list[Thing]:
    """Strips along a road between two depths, in pieces that grow with distance.

    Args:
        course: of the road.
        profile: (side, height) of the edges of the strips in metres, outwards from the road.
        colours: of each strip.
        z: first and last depth.
        label: class id.
    """
    things: list[Thing] = []
    start, end = z
    while start < end:
        stop = min(end, start + 3.0 + 0.25 * start)
        piece = Thing(depth=stop)
        x0, x1 = float(course.across(start)), float(course.across(stop))
        for (inner, low), (outer, high), colour in zip(
            profile[:-1], profile[1:], colours, strict=True
        ):
            corners: list[Point] = [(inner + x0, low, start), (inner + x1, low, stop)]
            corners += [(outer + x1, high, stop), (outer + x0, high, start)]
            piece.face(corners, colour, label)
        things.append(piece)
        start = stop
    return things


def barrier(course: Course, side: float, z: Span, dice: Dice) -> list[Thing]:
    """A low wall of concrete, wider at its foot."""
    sign, tone = math.copysign(1.0, side), dice.colour(_CONCRETE, 9)
    height = dice.uniform(0.75, 1.15)
    profile = [(side, 0.0), (side + 0.12 * sign, 0.3)]
    profile += [(side + 0.2 * sign, height), (side + 0.45 * sign, height)]
    shades = (1.05, dice.uniform(0.75, 0.95), 1.2)
    colours = [shaded(tone, shade, limit=255.0) for shade in shades]
    return ribbon(course, profile, colours, z, ids.WALL)


def guard_rail(course: Course, side: float, z: Span, dice: Dice) -> list[Thing]:
    """A corrugated rail on posts."""
    tone = dice.colour(((178, 180, 182), (150, 152, 154), (196, 196, 192)), 8)
    low, out = dice.uniform(0.42, 0.52), math.copysign(0.04, side)
    profile = [(side + out * (i % 2), low + 0.078 * i) for i in range(5)]
    colours = [shaded(tone, shade) for shade in (0.62, 1.08, 0.6, 1.12)]
    things = ribbon(course, profile, colours, z, ids.FENCE)
    pitch, at = dice.pick((2.0, 3.8, 4.0)), z[0] + dice.uniform(0, 3)
    while at < min(z[1], 70):
        post = Thing(x=side + float(course.across(at)), z=at, depth=at + 4 + 0.3 * at)
        post.panel((-0.06, 0.06), (0.0, low + 0.3), shaded(tone, 0.7), ids.POLE)
        things.append(post)
        at += pitch
    return things


def wall(course: Course, side: float, z: Span, dice: Dice) -> list[Thing]:
    """A high noise barrier, in panels."""
    tone, height = dice.colour(_WALLS, 10), dice.uniform(2.0, 5.0)
    split = height * dice.uniform(0.2, 0.8)
    profile = [(side, 0.0), (side, split), (side, height - 0.15), (side, height)]
    shades = (dice.uniform(0.8, 1.0), 1.0, dice.uniform(0.8, 1.2))
    colours = [shaded(tone, shade) for shade in shades]
    things = ribbon(course, profile, colours, z, ids.WALL)
    return things + _posts(course, side, z, (0.0, height + 0.1), 0.16, 4.0, tone, dice)


def fence(course: Course, side: float, z: Span, dice: Dice) -> list[Thing]:
    """Planks, or rails of metal between posts."""
    if dice.chance(0.4):
        tone, height = dice.colour(_WOODS, 10), dice.uniform(1.2, 2.2)
        things = ribbon(course, [(side, 0.0), (side, height)], [tone], z, ids.FENCE)
        return things + _posts(course, side, z, (0.0, height), 0.1, 2.4, tone, dice)
    tone = dice.colour((*METALS, (222, 222, 218), (70, 110, 80), (60, 90, 130)), 8)
    height = dice.uniform(0.8, 1.3)
    things = []
    for low in (0.25, height * 0.62, height - 0.06):
        things += ribbon(course, [(side, low), (side, low + 0.07)], [tone], z, ids.FENCE)
    return things + _posts(course, side, z, (0.0, height), 0.07, dice.uniform(0.5, 2.5), tone, dice)


def bank(course: Course, side: float, z: Span, colour: Colour, dice: Dice) -> list[Thing]:
    """Earth that rises beside the road, or the foot of a hill."""
    sign = math.copysign(1.0, side)
    wide, rise = dice.uniform(4.0, 14.0), dice.uniform(0.8, 6.0)
    top = 1.0 + dice.uniform(-0.1, 0.15)
    profile = [(side, 0.0), (side + 0.5 * wide * sign, 0.4 * rise), (side + wide * sign, rise)]
    profile.append((side + 4 * wide * sign, rise * dice.uniform(0.9, 1.6)))
    colours = [shaded(colour, shade) for shade in (0.97, top, top * 0.95)]
    things = ribbon(course, profile, colours, z, ids.TERRAIN)
    for thing in things:
        thing.depth = thing.order + 60.0  # painted before what stands on it
    return things


def _posts(
    course: Course,
    side: float,
    z: Span,
    heights: tuple[float, float],
    width: float,
    pitch: float,
    tone: Colour,
    dice: Dice,
) -> list[Thing]:
    things: list[Thing] = []
    at, colour = z[0] + dice.uniform(0, pitch), shaded(tone, 0.78)
    while at < min(z[1], 60):
        post = Thing(x=side + float(course.across(at)), z=at)
        post.panel((-width / 2, width / 2), heights, colour, ids.POLE)
        things.append(post)
        at += pitch * (1 + at / 40)
    return things
