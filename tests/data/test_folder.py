from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError

from segkd.data.folder import Folder, FolderConfig
from segkd.data.unlabeled import labels_as_told
from segkd.errors import ConfigError, DataError

SPEC = {
    "classes": [
        {"name": "road", "ids": [7, 9]},
        {"name": "car", "ids": [26], "color": [0, 0, 142]},
    ],
    "ignore": [0],
    "splits": {"train": {"images": "left/train", "masks": "fine/train"}},
    "image_ending": "_left.png",
    "mask_ending": "_ids.png",
}
COLORS = {
    "masks": "colors",
    "classes": [
        {"name": "road", "colors": [[128, 64, 128]]},
        {"name": "car", "colors": [[0, 0, 142], [1, 2, 3]]},
    ],
    "ignore_colors": [[0, 0, 0]],
    "splits": {"train": {"images": "i", "masks": "m"}},
}


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def opened(root: Path, spec, split: str = "train") -> Folder:
    return Folder(FolderConfig(name="folder", root=root, spec=spec), split)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for stem in ("ulm/x1", "bonn/x2"):
        save(tmp_path / f"left/train/{stem}_left.png", np.full((2, 3, 3), 5, np.uint8))
        ids = np.array([[0, 7, 9], [26, 26, 7]], np.uint8)
        save(tmp_path / f"fine/train/{stem}_ids.png", ids)
    return tmp_path


def test_a_tree_like_cityscapes(root):
    dataset = opened(root, SPEC)
    assert [path.name for path, _ in dataset.pairs] == ["x2_left.png", "x1_left.png"]
    assert dataset.read(0).label.tolist() == [[255, 0, 0], [1, 1, 0]]
    assert dataset.classes == ("road", "car") and dataset.palette[1].tolist() == [0, 0, 142]


def test_the_spec_from_a_file(root, monkeypatch):
    (root / "mydata.yaml").write_text(yaml.safe_dump(SPEC))
    assert len(opened(root, root / "mydata.yaml")) == 2
    assert len(opened(root, "mydata.yaml")) == 2
    monkeypatch.chdir(root)
    assert len(opened(Path("."), "mydata.yaml")) == 2
    with pytest.raises(ConfigError, match=r"no file other\.yaml"):
        opened(root, "other.yaml")
    (root / "mydata.yaml").write_text(yaml.safe_dump(SPEC | {"clases": []}))
    with pytest.raises(ConfigError, match=r"mydata\.yaml: clases"):
        opened(root, "mydata.yaml")
    (root / "mydata.yaml").write_text("classes: [")
    with pytest.raises(ConfigError, match=r"mydata\.yaml:1: expected the node"):
        opened(root, "mydata.yaml")


def test_the_config_survives_being_stored(root):
    config = FolderConfig(name="folder", root=root, spec=SPEC)
    text = yaml.safe_dump(config.model_dump(mode="json"))
    again = FolderConfig.model_validate(yaml.safe_load(text))
    assert again == config and len(Folder(again, "train")) == 2


def test_undeclared_ids_are_named_or_ignored(root):
    save(root / "fine/train/bonn/x2_ids.png", np.array([[7, 8, 200]], np.uint8))
    with pytest.raises(DataError, match=r"x2_ids\.png: undeclared ids 8, 200\..*data\.spec"):
        opened(root, SPEC).read(0)
    label = opened(root, SPEC | {"undeclared": "ignore"}).read(0).label
    assert label.tolist() == [[0, 255, 255]]


def test_colours(tmp_path):
    save(tmp_path / "i/a.jpg", np.zeros((1, 4, 3), np.uint8))
    mask = np.array([[[128, 64, 128], [0, 0, 142], [1, 2, 3], [0, 0, 0]]], np.uint8)
    save(tmp_path / "m/a.png", mask)
    dataset = opened(tmp_path, COLORS)
    assert dataset.read(0).label.tolist() == [[0, 1, 1, 255]]
    assert dataset.palette.tolist() == [[128, 64, 128], [0, 0, 142]]
    mask[0, 0] = 142, 0, 0
    save(tmp_path / "m/a.png", mask)
    with pytest.raises(DataError, match=r"a\.png: undeclared colors \(142, 0, 0\)"):
        dataset.read(0)
    save(tmp_path / "m/a.png", mask[..., 0])
    message = r"a\.png: the mask holds ids \(1, 142\).*Convert it to RGB.*masks: ids"
    for spec in (COLORS, COLORS | {"undeclared": "ignore"}):
        with pytest.raises(DataError, match=message):
            opened(tmp_path, spec).read(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_masks_of_greys_alone_among_colours(channels, tmp_path):
    save(tmp_path / "i/a.jpg", np.zeros((1, 2, 3), np.uint8))
    grey = np.array([[0, 90]], np.uint8)
    save(tmp_path / "m/a.png", grey if channels == 1 else np.dstack([grey] * 3))
    classes = [*COLORS["classes"], {"name": "wall", "colors": [[90, 90, 90]]}]
    assert opened(tmp_path, COLORS | {"classes": classes}).read(0).label.tolist() == [[255, 2]]


def test_indexed_and_16_bit_masks_give_their_ids(root):
    indexed = Image.fromarray(np.array([[7, 26, 0]], np.uint8)).convert("P")
    indexed.putdata([7, 26, 0])
    indexed.putpalette([i for i in range(256) for _ in range(3)][::-1])
    indexed.save(root / "fine/train/bonn/x2_ids.png")
    assert opened(root, SPEC).read(0).label.tolist() == [[0, 1, 255]]
    wide = SPEC | {"classes": [{"name": "a", "ids": [40000]}, {"name": "b", "ids": [7]}]}
    cv2.imwrite(str(root / "fine/train/bonn/x2_ids.png"), np.array([[40000, 7]], np.uint16))
    assert opened(root, wide).read(0).label.tolist() == [[0, 1]]


def test_lists_splits_and_unlabelled_images(root):
    (root / "one.txt").write_text("ulm/x1_left.png\n")
    (root / "two.txt").write_text("ulm/x1\nbonn/x2\n")
    (root / "bad.txt").write_text("ulm/x9\n")
    for name in ("one", "two", "bad", "none"):
        where = SPEC["splits"]["train"] | {"list": f"{name}.txt"}
        spec = SPEC | {"splits": {"train": where, "test": {"images": "left"}}}
        if name in ("bad", "none"):
            with pytest.raises(DataError, match=rf"{name}\.txt"):
                opened(root, spec)
        else:
            found = [path.name for path, _ in opened(root, spec).pairs]
            assert found == ["x1_left.png", "x2_left.png"][: len(found)] and found
    bare = opened(root, spec, "test")
    assert len(bare) == 2 and bare.read(0).label is None
    with pytest.raises(ConfigError, match=r"no split 'tset'\. Did you mean 'test'"):
        opened(root, spec, "tset")


def test_masks_beside_the_images(tmp_path):
    save(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    save(tmp_path / "a_mask.png", np.zeros((2, 2), np.uint8))
    classes = [{"name": "a"}, {"name": "b"}]
    spec = {"classes": classes, "splits": {"train": {"images": ".", "masks": "."}}}
    dataset = opened(tmp_path, spec | {"mask_ending": "_mask.png"})
    assert len(dataset) == 1 and dataset.read(0).label.tolist() == [[0, 0], [0, 0]]


def test_nothing_found_says_where_it_looked(tmp_path):
    with pytest.raises(DataError, match=r"left/train"):
        opened(tmp_path, SPEC)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ignore": [7]}, "7 belongs to class .road. and to `ignore`"),
        ({"masks": "colors"}, "have none: road, car"),
        ({"masks": "color"}, "'ids' or 'colors'"),
        ({"classes": [{"name": "a"}, {"name": "a"}]}, "declared twice: a"),
    ],
)
def test_specs_that_contradict_themselves(change, message):
    with pytest.raises(ValidationError, match=message):
        FolderConfig(name="folder", spec=SPEC | change)


def test_masks_in_a_folder_below_the_images_are_no_images(tmp_path):
    masks = {"train": "masks", "val": "masks", "more": None}
    splits = {name: {"images": "."} | ({"masks": m} if m else {}) for name, m in masks.items()}
    spec = {"classes": ["a", "b"], "splits": splits}
    for stem in ("1", "sub/2"):
        save(tmp_path / f"{stem}.png", np.full((2, 3, 3), 5, np.uint8))
        save(tmp_path / f"masks/{stem}.png", np.ones((2, 3), np.uint8))
    config = FolderConfig(name="folder", root=tmp_path, spec=spec, labels="optional")
    for split, unlabelled in (("train", 0), ("more", 2)):
        dataset = labels_as_told(Folder(config, split), config)
        assert (len(dataset), dataset.unlabelled) == (2, unlabelled)
    above = {"classes": ["a", "b"], "splits": {"train": {"images": "masks", "masks": "."}}}
    assert len(opened(tmp_path, above)) == 2
