"""How images are divided where folders do not say it, and sets that segkd knows."""

import os
from pathlib import Path

import numpy as np
import pytest
from image_folders import folder, image, mask, write

from segkd.data.draft import draft, known_set

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


@pytest.mark.real
def test_a_real_set_is_known():
    assert known_set(Path(os.environ["SEGKD_REAL_DATA"]) / "camvid") == "camvid"
