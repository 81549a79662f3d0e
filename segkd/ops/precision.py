"""Precision of float32 products: full where results nearly cancel, TF32 where that is enough."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
def tf32_products(device: torch.device) -> Iterator[None]:
    """Lets a CUDA device round operands of float32 products to ten bits (TF32), sums stay float32.

    Products are several times as fast. For similarities of unit vectors a divergence changes by
    less than a thousandth, with bfloat16's seven bits by up to some hundredths. Without autocast;
    a precision that was chosen before, e.g. by ``ieee_products``, stays.
    """
    backend = torch.backends.cuda.matmul
    with torch.autocast(device.type, enabled=False):
        # A compiled function has no switches inside.
        free = not torch.compiler.is_compiling() and device.type == "cuda"
        if not free or backend.fp32_precision != "none":
            yield
            return
        try:
            backend.fp32_precision = "tf32"
            yield
        finally:
            backend.fp32_precision = "none"


@contextmanager
def ieee_products(*, convolutions: bool = False) -> Iterator[None]:
    """Disables TF32 and bfloat16 inside float32 products, and inside convolutions if asked for."""
    known: Any = torch.backends  # its parts are objects only at run time
    backends = [known.cuda.matmul, known.mkldnn.matmul]
    if convolutions:
        backends += [known.cudnn.conv, known.mkldnn.conv]
    for backend in backends:
        _begin(backend)
    try:
        yield
    finally:
        for backend in backends:
            _end(backend)


# The setting is the process's: of several threads, the first keeps what was there, and the last
# restores it. By backend, the number of blocks it is in, and the precision before them.
_lock = threading.Lock()
_blocks: dict[int, tuple[int, str]] = {}


def _begin(backend: Any) -> None:
    with _lock:
        number, before = _blocks.get(id(backend), (0, ""))
        _blocks[id(backend)] = number + 1, before if number else backend.fp32_precision
        backend.fp32_precision = "ieee"


def _end(backend: Any) -> None:
    with _lock:
        number, before = _blocks[id(backend)]
        _blocks[id(backend)] = number - 1, before
        if number == 1:
            backend.fp32_precision = before
