"""Full float32 precision, e.g. for matrix products whose results nearly cancel."""

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
def ieee_products(*, convolutions: bool = False) -> Iterator[None]:
    """Disables TF32 and bfloat16 inside float32 products, and inside convolutions if asked for."""
    # At run time torch.backends.mkldnn is an object that has these.
    mkldnn = torch.backends.mkldnn  # type: ignore[attr-defined]
    backends = [torch.backends.cuda.matmul, mkldnn.matmul]
    if convolutions:
        backends += [torch.backends.cudnn.conv, mkldnn.conv]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
