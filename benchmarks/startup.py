"""How long commands that only look something up take, against importing torch.

    python benchmarks/startup.py                     this clone
    python benchmarks/startup.py --also ../earlier   and another one, e.g. a git worktree

Seconds of CPU time (user and system) of whole processes, medians, interleaved; file caches are
warm after a first round that is not counted. The ratio is against ``python -c "import torch"``.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
COMMANDS = (
    "--help",
    "list methods",
    "list models",
    "list datasets",
    "list configs",
    "explain cwd",
    "config show quickstart",
    "config show camvid/kd_cwd",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--also", type=Path, help="root of another clone")
    options = parser.parse_args()
    roots = {"here": HERE} | ({"there": options.also.resolve()} if options.also else {})
    timings: dict[tuple[str, str], list[float]] = {}
    for repeat in range(options.repeats + 1):
        torch = {("torch", ""): _seconds(["-c", "import torch"], HERE)}
        commands = {
            (name, command): _seconds(["-m", "segkd", *command.split()], root)
            for command in COMMANDS
            for name, root in roots.items()
        }
        for key, seconds in (torch | commands).items():
            if repeat:
                timings.setdefault(key, []).append(seconds)
    median = {key: statistics.median(values) for key, values in timings.items()}
    base = median.pop(("torch", ""))
    print(f'python -c "import torch": {base:.2f} s')
    for command in COMMANDS:
        cells = (f"{name} {median[name, command]:.2f} s" for name in roots)
        ratios = (f"{median[name, command] / base:.2f}" for name in roots)
        print(f"{command:<28}{', '.join(cells)}; of importing torch: {', '.join(ratios)}")


def _seconds(arguments: list[str], root: Path) -> float:
    """CPU time of one process, with the package of that clone."""
    environment = os.environ | {"PYTHONPATH": str(root)}
    before = os.times()
    command = [sys.executable, *arguments]
    subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


if __name__ == "__main__":
    main()
