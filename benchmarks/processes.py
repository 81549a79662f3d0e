"""What several processes cost: a step on two against one, and the exchange of nodes.

    python benchmarks/processes.py [--repeats 8]

A step of kd + cwd, and one of cirkd, on four scenes of 128x256: one process with all of them
against two with two each, one thread per process, so that an exchange without cost would be twice
as fast.
Then ``Runtime.gather`` forwards and backwards beside the form with a sum of everything in its
backward pass, as ``torch.distributed.nn.functional.all_gather`` has it with gloo.
"""

import argparse
import statistics
import subprocess
import sys

import torch
import torch.distributed as dist
from measuring import interleaved
from training import seconds_of_steps, small_training

from segkd.runtime import Runtime

METHODS = {"kd + cwd": {"kd": {}, "cwd": {}}, "cirkd": {"cirkd": {}}}
NODES, CHANNELS = 8192, 256
WARM_UP = 3  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--worker", choices=["steps", "gather"])
    parser.add_argument("--methods", choices=METHODS, default="kd + cwd")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker == "steps":
        print(seconds_per_step(METHODS[options.methods], options.repeats))
        return
    if options.worker == "gather":
        compare_gathers(options.repeats)
        return
    print(f"torch {torch.__version__}, one CPU thread per process")
    print(f"{'step':10}  one ms  two ms   ratio")
    for name in METHODS:
        own = ["--worker", "steps", "--methods", name, "--repeats", str(options.repeats)]
        one, two = (1000 * float(outputs(count, own)) for count in (1, 2))
        print(f"{name:10} {one:7.0f} {two:7.0f} {two / one:7.2f}")
    print(outputs(2, ["--worker", "gather", "--repeats", str(options.repeats)]))


def outputs(processes: int, arguments: list[str]) -> str:
    """What rank 0 prints."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*start, "--nproc-per-node", str(processes), sys.argv[0], *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout.strip()


def seconds_per_step(methods: dict, repeats: int) -> str:
    """The median of a process's steps; only rank 0 says it."""
    teacher = {"arch": "fpn", "encoder": "resnet18", "weights": None}
    trainer = small_training(repeats + WARM_UP, "mobilenet_v2", teacher, methods)
    found = list(seconds_of_steps(trainer))[WARM_UP:]
    trainer.runtime.stop()
    return f"{statistics.median(found):.6f}" if trainer.runtime.is_main else ""


class SumOfAll(torch.autograd.Function):
    """The usual form: everything is summed on every process, of which each keeps its part."""

    @staticmethod
    def forward(ctx, rows, rank, world):
        ctx.rank, ctx.world = rank, world
        parts = [torch.empty_like(rows) for _ in range(world)]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient.chunk(ctx.world)[ctx.rank], None, None


def compare_gathers(repeats: int) -> None:
    """Prints times of both forms of an exchange, forwards and backwards."""
    runtime = Runtime.start("cpu")
    rows = torch.randn(NODES, CHANNELS, requires_grad=True)

    def exchange(gather):
        rows.grad = None
        gather(rows).square().sum().backward()

    taken = interleaved(
        {
            "gather": lambda: exchange(runtime.gather),
            "sum of all": lambda: exchange(
                lambda x: SumOfAll.apply(x, runtime.rank, runtime.world)
            ),
        },
        repeats,
        "cpu",
    )
    if runtime.is_main:
        ours, usual = (1000 * taken[name] for name in ("gather", "sum of all"))
        print(f"gather of {NODES} x {CHANNELS}: {ours:.1f} ms, sum of all {usual:.1f} ms, ", end="")
        print(f"ratio {ours / usual:.2f}")
    runtime.stop()


if __name__ == "__main__":
    main()
