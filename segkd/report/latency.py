"""Latency of several networks for one image on this machine."""

import statistics
import time
from collections.abc import Mapping

import torch
from torch import nn

from segkd.ops.mode import eval_mode
from segkd.runtime import Runtime

_ROUNDS, _WARMUP, _LONGEST = 15, 2, 6.0  # seconds, after which there are no more rounds


@torch.no_grad()
def latencies(
    networks: Mapping[str, nn.Module], size: tuple[int, int], runtime: Runtime
) -> dict[str, float]:
    """Median seconds of each network for one image in eager mode; networks take turns.

    Args:
        networks: on ``runtime.device``.
        size: (H, W) of the image; rounded up to multiples of each network's ``divisor``.
        runtime: device and precision.
    """
    taken: dict[str, list[float]] = {name: [] for name in networks}
    images = {
        name: torch.zeros(1, 3, *_rounded(network, size), dtype=torch.uint8, device=runtime.device)
        for name, network in networks.items()
    }
    begin = time.perf_counter()
    for number in range(_WARMUP + _ROUNDS):
        if number > _WARMUP and time.perf_counter() - begin > _LONGEST:
            break
        for name, network in networks.items():
            with eval_mode(network), runtime.autocast():
                runtime.synchronize()
                start = time.perf_counter()
                network(images[name])
                runtime.synchronize()
            if number >= _WARMUP:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _rounded(network: nn.Module, size: tuple[int, int]) -> list[int]:
    divisor = getattr(network, "divisor", 1)
    return [-(-side // divisor) * divisor for side in size]
