"""Backward pass and step of one optimiser, with loss scaling under fp16."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from segkd.errors import TrainingError

_SMALLEST_SCALE = 2.0**-14


class Stepper:
    """An optimiser and, under fp16, the scale of its loss.

    Gradients below 6e-8 are 0 in fp16. So the loss is multiplied before the backward pass and
    gradients are divided after it. If one overflows, the step is skipped and the scale is halved;
    after many good steps it is doubled. Reduced gradients overflow on all processes at once, so
    that all skip the same steps.

    Args:
        optimizer: updates the parameters.
        others: optimisers of further networks that learn in the same backward passes.
        scaler: of ``Runtime.grad_scaler``; it has an effect in fp16 only.
        name: used in messages.

    Attributes:
        skipped_steps: number of skipped steps.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        name: str,
        others: Iterable[torch.optim.Optimizer] = (),
    ) -> None:
        self.optimizer, self.scaler, self.name, self.skipped_steps = optimizer, scaler, name, 0
        self.others = tuple(others)

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the first optimiser."""
        return [one for group in self.optimizer.param_groups for one in group["params"]]

    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradients of a 0-d loss."""
        self.scaler.scale(loss).backward()

    def step(self, clip: float | None = None) -> bool:
        """Updates the parameters and clears the gradients.

        Args:
            clip: largest norm of all gradients of an optimiser together; None: no clipping.

        Returns:
            False if a gradient overflowed and the step of its optimiser was skipped.

        Raises:
            TrainingError: gradients overflow at every scale.
        """
        # A step in which nothing teaches the student yet has no loss: gradients are none or zero.
        found = {one: _gradient(one) for one in (self.optimizer, *self.others)}
        moved = [one for one, gradient in found.items() if gradient is not None]
        if moved:
            device = next(one.device for one in found.values() if one is not None)
            self.scaler.scale(torch.zeros((), device=device))  # makes a scale
        before = self.scaler.get_scale()
        for optimizer in moved:
            if clip:
                self.scaler.unscale_(optimizer)
                groups = optimizer.param_groups
                nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], clip)
            self.scaler.step(optimizer)
        if moved:
            self.scaler.update()
        for optimizer in moved:
            optimizer.zero_grad(set_to_none=True)
        scale = self.scaler.get_scale()
        if scale >= before:
            return True
        self.skipped_steps += 1
        if scale < _SMALLEST_SCALE:
            raise TrainingError(
                f"the gradients of {self.name} overflow in fp16 at every scale of the loss. Set "
                "runtime.precision=bf16 or fp32, or lower optim.lr"
            )
        return False

    def state_dict(self) -> dict[str, Any]:
        """State of the scaler, and the number of skipped steps; without the optimiser's."""
        return {"scaler": self.scaler.state_dict(), "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        # Version 0.1 called it `left_out`.
        self.skipped_steps = state.get("skipped_steps", state.get("left_out", 0))
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def _gradient(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """The first gradient of its parameters, of any shape; None without any."""
    parameters = (one for group in optimizer.param_groups for one in group["params"])
    return next((one.grad for one in parameters if one.grad is not None), None)
