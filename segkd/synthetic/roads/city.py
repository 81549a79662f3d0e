"""Streets of a city along a road's course: the world of ``segkd.synthetic.scenes``, bent to it."""

from dataclasses import dataclass, field

from segkd.synthetic.roads import barriers
from segkd.synthetic.roads.course import Course
from segkd.synthetic.roads.plan import Road
from segkd.synthetic.scenes.dice import Dice
from segkd.synthetic.scenes.populate import surroundings
from segkd.synthetic.scenes.street import STYLES, Border, Street
from segkd.synthetic.scenes.thing import Thing
from segkd.synthetic.scenes.traffic import at_crossing


@dataclass(frozen=True)
class CourseStreet(Street):
    """A street whose middle follows a course."""

    course: Course = field(kw_only=True)

    def x(self, side: float, z: float) -> float:
        """World X of a place on the street, in metres."""
        return side + float(self.course.across(z))

    @classmethod
    def along(cls, road: Road, course: Course, dice: Dice) -> "CourseStreet":
        """A street with the lanes, crossing and colours of a road."""
        first = dice.weighted({**STYLES, "park": 0.45})
        second = first if dice.chance(0.6) else dice.weighted(STYLES)
        left, right = max(-road.beyond, 1.0), max(road.edges[1], 1.0)
        return cls(
            lanes=max(1, round(right / road.lane)),
            lane=road.lane,
            oncoming=not all(lane.away for lane in road.lanes),
            ego=0.0,
            turn=0.0,
            bend=0.0,
            crossing=road.crossing,
            tram=False,
            borders=(_border(-1, left, first, dice), _border(1, right, second, dice)),
            asphalt=road.surface,
            paving=road.paving,
            grass=road.grass,
            paint=(230, 230, 226),
            course=course,
        )


def city(road: Road, course: Course, lit: float, lamps: float, dice: Dice) -> list[Thing]:
    """Both sides of the street and its crossing.

    Args:
        road: the plan.
        course: of the road.
        lit: fraction of the windows with light.
        lamps: brightness of lamps, 0 … 1.
        dice: source of all choices.
    """
    street = CourseStreet.along(road, course, dice)
    things: list[Thing] = []
    for border in street.borders:
        things += surroundings(street, border, lit, lamps, dice)
    if road.crossing is not None:
        things += at_crossing(street, road.crossing, lamps, dice)
    elif dice.chance(0.12):
        things += barriers.fence(course, road.edges[1] + 0.3, (1.2, 150.0), dice)
    return things


def _border(sign: int, kerb: float, style: str, dice: Dice) -> Border:
    verge = dice.uniform(1.2, 4.0) if dice.chance(0.4) else 0.0
    return Border(sign, kerb, 0.0, verge, dice.uniform(1.5, 6.0), style)
