"""How images are divided where folders do not say it, and sets that segkd knows."""

import os
from pathlib import Path

import numpy as np
import pytest
from image_folders import folder, image, mask, write

from segkd.data.camvid import CamVid
from segkd.data.draft import draft, known_set
from segkd.errors import DataError

NAMES = lambda n: (f"images/{n:02d}.png", f"masks/{n:02d}.png")  # noqa: E731


def names_in(found, split):
    return [Path(line.split("\t")[0]).stem for line in found.lists[split]]


def test_the_last_fifth_is_for_validation(tmp_path):
    found = draft(folder(tmp_path, NAMES, count=10))
    assert found.counts == {"train": 8, "val": 2}
    assert names_in(found, "val") == ["08", "09"] and "last fifth" in found.how


def test_no_class_is_left_out_of_a_part(tmp_path):
    root = folder(tmp_path, NAMES, count=10)
    for number in (3, 4):  # a class that only these have
        ids = mask(number)
        ids[:4] = 9
        write(tmp_path / f"masks/{number:02d}.png", ids)
    found = draft(root)
    assert names_in(found, "val") == ["04", "09"] and "every fifth" in found.how


def test_recordings_stay_whole(tmp_path):
    names = lambda n: (f"images/{'abcde'[n // 4]}_{n}.png", f"masks/{'abcde'[n // 4]}_{n}.png")  # noqa: E731
    found = draft(folder(tmp_path, names, count=20))
    val, train = ({stem[0] for stem in names_in(found, split)} for split in ("val", "train"))
    assert len(val) == 1 and not val & train and "whole folders or recordings" in found.how


def test_list_files_decide(tmp_path):
    root = folder(tmp_path, NAMES, count=6)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/train.txt").write_text("00\n02\n03.png\n")
    (tmp_path / "splits/val.txt").write_text("images/05.png masks/05.png\n01\n")
    found = draft(root)
    assert names_in(found, "train") == ["00", "02", "03"]
    assert names_in(found, "val") == ["05", "01"]


# -- which image a line means ----------------------------------------------------------------------


def drives(n):
    return tuple(f"{kind}/drive{n // 2 + 1}/{n % 2:04d}.png" for kind in ("images", "masks"))


def write_lists(root, **lines):
    for split, own in lines.items():
        (root / f"{split}.txt").write_text("".join(f"{line}\n" for line in own), encoding="utf-8")


@pytest.mark.parametrize(
    "before", ["", "images/", "/", "./", "/elsewhere/images/", "{root}/images/"]
)
@pytest.mark.parametrize("ending", ["", ".png", ".jpg", ".png masks/0.png", ".png 1 0"])
def test_images_of_equal_names_are_told_apart_by_their_folders(before, ending, tmp_path):
    root = folder(tmp_path, drives, count=6)
    line = (before + "drive{}/{:04d}" + ending).format
    train = [line(*own, root=root) for own in ((1, 0), (1, 1), (2, 1))]
    write_lists(root, train=train, val=[line(3, number, root=root) for number in (1, 0)])
    found = draft(root)
    assert "as the list files say" in found.how
    images = {"train": ["drive1/0000.png", "drive1/0001.png", "drive2/0001.png"]}
    assert {split: list(lines) for split, lines in found.lists.items()} == images
    assert found.spec["splits"]["val"]["images"] == "images/drive3"  # all of this folder
    assert not any("lists" in note or "lines" in note for note in found.notes)


def test_a_name_that_several_images_have_is_refused(tmp_path):
    root = folder(tmp_path, drives, count=6)
    write_lists(root, train=["drive1/0000", "0001"], val=["drive2/0000"])
    message = (
        r"train\.txt, line 2: '0001' may be images/drive1/0001\.png, images/drive2/0001\.png, .*"
        "Write the whole path below"
    )
    with pytest.raises(DataError, match=message):
        draft(root)


def test_one_image_is_not_taken_for_those_of_other_folders(tmp_path):
    root = folder(tmp_path, NAMES, count=6)
    write_lists(root, train=["a/00", "a/01"], val=["b/00", "04"])
    with pytest.raises(DataError, match=r"line 1: 'b/00' and 'a/00' .* may both be images/00\.png"):
        draft(root)
    write_lists(root, train=["images/00", "a/01"], val=["b/00", "04"])
    found = draft(root)
    assert names_in(found, "train") == ["00", "01"] and names_in(found, "val") == ["04"]
    assert any("val.txt: 1 of 2 lines are no image with a mask" in note for note in found.notes)


def test_lines_without_an_image_are_told(tmp_path):
    root = folder(tmp_path, NAMES, count=6)
    (root / "masks/03.png").unlink()
    write_lists(root, train=["00", "01", "77", "03"], val=["04", "00"])
    notes = draft(root).notes
    assert any(
        "2 of 4 lines are no image with a mask, and are left out: 77, 03" in n for n in notes
    )
    assert any("1 images are in the lists for training and for validation" in n for n in notes)
    write_lists(root, val=["03", "88"])
    with pytest.raises(DataError, match=r"val\.txt: none of its 2 lines .*: 03, 88\. Write paths"):
        draft(root)


@pytest.mark.parametrize(
    "mark", ["", ".png", ".png\tmasks/x.png", ".png masks/img {}.png", ".png 1 0"]
)
def test_names_with_blanks(mark, tmp_path):
    names = lambda n: (f"images/img {n}.png", f"masks/img {n}.png")  # noqa: E731
    root = folder(tmp_path, names, count=6)
    line = ("img {}" + mark).format
    write_lists(root, train=[line(n, n) for n in (0, 5, 3)], val=[line(n, n) for n in (1, 2)])
    found = draft(root)
    assert names_in(found, "train") == ["img 0", "img 5", "img 3"]
    assert names_in(found, "val") == ["img 1", "img 2"]


def test_the_second_column_is_no_image(tmp_path):
    root = folder(tmp_path, lambda n: (f"images/{n}.png", f"masks/{n}.png"), count=6)
    write_lists(root, train=["images/0 masks/5", "images/1 masks/4"], val=["images/2 masks/3"])
    found = draft(root)
    assert names_in(found, "train") == ["0", "1"] and names_in(found, "val") == ["2"]


@pytest.mark.parametrize(
    ("lists", "text"),
    [
        ({"train": ["00"]}, "train.txt, as there is no val.txt beside"),
        ({"train": ["x y"], "val": ["z"]}, "as no line is an image of this folder, e.g. 'x y'"),
        ({"train": [], "val": []}, "as no line is an image of this folder"),
    ],
)
def test_lists_that_are_not_used_are_told(lists, text, tmp_path):
    root = folder(tmp_path, NAMES, count=6)
    write_lists(root, **lists)
    found = draft(root)
    assert found.counts == {"train": 5, "val": 1}
    assert any(note.startswith("not used: ") and text in note for note in found.notes)


def test_folders_go_before_lists_and_it_is_told(tmp_path):
    names = lambda n: tuple(f"{'val' if n > 4 else 'train'}/{k}/{n}.png" for k in ("img", "gt"))  # noqa: E731
    root = folder(tmp_path, names, count=6)
    write_lists(root, train=["1"], val=["5"])
    found = draft(root)
    assert found.counts == {"train": 5, "val": 1}
    assert any("val.txt, as the folders say which" in note for note in found.notes)


def test_a_test_folder_is_left_untouched(tmp_path):
    names = lambda n: tuple(f"{'test' if n > 7 else 'train'}/{k}/{n}.png" for k in ("img", "gt"))  # noqa: E731
    found = draft(folder(tmp_path, names, count=10))
    assert found.counts == {"train": 6, "val": 2, "test": 2}
    assert found.spec["splits"]["test"] == {"images": "test/img", "masks": "test/gt"}


def camvid(root, values=range(12)):
    values = list(values)
    for split, count in (("train", 6), ("val", 2)):
        for number in range(count):
            ids = np.resize(np.array(values, np.uint8), (32, 48))
            write(root / split / f"{number}.png", image(ids, number))
            write(root / f"{split}annot" / f"{number}.png", ids)
    return root


def test_known_sets_are_read_as_such_but_not_others_in_the_same_folders(tmp_path):
    assert known_set(camvid(tmp_path / "one")) == "camvid"
    assert draft(tmp_path / "one").known == "camvid"
    assert draft(tmp_path / "one", plain=True).known == ""
    assert known_set(camvid(tmp_path / "few", range(5))) == ""
    assert known_set(camvid(tmp_path / "more", range(20))) == ""


@pytest.mark.parametrize(
    ("names", "known"),
    [
        ([*"abcdefghijkl"], ""),
        (["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol"], "camvid"),
        ([*CamVid.classes, "Void"], "camvid"),
        ([f"class {number}" for number in range(32)], "camvid"),  # of the coloured masks
    ],
)
def test_a_file_of_other_classes_makes_it_a_set_of_its_own(names, known, tmp_path):
    (camvid(tmp_path) / "classes.txt").write_text("\n".join(names) + "\n")
    found = draft(tmp_path)
    assert found.known == known
    if not known:
        assert found.classes == names
        assert any("taken for a set of its own" in note for note in found.notes)


@pytest.mark.real
def test_a_real_set_is_known():
    assert known_set(Path(os.environ["SEGKD_REAL_DATA"]) / "camvid") == "camvid"


def test_no_recording_of_half_the_images_is_for_validation(tmp_path):
    drives = "a" * 12 + "b" * 3 + "c" * 3 + "d" * 2
    names = lambda n: (f"images/{drives[n]}_{n}.png", f"masks/{drives[n]}_{n}.png")  # noqa: E731
    found = draft(folder(tmp_path, names, count=20))
    assert {stem[0] for stem in names_in(found, "val")} <= {"b", "c", "d"}
    assert found.counts["val"] in (3, 5)
