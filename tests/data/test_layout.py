"""Pairs of images and masks are found in the ways in which people store them."""

import cv2
import numpy as np
import pytest
from image_folders import folder, image, mask, write
from PIL import Image

from segkd.data.draft import draft
from segkd.data.folder import Folder, FolderConfig
from segkd.data.layout import find_layout
from segkd.errors import DataError

WAYS = {
    "parallel": lambda n: (f"images/{n}.png", f"masks/{n}.png"),
    "split first": lambda n: (
        f"{'val' if n > 5 else 'train'}/images/a{n}.jpg",
        f"{'val' if n > 5 else 'train'}/labels/a{n}.png",
    ),
    "split last": lambda n: (
        f"img/{'validation' if n > 5 else 'training'}/a{n}.jpg",
        f"annotations/{'validation' if n > 5 else 'training'}/a{n}.png",
    ),
    "joined words": lambda n: (
        f"{'val' if n > 5 else 'train'}/{n}.jpg",
        f"{'val' if n > 5 else 'train'}annot/{n}.png",
    ),
    "cityscapes": lambda n: (
        f"leftImg8bit/train/x/x_{n}_leftImg8bit.png",
        f"gtFine/train/x/x_{n}_gtFine_labelIds.png",
    ),
    "suffix beside": lambda n: (f"all/{n}_sat.jpg", f"all/{n}_mask.png"),
    "suffix, plain image": lambda n: (f"all/{n}.jpg", f"all/{n}_mask.png"),
    "same stem beside": lambda n: (f"all/{n}.jpg", f"all/{n}.png"),
    "unknown folders": lambda n: (f"A/{n}.jpg", f"B/{n}.png"),
    "prefix": lambda n: (f"images/image_{n}.png", f"masks/mask_{n}.png"),
    "letter added": lambda n: (f"images/{n}.png", f"labels/{n}_L.png"),
    "per drive": lambda n: (f"drive{n % 2}/images/{n}.jpg", f"drive{n % 2}/masks/{n}.png"),
    "flat masks": lambda n: (f"images/d{n % 2}/f{n}.jpg", f"masks/f{n}.png"),
    "voc": lambda n: (f"JPEGImages/{n}.jpg", f"SegmentationClass/{n}.png"),
}


def test_masks_may_be_gifs_and_images_may_not(tmp_path):
    for number in range(8):
        write(tmp_path / f"train/a{number}.jpg", image(mask(number), number))
        (tmp_path / "train_masks").mkdir(exist_ok=True)
        Image.fromarray(mask(number)).save(tmp_path / f"train_masks/a{number}_mask.gif")
    Image.fromarray(mask(0)).save(tmp_path / "train/intro.gif")
    found = draft(tmp_path)
    assert sum(found.counts.values()) == 8 and found.spec["mask_ending"] == "_mask.gif"
    assert any("neither images nor class masks: train/intro.gif" in note for note in found.notes)
    spec = {"name": "folder", "root": tmp_path, "spec": found.spec}
    sample = Folder(FolderConfig.model_validate(spec), "train").read(0)
    number = int(sample.name.removeprefix("a").removesuffix(".jpg"))
    assert np.array_equal(sample.label, mask(number))
    for path in (tmp_path / "train").glob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match="there is no image in this folder"):
        draft(tmp_path)


@pytest.mark.parametrize("names", WAYS.values(), ids=WAYS)
def test_each_image_gets_its_mask_and_the_spec_reads_the_same_pairs(names, tmp_path):
    root = folder(tmp_path / "set", names).resolve()
    found = draft(root, plain=True)
    expected = {(root / names(number)[0], root / names(number)[1]): number for number in range(8)}
    assert sum(found.counts.values()) == 8
    spec = {**found.spec, "splits": {k: dict(v) for k, v in found.spec["splits"].items()}}
    for split, lines in found.lists.items():
        path = tmp_path / f"{split}.txt"
        path.write_text("\n".join(lines) + "\n")
        spec["splits"][split]["list"] = str(path)
    config = Folder.Config.model_validate({"name": "folder", "root": str(root), "spec": spec})
    pairs = [pair for split in ("train", "val") for pair in Folder(config, split).pairs]
    assert sorted(pairs) == sorted(expected)
    for split in ("train", "val"):
        dataset = Folder(config, split)
        for index, pair in enumerate(dataset.pairs):
            np.testing.assert_array_equal(dataset.read(index).label, mask(expected[pair]))


def test_what_belongs_to_nothing_is_told(tmp_path):
    root = folder(tmp_path, WAYS["parallel"])
    write(tmp_path / "images/bare.png", image(mask(0), 0))
    write(tmp_path / "masks/alone.png", mask(0))
    write(tmp_path / "instances/0.png", mask(0))
    layout = find_layout(root)
    assert [path.name for path in layout.bare[""]] == ["bare.png"]
    assert [path.name for path in layout.alone] == ["alone.png"]
    assert [path.parent.name for path in layout.ignored] == ["instances"]
    found = draft(root)
    assert found.counts["unlabeled"] == 1 and found.lists["unlabeled"] == ("bare.png",)
    text = "\n".join(found.notes)
    assert "1 images have no mask: images/bare.png" in text
    assert "1 masks have no image and are not used: masks/alone.png" in text


def test_a_mask_of_another_size_is_left_out_and_told(tmp_path):
    root = folder(tmp_path, WAYS["parallel"])
    write(tmp_path / "masks/3.png", cv2.resize(mask(3), (24, 16), interpolation=0))
    found = draft(root)
    assert found.counts["train"] + found.counts["val"] == 7
    assert any("3.png is 32x48, its mask" in note and "is 16x24" in note for note in found.notes)
    lines = [line for own in found.lists.values() for line in own]
    assert "3.png" not in lines and len(lines) == 7
    for number in range(8):
        write(tmp_path / f"masks/{number}.png", mask(number)[::2, ::2])
    with pytest.raises(DataError, match=r"none of the 8 pairs can be used: .*resize them"):
        draft(root)


def test_folders_can_be_named(tmp_path):
    root = folder(tmp_path, lambda n: (f"masks/{n}.png", f"images/{n}.png"))  # the wrong way round
    layout = find_layout(root, images=tmp_path / "masks", masks=tmp_path / "images")
    assert all(image.parent.name == "masks" for image, _ in layout.pairs[""])
    with pytest.raises(DataError, match="give both"):
        find_layout(root, images=tmp_path / "masks")
    with pytest.raises(DataError, match="there is no folder"):
        find_layout(root, images=tmp_path / "masks", masks=tmp_path / "none")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda root: root / "none", "does not exist"),
        (lambda root: folder(root, lambda n: (f"masks/{n}.png", None)), "all 8 files look like"),
        (lambda root: root, "there is no image in this folder"),
    ],
)
def test_folders_without_images_are_refused(make, text, tmp_path):
    with pytest.raises(DataError, match=text):
        draft(make(tmp_path))


def test_two_masks_of_one_image_are_refused(tmp_path):
    root = folder(tmp_path, WAYS["parallel"])
    write(tmp_path / "labels/0.png", mask(0))
    with pytest.raises(DataError, match=r"0.png has 2 masks: .*--images images --masks"):
        find_layout(root)


def test_added_letters_in_folders_with_the_same_names(tmp_path):
    names = lambda n: (f"images/d{n // 4}/{n % 4}.png", f"masks/d{n // 4}/{n % 4}_xy.png")  # noqa: E731
    pairs = find_layout(folder(tmp_path, names)).pairs[""]
    assert len(pairs) == 8
    assert all(m.parent.name == i.parent.name and m.stem == f"{i.stem}_xy" for i, m in pairs)


def test_masks_that_match_no_image_are_refused(tmp_path):
    root = folder(tmp_path, lambda n: (f"images/a{n}.png", f"masks/{'xyzuvwqr'[n]}.png"))
    with pytest.raises(DataError, match="none of the 8 masks belongs to one of the 8 images"):
        draft(root)
