"""Trees, bushes and hedges: stamps of leaves on billboards."""

from segkd.synthetic.scenes import classes as ids
from segkd.synthetic.scenes import stamps
from segkd.synthetic.scenes.dice import Colour, Dice, shaded
from segkd.synthetic.scenes.roadside import Stretch
from segkd.synthetic.scenes.thing import Thing

GREENS: tuple[Colour, ...] = (
    (62, 84, 42),
    (84, 104, 50),
    (104, 116, 62),
    (52, 70, 48),
    (128, 112, 56),
    (136, 88, 50),
)
_BARKS: tuple[Colour, ...] = ((78, 66, 54), (98, 90, 80), (60, 54, 48))


def foliage(
    thing: Thing, x: tuple[float, float], y: tuple[float, float], colour: Colour, stamp: int
) -> None:
    """Fills a rectangle across the view with the stamp of leaves of this number."""
    thing.panel(x, y, colour, ids.VEGETATION, kind="foliage", detail=stamp)


def tree(dice: Dice, x: float, z: float, green: Colour, *, tall: float) -> Thing:
    """A tree ``tall`` metres high: a trunk and one or two crowns, a cone, or bare branches."""
    thing, kind = Thing(x=x, z=z), dice.weighted({"crown": 0.68, "cone": 0.16, "bare": 0.16})
    bark = dice.colour(_BARKS, 8)
    wide, foot = tall * dice.uniform(0.22, 0.36), tall * dice.uniform(0.2, 0.36)
    trunk = 0.018 * tall + 0.06
    top = foot * 1.3
    thing.face(
        ((-trunk, 0, 0), (trunk, 0, 0), (trunk * 0.8, top, 0), (-trunk * 0.8, top, 0)),
        bark,
        ids.VEGETATION,
    )
    thing.face(
        ((0, 0, 0), (trunk, 0, 0), (trunk * 0.8, top, 0), (0, top, 0)),
        shaded(bark, 0.7),
        ids.VEGETATION,
    )
    if kind == "bare":
        foliage(thing, (-wide * 1.3, wide * 1.3), (foot, tall), bark, dice.pick(stamps.BARE))
    elif kind == "cone":
        foliage(
            thing, (-wide * 0.7, wide * 0.7), (0.12 * tall, tall), green, dice.pick(stamps.CONES)
        )
    else:
        foliage(thing, (-wide, wide), (foot, tall), green, dice.pick(stamps.CROWNS))
        if dice.chance(0.6):
            shift, size = dice.uniform(-0.4, 0.4) * wide, dice.uniform(0.5, 0.8)
            high = (tall - size * (tall - foot), tall * dice.uniform(0.96, 1.08))
            shade = dice.uniform(0.9, 1.2)
            bright = shaded(green, shade)
            span = (shift - size * wide, shift + size * wide)
            foliage(thing, span, high, bright, dice.pick(stamps.CROWNS))
    thing.footprint = (-wide * 0.7, wide * 0.7, -wide * 0.7, wide * 0.7, tall * 0.8)
    return thing


def bush(dice: Dice, x: float, z: float, green: Colour) -> Thing:
    """Foliage on the ground."""
    thing, half = Thing(x=x, z=z), dice.uniform(0.5, 1.6)
    foliage(
        thing, (-half, half), (0, half * dice.uniform(0.9, 1.5)), green, dice.pick(stamps.BUSHES)
    )
    thing.footprint = (-half, half, -half, half, half)
    return thing


def hedge(line: Stretch, dice: Dice) -> list[Thing]:
    """Foliage in pieces of about two metres, each a billboard."""
    height, green = dice.uniform(0.9, 2.2), dice.colour(GREENS, 6)
    things: list[Thing] = []
    count = max(1, round(line.length / 2.0))
    for piece in range(count):
        x, _, z = line.at((piece + 0.5) / count, 0)
        thing = Thing(x=x, z=z)
        half = 0.75 * line.length / count
        half = max(0.6, half * (0.35 + 0.65 * abs(line.xb - line.xa) / line.length))
        foliage(thing, (-half, half), (0, height), green, dice.pick(stamps.HEDGES))
        thing.footprint = (-half, half, -1.0, 1.0, height)
        things.append(thing)
    return things
