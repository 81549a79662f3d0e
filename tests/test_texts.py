"""Lists and specs of all systems; entries that would lead out of a set are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from lane_trees import put_frame, put_image, put_labels, put_list, put_mask, tusimple_item

from segkd.data.bdd100k import BDD100K, BDD100KConfig
from segkd.data.camvid import CamVid
from segkd.data.culane import CULane, CULaneConfig
from segkd.data.folder import Folder, FolderConfig
from segkd.data.tusimple import TuSimple, TuSimpleConfig
from segkd.errors import ConfigError, DataError, did_you_mean
from segkd.inference.lane_files import write_lines
from segkd.inference.lane_predictions import LanePredictions
from segkd.metrics.culane_text import read_list
from segkd.metrics.tusimple import read_items
from segkd.texts import decoded, read_lines, target_below

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")
SPEC = """\
classes: [{name: sky}, {name: straße}]
splits:
  train: {images: train, masks: trainannot, list: train.txt}
"""


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_of_all_systems(encoding, tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("straße/1.png\r\n\r\n  2.png \r\n".encode(encoding))
    assert read_lines(path) == [(1, "straße/1.png"), (3, "2.png")]


def test_a_national_code_page_is_named_with_its_line():
    with pytest.raises(DataError, match=r"a\.txt, line 2: the byte 0xdf is not valid UTF-8.*iconv"):
        decoded("eins\nstraße\n".encode("cp1252"), Path("a.txt"))
    with pytest.raises(DataError, match="is not valid UTF-16"):
        decoded("ab".encode("utf-16")[:-1], "b")


def one_of_each(root: Path, encoding: str) -> list[tuple]:
    """(open, number of entries) of every kind of set whose list is in ``encoding``."""
    put_frame(root, "d/é.jpg")
    put_list(root, "train.txt", [])
    (root / "list/train.txt").write_bytes("/d/é.jpg\n".encode(encoding))
    put_mask(root / "m/é.png", np.zeros((60, 160), np.uint8))
    (root / "list/train_gt_bdd.txt").write_bytes("/d/é.jpg /m/é.png\n".encode(encoding))
    item = json.dumps(tusimple_item("d/é.jpg", [], range(20, 60, 10)), ensure_ascii=False)
    (root / "label_data_1.json").write_bytes((item + "\n").encode(encoding))
    for name in ("é.png", "ü.png"):
        put_image(root / "train" / name)
        put_mask(root / "trainannot" / name, np.zeros((60, 160), np.uint8))
    (root / "train.txt").write_bytes("é.png\n".encode(encoding))
    (root / "spec.yaml").write_bytes(SPEC.encode(encoding))
    spec = FolderConfig(name="folder", root=root, spec=Path("spec.yaml"))
    return [
        lambda: CULane(CULaneConfig(name="culane", root=root), "train"),
        lambda: TuSimple(TuSimpleConfig(name="tusimple", root=root), "all"),
        lambda: BDD100K(BDD100KConfig(name="bdd100k", root=root), "train"),
        lambda: CamVid(CamVid.Config(name="camvid", root=root), "train"),
        lambda: Folder(spec, "train"),
    ]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_all_sets_read_them_alike(encoding, tmp_path):
    for open_set in one_of_each(tmp_path, encoding):
        dataset = open_set()
        assert len(dataset) == 1 and dataset.files(0)[0].stem == "é"
        assert dataset.read(0).label is not None
    assert dataset.classes == ("sky", "straße")


def test_all_sets_refuse_a_code_page_alike(tmp_path):
    for open_set in one_of_each(tmp_path, "cp1252"):
        with pytest.raises(
            (DataError, ConfigError), match=r"0x.. is not valid UTF-8.*Save it as UTF-8"
        ):
            open_set()


@pytest.mark.parametrize("entry", ["../x.jpg", "/a/../../x.jpg", "a\\..\\x.jpg", "C:\\x.jpg"])
def test_entries_that_lead_out_of_the_set_are_refused_when_read(entry, tmp_path):
    put_image(tmp_path / "root/a.jpg")
    put_list(tmp_path / "root", "train.txt", [entry])
    put_list(tmp_path / "root", "train_gt_bdd.txt", [f"{entry} /m/a.png"])
    put_labels(tmp_path / "root/label_data_1.json", [tusimple_item(entry, [], range(20, 60))])
    root = tmp_path / "root"
    for open_set in (
        lambda: CULane(CULaneConfig(name="culane", root=root), "train"),
        lambda: BDD100K(BDD100KConfig(name="bdd100k", root=root), "train"),
        lambda: TuSimple(TuSimpleConfig(name="tusimple", root=root), "all"),
        lambda: read_list(root / "list/train.txt"),
        lambda: read_items(root / "label_data_1.json", ("raw_file", "lanes", "h_samples")),
    ):
        with pytest.raises(DataError, match=r"line 1.*leads out of the folder"):
            open_set()


def test_predictions_stay_below_their_folder(tmp_path):
    assert target_below(tmp_path, "a/b.png") == tmp_path / "a/b.png"
    assert write_lines(tmp_path, "/a/b.jpg", []) == tmp_path / "a/b.lines.txt"  # as CULane's lists
    with pytest.raises(DataError, match="leads out"):
        write_lines(tmp_path / "deep/er", "../../x.jpg", [])

    class Elsewhere:
        metric = "bdd100k"

        def prediction_entry(self, index):
            return tmp_path / "victim.jpg"

    with pytest.raises(DataError, match="is an absolute path"):
        LanePredictions(tmp_path / "out", Elsewhere())(0, np.zeros((2, 2), np.uint8))
    assert not (tmp_path / "victim.png").exists()


def test_an_empty_list_is_named(tmp_path):
    for open_set in one_of_each(tmp_path, "utf-8")[3:]:
        (tmp_path / "train.txt").write_text("\n")
        with pytest.raises(DataError, match=r"train\.txt: the list is empty"):
            open_set()


def test_no_known_word_is_listed_twice():
    assert did_you_mean("zzz", ["enet", "fpn", "enet"]) == " Known: enet, fpn."
