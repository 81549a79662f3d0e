"""A thing in a scene: convex faces in metres, in the order in which they are painted."""

import functools
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal, NamedTuple

from segkd.synthetic.scenes.dice import Colour

Point = tuple[float, float, float]
Outline = Sequence[tuple[float, float]]
Kind = Literal["convex", "quads", "glaze", "foliage"]
UP: Point = (0.0, 1.0, 0.0)
FRONT: Point = (0.0, 0.0, 1.0)
BACK: Point = (0.0, 0.0, -1.0)
LEFT: Point = (-1.0, 0.0, 0.0)
RIGHT: Point = (1.0, 0.0, 0.0)
ANY: Point = (0.0, 0.0, 0.0)


class Face(NamedTuple):
    """Some corners of a thing that are painted together.

    Attributes:
        corners: how many of the thing's points belong to it.
        colour: RGB 0 … 255 in white light.
        label: class id.
        normal: in the thing's axes; the back is not painted. ANY: visible from both sides.
        glow: 0 … 1, light that it emits.
        kind: "convex", "quads" (every four points a quadrilateral), "glaze" (convex, half
            transparent), or "foliage" (the points span a rectangle that a stamp fills).
        detail: opacity of a glaze, number of the stamp of foliage.
    """

    corners: int
    colour: Colour
    label: int
    normal: Point
    glow: float
    kind: Kind
    detail: float


@dataclass
class Thing:
    """Faces in axes of its own (x to the right, y up, z ahead), and where it stands.

    Attributes:
        x, z: metres, position of its origin in the world.
        heading: radians, clockwise from straight ahead.
        depth: things are painted from large to small depth; default z.
        footprint: (x0, x1, z0, z1, height) of what casts a shadow, or None.
    """

    x: float = 0.0
    z: float = 0.0
    heading: float = 0.0
    depth: float | None = None
    footprint: tuple[float, float, float, float, float] | None = None
    points: array = field(default_factory=lambda: array("d"))
    faces: list[Face] = field(default_factory=list)

    @property
    def order(self) -> float:
        """Depth in metres by which things are sorted for painting."""
        return self.z if self.depth is None else self.depth

    def face(
        self,
        corners: Iterable[Point],
        colour: Colour,
        label: int,
        normal: Point = ANY,
        *,
        glow: float = 0.0,
        kind: Kind = "convex",
        detail: float = 0.0,
    ) -> None:
        """Adds a face; one without corners is ignored. See ``Face`` for the arguments."""
        before = len(self.points)
        self.points.extend(chain.from_iterable(corners))
        count = (len(self.points) - before) // 3
        if count:
            self.faces.append(Face(count, colour, label, normal, glow, kind, detail))

    def box(
        self,
        x: Sequence[float],
        y: Sequence[float],
        z: Sequence[float],
        colour: Colour,
        label: int,
    ) -> None:
        """Top and four sides of a block between two values on each axis."""
        (x0, x1), (y0, y1), (z0, z1) = x, y, z
        self.face(((x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)), colour, label, UP)
        self.face(((x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)), colour, label, FRONT)
        self.face(((x0, y0, z0), (x0, y0, z1), (x0, y1, z1), (x0, y1, z0)), colour, label, LEFT)
        self.face(((x1, y0, z0), (x1, y0, z1), (x1, y1, z1), (x1, y1, z0)), colour, label, RIGHT)
        self.face(((x0, y0, z0), (x1, y0, z0), (x1, y1, z0), (x0, y1, z0)), colour, label, BACK)

    def prism(self, profile: Outline, half: float, colour: Colour, label: int) -> None:
        """A convex outline of (z, y), counter-clockwise as z goes right, extruded to x = ±half."""
        for (z0, y0), (z1, y1) in zip(profile, [*profile[1:], profile[0]], strict=True):
            length = math.hypot(z1 - z0, y1 - y0)
            normal = (0.0, -(z1 - z0) / length, (y1 - y0) / length)
            strip = ((-half, y0, z0), (half, y0, z0), (half, y1, z1), (-half, y1, z1))
            self.face(strip, colour, label, normal)
        self.sides(profile, half, colour, label)

    def sides(self, outline: Outline, half: float, colour: Colour, label: int) -> None:
        """The same outline of (z, y) on the left and on the right side."""
        self.face([(-half, y, z) for z, y in outline], colour, label, LEFT)
        self.face([(half, y, z) for z, y in outline], colour, label, RIGHT)

    def end(
        self,
        x: Sequence[float],
        y: Sequence[float],
        z: float,
        colour: Colour,
        label: int,
        *,
        glow: float = 0.0,
    ) -> None:
        """An upright rectangle across the thing; it faces away from the thing's middle."""
        (x0, x1), (y0, y1) = x, y
        corners = ((x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z))
        self.face(corners, colour, label, FRONT if z > 0 else BACK, glow=glow)

    def panel(
        self,
        x: Sequence[float],
        y: Sequence[float],
        colour: Colour,
        label: int,
        z: float = 0.0,
        *,
        glow: float = 0.0,
        kind: Kind = "convex",
        detail: float = 0.0,
    ) -> None:
        """An upright rectangle across the thing, visible from both sides."""
        (x0, x1), (y0, y1) = x, y
        corners = ((x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z))
        self.face(corners, colour, label, glow=glow, kind=kind, detail=detail)


def disc(a: float, b: float, radius: float, corners: int = 10) -> list[tuple[float, float]]:
    """Corners (a, b) of a regular polygon."""
    return [(a + radius * cosine, b + radius * sine) for cosine, sine in _circle(corners)]


@functools.cache
def _circle(corners: int) -> tuple[tuple[float, float], ...]:
    turns = [(i + 0.5) * (2.0 * math.pi / corners) for i in range(corners)]
    return tuple((math.cos(turn), math.sin(turn)) for turn in turns)


def limb(
    start: tuple[float, float], stop: tuple[float, float], thick: float, thin: float | None = None
) -> list[tuple[float, float]]:
    """Corners of a bar between two points, ``thick`` wide at its start and ``thin`` at its end."""
    thin = thick if thin is None else thin
    da, db = stop[0] - start[0], stop[1] - start[1]
    length = math.hypot(da, db) or 1.0
    na, nb = -db / length / 2, da / length / 2
    return [
        (start[0] + na * thick, start[1] + nb * thick),
        (stop[0] + na * thin, stop[1] + nb * thin),
        (stop[0] - na * thin, stop[1] - nb * thin),
        (start[0] - na * thick, start[1] - nb * thick),
    ]
