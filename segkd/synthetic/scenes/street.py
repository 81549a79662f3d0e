"""The plan of a street: cross-section, curve and crossing, sampled before anything stands in it.

Places on it are (side, z): metres across from the middle of the road, to the right, and ahead.
"""

import math
from dataclasses import dataclass

from segkd.synthetic.scenes.dice import Colour, Dice
from segkd.synthetic.scenes.thing import Thing

GREYS: tuple[Colour, ...] = ((96, 96, 98), (122, 120, 118), (148, 146, 142), (80, 80, 86))
PAVINGS: tuple[Colour, ...] = (
    (128, 126, 124),
    (158, 154, 148),
    (104, 102, 104),
    (150, 122, 108),
    (168, 160, 140),
)
GRASSES: tuple[Colour, ...] = ((88, 112, 58), (112, 124, 66), (128, 120, 78), (104, 92, 70))
FAR = 220.0  # metres; where the street ends
STYLES = {"city": 0.38, "homes": 0.22, "park": 0.16, "works": 0.14, "shops": 0.1}


@dataclass(frozen=True)
class Border:
    """One side of the road, from the kerb outwards, widths in metres.

    Attributes:
        sign: -1 left, +1 right.
        kerb: from the middle of the road.
        parking: width of the parking lane inside the kerb, or 0.
        verge: grass between kerb and sidewalk, or 0.
        walk: sidewalk, or 0.
        style: what stands behind, a key of STYLES.
    """

    sign: int
    kerb: float
    parking: float
    verge: float
    walk: float
    style: str

    @property
    def front(self) -> float:
        """From the middle of the road to buildings and fences."""
        return self.kerb + self.verge + self.walk


@dataclass(frozen=True)
class Street:
    """Widths and places in metres, colours in white light.

    Attributes:
        lanes: in each direction; ``lane`` is the width of one.
        oncoming: whether traffic comes from ahead; else the road is one-way.
        ego: metres of the camera from the middle of the road.
        turn, bend: slope and curvature of the road against the camera's axis.
        crossing: (near, far) depth of the cross street, or None.
        tram: rails run in the lanes next to the middle.
        borders: left and right.
        asphalt, paving, grass, paint: of road, sidewalks, verges, road marks.
    """

    lanes: int
    lane: float
    oncoming: bool
    ego: float
    turn: float
    bend: float
    crossing: tuple[float, float] | None
    tram: bool
    borders: tuple[Border, Border]
    asphalt: Colour
    paving: Colour
    grass: Colour
    paint: Colour

    @classmethod
    def sample(cls, dice: Dice) -> "Street":
        """A random street."""
        lanes = dice.weighted({1: 0.68, 2: 0.32})
        lane, oncoming = dice.uniform(2.8, 3.5), dice.chance(0.8)
        middle = lane * (dice.integer(1, lanes) - 0.5)
        ego = middle if oncoming else middle - lanes * lane * dice.integer(0, 1)
        near = dice.uniform(11.0, 70.0)
        first = dice.weighted(STYLES)
        second = first if dice.chance(0.5) else dice.weighted(STYLES)
        asphalt = dice.colour(GREYS, 9)
        paving = dice.colour(PAVINGS, 9) if dice.chance(0.8) else asphalt
        return cls(
            lanes=lanes,
            lane=lane,
            oncoming=oncoming,
            ego=ego + dice.uniform(-0.5, 0.5),
            turn=dice.uniform(-0.19, 0.19),
            bend=dice.uniform(-1, 1) * dice.pick((0.0, 0.002, 0.005, 0.009)),
            crossing=(near, near + dice.uniform(7.0, 14.0)) if dice.chance(0.5) else None,
            tram=dice.chance(0.17),
            borders=(
                _border(-1, lanes * lane, first, dice),
                _border(1, lanes * lane, second, dice),
            ),
            asphalt=asphalt,
            paving=paving,
            grass=dice.colour(GRASSES, 9),
            paint=dice.colour(((225, 225, 222), (190, 188, 180), (214, 180, 70)), 8),
        )

    def x(self, side: float, z: float) -> float:
        """World X of a place on the street."""
        return side - self.ego + self.turn * z + 0.5 * self.bend * z * z

    def stand(self, side: float, z: float) -> Thing:
        """An empty thing at a place on the street."""
        return Thing(x=self.x(side, z), z=z)

    def heading(self, z: float) -> float:
        """Direction of the street at depth z, radians clockwise from straight ahead."""
        return math.atan(self.turn + self.bend * z)

    def spans(self) -> list[tuple[float, float]]:
        """The depths along which the street has borders: before and after its crossing."""
        if self.crossing is None:
            return [(1.5, FAR)]
        return [(1.5, self.crossing[0]), (self.crossing[1], FAR)]

    def crosses(self, z0: float, z1: float) -> bool:
        """Whether z0 … z1 touches the cross street."""
        return self.crossing is not None and z1 > self.crossing[0] and z0 < self.crossing[1]


def _border(sign: int, road: float, style: str, dice: Dice) -> Border:
    parking = dice.uniform(2.0, 2.4) if dice.chance(0.5) else 0.0
    verge = dice.uniform(1.2, 3.5) if dice.chance(0.6 if style == "park" else 0.28) else 0.0
    walk = dice.uniform(2.0, 5.6) if style != "park" or dice.chance(0.7) else 0.0
    return Border(sign, road + parking + 0.25, parking, verge, walk, style)
