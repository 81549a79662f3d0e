"""Decides what drives and parks on a street, and what happens at its crossing."""

import math

from segkd.synthetic.scenes import classes as ids
from segkd.synthetic.scenes import furniture, people, vehicles
from segkd.synthetic.scenes.dice import Dice
from segkd.synthetic.scenes.roadside import FACADES
from segkd.synthetic.scenes.street import Border, Street
from segkd.synthetic.scenes.thing import BACK, Thing


def traffic(street: Street, lamps: float, dice: Dice) -> list[Thing]:
    """Vehicles in the lanes of both directions; ``lamps`` is the brightness of theirs, 0 … 1."""
    things: list[Thing] = []
    for lane in range(-street.lanes, street.lanes):
        side, away = (lane + 0.5) * street.lane, lane >= 0 or not street.oncoming
        rail = street.tram and lane in (-1, 0)
        z = dice.uniform(9, 45) if abs(side - street.ego) < 2 else dice.uniform(5.5, 32)
        gap = dice.pick((2.5, 9.0, 18.0, 40.0))
        while z < 120:
            kind = dice.weighted(
                {
                    "car": 0.62,
                    "truck": 0.08,
                    "bus": 0.06,
                    "motorcycle": 0.1,
                    "bicycle": 0.14,
                    "tram": 0.6 if rail else 0.0,
                }
            )
            thing = street.stand(side + dice.uniform(-0.3, 0.3), z)
            long = _mount(thing, kind, dice, lamps, sideways=False)
            half = long / 2 + 0.3
            thing.z += half
            thing.x = street.x(side + dice.uniform(-0.25, 0.25) * (kind != "tram"), thing.z)
            thing.heading = street.heading(thing.z) + (0.0 if away else math.pi)
            if not street.crosses(thing.z - half - 1, thing.z + half):
                things.append(thing)
            z += long + gap * dice.uniform(0.5, 2.0) + 1.5
    return things


def parked(street: Street, border: Border, dice: Dice) -> list[Thing]:
    """Cars along the kerb; bicycles and motorcycles on the sidewalk or between them."""
    things: list[Thing] = []
    if border.parking:
        z, side = dice.uniform(5, 14), border.sign * (border.kerb - border.parking / 2 - 0.1)
        fill = dice.uniform(0.25, 0.95)
        while z < 85:
            step = 5.8
            if dice.random() < fill and not street.crosses(z - 6, z + 6):
                thing = street.stand(side, z)
                backwards = border.sign < 0 and street.oncoming
                thing.heading = street.heading(z) + (math.pi if backwards else 0.0)
                draw = dice.weighted({"car": 0.9, "truck": 0.05, "motorcycle": 0.05})
                if draw == "motorcycle":
                    people.motorcycle(thing, dice, 0.0)
                    step = 3.0
                else:
                    step = vehicles.BUILDERS[draw](thing, dice, 0.0) + dice.uniform(0.9, 1.6)
                if draw == "truck":
                    thing.z += 3.0
                    step += 3.0
                things.append(thing)
            z += step
    for kind, probability, most in (("bicycle", 0.3, 6), ("motorcycle", 0.15, 3)):
        if not dice.chance(probability):
            continue
        start, turn = dice.uniform(7, 22), dice.uniform(0, 2 * math.pi)
        for number in range(dice.integer(1, most)):
            z = start + 0.75 * number
            if street.crosses(z, z):
                continue
            thing = street.stand(border.sign * (border.kerb + 1.1), z)
            thing.heading = turn + dice.uniform(-0.15, 0.15)
            if kind == "bicycle":
                people.bicycle(thing, dice)
            else:
                people.motorcycle(thing, dice, 0.0)
            things.append(thing)
    return things


def at_crossing(
    street: Street, crossing: tuple[float, float], lamps: float, dice: Dice
) -> list[Thing]:
    """Signals at the corners, traffic from the side, people on the zebra.

    Args:
        street: with this crossing.
        crossing: (near, far) depth of the cross street in metres.
        lamps: brightness of head lights, 0 … 1.
        dice: source of all choices.
    """
    (near, far), things = crossing, []
    if dice.chance(0.8):
        for border in street.borders:
            for z in (near - 1.2, far + 0.8):
                if dice.chance(0.75):
                    thing = street.stand(border.sign * (border.kerb + 0.45), z)
                    furniture.traffic_light(thing, dice, -border.sign)
                    things.append(thing)
    for lane in (-1, 1):
        x = dice.uniform(-30, 5)
        z = (near + far) / 2 - lane * (far - near) / 4
        while x < 35:
            kind = dice.weighted(
                {"car": 0.55, "truck": 0.08, "bus": 0.08, "motorcycle": 0.13, "bicycle": 0.16}
            )
            if dice.chance(0.55):
                thing = Thing(z=z, heading=math.pi / 2 * lane)
                long = _mount(thing, kind, dice, lamps, sideways=True)
                thing.x = x + long / 2
                things.append(thing)
            else:
                long = dice.uniform(4, 20)
            x += long + dice.uniform(2, 14)
    for _ in range(dice.integer(0, 5)):
        left, right = (border.kerb for border in street.borders)
        thing = street.stand(dice.uniform(-left, right), near - dice.uniform(1.4, 4.0))
        people.person(thing, dice)
        things.append(thing)
    if dice.chance(0.5):
        things.append(_side_street(street, far, dice))
    return things


def _mount(thing: Thing, kind: str, dice: Dice, lamps: float, *, sideways: bool) -> float:
    """Builds a vehicle or someone on two wheels; returns its length."""
    if kind == "motorcycle":
        people.motorcycle(thing, dice, lamps)
        people.rider(thing, dice, motor=True, sideways=sideways)
        return 2.1
    if kind == "bicycle":
        people.bicycle(thing, dice)
        people.rider(thing, dice, motor=False, sideways=sideways)
        return 1.8
    return vehicles.BUILDERS[kind](thing, dice, lamps)


def _side_street(street: Street, far: float, dice: Dice) -> Thing:
    """Fronts of houses along the far side of the cross street, beyond the corner."""
    thing = Thing(depth=far + 4.0)
    for border in street.borders:
        x = street.x(border.sign * (border.front + 12), far)
        for _ in range(3):
            stop, top = x + border.sign * dice.uniform(8, 16), dice.uniform(5, 16)
            span = sorted((x, stop))
            corners = [
                (a, b, far + 3.0)
                for a, b in ((span[0], 0), (span[1], 0), (span[1], top), (span[0], top))
            ]
            thing.face(corners, dice.colour(FACADES), ids.BUILDING, BACK)
            x = stop
    return thing
