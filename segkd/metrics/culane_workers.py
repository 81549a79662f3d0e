"""Tasks on several processes, results in order."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")

_WORTH = 32  # tasks that outweigh the start of a process


def run_tasks(
    work: Callable[[Task], Outcome], tasks: Sequence[Task], workers: int | None
) -> Iterator[Outcome]:
    """Yields ``work(task)`` for each task, in order.

    Args:
        work: a function that can be pickled.
        workers: processes; 1: this one; None: all cores, as far as there are tasks for them.
    """
    if workers is None:
        workers = min(_cores(), len(tasks) // _WORTH)
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(work, tasks)
        return
    # A fresh interpreter: a fork would copy a process that may hold threads and a GPU.
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread)
    try:
        yield from pool.map(work, tasks)
    finally:  # also where nobody asks for the rest any more
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
