"""Small tensors of positions that are made once per size and device.

Made anew in each step they would be copied from the host each time, which may wait for the device.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def kept(make: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Decorator: a tensor of any shape is made once for each of its arguments, which are hashable.

    Callers must not write into it. Within ``torch.compile`` it is a part of the graph.
    """

    @lru_cache(maxsize=256)
    def once(*args: Any, **kwargs: Any) -> Tensor:
        with torch.inference_mode(False):  # a tensor of inference mode is of no use to autograd
            return make(*args, **kwargs)

    @wraps(make)
    def choose(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        function: Callable[..., Tensor] = make if torch.compiler.is_compiling() else once
        return function(*args, **kwargs)

    return choose
