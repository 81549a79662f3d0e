"""Random triples of methods on unequal networks; as a script, started by torchrun, on processes.

Usage: triples.py FOLDER
"""

import itertools
import random
import sys
from pathlib import Path

import torch
import toy_run

from segkd import registry
from segkd.config.schema import RunConfig
from segkd.engine.setup import assemble
from segkd.engine.trainer import Trainer
from segkd.runtime import Runtime, seed_everything

MOBILE = {
    "arch": "fpn",
    "encoder": "tu-mobilenetv3_small_050",
    "options": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
}
MIT = {"arch": "segformer", "encoder": "mit_b0", "options": {"decoder_segmentation_channels": 16}}
STRIDE_8 = {
    "arch": "deeplabv3",
    "encoder": "tu-mobilenetv3_small_050",  # at this stride a ResNet takes the most time of all
    "options": {"decoder_channels": 16},
}
STRIDE_16 = {"arch": "deeplabv3plus", "encoder": "resnet18", "options": {"decoder_channels": 16}}
PAIRS = ((MOBILE, MIT), (MIT, STRIDE_8), (STRIDE_16, STRIDE_8), (STRIDE_8, STRIDE_16))
NEEDS_LANES = {"ld"}
# Default sizes are those of large images.
SMALL = {
    "cirkd": {"pixel_queue": 160, "region_queue": 40},  # `sskd` doubles the batch
    "crd": {"dim": 8, "queue": 16},
    "holistic": {"width": 4},
    "review_kd": {"width": 8},
}


def triples(number: int) -> list[tuple[tuple[str, ...], tuple[dict, dict]]]:
    """Distinct triples that between them hold every method, each with a pair of networks."""
    draw = random.Random(0)
    names = [name for name in registry.methods.names() if not name.startswith("toy_")]
    names = [name for name in names if name not in NEEDS_LANES]
    # Only one method of a run can rewrite its batches.
    rewriting = [n for n in names if registry.methods.get(n)().needs.rewrites_batch]
    names = [name for name in names if name not in rewriting]
    draw.shuffle(names)
    rest = [tuple(names[i : i + 3]) for i in range(0, len(names) - 2, 3)]
    rest.append(tuple(names[-3:]))
    rest += [(name, *names[2 * i : 2 * i + 2]) for i, name in enumerate(rewriting)]
    others = [t for t in itertools.combinations(names, 3) if t not in rest]
    chosen = [*rest, *draw.sample(others, number - len(rest))]
    return [(triple, PAIRS[turn % len(PAIRS)]) for turn, triple in enumerate(chosen)]


def trainer_of(folder: Path, names: tuple[str, ...], pair: tuple[dict, dict]) -> Trainer:
    """A fresh trainer; called twice, it is the same."""
    student, teacher = pair
    config: RunConfig = toy_run.toy_config(
        folder,
        steps=2,
        data={"name": "toy", "batch_size": 4, "workers": 0, "crop": [64, 64], "scale": [1, 2]},
        student=student,
        teachers={"main": teacher},
        methods={name: SMALL.get(name, {}) for name in names},
        optim={"lr": 0.01, "clip": 1.0},
    )
    runtime = Runtime.start("cpu")
    seed_everything(0, 0)
    trainer = Trainer(config, assemble(config, runtime), runtime)
    seed_everything(0, runtime.rank)
    return trainer


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {**trainer.student.state_dict(), **trainer.objective.state_dict()}


def main(folder: Path) -> None:
    toy_run.register()
    torch.set_num_threads(1)
    for number, (names, pair) in enumerate(triples(20)[:2]):
        trainer = trainer_of(folder, names, pair)
        for _ in trainer.steps():
            pass
        trainer.share_statistics()
        torch.save(state_of(trainer), folder / f"{number}_rank{trainer.runtime.rank}.pt")
    trainer.runtime.stop()  # threads of the process group outlive the interpreter otherwise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
