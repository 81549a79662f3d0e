"""A drive along one drawn highway: even motion, traffic, a change of lanes, and exact lanes.

The road is described along its length, so that a frame is what the camera sees from a place on it:
the same paint, the same trees, nearer than in the frame before. Metres along the road are s, ahead
of the camera z.
"""

import math
from array import array
from dataclasses import replace
from itertools import count

import numpy as np

from segkd.synthetic.roads.annotate import Lanes, lanes_of
from segkd.synthetic.roads.beside import paint_distance
from segkd.synthetic.roads.course import REACH, Course, RoadCamera, running_integral
from segkd.synthetic.roads.moving import MovingGround
from segkd.synthetic.roads.paint import light_among, paint_ground
from segkd.synthetic.roads.plan import Road
from segkd.synthetic.roads.roadsides import Placed, roadsides
from segkd.synthetic.roads.stream_of_cars import Car, cars
from segkd.synthetic.roads.surface import Surface
from segkd.synthetic.scenes.dice import Dice
from segkd.synthetic.scenes.draw import Canvas
from segkd.synthetic.scenes.ground import paint_sky
from segkd.synthetic.scenes.lens import photograph
from segkd.synthetic.scenes.thing import Thing
from segkd.synthetic.scenes.weather import Weather

SPEED = 25.0  # metres per second
_SEEN = 210.0  # metres ahead at which things beside the road appear
_CHANGE = 4.5  # seconds that a change of lanes takes
_STEP = 1.0  # metres between tabulated places along the road
_FINE_STEP = 0.25  # metres between places of the course ahead
_BENDS = ((900.0, 1 / 1500), (420.0, 1 / 2600))  # lengths in metres, largest curvatures in 1/m
_HILLS = ((1100.0, 0.014), (460.0, 0.006))  # lengths in metres, largest grades


class Drive:
    """What a camera behind the windscreen sees, at any time; a function of the seed.

    Args:
        seed: of the road, its surroundings and the traffic.
        seconds: the length of the drive.
    """

    def __init__(self, seed: int, seconds: float) -> None:
        self.seed, self.seconds = seed, seconds
        dice = Dice((seed, 70))
        self.road = _highway(seed)
        length = seconds * SPEED + REACH + 50.0
        self._s = np.arange(0.0, length, _STEP)
        self._turned = running_integral(_waves(self._s, _BENDS, dice), _STEP)
        grade = _waves(self._s, _HILLS, dice)
        self._height, self._grade = running_integral(grade, _STEP), grade
        kinds = {"sun": 0.6, "overcast": 0.4}
        weather = Weather.sample(Dice((seed, 73)), kinds)
        self.weather = replace(weather, blur=0.3 * weather.blur, noise=0.4 * weather.noise)
        self._height_above, self._focal = dice.uniform(1.2, 1.5), dice.uniform(0.8, 1.0)
        self._horizon = dice.uniform(0.42, 0.5)
        self._from, self._to = self._lanes_of_drive(dice)
        self._things = roadsides(self.road, length, seed)
        self._cars = cars(self.road, self.ego, seconds, SPEED, Dice((seed, 71)))

    def ego(self, time: float) -> float:
        """Metres of the camera to the right of the road's middle."""
        part = min(max((time - self.seconds / 2 + _CHANGE / 2) / _CHANGE, 0.0), 1.0)
        smooth = part**3 * (10 - 15 * part + 6 * part**2)
        weave = 0.16 * math.sin(0.43 * time) + 0.07 * math.sin(1.3 * time + 1)
        return self._from + smooth * (self._to - self._from) + weave

    def camera(self, time: float) -> RoadCamera:
        """The view, with the course of the road ahead."""
        s, ego = time * SPEED, self.ego(time)
        z = np.arange(0.0, REACH + _FINE_STEP, _FINE_STEP)
        lean = (self.ego(time + 0.05) - ego) / (0.05 * SPEED)
        here = float(np.interp(s, self._s, self._turned))
        slope = np.interp(s + z, self._s, self._turned) - here - lean
        x = running_integral(slope, _FINE_STEP)
        grade = float(np.interp(s, self._s, self._grade))
        low = float(np.interp(s, self._s, self._height))
        rise = np.interp(s + z, self._s, self._height) - low - grade * z
        nod = 0.0015 * math.sin(7.3 * time) + 0.001 * math.sin(11.9 * time + 2)
        course = Course(z, x - ego, rise, slope)
        return RoadCamera(self._focal, self._height_above, self._horizon + nod, course, 1.0)

    def lanes(self, time: float, size: tuple[int, int]) -> Lanes:
        """The annotated lanes by slot in an image of this (height, width), each (n, 2) or None."""
        return lanes_of(self._road_at(time), self.camera(time), size, 1.3 * self.weather.visibility)

    def image(self, time: float, size: tuple[int, int]) -> np.ndarray:
        """(H, W, 3) uint8 RGB at this time in seconds."""
        camera = self.camera(time)
        canvas, s = Canvas(camera, self.weather, size), time * SPEED
        heading = float(np.interp(s, self._s, self._turned))
        paint_sky(canvas, Dice((self.seed, 74)))
        paint_distance(canvas, camera, Dice((self.seed, 75)), heading=heading)
        things = self._near(camera, s) + self._traffic(camera, time)
        self._paint_road(canvas, camera, things, s, size)
        canvas.paint(things)
        frame = round(1000 * time)
        dice = Dice((self.seed, 76, frame))  # noise changes from frame to frame
        return photograph(canvas.image(), canvas.label(), self.weather, camera.horizon, dice)

    def _road_at(self, time: float) -> Road:
        ego, sides = self.ego(time), [boundary.side for boundary in self.road.boundaries]
        left = int(np.searchsorted(sides, ego, side="right")) - 1
        return replace(self.road, ego=ego, left=min(max(left, 0), len(sides) - 2))

    def _lanes_of_drive(self, dice: Dice) -> tuple[float, float]:
        """Middles of the lanes before and after the change."""
        numbers = list(range(len(self.road.boundaries) - 1))
        first = dice.pick(numbers)
        second = first + 1 if first == 0 else first - 1
        sides = [self.road.boundaries[n].side + self.road.lane / 2 for n in (first, second)]
        return sides[0], sides[1]

    def _near(self, camera: RoadCamera, s: float) -> list[Thing]:
        """Things beside the road that are in sight, bent to its course."""
        first = np.searchsorted([thing.s for thing in self._things], s - 25.0)
        found = []
        for placed in self._things[int(first) :]:
            if placed.s > s + _SEEN:
                break
            thing = _bent(placed, camera.course, s)
            if thing is not None and not camera.hidden(thing.order):
                found.append(thing)
        return found

    def _traffic(self, camera: RoadCamera, time: float) -> list[Thing]:
        return [
            _on_road(car, camera.course, z)
            for car in self._cars
            if (z := car.ahead(time, SPEED)) > 3.0 and not camera.hidden(z)
        ]

    def _paint_road(
        self,
        canvas: Canvas,
        camera: RoadCamera,
        things: list[Thing],
        s: float,
        size: tuple[int, int],
    ) -> None:
        ground = MovingGround.passing(camera, size, s)
        surface = Surface.drawn(self.road, ground, Dice((self.seed, 72)))
        surface.lines()
        lit = light_among(things, canvas, ground, size)
        paint_ground(canvas, surface, ground, lit, self.weather)


def _highway(seed: int) -> Road:
    """A divided highway of asphalt with at least two lanes that are marked on both sides."""
    for attempt in count():
        road = Road.sample("normal", Dice((seed, 69, attempt)))
        fits = road.place == "highway" and not road.concrete and road.median is not None
        if fits and len(road.boundaries) >= 3 and all(b.lines for b in road.boundaries):
            return road
    raise AssertionError("an endless loop ended")


def _waves(s: np.ndarray, waves: tuple[tuple[float, float], ...], dice: Dice) -> np.ndarray:
    return np.sum(
        [most * np.sin(2 * np.pi * s / length + dice.uniform(0, 6.3)) for length, most in waves], 0
    )


def _bent(placed: Placed, course: Course, s: float) -> Thing | None:
    """A thing of the straight road, moved along its course; None if it is behind the camera."""
    thing, begin = placed.thing, placed.s - s
    if not placed.long:
        z = begin + thing.z
        if z < 1.5:
            return None
        x, heading = thing.x + float(course.across(z)), math.atan(float(course.lean(z)))
        depth = None if thing.depth is None else thing.depth + begin
        return replace(thing, x=x, z=z, heading=thing.heading + heading, depth=depth)
    points = np.frombuffer(thing.points).reshape(-1, 3).copy()
    points[:, 2] += begin
    if points[:, 2].max() < 1.5:
        return None
    points[:, 2] = np.maximum(points[:, 2], 1.2)
    points[:, 0] += course.across(points[:, 2])
    return replace(thing, points=array("d", points.tobytes()), depth=thing.order + begin)


def _on_road(car: Car, course: Course, z: float) -> Thing:
    x = car.side + float(course.across(z))
    heading = math.atan(float(course.lean(z))) + (0.0 if car.away else math.pi)
    return replace(car.thing, x=x, z=z, heading=heading)
