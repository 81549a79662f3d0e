"""One road scene from its key: the plan, its course, what stands there, the photograph."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from segkd.synthetic.roads import effects
from segkd.synthetic.roads.annotate import Lanes, lanes_of
from segkd.synthetic.roads.beside import beside, paint_distance
from segkd.synthetic.roads.categories import category_of
from segkd.synthetic.roads.city import city
from segkd.synthetic.roads.course import Course, RoadCamera
from segkd.synthetic.roads.ground import Ground
from segkd.synthetic.roads.paint import light_among, paint_ground
from segkd.synthetic.roads.plan import Road
from segkd.synthetic.roads.sunlight import head_lights, tree_shade
from segkd.synthetic.roads.surface import Surface
from segkd.synthetic.roads.symbols import paint_symbols
from segkd.synthetic.roads.traffic import traffic
from segkd.synthetic.scenes.dice import Dice
from segkd.synthetic.scenes.draw import Canvas
from segkd.synthetic.scenes.ground import paint_sky
from segkd.synthetic.scenes.lens import photograph
from segkd.synthetic.scenes.populate import skyline
from segkd.synthetic.scenes.scene import paint_hood
from segkd.synthetic.scenes.thing import Thing
from segkd.synthetic.scenes.weather import Weather

_DAY = {"sun": 0.52, "overcast": 0.3, "dusk": 0.07, "rain": 0.07, "fog": 0.04}
_WEATHERS = {"night": {"night": 1.0}, "shadow": {"sun": 1.0}, "hlight": {"sun": 0.6, "dusk": 0.4}}
_BENDS = {"curve": (0.0025, 0.012), "cross": (0.0, 0.0)}  # curvature, 1/m


@dataclass(frozen=True)
class Scene:
    """The scene of a key, before it is drawn.

    Attributes:
        key: seeds what is chosen while drawing.
        category: one of CATEGORIES.
        road, camera, weather: its parts.
    """

    key: tuple[int, ...]
    category: str
    road: Road
    camera: RoadCamera
    weather: Weather

    @classmethod
    def sample(cls, key: Sequence[int]) -> "Scene":
        """The scene with this key."""
        key = tuple(key)
        category = category_of(key)
        road = Road.sample(category, Dice((*key, 1)))
        dice = Dice((*key, 2))
        low, high = _BENDS.get(category, (0.0, dice.pick((0.0, 0.0004, 0.001, 0.002, 0.004))))
        hilly = dice.chance(0.4 if category != "cross" else 0.1)
        bend = dice.uniform(low, high)
        course = Course.sample(dice, ego=road.ego, bend=bend, hilly=hilly)
        camera = RoadCamera.over(course, dice)
        return cls(key, category, road, camera, _weather(category, Dice((*key, 3))))

    def lanes(self, size: tuple[int, int]) -> Lanes:
        """Lanes by slot in pixels of an image of this (height, width), each (n, 2) float32 or None;
        see ``lanes_of``."""
        return lanes_of(self.road, self.camera, size, 1.3 * self.weather.visibility)

    def image(self, size: tuple[int, int]) -> np.ndarray:
        """(H, W, 3) uint8 RGB. The size changes only how finely the scene is drawn."""
        canvas, dice = Canvas(self.camera, self.weather, size), Dice((*self.key, 4))
        self._paint_background(canvas, dice)
        things = self._things(Dice((*self.key, 5)))
        self._paint_road(canvas, things, size, dice)
        canvas.paint(things)
        if self.category == "night":
            gain = head_lights(self.camera, canvas.size, dice)[..., None]
            canvas.pixels[..., :3] = np.minimum(canvas.pixels[..., :3] * gain, 255)
        if dice.chance(0.25):
            paint_hood(canvas, dice)
        image, label = canvas.image(), canvas.label()
        if self.category == "hlight":
            image = effects.dazzle(image, self.camera, dice)
        if dice.chance(0.3):
            image = effects.motion(image, self.camera, dice)
        image = effects.windscreen(image, dice)
        image = photograph(image, label, self.weather, self.camera.horizon, Dice((*self.key, 6)))
        return effects.compressed(image, dice.integer(35, 95)) if dice.chance(0.6) else image

    def _paint_background(self, canvas: Canvas, dice: Dice) -> None:
        paint_sky(canvas, dice)
        paint_distance(canvas, self.camera, dice)
        if self.road.place == "city" or dice.chance(0.25):
            canvas.paint(skyline(dice))

    def _things(self, dice: Dice) -> list[Thing]:
        road, course, dark = self.road, self.camera.course, self.weather.dark
        lamps = 1.0 if dark else dice.pick((0.0, 0.0, 0.4))
        if road.place == "city":
            lit = dice.uniform(0.1, 0.5) if dark else 0.0
            things = city(road, course, lit, lamps if dark else 0.0, dice)
        else:
            things = beside(road, course, lamps if dark else 0.0, dice)
        things += traffic(road, course, self.category, lamps, dice)
        hidden = self.camera.hidden
        return [thing for thing in things if thing.order > 1.5 and not hidden(thing.order)]

    def _paint_road(
        self, canvas: Canvas, things: list[Thing], size: tuple[int, int], dice: Dice
    ) -> None:
        ground = Ground.seen(self.camera, size)
        surface = Surface.drawn(self.road, ground, dice)
        surface.lines()
        paint_symbols(surface, self.camera, size, self.category, dice)
        lit = light_among(things, canvas, ground, size)
        if self.weather.kind in ("sun", "dusk"):
            lit *= tree_shade(self.road, ground, dice, strong=self.category == "shadow")
        paint_ground(canvas, surface, ground, lit, self.weather)


def draw_road(key: Sequence[int], size: tuple[int, int]) -> tuple[np.ndarray, Lanes]:
    """Image (H, W, 3) uint8 RGB of the scene with this key, and its lanes by slot, each (n, 2)."""
    scene = Scene.sample(key)
    return scene.image(size), scene.lanes(size)


def _weather(category: str, dice: Dice) -> Weather:
    weather = Weather.sample(dice, _WEATHERS.get(category, _DAY))
    sharper = dice.uniform(0.2, 0.6)  # than street scenes, which are drawn in less detail
    weather = replace(weather, blur=weather.blur * sharper, noise=weather.noise * sharper)
    if category == "night":
        return replace(
            weather,
            ambient=weather.ambient * dice.uniform(0.45, 1.2),
            exposure=weather.exposure * dice.uniform(1.0, 1.4),
            visibility=dice.uniform(150.0, 900.0),
        )
    if category == "shadow":
        return replace(weather, sun=weather.sun * 1.15, ambient=weather.ambient * 0.85)
    if dice.chance(0.25):  # harsh cameras: a white sky over a dark road
        return replace(weather, gamma=dice.uniform(1.1, 1.6), exposure=dice.uniform(1.0, 1.4))
    return weather
