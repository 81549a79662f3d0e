"""What stands beside open roads: barriers, trees, poles, signs, bridges, and hills far away."""

import numpy as np

from segkd.synthetic.roads import barriers
from segkd.synthetic.roads.course import Course, RoadCamera
from segkd.synthetic.roads.plan import Road
from segkd.synthetic.scenes import classes as ids
from segkd.synthetic.scenes import furniture, plants
from segkd.synthetic.scenes.buildings import building
from segkd.synthetic.scenes.dice import Colour, Dice, shaded
from segkd.synthetic.scenes.draw import Canvas
from segkd.synthetic.scenes.roadside import Stretch
from segkd.synthetic.scenes.thing import Thing

_START, _FAR = 1.2, 190.0
_BOARDS: tuple[Colour, ...] = ((24, 110, 70), (30, 84, 160), (20, 90, 60))
_HILLS: tuple[Colour, ...] = ((92, 104, 88), (120, 116, 96), (80, 92, 96), (150, 136, 104))


def beside(road: Road, course: Course, lamps: float, dice: Dice) -> list[Thing]:
    """Both sides and what spans the road; ``lamps`` is the brightness of street lamps, 0 … 1."""
    things: list[Thing] = []
    if road.median is not None:
        things += _median(road.place, road.median, course, dice)
    for sign, edge in ((-1, road.beyond), (1, road.edges[1])):
        things += _side(road, course, sign * max(abs(edge), 1.0), lamps, dice)
    if road.place == "highway" and dice.chance(0.2):
        things.append(_bridge(road, course, dice))
    if dice.chance(0.35 if road.place == "highway" else 0.08):
        things.append(gantry(road, course, dice))
    return things


def paint_distance(canvas: Canvas, camera: RoadCamera, dice: Dice, *, heading: float = 0.0) -> None:
    """Hills and woods at the horizon, down to where the ground begins.

    Args:
        canvas: painted on.
        camera: the view.
        dice: source of all choices.
        heading: radians by which the camera has turned to the right since the beginning of a drive.
    """
    weather = canvas.weather
    for far, most in ((1500.0, 60.0), (700.0, 22.0), (420.0, 7.0)):
        if far > 500 and dice.chance(0.45):
            continue
        side = np.linspace(-1.6 * far, 1.6 * far, 60)
        height = _outline(side / far + heading, dice) * most * dice.uniform(0.1, 1.0)
        base = np.array(dice.colour(_HILLS if far > 500 else plants.GREENS, 8))
        light = weather.ambient + 0.4 * weather.sun
        clear = weather.hazy((base * light)[None], np.array([far * 0.35]))[0]
        outline = np.zeros((62, 3))
        outline[:60, 0], outline[:60, 1], outline[:, 2] = side, height, far
        outline[60:, 0], outline[60:, 1] = side[[-1, 0]], -90.0
        outline[:, 1] -= camera.course.height(far)  # far land does not follow the road
        canvas.fill(outline[None], np.clip(clear, 0, 255).tolist(), ids.VEGETATION)


def _outline(x: np.ndarray, dice: Dice) -> np.ndarray:
    """Heights 0 … 1.5 of hills of several sizes at places x (n,)."""
    total = np.zeros_like(x)
    for waves in (1.3, 3.1, 7.0, 17.0):
        total += np.sin(x * waves * 3 + dice.uniform(0, 6.3)) / waves
    return np.clip(0.5 + 0.45 * total, 0.02, 1.5)


def _median(place: str, median: tuple[float, float], course: Course, dice: Dice) -> list[Thing]:
    left, right = median
    width, inner = right - left, right - min(0.3, 0.3 * (right - left))
    kinds = {"barrier": 0.45, "rail": 0.22, "fence": 0.12, "green": 0.13, "none": 0.08}
    if place == "city":
        kinds = {"fence": 0.55, "green": 0.2, "barrier": 0.15, "none": 0.1}
    kind = dice.weighted(kinds)
    span = (_START, _FAR)
    if kind == "barrier":
        return barriers.barrier(course, min(inner, -0.01), span, dice)
    if kind == "rail":
        return barriers.guard_rail(course, min(inner, -0.01), span, dice)
    if kind == "fence":
        return barriers.fence(course, (left + right) / 2, span, dice)
    if kind == "green" and width > 1.2:
        return _green((left + right) / 2, course, dice)
    return []


def _green(side: float, course: Course, dice: Dice) -> list[Thing]:
    """Bushes in a row, sometimes with trees between them."""
    things: list[Thing] = []
    z, colour = dice.uniform(4, 9), dice.colour(plants.GREENS, 6)
    trees = dice.chance(0.4)
    while z < 120:
        x, tone = side + float(course.across(z)), dice.colour((colour,), 6)
        if trees and dice.chance(0.3):
            things.append(plants.tree(dice, x, z, tone, tall=dice.uniform(3, 8)))
        else:
            things.append(plants.bush(dice, x, z, tone))
        z += dice.uniform(1.5, 3.5) * (1 + z / 30)
    return things


def _side(road: Road, course: Course, edge: float, lamps: float, dice: Dice) -> list[Thing]:
    sign = 1.0 if edge > 0 else -1.0
    things: list[Thing] = []
    open_road = {"rail": 0.3, "barrier": 0.16, "wall": 0.08, "fence": 0.1, "none": 0.36}
    if road.place == "rural":
        open_road = {"rail": 0.2, "fence": 0.14, "wall": 0.03, "none": 0.63}
    kind = dice.weighted(open_road)
    begin = dice.uniform(8, 50) if dice.chance(0.25) else _START
    span = (begin, dice.uniform(60, 100) if dice.chance(0.2) else _FAR)
    near = edge + sign * dice.uniform(0.1, 0.6)
    draw = {
        "rail": barriers.guard_rail,
        "barrier": barriers.barrier,
        "wall": barriers.wall,
        "fence": barriers.fence,
    }
    if kind != "none":
        things += draw[kind](course, near, span, dice)
    if dice.chance(0.4):
        foot = edge + sign * dice.uniform(1.0, 6.0)
        things += barriers.bank(course, foot, (_START, 170.0), road.grass, dice)
        if dice.chance(0.35):
            things += barriers.fence(course, foot + sign * dice.uniform(0.3, 2), (6, _FAR), dice)
    things += _plants(road, course, edge, dice)
    things += _posts(road, course, edge, lamps, dice)
    return things


def _plants(road: Road, course: Course, edge: float, dice: Dice) -> list[Thing]:
    """Trees and bushes, from few to a wood."""
    things: list[Thing] = []
    sign, z = (1.0 if edge > 0 else -1.0), dice.uniform(5, 30)
    green, back = dice.colour(plants.GREENS, 8), dice.uniform(2.0, 16.0)
    pitch = dice.pick((2.5, 5.0, 9.0, 20.0, 60.0))
    tall, deep = dice.uniform(4, 14), dice.uniform(2, 14)
    while z < 175:
        side = edge + sign * (back + deep * dice.random())
        x, colour = side + float(course.across(z)), dice.colour((green,), 9)
        if dice.chance(0.35):
            things.append(plants.bush(dice, x, z, colour))
        else:
            height = tall * dice.uniform(0.7, 1.3)
            things.append(plants.tree(dice, x, z, colour, tall=height))
        z += pitch * dice.uniform(0.4, 1.6) * (1 + z / 40)
    if road.place == "rural" or dice.chance(0.15):
        for _ in range(dice.integer(0, 3)):
            z = dice.uniform(15, 130)
            side = edge + sign * dice.uniform(6, 30)
            x0, x1 = (side + float(course.across(z + d)) for d in (0, 12))
            line = Stretch(x0, z, x1, z + 12, int(sign))
            house = building(line, dice, floors=dice.integer(1, 3), shop=False, lit=0.1)
            house.footprint = None
            things.append(house)
    return things


def _posts(road: Road, course: Course, edge: float, lamps: float, dice: Dice) -> list[Thing]:
    """Lamps, masts, signs and direction boards."""
    things: list[Thing] = []
    sign = 1 if edge > 0 else -1

    def stand(out: float, z: float) -> Thing:
        return Thing(x=edge + sign * out + float(course.across(z)), z=z)

    if dice.chance(0.45 if road.place == "highway" else 0.3):
        z, pitch = dice.uniform(8, 40), dice.uniform(25, 45)
        while z < 160:
            post = stand(0.8, z)
            furniture.lamp(post, dice, -sign, lamps)
            things.append(post)
            z += pitch
    if dice.chance(0.35):
        z, tone = dice.uniform(10, 40), dice.colour(((92, 78, 66), (110, 110, 112)), 8)
        out, tall = dice.uniform(3, 12), dice.uniform(7, 11)
        while z < 190:
            mast = stand(out, z)
            furniture.pole(mast, tall, 0.26, tone)
            mast.panel((-1.2, 1.2), (tall - 0.8, tall - 0.65), tone, ids.POLE)
            things.append(mast)
            z += dice.uniform(30, 50)
    for _ in range(dice.integer(0, 3)):
        post = stand(dice.uniform(0.6, 2.5), 9 + 80 * dice.random() ** 1.4)
        if dice.chance(0.7):
            furniture.sign(post, dice)
        else:
            furniture.gantry(post, dice, sign)
        things.append(post)
    return things


def gantry(road: Road, course: Course, dice: Dice) -> Thing:
    """Direction boards over the lanes, on a frame."""
    z, low = dice.uniform(25, 120), dice.uniform(5.2, 6.2)
    thing = Thing(x=float(course.across(z)), z=z)
    left, right, grey = road.edges[0] - 0.5, road.edges[1] + 0.8, dice.colour(furniture.METALS)
    for side in (left, right):
        thing.panel((side - 0.16, side + 0.16), (0, low + 1.6), grey, ids.POLE)
    for y in (low + 0.5, low + 1.5):
        thing.panel((left, right), (y, y + 0.14), grey, ids.POLE)
    tone = dice.colour(_BOARDS, 8)
    for lane in road.lanes:
        if not lane.away or dice.chance(0.35):
            continue
        half, tall = dice.uniform(1.1, 1.7), dice.uniform(1.5, 2.6)
        x = (lane.side - half, lane.side + half)
        thing.panel(x, (low, low + tall), (226, 228, 226), ids.TRAFFIC_SIGN)
        inner = (x[0] + 0.07, x[1] - 0.07)
        thing.panel(inner, (low + 0.07, low + tall - 0.07), tone, ids.TRAFFIC_SIGN)
        for row in range(dice.integer(1, 3)):
            y = low + tall - 0.55 - 0.5 * row
            stop = x[0] + 2 * half * dice.uniform(0.5, 0.9)
            thing.panel((x[0] + 0.3, stop), (y, y + 0.22), (236, 236, 232), ids.TRAFFIC_SIGN)
    return thing


def _bridge(road: Road, course: Course, dice: Dice) -> Thing:
    """A road that crosses overhead, on piers."""
    z, low, tone = dice.uniform(22, 150), dice.uniform(5.2, 7.0), dice.colour(_HILLS[3:], 14)
    thick, deep = dice.uniform(1.0, 2.0), dice.uniform(6, 14)
    thing = Thing(x=float(course.across(z)), z=z, depth=z + deep)
    under = [(x, low, d) for x, d in ((-70, 0), (70, 0), (70, deep), (-70, deep))]
    thing.face(under, shaded(tone, 0.4), ids.BUILDING)
    thing.panel((-70, 70), (low, low + thick), tone, ids.BUILDING)
    thing.panel((-70, 70), (low + thick, low + thick + 0.9), shaded(tone, 0.85), ids.WALL)
    apart = dice.uniform(1.0, 5.0)
    for x in (road.beyond - apart, road.edges[1] + apart):
        thing.panel((x - 0.7, x + 0.7), (0, low), shaded(tone, 0.8), ids.WALL)
    return thing
