"""Threads that sleep while they wait, against threads that spin: alone and beside a busy process.

    python benchmarks/threads.py                       as many threads as there are CPUs
    python benchmarks/threads.py --steps 10 --rounds 5

segkd sets `OMP_WAIT_POLICY=passive` before torch is imported; OpenMP's default is to spin. A step
is forward and backward of a small convolution stack, in a process of its own for each way of
waiting. Ways take turns; printed are medians over the rounds of seconds per step (the median
of a process's steps), and their ratio to one thread. The busy process is a loop in Python.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

WAYS = {  # threads (0: all CPUs), and OMP_WAIT_POLICY
    "one thread": (1, "passive"),
    "spinning": (0, None),
    "passive": (0, "passive"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(_seconds_per_step(options.child, options.steps))
        return
    print(f"{options.threads} threads, seconds per step")
    print(f"{'':12}{'alone':>10}{'ratio':>7}{'beside':>10}{'ratio':>7}")
    taken = {beside: _medians(options, beside) for beside in (False, True)}
    for way in WAYS:
        cells = (
            f"{taken[beside][way]:10.3f}{taken[beside][way] / taken[beside]['one thread']:7.2f}"
            for beside in taken
        )
        print(f"{way:12}{''.join(cells)}")


def _medians(options: argparse.Namespace, beside: bool) -> dict[str, float]:
    """Seconds per step of each way."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if beside else None
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    try:
        for _ in range(options.rounds):
            for way, (threads, policy) in WAYS.items():
                seconds[way].append(_in_process(threads or options.threads, policy, options.steps))
    finally:
        if busy is not None:
            busy.kill()
    return {way: statistics.median(values) for way, values in seconds.items()}


def _in_process(threads: int, policy: str | None, steps: int) -> float:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_NUM_THREADS": str(threads)}
    if policy:
        environment["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, sys.argv[0], "--child", str(threads), "--steps", str(steps)]
    return float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


def _seconds_per_step(threads: int, steps: int) -> float:
    import torch  # after the environment has been set

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for before, after, stride in ((3, 32, 2), (32, 64, 2), (64, 64, 1), (64, 64, 1)):
        layers.append(torch.nn.Conv2d(before, after, 3, stride, 1, bias=False))
        layers += [torch.nn.BatchNorm2d(after), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers)
    images = torch.randn(4, 3, 192, 256)
    seconds = []
    for step in range(steps + 2):
        start = time.perf_counter()
        network(images).square().mean().backward()
        if step > 1:  # the first ones allocate
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
