"""Traces a bundle with torch.export, and compares exported files with PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from segkd.errors import ConfigError, SegKDError
from segkd.export.bundle import Bake, Bundle, Size, check_size
from segkd.export.same_padding import exportable_same_padding
from segkd.models.network import Network
from segkd.ops.resize import good_size

TOLERANCE = 1e-4  # of logits; relative to the largest one if that exceeds 1
_DISAGREE = 1e-3  # share of pixels whose class may differ because of rounding
_PIXEL = 0.01  # by which points of lanes may differ
_FLIPPED = 0.01  # share of values that may differ by more, if rounding can flip a maximum
_LARGEST = 16384  # pixels
_USUAL = (512, 1024)  # (H, W) where that of the training is not known


@dataclass(frozen=True)
class Exported:
    """A written file, whose outputs have been compared with PyTorch's.

    Attributes:
        path: path of the file.
        difference: largest difference of logits; for baked label maps and points of lanes the
            share of those that differ. Further outputs, like existence, are compared as well.
        shapes: shapes (B, 3, H, W) of the compared images.
        bake: what is baked in.
    """

    path: Path
    difference: float
    shapes: tuple[tuple[int, ...], ...]
    bake: Bake = "normalize"

    @property
    def size(self) -> Size:
        """(H, W) of the first compared images."""
        return self.shapes[0][2], self.shapes[0][3]

    def __str__(self) -> str:
        shapes = " and ".join("x".join(map(str, shape)) for shape in self.shapes)
        share = {"labels": "share of differing pixels", "lanes": "share of differing points"}
        what = share.get(self.bake, "largest difference from PyTorch")
        megabytes = self.path.stat().st_size / 1e6
        return f"{self.path}: {megabytes:.2f} MB, {what} {self.difference:.1e} at {shapes}"


def export_program(bundle: Bundle, size: Size, dynamic: bool) -> ExportedProgram:
    """The traced bundle.

    Args:
        bundle: the network.
        size: (H, W) of the example.
        dynamic: for any batch and any valid size; else for one image of ``size``.

    Raises:
        SegKDError: it cannot be traced, or not for any size.
    """
    images = bundle.example(2 if dynamic else 1, size)  # a batch of 1 would be traced as fixed
    axes: dict[int, object] = {}
    if dynamic:
        axes[0] = Dim("batch", min=1, max=4096)
        if bundle.fixed_size is None:
            axes |= {2: _side("height", bundle, size), 3: _side("width", bundle, size)}
    try:
        with torch.no_grad(), exportable_same_padding():
            program = torch.export.export(bundle, (images,), dynamic_shapes=(axes,), strict=False)
    except Exception as error:  # a traced network may raise anything
        hint = " Try a single size: dynamic=False, `--static`." if dynamic else ""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SegKDError(
            f"{bundle.network.title} cannot be exported at {size[0]}x{size[1]}: {reason}.{hint}"
        ) from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if hasattr(module, "graph") else ():
            node.meta.pop("stack_trace", None)  # contains code and paths of this machine
    return program


def export_size(bundle: Bundle, size: Size) -> Size:
    """``size`` (H, W), or the nearest valid size."""
    return bundle.fixed_size or good_size(size, bundle.divisor)


def traced_size(student: Network, bundle: Bundle, size: Size | None) -> Size:
    """(H, W) at which a student is traced and compared.

    Args:
        student: says at which size it was trained.
        bundle: its exported form.
        size: is brought to the nearest valid one; None: that of the training.

    Raises:
        ConfigError: a size of no pixels, or the file takes images of another size only.
    """
    check_size("size", size)
    fixed = bundle.fixed_size
    if size is not None and fixed is not None and tuple(size) != tuple(fixed):
        height, width = fixed
        helps = "" if bundle.decoder else f", or resize inside the file: --resize {height} {width}"
        raise ConfigError(
            f"size: got {size[0]}x{size[1]}, but the file takes images of {height}x{width} only. "
            f"Leave it (--size) out{helps}"
        )
    info = student.info
    return export_size(bundle, size or info.resize or info.crop or _USUAL)


def compared_shapes(bundle: Bundle, size: Size, dynamic: bool) -> list[tuple[int, ...]]:
    """Shapes (B, 3, H, W) of images to compare: two batches and, if possible, two sizes.

    Args:
        bundle: the network.
        size: (H, W) of the example.
        dynamic: whether the batch, and other sizes, are free.
    """
    first = (1, 3, *size)
    if not dynamic:
        return [first]
    if bundle.fixed_size is not None:
        return [first, (3, 3, *size)]
    least, divisor = _least(bundle, size), bundle.divisor
    smaller = good_size((max(least, size[0] * 5 // 8), max(least, size[1] * 3 // 8)), divisor)
    others = [smaller, (size[0], size[1] + divisor), (2 * size[0], size[1])]
    fitting = (other for other in others if other != size and _runs(bundle, other))
    second = next(fitting, None)
    return [first] if second is None else [first, (3, 3, *second)]


@torch.no_grad()
def compare(
    bundle: Bundle,
    run: Callable[[Tensor], Sequence[np.ndarray]],
    shapes: Sequence[tuple[int, ...]],
) -> float:
    """The largest difference of the first output of the bundle and ``run`` on random images.

    Further outputs must be equal up to rounding, too.

    Args:
        bundle: the network.
        run: runs the exported file on images (B, 3, H, W); returns its outputs in order.
        shapes: shapes of the images.

    Raises:
        SegKDError: outputs differ by more than rounding, or ``run`` fails.
    """
    largest = 0.0
    for seed, shape in enumerate(shapes):
        batch, _, height, width = shape
        images = bundle.example(batch, (height, width), seed)
        expected = [tensor.numpy() for tensor in bundle(images)]
        try:
            found = run(images)
        except Exception as error:  # of the runtime
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise SegKDError(
                f"the exported {bundle.network.title} does not run on images of shape {shape}: "
                f"{reason}. Try a single size: dynamic=False, `--static`"
            ) from error
        named = zip(bundle.output_names, expected, found, strict=True)
        for position, (name, one, other) in enumerate(named):
            difference, most = _difference(name, one, other)
            largest = max(largest, difference) if position == 0 else largest
            if not difference <= most and not (bundle.flips and _few(one, other, most)):
                raise SegKDError(
                    f"the exported {bundle.network.title} differs from PyTorch at shape {shape}: "
                    f"{name} by {difference:.1e}, at most {most:.1e} is rounding. Nothing was "
                    "written. Please report this with the network's configuration"
                )
    return largest


@torch.no_grad()
def _runs(bundle: Bundle, size: Size) -> bool:
    """Whether the bundle runs at ``size``, which not all networks declare completely."""
    try:
        bundle(bundle.example(1, size))
    except (RuntimeError, SegKDError):
        return False
    return True


def _difference(name: str, one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The difference of two outputs, and the largest difference that is rounding."""
    if one.shape != other.shape:
        return float("inf"), 0.0
    if name == "labels":
        return float((one != other).mean()), _DISAGREE
    if name == "points":
        return float((np.abs(one - other) > _PIXEL).mean()), _FLIPPED
    return float(np.abs(one - other).max()), TOLERANCE * max(1.0, float(np.abs(one).max()))


def _few(one: np.ndarray, other: np.ndarray, most: float) -> bool:
    """Whether hardly any values of two outputs differ by more than ``most``, or all by little."""
    if one.shape != other.shape:
        return False
    apart = np.abs(one - other)
    return bool((apart > most).mean() <= _FLIPPED or apart.max() <= 100 * most)


def _side(name: str, bundle: Bundle, size: Size) -> Dim:
    """Any multiple of the divisor from ``_least`` on."""
    divisor = bundle.divisor
    least = max(1, _least(bundle, size) // divisor)
    side = Dim(name, min=least, max=_LARGEST // divisor)
    return divisor * side if divisor > 1 else side


def _least(bundle: Bundle, size: Size) -> int:
    """The smallest side of the images of an exported network."""
    if bundle.resize:
        return 2
    return min(*size, max(bundle.divisor, bundle.network.probe_size()[0] // 2))
