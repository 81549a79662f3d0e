"""Latency of one image: PyTorch eager and compiled, and exported files, in one table.

Runners take turns, so that other load on the machine affects all of them; medians are shown. Every
runner takes uint8 images and returns logits (or label maps), so that normalisation is included.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from segkd.errors import SegKDError
from segkd.evaluation.table import TextTable
from segkd.export.bundle import Bake, Bundle, Size
from segkd.export.lane_decoder import LaneDecoding
from segkd.export.program import export_size
from segkd.metrics.cost import flops, parameters
from segkd.models.network import Network
from segkd.models.onnx_network import open_session
from segkd.models.openvino_session import (
    OpenVinoSession,
    Precision,
    computes_bf16,
    has_openvino,
)

NONE = "–"
EAGER, COMPILED = "PyTorch eager", "PyTorch compiled"
_WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """Latency of one image in one runtime.

    Attributes:
        name: name of the runtime.
        median, fastest: seconds; None if the runtime is not available.
        megabytes: size of the file.
        note: why there are no seconds.
    """

    name: str
    median: float | None
    fastest: float | None = None
    megabytes: float | None = None
    note: str = ""


def measure(
    student: Network,
    files: Mapping[str, Path],
    *,
    size: Size,
    threads: int | None = None,
    repeats: int = 50,
    compiled: bool = False,
    bake: Bake = "normalize",
    resize: Size | None = None,
    lanes: LaneDecoding | None = None,
    openvino: bool = True,
) -> list[Latency]:
    """Times a student and its exported files on the CPU, batch 1.

    Args:
        student: the network; it is not changed.
        files: exported files by title, ``.onnx`` or ``.pt2``, with the same ``bake`` and
            ``resize``.
        size: (H, W) of the image; the nearest valid size is used.
        threads: number of threads of all runtimes; default: torch's.
        repeats: number of rounds; each runner runs once per round.
        compiled: also torch.compile, whose first call may take minutes.
        openvino: also ONNX files by OpenVINO, if it is installed.
        bake, resize, lanes: see ``Bundle``.

    Raises:
        SegKDError: a file cannot be run.
    """
    bundle = Bundle(student, bake, resize, lanes)
    image = bundle.example(1, export_size(bundle, size))
    with _threads(threads), torch.inference_mode():
        runners: dict[str, Callable[[], object]] = {EAGER: lambda: bundle(image)}
        missing = {}
        if compiled:
            try:
                runners[COMPILED] = _compiled(bundle, image)
            except SegKDError as error:
                missing[COMPILED] = Latency(COMPILED, None, note=str(error))
        sizes: dict[str, float] = {}
        for name, path in files.items():
            runners[name] = _exported(Path(path), image)
            sizes[name] = Path(path).stat().st_size / 1e6
        for name, file, precision in _for_openvino(files) if openvino else ():
            sizes[name] = sizes[file]
            try:
                runners[name] = _by_openvino(Path(files[file]), precision, image)
            except SegKDError as error:
                missing[name] = Latency(name, None, note=str(error))
        seconds = interleaved(runners, repeats)
    names = [EAGER, *([COMPILED] if compiled else []), *sizes]
    return [
        missing.get(name)
        or Latency(name, statistics.median(seconds[name]), min(seconds[name]), sizes.get(name))
        for name in names
    ]


def without_openvino() -> str:
    """What to install to have files timed by OpenVINO as well; empty if it is there."""
    if has_openvino():
        return ""
    return "OpenVINO is not installed, and often faster on a CPU: pip install 'segkd[openvino]'"


def interleaved(
    runners: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each call by name, after a warm-up; every round calls each runner once.

    Args:
        runners: functions to time, by name.
        repeats: number of rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(_WARM_UP + repeats):
        for name, run in runners.items():
            start = time.perf_counter()
            run()
            if number >= _WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def latency_table(
    rows: list[Latency],
    student: Network,
    *,
    size: Size,
    threads: int | None,
    repeats: int,
    resize: Size | None = None,
    scores: Mapping[str, float] | None = None,
    score_name: str = "mIoU",
) -> TextTable:
    """A table of latencies with the costs of the network; factors refer to the first row.

    Args:
        rows: as returned by ``measure``.
        student: the network.
        size, threads, repeats, resize: as passed to ``measure``.
        scores: by row, 0 to 1, where known.
        score_name: name of the scores.
    """
    first, scores = rows[0].median, scores or {}
    cells = [
        [
            row.name,
            NONE if row.median is None else f"{1e3 * row.median:.2f}",
            NONE if row.fastest is None else f"{1e3 * row.fastest:.2f}",
            NONE if row.median is None or first is None else f"{first / row.median:.2f}",
            NONE if row.megabytes is None else f"{row.megabytes:.2f}",
            *([f"{100 * scores[row.name]:.2f}" if row.name in scores else NONE] if scores else []),
        ]
        for row in rows
    ]
    operations = flops(student, resize or size)
    resized = f" resized to {resize[0]}x{resize[1]}" if resize else ""
    gflops = NONE if operations is None else f"{operations / 1e9:.2f}"
    notes = [
        f"{parameters(student) / 1e6:.3f} M parameters, {gflops} GFLOPs (a multiply-add as two)",
        f"batch 1, {size[0]}x{size[1]}{resized}, {threads or torch.get_num_threads()} threads, "
        f"{repeats} interleaved rounds, {_processor()}, torch {torch.__version__}",
        *(f"{row.name}: {row.note}" for row in rows if row.note),
        *_fastest(rows),
    ]
    header = ["runtime", "median ms", "fastest ms", "times as fast", "file MB"]
    header += [f"{score_name} %"] if scores else []
    return TextTable(header, cells, f"Latency of {student.title}", notes)


def _exported(path: Path, image: torch.Tensor) -> Callable[[], object]:
    if path.suffix.lower() == ".pt2":
        module = torch.export.load(path).module()
        return lambda: module(image)
    session, feed = open_session(path), {"images": image.numpy()}
    return lambda: session.run(None, feed)


def _for_openvino(files: Mapping[str, Path]) -> Iterator[tuple[str, str, Precision]]:
    """Name of a runner, title of its file, and its precision."""
    if not has_openvino():
        return
    for title, path in files.items():
        if Path(path).suffix.lower() != ".onnx":
            continue
        name = title.replace("ONNX", "OpenVINO") if "ONNX " in title else f"{title}, OpenVINO"
        yield name, title, "f32"
        if "int8" not in title and computes_bf16():
            yield name.replace("fp32", "bf16") if "fp32" in name else f"{name} bf16", title, "bf16"


def _by_openvino(path: Path, precision: Precision, image: torch.Tensor) -> Callable[[], object]:
    session, feed = OpenVinoSession(path, precision), {"images": image.numpy()}
    session.run(None, feed)
    return lambda: session.run(None, feed)


def _fastest(rows: list[Latency]) -> list[str]:
    """The fastest of the files, where there are several."""
    files = [row for row in rows if row.median is not None and row.megabytes is not None]
    if len(files) < 2:
        return []
    best = min(files, key=lambda row: row.median or 0.0)
    return [f"fastest file: {best.name}"]


def _compiled(bundle: Bundle, image: torch.Tensor) -> Callable[[], object]:
    """The compiled bundle after its first call. Raises SegKDError if it cannot be compiled."""
    module = torch.compile(bundle)
    try:
        module(image)
    except Exception as error:  # of dynamo, inductor, or the C++ compiler
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SegKDError(
            f"torch.compile failed ({reason}). It needs a C++ compiler: install g++ or clang"
        ) from error
    return lambda: module(image)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processor() -> str:
    """Number of cores and name of the processor, as far as known."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{os.cpu_count()} cores of {line.partition(':')[2].strip()}"
    return platform.processor() or platform.machine()
