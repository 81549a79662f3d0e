"""Two processes in one: threads that exchange tensors, for what a method shares with others."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
WORLD = 2
_PATIENCE = 60.0  # seconds


class OutOfStep(AssertionError):
    """One process waits for the others in another call than they do."""


@dataclass
class _Room:
    """Where both meet; each leaves what it has, and takes what both have."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(WORLD))
    left: dict[int, tuple[str, Tensor]] = field(default_factory=dict)  # by rank

    def exchange(self, rank: int, what: str, tensor: Tensor) -> list[Tensor]:
        self.left[rank] = what, tensor.detach().clone()
        self._wait()
        everything = [self.left[other] for other in range(WORLD)]
        self._wait()  # nobody leaves something new before all have read
        calls = {call for call, _ in everything}
        if len(calls) > 1:
            raise OutOfStep(f"one process calls {' while the other calls '.join(sorted(calls))}")
        return [value for _, value in everything]

    def _wait(self) -> None:
        try:
            self.barrier.wait(_PATIENCE)
        except threading.BrokenBarrierError:
            raise OutOfStep(
                "one process waits in a collective, the other left by an error"
            ) from None


@dataclass(frozen=True)
class ThreadRuntime:
    """One of two processes: the collectives of ``segkd.runtime.Runtime``, on the CPU."""

    rank: int
    room: _Room
    world: int = WORLD

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over processes, of any shape, without gradient."""
        return _sum(self.room.exchange(self.rank, "all_reduce", tensor))

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Sum over processes, of any shape; the gradient is summed over processes, too."""
        return _AllSum.apply(tensor, self)

    def gather(self, tensor: Tensor) -> Tensor:
        """(n, …) of both to (n_1 + n_2, …); the gradient of a part is summed over processes."""
        return _Gather.apply(tensor, self)


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, runtime: ThreadRuntime) -> Tensor:
        ctx.runtime = runtime
        return _sum(runtime.room.exchange(runtime.rank, "all_sum", tensor))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rank, room = ctx.runtime.rank, ctx.runtime.room
        return _sum(room.exchange(rank, "all_sum backward", gradient)), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, runtime: ThreadRuntime) -> Tensor:
        parts = runtime.room.exchange(runtime.rank, "gather", tensor)
        ctx.runtime, ctx.lengths = runtime, [len(part) for part in parts]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        rank, room = ctx.runtime.rank, ctx.runtime.room
        total = _sum(room.exchange(rank, "gather backward", gradient))
        return torch.split(total, ctx.lengths)[rank], None


def _sum(parts: list[Tensor]) -> Tensor:
    """The sum of equal shapes; of bool tensors it is an integer."""
    return sum(parts[1:], 0 + parts[0])


def on_two_processes(work: Callable[[ThreadRuntime], T]) -> list[T]:
    """What ``work`` returns on each of two simulated processes.

    Raises:
        Exception: what it raised on one of them.
    """
    room = _Room()
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRuntime(rank, room))
            room.exchange(rank, "nothing more", torch.zeros(()))
        except BaseException as error:  # told in the caller's thread
            errors.append(error)
            room.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(WORLD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:  # the first is the cause, the other's wait was broken by it
        raise errors[0]
    return [results[rank] for rank in range(WORLD)]
