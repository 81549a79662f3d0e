"""The plan of a road: lanes, lines, shoulders and surface."""

from dataclasses import dataclass

from segkd.synthetic.roads.lines import Boundary, Painter
from segkd.synthetic.scenes.dice import Colour, Dice, shaded

SLOTS = 4  # left-left, left, right, right-right
_PLACES = {
    "normal": {"highway": 0.55, "city": 0.27, "rural": 0.18},
    "crowd": {"highway": 0.4, "city": 0.6},
    "hlight": {"highway": 0.4, "city": 0.35, "rural": 0.25},
    "shadow": {"highway": 0.25, "city": 0.45, "rural": 0.3},
    "noline": {"highway": 0.1, "city": 0.5, "rural": 0.4},
    "arrow": {"highway": 0.12, "city": 0.88},
    "curve": {"highway": 0.3, "city": 0.25, "rural": 0.45},
    "cross": {"city": 1.0},
    "night": {"highway": 0.45, "city": 0.4, "rural": 0.15},
}
_ASPHALT: tuple[Colour, ...] = (
    (64, 64, 70),
    (82, 82, 88),
    (92, 92, 97),
    (108, 107, 108),
    (128, 126, 124),
    (146, 143, 138),
)
_CONCRETE: tuple[Colour, ...] = ((168, 164, 154), (150, 148, 142), (184, 178, 164))
_GRASS: tuple[Colour, ...] = (
    (88, 112, 58),
    (112, 124, 66),
    (198, 172, 122),
    (176, 150, 104),
    (128, 118, 84),
    (70, 92, 48),
)
_PAVING: tuple[Colour, ...] = ((150, 146, 140), (128, 126, 124), (168, 156, 146))


@dataclass(frozen=True)
class Lane:
    """A lane for traffic: the side of its middle, and whether it leads away from the camera."""

    side: float
    away: bool


@dataclass(frozen=True)
class Road:
    """Metres to the right of the road's middle, colours in white light.

    Attributes:
        place: "highway", "city" or "rural".
        ego: where the camera is.
        lane: width of a lane.
        boundaries: of the lanes from left to right.
        left: number of the boundary left of the camera; the next is the right one.
        lanes: all of them, including those beyond the median.
        edges: left and right end of the pavement around the camera.
        median: both sides of the strip between the directions, or None.
        beyond: left end of the pavement beyond the median.
        crossing: (near, far) depth of a cross street, or None.
        concrete: slabs instead of asphalt.
        surface, shoulder, grass, paving: colours.
    """

    place: str
    ego: float
    lane: float
    boundaries: tuple[Boundary, ...]
    left: int
    lanes: tuple[Lane, ...]
    edges: tuple[float, float]
    median: tuple[float, float] | None
    beyond: float
    crossing: tuple[float, float] | None
    concrete: bool
    surface: Colour
    shoulder: Colour
    grass: Colour
    paving: Colour

    @classmethod
    def sample(cls, category: str, dice: Dice) -> "Road":
        """A random road for a scene of this category."""
        place = dice.weighted(_PLACES[category])
        layout = _Layout.sample(place, category, dice)
        painter = Painter(place, dice, faint=category == "noline")
        boundaries = _boundaries(layout, painter, dice)
        concrete = dice.chance({"highway": 0.3, "city": 0.05, "rural": 0.04}[place])
        surface = dice.colour(_CONCRETE if concrete else _ASPHALT, 7)
        shade = dice.uniform(0.85, 1.12) if dice.chance(0.7) else dice.uniform(0.6, 1.35)
        offset = dice.uniform(-0.45, 0.45) if dice.chance(0.85) else dice.uniform(-0.9, 0.9)
        here = layout.opposite + layout.ego
        return cls(
            place=place,
            ego=layout.middle(layout.ego) + offset,
            lane=layout.lane,
            boundaries=boundaries,
            left=here,
            lanes=layout.lanes(),
            edges=layout.edges,
            median=layout.median,
            beyond=layout.beyond,
            crossing=_crossing(category, place, dice),
            concrete=concrete,
            surface=surface,
            shoulder=shaded(surface, shade),
            grass=dice.colour(_GRASS, 8),
            paving=dice.colour(_PAVING, 8),
        )

    def slots(self) -> list[Boundary | None]:
        """The boundaries that are annotated, by slot."""
        numbers = range(self.left - 1, self.left - 1 + SLOTS)
        here = [self.boundaries[n] if 0 <= n < len(self.boundaries) else None for n in numbers]
        return [boundary if boundary and boundary.annotated else None for boundary in here]


@dataclass(frozen=True)
class _Layout:
    """The cross-section: numbers of lanes, and where those of the own direction begin."""

    place: str
    own: int
    opposite: int  # lanes against the traffic on the same pavement
    far: int  # the same beyond the median
    ego: int
    lane: float
    start: float
    shoulders: tuple[float, float]
    gap: float

    @classmethod
    def sample(cls, place: str, category: str, dice: Dice) -> "_Layout":
        counts = {
            "highway": {2: 0.34, 3: 0.32, 4: 0.24, 5: 0.1},
            "city": {1: 0.24, 2: 0.36, 3: 0.28, 4: 0.12},
            "rural": {1: 0.82, 2: 0.18},
        }[place]
        own = dice.weighted(counts)
        divided = dice.chance({"highway": 0.92, "city": 0.35, "rural": 0.06}[place])
        far = min(4, max(1, own + dice.integer(-1, 1))) if divided else 0
        opposite = 0 if divided else max(1, min(3, own + dice.integer(-1, 0)))
        if place == "city" and not divided and dice.chance(0.15):
            opposite = 0
        lane = dice.uniform(3.4, 3.85) if place == "highway" else dice.uniform(2.9, 3.6)
        left, right = {
            "highway": (dice.uniform(0.4, 2.6), dice.uniform(1.2, 3.4)),
            "city": (dice.uniform(0.25, 0.7), dice.pick((0.4, 0.6, 2.4))),
            "rural": (dice.uniform(0.2, 1.0), dice.uniform(0.2, 1.2)),
        }[place]
        if opposite:
            left = right
        width = (own + opposite) * lane + left + right
        start = -width / 2 + left + opposite * lane
        ego = dice.integer(0, own - 1)
        gap = dice.uniform(0.7, 2.0) if dice.chance(0.6) else dice.uniform(2.0, 9.0)
        return cls(place, own, opposite, far, ego, lane, start, (left, right), gap)

    @property
    def edges(self) -> tuple[float, float]:
        left, right = self.shoulders
        first = self.start - self.opposite * self.lane - left
        return first, self.start + self.own * self.lane + right

    @property
    def median(self) -> tuple[float, float] | None:
        return (self.edges[0] - self.gap, self.edges[0]) if self.far else None

    @property
    def beyond(self) -> float:
        if not self.far:
            return self.edges[0]
        return self.edges[0] - self.gap - 1.2 - self.far * self.lane - self.shoulders[1]

    def side(self, number: int) -> float:
        """Of the boundary left of an own lane; negative numbers are opposite ones."""
        return self.start + number * self.lane

    def middle(self, number: int) -> float:
        return self.side(number) + self.lane / 2

    def lanes(self) -> tuple[Lane, ...]:
        right = self.edges[0] - self.gap - 0.6
        over = [Lane(right - (n + 0.5) * self.lane, False) for n in range(self.far)]
        numbers = range(-self.opposite, self.own)
        return (*over, *(Lane(self.middle(n), n >= 0) for n in numbers))


def _boundaries(layout: _Layout, painter: Painter, dice: Dice) -> tuple[Boundary, ...]:
    made = []
    for number in range(-layout.opposite, layout.own + 1):
        side = layout.side(number)
        if number == 0 and layout.opposite:
            lines = painter.divider(side)
        elif number in (-layout.opposite, layout.own):
            lines = painter.edge(side, left=number != layout.own)
        else:
            lines = painter.inner(side)
        beside = number in (layout.ego, layout.ego + 1)
        outermost = number in (-layout.opposite, layout.own)
        visible = any(line.strength > 0.04 for line in lines)
        annotated = beside or visible or (painter.faint and outermost)
        made.append(Boundary(side, lines, annotated))
    return tuple(made)


def _crossing(category: str, place: str, dice: Dice) -> tuple[float, float] | None:
    if category == "cross":
        near = dice.uniform(-6.0, 8.5)
        return near, near + dice.uniform(17.0, 34.0)
    if place == "city" and dice.chance(0.16 if category != "curve" else 0.0):
        near = dice.uniform(38.0, 110.0)
        return near, near + dice.uniform(8.0, 22.0)
    return None
