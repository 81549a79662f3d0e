"""Decides what stands on a street: borders, lots, furniture and people."""

from segkd.synthetic.scenes import classes as ids
from segkd.synthetic.scenes import furniture, people, plants, roadside
from segkd.synthetic.scenes.buildings import building
from segkd.synthetic.scenes.dice import Colour, Dice, shaded
from segkd.synthetic.scenes.roadside import Stretch
from segkd.synthetic.scenes.street import FAR, Border, Street
from segkd.synthetic.scenes.thing import Thing
from segkd.synthetic.scenes.traffic import at_crossing, parked, traffic
from segkd.synthetic.scenes.weather import Weather

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
    things = skyline(dice)
    for border in street.borders:
        things += surroundings(street, border, lit, lamps if weather.dark else 0.0, dice)
    things += traffic(street, lamps, dice)
    if street.crossing is not None:
        things += at_crossing(street, street.crossing, lamps, dice)
    return things


def surroundings(
    street: Street, border: Border, lit: float, lamps: float, dice: Dice
) -> list[Thing]:
    """What stands on one side of the road.

    Args:
        street: the plan.
        border: its side.
        lit: fraction of the windows with light.
        lamps: brightness of street lamps, 0 … 1.
        dice: source of all choices.
    """
    things = _lots(street, border, lit, dice)
    things += _furniture(street, border, lamps, dice)
    things += parked(street, border, dice)
    return things + _walkers(street, border, dice)


def skyline(dice: Dice) -> list[Thing]:
    """Blocks and woods at the end of the view."""
    thing, x = Thing(depth=1000.0), -190.0
    wood = dice.uniform(0.1, 0.9)
    green = dice.colour(plants.GREENS, 6)
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
                (x, x + wide), (low, high * 0.5), shaded(green, 0.9), ids.VEGETATION, FAR + 19
            )
        else:
            top = dice.uniform(6, 26)
            thing.panel(
                (x, x + wide), (-2, top), dice.colour(roadside.FACADES), ids.BUILDING, FAR + 20
            )
        x += wide
    return [thing]


def _lots(street: Street, border: Border, lit: float, dice: Dice) -> list[Thing]:
    things: list[Thing] = []
    z = 3.0 + dice.uniform(0, 3)
    floors, green = dice.integer(2, 6), dice.colour(plants.GREENS, 6)
    while z < 140:
        length = dice.uniform(8, 22) * (1 + z / 60)
        if street.crossing is not None and street.crosses(z, z + length):
            near, far = street.crossing
            if z < near - 5:
                length = near - 0.5 - z
            else:
                z = far + 0.5
                continue
        kind = dice.weighted(_LOTS[border.style])
        line = _stretch(street, border, border.front, z, z + length)
        if kind == "building":
            shop = border.style == "shops" or (border.style == "city" and dice.chance(0.35))
            tall = max(1, floors + dice.integer(-1, 2)) if border.style != "works" else 2
            things.append(building(line, dice, floors=tall, shop=shop, lit=lit))
        elif kind == "house":
            things += _house(street, border, z, length, lit, dice)
        else:
            things += _open_lot(street, border, kind, line, green, dice)
        z += length + (dice.uniform(1, 6) if dice.chance(0.2) else 0.0)
    return things


def _stretch(street: Street, border: Border, side: float, z0: float, z1: float) -> Stretch:
    side *= border.sign
    return Stretch(street.x(side, z0), z0, street.x(side, z1), z1, border.sign)


def _house(
    street: Street, border: Border, z: float, length: float, lit: float, dice: Dice
) -> list[Thing]:
    """A house behind a front garden with a fence, hedge or low wall."""
    back = border.front + dice.uniform(3.5, 8)
    line = _stretch(street, border, back, z + 1.5, z + length - dice.uniform(1.5, 4))
    floors = dice.integer(1, 3)
    things = [building(line, dice, floors=floors, shop=False, lit=lit)]
    edge = _stretch(street, border, border.front, z, z + length)
    things[0].depth = edge.zb + 1.0
    kind = dice.weighted({"fence": 0.36, "hedge": 0.3, "wall": 0.2, "open": 0.14})
    if kind == "hedge":
        things += plants.hedge(edge, dice)
    elif kind != "open":
        things.append(
            roadside.fence(edge, dice) if kind == "fence" else roadside.wall(edge, dice, True)
        )
    green = dice.colour(plants.GREENS, 8)
    for _ in range(dice.integer(0, 3)):
        deep, far = dice.uniform(1.2, 3.2), z + dice.uniform(0, length)
        x = street.x(border.sign * (border.front + deep), far)
        if dice.chance(0.6):
            plant = plants.bush(dice, x, far, green)
        else:
            plant = plants.tree(dice, x, far, green, tall=dice.uniform(3.5, 8))
        things.append(_behind(plant, edge))
    return things


def _behind(thing: Thing, line: Stretch) -> Thing:
    """Moves a thing in painting order before the wall or fence that hides it."""
    thing.depth = line.zb + 0.1 + 0.001 * thing.z
    return thing


def _open_lot(
    street: Street, border: Border, kind: str, line: Stretch, green: Colour, dice: Dice
) -> list[Thing]:
    """A wall, fence or hedge with trees behind it, or trees alone."""
    things: list[Thing] = []
    if kind == "wall":
        things.append(roadside.wall(line, dice, dice.chance(0.3)))
    elif kind == "fence":
        things.append(roadside.fence(line, dice))
    elif kind == "hedge":
        things += plants.hedge(line, dice)
    if kind in ("wall", "fence") and border.style == "works" and dice.chance(0.6):
        behind = _stretch(street, border, border.front + dice.uniform(4, 12), line.za, line.zb)
        hall = building(behind, dice, floors=dice.integer(1, 4), shop=False, lit=0.0)
        hall.depth = line.zb + 1.0
        things.append(hall)
    for _ in range(dice.integer(2, 5)):
        z = dice.uniform(line.za, line.zb)
        x = street.x(border.sign * (border.front + dice.uniform(1.5, 12)), z)
        colour = dice.colour((green,), 8)
        if dice.chance(0.3):
            plant = plants.bush(dice, x, z, colour)
        else:
            plant = plants.tree(dice, x, z, colour, tall=dice.uniform(5, 14))
        things.append(_behind(plant, line) if kind in ("wall", "fence") else plant)
    return things


def _furniture(street: Street, border: Border, lamps: float, dice: Dice) -> list[Thing]:
    """Lamps and trees in a row, signs and clutter near the kerb."""
    things, near = [], border.sign * (border.kerb + 0.5)
    if dice.chance(0.75):
        z, pitch = dice.uniform(8, 24), dice.uniform(18, 34)
        while z < 120:
            if not street.crosses(z, z):
                thing = street.stand(near, z)
                furniture.lamp(thing, dice, -border.sign, lamps)
                things.append(thing)
            z += pitch
    if dice.chance(0.75 if border.verge else 0.3):
        z, pitch, green = dice.uniform(7, 16), dice.uniform(7, 15), dice.colour(plants.GREENS, 6)
        tall, side = dice.uniform(4.5, 10), border.sign * (border.kerb + max(border.verge / 2, 0.9))
        while z < 110:
            if not street.crosses(z - 2, z + 2) and dice.chance(0.85):
                x, height = street.x(side, z), tall * dice.uniform(0.8, 1.2)
                things.append(plants.tree(dice, x, z, dice.colour((green,), 5), tall=height))
            z += pitch
    plan = ((furniture.sign, 0, 3), (furniture.clutter, 0, 2), (furniture.billboard, -4, 1))
    for draw, least, most in plan:
        for _ in range(dice.integer(least, most)):
            z = 7 + 40 * dice.random() ** 1.3
            if not street.crosses(z, z):
                thing = street.stand(near * dice.uniform(1.0, 1.12), z)
                draw(thing, dice)
                things.append(thing)
    if dice.chance(0.12):
        thing = street.stand(near, dice.uniform(14, 40))
        furniture.gantry(thing, dice, -border.sign)
        things.append(thing)
    if dice.chance(0.12):
        start = dice.uniform(7, 20)
        for post in range(dice.integer(3, 7)):
            thing = street.stand(near, start + 2.2 * post)
            furniture.bollard(thing, dice)
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
            thing = street.stand(side + 0.55 * friend * border.sign, z + 0.2 * friend)
            people.person(thing, dice)
            things.append(thing)
    return things
