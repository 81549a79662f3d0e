"""Lines between lanes: what is painted along a road, and in which style."""

import math
from dataclasses import dataclass

from segkd.synthetic.scenes.dice import Colour, Dice

WHITES: tuple[Colour, ...] = ((250, 250, 246), (236, 236, 232), (212, 211, 204))
YELLOWS: tuple[Colour, ...] = ((226, 176, 60), (208, 164, 72), (232, 190, 96), (196, 140, 58))
_DASHES = {  # length, period in metres
    "highway": ((3.0, 12.0), (3.6, 12.2), (6.0, 15.0), (6.0, 18.0), (2.5, 12.2), (4.0, 12.0)),
    "city": ((2.0, 6.0), (3.0, 9.0), (2.0, 5.0), (4.0, 10.0), (6.0, 15.0)),
    "rural": ((3.0, 9.0), (3.0, 12.0), (2.0, 6.0), (6.0, 9.0)),
}


@dataclass(frozen=True)
class Line:
    """One stripe along the road, lengths in metres.

    Attributes:
        side: of its middle.
        width: across the road.
        colour: in white light.
        strength: 0 … 1, opacity of unworn paint.
        wear: 0 … 1, the share that is worn off.
        dash, period: length of a dash and from one to the next; a solid line has dash = period.
        phase: shift of the dashes along the road.
        dots: round studs instead of paint.
    """

    side: float
    width: float
    colour: Colour
    strength: float
    wear: float
    dash: float
    period: float
    phase: float
    dots: bool = False


@dataclass(frozen=True)
class Boundary:
    """Where one lane ends and the next begins.

    Attributes:
        side: metres to the right of the road's middle.
        lines: its paint, none to three stripes.
        annotated: whether CULane would annotate a lane here.
    """

    side: float
    lines: tuple[Line, ...]
    annotated: bool


class Painter:
    """Chooses the lines of one road, all in one style.

    Args:
        place: "highway", "city" or "rural".
        dice: source of all choices.
        faint: almost all paint is worn off.
    """

    def __init__(self, place: str, dice: Dice, *, faint: bool) -> None:
        self.dice, self.place, self.faint = dice, place, faint
        self.white, self.yellow = dice.colour(WHITES, 5), dice.colour(YELLOWS, 6)
        self.width = dice.uniform(0.11, 0.2) if dice.chance(0.75) else dice.uniform(0.2, 0.28)
        self.strength = dice.uniform(0.85, 1.0) if dice.chance(0.75) else dice.uniform(0.5, 0.85)
        self.wear = dice.uniform(0.0, 0.2) if dice.chance(0.7) else dice.uniform(0.2, 0.6)
        if faint:
            self.strength = dice.pick((0.0, 0.0, dice.uniform(0.03, 0.16)))
        self.dash, self.period = dice.pick(_DASHES[place])
        self.phase = dice.uniform(0.0, self.period)
        self.studded = place == "highway" and dice.chance(0.3)
        self.dotted = self.studded and dice.chance(0.5)

    def inner(self, side: float) -> tuple[Line, ...]:
        """Between two lanes of one direction."""
        dice = self.dice
        if self.dotted:
            return self._studs(side, 4)
        kinds = {"dashed": 0.8, "solid": 0.14, "wide": 0.06}
        if self.place == "highway":
            kinds = {"dashed": 0.92, "solid": 0.05, "wide": 0.03}
        kind = dice.weighted(kinds)
        if kind == "dashed":
            return (self._line(side, self.white, dashed=True), *self._between(side))
        grow = 1.8 if kind == "wide" else 1.0
        return (self._line(side, self.white, dashed=kind == "wide", grow=grow),)

    def divider(self, side: float) -> tuple[Line, ...]:
        """Between the two directions."""
        dice, gap = self.dice, self.dice.uniform(1.0, 1.6) * self.width
        colour = self.yellow if dice.chance(0.75) else self.white
        kind = dice.weighted({"double": 0.45, "solid": 0.25, "dashed": 0.2, "half": 0.1})
        if kind in ("double", "half"):
            left = self._line(side - gap, colour, dashed=kind == "half")
            return left, self._line(side + gap, colour, dashed=False)
        return (self._line(side, colour, dashed=kind == "dashed"),)

    def edge(self, side: float, *, left: bool) -> tuple[Line, ...]:
        """Between the outermost lane and the shoulder; not every road has one."""
        dice, bare = self.dice, {"highway": 0.04, "city": 0.4, "rural": 0.2}[self.place]
        if dice.chance(bare):
            return ()
        colour = self.yellow if left and dice.chance(0.55) else self.white
        if left and self.place == "highway" and dice.chance(0.12):
            gap = 1.3 * self.width
            twin = self._line(side - gap, colour, dashed=False)
            return twin, self._line(side + gap, colour, dashed=False)
        dashed = self.place != "highway" and dice.chance(0.15)
        return (self._line(side, colour, dashed=dashed, grow=dice.uniform(0.9, 1.25)),)

    def _line(self, side: float, colour: Colour, *, dashed: bool, grow: float = 1.0) -> Line:
        dice = self.dice
        period = self.period if dashed else 1.0
        return Line(
            side=side,
            width=self.width * grow,
            colour=colour,
            strength=min(1.0, self.strength * dice.uniform(0.85, 1.1)),
            wear=min(0.75, self.wear * dice.uniform(0.6, 1.5)),
            dash=self.dash if dashed else 1.0,
            period=period,
            phase=(self.phase + dice.pick((0.0, 0.0, dice.uniform(0, period)))) % period,
        )

    def _between(self, side: float) -> tuple[Line, ...]:
        """Reflectors in the gaps of a dashed line."""
        return self._studs(side, 1) if self.studded else ()

    def _studs(self, side: float, number: int) -> tuple[Line, ...]:
        if self.faint:
            return ()
        period, apart = max(self.period, 7.3), 1.1
        middle = self.phase + (self.dash + self.period) / 2
        firsts = [middle + apart * (i - (number - 1) / 2) for i in range(number)]
        return tuple(
            Line(side, 0.12, self.white, 0.9, 0.0, 0.16, period, math.fmod(-first, period), True)
            for first in firsts
        )
