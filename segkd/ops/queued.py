"""Copies of small tensors from the host to a device, without waiting for it.

Random numbers are drawn on the CPU, so that a run has the same ones on every device. A copy of
pageable memory may wait until the device has read it, even with ``non_blocking``; one of pinned
memory is queued behind the work that is there already.
"""

import torch
from torch import Tensor


def queued(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the host on a device, any shape; on the CPU the same tensor.

    Args:
        values: on the host.
        device: where it is needed.
        dtype: of the result; None: as it is.
    """
    if device.type == "cuda" and values.device.type == "cpu" and not torch.compiler.is_compiling():
        values = values.pin_memory()  # torch keeps such memory: only the first ones take time
    return values.to(device, dtype, non_blocking=True)
