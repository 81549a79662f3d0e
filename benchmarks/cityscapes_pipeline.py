"""From a Cityscapes frame on disk to an augmented, normalised 512x1024 crop: ours and others.

- common: what the loaders of the public distillation repositories do (SKD, IFVD, CIRKD share
  one): 35 boolean masks for the label ids, the whole frame resized, turned to float and
  normalised, then padded, cropped, flipped.
- lean: the same, but cropped and flipped as bytes, and only the crop is normalised.

All run on one thread, as in a loader's worker, and end at a float32 (3, h, w) array. The others
decode with OpenCV; ours does with pyspng where it is installed. Ours makes bytes by channel, as the
loader does, and normalises them as networks do. Claims, in whole: against `common` at least 1.3
times as fast, from the decoded cache 12 times; against `lean` at least 1.0 times. Decoding bounds
the first and the last.

    python benchmarks/cityscapes_pipeline.py FOLDER     (leftImg8bit and gtFine; split train)
    default FOLDER: $SEGKD_REAL_DATA/cityscapes_sample
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from segkd.data.cityscapes import TO_TRAIN_ID, Cityscapes, CityscapesConfig
from segkd.data.reading import check_sample
from segkd.data.sources import planes
from segkd.data.transforms import TrainTransform
from segkd.synthetic.make import make_cache

CROP, SCALE, REPEATS = (512, 1024), (0.5, 2.0), 24
MEAN = np.array((123.675, 116.28, 103.53), np.float32)
STD = np.array((58.395, 57.12, 57.375), np.float32)


def decode(paths: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray]:
    image, mask = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), mask


def normalised(image: np.ndarray) -> np.ndarray:
    return (image.astype(np.float32) - MEAN) / STD


def whole_frame(image: np.ndarray, ids: np.ndarray, seed: int, early: bool) -> tuple:
    """Maps by masks, resizes all, pads, crops, flips; normalises ``early`` or at the end."""
    rng = np.random.default_rng(seed)
    label = ids.copy()
    for label_id in range(-1, 34):
        label[ids == label_id] = 255 if label_id < 0 else TO_TRAIN_ID[label_id]
    scale = rng.uniform(*SCALE)
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    if early:
        image = normalised(image)
    bottom, right = max(0, CROP[0] - size[1]), max(0, CROP[1] - size[0])
    if bottom or right:
        border = (0, bottom, 0, right, cv2.BORDER_CONSTANT)
        image = cv2.copyMakeBorder(image, *border, value=(0, 0, 0))
        label = cv2.copyMakeBorder(label, *border, value=255)
    top, left = (int(rng.integers(n - c + 1)) for n, c in zip(label.shape, CROP, strict=True))
    image = image[top : top + CROP[0], left : left + CROP[1]]
    label = label[top : top + CROP[0], left : left + CROP[1]]
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    if not early:
        image = normalised(image)
    return np.ascontiguousarray(image.transpose(2, 0, 1)), np.ascontiguousarray(label)


def seconds(function, *arguments) -> tuple[float, object]:
    begin = time.thread_time()  # of this thread's CPU: others may be busy
    result = function(*arguments)
    return time.thread_time() - begin, result


def measure(plain: Cityscapes, cached: Cityscapes, transform: TrainTransform) -> dict[str, float]:
    """Median seconds of each way; they take turns on the same frames and seeds."""

    def ours(dataset: Cityscapes, index: int, seed: int) -> torch.Tensor:
        sample = dataset.read_stored(index)
        check_sample(dataset, index, sample)
        image, *_ = transform.with_lanes(sample.image, sample.label, None, seed)
        return (torch.from_numpy(planes([image])).float() - mean) * scale

    mean, scale = torch.from_numpy(MEAN)[:, None, None], torch.from_numpy(1 / STD)[:, None, None]
    times: dict[str, list[float]] = {}
    for repeat in range(-2, REPEATS):
        index, seed = repeat % len(plain), 1000 + repeat
        decoding, (image, ids) = seconds(decode, plain.files(index))
        found = {"decoding": decoding}
        found["common"], _ = seconds(whole_frame, image, ids, seed, True)
        found["lean"], _ = seconds(whole_frame, image, ids, seed, False)
        found["ours, whole"], _ = seconds(ours, plain, index, seed)
        found["ours cached"], _ = seconds(ours, cached, index, seed)
        for name, value in found.items():
            if repeat >= 0:
                times.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in times.items()}


def report(times: dict[str, float]) -> None:
    for name, value in times.items():
        print(f"{name:14s} {1000 * value:7.1f} ms")
    for other in ("common", "lean"):
        whole = times["decoding"] + times[other]
        ratios = {
            "in whole": (whole / times["ours, whole"], 1.3 if other == "common" else 1.0),
            "in whole, from the cache": (
                whole / times["ours cached"],
                12 if other == "common" else 0,
            ),
        }
        for part, (ratio, claim) in ratios.items():
            shown = f" (claim: {claim:g})" if claim else ""
            print(f"against {other}, {part}: {ratio:.2f} times as fast{shown}")


def main() -> None:
    default = Path(os.environ.get("SEGKD_REAL_DATA", ".")) / "cityscapes_sample"
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = CityscapesConfig(name="cityscapes", root=root, crop=CROP, scale=SCALE)
        plain = Cityscapes(config, "train")
        cache = make_cache(plain, Path(folder))
        cached = Cityscapes(config.model_copy(update={"decoded": cache}), "train")
        report(measure(plain, cached, TrainTransform(config, plain.ignore_index)))


if __name__ == "__main__":
    main()
