"""The traffic of a drive: vehicles that keep their lanes, each lane with a speed of its own."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from segkd.synthetic.roads.plan import Road
from segkd.synthetic.scenes import vehicles
from segkd.synthetic.scenes.dice import Dice
from segkd.synthetic.scenes.thing import Thing

_LOOP = 440.0  # metres; a vehicle that is left behind comes back far ahead
_BEHIND = 40.0
_CLOSE = (14.0, 2.4)  # metres along and across, within which no vehicle comes to the camera
_TRUCKS = 0.16


@dataclass(frozen=True)
class Car:
    """A vehicle.

    Attributes:
        thing: its faces, in the middle of its own axes.
        side: metres to the right of the road's middle.
        away: whether it drives like the camera.
        start: metres ahead of the camera at the beginning.
        speed: metres per second along the road, negative towards the camera.
        sway: metres by which its distance changes, as drivers do.
    """

    thing: Thing
    side: float
    away: bool
    start: float
    speed: float
    sway: float

    def ahead(self, time: float, speed: float) -> float:
        """Metres ahead of a camera with this speed."""
        way = self.start + (self.speed - speed) * time
        way += self.sway * math.sin(0.21 * time + self.start)
        return (way + _BEHIND) % _LOOP - _BEHIND


def cars(
    road: Road, ego: Callable[[float], float], seconds: float, speed: float, dice: Dice
) -> list[Car]:
    """All vehicles, without those that would run into the camera.

    Args:
        road: its lanes.
        ego: the camera's metres to the right of the road's middle, by time.
        seconds: length of the drive.
        speed: of the camera, metres per second.
        dice: source of all choices.
    """
    found = []
    here = ego(0.0)
    for lane in road.lanes:
        own = abs(lane.side - here) < road.lane / 2
        pace = speed * (1.0 if own else 1.0 + 0.045 * (here - lane.side) / road.lane)
        pace = pace if lane.away else -speed * dice.uniform(0.85, 1.1)
        z = 35.0 if own else dice.uniform(0, 60)
        while z < _LOOP - _BEHIND - 40:
            thing = Thing()
            kind = "truck" if dice.chance(_TRUCKS) else "car"
            vehicles.BUILDERS[kind](thing, dice, 0.0)
            side, sway = lane.side + dice.uniform(-0.3, 0.3), 2.0 if own else 0.5
            found.append(Car(thing, side, lane.away, z, pace, sway))
            z += dice.uniform(28, 110)
    times = np.arange(0, seconds, 0.1).tolist()
    return [car for car in found if not _meets(car, ego, times, speed)]


def _meets(car: Car, ego: Callable[[float], float], times: list[float], speed: float) -> bool:
    return any(
        abs(car.ahead(time, speed)) < _CLOSE[0] and abs(car.side - ego(time)) < _CLOSE[1]
        for time in times
    )
