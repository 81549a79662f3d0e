"""Where code would wait for an accelerator, found without one.

Tensors of the ``meta`` device have shapes and no numbers: whatever asks one for a number, or for a
shape that depends on numbers, cannot go on. These are the places where a GPU's queue runs dry. What
waits and yet works on ``meta`` (copies to the device, masked assignments, printing) is watched.
"""

import contextlib
import re
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import segkd

META = torch.device("meta")
# Complaints of the meta device where a GPU would be asked for a number.
_READS = (
    *("Tensor.item", "_local_scalar_dense", "Cannot copy out of meta", "to numpy", "tolist"),
    *("is_nonzero", "aten::equal", "allclose", "data-dependent"),
    *("nonzero", "masked_select", "aten::_?unique", "bincount", "repeat_interleave"),
)
_ELSEWHERE = "is not on the expected device|be on the same device|but found at least two devices"
_HERE = str(Path(__file__).parent)


def cuda_waits(work: Callable[[], object]) -> list[str]:
    """torch's warnings of each time that ``work`` waits for a CUDA device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [str(one.message) for one in seen if "synchroniz" in str(one.message)]


class Unknown(Exception):
    """An operation that the meta device has not, and of which nothing is known."""


def find_waits(work: Callable[[], object]) -> list[str]:
    """Runs ``work`` on meta tensors; one line for each place that waits, at most one that reads.

    Raises:
        Unknown: an operation cannot be looked at.
    """
    found: list[str] = []
    with _Calls(found), _Operations(found), _autocast_knows_meta():
        try:
            work()
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            text, place = str(error).splitlines()[0][:100], _place(error.__traceback__)
            if re.search(_ELSEWHERE, text):
                found.append(f"{place} joins a tensor of the CPU with one of the device: {text}")
            elif re.search("|".join(_READS), text):
                found.append(f"{place} reads numbers from the device: {text}")
            else:
                raise Unknown(f"{text} ({place})") from error
    return list(dict.fromkeys(found))


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's is unannotated
    """Notes operations on meta tensors that would wait on a GPU."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is unannotated
        self._found = found

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs, name = kwargs or {}, func._schema.name
        result = func(*args, **kwargs)
        if name in ("aten::_to_copy", "aten::copy_"):
            source = args[0] if name == "aten::_to_copy" else args[1]
            queued = kwargs.get("non_blocking") or (name == "aten::copy_" and args[2:3] == (True,))
            if not source.is_meta and not queued and _any_meta(result):
                self._note("copies to the device without non_blocking=True")
        elif name in ("aten::index", "aten::index_put_", "aten::index_put") and args[0].is_meta:
            self._look_at_index(name, args)
        return result

    def _look_at_index(self, name: str, args: tuple[Any, ...]) -> None:
        indices = [index for index in args[1] if index is not None]
        if any(not index.is_meta for index in indices):
            self._note("indexes with a tensor of the CPU, which is copied to the device")
        masks = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        if masks and name != "aten::index" and args[2].numel() != 1:
            self._note("assigns by a boolean index, whose positions are read: see torch.where")

    def _note(self, what: str) -> None:
        self._found.append(f"{_place(None)} {what}")


class _Calls(TorchFunctionMode):
    """Notes calls that wait and that no operation shows: numbers made into tensors, printing."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func in (Tensor.__format__, Tensor.__repr__) and _any_meta(args):
            self._found.append(f"{_place(None)} prints numbers of the device")
            return "?"
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor):
            data = args[-1] if args else (kwargs or {}).get("data")
            if not isinstance(data, Tensor) and _any_meta(result):
                what = "copies numbers to the device: torch.full or a buffer has them there"
                self._found.append(f"{_place(None)} {what}")
        return result


def _any_meta(values: object) -> bool:
    return any(isinstance(value, Tensor) and value.is_meta for value in tree_leaves(values))


def _place(trace: TracebackType | None) -> str:
    """File, line and text of the innermost frame that is neither torch's nor this package's."""
    frames = traceback.extract_tb(trace) if trace else traceback.extract_stack()
    torchs = str(Path(torch.__file__).parent)
    own = [f for f in frames if not f.filename.startswith((torchs, _HERE))]
    frame = (own or list(frames))[-1]
    root = str(Path(segkd.__file__).parents[1])
    return f"{frame.filename.removeprefix(root).lstrip('/')}:{frame.lineno} `{frame.line}`"


@contextlib.contextmanager
def _autocast_knows_meta() -> Iterator[None]:
    """``torch.autocast(tensor.device.type, …)`` has no dtype for meta: it takes the CPU's."""
    original = torch.autocast.__init__

    def init(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
        original(self, "cpu" if device_type == META.type else device_type, *args, **kwargs)

    with mock.patch.object(torch.autocast, "__init__", init):
        yield
