"""The road's surface: bands of asphalt, shoulder, kerb and grass, their texture, and the paint."""

import numpy as np
from numpy.typing import ArrayLike

from segkd.synthetic.roads.ground import Ground, across
from segkd.synthetic.roads.lines import Line
from segkd.synthetic.roads.plan import Road
from segkd.synthetic.scenes.dice import Dice

_SHIFTS = (11.0, 97.0, 153.0)


class Surface:
    """Colours of the ground in white light, (R, W, 3) float32, built up layer by layer.

    Args:
        road: its lines.
        ground: where they are seen.
        dice: source of all choices.
        colour: (R, W, 3) float32 of a surface without paint, changed in place, and bare of what
            ``drawn`` adds; all of it is taken as pavement.

    Attributes:
        colour: so far.
        paved: (R, W) float32, the share of each pixel that is pavement.
        fine, coarse: (R, W) noise on the ground.
    """

    def __init__(self, road: Road, ground: Ground, dice: Dice, colour: np.ndarray) -> None:
        self.road, self.ground, self.colour = road, ground, colour
        self.paved = np.ones(ground.shape, np.float32)
        shift = dice.uniform(0, 256)
        self.fine = ground.noise(dice.uniform(5.0, 9.0), (shift, _SHIFTS[0]), dice.uniform(1, 3))
        self.coarse = ground.noise(dice.uniform(30, 60), (shift, _SHIFTS[1]), dice.uniform(1, 3))

    @classmethod
    def drawn(cls, road: Road, ground: Ground, dice: Dice) -> "Surface":
        """The whole ground of a road without paint."""
        bands = ground.bands(_profile(road, dice))
        surface = cls(road, ground, dice, np.ascontiguousarray(bands[..., :3]))
        surface.paved = bands[..., 3]
        if road.crossing is not None:
            surface._cross_street(road.crossing)
        surface._texture(dice)
        surface._joints(dice)
        return surface

    def lines(self) -> None:
        """Paints the lines of all boundaries, up to a crossing and beyond it."""
        for boundary in self.road.boundaries:
            for line in boundary.lines:
                if line.strength > 0:
                    self._line(line)

    def layer(self, cover: np.ndarray, colour: ArrayLike, strength: float = 1.0) -> None:
        """Blends a colour (3,) over the ground, with opacity ``cover`` (R, W) · ``strength``."""
        alpha = (cover * np.float32(strength))[..., None]
        self.colour += alpha * (np.asarray(colour, np.float32) - self.colour)

    def _line(self, line: Line) -> None:
        left, right = line.side - line.width / 2, line.side + line.width / 2
        window = self.ground.window(left, right)
        rows, columns = window
        if rows.stop == rows.start or columns.stop <= columns.start:
            return
        cover = self.ground.stripe(left, right, window) * self.ground.dashes(line, rows)
        if self.road.crossing is not None:
            near, far = self.road.crossing
            cover *= 1.0 - self.ground.between(near - 3.5, far + 2.0)[rows]
        if line.wear > 0:
            worn = (self.fine + 0.6 * self.coarse)[rows, columns]
            cover *= np.clip(2.0 - 3.0 * line.wear + 0.9 * worn, 0.0, 1.0)
        part = self.colour[rows, columns]
        alpha = (cover * np.float32(line.strength))[..., None]
        part += alpha * (np.asarray(line.colour, np.float32) - part)

    def _cross_street(self, crossing: tuple[float, float]) -> None:
        """The pavement of the other street, over the whole width."""
        near, far = crossing
        cover = self.ground.between(near, far) * (1.0 - self.paved)
        self.layer(cover, self.road.surface)
        self.paved = np.maximum(self.paved, self.ground.between(near, far))

    def _texture(self, dice: Dice) -> None:
        """Grain, stains, and dirt in the direction of travel."""
        fade = (1.0 / (1.0 + self.ground.z / 25.0)).astype(np.float32)
        rough = dice.uniform(0.02, 0.07) if dice.chance(0.7) else dice.uniform(0.07, 0.12)
        grain = self.fine * (fade * np.float32(rough))
        stains = self.coarse * np.float32(dice.uniform(0.0, 0.05))
        green = (1.0 - self.paved) * np.float32(2.0)
        self.colour *= (1.0 + (grain + stains) * (1.0 + green))[..., None]

    def _joints(self, dice: Dice) -> None:
        """What runs across the road: joints of slabs, seams and patches of another mixture."""
        z = np.arange(0.0, 150.0, 0.1)
        factor = np.ones_like(z)
        if self.road.concrete:
            pitch, phase = dice.uniform(4.0, 6.0), dice.uniform(0, 5)
            depth = dice.uniform(0.1, 0.6)
            factor -= depth * ((z + phase) % pitch < 0.1)
            slabs = np.floor((z + phase) / pitch).astype(int)
            factor *= 1.0 + dice.uniform(0.0, 0.06) * np.sin(slabs * 12.9898 + phase)
        elif dice.chance(0.3):
            start = dice.uniform(3.0, 40.0)
            inside = (z > start) & (z < start + dice.uniform(5.0, 60.0))
            factor[inside] *= dice.uniform(0.8, 1.18)
        for _ in range(dice.pick((0, 0, 1, 3))):
            at = dice.uniform(3.0, 60.0)
            factor[(z > at) & (z < at + dice.pick((0.1, 0.2, 0.4)))] *= dice.uniform(0.65, 1.15)
        rows = self.ground.along(factor)
        beyond = 1.0 - self.ground.between(0.0, 150.0)
        shade = 1.0 + self.paved * (rows + beyond - 1.0)
        self.colour *= shade[..., None]


def _profile(road: Road, dice: Dice) -> np.ndarray:
    """(n, 4) red, green, blue and whether there is pavement, from left to right."""
    side = across()
    table = np.empty((len(side), 4))
    table[:] = (*road.grass, 0.0)
    left, right = road.edges
    if road.place == "city" or dice.chance(0.1):
        walk = dice.uniform(1.5, 6.0)
        table[(side > road.beyond - walk) & (side < right + walk)] = (*road.paving, 0.0)
    elif dice.chance(0.5):  # a strip of gravel
        strip = dice.uniform(0.3, 2.0)
        gravel = [0.5 * (a + b) + 10 for a, b in zip(road.grass, road.surface, strict=True)]
        table[(side > road.beyond - strip) & (side < right + strip)] = (*gravel, 0.0)
    if road.median is not None:
        table[(side > road.beyond) & (side < road.median[0])] = (*road.surface, 1.0)
        inner = (side >= road.median[0]) & (side <= road.median[1])
        green = road.median[1] - road.median[0] > 2.2 and dice.chance(0.6)
        table[inner] = (*(road.grass if green else road.paving), 0.0)
    table[(side > left) & (side < right)] = (*road.surface, 1.0)
    first, last = road.boundaries[0].side, road.boundaries[-1].side
    outside = (side > left) & (side < right) & ((side < first - 0.1) | (side > last + 0.1))
    table[outside, :3] = road.shoulder
    _kerbs(table, side, road, dice)
    _tracks(table, side, road, dice)
    _seams(table, side, road, dice)
    return table


def _kerbs(table: np.ndarray, side: np.ndarray, road: Road, dice: Dice) -> None:
    if road.place != "city" and dice.chance(0.75):
        return
    shade, wide = dice.pick((0.6, 0.8, 1.25, 1.4)), dice.uniform(0.12, 0.3)
    for edge, sign in zip(road.edges, (-1, 1), strict=True):
        out = (side - edge) * sign
        table[(out > 0) & (out < wide), :3] = np.minimum(np.array(road.paving) * shade, 235)
        table[(out > -0.35) & (out < 0), :3] *= 0.85  # the gutter


def _tracks(table: np.ndarray, side: np.ndarray, road: Road, dice: Dice) -> None:
    """Tyres polish two tracks in each lane; oil darkens its middle."""
    polish, oil = dice.uniform(-0.07, 0.08), -dice.uniform(0.0, 0.1)
    if road.concrete:
        oil = -dice.uniform(0.02, 0.22)
    for lane in road.lanes:
        inside = np.flatnonzero((np.abs(side - lane.side) < road.lane / 2) & (table[:, 3] > 0))
        out = np.abs(side[inside] - lane.side)
        factor = 1.0 + oil * np.exp(-((out / 0.6) ** 2))
        factor += polish * np.exp(-(((out - 0.78) / 0.3) ** 2))
        table[inside, :3] *= factor[:, None]


def _seams(table: np.ndarray, side: np.ndarray, road: Road, dice: Dice) -> None:
    """Joints along the road: next to lines on concrete, of tar or between strips on asphalt."""
    seams: list[tuple[float, float, float]] = []
    if road.concrete:
        shift = dice.uniform(-0.3, 0.3)
        seams = [(b.side + shift, 0.04, dice.uniform(0.3, 0.75)) for b in road.boundaries]
    elif dice.chance(0.35):
        for _ in range(dice.integer(1, 3)):
            place = dice.pick(road.boundaries).side + dice.uniform(-1.2, 1.2)
            seams.append((place, dice.uniform(0.03, 0.16), dice.uniform(0.5, 0.9)))
    for place, wide, shade in seams:
        table[np.abs(side - place) < wide / 2, :3] *= shade
    if dice.chance(0.18):  # half of the road was repaved
        cut = dice.pick(road.boundaries).side + dice.uniform(-0.4, 0.4)
        factor = dice.uniform(0.75, 1.2)
        table[(side < cut) & (table[:, 3] > 0), :3] *= factor
