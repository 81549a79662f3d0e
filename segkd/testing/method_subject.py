"""What checks of a method look at, and what they share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from segkd.methods.base import Method, MethodConfig
from segkd.structures import Outputs
from segkd.testing.cases import CELL, Case, CaseOptions, backward, make_case, upsampled
from segkd.testing.check import NotApplicable

F64 = torch.float64


@dataclass(frozen=True)
class MethodSubject:
    """A method's class and configuration; each check builds what it needs anew."""

    kind: type[Method]
    config: MethodConfig

    def case(self, **options: Unpack[CaseOptions]) -> Case:
        """See ``make_case``."""
        return make_case(self.kind, config=self.config, **options)

    @property
    def unbuilt(self) -> Method:
        """A new instance, before ``build``."""
        return self.kind(self.config)

    @property
    def own_layers(self) -> bool:
        """Whether it trains parameters where student and teacher have equal channels."""
        return any(True for _ in self.case(equal=True, channels=(4, 4)).method.parameters())


def run(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """0-d values by term and the student's gradients by tap, after one backward pass."""
    terms = case.terms()
    backward(term.value for term in terms.values())
    gradients = {name: leaf.grad for name, leaf in case.leaves().items()}
    return {name: term.value.detach() for name, term in terms.items()}, gradients


def values(case: Case) -> dict[str, Tensor]:
    """Values by term."""
    return {name: term.value.detach() for name, term in case.terms().items()}


def leave_the_start(method: Method) -> None:
    """Moves all parameters a little: layers that start at zero hide those before them."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=draw))


def same(
    found: object,
    expected: object,
    what: str,
    *,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """Raises AssertionError that begins with ``what`` unless both are close, NaN and type alike."""
    torch.testing.assert_close(
        found,
        expected,
        rtol=rtol,
        atol=atol,
        equal_nan=False,
        msg=lambda text: f"{what}: {text}",
    )


def exactly(found: object, expected: object, what: str) -> None:
    """Raises AssertionError that begins with ``what`` unless both are equal to the last bit."""
    same(found, expected, what, rtol=0, atol=0)


def require_teacher(case: Case) -> Outputs:
    """The teacher's outputs. Raises NotApplicable if there are none."""
    if case.teacher is None:
        raise NotApplicable("it has no teacher")
    return case.teacher


def gradient_at(gradients: Mapping[str, Tensor | None], tap: str) -> Tensor:
    """The gradient of a tap, of its shape. Raises AssertionError if there is none."""
    gradient = gradients[tap]
    if gradient is None:
        raise AssertionError(f"no gradient at '{tap}'")
    return gradient


def hidden_at(positions: Tensor, like: Tensor) -> Tensor:
    """(B, 1, h, w) bool: where ``positions`` (B, H, W), constant in cells, are False."""
    cells = positions[:, ::CELL, ::CELL]
    return ~upsampled(cells, like.shape[-2] // cells.shape[-2]).unsqueeze(1)
