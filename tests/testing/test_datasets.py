"""Our datasets pass the checks of a dataset; wrong ones fail the check of their fault."""

import inspect
import json
import os
from pathlib import Path

import cv2
import dataset_mutants as mutants
import numpy as np
import pytest
import torch
from lane_trees import lane, put_image, put_labels, put_lines, put_list, tusimple_item
from PIL import Image

from segkd import registry
from segkd.data.arrays import Arrays
from segkd.data.loader import train_loader
from segkd.errors import ConfigError
from segkd.testing import DATASET_CHECKS, CheckFailed, check_dataset

LANES = (64, 160)
FAILS = {  # by mutant, the check that names its fault
    "ClassTwice": "declaration",
    "PaletteOfFloats": "declaration",
    "IgnoresAClass": "declaration",
    "SilentKey": "declaration",
    "UnknownClass": "samples",
    "LabelOfFloats": "samples",
    "LabelOfLongs": "samples",
    "LabelOfAnotherSize": "samples",
    "GreyImages": "samples",
    "ImagesOfFloats": "samples",
    "AllVoid": "something_to_learn",
    "BlueFirst": "colour_order",
    "OneNameForAll": "names",
    "FileTwice": "names",
    "RandomImages": "index_decides",
    "GlobalRandomness": "index_decides",
    "DependsOnTheOrder": "index_decides",
    "HoldsALambda": "pickling",
    "ForgetsItsSplit": "pickling",
    "LabelsAllTheSame": "without_labels",
    "OtherImagesWithoutLabels": "without_labels",
    "SizesDiffer": "batches",
    "WorkersDiffer": "batches",
    "Endless": "ends",
    "ShowsNoTree": "missing_files",
    "OpensNothing": "missing_files",
    "OneSlotTooMany": "lanes",
    "LanesOfThreeNumbers": "lanes",
    "AnnotatesAnotherSize": "lanes",
    "EntryTwice": "lanes",
}


def noise(number: int) -> np.ndarray:
    """(70, 96, 3) uint8, of three colours that differ."""
    draw = np.random.default_rng(number)
    return (draw.integers(0, 256, (70, 96, 3)) // (1, 2, 4)).astype(np.uint8)


def put_pair(root: Path, image: str, mask: str, ids: tuple[int, ...], number: int) -> None:
    """An image of noise and a mask of these ids."""
    draw = np.random.default_rng(number)
    label = np.kron(draw.choice(ids, (7, 8)), np.ones((10, 12))).astype(np.uint8)
    for name, array in ((image, noise(number)), (mask, label)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), array)


def put_camvid(root):
    for n in range(3):
        put_pair(root, f"train/{n}.png", f"trainannot/{n}.png", (0, 3, 11), n)


def put_ade20k(root):
    for n in range(3):
        stem = f"training/ADE_train_{n:08d}"
        put_pair(root, f"images/{stem}.jpg", f"annotations/{stem}.png", (0, 1, 150), n)


def put_coco_stuff(root):
    for n in range(3):
        stem = f"train2017/{n:012d}"
        put_pair(root, f"images/{stem}.jpg", f"stuffthingmaps/{stem}.png", (0, 91, 255), n)


def put_cityscapes(root):
    for n in range(3):
        stem = f"train/ulm/ulm_{n:06d}_000019"
        ends = "leftImg8bit", "gtFine_labelIds"
        names = f"leftImg8bit/{stem}_{ends[0]}.png", f"gtFine/{stem}_{ends[1]}.png"
        put_pair(root, *names, (0, 7, 26), n)


def put_voc(root):
    names = [f"2007_{n:06d}" for n in range(3)]
    for n, name in enumerate(names):
        put_pair(root, f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png", (0, 20, 255), n)
        path = root / f"SegmentationClass/{name}.png"
        mask = Image.fromarray(np.asarray(Image.open(path)), mode="P")
        mask.putpalette(registry.datasets.get("voc").palette.tobytes())
        mask.save(path)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n")


def put_folder(root):
    for n in range(3):
        put_pair(root, f"images/{n}.png", f"masks/{n}.png", (1, 2, 0), n)
    (root / "spec.yaml").write_text(
        "classes: [{name: road, ids: [1]}, {name: car, ids: [2]}]\nignore: [0]\n"
        "splits: {train: {images: images, masks: masks}}\n"
    )
    return {"spec": root / "spec.yaml"}


def put_culane(root):
    for n in range(3):
        entry = f"driver_1/a.MP4/{n:05d}.jpg"
        put_image(root / entry, LANES)
        put_lines((root / entry).with_suffix(".lines.txt"), [lane(foot) for foot in (50, 110)])
    put_list(root, "train.txt", [f"/driver_1/a.MP4/{n:05d}.jpg" for n in range(3)])
    return {"lane_width": 4}


def put_tusimple(root):
    rows, feet = range(20, 60, 4), (-20, 50, 110)
    items = [
        tusimple_item(f"clips/0313-1/{n}/20.jpg", [lane(foot) for foot in feet], rows)
        for n in range(3)
    ]
    for item in items:
        put_image(root / item["raw_file"], LANES)
    put_labels(root / "label_data_0313.json", items[:2])
    put_labels(root / "label_data_0601.json", items[2:])
    return {"lane_width": 4, "num_lanes": 4}


def put_curvelanes(root):
    for n in range(3):
        put_image(root / f"train/images/{n}.jpg", LANES)
        lines = [[{"x": str(x), "y": str(y)} for x, y in lane(foot)] for foot in (50, 110)]
        path = root / f"train/labels/{n}.lines.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"Lines": lines}))
    return {"lane_width": 4, "num_lanes": 4}


def put_llamas(root):
    def marker(x, y):
        pixels = {"pixel_start": {"x": x, "y": y}, "pixel_end": {"x": x + 2, "y": y - 10}}
        return pixels | {"world_start": {"x": 0, "y": 0, "z": 64 - y}}

    sides = {"l0": 40, "r0": 100}
    lanes = [
        {"lane_id": name, "markers": [marker(x, 60), marker(x + 6, 30)]}
        for name, x in sides.items()
    ]
    for n in range(3):
        put_image(root / f"color_images/train/run/{n}_color_rect.png", LANES)
        path = root / f"labels/train/run/{n}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"lanes": lanes}))
    return {"lane_width": 4}


def put_bdd100k(root):
    entries = []
    for n in range(3):
        put_image(root / f"images/100k/train/{n}.jpg", LANES)
        lines = [
            {"id": str(k), "category": "single white", "attributes": {"laneDirection": "parallel",
             "laneStyle": "solid", "laneTypes": "single white"},
             "poly2d": [{"vertices": [[x, 63], [80, 20]], "types": "LL", "closed": False}]}
            for k, x in enumerate((40, 46))
        ]  # fmt: skip
        entries.append({"name": f"{n}.jpg", "labels": lines})
    path = root / "labels/lane/polygons/lane_train.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(entries))
    return {"lane_width": 4}


def opened(name: str, root: Path):
    """A small split of each registered set."""
    if name == "arrays":
        pairs = [(noise(n), (noise(n)[..., 0] > 128).astype(np.int64)) for n in range(3)]
        return Arrays(pairs, ["road", "car"])
    small = {"streets": {"size": (64, 96)}, "lanes": {"size": LANES}}
    keys = small.get(name)
    if keys is None:
        keys = {"root": root, **(globals()[f"put_{name}"](root) or {})}
    kind = registry.datasets.get(name)
    return kind(kind.Config.model_validate({"name": name, **keys}), "train")


SHIPPED = [
    *("ade20k", "arrays", "bdd100k", "camvid", "cityscapes", "coco_stuff"),
    *("culane", "curvelanes", "folder", "lanes", "llamas", "streets", "tusimple", "voc"),
]


@pytest.mark.parametrize("name", SHIPPED)
def test_our_datasets(name, tmp_path):
    dataset = opened(name, tmp_path)
    not_applicable = {"lanes"} if dataset.task != "lanes" else set()
    if dataset.files(0) is None:
        not_applicable |= {"colour_order", "missing_files"}
    report = check_dataset(dataset, images=3)
    missing = set(DATASET_CHECKS.names) - set(report.passed)
    assert missing - {"colour_order"} == not_applicable - {"colour_order"}, report


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "folder", "keys"),
    [
        ("camvid", "camvid", {}),
        ("cityscapes", "cityscapes_sample", {}),
    ],
)
def test_real_ones(name, folder, keys):
    root = Path(os.environ["SEGKD_REAL_DATA"]) / folder
    report = check_dataset(name, {"root": root, **keys}, images=3)
    assert set(report.skipped) == {"lanes"}


@pytest.fixture
def files(tmp_path):
    mutants.write_files(tmp_path)
    return {"root": tmp_path}


def test_the_right_ones_are_right(files):
    assert set(check_dataset(mutants.Files, files).skipped) == {"lanes"}
    left = {"colour_order", "missing_files"}
    assert set(check_dataset(mutants.Drawn).skipped) == {*left, "lanes"}
    assert set(check_dataset(mutants.Road, {"lane_width": 4}).skipped) == left


@pytest.mark.parametrize("name", FAILS)
def test_a_mutant_is_caught_by_the_check_of_its_fault(name, files):
    kind = getattr(mutants, name)
    keys = files if issubclass(kind, mutants.Files) else {}
    with pytest.raises(CheckFailed, match=f"dataset '{kind.name}': .*{FAILS[name]}") as caught:
        check_dataset(kind, keys)
    assert FAILS[name] in caught.value.failed


def test_each_mutant_has_a_row_and_each_check_has_a_mutant():
    found = dict(inspect.getmembers(mutants, inspect.isclass))
    own = {n for n, c in found.items() if c.__module__ == mutants.__name__}
    assert own == {*FAILS, "Files", "Drawn", "Road"}
    assert set(FAILS.values()) == set(DATASET_CHECKS.names)


def test_what_is_no_dataset_is_refused(files):
    opened = mutants.Files(mutants.Files.Config(name="files", **files), "train")
    with pytest.raises(ConfigError, match="an instance, which is checked as it is, and config, sp"):
        check_dataset(opened, files, split="train")
    with pytest.raises(ConfigError, match="expected a class derived from segkd"):
        check_dataset([1, 2])
    with pytest.raises(ConfigError, match="unknown dataset 'camvidd'"):
        check_dataset("camvidd")
    with pytest.raises(ConfigError, match=r"check_dataset: rooot: unknown key. Did you mean 'roo"):
        check_dataset(mutants.Files, {"rooot": "x"})


def test_the_class_that_an_ignore_index_hides_is_named(monkeypatch):
    monkeypatch.setattr(mutants.Drawn, "ignore_index", 1)
    with pytest.raises(CheckFailed, match="ignore_index 1 is the class 'car'"):
        check_dataset(mutants.Drawn, only="declaration")


@pytest.mark.slow
def test_spawned_loader_processes_read_the_same(files):
    """What the check of pickling stands for."""
    data = mutants.Files(mutants.Files.Config(name="files", crop=(64, 64), **files), "train")
    found = []
    for workers in (0, 2):
        config = data.config.model_copy(update={"workers": workers})
        loader = train_loader(data, config=config, batch_size=2, seed=0, start=0, stop=2)
        if workers:
            loader._loader.multiprocessing_context = "spawn"
        found.append([batch.images for batch in loader])
    assert all(map(torch.equal, *found))
