"""Conversions between labelme, VIA, TuSimple and CULane."""

import itertools
import json
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from lane_trees import (
    SIZE,
    lane,
    put_frame,
    put_image,
    put_labels,
    put_lines,
    put_list,
    tusimple_item,
)
from typer.testing import CliRunner

from segkd.cli import app
from segkd.config.load import load_data
from segkd.data.culane import CULane, CULaneConfig
from segkd.data.lane_exchange.annotated import Left
from segkd.data.lane_exchange.convert import Conversion, convert, found_format
from segkd.data.lane_exchange.culane_tree import read_culane
from segkd.data.lane_exchange.labelme import read_labelme
from segkd.data.lane_exchange.tusimple_files import distances, read_tusimple, sampled
from segkd.data.lane_exchange.via import read_via
from segkd.data.tusimple import TuSimple, TuSimpleConfig
from segkd.errors import ConfigError, DataError

DRAW = np.random.default_rng(4)


def bent(foot, bend, points=9):
    """A curved lane whose points are at odd places."""
    line = lane(foot, points=points)
    line[:, 0] += bend * np.sin(np.linspace(0, 3, points))
    return line + DRAW.uniform(-0.3, 0.3, line.shape).round(3)


LANES = {
    "drive1/00000.jpg": [bent(30, 2), bent(60, 5), bent(100, -3)],
    "drive1/00030.jpg": [bent(70, 1)],
    "drive2/a b.jpg": [],
    "drive2/00001.jpg": [
        bent(-20, 1),
        bent(20, 2),
        bent(60, 1),
        bent(100, 1),
        bent(140, -1),
        bent(170, 0),
    ],
}


@pytest.fixture
def labelme(tmp_path):
    root = tmp_path / "labelme"
    for entry, lines in LANES.items():
        put_image(root / entry)
        shapes = [
            {"label": "lane", "points": line.tolist(), "shape_type": "linestrip", "flags": {}}
            for line in lines
        ]
        put_labelme(root, entry, shapes, {"night": entry.startswith("drive2"), "rain": False})
    return root


def put_labelme(root, entry, shapes, flags=None):
    item = {"version": "5.5.0", "flags": flags or {}, "shapes": shapes, "imageData": None}
    item |= {"imagePath": entry.split("/")[-1], "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    (root / entry).with_suffix(".json").write_text(json.dumps(item))


def read(root):
    kind, left = found_format(root), Left()
    readers = {"culane": read_culane, "labelme": read_labelme, "tusimple": read_tusimple}
    if kind == "via":
        return kind, read_via(root / "via_project.json", left)
    return kind, readers[kind](root, left)


def by_entry(images):
    return {one.entry: one for one in images}


def farthest(first, second):
    """Of each line's points from the nearest line of the other image, and the other way round."""
    worst = 0.0
    for one, other in ((first, second), (second, first)):
        for line in one:
            worst = max(worst, min(distances(line.points, two.points).max() for two in other))
    return worst


@pytest.mark.parametrize(
    "path", list(itertools.permutations(["culane", "via", "labelme", "tusimple"], 2))
)
def test_round_trips_keep_lines_within_half_a_pixel(labelme, tmp_path, path):
    source, how = labelme, Conversion(rows="points")
    for number, to in enumerate([*path, "labelme"]):
        out = tmp_path / f"{number}_{to}"
        done = convert(source, out, to, how=how)
        source = out
        assert found_format(out) == to and done.missing == 0
    before, after = by_entry(read(labelme)[1]), by_entry(read(source)[1])
    assert before.keys() == after.keys()
    for entry, one in before.items():
        assert len(after[entry].lines) == len(one.lines)
        assert after[entry].size == SIZE and (source / entry).is_file()
        shown = [(line.points[:, 0] >= 0) & (line.points[:, 0] < SIZE[1]) for line in one.lines]
        inside = [line for line, own in zip(one.lines, shown, strict=True) if own.all()]
        assert inside or not one.lines
        for line in inside:
            nearest = min(
                distances(line.points, other.points).max() for other in after[entry].lines
            )
            assert nearest < 0.5
    if "tusimple" not in path:
        assert all(farthest(before[e].lines, after[e].lines) < 2e-3 for e in before)
    # splits, once made, stay
    assert {one.split for one in after.values()} == {"train", "val"}


def test_culane_from_labelme_can_be_trained_on(labelme, tmp_path):
    out = tmp_path / "out"
    done = convert(labelme, out, "culane")
    assert done.slots == 6 and done.images == {"train": 2, "val": 2}
    (lost,) = done.left.lines()
    assert "which CULane lists for validation and test alone" in lost
    assert "1 training images with categories" in lost or "2 training images" in lost
    config = CULaneConfig(name="culane", root=out, num_lanes=6)
    for split in ("train", "val"):
        dataset = CULane(config, split)
        for index in range(len(dataset)):
            entry = str(dataset.entry(index))
            sample = dataset.read(index)
            assert sum(one is not None for one in sample.lanes) == len(LANES[entry])
            assert dataset.flags(index) == tuple(int(one is not None) for one in sample.lanes)
    night = {dataset.entry(i).as_posix() for i in dataset.categories.get("night", [])}
    assert night == {e for e in LANES if e.startswith("drive2")} & set(
        map(str, map(dataset.entry, range(2)))
    )


def test_labels_that_name_slots_are_identities(tmp_path):
    root = tmp_path / "in"
    put_image(root / "a.jpg")
    # both lanes stand left of the middle: by position they would be left-left and left
    lines = {"left": lane(20), "right": lane(50)}
    shapes = [
        {"label": label, "points": line.tolist(), "shape_type": "line"}
        for label, line in lines.items()
    ]
    put_labelme(root, "a.jpg", shapes)
    done = convert(root, tmp_path / "out", "culane")
    flags = (tmp_path / "out/list/train_gt.txt").read_text().split()[-4:]
    assert flags == ["0", "1", "1", "0"] and not list(done.left.lines())
    # contradicting labels are told, and position decides
    for shape, label in zip(shapes, ("right", "left"), strict=True):
        shape["label"] = label
    put_labelme(root, "a.jpg", shapes)
    done = convert(root, tmp_path / "out2", "culane")
    assert "labels are not from left to right" in next(done.left.lines())


def test_what_is_no_lane_is_told(tmp_path):
    root = tmp_path / "in"
    put_image(root / "a.jpg")
    points = lane(60).tolist()
    shapes = [
        {"label": "car", "points": points, "shape_type": "polygon"},
        {"label": "curb", "points": points, "shape_type": "linestrip"},
        {"label": "lane", "points": points, "shape_type": "linestrip"},
        {"label": "lane", "points": points[:1], "shape_type": "linestrip"},
    ]
    put_labelme(root, "a.jpg", shapes)
    done = convert(root, tmp_path / "out", "culane", how=Conversion(labels=("lane",)))
    told = "\n".join(done.left.lines())
    assert done.lanes == 1 and done.left.found.keys() == {
        "shapes of type 'polygon', which are no lines",
        "lines labelled 'curb', which --labels does not name",
        "lines of one point",
    }
    assert "a.json" in told
    # types of lanes have no place in CULane
    done = convert(root, tmp_path / "out2", "culane")
    assert "labels 'curb': CULane has no types of lanes" in "\n".join(done.left.lines())


def test_tusimple_tells_what_its_rows_lose(tmp_path):
    root = tmp_path / "in"
    bent, straight = [[20.0, 715], [600, 335], [20, 305]], [[100.0, 700], [700, 400]]
    for entry, lines in {"a/1.jpg": [np.array(bent)], "a/2.jpg": [np.array(straight)]}.items():
        put_image(root / entry, (720, 1280))
        put_lines((root / entry).with_suffix(".lines.txt"), lines)
    done = convert(root, tmp_path / "rows", "tusimple")
    (text,) = done.left.lines()
    assert "more than half a pixel" in text and "a/1.jpg" in text
    assert not list(
        convert(root, tmp_path / "points", "tusimple", how=Conversion(rows="points")).left.lines()
    )
    item = json.loads((tmp_path / "rows/train.json").read_text().splitlines()[0])
    assert len(item["h_samples"]) == 56 and item["h_samples"][:2] == [160, 170]
    dataset = TuSimple(TuSimpleConfig(name="tusimple", root=tmp_path / "points"), "train")
    assert len(dataset.annotation(0).lanes) == 1


def test_culanes_own_lists_and_categories_are_carried(tmp_path):
    root = tmp_path / "CULane"
    for entry in ("d/0.jpg", "d/1.jpg", "e/0.jpg"):
        put_frame(root, entry)
    put_list(root, "train_gt.txt", ["/d/0.jpg /laneseg_label_w16/d/0.png 1 1 1 1"])
    put_list(root, "train.txt", ["/d/0.jpg"])
    put_list(root, "test.txt", ["d/1.jpg", "e/0.jpg"])
    put_list(root, "test_split/test0_normal.txt", ["d/1.jpg"])
    put_list(root, "test_split/test8_night.txt", ["e/0.jpg"])
    convert(root, tmp_path / "via", "via")
    convert(tmp_path / "via", tmp_path / "back", "culane")
    found = by_entry(read(tmp_path / "back")[1])
    assert {e: one.split for e, one in found.items()} == {
        "d/0.jpg": "train",
        "d/1.jpg": "test",
        "e/0.jpg": "test",
    }
    assert found["e/0.jpg"].categories == ("night",)
    labels = [line.label for line in found["d/0.jpg"].lines]
    assert labels == ["left-left", "left", "right", "right-right"]


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("1 1 1 0 1", ["left 2", "left 1", "right 1", "right 3"]),
        ("1 0 1 1 1", ["left 3", "left 1", "right 1", "right 2"]),
        ("1 1 1 1", ["left-left", "left", "right", "right-right"]),
        ("0 1 1 1 1 0", ["left 2", "left 1", "right 1", "right 2"]),
        ("1 1 1 1 0 0", ["left 2", "left 1", "right 1", "right 2"]),
    ],
)
def test_lanes_say_how_many_flags_are_left_of_the_car(tmp_path, flags, names):
    root = tmp_path / "in"
    put_frame(root, "d/0.jpg")
    put_list(root, "train_gt.txt", [f"/d/0.jpg /laneseg_label_w16/d/0.png {flags}"])
    (one,) = read(root)[1]
    assert [line.label for line in one.lines] == names


def test_tusimple_splits_are_those_of_public_code(tmp_path):
    root = tmp_path / "tusimple"
    for name, raw in (("0313", "clips/a/1.jpg"), ("0531", "clips/b/1.jpg")):
        put_image(root / raw)
        item = tusimple_item(raw, [lane(60), lane(100)], range(16, 60, 4))
        put_labels(root / f"label_data_{name}.json", [item])
    done = convert(root, tmp_path / "out", "culane")
    assert done.source == "tusimple" and done.images == {"train": 1, "val": 1} and done.slots == 4
    x = np.array(item["lanes"][0])
    written = CULane(CULaneConfig(name="culane", root=tmp_path / "out"), "val").raw_lanes(0)[0]
    np.testing.assert_array_equal(written[:, 0], x[x >= 0])


def test_via_in_its_older_and_exported_forms(tmp_path):
    put_image(tmp_path / "img/a.jpg")
    x, y = lane(60).T.tolist()
    shape = {"name": "polyline", "all_points_x": x, "all_points_y": y}
    region = {"shape_attributes": shape, "region_attributes": {"kind": "left"}}
    rectangle = {"shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 2, "height": 2}}
    entry = {"filename": "a.jpg", "size": 9, "regions": {"0": region, "1": rectangle}}
    (tmp_path / "old.json").write_text(json.dumps({"a.jpg9": entry}))
    with pytest.raises(DataError, match="there is no image"):
        read_via(tmp_path / "old.json", Left())
    project = {
        "_via_img_metadata": {"a.jpg9": entry},
        "_via_settings": {"core": {"default_filepath": "img/"}},
    }
    (tmp_path / "project.json").write_text(json.dumps(project))
    left = Left()
    (one,) = read_via(tmp_path / "project.json", left)
    assert [line.label for line in one.lines] == ["left"]
    assert list(left.found) == ["regions of type 'rect', which are no lines"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ('{"shapes": [], "imagePath": 3}', "expected labelme's keys imagePath"),
        ('{"shapes": [3], "imagePath": "a.jpg"}', "shape 1: expected an object with points"),
        (
            '{"shapes": [{"points": [[1]], "shape_type": "line"}], "imagePath": "a.jpg"}',
            "not pairs",
        ),
        ('{"shapes": [], "imagePath": "../../x.jpg"}', "is not below"),
        ('{"shapes": [], "imagePath": "b.jpg"}', "there is no image"),
        ('{"shapes": [], "imagePath": "a.jpg", "imageHeight": 3, "imageWidth": 4}', "image of 3x4"),
    ],
)
def test_malformed_labelme_is_one_message(tmp_path, text, message):
    put_image(tmp_path / "a.jpg")
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_labelme(tmp_path, Left())


def test_other_sources_and_full_folders_are_refused(labelme, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is not one of: a CULane tree"):
        convert(tmp_path / "empty", tmp_path / "out", "culane")
    with pytest.raises(DataError, match="does not exist"):
        convert(tmp_path / "nowhere", tmp_path / "out", "culane")
    with pytest.raises(DataError, match="exists already"):
        convert(labelme, labelme, "culane")


class Stopped(Exception):
    """What ends a conversion halfway."""


def stop_after(images):
    def progress(done, total):
        if done == images:
            raise Stopped

    return progress


@pytest.mark.parametrize("way", ["link", "copy"])
@pytest.mark.parametrize("to", ["culane", "via", "labelme", "tusimple"])
def test_a_conversion_that_was_stopped_goes_on_when_repeated(labelme, tmp_path, to, way):
    how, out = Conversion(images=way), tmp_path / "out"
    with pytest.raises(Stopped):
        convert(labelme, out, to, how=how, progress=stop_after(2))
    if way == "copy":
        cut = next(out.rglob("*.jpg"))  # killed while it was copied
        cut.write_bytes(cut.read_bytes()[:10])
    assert not list(out.rglob("*.txt")) and not list(out.rglob("*.json"))
    done, whole = (convert(labelme, one, to, how=how) for one in (out, tmp_path / "whole"))
    assert done == whole and done.missing == 0
    files = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    names = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.*")}
    assert {path for path in names if (tmp_path / "whole" / path).is_file()} == files.keys()
    for path, data in files.items():
        assert (tmp_path / "whole" / path).read_bytes() == data
    with pytest.raises(DataError, match="exists already"):
        convert(labelme, out, to, how=how)


def test_half_a_conversion_is_named_by_another_one(labelme, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        convert(labelme, out, "culane", progress=stop_after(2))
    told = rf"{out}: holds another conversion, which was stopped \(of {labelme} to culane; .*Repeat"
    for to, how in (("via", None), ("culane", Conversion(val_share=0.5))):
        with pytest.raises(DataError, match=told):
            convert(labelme, out, to, how=how)
    with pytest.raises(DataError, match=r"is a conversion that was stopped, .*to culane\). Repeat"):
        convert(out, tmp_path / "next", "labelme")
    assert not (tmp_path / "next").exists()


def test_a_folder_in_the_source_is_refused(labelme, tmp_path):
    (tmp_path / "link").symlink_to(labelme)
    for out in (labelme / "out", labelme / "new/deep", tmp_path / "link/out"):
        with pytest.raises(DataError, match=r"lies in the source .*outside of it"):
            convert(labelme, out, "culane")
    assert not (labelme / "out").exists()
    with pytest.raises(DataError, match="exists already"):
        convert(labelme, tmp_path, "culane")
    # a file of VIA alone says what is in the set
    convert(labelme, tmp_path / "via", "via")
    convert(tmp_path / "via/via_project.json", tmp_path / "via/out", "culane")


def test_distances_and_crossings_by_hand():
    line = np.array([[0.0, 0], [10, 0], [10, 10]])
    points = np.array([[5.0, 2], [12, 5], [-3, -4]])
    np.testing.assert_allclose(distances(points, line), [2, 2, 5])
    x = sampled(np.array([[0.0, 10], [10, 0], [10, 0.0], [20, 5]]), np.array([10.0, 5, 0, 7, 11]))
    np.testing.assert_allclose(x, [0, 5, 10, 3, np.nan])


def test_the_command_tells_how_to_use_it(labelme, tmp_path, capsys):
    from segkd.commands.lane_convert import convert as command

    out = tmp_path / "my drives, 2"
    command(labelme, out, "culane")
    shown = capsys.readouterr().out
    assert "2 train + 2 val images, 10 lanes, from labelme" in shown
    words = shlex.split(shown.partition("Use them: ")[2])
    assert words == ["data.name=culane", f"data.root={out}", "data.num_lanes=6"]
    assert CULane(load_data("culane", words), "train").root == out
    with pytest.raises(ConfigError, match=r"there is no 'culan'. Did you mean 'culane'"):
        command(labelme, tmp_path / "other", "culan")
    image = cv2.imread(str(out / "drive1/00000.jpg"))
    assert image.shape[:2] == SIZE


@pytest.fixture
def labelled(tmp_path):
    """A source with lines labelled left, right, and `bus, wide`."""
    root = tmp_path / "labelled"
    put_image(root / "a.jpg")
    shapes = [
        {"label": label, "points": lane(foot).tolist(), "shape_type": "line"}
        for label, foot in {"left": 60, "right": 100, "bus, wide": 140}.items()
    ]
    put_labelme(root, "a.jpg", shapes)
    return root


@pytest.mark.parametrize(
    ("labels", "lanes"),
    [(["left,right"], 2), (["left", "right"], 2), (["right"], 1), (["bus, wide", "left"], 2)],
)
def test_labels_with_commas_or_in_several_options(labelled, tmp_path, labels, lanes):
    options = [word for label in labels for word in ("--labels", label)]
    for to in ("labelme", "via"):
        out = tmp_path / to
        done = CliRunner().invoke(
            app, ["data", "convert", str(labelled), str(out), "--to", to, *options]
        )
        assert done.exit_code == 0, done.output
        assert sum(len(one.lines) for one in read(out)[1]) == lanes


@pytest.mark.parametrize("labels", [("lane",), ("left,lane",), ("left", "lane")])
def test_labels_that_no_line_has_are_refused(labelled, tmp_path, labels):
    convert(labelled, tmp_path / "via", "via")
    for source in (labelled, tmp_path / "via"):
        with pytest.raises(DataError, match=r"labelled 'lane'.*'bus, wide' \(1\), 'left' \(1\)"):
            convert(source, tmp_path / "out", "culane", how=Conversion(labels=labels))
    assert not (tmp_path / "out").exists()


def test_an_attribute_that_no_region_has_is_refused(labelled, tmp_path):
    convert(labelled, tmp_path / "via", "via")
    how = Conversion(attribute="lanes")
    with pytest.raises(DataError, match=r"no region has 'lanes'.*Regions have: lane$"):
        convert(tmp_path / "via", tmp_path / "out", "culane", how=how)
    with pytest.raises(DataError, match="--attribute is for VIA"):
        convert(labelled, tmp_path / "out", "culane", how=how)


@pytest.mark.parametrize("names", [("labels",), ("day", "night")])
def test_label_files_of_any_name_can_be_used_as_the_command_says(tmp_path, capsys, names):
    from segkd.commands.lane_convert import convert as command

    root, out = tmp_path / "tusimple", tmp_path / "out"
    for number, name in enumerate(names):
        items = []
        for raw in (f"clips/{number}a/1.jpg", f"clips/{number}b/1.jpg"):
            put_image(root / raw)
            items.append(tusimple_item(raw, [lane(60), lane(100)], range(16, 60, 4)))
        put_labels(root / f"{name}.json", items)
    command(root, out, "culane")
    told = " ".join(capsys.readouterr().out.split())
    keys = dict(one.split("=") for one in told.partition("Use them: ")[2].split())
    keys = {key.removeprefix("data."): value for key, value in keys.items()}
    config = CULaneConfig(**keys)
    assert len(CULane(config, config.train_split)) == 2 - (len(names) == 1)
    assert len(CULane(config, config.val_split)) == 2 - (len(names) == 1)
    back = tmp_path / "back"
    convert(out, back, "labelme")
    splits = {one.entry: one.split for one in read_labelme(back, Left())}
    expected = {"train", "val"} if len(names) == 1 else {*names}
    assert {*splits.values()} == expected


def test_images_of_labelme_may_be_links(tmp_path):
    root, store = tmp_path / "labelme", tmp_path / "store"
    for number in (0, 1):
        put_image(store / f"object{number}.jpg")
        (root / "drive").mkdir(parents=True, exist_ok=True)
        (root / f"drive/{number}.jpg").symlink_to(store / f"object{number}.jpg")
        shapes = [{"label": "x", "points": lane(60).tolist(), "shape_type": "line"}]
        put_labelme(root, f"drive/{number}.jpg", shapes)
    (root / "val.txt").write_text("drive/1.jpg\n")
    found = {one.entry: one.split for one in read_labelme(root, Left())}
    assert found == {"drive/0.jpg": "", "drive/1.jpg": "val"}
    item = json.loads((root / "drive/0.json").read_text()) | {
        "imagePath": "../../store/object0.jpg"
    }
    (root / "drive/0.json").write_text(json.dumps(item))
    with pytest.raises(DataError, match="is not below"):
        read_labelme(root, Left())


def test_labelme_may_be_named_by_the_folder_above(labelme, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert(Path("../labelme"), tmp_path / "out", "culane")
    assert {one.entry for one in read(tmp_path / "out")[1]} == set(LANES)


def test_labelme_in_linked_folders_without_copies_of_other_programs(labelme, tmp_path):
    copies = labelme / "drive1/.ipynb_checkpoints"
    copies.mkdir()
    shutil.copy(labelme / "drive1/00000.json", copies / "00000-checkpoint.json")
    (labelme / "drive1/._00000.json").write_bytes(b"\0\5\x16\7Mac OS X\xb0")
    (tmp_path / "links").mkdir()
    for drive in ("drive1", "drive2"):
        (tmp_path / "links" / drive).symlink_to(labelme / drive)
    for source in (labelme, tmp_path / "links"):
        kind, images = read(source)
        assert kind == "labelme" and sorted(by_entry(images)) == sorted(LANES)
        assert len(images) == len(LANES)


def test_tusimple_as_it_is_downloaded(tmp_path):
    """The labels of the test images are fetched apart; tasks have no lanes, as they are to find."""
    root, rows = tmp_path / "tusimple", range(16, 60, 4)
    for folder in ("train_set", "test_set"):
        put_image(root / folder / f"clips/{folder}/1/20.jpg")
    item = tusimple_item("clips/train_set/1/20.jpg", [lane(60), lane(100)], rows)
    put_labels(root / "train_set/label_data_0313.json", [item])
    task = tusimple_item("clips/test_set/1/20.jpg", [], rows) | {"run_time": 1000}
    put_labels(root / "test_set/test_tasks_0627.json", [task])
    done = convert(root, tmp_path / "out", "culane")
    assert done.images == {"train": 1}
    assert any("without annotations (first: " in line for line in done.left.lines())
    label = tusimple_item("/clips/test_set/1/20.jpg", [lane(60)], rows)
    put_labels(root / "test_label.json", [label])
    done = convert(root, tmp_path / "again", "culane")
    assert done.images == {"test": 1, "train": 1} and not done.missing and done.lanes == 3
    put_labels(root / "test_set/mine.json", [label | {"run_time": 5}])
    with pytest.raises(DataError, match=r"clips/test_set/1/20\.jpg is annotated twice"):
        convert(root, tmp_path / "twice", "culane")


def test_splits_of_images_that_are_in_several_lists(tmp_path):
    """Lists of parts and sums are read last, in whichever order the disk has them."""
    entries = [f"d/{number}.jpg" for number in range(3)]
    for entry in entries:
        put_frame(tmp_path, entry, (60,))
    lists = {"all_gt": entries, "few_gt": entries[:1], "test": entries[2:]}
    lists |= {"train_gt": entries[:1], "val_gt": entries[1:2], "zz_gt": entries}
    for name, own in lists.items():
        flags = " /laneseg_label_w16/0.png 0 1 0 0" if name.endswith("_gt") else ""
        put_list(tmp_path, f"{name}.txt", [f"/{one}{flags}" for one in own])
    found = {one.entry: one.split for one in read_culane(tmp_path, Left())}
    assert found == dict(zip(entries, ("train", "val", "test"), strict=True))


def test_splits_that_were_typed_in_via(tmp_path):
    def put(**splits):
        entries = {}
        for name, split in splits.items():
            put_image(tmp_path / f"{name}.jpg")
            told = {"file_attributes": {"split": split}}
            entries[name] = {"filename": f"{name}.jpg", "regions": [], **told}
        (tmp_path / "via.json").write_text(json.dumps(entries))

    put(a="train ", b=" val", c="train")
    done = convert(tmp_path / "via.json", tmp_path / "out/lanes", "culane")
    assert done.images == {"train": 2, "val": 1}
    put(a="train", b="../../b")
    with pytest.raises(DataError, match=r"b\.jpg: its split is '../../b'"):
        convert(tmp_path / "via.json", tmp_path / "out/more", "culane")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lanes"]
