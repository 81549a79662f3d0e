"""What the trainer costs: its step against a hand-written loop with the same loader and networks.

    python benchmarks/trainer_overhead.py [--steps 40] [--rounds 3]

Both sides distil a ResNet-18 DeepLabV3+ from a random ResNet-50 teacher by kd and cwd, log every
20 steps, and read the same drawn street scenes. Rounds alternate; medians are compared.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from training import trainer_of

from segkd.config.load import load_config
from segkd.engine.optim import build_optimizer, lr_share, set_lr
from segkd.engine.setup import assemble
from segkd.methods.cwd import cwd_loss
from segkd.methods.kd import kd_loss
from segkd.runtime import Runtime, seed_everything

WARM_UP = 3  # steps of each round that are not counted


def config(folder: str, steps: int):
    return load_config(
        {
            "out": folder,
            "steps": steps,
            "data": {"name": "streets", "batch_size": 4, "workers": 0, "crop": [128, 256]},
            "student": {"arch": "deeplabv3plus", "encoder": "resnet18"},
            "teachers": {"main": {"arch": "deeplabv3plus", "encoder": "resnet50"}},
            "methods": {"kd": {}, "cwd": {}},
            "log": {"every": 20, "tensorboard": False},
        }
    ).run


def trainer_steps(folder: str, steps: int) -> list[float]:
    """Seconds of each step of the Trainer, with its log lines."""
    trainer = trainer_of(config(folder, steps))
    seconds, start = [], time.perf_counter()
    for _ in trainer.steps():
        trainer.tally.check()
        if trainer.step % 20 == 0:
            trainer.tally.collect(trainer.runtime, trainer.terms)
        trainer.runtime.synchronize()
        now = time.perf_counter()
        seconds.append(now - start)
        start = now
    return seconds


def bare_steps(folder: str, steps: int) -> list[float]:
    """Seconds of each step of a loop as one would write it by hand for this one experiment."""
    run = config(folder, steps)
    runtime = Runtime.start("auto")
    seed_everything(0, 0)
    parts = assemble(run, runtime)
    student, teacher = parts.student.to(runtime.device).train(), parts.teachers.to(runtime.device)
    optimizer = build_optimizer(run.optim, {"decoder": list(student.parameters())})
    from segkd.data.loader import train_loader

    loader = train_loader(
        parts.train_set, config=run.data, batch_size=4, seed=0, start=0, stop=steps
    )
    cross_entropy = nn.CrossEntropyLoss(ignore_index=255)
    seconds, start = [], time.perf_counter()
    for step, batch in enumerate(loader):
        batch = batch.to(runtime.device)
        set_lr(optimizer, lr_share(run.schedule, step, steps))
        target = teacher(batch.images)["main"].logits
        logits = student(batch.images).logits
        full = nn.functional.interpolate(logits, batch.labels.shape[1:], mode="bilinear")
        mask = batch.valid[:, ::4, ::4]
        loss = cross_entropy(full, batch.labels)
        loss = loss + kd_loss(logits, target, mask=mask) + 3 * cwd_loss(logits, target, mask=mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 19:
            loss.item()
        runtime.synchronize()
        now = time.perf_counter()
        seconds.append(now - start)
        start = now
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help=f"more than {WARM_UP}")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.steps <= WARM_UP:
        parser.error(f"--steps: got {options.steps}, expected more than {WARM_UP}")
    ours, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for side, measure in ((ours, trainer_steps), (bare, bare_steps)):
                side += measure(str(Path(folder) / str(number)), options.steps)[WARM_UP:]
    first, second = statistics.median(ours), statistics.median(bare)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(ours)} steps a side")
    print(f"trainer step {1e3 * first:.1f} ms, bare loop {1e3 * second:.1f} ms")
    print(f"ratio {first / second:.3f} (target: at most 1.05)")


if __name__ == "__main__":
    main()
