"""Batches on their way to the device: one ahead, on a CUDA stream of their own.

While a step computes, the next batch is copied, so that the device does not wait for the bus.
Copies from page-locked memory alone are asynchronous: loaders of runs on CUDA pin their batches.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Moved = TypeVar("Moved")


class Lane(Protocol):
    """Where copies run; a test has its own."""

    def copying(self) -> contextlib.AbstractContextManager[Any]:
        """Within the context, work is queued beside the computation."""
        ...

    def mark(self) -> Any:
        """A mark behind everything that is queued here."""
        ...

    def wait(self, mark: Any, tensors: Iterable[Tensor]) -> None:
        """Computation that is queued from now on begins behind the mark; it uses the tensors, which
        may be of any shape."""
        ...


class CudaLane:
    """A CUDA stream beside that of the computation.

    Args:
        device: of the copies.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._device = device

    def copying(self) -> contextlib.AbstractContextManager[Any]:
        """See ``Lane``."""
        return torch.cuda.stream(self._stream)

    def mark(self) -> torch.cuda.Event:
        """See ``Lane``."""
        return self._stream.record_event()

    def wait(self, mark: torch.cuda.Event, tensors: Iterable[Tensor]) -> None:
        """See ``Lane``. Memory of the tensors, of any shape, is reused behind their computation."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(mark)
        for tensor in tensors:
            if tensor.is_cuda:  # indices of images stay on the host
                tensor.record_stream(computing)


def lane_for(device: torch.device) -> Lane | None:
    """A lane beside the computation; None where there is none, as on a CPU."""
    return CudaLane(device) if device.type == "cuda" else None


class Ahead(Generic[Item, Moved]):
    """The items of an iterator on the device; with a lane, one is always on its way.

    Without a lane, each item is moved when it is asked for. An error of the source is raised where
    its item is asked for, after all earlier items.

    Args:
        source: of items on the host; it is closed together with this object.
        move: brings an item to the device.
        tensors: of a moved item.
        lane: see ``lane_for``.
    """

    def __init__(
        self,
        source: Iterator[Item],
        move: Callable[[Item], Moved],
        tensors: Callable[[Moved], Iterable[Tensor]],
        lane: Lane | None,
    ) -> None:
        self._source, self._move, self._tensors, self._lane = source, move, tensors, lane
        self._items = self._beside(lane) if lane else (move(item) for item in source)

    def __iter__(self) -> Iterator[Moved]:
        return self

    def __next__(self) -> Moved:
        return next(self._items)

    def close(self) -> None:
        """Ends the source, e.g. its loader processes."""
        self._items.close()
        if isinstance(self._source, Generator):
            self._source.close()

    def _beside(self, lane: Lane) -> Generator[Moved, None, None]:
        coming = self._begun(lane)
        while coming is not None:
            moved, mark, host = coming
            error: Exception | None = None
            coming = None
            try:
                coming = self._begun(lane)
            except Exception as reason:  # of the item behind this one
                error = reason
            lane.wait(mark, self._tensors(moved))
            yield moved
            del moved, host  # page-locked memory is free again behind the copy
            if error is not None:
                raise error

    def _begun(self, lane: Lane) -> tuple[Moved, Any, Item] | None:
        """The next item with its copy begun, a mark behind the copy, and the item on the host."""
        try:
            item = next(self._source)
        except StopIteration:
            return None
        with lane.copying():
            moved = self._move(item)
            return moved, lane.mark(), item
