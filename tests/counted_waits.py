"""Counts on the CPU how often a training step would wait for an accelerator.

Tensors of modules and optimisers, what ``.to(device)`` moves, and all that is computed from these
stand for tensors of a device; others stay tensors of the host. What asks a device for numbers is
noted, at each place once per time that it happens. Unlike the check ``no_waiting`` of
``segkd.testing``, which ends at the first place, this runs whole steps with real numbers.
"""

import contextlib
import traceback
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import segkd

# Operations whose result or its shape depends on numbers of the device, read by the host.
READS = {
    "aten::_local_scalar_dense": "reads a number",
    "aten::nonzero": "looks for positions (nonzero, or torch.where with one argument)",
    "aten::masked_select": "selects by a mask",
    "aten::_unique": "unique",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::unique_consecutive": "unique",
    "aten::bincount": "bincount",
    "aten::equal": "compares tensors as a whole",
    "aten::multinomial": "multinomial",
    "aten::_linalg_check_errors": "linear algebra, which checks whether it succeeded",
}
TO_HOST = (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__)
FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
FACTORIES = {torch.zeros, torch.ones, torch.full, torch.empty, torch.arange, torch.eye}
FACTORIES |= {torch.linspace, torch.rand, torch.randn, torch.randint, torch.randperm}


@contextlib.contextmanager
def counted_waits(*tensors):
    """A list that is filled with a line for each wait; ``tensors`` are on the device already."""
    device = _Device()
    for tensor in tensors:
        device.add(tensor)
    with _Operations(device), _Calls(device):
        yield device.waits


class _Device:
    """Which tensors are on the device, by their memory, which is kept so that none is reused."""

    def __init__(self):
        self.waits, self._memory = [], {}

    def add(self, tensor):
        memory = tensor.untyped_storage()
        self._memory[memory._cdata] = memory

    def has(self, tensor):
        return tensor.untyped_storage()._cdata in self._memory

    def wait(self, what):
        self.waits.append(f"{_place()} {what}")


class _Operations(TorchDispatchMode):
    """Results of operations on tensors of the device are there as well; notes what is read."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = any(self.device.has(value) for value in _tensors((args, kwargs)))
        result = func(*args, **kwargs)
        if there:
            self._look(func._schema.name, args, kwargs)
            for value in _tensors(result):
                self.device.add(value)
        return result

    def _look(self, name, args, kwargs):
        if name in READS:
            self.device.wait(READS[name])
        elif name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
            self.device.wait("repeats by a tensor, without output_size")
        elif name in (
            "aten::index",
            "aten::index_put_",
            "aten::index_put",
            "aten::_index_put_impl_",
        ):
            indices = [index for index in args[1] if index is not None]
            if any(not self.device.has(index) for index in indices):
                self.device.wait("indexes with a tensor or list of the host")
            masks = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
            if masks and (name == "aten::index" or args[2].numel() != 1):
                self.device.wait("indexes with a mask")


class _Calls(TorchFunctionMode):
    """Moves between host and device, which on the CPU are no operations."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = self.device
        there = any(device.has(value) for value in _tensors((args, kwargs)))
        if func in TO_HOST and there:
            device.wait(f"brings a tensor to the host ({func.__name__})")
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if func is Tensor.to:
            return self._moved(result, args, kwargs)
        if func in FROM_NUMBERS and kwargs.get("device") is not None:
            data = args[0] if args else kwargs["data"]
            if not isinstance(data, Tensor):
                device.wait("copies numbers to the device")
        if func in FACTORIES and kwargs.get("device") is not None:
            device.add(result)
        return result

    def _moved(self, result, args, kwargs):
        source, others = args[0], [*args[1:], *kwargs.values()]
        if self.device.has(source):
            if "cpu" in [other for other in others if isinstance(other, str)]:
                self.device.wait("brings a tensor to the host (to)")
            return result
        placed = any(
            isinstance(other, torch.device)
            or (isinstance(other, Tensor) and self.device.has(other))
            for other in others
        )
        if not placed:
            return result
        if not kwargs.get("non_blocking"):
            self.device.wait("copies to the device without non_blocking=True")
        copy = result.clone()  # on the CPU `to` returns the same tensor
        self.device.add(copy)
        return copy


def _tensors(values):
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _place():
    """File and line of the innermost frame of the package."""
    root = Path(segkd.__file__).parent
    frames = [f for f in traceback.extract_stack() if f.filename.startswith(str(root))]
    if not frames:
        frames = traceback.extract_stack()[:-3]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} `{frames[-1].line}`:"
