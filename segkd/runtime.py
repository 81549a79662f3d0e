"""Device, processes, autocast and seeds: with ``collectives``, all that uses torch.distributed."""

import atexit
import contextlib
import hashlib
import inspect
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from segkd import collectives
from segkd.cpus import available_cpus
from segkd.errors import ConfigError, SegKDError

T = TypeVar("T")
HALF_TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The device of this process, and its communication with the others.

    Without torchrun there is one process, and every collective is the identity.

    Attributes:
        device: of this process.
        rank: of this process, from 0.
        world: number of processes.
        half: type of autocast; None: float32 everywhere.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    half: torch.dtype | None = None

    @classmethod
    def single(
        cls, device: str | torch.device = "cpu", half: torch.dtype | None = None
    ) -> "Runtime":
        """One process without a process group."""
        return cls(torch.device(device), half=half)

    @classmethod
    def start(cls, device: str = "auto", precision: str = "fp32") -> "Runtime":
        """Selects the device and, under torchrun, joins the process group.

        Args:
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
            precision: a key of ``HALF_TYPES``.

        Raises:
            ConfigError: the device does not exist here, or cannot compute.
        """
        world, local_rank = (
            int(os.environ.get("WORLD_SIZE", 1)),
            int(os.environ.get("LOCAL_RANK", 0)),
        )
        place = _pick_device(device, local_rank)
        if world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
            atexit.register(_leave_after_success)
        rank = dist.get_rank() if world > 1 else 0
        return cls(place, rank, world, HALF_TYPES[precision])

    @staticmethod
    def rank_here() -> int:
        """The rank of this process, available before ``start``."""
        return int(os.environ.get("RANK", 0))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """Autocast to ``half``."""
        return torch.autocast(self.device.type, self.half, enabled=self.half is not None)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16; the identity in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # -- collectives ---------------------------------------------------------------------------

    def all_reduce(self, tensor: Tensor, op: str = "sum") -> Tensor:
        """Sum (or ``max``) over processes, any shape equal on all, without gradient."""
        if self.world == 1:
            return tensor
        result = tensor.detach().clone()
        dist.all_reduce(result, dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM)
        return result

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Sum over processes, any shape equal on all; the gradient is summed as well."""
        return tensor if self.world == 1 else collectives.all_sum(tensor)

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenates dim 0 over all processes in rank order; lengths may differ.

        Any shape (N, …), with … equal on all. The gradient of a process's part is summed over
        processes.
        """
        return self.gather_rows(tensor)[0]

    def gather_rows(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """``gather`` of tensors with equally many rows (N, …), in one exchange."""
        return tensors if self.world == 1 else collectives.gather(tensors, self.rank, self.world)

    def gather_objects(self, value: T) -> list[T]:
        """The plain value of every process, in rank order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: T) -> T:
        """Rank 0's plain value, on every process."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def on_main(self, compute: Callable[[], T]) -> T:
        """The plain value of ``compute()`` on rank 0, on every process.

        Raises:
            SegKDError: of ``compute``, on every process.
        """
        if self.world == 1:
            return compute()
        results: list[T] = []
        error: SegKDError | None = None
        if self.is_main:
            try:
                results = [compute()]
            except SegKDError as mistake:
                error = mistake
        results, error = self.from_main((results, error))
        if error is not None:
            raise error
        return results[0]

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites the tensors, of any shape equal on all processes, with those of rank 0."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Averages the gradients over processes; a missing one counts as zero."""
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        if self.world == 1:
            return
        for gradients in by_dtype.values():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            flat /= self.world
            parts = flat.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            dist.barrier()

    def stop(self) -> None:
        """Leaves the process group, if any."""
        leave_processes()

    def distribute(self, module: nn.Module) -> nn.Module:
        """The module to call in training: wrapped in DDP if there are several processes."""
        if self.world == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        wrapper = nn.parallel.DistributedDataParallel
        known = inspect.signature(wrapper).parameters
        # torch 2.15 renamed it.
        flag = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        # Gradients are views of the buffers that are exchanged: they are kept once, not twice.
        flags: dict[str, Any] = {flag: False, "gradient_as_bucket_view": True}
        ids = [self.device.index] if self.device.type == "cuda" else None
        return wrapper(module, device_ids=ids, **flags)


def leave_processes() -> None:
    """Leaves the process group, if any: its threads may abort a process that ends before them."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def stay_in_processes() -> None:
    """At its end this process leaves no process group, as if by an uncaught exception.

    After a failure the others may be waiting for this process, and leaving could wait for them.
    """
    atexit.unregister(_leave_after_success)


def _leave_after_success() -> None:
    if not hasattr(sys, "last_value"):  # of an uncaught exception
        leave_processes()


def choose_kernels(*, deterministic: bool) -> None:
    """Lets cuDNN measure which convolution of each shape is the fastest, or takes only operations
    that give the same bits each time: which convolution wins may differ."""
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def limit_threads(threads: int | None = None, loader_processes: int = 0) -> None:
    """Sets the number of torch's CPU threads.

    Args:
        threads: None: this process's share of the CPUs (``available_cpus``) that loader processes
            leave, because more threads than CPUs slow each other down; ``OMP_NUM_THREADS`` takes
            precedence if it is set, as torchrun does for several processes.
        loader_processes: number of loader processes.
    """
    if threads is None and "OMP_NUM_THREADS" in os.environ:
        return
    share = available_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(threads or max(1, share - loader_processes))


def seed_everything(seed: int, rank: int) -> None:
    """Seeds the global generators, differently on each process, e.g. for dropout."""
    mixed = derive_seed(seed, "process", rank)
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.manual_seed(mixed)


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends only on the parts, and is the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator whose seed depends only on the parts."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def rng_state() -> dict[str, Any]:
    """The state of all global generators of this process, as tensors and plain data."""
    state = np.random.get_state()
    assert isinstance(state, tuple)  # a dict only where it is asked for
    kind, keys, position, has_gauss, cached = state
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(words), gauss],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restores a state of ``rng_state``."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Restores the global generators afterwards."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def device_type(name: str) -> str:
    """The type of a device that a configuration names, e.g. ``cpu`` for ``auto`` without CUDA."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name.partition(":")[0]


def _pick_device(name: str, local_rank: int) -> torch.device:
    cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if cuda else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"runtime.device: '{name}' is not a valid device. Use auto, cpu, cuda or cuda:1"
        ) from error
    if device.type == "cuda" and not cuda:
        raise ConfigError(
            f"runtime.device: got '{name}', but this machine has no usable CUDA device. "
            "Use runtime.device=cpu (or auto), or install a CUDA build of torch and its driver"
        )
    if device.type == "cuda":
        index = device.index if device.index is not None else local_rank
        if index >= torch.cuda.device_count():
            raise ConfigError(
                f"runtime.device: there is no cuda:{index} here, only "
                f"{torch.cuda.device_count()} CUDA device(s). Lower --nproc-per-node or the index"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        _require_usable(device, name)
    return device


def _require_usable(device: torch.device, name: str) -> None:
    """Refuses a device that torch knows, but cannot compute on here."""
    try:
        torch.ones(1, device=device).add(1).item()  # also refuses `meta`, which has no values
    except Exception as error:  # each backend raises its own type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
        raise ConfigError(
            f"runtime.device: torch cannot compute on '{name}' here ({reason}). Use auto, cpu, "
            "cuda or cuda:1"
        ) from error
