"""What a network costs: parameters, floating point operations, and peak memory of the process.

A multiplication with its addition counts as two operations, as in PyTorch's counter. Papers on
segmentation often call the multiply-adds themselves "FLOPs": half of the number given here.
"""

import contextlib
import sys
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from segkd.ops.mode import eval_mode


def parameters(network: nn.Module) -> int:
    """Number of parameters, shared ones once; auxiliary heads do not count: they are not kept."""
    named = network.named_parameters()
    return sum(value.numel() for name, value in named if "aux_heads" not in name.split("."))


@torch.no_grad()
def flops(network: nn.Module, size: tuple[int, int]) -> int | None:
    """Operations of convolutions and matrix products for one image, in evaluation mode.

    Nothing is computed: shapes alone pass through the network.

    Args:
        network: takes uint8 images (B, 3, H, W).
        size: (H, W) of the image; rounded up to multiples of the network's ``divisor``.

    Returns:
        None if shapes alone do not pass, as in a black box or where values decide.
    """
    divisor = getattr(network, "divisor", 1)
    sides = [-(-side // divisor) * divisor for side in size]
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    device = next((value.device for value in state.values()), torch.device("cpu"))
    counter = FlopCounterMode(display=False)
    with eval_mode(network), FakeTensorMode() as shapes_only:
        fakes = {name: shapes_only.from_tensor(value) for name, value in state.items()}
        image = torch.zeros(1, 3, *sides, dtype=torch.uint8, device=device)
        try:
            with counter:
                functional_call(network, fakes, (image,))
        except (RuntimeError, TypeError):
            return None
    return counter.get_total_flops()


def peak_memory(device: torch.device | str = "cpu") -> int:
    """Largest memory in use since ``reset_peak_memory``, in bytes.

    On CUDA what tensors took, else the resident size of this process. Where a process cannot
    reset its peak (it can on Linux), the value counts from its start.
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
    """Memory in use now, in bytes, as ``peak_memory`` counts it; None where that is not known."""
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/status")
    return _from_status(status, "VmRSS") if status.exists() else None


def _from_status(status: Path, key: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def reset_peak_memory(device: torch.device | str = "cpu") -> None:
    """Forgets the peak so far: that of the CUDA device, or of this process where that goes."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
