"""How much faster the confusion matrix is updated than by torchmetrics, and than by one function.

    python benchmarks/confusion.py [--device cuda] [--size 1024 2048] [--classes 19]

One update per image, interleaved; prints medians, and the ratio to each alternative. All of them
end in the same matrix, which is checked. The single functions get what is best for them, bytes or
pairs of ids, and check nothing. Claim on a CPU: at most 1.3 times the fastest of those that begin
with two maps.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from segkd.metrics.confusion import ConfusionMatrix

VOID = 255


def make_maps(height: int, width: int, classes: int, device: str) -> tuple[Tensor, Tensor]:
    """A label of coherent patches with 10 % void, and a prediction that is right in 4 of 5."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, classes, (height // 32 + 1, width // 32 + 1), generator=generator)
    label = coarse.repeat_interleave(32, 0).repeat_interleave(32, 1)[:height, :width].clone()
    guess = torch.randint(0, classes, label.shape, generator=generator)
    prediction = guess.where(torch.rand(label.shape, generator=generator) < 0.2, label)
    label[torch.rand(label.shape, generator=generator) < 0.1] = VOID
    return prediction.to(device), label.to(device)


def median_seconds(
    contestants: dict[str, Callable[[], None]], rounds: int, device: str
) -> dict[str, float]:
    """Each one once per round, in turn; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, update in contestants.items():
            begin = time.perf_counter()
            update()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048))
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    classes, device = options.classes, options.device
    prediction, label = make_maps(*options.size, classes, device)
    small, bytes_of_label = prediction.to(torch.uint8), label.to(torch.uint8)  # as in evaluation
    short = label.to(torch.int16).mul(classes).add_(prediction).flatten()

    ours, other = (ConfusionMatrix(classes, VOID, device) for _ in range(2))
    checked = MulticlassConfusionMatrix(classes, ignore_index=VOID).to(device)
    unchecked = MulticlassConfusionMatrix(classes, ignore_index=VOID, validate_args=False)
    unchecked = unchecked.to(device)
    contestants = {
        "segkd": lambda: ours.update(small, bytes_of_label),
        "segkd, int64 labels": lambda: other.update(small, label),
        "torchmetrics": lambda: checked.update(prediction, label),
        "torchmetrics, validate_args=False": lambda: unchecked.update(prediction, label),
    }
    if device == "cpu":
        ids = [bytes_of_label.numpy(), small.numpy()]
        ready = short.numpy().astype(np.uint16)
        sizes = [256, classes], [0, 256, 0, classes]
        pairs = [256 * classes], [0, 256 * classes]
        contestants |= {
            "cv2.calcHist of two maps": lambda: cv2.calcHist(ids, [0, 1], None, *sizes),
            "cv2.calcHist of pairs, made before": lambda: cv2.calcHist([ready], [0], None, *pairs),
        }
    contestants["bincount"] = lambda: torch.bincount(
        bytes_of_label.to(torch.int16).mul_(classes).add_(small).flatten(), minlength=256 * classes
    )
    contestants["bincount of pairs, made before"] = lambda: torch.bincount(
        short, minlength=256 * classes
    )
    times = median_seconds(contestants, options.rounds, device)
    for theirs in (checked.confmat, unchecked.confmat, other.matrix):
        if not torch.equal(ours.matrix, theirs):
            raise SystemExit("the matrices differ")
    height, width = options.size
    print(f"one update, {height}x{width}, {classes} classes, {device}, torch {torch.__version__}")
    for name, seconds in times.items():
        print(f"{1e3 * seconds:9.2f} ms   {seconds / times['segkd']:6.1f} x   {name}")


if __name__ == "__main__":
    main()
