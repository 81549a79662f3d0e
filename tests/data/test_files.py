"""Which files count: links, litter, one name twice, Unicode forms, neighbours; findings folded."""

import os
import unicodedata

import cv2
import numpy as np
import pytest

from segkd.commands.data import check
from segkd.data.camvid import CamVid
from segkd.data.check import check_dataset
from segkd.data.cityscapes import Cityscapes, CityscapesConfig
from segkd.data.files import files_below, is_litter, neighbour
from segkd.data.findings import Finding, folded
from segkd.data.folder import Folder, FolderConfig
from segkd.data.loader import train_loader
from segkd.data.paired import images_below
from segkd.data.survey import survey
from segkd.errors import DataError
from segkd.inference.media import open_source

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
SPEC = {
    "classes": [{"name": "bg"}, {"name": "fg"}],
    "splits": {"train": {"images": "images", "masks": "masks"}},
}


def put(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(value)
    cv2.imwrite(str(path), draw.integers(0, 2, (8, 8), dtype=np.uint8))


def folder(root, split=None, **changes):
    spec = SPEC | changes
    if split:
        spec["splits"] = {"train": SPEC["splits"]["train"] | split}
    return Folder(FolderConfig(name="folder", root=root, spec=spec), "train")


def names(paths, root):
    return [path.relative_to(root).as_posix() for path in paths]


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    put(tmp_path / "store/deep/b.png")
    put(tmp_path / "images/a.png")
    (tmp_path / "images/drive").symlink_to(tmp_path / "store")
    (tmp_path / "images/self").symlink_to(tmp_path / "images")
    (tmp_path / "store/deep/up").symlink_to("..")
    assert names(images_below(tmp_path / "images"), tmp_path) == [
        "images/a.png",
        "images/drive/deep/b.png",
    ]
    assert open_source(tmp_path / "images").count == 2


def test_a_link_to_nowhere_is_not_passed_over(tmp_path, caplog):
    put(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("gone.png")
    (tmp_path / "drive").symlink_to("/gone/away")
    assert names(files_below(tmp_path, (".png",)), tmp_path) == ["a.png", "b.png"]
    assert "drive: is a link to /gone/away, which does not exist" in caplog.text
    files_below(tmp_path, (".png",))
    assert caplog.text.count("drive: is a link") == 1, "told once, however often it is walked"


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        files_below(tmp_path, (".png",))


@pytest.mark.parametrize(
    "litter",
    [
        *("._a.png", ".ipynb_checkpoints/a-checkpoint.png", "@eaDir/a.png", "__MACOSX/a.png"),
        *("#recycle/a.png", "$RECYCLE.BIN/a.png", ".Trash-1000/a.png", "lost+found/a.png"),
    ],
)
def test_what_systems_leave_behind_is_not_seen(litter, tmp_path):
    for kind in ("images", "masks"):
        put(tmp_path / kind / "a.png")
        put(tmp_path / kind / litter, 1)
    report = check_dataset(folder(tmp_path))
    assert report.images == 1 and report.findings == []
    assert open_source(tmp_path / "images").count == 1
    city = tmp_path / "leftImg8bit/train/ulm"
    put(city / "ulm_0_0_leftImg8bit.png")
    put(city / "._ulm_0_0_leftImg8bit.png")
    assert len(Cityscapes(CityscapesConfig(name="cityscapes", root=tmp_path), "train")) == 1
    assert is_litter("Thumbs.db") and not is_litter("a.png")


def test_one_name_twice_is_named(tmp_path):
    for ending in ("png", "jpg"):
        put(tmp_path / f"images/a.{ending}")
    put(tmp_path / "masks/a.png")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png are two images of one name"):
        folder(tmp_path)
    assert len(folder(tmp_path, image_ending=".jpg")) == 1
    (tmp_path / "list.txt").write_text("a.png\n")
    chosen = folder(tmp_path, {"list": "list.txt"})
    assert names([chosen.files(0)[0]], tmp_path) == ["images/a.png"]
    (tmp_path / "list.txt").write_text("a\n")
    with pytest.raises(DataError, match="two images of one name"):
        folder(tmp_path, {"list": "list.txt"})
    for ending in ("png", "jpg"):
        put(tmp_path / f"train/a.{ending}")
    with pytest.raises(DataError, match="two images of one name"):
        CamVid(CamVid.Config(name="camvid", root=tmp_path), "train")


@pytest.mark.parametrize("image", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("mask", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("entry", [None, COMPOSED, DECOMPOSED])
def test_names_in_both_forms_of_unicode(image, mask, entry, tmp_path):
    put(tmp_path / f"images/{image}/{image}.png")
    put(tmp_path / f"masks/{mask}/{mask}.png")
    split = {}
    if entry:
        (tmp_path / "list.txt").write_text(f"{entry}/{entry}.png\n", encoding="utf-8")
        split = {"list": "list.txt"}
    dataset = folder(tmp_path, split)
    assert len(dataset) == 1 and dataset.read(0).label.shape == (8, 8)


def test_a_missing_mask_names_its_neighbour(tmp_path):
    put(tmp_path / "images/a.png")
    put(tmp_path / "masks/A.PNG")
    assert neighbour(tmp_path / "masks/a.png") == "A.PNG"
    with pytest.raises(DataError, match=r"There is A\.PNG next to it.*`mask_ending: \.PNG`"):
        folder(tmp_path).read(0)
    dataset = folder(tmp_path, mask_ending="_ids.png")
    put(tmp_path / "masks/a_ids.bmp")
    with pytest.raises(DataError, match=r"1 of 2 files are missing.*a_ids\.bmp next to it"):
        next(iter(_loader(dataset)))
    assert neighbour(tmp_path / "nowhere/a.png") == ""


def _loader(dataset):
    return train_loader(dataset, config=dataset.config, batch_size=1, seed=0, start=0, stop=1)


def test_images_that_are_there_or_listed_twice(tmp_path):
    for name in ("a", "b"):
        put(tmp_path / f"images/{name}.png", 7)
        put(tmp_path / f"masks/{name}.png")
    (found,) = check_dataset(folder(tmp_path)).findings
    assert found.level == "warning" and "the same image as" in found.text
    for kind in ("images", "masks"):
        (tmp_path / kind / "b.png").unlink()
    (tmp_path / "list.txt").write_text("a\na.png\na\n")
    dataset = folder(tmp_path, {"list": "list.txt"})
    assert len(dataset) == 3
    for findings in (check_dataset(dataset).findings, survey(dataset)):
        (found,) = findings
        assert found.text.startswith("1 images are listed more than once, the first: ")


def test_many_like_findings_are_one_and_a_count(tmp_path, capsys):
    alike = [Finding("error", f"m/{n}.png", f"undeclared ids {n}", "Add them.") for n in range(40)]
    other = Finding("warning", "x", "else", "")
    shown = folded([*alike, other, *alike[:1]])
    assert [one.text for one in shown] == ["undeclared ids 0 (and 40 more like this)", "else"]
    assert folded([*alike[:3], other]) == [*alike[:3], other]
    for number in range(9):
        put(tmp_path / f"images/{number}.png", number)
    put(tmp_path / "masks/x.png")
    (tmp_path / "spec.yaml").write_text(
        "classes: [a, b]\nsplits: {train: {images: images, masks: masks}}\n"
    )
    assert not check(
        "folder", [f"data.root={tmp_path}", "data.spec=spec.yaml", "data.val_split=train"]
    )
    assert capsys.readouterr().out.count("no such file") == 1
