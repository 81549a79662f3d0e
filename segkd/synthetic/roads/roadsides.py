"""What stands beside a highway, along its whole length: rails, trees, lamps, signs, gantries."""

from dataclasses import dataclass

import numpy as np

from segkd.synthetic.roads import barriers
from segkd.synthetic.roads.beside import gantry
from segkd.synthetic.roads.course import REACH, Course
from segkd.synthetic.roads.plan import Road
from segkd.synthetic.scenes import furniture, plants
from segkd.synthetic.scenes.dice import Dice
from segkd.synthetic.scenes.thing import Thing

_SPAN = 8.0  # metres of a rail that are one part


@dataclass(frozen=True)
class Placed:
    """A thing on a straight road.

    Attributes:
        s: metres along the road that are added to its depths.
        thing: at its side of the road.
        long: whether its points follow the road, as of a rail, or it stands in one place.
    """

    s: float
    thing: Thing
    long: bool = False


def roadsides(road: Road, length: float, seed: int) -> list[Placed]:
    """All things along ``length`` metres, by place."""
    found: list[Placed] = []
    for sign, edge in ((-1, road.beyond), (1, road.edges[1])):
        found += _rail(sign * (abs(edge) + 0.3), length, seed, wall=False)
        found += _green(sign, edge, length, Dice((seed, 81, sign + 1)))
        found += _posts(sign, edge, length, Dice((seed, 82, sign + 1)))
    if road.median is not None:
        found += _rail(road.median[1] - 0.4, length, seed, wall=True)
    dice = Dice((seed, 83))
    s = dice.uniform(150, 300)
    while s < length:
        thing = gantry(road, _straight(), dice)
        thing.z = 0.0
        found.append(Placed(s, thing))
        s += dice.uniform(350, 700)
    return sorted(found, key=lambda placed: placed.s)


def _straight() -> Course:
    ends = np.array([0.0, REACH])
    return Course(ends, np.zeros(2), np.zeros(2), np.zeros(2))


def _rail(side: float, length: float, seed: int, *, wall: bool) -> list[Placed]:
    """A rail or a low wall, in equal parts: each is made by the same dice."""
    draw = barriers.barrier if wall else barriers.guard_rail
    found = []
    for number in range(int(length / _SPAN)):
        for thing in draw(_straight(), side, (0.0, _SPAN), Dice((seed, 80, int(wall)))):
            found.append(Placed(number * _SPAN, thing, long=thing.z == 0.0))
    return found


def _green(sign: int, edge: float, length: float, dice: Dice) -> list[Placed]:
    """Trees and bushes, in groups."""
    found, s = [], dice.uniform(0, 10)
    green, back = dice.colour(plants.GREENS, 8), dice.uniform(2.5, 9.0)
    while s < length:
        pitch = dice.pick((3.0, 6.0, 14.0))
        for _ in range(dice.integer(3, 14)):
            x = edge + sign * (back + 10 * dice.random())
            colour = dice.colour((green,), 9)
            if dice.chance(0.35):
                thing = plants.bush(dice, x, 0.0, colour)
            else:
                thing = plants.tree(dice, x, 0.0, colour, tall=dice.uniform(4, 11))
            found.append(Placed(s, thing))
            s += pitch * dice.uniform(0.5, 1.5)
    return found


def _posts(sign: int, edge: float, length: float, dice: Dice) -> list[Placed]:
    """Lamps at even distances, signs now and then."""
    found, s, pitch = [], dice.uniform(10, 40), dice.uniform(35, 50)
    lit = sign > 0
    while s < length:
        if lit:
            post = Thing(x=edge + sign * 0.9)
            furniture.lamp(post, dice, -sign, 0.0)
            found.append(Placed(s, post))
        if dice.chance(0.12):
            post = Thing(x=edge + sign * 1.6)
            furniture.sign(post, dice)
            found.append(Placed(s + 0.4 * pitch, post))
        s += pitch
    return found
