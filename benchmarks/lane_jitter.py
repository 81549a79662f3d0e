"""How steady lanes are: points as decoded, with a fit, and followed over frames.

    python benchmarks/lane_jitter.py CLIP --run RUN     # lanes of a student
    python benchmarks/lane_jitter.py CLIP               # bright paint, row by row: no student
    python benchmarks/lane_jitter.py                    # lanes of a drawn drive, with made errors

jitter   mean |x(t) − 2 x(t−1) + x(t−2)| over rows, lanes and frames, in pixels of an image 1,000
         wide: an even motion has none
jumps    share of points that move by more than 5 % of the width from one frame to the next
holes    share of frames in which a lane is absent that is there in most frames
error    mean distance from the true lanes in the same unit; of the drawn drive alone

Ratios are against the points as decoded.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from segkd.inference.lane_fit import Kind, fit_points
from segkd.inference.lane_track import LaneTracker
from segkd.inference.lane_types import Lane

ROWS = 24  # per lane, at which frames are compared
UNIT = 1000.0  # pixels of width
DRAWN = (360, 640)
RATE = 25.0

Frames = list[list[Lane]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", nargs="?")
    parser.add_argument("--run", help="a student of lanes")
    parser.add_argument("--frames", type=int, default=300)
    arguments = parser.parse_args()
    truth: Frames | None = None
    if arguments.clip is None:
        truth, decoded = drawn(arguments.frames)
        size = DRAWN
    else:
        decoded, size = of_clip(arguments.clip, arguments.run, arguments.frames)
    variants: dict[str, Frames] = {"as decoded": decoded}
    for kind in ("poly", "spline"):
        variants[f"--fit {kind}"] = fitted(decoded, size[1], kind)
    variants["--track"] = tracked(decoded, size[1])
    for kind in ("poly", "spline"):
        variants[f"--fit {kind} --track"] = tracked(variants[f"--fit {kind}"], size[1])
    print(f"{len(decoded)} frames of {size[1]}x{size[0]}, {sum(map(len, decoded))} lanes")
    print(
        f"{'':22} {'jitter':>7} {'ratio':>6} {'jumps %':>8} {'holes %':>8}" + " error" * bool(truth)
    )
    first = None
    for name, frames in variants.items():
        jitter, jumps, holes = steadiness(frames, size)
        first = jitter if first is None else first
        line = (
            f"{name:22} {jitter:7.2f} {jitter / first:6.2f} {100 * jumps:8.2f} {100 * holes:8.1f}"
        )
        print(line + (f" {error(frames, truth, size):5.2f}" if truth else ""))


def fitted(frames: Frames, width: int, kind: Kind) -> Frames:
    def curves(lanes: list[Lane]) -> Iterator[Lane]:
        for lane in lanes:
            points = fit_points(lane.points, width, kind)
            if points is not None:
                yield replace(lane, points=points)

    return [list(curves(lanes)) for lanes in frames]


def tracked(frames: Frames, width: int) -> Frames:
    tracker = LaneTracker()
    return [tracker(lanes, width) for lanes in frames]


def columns(frames: Frames, size: tuple[int, int]) -> np.ndarray:
    """(T, L, ROWS) columns by slot, NaN where there is no lane."""
    height, width = size
    rows = np.linspace(0.55, 0.98, ROWS) * height
    slots = 1 + max((lane.slot for lanes in frames for lane in lanes), default=0)
    x = np.full((len(frames), slots, ROWS), np.nan)
    for time, lanes in enumerate(frames):
        for lane in sorted(lanes, key=lambda lane: lane.seen):  # what is seen comes last and stays
            place = lane.points[::-1]
            x[time, lane.slot] = np.interp(
                rows, place[:, 1], place[:, 0], left=np.nan, right=np.nan
            )
    return x * UNIT / width


def steadiness(frames: Frames, size: tuple[int, int]) -> tuple[float, float, float]:
    x = columns(frames, size)
    jitter = np.nanmean(np.abs(np.diff(x, n=2, axis=0)))
    steps = np.abs(np.diff(x, axis=0))
    there = ~np.isnan(x).all(2)
    usual = there.mean(0) > 0.5
    holes = 1 - there[:, usual].mean() if usual.any() else float("nan")
    return (
        float(jitter),
        float((steps > 0.05 * UNIT).sum() / (~np.isnan(steps)).sum()),
        float(holes),
    )


def error(frames: Frames, truth: Frames, size: tuple[int, int]) -> float:
    found, true = columns(frames, size), columns(truth, size)
    common = min(found.shape[1], true.shape[1])
    return float(np.nanmean(np.abs(found[:, :common] - true[:, :common])))


def drawn(number: int) -> tuple[Frames, Frames]:
    """Exact lanes of a drive, and the same with noise, stray rows, zigzags and lost lanes."""
    from segkd.synthetic.roads.drive import Drive

    drive, draw = Drive(0, number / RATE), np.random.default_rng(0)
    truth: Frames = []
    for frame in range(number):
        lanes = drive.lanes(frame / RATE, DRAWN)
        truth.append(
            [Lane(slot, str(slot), at, 1.0) for slot, at in enumerate(lanes) if at is not None]
        )
    return truth, [_disturbed(lanes, draw) for lanes in truth]


def _disturbed(lanes: list[Lane], draw: np.random.Generator) -> list[Lane]:
    found = []
    for number, lane in enumerate(lanes):
        if draw.random() < 0.03:
            continue
        points = lane.points[::4].astype(float)
        points[:, 0] += draw.normal(0, 0.003 * DRAWN[1], len(points))
        other = lanes[number - 1 if number else min(1, len(lanes) - 1)].points
        if draw.random() < 0.15:  # a zigzag to the neighbour
            rows = draw.random(len(points)) < 0.3
            points[rows, 0] = np.interp(points[rows, 1], other[::-1, 1], other[::-1, 0])
        found.append(replace(lane, points=points))
    return found


def of_clip(clip: str, run: str | None, number: int) -> tuple[Frames, tuple[int, int]]:
    from segkd.inference.media import open_source

    detect: Callable[[np.ndarray], list[Lane]] = paint
    if run is not None:
        from segkd.inference.lane_detector import LaneDetector

        detect = LaneDetector(run, overrides=["eval.lanes.fit=null"])
    frames: Frames = []
    size = (0, 0)
    for frame in open_source(clip).frames():
        if frame.image is not None:
            size = frame.image.shape[:2]
            frames.append(detect(frame.image))
        if len(frames) == number:
            break
    return frames, size


def paint(image: np.ndarray) -> list[Lane]:
    """The brightest narrow stripe left and right of the middle, in each of some rows."""
    import cv2

    height, width = image.shape[:2]
    rows = np.linspace(0.98, 0.62, 24) * height
    light = image[..., :2].min(2).astype(np.float32)  # white and yellow, but not blue
    contrast = cv2.blur(light, (max(3, width // 160), 3)) - cv2.blur(light, (width // 12, 3))
    lanes = []
    for slot, (begin, end) in enumerate(((0, width // 2), (width // 2, width))):
        part = contrast[rows.astype(int), begin:end]
        points = np.stack([part.argmax(1) + begin, rows], axis=1)[part.max(1) > 25]
        if len(points) > 1:
            lanes.append(Lane(slot, ("left", "right")[slot], points.astype(float), 1.0))
    return lanes


if __name__ == "__main__":
    main()
