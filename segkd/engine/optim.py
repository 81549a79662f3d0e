"""Optimiser with parameter groups, schedules of learning rate and loss weights, and the EMA.

Schedules are functions of the step, so that a resumed run needs no state for them.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segkd.checkpoint import adopt
from segkd.config.schema import OptimConfig, RunConfig, ScheduleConfig
from segkd.methods.base import Method, MethodConfig
from segkd.models.network import Network

_WARMUP_SHARE = 0.02  # of all steps, in which the layers of a method train alone


def build_optimizer(
    config: OptimConfig, groups: Mapping[str, Sequence[nn.Parameter]]
) -> torch.optim.Optimizer:
    """SGD or AdamW over groups of parameters, each with its own learning rate.

    Each group keeps its full rate as ``base_lr``; ``set_lr`` scales it. torch's fused step updates
    all weights in one call, which is faster for many small layers, also on a CPU.

    Args:
        config: the block ``optim:``.
        groups: parameters of ``encoder``, ``decoder`` and ``adapters``; may be empty.
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
            # torch's fused step allocates the momentum uninitialised, and leaves it so if fp16
            # gradients overflow in the first step.
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


def parameter_groups(network: Network) -> dict[str, list[nn.Parameter]]:
    """The trained parameters of a network as ``encoder`` and ``decoder``."""
    groups: dict[str, list[nn.Parameter]] = {"encoder": [], "decoder": []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[network.group_of(name)].append(parameter)
    return groups


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


def learning_rate(config: RunConfig, step: int) -> float:
    """That of ``step`` (0-based), before the factors of ``optim.lr_factors``."""
    return config.optim.lr * lr_share(config.schedule, step, config.steps)


def _one_cycle(config: ScheduleConfig, step: int, total: int) -> float:
    """Up to the full rate and down again, each along half a cosine.

    Smith, Topin: Super-Convergence, arXiv 1708.07120, with the cosines of torch's OneCycleLR;
    momentum stays constant.
    """
    first = 1.0 / config.div_factor
    top = config.pct_start * total - 1.0
    if step < top:
        begin, end, share = first, 1.0, step / top
    else:
        last = total - 1.0
        begin, end, share = 1.0, first / config.final_div_factor, (step - top) / (last - top)
    return end + (begin - end) * 0.5 * (1.0 + math.cos(math.pi * share))


def require_grad(parameters: Iterable[nn.Parameter], value: bool) -> None:
    """Sets ``requires_grad`` of parameters, of any shape."""
    for parameter in parameters:
        parameter.requires_grad_(value)


def freeze_unreached(module: nn.Module) -> list[str]:
    """Freezes parameters that a backward pass gave no gradient, and clears the gradients.

    Returns:
        Names of the parameters that are frozen now.
    """
    frozen = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.requires_grad_(False)
            frozen.append(name)
        parameter.grad = None
    return frozen


def set_lr(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Sets the learning rate of each group to a share of its full one."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * share


def preparation(method: Method, total: int) -> range | None:
    """The steps (0-based) of ``Method.preparation_steps``; None: there is no such phase."""
    steps = method.preparation_steps(total)
    if steps is None:
        return None
    begin = method.config.start if method.teaches_meanwhile else 0
    return range(begin, begin + steps)


def first_step(method: Method, total: int) -> int:
    """The step (0-based) at which a method begins to teach: `start`, but after its preparation."""
    phase = None if method.teaches_meanwhile else preparation(method, total)
    return max(method.config.start, phase.stop if phase else 0)


def weight_share(config: MethodConfig, step: int, total: int, start: int | None = None) -> float:
    """The share of a method's weight at ``step`` (0-based): start, warm-up, decay to the end.

    ``start`` is that of ``first_step``; None: of the config.
    """
    start = config.start if start is None else start
    if step < start:
        return 0.0
    share = min((step - start + 1) / config.warmup, 1.0) if config.warmup else 1.0
    if config.decay == "none":
        return share
    progress = (step - start) / max(total - start, 1)
    if config.decay == "linear":
        return share * (1.0 - progress)
    return share * 0.5 * (1.0 + math.cos(math.pi * progress))


def adapter_share(config: MethodConfig, step: int, total: int, start: int) -> float:
    """The share of an entry's gradient that reaches the student, whose layers learn alone first.

    Args:
        config: of an entry with layers of its own.
        step: 0-based.
        total: number of steps of the run.
        start: as of ``first_step``.
    """
    length = config.adapter_warmup
    if length is None:
        length = round(_WARMUP_SHARE * total)
    done = step - start
    if not length or done >= 2 * length:
        return 1.0
    return max(done - length + 1, 0) / length


class EMA:
    """An exponential moving average of a network: ``average`` is a full copy in eval mode.

    Parameters are averaged; buffers (batch-norm statistics, counters) are copied. The decay of the
    n-th update is min(decay, (1 + n) / (10 + n)), so that the initial weights are forgotten. All
    tensors are updated in a few calls, and nothing is read from the device or written to it, as
    torch's ``AveragedModel`` does.

    Args:
        network: initial value of the average.
        decay: largest decay.

    Attributes:
        average: the averaged network.
        updates: number of updates so far.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.average = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Moves the average towards the network."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages: list[Tensor] = list(self.average.parameters())
        values: list[Tensor] = list(network.parameters())
        torch._foreach_lerp_(averages, values, 1.0 - decay)
        buffers = list(self.average.buffers()), list(network.buffers())
        if buffers[0]:
            torch._foreach_copy_(*buffers)

    def state_dict(self) -> dict[str, Any]:
        """``updates`` and ``weights``."""
        return {"updates": self.updates, "weights": self.average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what ``state_dict`` returned."""
        self.updates = state["updates"]
        self.average.load_state_dict(adopt(self.average, state["weights"]))
