"""One optimiser's backward pass and step, with a scaled loss where fp16 would lose gradients."""

import torch
from torch import Tensor, nn

from segkd.errors import TrainingError

_SMALLEST_SCALE = 2.0**-14


class Stepper:
    """An optimiser and, under fp16, the scale of its loss.

    Gradients below 6e-8 are 0 in fp16. So the loss is multiplied before the backward pass and
    gradients are divided after it. Where one overflows, the step is left out and the scale is
    halved; after many good steps it is doubled. Gradients that processes share overflow on all of
    them at once, so that all leave out the same steps.

    Args:
        optimizer: whose parameters are moved.
        scaler: of ``Runtime.grad_scaler``; it does nothing but in fp16.
        name: for messages.

    Attributes:
        skipped_steps: number of steps that were left out.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, name: str
    ) -> None:
        self.optimizer, self.scaler, self.name, self.skipped_steps = optimizer, scaler, name, 0

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss."""
        self.scaler.scale(loss).backward()

    def step(self, clip: float | None = None) -> bool:
        """Moves the parameters and forgets the gradients.

        Args:
            clip: largest norm of all gradients together; None: any.

        Returns:
            False if a gradient overflowed: then nothing moved.

        Raises:
            TrainingError: gradients overflow at every scale.
        """
        if clip:
            self.scaler.unscale_(self.optimizer)
            groups = self.optimizer.param_groups
            nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], clip)
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
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

    def state_dict(self) -> dict:
        return {"scaler": self.scaler.state_dict(), "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state: dict) -> None:
        """Restores what ``state_dict`` gave; the optimiser has a state of its own."""
        # Version 0.1 called them `left_out`.
        self.skipped_steps = state.get("skipped_steps", state.get("left_out", 0))
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
