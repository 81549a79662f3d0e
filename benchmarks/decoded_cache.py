"""Decoded frames in a cache: which lossless format, and what the loader adds behind it.

    python benchmarks/decoded_cache.py FOLDER    (Cityscapes' tree, split train)
    default FOLDER: $SEGKD_REAL_DATA/cityscapes_sample

1. Size and time of formats, whole and for the window of a random crop of 512x1024 (scale 0.5 to
   2), of an image and of a label. zstd (`zstandard`) and QOI (`qoi`) are measured if they are
   installed. segkd packs labels on disk, and all of what does not fit into `data.cache`, by LZ4.
2. Seconds a sample of the loader (read, check, augment, stack) from segkd's cache, over those of
   the work alone (crop, resize, flip of arrays in memory). Stacking, which only the loader does, is
   a fifth of its time to a quarter. Aim: at most 1.3; measured: 1.25 (EPYC) and 1.34 to 1.43
   (Xeon) from memory, 1.47 to 1.64 from disk.
3. Milliseconds a sample and pages taken from the system of a loader process, which writes the batch
   into shared memory as well; beside it, with the C library's defaults for freed memory, in a
   program that has freed nothing large before.

Times are of the CPU: in 1 and 2 of this thread, medians of interleaved repeats.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from segkd.data import workers
from segkd.data.cityscapes import Cityscapes, CityscapesConfig
from segkd.data.loader import train_loader
from segkd.data.packing import SCARCE, array_of, pack, packs, unpack
from segkd.data.sources import TrainSource
from segkd.data.transforms import TrainTransform
from segkd.synthetic.make import make_cache

CROP, SCALE, REPEATS, BATCH = (512, 1024), (0.5, 2.0), 16, 4
PROCESS = "--process"  # the third part, in a process of its own
ROWS = 512 / 1.08  # of a window, in the mean


def cpu_seconds(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, taken in turns after two rounds for warming up."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(-2, repeats):
        for name, function in functions.items():
            begin = time.thread_time()
            function()
            if turn >= 0:
                taken[name].append(time.thread_time() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


def formats(image: np.ndarray, folder: Path) -> None:
    """Prints size and time of each format for one frame."""
    height, width = image.shape[:2]
    rows = slice((height - int(ROWS)) // 2, (height + int(ROWS)) // 2)
    window = rows, slice(width // 4, 3 * width // 4)
    np.save(folder / "frame.npy", image)
    sizes = {"array, mapped": image.nbytes}

    def mapped() -> np.ndarray:
        return np.load(folder / "frame.npy", mmap_mode="r")

    whole: dict[str, Callable[[], object]] = {"array, mapped": lambda: mapped().copy()}
    part: dict[str, Callable[[], object]] = {"array, mapped": lambda: mapped()[window].copy()}
    if packs():
        layout, blocks = pack(image, SCARCE)
        data = b"".join(blocks)
        packed = unpack(layout, data)
        assert np.array_equal(array_of(packed), image)
        sizes["LZ4 in blocks"] = len(data)
        whole["LZ4 in blocks"] = lambda: array_of(packed)
        part["LZ4 in blocks"] = lambda: packed[window]
    for name, (encoded, decode) in others(image).items():
        sizes[name] = len(encoded)
        whole[name] = lambda encoded=encoded, decode=decode: decode(encoded)
    all_rows, some_rows = cpu_seconds(whole, 9), cpu_seconds(part, 9)
    print(f"{'format':16}{'MB':>7}{'ratio':>7}{'whole ms':>10}{'window ms':>11}")
    for name, size in sizes.items():
        shown = f"{1e3 * some_rows[name]:11.2f}" if name in some_rows else f"{'= whole':>11}"
        print(
            f"{name:16}{size / 1e6:7.2f}{image.nbytes / size:7.2f}{1e3 * all_rows[name]:10.2f}"
            f"{shown}"
        )


def others(image: np.ndarray) -> dict[str, tuple[bytes, Callable[[bytes], object]]]:
    """Formats that segkd does not use, as far as their packages are here."""
    found: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
        "PNG by OpenCV": (
            cv2.imencode(".png", image)[1].tobytes(),
            lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED),
        )
    }
    try:
        import zstandard

        decoder = zstandard.ZstdDecompressor()
        data = zstandard.ZstdCompressor(1).compress(image.tobytes())
        found["zstd, level 1"] = data, decoder.decompress
    except ImportError:
        print("zstandard is not installed")
    try:
        import qoi

        if image.ndim == 3:
            found["QOI"] = qoi.encode(image), qoi.decode
    except ImportError:
        print("qoi is not installed")
    return found


def loader(plain: Cityscapes, folder: Path) -> None:
    """Prints what the loader takes from a cache, over the work alone."""
    keys = {"decoded": make_cache(plain, folder)}
    config = plain.config.model_copy(update=keys)
    on_disk = TrainSource(Cityscapes(config, "train"), config, 0)
    config = plain.config.model_copy(update={"cache": 64, "workers": 0})
    in_memory = TrainSource(Cityscapes(config, "train"), config, 0)
    transform = TrainTransform(config, plain.ignore_index)
    samples = [plain.read(index) for index in range(len(plain))]
    turn = {"work": 0, "disk": 0, "memory": 0}

    def next_key(name: str) -> tuple[int, int]:
        turn[name] += 1
        return turn[name], turn[name] % len(plain)

    def work() -> None:
        for epoch, index in next_keys("work"):
            seed = int(np.random.default_rng([0, epoch, index]).integers(2**62))
            transform(samples[index].image, samples[index].label, seed)

    def next_keys(name: str) -> list[tuple[int, int]]:
        return [next_key(name) for _ in range(BATCH)]

    ways: dict[str, Callable[[], object]] = {
        "work alone, arrays in memory": work,
        "loader, data.decoded": lambda: on_disk.__getitems__(next_keys("disk")),
        "loader, data.cache": lambda: in_memory.__getitems__(next_keys("memory")),
    }
    times = cpu_seconds(ways, REPEATS)
    alone = times["work alone, arrays in memory"]
    for name, seconds in times.items():
        print(f"{name:30}{1e3 * seconds / BATCH:8.2f} ms a sample {seconds / alone:6.2f}")


def process(plain: Cityscapes, folder: Path) -> None:
    """Prints what a loader process takes for a sample."""
    keys = {"decoded": make_cache(plain, folder), "workers": 1}
    config = plain.config.model_copy(update=keys)
    begin = workers.keep_freed_memory
    for name, keep in (("loader process", begin), ("C library's defaults", lambda: None)):
        workers.keep_freed_memory = keep  # which the process inherits
        few, many = (used(Cityscapes(config, "train"), batches) for batches in (10, 90))
        seconds, pages = ((b - a) / (80 * BATCH) for a, b in zip(few, many, strict=True))
        print(f"{name:30}{1e3 * seconds:8.2f} ms a sample {pages:6.0f} pages")
    workers.keep_freed_memory = begin


def used(dataset: Cityscapes, batches: int) -> tuple[float, int]:
    """Seconds and pages of a process that loads so many batches, with its start."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in train_loader(
        dataset, config=dataset.config, batch_size=BATCH, seed=0, start=0, stop=batches
    ):
        pass
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, after.ru_minflt - before.ru_minflt


def main() -> None:
    default = Path(os.environ.get("SEGKD_REAL_DATA", ".")) / "cityscapes_sample"
    given = [argument for argument in sys.argv[1:] if argument != PROCESS]
    root = Path(given[0]) if given else default
    cv2.setNumThreads(0)
    plain = Cityscapes(
        CityscapesConfig(name="cityscapes", root=root, crop=CROP, scale=SCALE), "train"
    )
    with tempfile.TemporaryDirectory() as folder:
        if PROCESS in sys.argv:
            process(plain, Path(folder))
            return
        sample = plain.read(0)
        for array in (sample.image, sample.label):
            formats(array, Path(folder))
        loader(plain, Path(folder))
    sys.stdout.flush()
    subprocess.run([sys.executable, *sys.argv, PROCESS], check=True)


if __name__ == "__main__":
    main()
