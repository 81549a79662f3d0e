"""Students that fit a budget of parameters or latency, measured on this machine."""

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from segkd.errors import ConfigError, SegKDError
from segkd.evaluation.table import TextTable
from segkd.export import to_onnx
from segkd.export.latency import measure
from segkd.metrics.cost import flops, parameters
from segkd.models.network import Network
from segkd.models.packaged_weights import is_installed
from segkd.pipeline.students import CANDIDATES, candidate

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}
_REPEATS = 10
_ONNX = "ONNX fp32"
Size = tuple[int, int]
Bar = Callable[[int, int], None]


@dataclass(frozen=True)
class Budget:
    """What a student may cost.

    Attributes:
        parameters: largest number; None: any.
        milliseconds: longest latency of one image on the CPU; None: any.
    """

    parameters: int | None = None
    milliseconds: float | None = None

    def __bool__(self) -> bool:
        return self.parameters is not None or self.milliseconds is not None


@dataclass(frozen=True)
class Candidate:
    """A student and its costs.

    Attributes:
        name: as for `--student`.
        parameters: number.
        flops: of one image; None if unknown, or not counted because it has too many parameters.
        milliseconds: median of one image; None if it was not measured.
        pretrained: whether ImageNet weights of its encoder are installed.
        fits: the budget.
    """

    name: str
    parameters: int
    flops: int | None
    milliseconds: float | None
    pretrained: bool
    fits: bool


def number_of(text: str, option: str) -> int:
    """``1.5M`` as 1500000.

    Args:
        text: a number, with k, M or G behind it.
        option: for the message.

    Raises:
        ConfigError: it is no positive number.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?)\s*", text)
    value = float(match[1]) * _UNITS[match[2].lower()] if match else 0
    if value < 1:
        raise ConfigError(f"{option}: got '{text}', expected a number, e.g. 800k, 1M, 3500000")
    return round(value)  # 2.01 · 10⁶ is a little less than 2010000


def candidates(
    budget: Budget,
    num_classes: int,
    size: Size,
    *,
    names: Sequence[str] = CANDIDATES,
    progress: Bar = lambda done, total: None,
) -> list[Candidate]:
    """Measures candidates; those that fit come first, if any, the best choice at the top.

    Latency is measured if the budget has one, on the CPU, of the ONNX file where onnxruntime is
    installed, else of PyTorch. Networks with too many parameters are neither timed, nor are their
    operations counted: both take much longer than counting parameters.

    Args:
        budget: parameters, latency, or both.
        num_classes: of the data.
        size: (height, width) of the images.
        names: of the candidates.
        progress: called with (done, total).
    """
    found, small = [], []
    for number, name in enumerate(names, start=1):
        network = candidate(name, num_classes)
        progress(number, 2 * len(names))
        if network is None:
            continue
        count = parameters(network)
        own = Candidate(name, count, None, None, is_installed(name.partition("/")[2]), False)
        if budget.parameters is None or count <= budget.parameters:
            small.append((own, network))
        else:
            found.append(own)
    for number, (own, network) in enumerate(small, start=1):
        found.append(_measured(own, network, budget, size))
        progress(len(names) + number, len(names) + len(small))
    fitting = [one for one in found if one.fits]
    # Weights at hand are worth more than size: 20 points of mIoU on CamVid in a short training.
    fitting.sort(key=lambda one: (one.pretrained, one.parameters), reverse=True)
    rest = sorted((one for one in found if not one.fits), key=lambda one: one.parameters)
    return [*fitting, *rest]


def require_fitting(rows: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """The candidates that fit.

    Raises:
        ConfigError: none fits; says the nearest.
    """
    fitting = [row for row in rows if row.fits]
    if not fitting:
        raise ConfigError(_none_fits(rows, budget))
    return fitting


def candidates_table(rows: Sequence[Candidate], budget: Budget, size: Size) -> TextTable:
    """The table of candidates; the first row that fits is the choice."""
    timed = budget.milliseconds is not None
    cells = [
        [
            ("→ " if number == 0 and row.fits else "") + row.name,
            f"{row.parameters / 1e6:.2f}",
            "–" if row.flops is None else f"{row.flops / 1e9:.2f}",
            *(["–" if row.milliseconds is None else f"{row.milliseconds:.1f}"] if timed else []),
            "installed" if row.pretrained else "–",
            "yes" if row.fits else "no",
        ]
        for number, row in enumerate(rows)
    ]
    header = ["student", "params M", "GFLOPs", *(["ms"] if timed else []), "ImageNet weights"]
    runtime = f"median of {_REPEATS} images on this CPU, {_runtime()}; " if timed else ""
    notes = [
        f"{runtime}{size[0]}x{size[1]}. Of those that fit, networks with installed ImageNet "
        "weights come first, then larger ones"
    ]
    return TextTable([*header, "fits"], cells, "Students", notes)


def _measured(own: Candidate, network: Network, budget: Budget, size: Size) -> Candidate:
    """A candidate of few enough parameters with its operations, and latency if it is limited."""
    own = replace(own, flops=flops(network, size), fits=True)
    if budget.milliseconds is None:
        return own
    milliseconds = _latency(network, size)
    return replace(own, milliseconds=milliseconds, fits=milliseconds <= budget.milliseconds)


def _latency(network: Network, size: Size) -> float:
    """Median milliseconds of one image."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        if _runtime() == "onnxruntime":
            try:
                path = Path(folder) / "student.onnx"
                files[_ONNX] = to_onnx(network, path, size=size, dynamic=False).path
            except SegKDError:  # it cannot be written as ONNX: PyTorch's time counts
                files = {}
        rows = measure(network, files, size=size, repeats=_REPEATS, openvino=False)
    seconds = rows[-1].median
    assert seconds is not None  # of rows that are not compiled
    return 1e3 * seconds


def _runtime() -> str:
    packages = ("onnx", "onnxscript", "onnxruntime")
    return "onnxruntime" if all(find_spec(name) for name in packages) else "PyTorch"


def _none_fits(found: Sequence[Candidate], budget: Budget) -> str:
    smallest = min(found, key=lambda one: one.parameters)
    parts = []
    if budget.parameters is not None:
        parts.append(f"--max-params {budget.parameters}")
    if budget.milliseconds is not None:
        parts.append(f"--max-latency-ms {budget.milliseconds:g}")
    timed = [one for one in found if one.milliseconds is not None]
    nearest = f"the smallest, {smallest.name}, has {smallest.parameters / 1e6:.2f} M parameters"
    if timed:
        fastest = min(timed, key=lambda one: one.milliseconds or 0)
        nearest = f"the fastest, {fastest.name}, takes {fastest.milliseconds:.1f} ms"
    return (
        f"no student fits {' '.join(parts)}: {nearest}. Raise the budget, or name a network of "
        "your own: --student ARCH/ENCODER"
    )
