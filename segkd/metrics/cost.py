"""The cost of a network: parameters, floating point operations, and peak memory of the process.

A multiply-add counts as two operations, as in PyTorch's counter. Papers on segmentation often
report multiply-adds as "FLOPs": half of the number given here.
"""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from segkd.errors import ODD_VALUES
from segkd.ops.mode import eval_mode

_PLAIN = (dict, list, set)  # others, such as frozen dictionaries, may refuse to be set


def parameters(network: nn.Module) -> int:
    """Number of parameters, shared ones once, without auxiliary heads, which are not kept."""
    named = network.named_parameters()
    return sum(value.numel() for name, value in named if "aux_heads" not in name.split("."))


@torch.no_grad()
def flops(network: nn.Module, size: tuple[int, int]) -> int | None:
    """Operations of convolutions and matrix products for one image, in evaluation mode.

    Nothing is computed: only shapes are propagated. What modules keep from it, such as positions of
    a size, is forgotten.

    Args:
        network: takes uint8 images (B, 3, H, W).
        size: (H, W) of the image; rounded up to multiples of the network's ``divisor``.

    Returns:
        The number, or None for networks that shapes cannot be propagated through, e.g. with
        data-dependent control flow, or that refuse this size.
    """
    divisor = getattr(network, "divisor", 1)
    sides = [-(-side // divisor) * divisor for side in size]
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    device = next((value.device for value in state.values()), torch.device("cpu"))
    counter = FlopCounterMode(display=False)
    # Networks may hold tensors that are neither parameters nor buffers
    shapes_only = FakeTensorMode(allow_non_fake_inputs=True)
    with eval_mode(network), _unchanged(network), shapes_only:
        fakes: dict[str, torch.Tensor] = {
            name: shapes_only.from_tensor(value) for name, value in state.items()
        }
        image = torch.zeros(1, 3, *sides, dtype=torch.uint8, device=device)
        try:
            with counter:
                functional_call(network, fakes, (image,))
        except ODD_VALUES:
            return None
    return counter.get_total_flops()


@contextlib.contextmanager
def _unchanged(network: nn.Module) -> Iterator[None]:
    """Afterwards all modules have their previous attributes, also in dictionaries and lists.

    A tensor without data that a module keeps would break its next forward pass.
    """
    attributes = [vars(module) for module in network.modules()]
    held: list[Any] = [value for own in attributes for value in (own, *own.values())]
    before = [(one, one.copy()) for one in held if type(one) in _PLAIN]
    try:
        yield
    finally:
        for one, content in before:
            one.clear()
            if isinstance(one, list):
                one.extend(content)
            else:
                one.update(content)


def peak_memory(device: torch.device | str = "cpu") -> int:
    """Peak memory since ``reset_peak_memory``, in bytes.

    On CUDA the memory of tensors, else the resident size of this process. On systems other than
    Linux, where the peak cannot be reset, it is that since the start of the process.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        return _from_status(status, "VmHWM")
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_in_use(device: torch.device | str = "cpu") -> int | None:
    """Memory currently in use, in bytes, as ``peak_memory`` counts it; None where unknown."""
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/status")
    return _from_status(status, "VmRSS") if status.exists() else None


def _from_status(status: Path, key: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def reset_peak_memory(device: torch.device | str = "cpu", *, collect: bool = False) -> None:
    """Resets the peak of the CUDA device, or of this process where the system allows it.

    Memory of this process that was freed is given back first, so that using it again is counted.

    Args:
        device: as of ``peak_memory``.
        collect: also frees what nothing refers to any more, such as an earlier run of a recipe.
    """
    if collect:
        gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
