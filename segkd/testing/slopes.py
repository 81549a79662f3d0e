"""Gradients against finite differences, with everything that is detached held fixed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segkd.testing.check import require

# How far a group is moved. The longer is exact for smooth losses; the shorter crosses no kink, but
# a small gradient drowns in rounding.
_STEPS = (1e-4, 1e-6)
_DIRECTIONS = 2
_RELATIVE, _ROUNDING = 1e-3, 1e-13


class Constants(TorchFunctionMode):
    """What ``detach`` gave in a first pass is given in later ones as well.

    A detached value is a constant to the gradient; finite differences would see it move. Inside
    of a hand-written forward pass, where no gradient is recorded anyway, nothing is held fixed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[Tensor] = []
        self._next: int | None = None

    def replay(self) -> "Constants":
        """For the ``with`` of a later pass."""
        self._next = 0
        return self

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if func is not Tensor.detach or not torch.is_grad_enabled():
            return result
        if self._next is None:
            self._kept.append(result.clone())
            return result
        self._next += 1
        return self._kept[self._next - 1].clone()


def require_slopes(
    loss: Callable[[], Tensor],
    groups: Mapping[str, Sequence[Tensor]],
    module: nn.Module,
) -> None:
    """Raises AssertionError where a gradient differs from central differences.

    Args:
        loss: of the tensors in ``groups``, float64; draws the same random numbers in each call.
        groups: by name, leaves of any shape that are moved together.
        module: whose buffers are as before at each call.
    """
    before = [buffer.clone() for buffer in module.buffers()]
    constants = Constants()

    def at_start() -> None:
        with torch.no_grad():
            for buffer, value in zip(module.buffers(), before, strict=True):
                buffer.copy_(value)

    leaves = [leaf for group in groups.values() for leaf in group]
    with constants:
        total = loss()
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    gradients = {
        id(leaf): torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, found, strict=True)
    }
    draw = torch.Generator().manual_seed(5)

    def slope(group: Sequence[Tensor], ways: Sequence[Tensor], step: float) -> float:
        sides = []
        for sign in (1, -1):
            at_start()
            with _moved(group, ways, sign * step), constants.replay():
                sides.append(loss().item())
        return (sides[0] - sides[1]) / (2 * step)

    for name, group in groups.items():
        size = torch.stack([gradients[id(x)].square().sum() for x in group]).sum().sqrt().item()
        usual = size / sum(leaf.numel() for leaf in group) ** 0.5  # along a random direction
        for _ in range(_DIRECTIONS):
            ways = _direction(group, draw)
            exact = sum(
                (gradients[id(x)] * way).sum().item() for x, way in zip(group, ways, strict=True)
            )
            for step in _STEPS:
                differences = slope(group, ways, step)
                if abs(exact - differences) <= _RELATIVE * usual + _ROUNDING / step:
                    break
            else:
                text = f"along a direction in '{name}' the gradient gives {exact:.6g}, "
                require(False, text + f"finite differences {differences:.6g}")
    at_start()


def _direction(group: Sequence[Tensor], draw: torch.Generator) -> list[Tensor]:
    """A random direction of length 1 in all tensors together."""
    ways = [torch.randn(x.shape, generator=draw, dtype=x.dtype) for x in group]
    length = torch.stack([way.square().sum() for way in ways]).sum().sqrt()
    return [way / length for way in ways]


class _moved:
    """Leaves moved by ``step`` times their directions; afterwards they are as before."""

    def __init__(self, leaves: Sequence[Tensor], ways: Sequence[Tensor], step: float) -> None:
        self._leaves, self._ways, self._step = leaves, ways, step
        self._before = [leaf.detach().clone() for leaf in leaves]

    @torch.no_grad()
    def __enter__(self) -> None:
        for leaf, way in zip(self._leaves, self._ways, strict=True):
            leaf.add_(way, alpha=self._step)

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        for leaf, value in zip(self._leaves, self._before, strict=True):
            leaf.copy_(value)
