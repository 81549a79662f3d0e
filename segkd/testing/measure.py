"""What a method does to a student in some steps, reduced over processes as the engine does."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from segkd.structures import Term
from segkd.testing.cases import Case, backward


def measure(case: Case, steps: int = 2) -> dict[str, Tensor]:
    """Values, gradients and state of some steps, reduced over processes as the engine does."""
    found: dict[str, Tensor] = {}
    method, own = case.method, {id(parameter) for parameter in case.inner}
    for step in range(steps):
        _backward(case, case.terms(), found, f"{step}/")
        for name, leaf in case.leaves().items():
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            found[f"{step}/student.{name}"] = case.runtime.gather(gradient) / case.runtime.world
        others = [p for p in method.named_parameters() if id(p[1]) not in own]
        _collect(case, others, found, f"{step}/")
        if own:
            method.zero_grad()
            _backward(case, case.inner_terms(), found, f"{step}/inner_")
            _collect(case, method.named_parameters(), found, f"{step}/inner_")
        method.zero_grad()
        case = case.fresh(method=method)
        case.after_step()
    found |= {f"state.{name}": value for name, value in method.state_dict().items()}
    return {name: value.detach().cpu() for name, value in found.items()}


def _backward(case: Case, terms: dict[str, Term], found: dict[str, Tensor], prefix: str) -> None:
    parts: list[Tensor] = []
    for name, term in terms.items():
        factor: Tensor | float = 1.0
        if term.count is not None:
            everywhere = case.runtime.all_reduce(term.count).clamp(min=1e-300)
            factor = (term.count / everywhere).to(term.value.dtype) * case.runtime.world
        parts.append(term.value * factor)
        reduced = case.runtime.all_reduce(term.value.detach() * factor)
        found[prefix + name] = reduced / case.runtime.world
    backward(parts)


def _collect(
    case: Case,
    parameters: Iterable[tuple[str, nn.Parameter]],
    found: dict[str, Tensor],
    prefix: str,
) -> None:
    for name, parameter in parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found[prefix + name] = case.runtime.all_reduce(gradient) / case.runtime.world
