"""Vehicles on the road, from none to a traffic jam."""

import math

from segkd.synthetic.roads.course import Course
from segkd.synthetic.roads.plan import Lane, Road
from segkd.synthetic.scenes import people, vehicles
from segkd.synthetic.scenes.dice import Dice
from segkd.synthetic.scenes.thing import Thing

_GAPS = {"crowd": (3.0, 7.0, 14.0), "noline": (12.0, 35.0, 90.0), "night": (8.0, 25.0, 70.0)}
_USUAL = (20.0, 45.0, 90.0, 160.0)
_FARTHEST, _MOST = 130.0, 26


def traffic(road: Road, course: Course, category: str, lamps: float, dice: Dice) -> list[Thing]:
    """Vehicles in the lanes of both directions; ``lamps`` is the brightness of theirs, 0 … 1."""
    things: list[Thing] = []
    gap = dice.pick(_GAPS.get(category, _USUAL))
    left, right = (road.boundaries[road.left + n].side for n in (0, 1))
    for lane in sorted(road.lanes, key=lambda lane: abs(lane.side - road.ego)):
        own = left < lane.side < right
        if own:
            first = dice.uniform(5, 16) if category == "crowd" else dice.uniform(12, 80)
        else:
            first = dice.uniform(2.0, 9.0) if category == "crowd" else dice.uniform(3.0, 70)
        spread = gap if lane.away else gap * dice.pick((0.5, 1.0, 2.0))
        things += _queue(road, course, lane, first, spread, lamps, dice)
    return things[:_MOST]


def _queue(
    road: Road, course: Course, lane: Lane, z: float, gap: float, lamps: float, dice: Dice
) -> list[Thing]:
    """One vehicle after the other in a lane, from ``z`` on."""
    things: list[Thing] = []
    heavy = dice.pick((0.04, 0.12, 0.3))
    kinds = {"car": 1.0 - heavy, "truck": 0.65 * heavy, "bus": 0.35 * heavy}
    if road.place != "highway":
        kinds["motorcycle"] = 0.08
    drift = dice.uniform(-0.25, 0.25)
    while z < _FARTHEST:
        kind, thing = dice.weighted(kinds), Thing()
        if kind == "motorcycle":
            people.motorcycle(thing, dice, lamps)
            people.rider(thing, dice, motor=True, sideways=False)
            long = 2.1
        else:
            long = vehicles.BUILDERS[kind](thing, dice, lamps)
        thing.z = z + long / 2 + 0.3
        side = lane.side + drift + dice.uniform(-0.3, 0.3)
        thing.x = side + float(course.across(thing.z))
        thing.heading = math.atan(float(course.lean(thing.z))) + (0.0 if lane.away else math.pi)
        if road.crossing is None or not _on(road.crossing, thing.z, long):
            things.append(thing)
        z += long + 1.5 + gap * dice.uniform(0.3, 1.7) * (1 + z / 80)
    return things


def _on(crossing: tuple[float, float], z: float, long: float) -> bool:
    return z + long / 2 > crossing[0] - 4 and z - long / 2 < crossing[1]
