"""Full float32 precision for matrix products whose results nearly cancel."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Disables autocast, and TF32 and bfloat16 inside float32 products.

    A compiled function has no switches inside: whoever calls it sets ``ieee_products``.
    """
    if torch.compiler.is_compiling():
        with torch.autocast(device.type, enabled=False):
            yield
        return
    with ieee_products(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def ieee_products() -> Iterator[None]:
    """Disables TF32 and bfloat16 inside float32 products."""
    # At run time torch.backends.mkldnn is an object that has it.
    mkldnn = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    backends = torch.backends.cuda.matmul, mkldnn
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
