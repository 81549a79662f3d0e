"""What a network costs: parameters, floating point operations, and peak memory of the process.

A multiplication with its addition counts as two operations, as in PyTorch's counter. Papers on
segmentation often call the multiply-adds themselves "FLOPs": half of the number given here.
"""

import sys

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from segkd.evaluation.mode import eval_mode


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
    """Largest memory in use so far, in bytes.

    On CUDA what tensors took since ``reset_peak_memory``; else the resident size of the process
    since its start. The latter cannot be reset, so a run that follows a larger one in the same
    process reports at least the larger one's peak: compare runs in processes of their own.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory(device: torch.device | str = "cpu") -> None:
    """Forgets the peak of a CUDA device; nothing to do elsewhere."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
