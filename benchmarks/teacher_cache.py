"""A kd + cwd step with stored outputs of the teacher against plain training, and what it changes.

    python benchmarks/teacher_cache.py                 CPU, or CUDA where there is one
    python benchmarks/teacher_cache.py --agreement     what `cache: images` differs by

Street scenes at 128x256, eight a step, as in the quick start: a small FPN with MobileNetV3-small
learns from the shipped teacher. Four trainings are taken in turns, each with reading and augmenting
its images: `alone` without a teacher, `live` with it, `fill` with a cache that has none of the
outputs yet, `cached` with one that has them all. Ratios are medians over the turns of step / step
alone; the target is 1.15 for `cached`.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from measuring import seconds_of
from training import trainer_of

from segkd.engine.cache_filling import begin_caches
from segkd.engine.signals import Signals
from segkd.engine.trainer import Trainer
from segkd.metrics.confusion import confusion, mean_iou

TARGET = 1.15
TEACHER = {"checkpoint": "pretrained:streets_fpn_mobilenetv3_large"}
STUDENT = {"checkpoint": "pretrained:streets_fpn_mobilenetv3_small"}
BASE = Path(__file__).parent.parent / "configs" / "_base_" / "streets.yaml"
IMAGES = 32
NEVER_FULL = 200  # views, more than steps are measured


def trainer(folder: Path, device: str, cache: dict | None, methods: tuple[str, ...]) -> Trainer:
    """A training on streets whose decoded scenes stay in memory."""
    base = yaml.safe_load(BASE.read_text())
    plain = {
        "out": "unused",
        "steps": 1_000_000,
        "student": STUDENT,
        "data": base["data"] | {"train_images": IMAGES, "workers": 0},
        "optim": base["optim"],
        "methods": {name: {} for name in methods},
        "teachers": {"main": TEACHER | ({"cache": cache} if cache else {})} if methods else {},
        "runtime": {"device": device},
    }
    made = trainer_of(plain)
    begin_caches(made, Signals(made.runtime, str), lambda text: print(f"  {text}"))
    return made


def speed(folder: Path, device: str, repeats: int) -> None:
    both = ("kd", "cwd")
    views = {"views": 2, "dir": str(folder / "full")}
    trainings = {
        "alone": trainer(folder, device, None, ()),
        "live": trainer(folder, device, None, both),
        "fill": trainer(folder, device, {"views": NEVER_FULL, "dir": str(folder / "new")}, both),
        "cached": trainer(folder, device, views, both),
    }
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


def agreement(folder: Path, device: str, batches: int) -> None:
    """Outputs for whole images moved with the crops, beside those of the teacher on the crops."""
    cache = {"kind": "images", "dir": str(folder / "images")}
    made = trainer(folder, device, cache, ("kd",))
    teachers, classes = made.parts.teachers, len(made.parts.train_set.classes)
    total = pixels = equal = 0.0
    counts = {"live": 0, "moved": 0}
    for batch in made._loader(0, batches, workers=0):
        batch = made._placed(batch)
        with torch.no_grad():
            live = teachers.members["main"](batch.images).logits.float()
        moved = teachers(batch.images, batch)["main"].logits
        inside = F.interpolate(batch.not_padding[:, None].float(), live.shape[2:])[:, 0] > 0
        p, q = live.log_softmax(1), moved.log_softmax(1)
        total += float(((p.exp() * (p - q)).sum(1) * inside).sum())
        equal += float(((live.argmax(1) == moved.argmax(1)) & inside).sum())
        pixels += float(inside.sum())
        for name, logits in (("live", live), ("moved", moved)):
            full = F.interpolate(logits, batch.labels.shape[1:], mode="bilinear")
            counts[name] += confusion(full.argmax(1), batch.labels, classes, batch.ignore_index)
    scores = ", ".join(f"{name} {100 * mean_iou(count):.2f}" for name, count in counts.items())
    print(
        f"\n{batches * made.config.data.batch_size} crops: KL(live || moved) {total / pixels:.4f} "
        f"nats a position, the same class at {100 * equal / pixels:.1f} % of them; mIoU of the "
        f"crops: {scores}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--agreement", action="store_true", help="of whole-image outputs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} CPU threads")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.agreement:
            agreement(Path(folder), arguments.device, arguments.repeats)
        else:
            speed(Path(folder), arguments.device, arguments.repeats)


if __name__ == "__main__":
    main()
