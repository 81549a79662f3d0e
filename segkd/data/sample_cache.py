"""Samples in memory that all loader processes share (``data.cache``).

What one process has read, every other one finds, so that N processes keep N times as many different
images as if each had memory of its own. The memory is a shared mapping that a fork inherits; where
processes are spawned (macOS, Windows), each has its own.
"""

import contextlib
import mmap
import multiprocessing
import pickle
from dataclasses import replace
from typing import Any, Self

import numpy as np

from segkd.data.base import Sample
from segkd.data.packing import SCARCE, array_of, pack, unpack

_SMALLEST = 2**20  # bytes below which no memory is reserved
_USED = 0  # position in the table: bytes that are taken


class SampleCache:
    """Samples by index; once full, it stays as it is. See ``packing`` for what is packed.

    Args:
        length: of the dataset.
        mib: MiB of each process.
        processes: that share it.
    """

    def __init__(self, length: int, mib: int, processes: int) -> None:
        self._arguments = length, mib
        head = 8 * (1 + 2 * length)
        self._memory = _reserved(head, mib * 2**20 * processes)
        self._table = np.frombuffer(self._memory, np.int64, count=1 + 2 * length)
        self._table[_USED] = head
        # Held for a few instructions, so that no process sees half of an entry.
        self._lock: Any = multiprocessing.Lock() if processes > 1 else contextlib.nullcontext()

    def __reduce__(self) -> tuple[type[Self], tuple[int, int, int]]:
        """A spawned process has its own share of the memory."""
        return type(self), (*self._arguments, 1)

    def read(self, index: int) -> Sample | None:
        """The sample, whose image and label may be ``Packed``; None if it is not here."""
        with self._lock:
            start, length = self._table[1 + 2 * index : 3 + 2 * index].tolist()
        if not start:
            return None
        entry = memoryview(self._memory)[start : start + length]
        size = int.from_bytes(entry[:8], "little")
        sample, image, label = pickle.loads(entry[8 : 8 + size])  # written by this run
        data = entry[8 + size :]
        middle = len(data) if label is None else image.size
        ids: Any = None if label is None else unpack(label, data[middle:])
        pixels: Any = unpack(image, data[:middle])
        return replace(sample, image=pixels, label=ids)

    def keep(self, index: int, sample: Sample) -> None:
        """Stores a sample if there is room for it."""
        both = [array_of(part) for part in (sample.image, sample.label) if part is not None]
        # Where not all have room, packing keeps more of them: decoding takes ten times unpacking.
        all_fit = sum(part.nbytes for part in both) * self._arguments[0] < len(self._memory)
        worth = 0 if all_fit else SCARCE
        image, parts = pack(both[0], worth)
        label = None
        if sample.label is not None:
            label, more = pack(both[1], worth)
            parts = parts + more
        nothing: Any = None
        bare = replace(sample, image=nothing, label=nothing)
        head = pickle.dumps((bare, image, label))
        parts = [len(head).to_bytes(8, "little"), head, *parts]
        length = sum(map(len, parts))
        with self._lock:
            start, taken = int(self._table[_USED]), self._table[1 + 2 * index]
            if taken or start + length > len(self._memory):
                return
            self._table[_USED] += length
        at = start
        for part in parts:
            self._memory[at : at + len(part)] = part
            at += len(part)
        with self._lock:
            self._table[1 + 2 * index : 3 + 2 * index] = start, length


def _reserved(head: int, size: int) -> mmap.mmap:
    """Memory that is taken from the machine only where it is written to."""
    while size > _SMALLEST:
        with contextlib.suppress(OSError, OverflowError, ValueError):
            return mmap.mmap(-1, head + size)
        size //= 2  # of more than the machine has, nothing could be kept
    return mmap.mmap(-1, head + size)
