"""Writes ``tests/files/v0_1``: what version 0.1.0 leaves behind, for ``test_version_0_1.py``.

    git worktree add ../old 516a395 && cp tests/make_version_files.py ../old/tests
    cd ../old && PYTHONPATH=$PWD python tests/make_version_files.py OUT

It is a program of that version: others write other files, which is what they must not be tested
with. All paths in the files are relative to ``OUT``, where the runs were trained.
"""

import json
import lzma
import math
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import numpy as np
import store_values
import torch
import toy_run
import yaml

import segkd
from segkd import registry
from segkd.config.schema import ModelConfig
from segkd.errors import Interrupted
from segkd.models.build import build_network

STREETS = {
    "name": "streets",
    "size": [64, 96],
    "train_images": 24,
    "val_images": 6,
    "batch_size": 6,
    "workers": 0,
    "cache": 64,
    "crop": [48, 64],
    "color_jitter": 0.2,
}
COMMON = {
    "data": STREETS,
    "student": {"arch": "toy", "options": {"width": 6}},
    "eval": {"every": 0, "batch_size": 2},
    "runtime": {"device": "cpu", "threads": 1},
    "optim": {"lr": 0.05},
}
RECIPE = {
    "title": "Files of version 0.1",
    "out": "recipe",
    "baseline": "alone",
    "teacher": "big",
    "common": {**COMMON, "steps": 200, "log": {"every": 20, "tensorboard": False}},
    "runs": {
        "big": {"once": True, "student": {"options": {"width": 8}}},
        "alone": {},
        "distilled": {
            "teachers": {"main": {"checkpoint": "run:big"}},
            "methods": {"kd": {}, "cwd": {"weight": 2.0, "temperature": 3.0}},
        },
    },
}
# Whatever has a state: critic and its optimiser, banks, adapters, auto weights, EMA.
INTERRUPTED = {
    **COMMON,
    "out": "interrupted",
    "steps": 16,
    "seed": 4,
    "data": {**STREETS, "unlabeled": {"split": "unlabeled", "share": 0.5}},
    "teachers": {"main": {"checkpoint": "recipe/big/checkpoints/best.pt"}},
    "methods": {
        "kd": {"weight": {"auto": 0.3, "every": 3}},
        "fitnets": {"start": 2},
        "cirkd": {"pixel_queue": 12, "region_queue": 6, "pixels_per_class": 2},
        "holistic": {"width": 2},
        "dkd": {"pseudo_labels": 0.5, "warmup": 4},
    },
    "ema": 0.9,
    "optim": {"name": "adamw", "lr": 2e-3, "accumulate": 3},
    "schedule": {"name": "cosine", "warmup": 3, "floor": 0.01},
    "log": {"every": 1, "tensorboard": False},
    "save_every": 100,
}
LANES = {
    "out": "lanes",
    "steps": 20,
    "student": {
        "arch": "enet",
        "options": {"stages": 4, "share": True},
        "exist_head": {},
        "checkpoint": "start/checkpoints/best.pt",
    },
    "data": {
        "name": "lanes",
        "size": [64, 160],
        "train_images": 4,
        "val_images": 4,
        "batch_size": 2,
        "workers": 0,
    },
    "methods": {"sad": {}},
    "task": {"losses": {"cross_entropy": {"background": 0.4}, "existence": {}}},
    "optim": {"lr": 1e-30},  # its weights stay few different numbers, which can be compressed
    "eval": {"every": 0, "lanes": {"threshold": 0.15, "existence": 0.0}},
    "runtime": {"device": "cpu", "threads": 1},
    "log": {"every": 10, "tensorboard": False},
}
FOLDER = {
    "classes": [
        {"name": "road", "ids": [7, 9], "colors": [], "color": None},
        {"name": "car", "ids": [26], "colors": [], "color": [0, 0, 142]},
    ],
    "ignore": [0, 255],
    "undeclared": "ignore",
    "splits": {"train": {"images": "a", "masks": "b"}, "val": {"images": "c", "masks": "d"}},
    "image_ending": "_image.png",
    "mask_ending": "_mask.png",
}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    toy_run.register()
    out.mkdir(parents=True)
    os.chdir(out)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    Path("interrupted.yaml").write_text(yaml.safe_dump(INTERRUPTED, sort_keys=False))
    Path("every_key.yaml").write_text(yaml.safe_dump(every_key(), sort_keys=False))
    Path("datasets.yaml").write_text(yaml.safe_dump(keys_of_datasets(), sort_keys=False))
    segkd.train("recipe.yaml")
    shutil.rmtree("recipe/report")  # pictures
    for run in ("big", "alone/seed0"):  # of one finished run it is kept
        Path("recipe", run, "checkpoints", "last.pt").unlink()
    interrupt()
    lanes()
    student = "recipe/distilled/seed0"
    images = [image for image, _ in store_values.pairs(4, "version files")]
    segkd.export(student, "exported/student.onnx", size=(64, 96), int8=images)
    segkd.export(student, "exported/student.pt2", size=(64, 96))
    segkd.save_pretrained(student, "shipped")
    predictions()
    compress()
    made_on = {"machine": store_values.machine(), "torch": torch.__version__}
    Path("made_on.json").write_text(json.dumps(made_on) + "\n")


def interrupt() -> None:
    """A run that SIGTERM stops in the middle, and what it would have become."""
    arguments = (Path("interrupted/metrics.csv"), 7)
    stopper = threading.Thread(target=_stop_after, args=arguments, daemon=True)
    stopper.start()
    try:
        segkd.train("interrupted.yaml")
        sys.exit("it was not stopped")
    except Interrupted as stopped:
        print(stopped)
    stopper.join()
    shutil.copytree("interrupted", "stopped")
    segkd.train("interrupted.yaml")
    resumed = store_values.run_facts(Path("interrupted"), _summary("interrupted"))
    shutil.rmtree("interrupted")
    segkd.train("interrupted.yaml")
    whole = store_values.run_facts(Path("interrupted"), _summary("interrupted"))
    assert resumed == whole, (resumed, whole)
    shutil.rmtree("interrupted")
    shutil.move("stopped", "interrupted")
    Path("interrupted_ends_with.json").write_text(json.dumps(whole, indent=1) + "\n")


def _stop_after(log: Path, rows: int) -> None:
    while not (log.is_file() and len(log.read_text().splitlines()) > rows):
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGTERM)


def _summary(folder: str) -> dict:
    return json.loads(Path(folder, "summary.json").read_text())


def lanes() -> None:
    """ENet-SAD as a run leaves it; its last.pt, which nothing here needs, is left out."""
    config = ModelConfig.model_validate(LANES["student"] | {"checkpoint": None})
    network = build_network(config, 5)
    for number, parameter in enumerate(network.parameters()):
        rng, gain = store_values.draw("lanes", str(number)), 0.25
        if parameter.ndim > 1:
            gain = math.sqrt(parameter.shape[0] / parameter.numel())
        values = gain * rng.choice([-1.0, 1.0], tuple(parameter.shape))
        if parameter.ndim == 1 and parameter.min() == 1:  # factors of a normalisation
            values = np.ones(tuple(parameter.shape))
        parameter.data.copy_(torch.from_numpy(values))
    segkd.train(LANES | {"out": "start", "steps": 1}, student=network)
    start = Path("start/checkpoints/best.pt")
    payload = torch.load(start, weights_only=True)
    payload["model"] = network.config.model_dump(mode="json")  # no module of the caller's own
    torch.save(payload, start)
    segkd.train(LANES)
    shutil.rmtree("start")
    Path("lanes/checkpoints/last.pt").unlink()


def predictions() -> None:
    """What the students say of images that are kept beside it."""
    images = np.stack([store_values.drawn("streets", size=[64, 96]).read(i).image for i in (1, 2)])
    road = store_values.drawn("lanes", size=[64, 160]).read(1).image
    found: dict[str, np.ndarray] = {"images": images, "road": road}
    for name in ("recipe/distilled/seed0", "recipe/big", "exported/student.onnx"):
        student = segkd.load_student(name)
        found[f"labels of {name}"] = np.stack([student.predict(image) for image in images])
    quantized = segkd.load_student("exported/student.int8.onnx")
    found["labels of int8"] = np.stack([quantized.predict(image) for image in images])
    found["labels of lanes"] = segkd.load_student("lanes").predict(road)
    for lane in segkd.lanes.LaneDetector("lanes")(road):
        found[f"lane {lane.slot}"] = lane.points
        found[f"score {lane.slot}"] = np.array(lane.score)
    np.savez_compressed("predictions.npz", **found)


def compress() -> None:
    """Files of more than 50 kB get shorter: numbers are few, but names and headers many."""
    for path in Path().rglob("*.pt*"):
        if path.stat().st_size > 50_000:
            path.with_name(f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes()))
            path.unlink()


# -- every key -------------------------------------------------------------------------------------


def every_key() -> dict:
    """A run with all keys of version 0.1, with other values than the defaults where that goes."""
    losses = {loss.name: changed(loss.Config) for loss in registry.losses}
    return {
        "out": "runs/every_key",
        "seed": 3,
        "steps": 123,
        "data": {
            **changed(registry.datasets.get("streets").Config),
            "name": "streets",
            "root": None,
            "labels": "optional",
            "unlabeled": {"split": "unlabeled", "share": 0.25},
        },
        "student": {
            "arch": "fpn",
            "encoder": "resnet34",
            "weights": None,
            "checkpoint": None,
            "normalize": [[0.5, 0.5, 0.5], [0.25, 0.25, 0.25]],
            "aux_head": {"tap": "stage3", "weight": 0.3, "channels": 16},
            "exist_head": {"tap": "stage5", "kind": "flat", "channels": 64, "size": [64, 96]},
            "options": {"decoder_dropout": 0.1},
            "classes": [],
        },
        "teachers": {
            "main": {"arch": "enet", "options": {"stages": 4}, "normalize": "none"},
            "other": {
                "arch": "deeplabv3",
                "encoder": "resnet50",
                "weights": "imagenet",
                "checkpoint": "some/teacher.pth",
                "classes": {"from": "camvid", "to": "cityscapes", "map": {"car": "car"}},
            },
            "both": {"ensemble": ["main", "other"]},
        },
        "task": {"weight": 0.5, "losses": losses},
        "methods": {
            method.name: changed_method(method)
            for method in registry.methods
            if method.__module__.startswith("segkd.")
        }
        | {
            "paper": {"method": "cwd", "weight": "paper", "teacher": "other"},
            "auto": {
                "method": "kd",
                "teacher": "both",
                "weight": {"auto": 0.2, "every": 5, "smoothing": 0.5, "freeze": 100},
            },
        },
        "optim": {
            "name": "adamw",
            "lr": 0.003,
            "momentum": 0.8,
            "betas": [0.8, 0.99],
            "weight_decay": 0.01,
            "lr_factors": {"encoder": 0.1, "decoder": 2.0, "adapters": 3.0},
            "clip": 1.5,
            "accumulate": 2,
        },
        "schedule": {
            "name": "one_cycle",
            "power": 0.8,
            "warmup": 0,
            "floor": 0.05,
            "milestones": [],
            "gamma": 0.2,
            "peak": 0.4,
            "start": 20.0,
            "end": 5000.0,
        },
        "ema": 0.99,
        "eval": {
            "every": 50,
            "batch_size": 2,
            "scales": [0.75, 1.0],
            "flip": True,
            "sliding": [64, 96],
            "overlap": 0.25,
            "limit": 10,
            "boundary": True,
            "lanes": {
                "variant": "matlab",
                "threshold": 0.4,
                "existence": 0.6,
                "smoothing": 5,
                "sub_pixel": True,
            },
        },
        "runtime": {
            "device": "cpu",
            "precision": "bf16",
            "threads": 2,
            "deterministic": True,
            "channels_last": True,
            "compile": "student",
            "compile_backend": "eager",
            "sync_bn": False,
        },
        "log": {"every": 7, "tensorboard": False},
        "save_every": 77,
        "init_from": "runs/earlier",
        "train": ["student.*", "methods.*"],
    }


def keys_of_datasets() -> dict:
    """The block ``data:`` with all keys, by dataset."""
    blocks = {}
    for dataset in registry.datasets:
        if dataset.__module__.startswith("segkd."):
            needed = {"spec": FOLDER} if dataset.name == "folder" else {}
            block = changed(dataset.Config, **needed)
            folder = None if "synthetic" in dataset.__module__ else "some/folder"
            block |= {"name": dataset.name, "root": folder, **needed}
            blocks[dataset.name] = block | {"unlabeled": {"root": "frames", "share": 0.3}}
    return blocks


def changed_method(method: type) -> dict:
    keys = changed(method.Config)
    keys |= {"method": "", "teacher": "main"}
    keys["weights"] = {term: 0.5 * value for term, value in method.default_weights.items()}
    return keys


def changed(kind: type, **needed: object) -> dict:
    """All keys of a model: each with another value than its default, if one is accepted."""
    plain = _valid(kind, needed)
    keys = dict(plain)
    for key, value in plain.items():
        for other in _others(value):
            found = _valid(kind, keys | {key: other})
            if found is not None and found[key] == other != value:
                keys[key] = other
                break
    return keys


def _others(value: object) -> list:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value + 2]
    if isinstance(value, float):
        return [value * 1.25, value * 0.75, 0.25]
    if value is None:
        return [2, 0.5, [32, 64], "some"]
    if isinstance(value, str):
        words = ("inside", "linear", "softmax", "max", "nearest", "grid", "hinge", "skip", "some")
        return list(words)
    if isinstance(value, list) and value and all(isinstance(one, int | float) for one in value):
        return [[one + 1 for one in value], [0.75 * one for one in value]]
    return []


def _valid(kind: type, keys: dict) -> dict | None:
    """The model with these keys as plain data; None if it refuses them."""
    name = {"name": "some"} if "name" in kind.model_fields and "name" not in keys else {}
    try:
        return kind.model_validate(keys | name).model_dump(mode="json")
    except (ValueError, segkd.SegKDError):
        return None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
