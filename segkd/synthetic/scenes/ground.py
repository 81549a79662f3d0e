"""Sky, ground plane, road, sidewalks and what is painted on them."""

import math
from collections.abc import Sequence

import numpy as np

from segkd.synthetic.scenes import classes as ids
from segkd.synthetic.scenes.dice import Colour, Dice, shaded
from segkd.synthetic.scenes.draw import Canvas
from segkd.synthetic.scenes.stamps import tile
from segkd.synthetic.scenes.street import FAR, Border, Street
from segkd.synthetic.scenes.thing import Thing

_KERB = 0.13  # metres
_TILE = 12.0  # metres of ground that one noise tile covers
_GRAIN = np.full(256, 0.08, np.float32)  # contrast of the ground's texture by label
_GRAIN[[ids.TERRAIN, ids.SIDEWALK]] = 0.2, 0.09


def paint_sky(canvas: Canvas, dice: Dice) -> None:
    """Fills the canvas with a gradient and clouds; below the horizon it is painted over later."""
    import cv2

    weather, (rows, columns) = canvas.weather, (canvas.size[0] // 2, canvas.size[1] // 2)
    high = min(rows, int(canvas.camera.horizon * rows) + 2)
    height = np.arange(high, dtype=np.float32)[:, None] / (canvas.camera.horizon * rows)
    blend = np.clip(height, 0, 1) ** 1.3
    row, column = dice.integer(0, 150), dice.integer(0, 190)
    window = np.roll(tile((4, 8, 16, 32, 64)), (-row, -column), (0, 1))[:48, :48]
    window = cv2.resize(window, (columns, high), interpolation=cv2.INTER_LINEAR)
    cover = np.clip(window * 0.9 + 2.2 * weather.clouds - 1.0, 0, 1)
    white = np.minimum(weather.haze * 1.1 + 12.0, 250.0 if not weather.dark else 200.0)
    white = white * dice.uniform(0.8, 1.05)
    cover *= dice.uniform(0.25, 0.85)
    sky = np.empty((high, columns, 4), np.uint8)
    for channel in range(3):
        top, low = weather.zenith[channel], weather.haze[channel]
        clear = (top + blend * (low - top)).astype(np.float32)
        sky[..., channel] = np.clip(clear + cover * (white[channel] - clear), 0, 255)
    sky[..., 3] = ids.SKY
    canvas.pixels[: 2 * high] = cv2.resize(sky, (2 * columns, 2 * high))[: canvas.size[0]]


def paint_ground(canvas: Canvas, street: Street, things: list[Thing], dice: Dice) -> None:
    """Paints everything flat, then its texture, the shadows of things, light and haze."""
    first, depth, across = canvas.camera.ground(canvas.size)
    homely = all(border.style in ("park", "homes") for border in street.borders)
    grassy = homely or dice.chance(0.3)
    colour = street.grass if grassy else street.paving
    canvas.pixels[first:] = (*_bytes(colour), ids.TERRAIN if grassy else ids.SIDEWALK)
    _road(canvas, street)
    for border in street.borders:
        _border(canvas, street, border, dice)
    _marks(canvas, street, dice)
    if street.crossing is not None:
        _crossing_marks(canvas, street, street.crossing, dice)
    _spots(canvas, street, dice)
    shade = shadows(canvas, things)[first:]
    _finish(canvas, first, depth, across, shade, dice)


def _bytes(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (int(min(max(value, 0), 255)) for value in colour)
    return red, green, blue


def _stations(z0: float, z1: float) -> list[float]:
    steps = max(2, int(5 * math.log(z1 / z0)) + 2)
    return [z0 * (z1 / z0) ** (i / (steps - 1)) for i in range(steps)]


def _strip(
    canvas: Canvas,
    street: Street,
    sides: tuple[float, float],
    span: tuple[float, float],
    colour: Colour,
    label: int,
    heights: tuple[float, float] = (0.0, 0.0),
) -> None:
    """A band along the street between two sides, each at a height."""
    stations = _stations(*span)
    edge = [(street.x(sides[0], z), heights[0], z) for z in stations]
    edge += [(street.x(sides[1], z), heights[1], z) for z in reversed(stations)]
    canvas.fill([edge], _bytes(colour), label)


def _road(canvas: Canvas, street: Street) -> None:
    left, right = (border.kerb for border in street.borders)
    _strip(canvas, street, (-left, right), (1.5, FAR), street.asphalt, ids.ROAD)
    if street.crossing is not None:
        (near, far), reach = street.crossing, 90.0
        square = [(-reach, 0, near), (reach, 0, near), (reach, 0, far), (-reach, 0, far)]
        canvas.fill([square], _bytes(street.asphalt), ids.ROAD)


def _border(canvas: Canvas, street: Street, border: Border, dice: Dice) -> None:
    sign, kerb = border.sign, border.kerb
    red, green, blue = (value * dice.uniform(1.05, 1.3) for value in street.paving)
    stone = (red, green, blue)
    for span in street.spans():
        outer = kerb + border.verge
        if border.verge:
            sides = (sign * kerb, sign * outer)
            _strip(canvas, street, sides, span, street.grass, ids.TERRAIN, (_KERB, _KERB))
        if border.walk:
            sides = (sign * outer, sign * border.front)
            _strip(canvas, street, sides, span, street.paving, ids.SIDEWALK, (_KERB, _KERB))
        if border.style in ("homes", "park"):
            sides = (sign * border.front, sign * (border.front + 40))
            _strip(canvas, street, sides, span, street.grass, ids.TERRAIN, (_KERB, _KERB))
        if border.walk or border.verge:
            label = ids.TERRAIN if border.verge else ids.SIDEWALK
            sides = (sign * kerb, sign * kerb)
            dull = shaded(stone, 0.8)
            _strip(canvas, street, sides, span, dull, label, (0.0, _KERB))
            sides = (sign * kerb, sign * (kerb + 0.18))
            _strip(canvas, street, sides, span, stone, label, (_KERB, _KERB))


def _line(
    canvas: Canvas,
    street: Street,
    side: float,
    dashes: Sequence[tuple[float, float]],
    width: float,
) -> None:
    quads = []
    for z0, z1 in dashes:
        low, high = side - width / 2, side + width / 2
        corners = ((low, z0), (high, z0), (high, z1), (low, z1))
        quads.append([(street.x(s, z), 0.0, z) for s, z in corners])
    if quads:
        canvas.fill(quads, _bytes(street.paint), ids.ROAD)


def _marks(canvas: Canvas, street: Street, dice: Dice) -> None:
    """Lane lines, edge lines, rails."""
    if dice.chance(0.12):
        return
    pitch, phase, width = dice.pick((6.0, 9.0, 12.0)), dice.uniform(0, 9), dice.uniform(0.1, 0.2)
    starts = [1.6 + phase * 0.2 + i * pitch for i in range(int(130 / pitch))]
    dashes = [(z, z + pitch * 0.45) for z in starts if not street.crosses(z - 4, z + pitch)]
    solid = [
        (z0, z1)
        for a, b in street.spans()
        for z0, z1 in zip(_stations(a, b)[:-1], _stations(a, b)[1:], strict=True)
    ]
    middle = solid if dice.chance(0.35) else dashes
    _line(canvas, street, 0.0, middle if street.oncoming else dashes, width)
    for lane in range(1, street.lanes):
        for sign in (-1, 1):
            _line(canvas, street, sign * lane * street.lane, dashes, width)
    if dice.chance(0.5):
        for sign in (-1, 1):
            _line(canvas, street, sign * street.lanes * street.lane, solid, width)
    if street.tram:
        for rail in (-0.72, 0.72):
            for sign in (-1, 1):
                side = sign * street.lane / 2 + rail
                edges = (side - 0.05, side + 0.05)
                _strip(canvas, street, edges, (1.5, FAR), (92, 78, 70), ids.ROAD)


def _crossing_marks(
    canvas: Canvas, street: Street, crossing: tuple[float, float], dice: Dice
) -> None:
    """Zebras and stop lines before and after the cross street."""
    (near, far), kind = crossing, dice.pick(("zebra", "zebra", "lines", "none"))
    left, right = (border.kerb for border in street.borders)
    for z in (near - 4.2, far + 1.0):
        if z < 2 or kind == "none":
            continue
        if kind == "zebra":
            sides = np.arange(-left + 0.4, right - 0.6, 1.0).tolist()
            bars = [(s, s + 0.5, z, z + 3.0) for s in sides]
        else:
            bars = [(-left, right, z, z + 0.2), (-left, right, z + 2.8, z + 3.0)]
        quads = [
            [(street.x(s, z), 0.0, z) for s, z in ((a, c), (b, c), (b, d), (a, d))]
            for a, b, c, d in bars
        ]
        canvas.fill(quads, _bytes(street.paint), ids.ROAD)
    stop = near - 5.4
    if stop > 2 and dice.chance(0.7):
        corners = ((0, stop), (right, stop), (right, stop + 0.45), (0, stop + 0.45))
        canvas.fill([[(street.x(s, z), 0.0, z) for s, z in corners]], _bytes(street.paint), 0)


def _spots(canvas: Canvas, street: Street, dice: Dice) -> None:
    """Manholes, patches, stains and arrows: still road."""
    reach = street.lanes * street.lane
    for _ in range(dice.integer(1, 7)):
        side, z = dice.uniform(-reach, reach), 4 + 40 * dice.random() ** 1.5
        long, wide = dice.pick(((0.35, 0.35), (3.0, 1.2), (1.5, 0.8), (6.0, 0.5)))
        factor = dice.pick((0.68, 0.82, 1.15))
        turns = [math.pi * i / 5 for i in range(10)]
        power = dice.pick((1.0, 0.5))
        outline = [
            (
                street.x(side + wide * _rounded(math.cos(turn), power), z),
                0.0,
                z + long * _rounded(math.sin(turn), power),
            )
            for turn in turns
        ]
        canvas.fill([outline], _bytes(shaded(street.asphalt, factor)), ids.ROAD)
    if dice.chance(0.3):
        side, z = (dice.integer(1, street.lanes) - 0.5) * street.lane, dice.uniform(7, 25)
        shaft = [(-0.09, 0), (0.09, 0), (0.09, 2.2), (-0.09, 2.2)]
        head = [(-0.4, 2.0), (0.4, 2.0), (0.0, 3.4)]
        for part in (shaft, head):
            corners = [(street.x(side + a, z + b), 0.0, z + b) for a, b in part]
            canvas.fill([corners], _bytes(street.paint), ids.ROAD)


def _rounded(value: float, power: float) -> float:
    return math.copysign(abs(value) ** power, value)


def shadows(canvas: Canvas, things: list[Thing]) -> np.ndarray:
    """(rows, columns) uint8 of the canvas: 255 where the sun reaches the ground, less in shadow."""
    import cv2

    weather, (rows, columns) = canvas.weather, canvas.size
    lit: np.ndarray = np.full((rows // 2, columns // 2), 255, np.uint8)
    east, up, north = weather.direction
    sharp = weather.kind in ("sun", "dusk")
    casting = [thing for thing in things if thing.footprint is not None and thing.order < 80]
    if not casting:
        return np.full((rows, columns), 255, np.uint8)
    x0, x1, z0, z1, height = np.array([thing.footprint for thing in casting]).T[..., None]
    place = np.array([(t.x, t.z, math.sin(t.heading), math.cos(t.heading)) for t in casting])
    left, ahead, sine, cosine = place.T[..., None]
    across, along = np.hstack([x0, x0, x1, x1]), np.hstack([z0, z1, z1, z0])
    x = left + cosine * across + sine * along
    z = ahead - sine * across + cosine * along
    reach = np.minimum(height, 14.0) / up if sharp else 0.15 + 0 * height
    ends = np.zeros((len(casting), 8, 3))
    ends[..., 0] = np.hstack([x, x - reach * east])
    ends[..., 2] = np.maximum(np.hstack([z, z - reach * north]), 1.2)
    pixels = canvas.camera.project(ends.reshape(-1, 3), (rows // 2, columns // 2))
    for corners in np.rint(pixels * 16).astype(np.int32).reshape(-1, 8, 2):
        hull = cv2.convexHull(corners)
        cv2.fillConvexPoly(lit, hull, 0 if sharp else 90, cv2.LINE_8, 4)
    sigma = columns / (700 if sharp else 160)
    lit = cv2.GaussianBlur(lit, (0, 0), sigma)
    return cv2.resize(lit, (columns, rows), interpolation=cv2.INTER_LINEAR)


def _finish(
    canvas: Canvas,
    first: int,
    depth: np.ndarray,
    across: np.ndarray,
    shade: np.ndarray,
    dice: Dice,
) -> None:
    """Texture in perspective, sunlight where no shadow falls, haze by distance.

    Args:
        canvas: changed in place, from row ``first`` on; R rows and W columns.
        first: row.
        depth: (R,) metres.
        across: (R, W) metres to the right.
        shade: (R, W) uint8, see ``shadows``.
        dice: for the place of the texture.
    """
    import cv2

    weather, region = canvas.weather, canvas.pixels[first:]
    noise, scale = tile(), 256 / _TILE
    rows = np.broadcast_to((depth * scale + 256 * dice.random())[:, None], across.shape)
    columns = across * scale + np.float32(256 * dice.random())
    grain: np.ndarray = cv2.remap(
        noise, columns, np.ascontiguousarray(rows), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    fade = 1.0 / (1.0 + depth / 22.0)
    grain *= cv2.LUT(np.ascontiguousarray(region[..., 3]), _GRAIN) * fade[:, None]
    albedo = grain + np.float32(1.0)
    sun = shade.astype(np.float32) * np.float32(1 / 255)
    veil = (1.0 - np.exp(-depth / weather.visibility))[:, None].astype(np.float32)
    clear = (1 - veil) * albedo
    for channel in range(3):
        direct = np.float32(weather.sun[channel] * weather.direction[1])
        soft = np.float32(weather.ambient[channel])
        # Under a cloudy sky a shadow dims the light of the sky instead.
        light = soft + direct * sun if direct > 0.2 else (soft + direct) * (0.4 + 0.6 * sun)
        colour = region[..., channel] * light * clear
        colour += veil * np.float32(weather.haze[channel])
        region[..., channel] = np.clip(colour, 0, 255, out=colour)
