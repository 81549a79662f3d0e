"""Threads that wait: spinning, sleeping, and as segkd sets them, alone and beside a busy process.

    python benchmarks/threads.py                       as many threads as there are CPUs
    python benchmarks/threads.py --steps 10 --rounds 5

OpenMP's threads spin before they sleep; how long is libgomp's `GOMP_SPINCOUNT`, which commands of
segkd set before torch is imported. Measured are steps of a training (a small FPN, kd and cwd from
the teacher that ships), in a process of its own for each way of waiting. Ways take turns; printed
are medians over the rounds of seconds per step (the median of a process's steps), and their ratio
to one thread. `switches` is how often a second of steps is interrupted by other work, which is what
a run's warning goes by. The busy process is a loop in Python.
"""

import argparse
import os
import statistics
import subprocess
import sys

from segkd.cpus import SPINS, interruptions  # does not import torch

LIBGOMP_SPINS = 300_000  # of libgomp where nothing is set
WAYS = {  # threads (0: all CPUs), and spins
    "one thread": (1, SPINS),
    "spinning": (0, LIBGOMP_SPINS),
    "sleeping": (0, 0),
    "segkd": (0, SPINS),
}
WARM_UP = 3  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(*_of_steps(options.child, options.steps))
        return
    print(f"{options.threads} threads, seconds per step")
    heads = f"{'ratio':>7}{'switches':>10}"
    print(f"{'':12}{'alone':>10}{heads}{'beside':>10}{heads}")
    taken = {beside: _medians(options, beside) for beside in (False, True)}
    for way in WAYS:
        cells = []
        for one in taken.values():
            seconds, switches = one[way]
            cells.append(f"{seconds:10.3f}{seconds / one['one thread'][0]:7.2f}{switches:10.0f}")
        print(f"{way:12}{''.join(cells)}")


def _medians(options: argparse.Namespace, beside: bool) -> dict[str, tuple[float, float]]:
    """Seconds per step and switches per second of each way."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if beside else None
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    try:
        for _ in range(options.rounds):
            for way, (threads, spins) in WAYS.items():
                found[way].append(_in_process(threads or options.threads, spins, options.steps))
    finally:
        if busy is not None:
            busy.kill()
    return {
        way: (statistics.median(s for s, _ in values), statistics.median(n for _, n in values))
        for way, values in found.items()
    }


def _in_process(threads: int, spins: int, steps: int) -> tuple[float, float]:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": str(spins)}
    command = [sys.executable, sys.argv[0], "--child", str(threads), "--steps", str(steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    seconds, switches = done.stdout.split()[-2:]
    return float(seconds), float(switches)


def _of_steps(threads: int, steps: int) -> tuple[float, float]:
    """The median of the seconds of a step, and interruptions per second of all steps."""
    import torch  # after the environment has been set
    from training import seconds_of_steps, small_training

    torch.set_num_threads(threads)
    teacher = {"checkpoint": "pretrained:streets_fpn_mobilenetv3_large"}
    methods: dict[str, dict] = {"kd": {}, "cwd": {}}
    trainer = small_training(steps + WARM_UP, "tu-mobilenetv3_small_050", teacher, methods)
    taken = seconds_of_steps(trainer)
    for _ in range(WARM_UP):
        next(taken)
    before = interruptions()
    found = list(taken)
    return statistics.median(found), (interruptions() - before) / sum(found)


if __name__ == "__main__":
    main()
