"""How hard each method pulls beside the labels, with its default weight, on three pairs.

    python benchmarks/weights.py            prints how hard each method pulls
    python benchmarks/weights.py --write    and stores it for `segkd list weights` and `explain`

A student learns from labels for some hundred steps; in the last of them the layers of all methods
(adapters, critics, banks) learn beside it and teach it nothing. Then the gradient of each method at
the values that it taps is compared with that of the task loss at the same values: norm of the
weighted gradient over norm of the task's, over five batches.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from training import trainer_of

from segkd import registry
from segkd.config.load import load_config
from segkd.engine.run import train_run
from segkd.engine.setup import assemble
from segkd.errors import SegKDError
from segkd.runtime import Runtime, limit_threads

PAIRS = {
    "FPN, MobileNetV3-L → S": {
        "student": {"arch": "fpn", "encoder": "tu-mobilenetv3_small_050"},
        "options": {"decoder_pyramid_channels": 64, "decoder_segmentation_channels": 32},
        "teacher": None,  # the shipped one
        "steps": 150,
    },
    "DeepLabV3, ResNet-50 → 18": {
        "student": {"arch": "deeplabv3", "encoder": "resnet18"},
        "teacher": {"arch": "deeplabv3", "encoder": "resnet50"},
        "steps": 150,
    },
    "SegFormer MiT-B0 → ENet": {
        "student": {"arch": "enet"},
        "teacher": {"arch": "segformer", "encoder": "mit_b0"},
        "steps": 500,  # its logits grow slowly
    },
}
SHIPPED = "pretrained:streets_fpn_mobilenetv3_large"
# All pairs of positions at a small stride take seconds a step on a CPU.
KEYS = {
    "cirkd": {"pool": [12, 24]},
    "freekd": {"token_steps": 40},
    "ft": {"paraphraser_steps": 40},
    "maskd": {"token_steps": 40},
    "mhgd": {"attention_steps": 40},
    "pairwise": {"pool": [12, 24]},
    "review_kd": {"width": 64},
    "sskd": {"head_steps": 40},  # the first phase is over when the pull is measured
}
NOT_HERE = {"ld"}  # of lanes
RESULT = Path(__file__).parent.parent / "segkd" / "method_pulls.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=80, help="in which layers of methods learn")
    parser.add_argument("--teacher-steps", type=int, default=150, help="of teachers made here")
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--pairs", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", default=None)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    names = options.methods or [m.name for m in registry.methods if m.name not in NOT_HERE]
    table: dict[str, dict[str, float]] = {name: {} for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for number in options.pairs:
            title = list(PAIRS)[number]
            for name, pull in measure(PAIRS[title], names, Path(folder) / str(number), options):
                table[name][title] = pull
                weighted = pull * registry.methods.get(name)().weight
                print(f"{title}: {name} {weighted:.3g}", flush=True)
            if options.write:
                store(table)
    if options.write:
        print("segkd list weights --markdown > docs/weights.md")


def store(table: dict[str, dict[str, float]]) -> None:
    """Joins the pulls that were measured to those that are stored, without weights."""
    known = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, found in table.items():
        rounded = {pair: float(f"{pull:.3g}") for pair, pull in found.items()}
        known[name] = known.get(name, {}) | rounded
    RESULT.write_text(json.dumps(known, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def measure(pair: dict, names: list[str], folder: Path, options: argparse.Namespace):
    """(method, unweighted pull) of every method that starts on the pair."""
    config = {
        "data": {
            "name": "streets",
            "batch_size": 4,
            "workers": 0,
            "cache": 1024,
            "crop": [96, 192],
            "scale": [0.75, 1.5],
            "color_jitter": 0.2,
            "train_images": 100,
        },
        "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2},
        "schedule": {"name": "constant", "warmup": 20},
        "eval": {"every": 0, "limit": 20},
        "log": {"tensorboard": False, "every": 50},
        "runtime": {"device": "cpu", "threads": torch.get_num_threads()},
        "student": pair["student"] | {"options": pair.get("options", {})},
        "steps": options.steps,
    }
    teacher = {"checkpoint": SHIPPED}
    if pair["teacher"] is not None:
        out = folder / "teacher"
        changes = {"student": pair["teacher"], "steps": options.teacher_steps, "out": str(out)}
        train_run(load_config(config | changes).run)
        teacher = {"checkpoint": str(out)}
    alone = {"out": str(folder / "alone"), "steps": pair["steps"]}
    train_run(load_config(config | alone).run)
    config |= {"teachers": {"teacher": teacher}, "out": str(folder / "student")}
    config["init_from"] = alone["out"]
    # A warm-up as long as the run, or no start at all: the student learns from labels alone.
    late = {True: {"adapter_warmup": options.steps}, False: {"start": options.steps}}
    methods = dict(startable(config, names))
    for group in grouped(methods):
        config["methods"] = {name: KEYS.get(name, {}) | late[methods[name]] for name in group}
        yield from pulls(config, options)


def pulls(config: dict, options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """(method, unweighted pull) at the end of a run."""
    run = load_config(config).run
    limit_threads(run.runtime.threads, 0)
    trainer = trainer_of(run)
    for _ in trainer.steps():
        if trainer.step == options.steps - options.batches:
            break
    for name, pull in trainer.pulls(options.batches).items():
        if pull is not None:
            yield name, pull


def grouped(names: Iterable[str]) -> Iterator[list[str]]:
    """Methods that are measured in one run; those that rewrite the batch are alone."""
    alone = [name for name in names if registry.methods.get(name)().needs.rewrites_batch]
    together = [name for name in names if name not in alone]
    yield from ([together] if together else [])
    yield from ([name] for name in alone)


def startable(config: dict, names: list[str]) -> Iterator[tuple[str, bool]]:
    """The methods that can be built for the pair, and whether they have layers of their own."""
    runtime = Runtime.start("cpu", "fp32")
    for name in names:
        try:
            run = load_config(config | {"methods": {name: KEYS.get(name, {})}}).run
            method = assemble(run, runtime).objective.methods[name]
        except SegKDError as error:
            print(f"{name}: {error}")
        else:
            yield name, bool(method.trained_parameters())


if __name__ == "__main__":
    main()
