"""Started by torchrun from test_contract.py: measures every method on this process's images.

Usage: distributed_worker.py FOLDER, where each rank leaves its results.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from cases import all_methods, config_of

from segkd.runtime import Runtime
from segkd.testing.cases import Case, make_case
from segkd.testing.measure import measure


def scenarios(method_class: type) -> dict[str, Case]:
    """Images whose valid counts differ, and the same with the second half all padding."""
    keys = {"dtype": torch.float64, "config": config_of(method_class)}
    uneven = make_case(method_class, **keys)
    inside = uneven.batch.not_padding.clone()
    inside[(len(inside) + 1) // 2 :] = False
    empty = make_case(method_class, **keys)
    return {
        "uneven": uneven,
        "half empty": replace(empty, batch=empty.batch.replace(not_padding=inside)),
    }


def half(case: Case, rank: int) -> slice:
    """The images of one of two processes."""
    middle = (len(case.batch) + 1) // 2
    return slice(middle) if rank == 0 else slice(middle, None)


def main(folder: Path) -> None:
    runtime = Runtime.start("cpu")
    results = {}
    for name, method_class in all_methods().items():
        print("measuring", name, file=sys.stderr, flush=True)
        results[name] = {
            scenario: measure(replace(case.images(half(case, runtime.rank)), runtime=runtime))
            for scenario, case in scenarios(method_class).items()
        }
    torch.save(results, folder / f"rank{runtime.rank}.pt")
    runtime.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
