import json
from pathlib import Path

import numpy as np
import pytest
from lane_trees import SIZE, lane, put_image, put_labels, put_mask, tusimple_item

from segkd.data.check import check_dataset
from segkd.data.tusimple import TuSimple, TuSimpleConfig
from segkd.errors import DataError
from segkd.metrics.tusimple import evaluate_image

ROWS = range(20, 60, 4)
FEET = (-20, 50, 110)


def opened(root: Path, split: str = "train", **keys) -> TuSimple:
    keys = {"lane_width": 4, "num_lanes": 4} | keys
    return TuSimple(TuSimpleConfig(name="tusimple", root=root, **keys), split)


def item(number: int, feet: tuple[float, ...] = FEET) -> dict:
    return tusimple_item(f"clips/0313-1/{number}/20.jpg", [lane(foot) for foot in feet], ROWS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(4):
        put_image(tmp_path / item(number)["raw_file"])
    put_labels(tmp_path / "label_data_0313.json", [item(0)])
    put_labels(tmp_path / "label_data_0601.json", [item(1, (110, 50)), item(2, ())])
    put_labels(tmp_path / "label_data_0531.json", [item(3)])
    return tmp_path


def test_splits_are_the_usual_files(root):
    assert [len(opened(root, split)) for split in ("train", "val", "trainval", "all")] == [
        3,
        1,
        4,
        4,
    ]
    put_labels(root / "mine.json", [item(2)])
    assert len(opened(root, "mine")) == 1


def test_lanes_slots_and_masks(root):
    dataset = opened(root)
    sample = dataset.read(0)
    assert [one is None for one in sample.lanes] == [False, False, False, True]
    assert set(np.unique(sample.label)) == {0, 1, 2, 3} and sample.image.shape == (*SIZE, 3)
    for slot, foot in enumerate(FEET):
        expected = lane(foot, points=40)
        for x, y in sample.lanes[slot]:
            assert abs(x - np.interp(y, expected[::-1, 1], expected[::-1, 0])) <= 0.5
            assert sample.label[int(y), int(x)] == slot + 1
    assert [one is None for one in dataset.read(1).lanes] == [True, False, False, True]
    assert dataset.read(2).lanes == (None,) * 4
    assert sample.name == "clips/0313-1/0/20.jpg" == dataset.entry(0).as_posix()


def test_two_lanes_on_one_side_stay_there(root):
    put_labels(root / "mine.json", [item(0, (110, 180))])
    assert [one is None for one in opened(root, "mine").read(0).lanes] == [True, True, False, False]


def test_annotations_give_back_the_official_score(root):
    truth = item(0)
    truth["lanes"].append([-2] * len(ROWS))  # real files have such lanes, and they count
    put_labels(root / "mine.json", [truth])
    annotation = opened(root, "mine", cut_top=8).annotation(0)
    assert annotation.rows.tolist() == list(ROWS) and annotation.size == SIZE
    again = []
    for one in annotation.lanes:
        x = dict(zip(one[:, 1].tolist(), one[:, 0].tolist(), strict=True))
        again.append([x.get(row, -2) for row in ROWS])
    assert again == truth["lanes"]
    assert evaluate_image(again, truth["lanes"], truth["h_samples"])[0] == 1


def test_six_slots_are_the_default(root):
    dataset = TuSimple(TuSimpleConfig(name="tusimple", root=root), "train")
    assert len(dataset.classes) == 7 and len(dataset.read(0).lanes) == 6


def test_unpacked_archives_are_found(tmp_path):
    put_image(tmp_path / "train_set" / item(0)["raw_file"])
    put_labels(tmp_path / "train_set/label_data_0531.json", [item(0)])
    put_image(tmp_path / "test_set" / item(1)["raw_file"])
    put_labels(tmp_path / "test_set/test_label.json", [item(1)])
    assert opened(tmp_path, "val").read(0).label.any()
    assert opened(tmp_path, "test").read(0).label.any()


def test_labels_of_the_test_images_may_lie_in_the_root(tmp_path):
    """They are fetched apart from the archive, which unpacks to test_set/."""
    for folder, number in (("train_set", 0), ("test_set", 1)):
        put_image(tmp_path / folder / item(number)["raw_file"])
    put_labels(tmp_path / "train_set" / "label_data_0313.json", [item(0)])
    put_labels(tmp_path / "test_label.json", [item(1)])
    put_mask(tmp_path / "test_set/seg_label/0313-1/1/20.png", np.full(SIZE, 2, np.uint8))
    dataset = opened(tmp_path, "test", masks=True)
    assert dataset.pairs[0][0] == tmp_path / "test_set" / item(1)["raw_file"]
    assert (dataset.read(0).label == 2).all()


def test_an_unlabelled_test_split(root):
    task = {key: value for key, value in item(3).items() if key != "lanes"}
    put_labels(root / "test_tasks_0627.json", [task])
    dataset = opened(root, "test", cut_top=10)
    assert dataset.files(0)[1] is None and dataset.read(0).label is None
    assert dataset.read(0).image.shape == (50, 160, 3)
    with pytest.raises(DataError, match=r"test_tasks_0627\.json, line 1 .*test_label\.json"):
        dataset.annotation(0)
    assert check_dataset(dataset).ok
    put_labels(root / "test_tasks_0627.json", [task | {"lanes": [], "run_time": 1000}])
    for split in ("test", "test_tasks_0627"):
        assert opened(root, split).read(0).label is None


def test_stored_masks(root):
    mask = np.zeros(SIZE, np.uint8)
    mask[10] = 4
    for number in range(3):
        put_mask(root / f"seg_label/0313-1/{number}/20.png", mask)
    assert np.array_equal(opened(root, masks=True).read(0).label, mask)
    assert not np.array_equal(opened(root).read(0).label, mask)
    put_labels(root / "mine.json", [item(2) | {"raw_file": "/clips/0313-1/2/20.jpg"}])
    assert np.array_equal(opened(root, "mine", masks=True).read(0).label, mask)


def test_missing_labels_say_what_to_type(tmp_path):
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    assert TuSimple.expected_tree in str(caught.value)
    put_image(tmp_path / item(0)["raw_file"])
    put_labels(tmp_path / "label_data.json", [item(0)])
    with pytest.raises(DataError, match=r"has label_data\.json.*data\.train_split=all"):
        opened(tmp_path)
    assert len(opened(tmp_path, "all")) == 1


@pytest.mark.parametrize("key", ["lanes", "h_samples", "raw_file"])
def test_a_missing_key_is_named_with_file_and_line(root, key):
    broken = {name: value for name, value in item(1).items() if name != key}
    put_labels(root / "mine.json", [item(0), broken])
    with pytest.raises(DataError, match=rf"mine\.json, line 2: the key {key} is missing"):
        opened(root, "mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": [[1, 2, 3]]}, r"line 2 \(clips.*: lane 1 has 3 points, but h_samples has 10"),
        ({"lanes": ["ab"]}, r"line 2 \(clips.*: lane 1 is not a list of numbers"),
        ({"h_samples": 7}, r"line 2 \(clips.*: h_samples is not a list of numbers"),
    ],
)
def test_broken_values_are_named_with_file_and_line(root, change, message):
    put_labels(root / "mine.json", [item(0), item(1) | change])
    dataset = opened(root, "mine")
    assert dataset.read(0).label.any()
    with pytest.raises(DataError, match=r"mine\.json, " + message):
        dataset.read(1)


def test_no_json_is_named_with_file_and_line(root):
    (root / "mine.json").write_text(json.dumps(item(0)) + "\n{oops\n")
    with pytest.raises(DataError, match=r"mine\.json, line 2: is not valid JSON"):
        opened(root, "mine")


def test_the_check(root):
    report = check_dataset(opened(root))
    assert report.ok and report.exist.tolist() == [1, 2, 2, 0]
    assert any("no pixel of right-right" in finding.text for finding in report.findings)
    put_labels(root / "mine.json", [item(0, (-60, -20, 50, 110)), item(9)])
    found = [(f.level, f.text) for f in check_dataset(opened(root, "mine", num_lanes=2)).findings]
    assert ("error", "there is no such image") in found
    assert any(text.startswith("2 lanes have no slot") for _, text in found)
    assert any("up to 4 lanes, data.num_lanes is 2" in text for _, text in found)


@pytest.mark.real
def test_the_real_sample(real_data):
    root = real_data / "tusimple_sample"
    dataset = opened(root, "all", num_lanes=6)
    report = check_dataset(dataset)
    assert report.ok and len(dataset) == 10 and report.sizes == {(288, 512): 10}
    assert report.exist.tolist() == [0, 10, 10, 10, 8, 0]
    for index in range(10):
        sample, annotation = dataset.read(index), dataset.annotation(index)
        assert sum(one is not None for one in sample.lanes) == sum(
            map(bool, map(len, annotation.lanes))
        )
        for slot, one in enumerate(sample.lanes):
            low = one[:8] if one is not None else []
            assert all(sample.label[round(y), round(x)] == slot + 1 for x, y in low)


def test_images_in_two_label_files_are_told(root):
    put_labels(root / "label_data_both.json", [item(0), item(1)])
    found = [one.text for one in check_dataset(opened(root, "all")).findings]
    assert "2 images are in two label files, the first: clips/0313-1/0/20.jpg" in found
    found = [one.text for one in check_dataset(opened(root)).findings]
    assert not any("label files" in text for text in found)
