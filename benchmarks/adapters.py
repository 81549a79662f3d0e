"""Do fresh layers of a method (adapters, generators, projectors) harm a student?

    python benchmarks/adapters.py                     every method with layers, three seeds
    python benchmarks/adapters.py --methods fitnets   some of them

200 steps on drawn streets, the quick start's student and shipped teacher, each method with its
default weight, beside the student baseline: same batches, same initial weights. "before" starts
the layers with unit gain and lets them teach from the first step on. Columns: mIoU in percent, its
distance from the baseline in standard deviations of the baseline (over seeds), and the value of
the distillation loss in the last 20 steps.
"""

import argparse
import csv
import itertools
import statistics
import tempfile
from pathlib import Path

import torch

from segkd import registry
from segkd.config.load import load_config
from segkd.engine.run import train_run
from segkd.modules import adapter

METHODS = (
    "fitnets", "defeat", "fgd", "fsp", "mgd", "ofd", "pkd", "review_kd", "crd", "cirkd", "byot",
)  # fmt: skip
KEYS = {"cirkd": {"pool": 2, "pixel_queue": 2000, "region_queue": 200}, "review_kd": {"width": 64}}
STARTS = {"before": (1.0, 0), "now": (adapter.START, None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--starts", nargs="*", default=list(STARTS), choices=STARTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        alone = [_trained(None, seed, options.steps, Path(folder))[0] for seed in options.seeds]
        deviation = statistics.stdev(alone) if len(alone) > 1 else float("nan")
        print(f"baseline {_show(alone)}, standard deviation {deviation:.2f}", flush=True)
        print("| method | weight | start | mIoU % | σ from baseline | last loss |", flush=True)
        print("| :-- | --: | :-- | --: | --: | --: |")
        for name, start in itertools.product(options.methods, options.starts):
            found = [
                _trained(name, seed, options.steps, Path(folder), *STARTS[start])
                for seed in options.seeds
            ]
            scores, losses = zip(*found, strict=True)
            away = (statistics.fmean(scores) - statistics.fmean(alone)) / deviation
            weight = registry.methods.get(name)().weight
            row = f"| {name} | {weight:g} | {start} | {_show(scores)} | {away:+.1f} |"
            print(f"{row} {statistics.fmean(losses):.4g} |", flush=True)


def _trained(
    method: str | None,
    seed: int,
    steps: int,
    folder: Path,
    gain: float = adapter.START,
    warmup: int | None = None,
) -> tuple[float, float]:
    """mIoU in percent, and the sum of the terms of the method in the last 20 steps."""
    out = folder / f"{method}-{seed}-{gain}"
    entry = KEYS.get(method, {}) | ({} if warmup is None else {"adapter_warmup": warmup})
    config = {
        "out": str(out),
        "seed": seed,
        "steps": steps,
        "data": {
            "name": "streets", "batch_size": 4, "workers": 0, "cache": 1024, "resize": [96, 192],
            "crop": [96, 192], "scale": [0.75, 1.5], "color_jitter": 0.2, "train_images": 100,
        },
        "optim": {"name": "adamw", "lr": 2e-3, "weight_decay": 1e-2},
        "schedule": {"name": "poly", "warmup": 20},
        "eval": {"every": 0, "limit": 48},
        "log": {"tensorboard": False, "every": 20},
        "runtime": {"device": "cpu", "threads": torch.get_num_threads()},
        "student": {
            "arch": "fpn",
            "encoder": "tu-mobilenetv3_small_050",
            "options": {
                "decoder_pyramid_channels": 64,
                "decoder_segmentation_channels": 32,
                "decoder_dropout": 0.0,
            },
        },
        "teachers": {"teacher": {"checkpoint": "pretrained:streets_fpn_mobilenetv3_large"}},
        "methods": {method: entry} if method else {},
    }  # fmt: skip
    normal, adapter.START = adapter.START, gain
    try:
        summary = train_run(load_config(config).run, teacher_facts=_FACTS)
    finally:
        adapter.START = normal
    with open(out / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("task/cross_entropy")]
    terms = [float(v) for k, v in rows[-1].items() if k.startswith(f"{method}/") and v]
    return 100 * summary["miou"], sum(terms)


_FACTS: dict[str, dict] = {}  # each teacher is scored once


def _show(scores) -> str:
    return f"{statistics.fmean(scores):.2f} ({', '.join(f'{score:.2f}' for score in scores)})"


if __name__ == "__main__":
    main()
