import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from lane_trees import put_frame, put_list
from PIL import Image

from segkd.commands.data import check
from segkd.data.check import check_dataset
from segkd.data.folder import Folder, FolderConfig
from segkd.errors import DataError

SPEC = {
    "classes": [{"name": "road"}, {"name": "car"}, {"name": "train"}],
    "splits": {"train": {"images": "images", "masks": "masks"}},
}


def put(root: Path, stem: str, label: np.ndarray, size: tuple[int, int] = (4, 6)) -> None:
    for folder, array in (("images", np.zeros((*size, 3), np.uint8)), ("masks", label)):
        (root / folder).mkdir(exist_ok=True)
        Image.fromarray(array).save(root / folder / f"{stem}.png")


def folder_set(tmp_path, **splits):
    """Keys of a set of three images in each split, which are drawn with the seed of the split."""
    for split, seed in splits.items():
        (tmp_path / split).mkdir()
        draw = np.random.default_rng(seed)
        for stem in "abc":
            put(tmp_path / split, stem, draw.integers(0, 3, (4, 6), np.uint8))
            image = draw.integers(0, 256, (4, 6, 3), np.uint8)
            Image.fromarray(image).save(tmp_path / split / f"images/{stem}.png")
    folders = {name: {"images": f"{name}/images", "masks": f"{name}/masks"} for name in splits}
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(SPEC | {"splits": folders}))
    return [f"data.root={tmp_path}", f"data.spec={spec}"]


def checked(root: Path, **keys):
    config = FolderConfig(name="folder", root=root, spec=SPEC, **keys)
    return check_dataset(Folder(config, "train"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    label = np.zeros((4, 6), np.uint8)
    label[0] = 1
    label[1] = 255
    put(tmp_path, "a", label)
    return tmp_path


def test_a_clean_set(root):
    label = np.full((4, 6), 2, np.uint8)
    put(root, "b", label)
    calls = []
    config = FolderConfig(name="folder", root=root, spec=SPEC)
    report = check_dataset(Folder(config, "train"), progress=lambda *c: calls.append(c))
    assert report.ok and report.findings == [] and calls == [(1, 2), (2, 2)]
    assert report.pixels.tolist() == [12, 6, 24] and report.ignored == 6
    assert report.ignore_share == pytest.approx(6 / 48)
    assert report.shares.sum() == pytest.approx(1) and report.sizes == {(4, 6): 2}


def test_everything_that_can_be_wrong_is_named(root):
    put(root, "size", np.full((4, 5), 2, np.uint8))
    put(root, "value", np.full((4, 6), 9, np.uint8))
    put(root, "void", np.full((4, 6), 255, np.uint8))
    put(root, "cut", np.zeros((4, 6), np.uint8))
    put(root, "alone", np.zeros((4, 6), np.uint8))
    put(root, "bare", np.zeros((4, 6), np.uint8))
    (root / "images/alone.png").unlink()
    (root / "masks/bare.png").unlink()
    (root / "images/cut.png").write_bytes((root / "images/cut.png").read_bytes()[:-20])
    report = checked(root)
    found = {Path(f.file).name: (f.level, f.text) for f in report.findings}
    expected = {
        "size.png": ("error", "4x5"),
        "value.png": ("error", "undeclared ids 9"),
        "cut.png": ("error", "cut off"),
        "bare.png": ("error", "no such file"),
        "void.png": ("warning", "all pixels are void"),
        "alone.png": ("warning", "without an image"),
        root.name: ("warning", "no pixel of train"),
    }
    assert found.keys() == expected.keys() and not report.ok
    for name, (level, text) in expected.items():
        assert found[name][0] == level and text in found[name][1], name
    assert all(finding.repair for finding in report.findings)


def test_sizes_that_cannot_be_batched(root):
    put(root, "b", np.full((8, 6), 2, np.uint8), (8, 6))
    assert any("4x6 (1), 8x6 (1)" in finding.text for finding in checked(root).findings)
    assert checked(root, crop=(4, 4)).findings == []
    (finding,) = checked(root, crop=(6, 6), pad=False, scale=(1, 1)).errors
    assert "1 images of 4x6" in finding.text and "data.pad=true" in finding.repair


@pytest.mark.parametrize(("labels", "errors"), [("required", 3), ("optional", 2), ("none", 0)])
def test_training_labels_are_read_as_the_run_reads_them(labels, errors, tmp_path, capsys):
    """Those of an evaluation are always needed."""
    keys = [*folder_set(tmp_path, train=0, val=1), f"data.labels={labels}"]
    (tmp_path / "train/masks/a.png").unlink()
    for stem in "bc":
        (tmp_path / f"train/masks/{stem}.png").write_bytes(b"no image")
    assert check("folder", keys) == (errors == 0)
    assert capsys.readouterr().out.count("  error: ") == errors
    (tmp_path / "val/masks/a.png").unlink()
    assert not check("folder", keys)


def test_unlabelled_images_are_read_and_compared_with_those_that_are_scored(tmp_path, capsys):
    keys = folder_set(tmp_path, train=0, val=1)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tmp_path / "train/images/a.png", other / "seen.png")
    keys.append(f"data.unlabeled.root={other}")
    assert check("folder", keys)
    said = capsys.readouterr().out
    assert said.endswith("unlabelled images: 1 images, 4x6 (1)\n  no problems\n")
    shutil.copy(tmp_path / "val/images/b.png", other / "scored.png")
    assert check("folder", keys)
    said = capsys.readouterr().out.partition("unlabelled images: 2 images")[2]
    assert "scored.png: is scored as well: " in said and said.count("warning") == 1
    (other / "torn.png").write_bytes(b"no image")
    assert not check("folder", keys)
    said = capsys.readouterr().out.partition("unlabelled images: 3 images")[2]
    assert "torn.png: cannot be read" in said and said.count("error: ") == 1
    assert check("folder", [*keys, "data.unlabeled.share=0"])
    assert "unlabelled" not in capsys.readouterr().out


def test_a_training_split_that_is_not_read_is_not_checked(tmp_path, capsys):
    keys = folder_set(tmp_path, train=0, val=1, more=2)
    shutil.rmtree(tmp_path / "train")
    keys += ["data.unlabeled.split=more", "data.unlabeled.share=1"]
    assert check("folder", keys)
    said = capsys.readouterr().out
    assert "folder train: training does not read it: data.unlabeled.share is 1\n" in said
    assert "folder val: 3 images" in said and "unlabelled images: 3 images" in said
    assert check("folder", [*keys, "data.train_split=val"])  # it is scored, too
    assert "does not read" not in capsys.readouterr().out


def test_unlabelled_images_of_a_recipe_are_compared_with_what_each_run_scores(tmp_path, capsys):
    keys = folder_set(tmp_path, train=0, val=1, test=2)
    run = {"data": {"unlabeled": {"split": "test"}}}
    scored = {"data": {"val_split": "test", "unlabeled": {"split": "test", "share": 0.25}}}
    recipe = {
        "out": str(tmp_path / "out"),
        "common": {"steps": 1, "data": {"name": "folder"}, "student": {"arch": "fpn"}},
        "runs": {"one": run, "two": scored},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert check(str(tmp_path / "recipe.yaml"), [f"common.{key}" for key in keys])
    one, _, two = capsys.readouterr().out.partition("Data of two:")
    assert "unlabelled images: 3 images" in one and "scored" not in one
    assert "unlabelled images: see above\n" in two and two.count("is scored as well") == 3


def test_unlabelled_images_of_another_size_need_a_crop(tmp_path, capsys):
    keys = folder_set(tmp_path, train=0, val=1)
    (tmp_path / "other").mkdir()
    Image.new("RGB", (8, 4), (9, 90, 9)).save(tmp_path / "other/a.png")
    keys.append(f"data.unlabeled.root={tmp_path / 'other'}")
    text = "  warning: unlabelled images have 4x8, those of split 'train' 4x6. Set data.crop"
    for more, told in (([], True), (["data.crop=[4,4]"], False), (["data.resize=[4,4]"], False)):
        assert check("folder", [*keys, *more])
        assert (text in capsys.readouterr().out) is told
    assert check("folder", [*keys, "data.unlabeled.share=1"])
    assert text not in capsys.readouterr().out


def test_unlabelled_frames_of_a_lane_set_are_images(tmp_path, capsys):
    root, other = tmp_path / "lanes", tmp_path / "other"
    put_frame(root, "/driver/00000.jpg")
    put_list(root, "train.txt", ["/driver/00000.jpg"])
    other.mkdir()
    Image.new("RGB", (80, 40), (9, 90, 9)).save(other / "frame.png")
    keys = [f"data.root={root}", "data.val_split=train"]
    check("culane", [*keys, f"data.unlabeled.root={other}"])
    said = capsys.readouterr().out.partition("unlabelled images: 1 images")[2]
    assert said == ", 40x80 (1)\n  no problems\n"


def test_a_set_without_its_evaluation_split_can_be_checked(tmp_path):
    keys = folder_set(tmp_path, train=0, val=1)
    shutil.rmtree(tmp_path / "val/images")
    with pytest.raises(DataError, match=r"For split 'train' alone: data.val_split=train"):
        check("folder", keys)
    assert check("folder", [*keys, "data.val_split=train"])
