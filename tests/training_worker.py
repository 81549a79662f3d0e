"""Started by torchrun from engine/test_distributed.py: trains toys and leaves what came out.

Usage: training_worker.py FOLDER
"""

import sys
from pathlib import Path

import torch
import toy_run

from segkd.engine.run import train_run
from segkd.engine.setup import assemble
from segkd.engine.trainer import Trainer
from segkd.evaluation.evaluator import evaluate_network
from segkd.models.quantized import input_grids
from segkd.runtime import Runtime, seed_everything

# No batch statistics and no dropout: these are per process by design.
STUDENT = {"arch": "toy", "options": {"norm": False}}
METHODS = {
    "kd": {},
    "cwd": {"tap": "stage4", "weight": 1.0, "start": 2},
    "toy_critic": {},
    "holistic": {"width": 3},
    "toy_bank": {},
    "toy_self": {},
    "ft": {"paraphraser_steps": 2},
    "fitnets": {"weight": {"auto": 0.3, "every": 1}},
    "dml": {"peers": {"like": {}, "wide": {"arch": "toy", "options": {"norm": False, "width": 8}}}},
    "kdcl": {"peers": 1},
    "one": {"width": 8},
}


# One labelled image in a step: the second of two processes has none.
UNLABELLED = {
    "data": {
        "name": "toy",
        "batch_size": 4,
        "workers": 0,
        "crop": [32, 48],
        "unlabeled": {"split": "val", "share": 0.75},
    },
    "methods": METHODS | {"dkd": {"pseudo_labels": 0.26}, "cs_kd": {}},
}

# Second derivatives; and a first phase of two steps, whose batch norm is over all nodes.
RELATIONS = {
    "methods": {
        "at": {"form": "gradient"},
        "kd_svd": {},
        "mhgd": {"attention_steps": 2, "grid": [2, 3], "heads": 2},
    }
}


QUANTISED = {
    "quantize": {"bits": 4, "activations": 8, "first_and_last": True},
    "methods": {"kd": {}, "fitnets": {}},
    "ema": 0.9,
}


DRAWN = {
    "teachers": {
        "one": {"ensemble": ["main", "other"], "combine": "random"},
        "all": {"ensemble": ["main", "other"], "combine": "by_loss"},
    },
    "methods": {
        "kd": {"teacher": "one"},
        "weighted": {"method": "kd", "teacher": "all"},
        "fitnets": {"teacher": "main"},
        "second": {"method": "fitnets", "teacher": "other"},
    },
    "steps": 6,
}


def config(folder, **changes):
    keys = {"student": STUDENT, "methods": METHODS, "steps": 4} | changes
    return toy_run.toy_config(folder, **keys)


def trained(folder, others=(), **changes):
    """The weights after four steps in float64, and the confusion matrix on the toy set."""
    run = config(folder, **changes)
    runtime = Runtime.start("cpu")
    seed_everything(0, 0)
    teachers = {"main": toy_run.teacher_net(norm=False).double()}
    teachers |= {name: toy_run.teacher_net(5, 2, norm=False).double() for name in others}
    parts = assemble(run, runtime, teachers=teachers)
    parts.student.double(), parts.objective.double()
    trainer = Trainer(run, parts, runtime)
    for _ in trainer.steps():
        pass
    result = evaluate_network(trainer.student, parts.val_set, run.eval, runtime)
    state = {**trainer.student.state_dict(), **trainer.objective.state_dict()}
    state |= {f"{path}.range": grid.range for path, grid in input_grids(trainer.student).items()}
    return {"state": state, "matrix": result.matrix, "images": result.images}


def main(folder: Path) -> None:
    toy_run.register()
    torch.set_num_threads(1)
    runtime = Runtime.start("cpu")
    plain = trained(folder / "plain")
    accumulated = trained(folder / "accumulated", optim={"lr": 0.05, "accumulate": 2})
    unlabelled = trained(folder / "unlabelled", **UNLABELLED)
    relations = trained(folder / "relations", **RELATIONS)
    quantised = trained(folder / "quantised", **QUANTISED)
    drawn = trained(folder / "drawn", ("other",), **DRAWN)
    summary = train_run(
        config(folder / "run", save_every=2), teachers={"main": toy_run.teacher_net(norm=False)}
    )
    found = {"plain": plain, "accumulated": accumulated, "unlabelled": unlabelled}
    found |= {"relations": relations, "quantised": quantised, "drawn": drawn}
    found["miou"] = summary["miou"]
    torch.save(found, folder / f"rank{runtime.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
