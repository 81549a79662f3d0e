import shlex
from pathlib import Path

import numpy as np
import pytest
from lane_trees import SIZE, lane, put_frame, put_image, put_lines, put_list, put_mask
from pydantic import ValidationError

from segkd.config.load import load_data
from segkd.data.check import check_dataset
from segkd.data.culane import CULane, CULaneConfig
from segkd.data.lane_lists import held_out
from segkd.data.lane_masks import painted
from segkd.data.loader import train_loader
from segkd.errors import DataError
from segkd.synthetic.make import make_culane

CLIP = "driver_1/a.MP4"


def config(root: Path, **keys) -> CULaneConfig:
    return CULaneConfig(name="culane", root=root, **{"lane_width": 4} | keys)


def opened(root: Path, split: str = "train", **keys) -> CULane:
    return CULane(config(root, **keys), split)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three frames: all four lanes, the two on the right, none."""
    put_frame(tmp_path, f"{CLIP}/00000.jpg", (0, 50, 110, 160))
    put_frame(tmp_path, f"{CLIP}/00030.jpg", (110, 160))
    put_frame(tmp_path, f"{CLIP}/00060.jpg", ())
    masks = [f"/{CLIP}/{n}.jpg /laneseg_label_w16/{CLIP}/{n}.png" for n in ("00000", "00030")]
    put_list(tmp_path, "train_gt.txt", [f"{masks[0]} 1 1 1 1", f"{masks[1]} 0 0 1 1"])
    put_list(tmp_path, "test.txt", [f"/{CLIP}/{n}.jpg" for n in ("00030", "00000", "00060")])
    return tmp_path


def test_lists_flags_and_painted_lanes(root):
    dataset = opened(root)
    assert len(dataset) == 2 and dataset.metric == "culane" and dataset.task == "lanes"
    sample = dataset.read(1)
    assert sample.name == f"{CLIP}/00030.jpg" == dataset.entry(1).as_posix()
    assert [one is None for one in sample.lanes] == [True, True, False, False]
    assert sample.image.shape == (*SIZE, 3) and set(np.unique(sample.label)) == {0, 3, 4}
    assert np.array_equal(sample.label, painted(sample.lanes, SIZE, 4))
    assert np.allclose(sample.lanes[2], lane(110))


def test_without_flags_slots_follow_the_rule(root):
    dataset = opened(root, "test")
    assert [len(dataset), dataset.flags(0)] == [3, None]
    lanes = dataset.read(0).lanes  # a pair is the lanes beside the car
    assert [one is None for one in lanes] == [True, False, False, True]
    assert dataset.read(2).lanes == (None,) * 4 and not dataset.read(2).label.any()


@pytest.mark.parametrize(
    ("number", "left"), [(2, 1), (3, 1), (3, 2), (4, 2), (4, 1), (5, 2), (6, 3), (7, 4), (8, 4)]
)
def test_as_many_slots_as_are_asked_for(root, number, left):
    """Eight lanes; those next to the car are in the middle, with flags and without."""
    feet = (-160, -80, -20, 50, 110, 180, 260, 380)
    put_frame(root, f"{CLIP}/00000.jpg", feet)
    put_frame(root, f"{CLIP}/00030.jpg", (110, 160))
    masks = [f"/{CLIP}/{n}.jpg /laneseg_label_w4/{CLIP}/{n}.png" for n in ("00000", "00030")]
    put_list(root, "train_gt.txt", [f"{masks[0]} {'1 ' * 8}", f"{masks[1]} 0 0 0 0 1 1 0 0"])
    put_list(root, "val.txt", [f"/{CLIP}/00000.jpg"])
    put_mask(root / f"laneseg_label_w4/{CLIP}/00000.png", np.full(SIZE, 8, np.uint8))
    keys = {"num_lanes": number} | ({} if left == number // 2 else {"left_lanes": left})
    dataset = opened(root, **keys)

    def feet_of(lanes):
        return [None if one is None else round(float(one[0, 0])) for one in lanes]

    expected = list(feet[4 - left : 4 - left + number])
    assert feet_of(dataset.slots(0)) == expected
    assert feet_of(opened(root, "val", **keys).slots(0)) == expected
    flags = dataset.flags(1)
    assert len(flags) == number and [i for i, one in enumerate(flags) if one] == [
        left + i for i in range(2) if left + i < number
    ]
    assert feet_of(dataset.slots(1))[left] == 110
    assert len(dataset.classes) == len(np.unique(dataset.palette, axis=0)) == number + 1
    label = dataset.read(0).label  # the stored mask has eight slots
    seen = {8} if number == 8 else set(range(1, number + 1))
    assert set(np.unique(label)) - {0} == seen


def test_numbers_of_slots_that_cannot_be(root):
    for number in (1, 13):
        with pytest.raises(ValidationError, match=r"greater than|less than"):
            config(root, num_lanes=number)
    with pytest.raises(ValidationError, match=r"left_lanes=5 is more than num_lanes=4"):
        config(root, left_lanes=5)
    put_list(root, "train_gt.txt", [f"/{CLIP}/00000.jpg /w/x.png 1 1 1 1 1 1", "/a.jpg /x.png 1 1"])
    with pytest.raises(DataError, match=r"line 2: .* expected 6 flags .* got 2"):
        opened(root, num_lanes=6)
    put_list(root, "train_gt.txt", [f"/{CLIP}/00000.jpg /w/x.png 1 1 1 1"])
    with pytest.raises(DataError, match=r"has 4 flags .* Set data\.num_lanes=4, or repair"):
        opened(root, num_lanes=12)
    with pytest.raises(DataError, match=r"Set data\.num_lanes=4 data\.left_lanes=2, or"):
        opened(root, num_lanes=3, left_lanes=3)
    slots = opened(root, "test", num_lanes=12).slots(1)  # without flags
    assert [i for i, one in enumerate(slots) if one is not None] == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("keys", "read"),
    [({}, True), ({"num_lanes": 3}, False), ({"left_lanes": 1}, False), ({"num_lanes": 6}, False)],
)
def test_masks_of_other_slots_than_the_lists_are_not_read(root, tmp_path, keys, read):
    """Lists elsewhere, of other slots than the set's own masks: lanes are painted."""
    entry = f"/{CLIP}/00030.jpg /laneseg_label_w4/{CLIP}/00030.png"
    put_list(root, "train_gt.txt", [f"{entry} 0 0 1 1"])
    put_mask(root / f"laneseg_label_w4/{CLIP}/00030.png", np.full(SIZE, 2, np.uint8))
    put_frame(root, f"{CLIP}/00030.jpg", (50, 110))
    number = keys.get("num_lanes", 4)
    left = keys.get("left_lanes", number // 2)
    flags = " ".join("1" if slot in (left - 1, left) else "0" for slot in range(number))
    put_list(tmp_path / "own", "train_gt.txt", [f"{entry} {flags}"])
    lists = tmp_path / "own/list"
    dataset = opened(root, lists=lists, **keys)
    assert bool((dataset.read(0).label == 2).all()) == read
    assert dataset.has_both(0) == read
    mine = np.full(SIZE, 3, np.uint8)  # beside the lists
    put_mask(tmp_path / f"own/laneseg_label_w4/{CLIP}/00030.png", mine)
    assert (opened(root, lists=lists, **keys).read(0).label == 3).all()


def test_flags_that_do_not_fit_are_not_followed(root):
    put_list(root, "train_gt.txt", [f"/{CLIP}/00030.jpg /w16/x.png 1 1 1 1"])
    assert [one is None for one in opened(root).read(0).lanes] == [True, False, False, True]


def test_stored_masks_are_read_at_their_own_width(root):
    mask = np.zeros(SIZE, np.uint8)
    mask[30, :20] = 3
    for name in ("00000", "00030"):
        put_mask(root / f"laneseg_label_w16/{CLIP}/{name}.png", mask)
    assert np.array_equal(opened(root, lane_width=16).read(0).label, mask)
    assert not np.array_equal(opened(root, lane_width=8).read(0).label, mask)
    (root / f"laneseg_label_w16/{CLIP}/00030.png").unlink()  # half a set is no set
    with pytest.raises(DataError, match=r"00030\.png: there is no such file"):
        opened(root, lane_width=16).read(1)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full(SIZE, 7, np.uint8), r"id 7, expected 0 to data\.num_lanes=4"),
        (np.zeros((30, 30), np.uint8), r"mask is 30x30, but its image .* is 60x160"),
        (np.random.default_rng(0).integers(0, 9, (*SIZE, 3), np.uint8), "has colours"),
    ],
)
def test_stored_masks_that_do_not_fit(root, mask, message):
    put_mask(root / f"laneseg_label_w16/{CLIP}/00000.png", mask)
    with pytest.raises(DataError, match=message):
        opened(root, lane_width=16).read(0)


def test_annotations_are_those_of_the_stored_image(root):
    annotation = opened(root, cut_top=20).annotation(0)
    assert annotation.size == SIZE and annotation.rows is None and annotation.pixels is None
    assert [len(one) for one in annotation.lanes] == [6] * 4
    assert np.allclose(annotation.lanes[1], lane(50))


def test_cutting_the_top(root):
    whole, cut = opened(root).read(0), opened(root, cut_top=20).read(0)
    assert np.array_equal(cut.image, whole.image[20:]) and cut.image.shape == (40, 160, 3)
    assert np.array_equal(cut.label, whole.label[20:])
    assert np.allclose(cut.lanes[0], whole.lanes[0] - [0, 20])
    with pytest.raises(DataError, match=r"data\.cut_top=60 leaves nothing .* less than 60"):
        opened(root, cut_top=60).read(0)


def test_categories_are_indices_of_the_split(root):
    put_list(root, "test_split/test0_normal.txt", [f"/{CLIP}/00060.jpg", f"/{CLIP}/00030.jpg"])
    put_list(root, "test_split/test8_night.txt", [f"{CLIP}/00000.jpg"])
    put_list(root, "test_split/test5_arrow.txt", ["/driver_9/b.MP4/00000.jpg"])
    assert opened(root, "test").categories == {"normal": [2, 0], "night": [1]}
    assert opened(root).categories == {"normal": [1], "night": [0]}


def test_a_missing_annotation_is_an_error_not_an_empty_road(root):
    (root / f"{CLIP}/00060.lines.txt").unlink()
    dataset = opened(root, "test")
    for read in (dataset.read, dataset.annotation):
        with pytest.raises(DataError, match=r"00060\.lines\.txt: the annotation is missing.*empty"):
            read(2)
    loader_keys = {"batch_size": 1, "seed": 0, "start": 0, "stop": 1}
    with pytest.raises(
        DataError, match=r"1 of 6 files are missing, .*txt\. `segkd data check` lists"
    ):
        train_loader(dataset, config=dataset.config, **loader_keys)


def test_malformed_lines_are_named_with_file_and_line(root):
    path = root / f"{CLIP}/00000.lines.txt"
    path.write_text(path.read_text() + "10 20 30 abc\n")
    with pytest.raises(DataError, match=r"00000\.lines\.txt, line 5: '10 20 30 abc'"):
        opened(root).read(0)


def test_blank_lines_and_single_points_are_no_lanes(root):
    path = root / f"{CLIP}/00030.lines.txt"
    put_lines(path, [lane(110), np.empty((0, 2)), np.array([[3.0, 4.0]]), lane(160)])
    assert [one is None for one in opened(root).read(1).lanes] == [True, True, False, False]


@pytest.mark.parametrize(
    "line", ["/a/b.jpg /m/b.png 1 -1", "/a/b.jpg 1 1 1 1", "/a/b", "/a/b.jpg /m/b.png 0 1 2 0"]
)
def test_lines_that_are_no_entries(root, line):
    put_list(root, "train_gt.txt", [f"/{CLIP}/00000.jpg", line])
    with pytest.raises(DataError, match=r"train_gt\.txt, line 2: .*is not valid; expected"):
        opened(root)


def test_without_lists_the_message_says_what_to_type(tmp_path):
    put_frame(tmp_path, "drive/00000.jpg")
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    assert f"segkd data make culane data.root={tmp_path}" in str(caught.value)
    assert "data.train_split=all" in str(caught.value)
    assert len(opened(tmp_path, "all")) == 1
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "nothing")
    assert CULane.expected_tree in str(caught.value)


def test_all_takes_every_image_but_no_mask(root):
    put_mask(root / "laneseg_label_w16/driver_1/x.png", np.zeros(SIZE, np.uint8))
    assert [listed.image[-9:] for listed in opened(root, "all").listed] == [
        "00000.jpg",
        "00030.jpg",
        "00060.jpg",
    ]


def own_drives(root: Path, clips: int, frames: int = 3) -> Path:
    for clip in range(clips):
        for frame in range(frames):
            put_frame(root, f"drive{clip}/{frame:05d}.jpg", (50, 110, 160) if frame else ())
    return root


def test_made_lists_split_by_clip_and_can_be_read(tmp_path):
    root = own_drives(tmp_path / "data", 10)
    assert make_culane(config(root)) == {"train": 24, "val": 6}
    lists = (opened(root, split).listed for split in ("train", "val"))
    train, val = ({listed.image.split("/")[0] for listed in entries} for entries in lists)
    assert len(train) == 8 and len(val) == 2 and not train & val
    sample = opened(root).read(1)
    assert opened(root).flags(1) == (0, 1, 1, 1) and opened(root).flags(0) == (0, 0, 0, 0)
    assert [one is None for one in sample.lanes] == [True, False, False, False]
    with pytest.raises(DataError, match=r"train_gt\.txt exists already.*--out"):
        make_culane(config(root))


def test_further_clips_move_no_others(tmp_path):
    def val_clips(clips: int) -> set[str]:
        root = own_drives(tmp_path / str(clips), clips, 1)
        make_culane(config(root), val_share=0.5)
        return {listed.image for listed in opened(root, "val").listed}

    few, many = val_clips(8), val_clips(9)
    assert len(few & many) >= 3  # a new clip may take the place of one


def test_one_clip_gives_its_last_frames_to_validation(tmp_path):
    root = own_drives(tmp_path, 1, 5)
    assert make_culane(config(root)) == {"train": 4, "val": 1}
    assert opened(root, "val").listed[0].image.endswith("00004.jpg")


def test_a_divided_clip_is_told_and_divided_in_the_order_of_its_frames(caplog):
    assert held_out([f"drive/{number}.jpg" for number in range(20)], 0.2) == {
        f"drive/{number}.jpg" for number in range(16, 20)
    }
    (told,) = caplog.records
    assert "in one folder, 'drive': its last 4 frames are for validation" in told.message
    held_out(["a/1.jpg", "b/1.jpg"], 0.5)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("clips", "frames", "share", "counts"),
    [
        (2, 3, 0.9, {"train": 3, "val": 3}),
        (2, 3, 0.01, {"train": 3, "val": 3}),
        (1, 4, 0.01, {"train": 3, "val": 1}),
        (1, 4, 0.99, {"train": 1, "val": 3}),
        (1, 2, 0.5, {"train": 1, "val": 1}),
    ],
)
def test_neither_list_is_empty(tmp_path, clips, frames, share, counts):
    assert make_culane(config(own_drives(tmp_path, clips, frames)), val_share=share) == counts


@pytest.mark.parametrize("clips", [1, 3])
def test_no_share_is_none(clips):
    images = [f"drive{clip}/{frame}.jpg" for clip in range(clips) for frame in range(4)]
    assert held_out(images, 0) == set() and held_out(images[:1], 0.5) == set()


def test_one_image_cannot_be_for_both(tmp_path):
    with pytest.raises(DataError, match=r"has one image, drive0/00000\.jpg"):
        make_culane(config(own_drives(tmp_path, 1, 1)))
    assert not (tmp_path / "list").exists()


def test_masks_that_are_there_are_kept(tmp_path):
    root = own_drives(tmp_path, 2)
    own = root / "laneseg_label_w16/drive0/00000.png"
    put_mask(own, np.zeros(SIZE, np.uint8))
    mine = own.read_bytes()
    make_culane(config(root), masks=True)
    assert own.read_bytes() == mine
    assert len(list((root / "laneseg_label_w16").rglob("*.png"))) == 6


def test_masks_beside_read_only_data(tmp_path):
    root, out = own_drives(tmp_path / "data", 2), tmp_path / "out"
    root.chmod(0o555)
    try:
        with pytest.raises(DataError, match=r"is read-only.*--out FOLDER.*data\.lists"):
            make_culane(config(root))
        make_culane(config(root), out, masks=True)
    finally:
        root.chmod(0o755)
    assert sorted(path.name for path in root.iterdir()) == ["drive0", "drive1"]
    dataset = opened(root, lists=out / "list", lane_width=16)
    assert len(list((out / "laneseg_label_w16").rglob("*.png"))) == 6
    for index in range(len(dataset)):
        plain = painted(dataset.read(index).lanes, SIZE, 16)
        assert np.array_equal(dataset.read(index).label, plain)


def test_making_lists_refuses_missing_annotations(tmp_path):
    root = own_drives(tmp_path, 2)
    (root / "drive1/00001.lines.txt").unlink()
    with pytest.raises(DataError, match="the annotation is missing"):
        make_culane(config(root))
    assert not list(root.glob("list/*.txt"))


def findings(dataset) -> list[tuple[str, str, str]]:
    return [(f.level, Path(f.file).name, f.text) for f in check_dataset(dataset).findings]


def test_a_sound_set_checks(root):
    report = check_dataset(opened(root))
    assert report.ok and report.findings == []
    assert report.exist.tolist() == [1, 1, 2, 2] and report.pixels[1:].all()


def test_the_check_finds_what_is_wrong(root):
    far = lane(5050)
    put_lines(root / f"{CLIP}/00000.lines.txt", [lane(0), lane(50), far])
    put_lines(root / f"{CLIP}/00090.lines.txt", [lane(50) - [65, 0], lane(110)])
    put_image(root / f"{CLIP}/00090.jpg")
    (root / f"{CLIP}/00030.lines.txt").unlink()
    lines = [f"/{CLIP}/{n}.jpg /laneseg/{n}.png" for n in ("00000", "00030", "00090", "00120")]
    put_list(root, "train_gt.txt", [f"{lines[0]} 1 1 1 1", *lines[1:], lines[3]])
    put_list(root, "train.txt", [f"/{CLIP}/00000.jpg"])
    found = findings(opened(root))
    for level, file, text in (
        ("error", "00000.lines.txt", "lane 3 is outside the image (x 1"),
        ("warning", "00000.lines.txt", "the list says that lanes 1 1 1 1 exist, the mask shows"),
        ("error", "00030.lines.txt", "the annotation is missing"),
        ("warning", "00090.lines.txt", "of the points of lane 1 are outside the image"),
        ("error", "00120.jpg", "there is no such image"),
        ("warning", "train_gt.txt", "1 images are listed twice"),
        ("warning", "train_gt.txt", "lists 5 images, but train.txt lists 1"),
    ):
        assert any(f[:2] == (level, file) and text in f[2] for f in found), (file, text, found)
    assert not check_dataset(opened(root)).ok


def test_the_check_compares_stored_masks_with_lane_files(root):
    sound = opened(root)
    for index, name in enumerate(("00000", "00030")):
        put_mask(root / f"laneseg_label_w16/{CLIP}/{name}.png", sound.read(index).label)
    assert findings(opened(root, lane_width=16)) == []
    path = root / f"laneseg_label_w16/{CLIP}/00030.png"
    mask = sound.read(1).label
    put_mask(path, np.roll(mask, -60, axis=1))
    found = [text for _, file, text in findings(opened(root, lane_width=16))]
    assert "the mask shows nothing along the line of slot 3, 4" in found
    assert "the mask shows lane 3, 4, but no line of the file is there" in found
    put_mask(path, np.where(mask == 3, 0, mask))
    (text,) = (t for _, _, t in findings(opened(root, lane_width=16)) if "exist" not in t)
    assert text == "the mask shows nothing along the line of slot 3"
    put_lines(root / f"{CLIP}/00030.lines.txt", [])
    found = [text for _, _, text in findings(opened(root, lane_width=16))]
    assert "the mask shows lane 4, but no line of the file is there" in found


def test_the_check_counts_lanes_without_a_slot_and_images_without_category(root):
    put_frame(root, f"{CLIP}/00000.jpg", (-60, 0, 50, 110))
    put_list(root, "train_gt.txt", [f"/{CLIP}/00000.jpg"])
    put_list(root, "test_split/test0_normal.txt", [f"/{CLIP}/00030.jpg"])
    texts = [text for _, _, text in findings(opened(root))]
    assert any(text.startswith("1 lanes have no slot") for text in texts)
    texts = [text for _, _, text in findings(opened(root, "test"))]
    assert "2 of 3 images have no category" in texts


@pytest.mark.real
def test_the_real_sample(real_data, tmp_path):
    root = real_data / "culane_sample"
    before = sorted(root.rglob("*"))
    counts = make_culane(CULaneConfig(name="culane", root=root), tmp_path)
    assert counts == {"train": 16, "val": 4} and sorted(root.rglob("*")) == before
    for split in ("train", "val"):
        dataset = CULane(CULaneConfig(name="culane", root=root, lists=tmp_path / "list"), split)
        report = check_dataset(dataset)
        assert report.ok and report.findings == [] and report.sizes == {(590, 1640): counts[split]}
        for index in range(0, len(dataset), 3):
            lanes, label = dataset.read(index).lanes, dataset.read(index).label
            for slot, one in enumerate(lanes):
                inside = [(x, y) for x, y in one[2:] if 0 <= x < 1639] if one is not None else []
                assert all(label[round(y), round(x)] == slot + 1 for x, y in inside[:8])
            given = [one.tolist() for one in dataset.annotation(index).lanes]
            assert [one.tolist() for one in lanes if one is not None] == given  # left to right


def test_a_list_with_an_odd_number_of_flags(root):
    """The configuration says what is left of the car; lanes contradict it, and none is cut off."""
    put_frame(root, f"{CLIP}/00000.jpg", (-20, 50, 110))
    put_list(root, "train_gt.txt", [f"/{CLIP}/00000.jpg /w9/x.png 1 1 1"])
    with pytest.raises(DataError, match=r"has 3 flags .* Set data\.num_lanes=3 data\.left_lanes=N"):
        opened(root, num_lanes=2)
    dataset = opened(root, num_lanes=3, left_lanes=2)
    assert dataset.classes[1:] == ("left 2", "left 1", "right 1") and dataset.config.flip == 0
    assert dataset.flags(0) == (1, 1, 1) and len(dataset.slots(0)) == 3
    assert set(np.unique(dataset.read(0).label)) == {0, 1, 2, 3}
    for keys in ({}, {"left_lanes": 3}):
        with pytest.raises(DataError, match=r"2 of 3 flags are left.* Set data\.left_lanes=2"):
            opened(root, num_lanes=3, **keys)


def test_flags_of_unequal_sides(root):
    """Four flags of which one or three are left of the car, which nothing but the lanes says."""
    put_frame(root, f"{CLIP}/00000.jpg", (50, 110, 180))
    put_frame(root, f"{CLIP}/00030.jpg", (110, 180))
    entries = [f"/{CLIP}/{n}.jpg /w9/x.png" for n in ("00000", "00030")]
    put_list(root, "train_gt.txt", [f"{entries[0]} 1 1 1 0", f"{entries[1]} 0 1 1 0"])
    dataset = opened(root, left_lanes=1)
    assert [one is None for one in dataset.slots(1)] == [True, False, False, True]
    assert dataset.classes[1:] == ("left 1", "right 1", "right 2", "right 3")
    with pytest.raises(DataError, match=r"1 of 4 flags are left.* not 3\. Set data\.left_lanes=1"):
        opened(root, left_lanes=3)


@pytest.mark.parametrize(
    ("feet", "left", "slots"),
    [((110, 180), 0, [110, 180]), ((-20, 50), 2, [-20, 50]), ((110, 180), 1, [110, 180])],
)
def test_two_lanes_are_those_beside_the_car_where_both_sides_are_alike(root, feet, left, slots):
    """CULane's rule: not where there are no slots on one side."""
    put_frame(root, f"{CLIP}/00000.jpg", feet)
    put_list(root, "val.txt", [f"/{CLIP}/00000.jpg"])
    found = opened(root, "val", num_lanes=2, left_lanes=left).slots(0)
    assert [None if one is None else round(float(one[0, 0])) for one in found] == slots


def test_masks_without_flags_are_of_equal_sides(root):
    entry = f"/{CLIP}/00030.jpg /laneseg_label_w4/{CLIP}/00030.png"
    put_list(root, "train_gt.txt", [entry])
    put_mask(root / f"laneseg_label_w4/{CLIP}/00030.png", np.full(SIZE, 2, np.uint8))
    assert opened(root).has_both(0) and not opened(root, left_lanes=1).has_both(0)


def test_lists_of_other_slots_inside_of_the_set(root):
    """Their masks are not those of the set, whose folder is beside both."""
    entry = f"/{CLIP}/00030.jpg /laneseg_label_w4/{CLIP}/00030.png"
    put_list(root, "train_gt.txt", [f"{entry} 0 0 1 1"])
    put_mask(root / f"laneseg_label_w4/{CLIP}/00030.png", np.full(SIZE, 2, np.uint8))
    (root / "other").mkdir()
    (root / "other/train_gt.txt").write_text(f"{entry} 0 0 0 1 1 0\n")
    assert not opened(root, lists=root / "other", num_lanes=6).has_both(0)
    (root / "other/train_gt.txt").write_text(f"{entry} 0 0 1 1\n")
    assert opened(root, lists=root / "other").has_both(0)


def test_made_lists_keep_the_splits_of_the_tree(root, tmp_path, caplog):
    put_list(root, "train.txt", [f"/{CLIP}/00030.jpg"])
    put_list(root, "train_gt.txt", [f"/{CLIP}/00030.jpg /w/x.png 1 1 1 1"])
    put_list(root, "hard.txt", [f"/{CLIP}/00000.jpg"])  # any name; and one image is in none
    for name in ("val.txt", "val_gt.txt", "test.txt"):
        (root / "list" / name).unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"has lists, whose splits are kept, .* leave it out"):
        make_culane(config(root, num_lanes=2), tmp_path / "two", val_share=0.2)
    caplog.clear()
    assert make_culane(config(root, num_lanes=2), tmp_path / "two") == {"train": 1, "hard": 1}
    assert f"left out, in no list of {root / 'list'}: 1 of 3 images, e.g." in caplog.text
    for split in ("train", "hard"):
        (own,) = opened(root, split).listed
        (made,) = opened(root, split, num_lanes=2, lists=tmp_path / "two/list").listed
        assert made.image == own.image and len(made.flags) == 2


def test_masks_of_other_slots_are_not_kept_as_if_they_were_of_these(tmp_path):
    root, out = own_drives(tmp_path, 2), tmp_path / "out"
    make_culane(config(root, num_lanes=6), out, masks=True)
    (out / "list/train_gt.txt").unlink()
    (out / "list/val_gt.txt").unlink()
    with pytest.raises(DataError, match=r"\.png: has lane \d, which is not in this list: .*Remove"):
        make_culane(config(root), out, masks=True)


def test_the_command_tells_the_keys_with_which_its_lists_are_read(tmp_path, capsys):
    from segkd.commands.data import make

    root, keys = tmp_path / "my drive", ["data.num_lanes=6", "data.lane_width=9"]
    for number in range(5):
        put_frame(root, f"d{number}/0.jpg", (-60, -20, 50, 110, 180, 220))
    given = [f"data.root={root}", f"data.lists={tmp_path / 'old'}", *keys]
    make("culane", given, out=tmp_path / "the lists", train=4, val=1, cache=False)
    told = shlex.split(capsys.readouterr().out.split("Use them:")[1])
    assert told == [
        "data.name=culane",
        f"data.root={root}",
        f"data.lists={tmp_path}/the lists/list",
        *keys,
    ]
    dataset = CULane(load_data("culane", told), "train")
    assert dataset.flags(0) == (1,) * 6
