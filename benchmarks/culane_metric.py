"""How much faster the CULane metric is than painting lanes on whole images.

    python benchmarks/culane_metric.py [--images 1000] [--style rows|dense] [--workers 0] [--lines]

One thread, made lanes in files, reading included, nothing cached. Prints the processor time per
image of each way, in rounds that take turns, and the ratio of the medians. The ways:

- painted: one-channel canvases of 590x1640, each lane painted once from 50 samples per interval
  with one cv2.line per segment, intersection and union by numpy.
- painted, fast calls: the same with one cv2.polylines per lane and cv2.countNonZero.
- segkd: ``Scorer.score_files``.

All must find the same TP, FP and FN, or the script fails. With ``--workers N``, also the time that
passes on 1 and on N processes (their start included), with and without the annotations kept from
a call before. With ``--lines``, instead, how long lanes take that are painted segment by segment in
any case: straight ones of two points across the image, and splines through few wild points; ours
(OpenCV 4's pixels with any OpenCV) beside the installed OpenCV, which paints whole images.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from segkd.evaluation.culane_files import Scorer
from segkd.metrics.culane import Counts, count_hits
from segkd.metrics.culane_spans import draw
from segkd.metrics.culane_text import Batch, batch_of_lanes

HEIGHT, WIDTH, THICKNESS, SAMPLES = 590, 1640, 30, 50
Row = tuple[int, int, int]


def make_lanes(rng: np.random.Generator, style: str) -> tuple[str, str]:
    """Four annotated lanes towards a vanishing point, and their prediction: lanes as text."""
    vanishing = rng.uniform(700, 940), rng.uniform(230, 270)
    annotated, predicted = [], []
    for bottom in (-500, 400, 1240, 2140):
        bottom, bend = bottom + rng.normal(0, 60), rng.normal(0, 40)

        def curve(y: np.ndarray, bottom: float = bottom, bend: float = bend) -> np.ndarray:
            along = (y - vanishing[1]) / (HEIGHT - vanishing[1])
            return vanishing[0] + (bottom - vanishing[0]) * along + bend * along * (1 - along)

        annotated.append(as_line(curve, np.arange(590, 270, -10.0), "{:.6g}"))
        if rng.random() < 0.04:
            continue
        shift, tilt = rng.normal(0, 5), rng.normal(0, 8)
        rows = np.arange(589, 269, -20.0) if style == "rows" else np.arange(588, 272, -8.0)
        text = "{:.0f}" if style == "rows" else "{:.3f}"
        wrong = rng.normal(0, 1.5, len(rows)) + shift + tilt * np.linspace(0, 1, len(rows))
        predicted.append(as_line(lambda y, c=curve, w=wrong: c(y) + w, rows, text))
    return "".join(annotated), "".join(predicted)


def as_line(curve: Callable, rows: np.ndarray, text: str) -> str:
    columns = curve(rows)
    seen = (columns > -20) & (columns < WIDTH + 20)
    points = zip(columns[seen], rows[seen], strict=True)
    return " ".join(f"{text.format(x)} {y:.0f}" for x, y in points) + " \n"


def write_files(folder: Path, images: int, style: str) -> list[str]:
    """Fills ``annotations`` and ``predictions`` of a folder; returns the entries."""
    rng = np.random.default_rng(0)
    entries = [f"/clip{i // 100:02d}/{i:05d}.jpg" for i in range(images)]
    for entry in entries:
        for side, text in zip(("annotations", "predictions"), make_lanes(rng, style), strict=True):
            file = folder / side / f"{entry[1:-4]}.lines.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return entries


def sampled(points: np.ndarray) -> np.ndarray:
    """Rounded samples (n, 2) int of the natural spline through points (n, 2) float32."""
    rise = np.diff(points, axis=0).astype(np.float64)
    chord = np.sqrt((rise**2).sum(1))
    slope = rise / chord[:, None]
    matrix = np.diag(2 * (chord[:-1] + chord[1:]))
    matrix += np.diag(chord[1:-1], 1) + np.diag(chord[1:-1], -1)
    bend = np.zeros_like(points, np.float64)
    bend[1:-1] = np.linalg.solve(matrix, 6 * np.diff(slope, axis=0))
    h = chord[:, None]
    t = (h / SAMPLES * np.arange(SAMPLES))[:, :, None]
    linear = slope - (2 * h * bend[:-1] + h * bend[1:]) / 6
    cubic = (np.diff(bend, axis=0) / (6 * h))[:, None]
    curve = points[:-1, None] + linear[:, None] * t + bend[:-1, None] / 2 * t**2 + cubic * t**3
    curve = np.concatenate([curve.reshape(-1, 2), points[-1:]]).astype(np.float32)
    return np.rint(curve).astype(int)


def read(file: Path) -> list[np.ndarray]:
    lines = file.read_text().splitlines()
    return [np.array(line.split(), np.float32).reshape(-1, 2) for line in lines]


def paint_segments(points: np.ndarray) -> np.ndarray:
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    path = sampled(points).tolist()
    for begin, end in itertools.pairwise(path):
        cv2.line(canvas, begin, end, 1, THICKNESS)
    return canvas


def paint_path(points: np.ndarray) -> np.ndarray:
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    return cv2.polylines(canvas, [sampled(points).astype(np.int32)], False, 1, THICKNESS)


def iou_of_sums(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def iou_of_counts(a: np.ndarray, b: np.ndarray) -> float:
    shared = cv2.countNonZero(cv2.bitwise_and(a, b))
    return shared / (cv2.countNonZero(a) + cv2.countNonZero(b) - shared)


def painted(folder: Path, entries: list[str], paint: Callable, iou: Callable) -> Row:
    """TP, FP, FN by painting whole images."""
    total = Counts()
    for entry in entries:
        file = f"{entry[1:-4]}.lines.txt"
        annotated = [paint(lane) for lane in read(folder / "annotations" / file)]
        predicted = [paint(lane) for lane in read(folder / "predictions" / file)]
        matrix = [[iou(a, b) for b in predicted] for a in annotated]
        tp = count_hits(matrix, 0.5) if annotated and predicted else 0
        total += Counts(tp, len(predicted) - tp, len(annotated) - tp)
    return total.tp, total.fp, total.fn


def segkd(folder: Path, entries: list[str]) -> Row:
    scorer = Scorer(entries, folder / "annotations", keep=False)
    total = scorer.score_files(folder / "predictions").total
    return total.tp, total.fp, total.fn


def seconds(
    work: Callable[[], object], clock: Callable[[], float] = time.process_time
) -> tuple[float, object]:
    begin = clock()
    result = work()
    return clock() - begin, result


def compare(folder: Path, entries: list[str], rounds: int) -> None:
    """Rounds of entries; in each, all ways take their turn."""
    ways = {
        "painted": lambda part: painted(folder, part, paint_segments, iou_of_sums),
        "painted, fast calls": lambda part: painted(folder, part, paint_path, iou_of_counts),
        "segkd": lambda part: segkd(folder, part),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    found = dict.fromkeys(ways, Counts())
    segkd(folder, entries[:10])  # measures OpenCV's stamps, once per process
    size = -(-len(entries) // rounds)
    for begin in range(0, len(entries), size):
        part = entries[begin : begin + size]
        for name, way in ways.items():
            spent, row = seconds(lambda way=way, part=part: way(part))
            times[name].append(1e3 * spent / len(part))
            found[name] += Counts(*row)
    if len(set(found.values())) > 1:
        raise SystemExit(f"the ways differ: {found}")
    medians = {name: statistics.median(spent) for name, spent in times.items()}
    for name, median in medians.items():
        print(f"{median:9.3f} ms per image   {median / medians['segkd']:7.1f} x   {name}")
    print(f"all: {found['segkd']}, F1 {found['segkd'].f1:.6f}")


def compare_workers(folder: Path, entries: list[str], workers: int) -> None:
    for count in (1, workers):
        scorer = Scorer(entries, folder / "annotations")
        for what in ("", ", annotations kept"):
            spent, _ = seconds(
                lambda s=scorer, n=count: s.score_files(folder / "predictions", workers=n),
                time.perf_counter,
            )
            print(f"{1e3 * spent / len(entries):9.3f} ms per image   {count} process(es){what}")


def compare_lines(lanes: int = 200, rounds: int = 5) -> None:
    rng = np.random.default_rng(0)
    for kind, points in (("two points", 2), ("a spline through 5 points", 5)):
        sets = rng.uniform((-50, -50), (1690, 640), (lanes, points, 2)).astype(np.float32)
        batch = batch_of_lanes([list(sets)])

        def ours(batch: Batch = batch) -> np.ndarray:
            return draw(batch.points, batch.counts, (HEIGHT, WIDTH), THICKNESS).area

        def theirs(sets: np.ndarray = sets) -> np.ndarray:
            paths = [np.rint(lane) if len(lane) == 2 else sampled(lane) for lane in sets]
            canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
            areas = []
            for path in paths:
                canvas[:] = 0
                cv2.polylines(canvas, [path.astype(np.int32)], False, 1, THICKNESS)
                areas.append(cv2.countNonZero(canvas))
            return np.array(areas)

        equal = float((ours() == theirs()).mean())
        times = [(seconds(ours)[0], seconds(theirs)[0]) for _ in range(rounds)]
        own, cv = (1e3 * statistics.median(spent) / lanes for spent in zip(*times, strict=True))
        print(
            f"{kind}: {own:.3f} ms per lane, OpenCV {cv:.3f} ms: {cv / own:.2f} x; "
            f"equal areas: {100 * equal:.1f} %"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--style", choices=("rows", "dense"), default="rows")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--lines", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    if options.lines:
        print(f"OpenCV {cv2.__version__}")
        compare_lines()
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entries = write_files(folder, options.images, options.style)
        print(f"{options.images} images, style {options.style}, OpenCV {cv2.__version__}")
        compare(folder, entries, options.rounds)
        if options.workers:
            compare_workers(folder, entries, options.workers)


if __name__ == "__main__":
    main()
