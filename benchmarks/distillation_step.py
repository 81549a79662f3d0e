"""A whole distillation step against the teacher's forward pass and a lone student's step.

    python benchmarks/distillation_step.py                          CPU, or CUDA where there is one
    python benchmarks/distillation_step.py --methods kd,cwd --repeats 10

DeepLabV3 ResNet-101 teaches DeepLabV3 ResNet-18 (random weights: they change no time): 2 images of
256x512 on a CPU, 8 of 512x1024 on a GPU. A step is the Trainer's own, with everything but reading
images: teacher, student, losses, backward, update, a critic's step, banks. The three are taken in
turns; `ratio` is step / (teacher + lone step), median over the turns. `critic` is the share of the
step in which a method trains a critic of its own. Targets are 1.05 for losses on logits and for
pair-wise affinity, 1.25 for cirkd on 2x2 windows.
"""

import argparse
import statistics

import torch
from measuring import seconds_of
from training import trainer_of

from segkd.config.load import load_config
from segkd.config.schema import RunConfig
from segkd.structures import Batch

TARGETS = {"kd": 1.05, "cwd": 1.05, "pairwise": 1.05, "cirkd": 1.25, "holistic": None}
OPTIONS = {"cirkd": {"pool": 2}}
CLASSES = 19


def configuration(
    methods: dict, images: int, size: tuple[int, int], device: str, precision: str = ""
) -> RunConfig:
    precision = precision or ("bf16" if device.startswith("cuda") else "fp32")
    teachers = {"main": {"arch": "deeplabv3", "encoder": "resnet101"}} if methods else {}
    plain = {
        "out": "unused",
        "steps": 10_000,
        "data": {"name": "streets", "batch_size": images, "workers": 0, "crop": list(size)},
        "student": {"arch": "deeplabv3", "encoder": "resnet18"},
        "teachers": teachers,
        "methods": methods,
        "runtime": {"device": device, "precision": precision},
    }
    return load_config(plain).run


class Steps:
    """A Trainer whose batches are made beforehand."""

    def __init__(self, methods: dict, images: int, size: tuple[int, int], device: str) -> None:
        self.trainer = trainer_of(self.configuration(methods, images, size, device))
        self.batch = random_batch(images, size).to(self.trainer.runtime.device)
        self._all_train()

    def configuration(
        self, methods: dict, images: int, size: tuple[int, int], device: str
    ) -> RunConfig:
        """The run whose steps are taken."""
        return configuration(methods, images, size, device)

    def train(self) -> None:
        """A step as between two lines of the log, in which no loss is read."""
        self.trainer._train_step([self.batch])
        self.trainer.step += 1

    def step(self) -> None:
        """A step whose losses are read, so that what is kept of them does not grow."""
        self.train()
        self.trainer.tally.check()

    def teacher(self) -> None:
        self.trainer.parts.teachers(self.batch.images)

    def critic_share(self, repeats: int, seconds: float) -> float | None:
        """The share of a step's ``seconds`` that own steps take; None without such a method."""
        if not self.trainer.own:
            return None
        taken, inner_steps = [], self.trainer._inner_steps

        def timed(name: str, seen: list) -> None:
            taken.append(seconds_of(lambda: inner_steps(name, seen), str(self.batch.images.device)))

        self.trainer._inner_steps = timed
        for _ in range(repeats):
            self.step()
        del self.trainer._inner_steps
        return statistics.median(taken) / seconds

    def _all_train(self) -> None:
        self.trainer.student.train()
        self.trainer.objective.train()


def random_batch(images: int, size: tuple[int, int]) -> Batch:
    """Patches of one class, as streets have them, and a tenth of void."""
    torch.manual_seed(0)
    h, w = (side // 32 for side in size)
    cells = torch.randint(CLASSES, (images, h, w)).masked_fill(torch.rand(images, h, w) < 0.1, 255)
    labels = cells.repeat_interleave(32, 1).repeat_interleave(32, 2)
    pixels = torch.randint(256, (images, 3, *size), dtype=torch.uint8)
    inside = torch.ones(images, *size, dtype=torch.bool)
    return Batch(pixels, labels, inside, torch.arange(images))


def measured(whole: Steps, lone: Steps, repeats: int, device: str) -> tuple:
    """Median seconds of teacher, lone step and whole step, and of the ratio of the last to both."""
    parts = {"teacher": whole.teacher, "lone": lone.step, "whole": whole.step}
    for function in parts.values():
        function()
    turns = [
        {part: seconds_of(function, device) for part, function in parts.items()}
        for _ in range(repeats)
    ]
    ratio = statistics.median(turn["whole"] / (turn["teacher"] + turn["lone"]) for turn in turns)
    seconds = [statistics.median(turn[part] for turn in turns) for part in parts]
    return *seconds, ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--methods", default=",".join(TARGETS), help="names, with commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = arguments.device
    shape = (8, (512, 1024)) if device.startswith("cuda") else (2, (256, 512))
    images, size = shape
    print(
        f"torch {torch.__version__}, {device}, {torch.get_num_threads()} CPU threads, "
        f"{images}x{size[0]}x{size[1]}, medians of {arguments.repeats} turns"
    )
    titles = ("teacher", "lone", "step ms", "ratio", "target", "critic")
    print(f"{'method':12}" + "".join(f"{title:>9}" for title in titles))
    lone = Steps({}, *shape, device)
    for name in arguments.methods.split(","):
        whole = Steps({name: OPTIONS.get(name, {})}, *shape, device)
        teacher, alone, step, ratio = measured(whole, lone, arguments.repeats, device)
        critic = whole.critic_share(arguments.repeats, step)
        target, share = TARGETS.get(name), "" if critic is None else f"{critic:.3f}"
        print(
            f"{name:12}{1e3 * teacher:9.0f}{1e3 * alone:9.0f}{1e3 * step:9.0f}{ratio:9.3f}"
            f"{target or '':>9}{share:>9}{'  above' if target and ratio > target else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
