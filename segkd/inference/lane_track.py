"""Lanes over the frames of a video: identities that stay, steady points, short gaps bridged.

pairing    tracks and lanes of a frame are paired at the least total mean |Δx| over common
           rows, up to ``reach``; so a lane keeps its number when the car changes lanes, and
           with that its slot changes
filter     the points of a pair pass a fading-memory filter of first degree (Morrison,
           Introduction to Sequential Smoothing and Prediction, 1969): of weight g = 1 − θ² in
           position and h = (1 − θ)² in velocity, with θ = memory^(25 dt); it follows an
           even sideways motion without delay
found      a new lane is reported when it has been seen in ``confirm`` frames
lost       a lane that is not seen is held in place for ``patience`` seconds, as are its far and
           near ends if only they are not seen, and are not outside the image
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from segkd.errors import ConfigError
from segkd.inference.assignment import pairs
from segkd.inference.lane_types import Detection, Lane

_RATE = 25.0  # frames per second to which ``memory`` refers, and of frames without a time
_LEAST_COMMON = 2  # rows of a pair
_OTHER_SLOT = 0.15  # of ``reach``, added to the distance of lanes of different slots
_LONGEST_GAP = 3.0  # seconds between two frames, over which a lane keeps its number
_CALM = 0.8  # share of its velocity that a lane keeps per frame in which it is not seen


@dataclass
class _Track:
    """A lane over time; R rows, ascending.

    Attributes:
        number: its identity, from 1.
        lane: as seen last.
        y, x, speed, seen: (R,) rows, columns, columns per second, and times of the last sight.
        sightings: number of frames in which it was seen.
        begin, last: times of the first and the last sight.
        time: to which x refers.
    """

    number: int
    lane: Lane
    y: np.ndarray
    x: np.ndarray
    speed: np.ndarray
    seen: np.ndarray
    begin: float
    last: float
    time: float
    sightings: int = 1
    reported: bool = field(default=False)

    @property
    def bottom(self) -> float:
        """Column of the lowest point."""
        return float(self.x[-1])


class LaneTracker:
    """Follows lanes over frames: call it with the lanes of each frame, in order.

    Args:
        memory: weight θ of earlier frames at 25 frames per second, 0 (none) to below 1.
        patience: seconds for which a lane that is no longer seen is held.
        confirm: number of frames in which a new lane is seen before it is reported; the lanes of a
            first frame are reported at once.
        reach: largest mean distance of a lane from one frame to the next, as a fraction of the
            image width. A point that jumps farther is held for ``patience``, too.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        *,
        memory: float = 0.8,
        patience: float = 0.5,
        confirm: int = 2,
        reach: float = 0.05,
    ) -> None:
        ranges = {
            "memory": (memory, 0 <= memory < 1, "0 (none) to below 1, e.g. 0.8"),
            "patience": (patience, 0 <= patience < float("inf"), "seconds, 0 or more"),
            "confirm": (confirm, confirm >= 1, "a number of frames, 1 or more"),
            "reach": (reach, 0 < reach <= 1, "a fraction of the image width, 0 to 1, e.g. 0.05"),
        }
        for name, (value, fits, wanted) in ranges.items():
            if not fits:
                raise ConfigError(f"{name}: got {value}, expected {wanted}")
        self.memory, self.patience, self.confirm, self.reach = memory, patience, confirm, reach
        self.forget()

    def forget(self) -> None:
        """Begins a new video: numbers start from 1, and nothing is held."""
        self._tracks: list[_Track] = []
        self._number, self._time, self._width = 0, 0.0, 0

    def __call__(self, lanes: Sequence[Lane], width: int, time: float | None = None) -> list[Lane]:
        """The lanes of the next frame with ``track``, ``seen`` and ``age``, and steady points.

        Args:
            lanes: as detected, points (n, 2).
            width: of the image in pixels; lanes of an image of another width begin a new video.
            time: of the frame in seconds; None: a 25th of a second after the one before.

        Returns:
            Lanes that were seen, and those that are held (``seen`` is False), from left to right.
        """
        if width != self._width:
            self.forget()
            self._width = width
        before = self._time
        now = before + 1 / _RATE if time is None else max(time, before)
        self._time = now
        alive = [track for track in self._tracks if self._may_go_on(track, before, now)]
        first = not any(track.reported for track in alive)
        found = [lane for lane in lanes if len(lane.points) >= _LEAST_COMMON]
        for track in alive:
            self._advance(track, now)
        costs = np.full((len(alive), len(found)), np.inf)
        for row, track in enumerate(alive):
            for column, lane in enumerate(found):
                costs[row, column] = self._distance(track, lane)
        paired = dict(pairs(costs, self.reach * width))
        for row, column in paired.items():
            self._update(alive[row], found[column], now)
        new = [lane for column, lane in enumerate(found) if column not in paired.values()]
        self._tracks = [*alive, *(self._begun(lane, now) for lane in new)]
        for track in self._tracks:
            track.reported |= track.sightings >= self.confirm or (first and track.last == now)
        held = [track for track in self._tracks if now - track.last <= self.patience]
        shown = [track for track in held if track.reported]
        return [_reported(track, now) for track in sorted(shown, key=lambda track: track.bottom)]

    def follow(self, found: Detection, width: int, time: float | None = None) -> Detection:
        """A detection whose lanes are followed; images of a ``width``, at a ``time`` in seconds.

        Points are (n, 2), as for a call.
        """
        return replace(found, lanes=self(found.lanes, width, time))

    def _begun(self, lane: Lane, now: float) -> _Track:
        self._number += 1
        x, y = _ascending(lane.points)
        still, seen = np.zeros_like(x), np.full_like(x, now)
        return _Track(self._number, lane, y, x, still, seen, begin=now, last=now, time=now)

    def _may_go_on(self, track: _Track, before: float, now: float) -> bool:
        """Whether a track can be paired now, at ``before`` being the time of the last frame.

        Frames of a slow detector are farther apart than ``patience``.
        """
        missing = now - track.last
        return missing <= self.patience or (track.last == before and missing <= _LONGEST_GAP)

    def _advance(self, track: _Track, now: float) -> None:
        """Moves a track on; the speed of one that is not seen fades."""
        passed = now - track.time
        track.x = track.x + track.speed * passed
        track.speed = track.speed * _CALM ** (passed * _RATE * (track.last < track.time))
        track.time = now

    def _distance(self, track: _Track, lane: Lane) -> float:
        """Mean |Δx| in pixels over common rows, infinite without them."""
        x, y = _ascending(lane.points)
        common = (y >= track.y[0]) & (y <= track.y[-1])
        if common.sum() < _LEAST_COMMON:
            return float("inf")
        apart = np.abs(x[common] - np.interp(y[common], track.y, track.x))
        other = _OTHER_SLOT * self.reach * self._width * (lane.slot != track.lane.slot)
        # The median too: a lane that jumps to its neighbour in some rows is still this lane
        return float(min(apart.mean(), np.median(apart))) + other

    def _update(self, track: _Track, lane: Lane, now: float) -> None:
        x, y = _ascending(lane.points)
        passed = max(now - track.last, 1e-3)
        theta = self.memory ** (passed * _RATE)
        n = track.sightings  # so few frames that the filter still grows
        g = max(1 - theta**2, 2 * (2 * n + 1) / ((n + 1) * (n + 2))) if theta else 1.0
        h = max((1 - theta) ** 2, 6 / ((n + 1) * (n + 2))) if theta else 0.0
        inside = (y >= track.y[0]) & (y <= track.y[-1])
        expected = np.interp(y, track.y, track.x)
        speed, seen = np.interp(y, track.y, track.speed), np.full_like(y, now)
        change = np.where(inside, x - expected, 0.0)
        jumped = np.abs(change) > self.reach * self._width
        before = np.interp(y, track.y, track.seen)
        held = jumped & (now - before <= self.patience)
        change[jumped], seen[held] = 0.0, before[held]
        speed = speed + np.minimum(h, 1.0) * _even(change, y, inside & ~jumped) / passed
        fresh = ~inside | (jumped & ~held)
        moved = np.where(fresh, x, expected + np.minimum(g, 1.0) * change)
        self._keep_ends(track, _Rows(y, moved, speed, seen), now)
        track.lane, track.last, track.sightings = lane, now, n + 1

    def _keep_ends(self, track: _Track, rows: "_Rows", now: float) -> None:
        """Sets new rows, between the ends of the track that were seen a short while ago."""
        recent = now - track.seen <= self.patience
        below = recent & (track.y > rows.y[-1]) & self._would_be_inside(rows, track.y)
        beyond = [recent & (track.y < rows.y[0]), below]
        shifts = [rows.x[at] - float(np.interp(rows.y[at], track.y, track.x)) for at in (0, -1)]
        above, near = (
            _Rows(track.y[end], track.x[end] + shift, track.speed[end], track.seen[end])
            for end, shift in zip(beyond, shifts, strict=True)
        )
        for name in ("y", "x", "speed", "seen"):
            parts = [getattr(part, name) for part in (above, rows, near)]
            setattr(track, name, np.concatenate(parts))

    def _would_be_inside(self, rows: "_Rows", y: np.ndarray) -> np.ndarray:
        """(R,) bool: at which y the line through the two nearest rows is inside the image.

        Where it is not, the lane has left the image, and is no longer hidden for a moment.
        """
        if len(rows.y) < 2:
            return np.ones(len(y), bool)
        slope = (rows.x[-1] - rows.x[-2]) / (rows.y[-1] - rows.y[-2])
        x = rows.x[-1] + slope * (y - rows.y[-1])
        return (x >= 0) & (x < self._width)


@dataclass(frozen=True)
class _Rows:
    """Rows of a track, ascending; see ``_Track``."""

    y: np.ndarray
    x: np.ndarray
    speed: np.ndarray
    seen: np.ndarray


def _ascending(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows (n,) of points (n, 2), from top to bottom."""
    order = np.argsort(points[:, 1], kind="stable")
    return points[order, 0].astype(np.float64), points[order, 1].astype(np.float64)


def _even(change: np.ndarray, y: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Changes (n,) as a line over the rows: a lane moves as a whole, its noise does not."""
    if used.sum() < 3:
        return np.where(used, change, 0.0)
    slope, offset = np.polyfit(y[used] - y.mean(), change[used], 1)
    return slope * (y - y.mean()) + offset


def _reported(track: _Track, now: float) -> Lane:
    points = np.stack([track.x, track.y], axis=1)[::-1]
    return replace(
        track.lane,
        points=points,
        track=track.number,
        seen=track.last == now,
        age=track.last - track.begin,
    )
