"""Started by torchrun from test_contract.py: measures every method on this process's images.

Usage: distributed_worker.py FOLDER, where each rank leaves its results.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from cases import all_methods

from segkd.runtime import Runtime
from segkd.testing.cases import Case, make_case
from segkd.testing.measure import measure


def scenarios(method_class: type) -> dict[str, Case]:
    """Four images whose valid counts differ, and the same with the last two all padding."""
    uneven = make_case(method_class, dtype=torch.float64)
    inside = uneven.batch.not_padding.clone()
    inside[2:] = False
    empty = make_case(method_class, dtype=torch.float64)
    return {
        "uneven": uneven,
        "half empty": replace(empty, batch=empty.batch.replace(not_padding=inside)),
    }


def main(folder: Path) -> None:
    runtime = Runtime.start("cpu")
    share = slice(2 * runtime.rank, 2 * runtime.rank + 2)
    results = {}
    for name, method_class in all_methods().items():
        print("measuring", name, file=sys.stderr, flush=True)
        results[name] = {
            scenario: measure(replace(case.images(share), runtime=runtime))
            for scenario, case in scenarios(method_class).items()
        }
    torch.save(results, folder / f"rank{runtime.rank}.pt")
    runtime.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
