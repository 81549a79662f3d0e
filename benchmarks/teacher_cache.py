"""A kd + cwd step with stored outputs of the teacher against plain training, and what it changes.

    python benchmarks/teacher_cache.py                 CPU, or CUDA where there is one
    python benchmarks/teacher_cache.py --agreement     what `cache: images` differs by
    python benchmarks/teacher_cache.py --agreement --run FOLDER --scales 1 1.5 2
                                                       the same for a run's own teacher and crops

Street scenes at 128x256, eight a step, as in the quick start: a small FPN with MobileNetV3-small
learns from the shipped teacher. Four trainings are taken in turns, each with reading and augmenting
its images: `alone` without a teacher, `live` with it, `fill` with a cache that has none of the
outputs yet, `cached` with one that has them all. Ratios are medians over the turns of step / step
alone; the target is 1.15 for `cached`.

`--agreement` compares what `cache: images` gives for crops of training images with the teacher's
outputs for the crops themselves, and both with the labels. `--scales`: the teacher sees the whole
image so many times as large (its `input_scale`), so that its outputs are as fine as for a crop.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from measuring import seconds_of
from torch import Tensor
from training import trainer_of

from segkd.engine.cache_filling import begin_caches
from segkd.engine.signals import Signals
from segkd.engine.trainer import Trainer
from segkd.metrics.confusion import confusion, mean_iou
from segkd.structures import Batch

TARGET = 1.15
TEACHER = {"checkpoint": "pretrained:streets_fpn_mobilenetv3_large"}
STUDENT = {"checkpoint": "pretrained:streets_fpn_mobilenetv3_small"}
BASE = Path(__file__).parent.parent / "configs" / "_base_" / "streets.yaml"
IMAGES = 32
NEVER_FULL = 200  # views, more than steps are measured


def street_run(device: str, cache: dict | None, methods: tuple[str, ...]) -> dict:
    """A training on streets whose decoded scenes stay in memory."""
    base = yaml.safe_load(BASE.read_text())
    return {
        "out": "unused",
        "steps": 1_000_000,
        "student": STUDENT,
        "data": base["data"] | {"train_images": IMAGES, "workers": 0},
        "optim": base["optim"],
        "methods": {name: {} for name in methods},
        "teachers": {"main": TEACHER | ({"cache": cache} if cache else {})} if methods else {},
        "runtime": {"device": device},
    }


def begun(plain: dict) -> Trainer:
    made = trainer_of(plain)
    begin_caches(made, Signals(made.runtime, str), lambda text: print(f"  {text}"))
    return made


def speed(folder: Path, device: str, repeats: int) -> None:
    both = ("kd", "cwd")
    views = {"views": 2, "dir": str(folder / "full")}
    trainings = {
        "alone": street_run(device, None, ()),
        "live": street_run(device, None, both),
        "fill": street_run(device, {"views": NEVER_FULL, "dir": str(folder / "new")}, both),
        "cached": street_run(device, views, both),
    }
    trainings = {name: begun(plain) for name, plain in trainings.items()}
    steps = {name: one.steps() for name, one in trainings.items()}
    filling = views["views"] * IMAGES // trainings["cached"].config.data.batch_size
    for generator in steps.values():  # scenes are drawn once
        for _ in range(filling + 1):
            next(generator)
    for one in trainings.values():
        one.timer.take()
    turns = [
        {name: seconds_of(lambda g=g: next(g), device) for name, g in steps.items()}
        for _ in range(repeats)
    ]
    print(f"\n{'':8}{'ms':>8}{'ratio':>8}{'target':>8}   parts of a step, ms")
    for name, one in trainings.items():
        middle = statistics.median(turn[name] for turn in turns)
        ratio = statistics.median(turn[name] / turn["alone"] for turn in turns)
        parts = ", ".join(f"{k} {1e3 * v / repeats:.0f}" for k, v in one.timer.take().items())
        target = f"{TARGET}" if name == "cached" else ""
        print(f"{name:8}{1e3 * middle:8.0f}{ratio:8.3f}{target:>8}   {parts}")
    cache = trainings["cached"].parts.teachers.caches["main"]
    count, size = cache.source.outputs.size()
    print(f"cached: {count} files, {size / count / 1e3:.0f} kB each; {cache.computed} computed")


def agreement(folder: Path, plain: dict, scales: list[float], batches: int) -> None:
    """Outputs for whole images moved with the crops, beside those of the teacher on the crops."""
    (name,) = plain["teachers"]
    ways: dict[str, Trainer] = {}
    for scale in scales:
        keys = {"cache": {"kind": "images", "dir": str(folder / str(scale))}, "input_scale": scale}
        teacher = {name: plain["teachers"][name] | keys}
        ways[f"moved, {scale:g}"] = begun(plain | {"teachers": teacher})
    made = begun(plain | {"teachers": {name: plain["teachers"][name] | {"cache": None}}})
    loaders = [iter(one._loader(0, batches, workers=0)) for one in (made, *ways.values())]
    found: dict[str, list[dict]] = {"live": [], **{way: [] for way in ways}}
    for own, *others in zip(*loaders, strict=True):
        batch = made._placed(own)
        size = batch.labels.shape[1:]
        with torch.no_grad():
            outputs = {"live": made.parts.teachers(batch.images, batch)[name].logits}
            for (way, one), other in zip(ways.items(), others, strict=True):
                there = one._placed(other)
                outputs[way] = one.parts.teachers(there.images, there)[name].logits
        full = {
            way: F.interpolate(logits.float(), size, mode="bilinear").log_softmax(1)
            for way, logits in outputs.items()
        }
        for way, log in full.items():
            found[way].append(facts(log, full["live"], batch, len(made.parts.train_set.classes)))
    print(f"\n{batches * made.config.data.batch_size} crops, labelled pixels")
    print(f"{'':12}{'KL(live || .)':>14}{'same class':>12}{'NLL of labels':>15}{'mIoU':>7}")
    for way, parts in found.items():
        total = {key: sum(part[key] for part in parts) for key in parts[0]}
        kl, equal, nll = (float(total[key]) / total["pixels"] for key in ("kl", "equal", "nll"))
        score = 100 * mean_iou(total["matrix"])
        print(f"{way:12}{kl:14.4f}{100 * equal:11.1f} %{nll:15.4f}{score:7.2f}")


def facts(log: Tensor, live: Tensor, batch: Batch, classes: int) -> dict:
    """Sums over a batch's labelled pixels; ``log``, ``live``: log-probabilities (B, K, H, W)."""
    labelled = batch.not_padding & (batch.labels != batch.ignore_index)
    labels = batch.labels.long().masked_fill(~labelled, 0)
    kl = (live.exp() * (live - log)).sum(1)
    return {
        "pixels": int(labelled.sum()),
        "kl": kl[labelled].sum(),
        "equal": (log.argmax(1) == live.argmax(1))[labelled].sum(),
        "nll": -log.gather(1, labels.unsqueeze(1)).squeeze(1)[labelled].sum(),
        "matrix": confusion(log.argmax(1), batch.labels, classes, batch.ignore_index),
    }


def run_of(folder: Path, device: str) -> dict:
    """The configuration of a run with one teacher; nothing is written into its folder."""
    plain = yaml.safe_load((folder / "config.yaml").read_text())
    if len(plain.get("teachers") or {}) != 1:
        raise SystemExit(f"{folder}: expected a run with one teacher")
    data = plain["data"] | {"workers": 0, "unlabeled": None}
    return plain | {"out": "unused", "data": data, "runtime": {"device": device}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--agreement", action="store_true", help="of whole-image outputs")
    parser.add_argument("--run", type=Path, help="with --agreement: folder of a run with a teacher")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5, 2.0])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} CPU threads")
    device = arguments.device
    with tempfile.TemporaryDirectory() as folder:
        if arguments.agreement:
            own = arguments.run
            plain = run_of(own, device) if own else street_run(device, None, ("kd",))
            agreement(Path(folder), plain, arguments.scales, arguments.repeats)
            return
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder), device, arguments.repeats)


if __name__ == "__main__":
    main()
