"""Optimiser with parameter groups, learning-rate and loss-weight schedules, the student's EMA.

Schedules are functions of the step, so that a resumed run needs no state of theirs.
"""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from segkd.config.schema import OptimConfig, ScheduleConfig
from segkd.methods.base import MethodConfig


def build_optimizer(
    config: OptimConfig, groups: Mapping[str, Sequence[nn.Parameter]]
) -> torch.optim.Optimizer:
    """SGD or AdamW over ``encoder``, ``decoder`` and ``adapters``, each at its own rate.

    Each group keeps its full rate as ``base_lr``; ``set_lr`` scales it. torch's fused step goes
    through all weights in one call: networks of many small layers notice it on a CPU, too.
    """
    factors = config.lr_factors.model_dump()
    param_groups = [
        {"params": list(parameters), "name": name, "base_lr": config.lr * factors[name]}
        for name, parameters in groups.items()
        if parameters
    ]
    if config.name == "sgd":
        optimizer = torch.optim.SGD(
            param_groups,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )
        if config.momentum:
            # torch's fused step takes memory for them as it finds it, and leaves it so where fp16
            # gradients overflow in the first step: the second would add whatever was there.
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.AdamW(
        param_groups,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def lr_share(config: ScheduleConfig, step: int, total: int) -> float:
    """The share of the full learning rate at ``step`` (0-based) of ``total``."""
    progress = min(step / total, 1.0)
    if config.name == "poly":
        share = (1.0 - progress) ** config.power
    elif config.name == "cosine":
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif config.name == "step":
        share = config.gamma ** sum(step >= milestone for milestone in config.milestones)
    elif config.name == "one_cycle":
        share = _one_cycle(config, step, total)
    else:
        share = 1.0
    share = config.min_lr_ratio + (1.0 - config.min_lr_ratio) * share
    return share * min((step + 1) / config.warmup, 1.0) if config.warmup else share


def _one_cycle(config: ScheduleConfig, step: int, total: int) -> float:
    """Up to the full rate and down again, each along half a cosine.

    Smith, Topin: Super-Convergence, arXiv 1708.07120, with cosines as torch's OneCycleLR has
    them; momentum stays constant.
    """
    first = 1.0 / config.div_factor
    top = config.pct_start * total - 1.0
    if step < top:
        begin, end, share = first, 1.0, step / top
    else:
        last = total - 1.0
        begin, end, share = 1.0, first / config.final_div_factor, (step - top) / (last - top)
    return end + (begin - end) * 0.5 * (1.0 + math.cos(math.pi * share))


def set_lr(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * share


def weight_share(config: MethodConfig, step: int, total: int) -> float:
    """The share of a method's weight at ``step``: start gate, warm-up, decay to the end."""
    if step < config.start:
        return 0.0
    share = min((step - config.start + 1) / config.warmup, 1.0) if config.warmup else 1.0
    if config.decay == "none":
        return share
    progress = (step - config.start) / max(total - config.start, 1)
    if config.decay == "linear":
        return share * (1.0 - progress)
    return share * 0.5 * (1.0 + math.cos(math.pi * progress))


class EMA:
    """An exponential moving average of a network: ``average`` is a full copy in eval mode.

    Parameters are averaged; buffers (batch-norm statistics, counters) are copied. The decay rises
    with the number of updates, min(decay, (1 + n) / (10 + n)), so that the start is forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine, theirs = list(self.average.parameters()), list(network.parameters())
        if mine:
            torch._foreach_lerp_(mine, theirs, 1.0 - decay)
        for average, value in zip(self.average.buffers(), network.buffers(), strict=True):
            average.copy_(value)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "weights": self.average.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        self.average.load_state_dict(state["weights"])
