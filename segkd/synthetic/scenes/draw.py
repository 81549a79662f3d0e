"""The canvas: paints image and label map at once, at SCALE times their size.

A pixel is (red, green, blue, class id), so what hides a colour also hides its label.
The image is the mean over SCALE x SCALE canvas pixels, the label that of the one canvas pixel
at its centre.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from segkd.synthetic.scenes.camera import Camera
from segkd.synthetic.scenes.stamps import foliage
from segkd.synthetic.scenes.thing import Face, Thing
from segkd.synthetic.scenes.weather import Weather

SCALE = 2
_SHIFT = 4  # fractional bits of pixel coordinates in OpenCV
_Painter = Callable[[np.ndarray, Sequence[float], Face, float], None]
_SMALL = 0.35  # canvas pixels; what is smaller in both directions is skipped


class Canvas:
    """Where a scene is painted.

    Args:
        camera: projects metres to pixels.
        weather: its light and haze.
        size: (height, width) of the image to come.

    Attributes:
        size: (rows, columns) of the canvas.
        pixels: (rows, columns, 4) uint8, red, green, blue and class id.
    """

    def __init__(self, camera: Camera, weather: Weather, size: tuple[int, int]) -> None:
        self.camera, self.weather = camera, weather
        self.size = (size[0] * SCALE, size[1] * SCALE)
        self.pixels = np.zeros((*self.size, 4), np.uint8)
        self._words = self.pixels.view(np.uint32)[..., 0]

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        import cv2

        size = (self.size[1] // SCALE, self.size[0] // SCALE)
        small = cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(small, cv2.COLOR_RGBA2RGB)

    def label(self) -> np.ndarray:
        """(H, W) uint8 class ids."""
        return np.ascontiguousarray(self.pixels[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE, 3])

    def fill(self, outlines: ArrayLike, colour: Sequence[float], label: int) -> None:
        """Fills polygons of equally many corners, (n, corners, 3) metres, without light or haze."""
        import cv2

        metres = np.asarray(outlines, np.float64)
        pixels = self.camera.project(metres.reshape(-1, 3), self.size)
        fixed = _fixed(pixels).reshape(*metres.shape[:2], 2)
        cv2.fillPoly(self.pixels, list(fixed), (*colour, label), cv2.LINE_8, _SHIFT)

    def paint(self, things: list[Thing]) -> None:
        """Paints things from far to near, each in the light and haze of its place."""
        things = sorted((thing for thing in things if thing.faces), key=lambda t: -t.order)
        if not things:
            return
        faces = [face for thing in things for face in thing.faces]
        points, normals = _world(things, faces)
        counts = np.array([face.corners for face in faces])
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        depth = np.add.reduceat(points[:, 2], starts) / counts
        pixels = self.camera.project(points, self.size)
        seen = self._shown(pixels, starts) & self._facing(points[starts], normals)
        shown = np.flatnonzero(seen)
        faces = [faces[index] for index in shown.tolist()]
        colours, clear = self._light(faces, normals[shown], depth[shown])
        painters: dict[str, _Painter] = {
            "convex": self._convex,
            "quads": self._quads,
            "glaze": self._glaze,
            "foliage": self._foliage,
        }
        fixed = _fixed(pixels)
        for face, start, colour, air in zip(
            faces, starts[shown].tolist(), colours, clear, strict=True
        ):
            part = slice(start, start + face.corners)
            corners = (pixels if face.kind == "foliage" else fixed)[part]
            painters[face.kind](corners, colour, face, air)

    def _light(
        self, faces: list[Face], normals: np.ndarray, depth: np.ndarray
    ) -> tuple[list[list[float]], list[float]]:
        """Colours of faces as seen from the camera, and the share of them that haze leaves."""
        glow = np.array([face.glow for face in faces])
        paint = np.array([face.colour for face in faces]).reshape(-1, 3)
        lit = self.weather.lit(paint, normals, glow)
        colours = np.clip(self.weather.hazy(lit, depth * (1.0 - 0.7 * glow)), 0, 255)
        return colours.tolist(), np.exp(-depth / self.weather.visibility).tolist()

    def _shown(self, pixels: np.ndarray, starts: np.ndarray) -> np.ndarray:
        low = np.minimum.reduceat(pixels, starts)
        high = np.maximum.reduceat(pixels, starts)
        size = (self.size[1], self.size[0])
        return np.all((high > 0) & (low < size), 1) & np.any(high - low > _SMALL, 1)

    def _facing(self, corners: np.ndarray, normals: np.ndarray) -> np.ndarray:
        towards = np.array((0.0, self.camera.height, 0.0)) - corners
        return ((towards * normals).sum(1) > 0) | ~np.any(normals, 1)

    def _convex(self, corners: np.ndarray, colour: Sequence[float], face: Face, _: float) -> None:
        import cv2

        cv2.fillConvexPoly(self.pixels, corners, (*colour, face.label), cv2.LINE_8, _SHIFT)

    def _quads(self, corners: np.ndarray, colour: Sequence[float], face: Face, _: float) -> None:
        import cv2

        quads = list(corners.reshape(-1, 4, 2))
        cv2.fillPoly(self.pixels, quads, (*colour, face.label), cv2.LINE_8, _SHIFT)

    def _glaze(self, corners: np.ndarray, colour: Sequence[float], face: Face, _: float) -> None:
        import cv2

        (left, top), (right, bottom) = corners.min(0) >> _SHIFT, corners.max(0) >> _SHIFT
        rows = slice(max(top - 1, 0), max(bottom + 2, 0))
        columns = slice(max(left - 1, 0), max(right + 2, 0))
        region = self.pixels[rows, columns]
        if not region.size:
            return
        before = region[..., :3].copy()
        self._convex(corners, colour, face, _)
        after = np.ascontiguousarray(region[..., :3])
        region[..., :3] = cv2.addWeighted(after, face.detail, before, 1.0 - face.detail, 0.0)

    def _foliage(
        self, corners: np.ndarray, colour: Sequence[float], face: Face, clear: float
    ) -> None:
        import cv2

        (left, top), (right, bottom) = np.rint(corners.min(0)), np.rint(corners.max(0))
        left, top = int(left), int(top)
        width = min(max(2, int(right) - left), 4 * self.size[1])
        height = min(max(2, int(bottom) - top), 4 * self.size[0])
        rows = slice(max(top, 0), min(top + height, self.size[0]))
        columns = slice(max(left, 0), min(left + width, self.size[1]))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return
        stamp = foliage(128 if max(width, height) > 40 else 32)[int(face.detail)]
        shrink = width < stamp.shape[1]
        stamp = cv2.resize(
            stamp, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        )[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        ramp = np.empty((256, 4), np.uint8)
        shades = 1.0 + clear * np.linspace(-0.65, 0.5, 256)[:, None]
        ramp[:, :3] = np.minimum(shades * np.array(colour), 255)
        ramp[:, 3] = face.label
        words = ramp.view(np.uint32)[:, 0][stamp[..., 0]]
        np.copyto(self._words[rows, columns], words, where=stamp[..., 1] > 110)


def _fixed(pixels: np.ndarray) -> np.ndarray:
    """OpenCV's fixed-point coordinates, in which pixel centres are whole numbers."""
    return np.rint((pixels - 0.5) * (1 << _SHIFT)).astype(np.int32)


def _world(things: list[Thing], faces: list[Face]) -> tuple[np.ndarray, np.ndarray]:
    """All points (P, 3) and face normals (M, 3) in world axes."""
    place = np.array([(t.x, t.z, math.sin(t.heading), math.cos(t.heading)) for t in things])
    sizes = [len(thing.points) // 3 for thing in things]
    local = np.concatenate([np.frombuffer(thing.points) for thing in things]).reshape(-1, 3)
    points = _turned(local, np.repeat(place, sizes, 0))
    owner = np.repeat(place, [len(thing.faces) for thing in things], 0)
    owner[:, :2] = 0.0
    return points, _turned(np.array([face.normal for face in faces]), owner)


def _turned(points: np.ndarray, place: np.ndarray) -> np.ndarray:
    x, z, sine, cosine = place.T
    turned = points.copy()
    turned[:, 0] = x + cosine * points[:, 0] + sine * points[:, 2]
    turned[:, 2] = z - sine * points[:, 0] + cosine * points[:, 2]
    return turned
