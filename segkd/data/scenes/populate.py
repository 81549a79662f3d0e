"""Decides what stands where on a street."""

import math

from segkd.data.scenes import classes as ids
from segkd.data.scenes import furniture, people, roadside, vehicles
from segkd.data.scenes.dice import Dice
from segkd.data.scenes.roadside import Stretch
from segkd.data.scenes.street import FAR, Border, Street
from segkd.data.scenes.thing import BACK, Thing
from segkd.data.scenes.weather import Weather

_LOTS = {  # weights of what a lot along the street holds
    "city": {"building": 0.84, "wall": 0.05, "fence": 0.05, "trees": 0.06},
    "shops": {"building": 0.92, "trees": 0.04, "fence": 0.04},
    "homes": {"house": 0.84, "trees": 0.16},
    "park": {"trees": 0.5, "hedge": 0.2, "fence": 0.18, "wall": 0.12},
    "works": {"wall": 0.34, "fence": 0.3, "building": 0.28, "trees": 0.08},
}


def populate(street: Street, weather: Weather, dice: Dice) -> list[Thing]:
    """Everything that stands on the ground, in no particular order."""
    lit = dice.uniform(0.1, 0.5) if weather.dark else 0.0
    lamps = 1.0 if weather.dark else dice.pick((0.0, 0.3, 0.7))
    things = _skyline(dice)
    for border in street.borders:
        things += _lots(street, border, lit, dice)
        things += _furniture(street, border, lamps if weather.dark else 0.0, dice)
        things += _parked(street, border, dice)
        things += _walkers(street, border, dice)
    things += _traffic(street, lamps, dice)
    if street.crossing is not None:
        things += _at_crossing(street, lamps, dice)
    return things


def _skyline(dice: Dice) -> list[Thing]:
    """Blocks and woods at the end of the view."""
    thing, x = Thing(depth=1000.0), -190.0
    wood = dice.uniform(0.1, 0.9)
    green = dice.colour(roadside.GREENS, 6)
    while x < 190:
        wide = dice.uniform(9, 34)
        if dice.chance(wood):
            low, high = -2.0, dice.uniform(5, 15)
            thing.panel(
                (x - 4, x + wide + 4),
                (low, high),
                green,
                ids.VEGETATION,
                FAR + 20,
                kind="foliage",
                detail=dice.pick((0, 1, 6, 7, 10)),
            )
            thing.panel(
                (x, x + wide), (low, high * 0.5), [v * 0.9 for v in green], ids.VEGETATION, FAR + 19
            )
        else:
            top = dice.uniform(6, 26)
            thing.panel(
                (x, x + wide), (-2, top), dice.colour(roadside.FACADES), ids.BUILDING, FAR + 20
            )
        x += wide
    return [thing]


def _stretch(street: Street, border: Border, side: float, z0: float, z1: float) -> Stretch:
    side *= border.sign
    return Stretch(street.x(side, z0), z0, street.x(side, z1), z1, border.sign)


def _lots(street: Street, border: Border, lit: float, dice: Dice) -> list[Thing]:
    things, z = [], 3.0 + dice.uniform(0, 3)
    floors, green = dice.integer(2, 6), dice.colour(roadside.GREENS, 6)
    while z < 140:
        length = dice.uniform(8, 22) * (1 + z / 60)
        if street.crosses(z, z + length):
            if z < street.crossing[0] - 5:
                length = street.crossing[0] - 0.5 - z
            else:
                z = street.crossing[1] + 0.5
                continue
        kind = dice.weighted(_LOTS[border.style])
        line = _stretch(street, border, border.front, z, z + length)
        if kind == "building":
            shop = border.style == "shops" or (border.style == "city" and dice.chance(0.35))
            tall = max(1, floors + dice.integer(-1, 2)) if border.style != "works" else 2
            things.append(roadside.building(line, dice, floors=tall, shop=shop, lit=lit))
        elif kind == "house":
            things += _house(street, border, z, length, lit, dice)
        else:
            things += _open_lot(street, border, kind, line, green, dice)
        z += length + (dice.uniform(1, 6) if dice.chance(0.2) else 0.0)
    return things


def _house(street: Street, border: Border, z: float, length: float, lit, dice) -> list[Thing]:
    """A house behind a front garden with a fence, hedge or low wall."""
    back = border.front + dice.uniform(3.5, 8)
    line = _stretch(street, border, back, z + 1.5, z + length - dice.uniform(1.5, 4))
    floors = dice.integer(1, 3)
    things = [roadside.building(line, dice, floors=floors, shop=False, lit=lit)]
    edge = _stretch(street, border, border.front, z, z + length)
    things[0].depth = edge.zb + 1.0
    kind = dice.weighted({"fence": 0.36, "hedge": 0.3, "wall": 0.2, "open": 0.14})
    if kind == "hedge":
        things += roadside.hedge(edge, dice)
    elif kind != "open":
        things.append(
            roadside.fence(edge, dice) if kind == "fence" else roadside.wall(edge, dice, True)
        )
    green = dice.colour(roadside.GREENS, 8)
    for _ in range(dice.integer(0, 3)):
        deep, far = dice.uniform(1.2, 3.2), z + dice.uniform(0, length)
        x = street.x(border.sign * (border.front + deep), far)
        if dice.chance(0.6):
            plant = roadside.bush(dice, x, far, green)
        else:
            plant = roadside.tree(dice, x, far, green, tall=dice.uniform(3.5, 8))
        things.append(_behind(plant, edge))
    return things


def _behind(thing: Thing, line: Stretch) -> Thing:
    """Has a thing painted before the wall or fence that hides it."""
    thing.depth = line.zb + 0.1 + 0.001 * thing.z
    return thing


def _open_lot(street: Street, border: Border, kind: str, line: Stretch, green, dice) -> list[Thing]:
    """A wall, fence or hedge with trees behind it, or trees alone."""
    things: list[Thing] = []
    if kind == "wall":
        things.append(roadside.wall(line, dice, dice.chance(0.3)))
    elif kind == "fence":
        things.append(roadside.fence(line, dice))
    elif kind == "hedge":
        things += roadside.hedge(line, dice)
    if kind in ("wall", "fence") and border.style == "works" and dice.chance(0.6):
        behind = _stretch(street, border, border.front + dice.uniform(4, 12), line.za, line.zb)
        hall = roadside.building(behind, dice, floors=dice.integer(1, 4), shop=False, lit=0.0)
        hall.depth = line.zb + 1.0
        things.append(hall)
    for _ in range(dice.integer(2, 5)):
        z = dice.uniform(line.za, line.zb)
        x = street.x(border.sign * (border.front + dice.uniform(1.5, 12)), z)
        colour = dice.colour((green,), 8)
        if dice.chance(0.3):
            plant = roadside.bush(dice, x, z, colour)
        else:
            plant = roadside.tree(dice, x, z, colour, tall=dice.uniform(5, 14))
        things.append(_behind(plant, line) if kind in ("wall", "fence") else plant)
    return things


def _stand(street: Street, side: float, z: float) -> Thing:
    return Thing(x=street.x(side, z), z=z)


def _furniture(street: Street, border: Border, lamps: float, dice: Dice) -> list[Thing]:
    """Lamps and trees in a row, signs and clutter near the kerb."""
    things, near = [], border.sign * (border.kerb + 0.5)
    if dice.chance(0.75):
        z, pitch = dice.uniform(8, 24), dice.uniform(18, 34)
        while z < 120:
            if not street.crosses(z, z):
                thing = _stand(street, near, z)
                furniture.lamp(thing, dice, -border.sign, lamps)
                things.append(thing)
            z += pitch
    if dice.chance(0.75 if border.verge else 0.3):
        z, pitch, green = dice.uniform(7, 16), dice.uniform(7, 15), dice.colour(roadside.GREENS, 6)
        tall, side = dice.uniform(4.5, 10), border.sign * (border.kerb + max(border.verge / 2, 0.9))
        while z < 110:
            if not street.crosses(z - 2, z + 2) and dice.chance(0.85):
                x, height = street.x(side, z), tall * dice.uniform(0.8, 1.2)
                things.append(roadside.tree(dice, x, z, dice.colour((green,), 5), tall=height))
            z += pitch
    plan = ((furniture.sign, 0, 3), (furniture.clutter, 0, 2), (furniture.billboard, -4, 1))
    for draw, least, most in plan:
        for _ in range(dice.integer(least, most)):
            z = 7 + 40 * dice.random() ** 1.3
            if not street.crosses(z, z):
                thing = _stand(street, near * dice.uniform(1.0, 1.12), z)
                draw(thing, dice)
                things.append(thing)
    if dice.chance(0.12):
        thing = _stand(street, near, dice.uniform(14, 40))
        furniture.gantry(thing, dice, -border.sign)
        things.append(thing)
    if dice.chance(0.12):
        start = dice.uniform(7, 20)
        for post in range(dice.integer(3, 7)):
            thing = _stand(street, near, start + 2.2 * post)
            furniture.bollard(thing, dice)
            things.append(thing)
    return things


def _parked(street: Street, border: Border, dice: Dice) -> list[Thing]:
    """Cars along the kerb; bicycles and motorcycles on the sidewalk or between them."""
    things: list[Thing] = []
    if border.parking:
        z, side = dice.uniform(5, 14), border.sign * (border.kerb - border.parking / 2 - 0.1)
        fill = dice.uniform(0.25, 0.95)
        while z < 85:
            step = 5.8
            if dice.random() < fill and not street.crosses(z - 6, z + 6):
                thing = _stand(street, side, z)
                backwards = border.sign < 0 and street.oncoming
                thing.heading = street.heading(z) + (math.pi if backwards else 0.0)
                draw = dice.weighted({"car": 0.9, "truck": 0.05, "motorcycle": 0.05})
                if draw == "motorcycle":
                    people.motorcycle(thing, dice, 0.0)
                    step = 3.0
                else:
                    step = getattr(vehicles, draw)(thing, dice, 0.0) + dice.uniform(0.9, 1.6)
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
            thing = _stand(street, border.sign * (border.kerb + 1.1), z)
            thing.heading = turn + dice.uniform(-0.15, 0.15)
            if kind == "bicycle":
                people.bicycle(thing, dice)
            else:
                people.motorcycle(thing, dice, 0.0)
            things.append(thing)
    return things


def _walkers(street: Street, border: Border, dice: Dice) -> list[Thing]:
    things = []
    busy = dice.weighted({0: 0.25, 2: 0.35, 5: 0.25, 10: 0.15})
    outer = border.front - border.kerb - 0.3
    for _ in range(dice.integer(0, busy)):
        z = 6.5 + 45 * dice.random() ** 1.4
        side = border.sign * (border.kerb + dice.uniform(0.4, max(0.6, outer)))
        for friend in range(dice.weighted({1: 0.7, 2: 0.22, 3: 0.08})):
            thing = _stand(street, side + 0.55 * friend * border.sign, z + 0.2 * friend)
            people.person(thing, dice)
            things.append(thing)
    return things


def _traffic(street: Street, lamps: float, dice: Dice) -> list[Thing]:
    """What drives in the lanes: rears ahead, fronts from the other side."""
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
            thing = _stand(street, side + dice.uniform(-0.3, 0.3), z)
            long = _mount(thing, kind, dice, lamps, sideways=False)
            half = long / 2 + 0.3
            thing.z += half
            thing.x = street.x(side + dice.uniform(-0.25, 0.25) * (kind != "tram"), thing.z)
            thing.heading = street.heading(thing.z) + (0.0 if away else math.pi)
            if not street.crosses(thing.z - half - 1, thing.z + half):
                things.append(thing)
            z += long + gap * dice.uniform(0.5, 2.0) + 1.5
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
    return getattr(vehicles, kind)(thing, dice, lamps)


def _at_crossing(street: Street, lamps: float, dice: Dice) -> list[Thing]:
    """Signals at the corners, traffic from the side, people on the zebra."""
    (near, far), things = street.crossing, []
    if dice.chance(0.8):
        for border in street.borders:
            for z in (near - 1.2, far + 0.8):
                if dice.chance(0.75):
                    thing = _stand(street, border.sign * (border.kerb + 0.45), z)
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
        thing = _stand(street, dice.uniform(-left, right), near - dice.uniform(1.4, 4.0))
        people.person(thing, dice)
        things.append(thing)
    if dice.chance(0.5):
        things.append(_side_street(street, dice))
    return things


def _side_street(street: Street, dice: Dice) -> Thing:
    """Fronts of houses along the far side of the cross street, beyond the corner."""
    _, far = street.crossing
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
            thing.face(corners, dice.colour(roadside.FACADES), ids.BUILDING, BACK)
            x = stop
    return thing
