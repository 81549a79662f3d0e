"""Networks whose gradient is differentiated once more, for methods that compare gradients."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from segkd.errors import ConfigError

_TORCH_SAYS = ("derivative", "double backward", "differentiate twice")


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Replaces what torch cannot differentiate twice by the same functions that it can.

    Hardsigmoid (MobileNetV3) is made of ReLU6; attention is not fused.
    """
    with _Substitutes(), sdpa_kernel(SDPBackend.MATH):
        yield


class _Substitutes(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.hardsigmoid:
            return _hardsigmoid(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Of any shape; never in place, since callers go on with what is returned."""
    return F.relu6(input + 3) / 6


@contextmanager
def missing_derivatives_explained(entries: Iterable[str]) -> Iterator[None]:
    """Turns torch's errors about second derivatives into a ConfigError.

    Args:
        entries: under ``methods:``, those that differentiate gradients.

    Raises:
        ConfigError: an operation of the student cannot be differentiated twice.
    """
    try:
        yield
    except RuntimeError as error:
        names, text = ", ".join(entries), str(error).splitlines()[0]
        if not names or not any(hint in text for hint in _TORCH_SAYS):
            raise
        raise ConfigError(
            f"methods.{names}: differentiates the student's gradient, and torch cannot do so for "
            f"an operation of this student ({text}). Use another student, or remove this entry"
        ) from error
