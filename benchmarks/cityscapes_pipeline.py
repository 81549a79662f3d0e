"""From a Cityscapes frame on disk to an augmented 512x1024 crop: our pipeline and the usual one.

The usual one resizes the whole frame, crops then, and maps the 35 label ids by boolean masks.
Both decode with OpenCV, on one thread, as in a loader's worker. Claims: after decoding at least
2 times as fast, in whole at least 1.2 times, with the decoded cache in whole at least 2 times.

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

from segkd.data.cityscapes import TO_TRAIN_ID, Cityscapes, CityscapesConfig
from segkd.data.make import make_cache
from segkd.data.reading import check_sample, read_image, read_mask
from segkd.data.transforms import TrainTransform

CROP, SCALE, REPEATS = (512, 1024), (0.5, 2.0), 24


def usual_decode(paths: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray]:
    return read_image(paths[0]), read_mask(paths[1])


def usual_rest(image: np.ndarray, ids: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Map by masks, resize all, pad, crop, flip."""
    rng = np.random.default_rng(seed)
    label = ids.copy()
    for label_id in range(-1, 34):
        label[ids == label_id] = 255 if label_id < 0 else TO_TRAIN_ID[label_id]
    scale = rng.uniform(*SCALE)
    size = round(image.shape[1] * scale), round(image.shape[0] * scale)
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
    bottom, right = max(0, CROP[0] - size[1]), max(0, CROP[1] - size[0])
    if bottom or right:
        border = (0, bottom, 0, right, cv2.BORDER_CONSTANT)
        image = cv2.copyMakeBorder(image, *border, value=(124, 116, 104))
        label = cv2.copyMakeBorder(label, *border, value=255)
    top, left = (int(rng.integers(n - c + 1)) for n, c in zip(label.shape, CROP, strict=True))
    image = image[top : top + CROP[0], left : left + CROP[1]]
    label = label[top : top + CROP[0], left : left + CROP[1]]
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


def seconds(function, *arguments) -> tuple[float, object]:
    begin = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - begin, result


def measure(plain: Cityscapes, cached: Cityscapes, transform: TrainTransform) -> dict[str, float]:
    """Median seconds of each part; all ways take turns on the same frames and seeds."""

    def ours_rest(dataset: Cityscapes, index: int, seed: int) -> None:
        sample = dataset.read(index)
        check_sample(dataset, index, sample)
        transform(sample.image, sample.label, seed)

    times: dict[str, list[float]] = {}
    for repeat in range(-2, REPEATS):
        index, seed = repeat % len(plain), 1000 + repeat
        paths = plain.files(index)
        decode, (image, ids) = seconds(usual_decode, paths)
        rest, _ = seconds(usual_rest, image, ids, seed)
        ours, _ = seconds(ours_rest, plain, index, seed)
        from_cache, _ = seconds(ours_rest, cached, index, seed)
        our_decode, _ = seconds(usual_decode, paths)
        found = {
            "usual after decoding": rest,
            "usual in whole": decode + rest,
            "ours after decoding": ours - our_decode,
            "ours in whole": ours,
            "ours with cache": from_cache,
        }
        for name, value in found.items():
            if repeat >= 0:
                times.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    default = Path(os.environ.get("SEGKD_REAL_DATA", ".")) / "cityscapes_sample"
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        config = CityscapesConfig(name="cityscapes", root=root, crop=CROP, scale=SCALE)
        plain = Cityscapes(config, "train")
        cache = make_cache(plain, Path(folder))
        cached = Cityscapes(config.model_copy(update={"cache": cache}), "train")
        times = measure(plain, cached, TrainTransform(config, plain.ignore_index))
    for name, value in times.items():
        print(f"{name:24s} {1000 * value:8.1f} ms")
    after = times["usual after decoding"] / times["ours after decoding"]
    print(f"after decoding           {after:8.2f} times as fast (claim: 2)")
    for name, claim in (("ours in whole", 1.2), ("ours with cache", 2.0)):
        ratio = times["usual in whole"] / times[name]
        print(f"{name:24s} {ratio:8.2f} times as fast (claim: {claim:g})")


if __name__ == "__main__":
    main()
