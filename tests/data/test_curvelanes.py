"""CurveLanes and LLAMAS on files in their layout, and their scores through the engine's paths."""

import json

import numpy as np
import pytest
from lane_trees import SIZE, lane, put_image
from typer.testing import CliRunner

from segkd.commands.score import score
from segkd.data.curvelanes import CurveLanes, CurveLanesConfig
from segkd.data.llamas import LLAMAS, LLAMASConfig
from segkd.data.llamas_markers import lanes_of_markers
from segkd.errors import DataError
from segkd.evaluation.lane_set_files import score_set
from segkd.inference.lane_files import write_curvelanes, write_lines

FEET = (-40, 10, 50, 110, 150)


@pytest.fixture
def curves(tmp_path):
    root = tmp_path / "curvelanes"
    for part in ("train", "valid"):
        for name in ("b", "a"):
            put_image(root / part / "images" / f"{name}.jpg")
            lines = [[{"x": str(x), "y": str(y)} for x, y in lane(foot)] for foot in FEET]
            path = root / part / "labels" / f"{name}.lines.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"Lines": [*lines, []]}))
    (root / "train/train.txt").write_text("images/b.jpg\n")
    put_image(root / "test/images/c.jpg")
    return root


def test_curvelanes_lanes_get_slots_by_position(curves):
    dataset = CurveLanes(CurveLanesConfig(name="curvelanes", root=curves), "train")
    assert len(dataset) == 1 and str(dataset.entry(0)) == "train/images/b.jpg"
    sample = dataset.read(0)
    assert [one is not None for one in sample.lanes] == [False] + [True] * 5 + [False] * 2
    assert set(np.unique(sample.label)) == {0, 2, 3, 4, 5, 6}
    assert len(dataset.annotation(0).lanes) == 5
    assert [
        str(p)
        for p in map(
            CurveLanes(CurveLanesConfig(name="curvelanes", root=curves), "val").entry, (0, 1)
        )
    ] == [
        "valid/images/a.jpg",
        "valid/images/b.jpg",
    ]
    assert (
        CurveLanes(CurveLanesConfig(name="curvelanes", root=curves), "test").read(0).label is None
    )


def test_lists_of_curvelanes_may_have_names_with_blanks(curves):
    images, labels = curves / "train/images", curves / "train/labels"
    (images / "a.jpg").rename(images / "a 1.jpg")
    (labels / "a.lines.json").rename(labels / "a 1.lines.json")
    (curves / "train/train.txt").write_text("/images/a 1.jpg\nimages/b.jpg labels/b.lines.json\n")
    dataset = CurveLanes(CurveLanesConfig(name="curvelanes", root=curves), "train")
    assert [image.name for image, _ in dataset.pairs] == ["a 1.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", '"Lines"'),
        ('{"Lines": [[{"x": "a", "y": 1}]]}', "lane 1 is not"),
        ("{", "not valid JSON"),
    ],
)
def test_malformed_curvelanes_is_one_message(curves, text, message):
    (curves / "train/labels/b.lines.json").write_text(text)
    with pytest.raises(DataError, match=message):
        CurveLanes(CurveLanesConfig(name="curvelanes", root=curves), "train").read(0)


def command_table(name, root, found, *more):
    """The lines of the table that the command prints, as `segkd score culane` does."""
    arguments = [name, "--root", str(root), "--predictions", str(found), *more]
    shown = CliRunner().invoke(score, arguments, catch_exceptions=False).stdout.splitlines()
    return shown[[line.startswith("category") for line in shown].index(True) :]


def test_curvelanes_files_are_scored(curves, tmp_path):
    write_curvelanes(tmp_path / "found", "valid/images/a.jpg", [lane(foot) for foot in FEET[1:]])
    result, missing = score_set("curvelanes", curves, "val", tmp_path / "found")
    assert (result.total.tp, result.total.fp, result.total.fn) == (4, 0, 6) and len(missing) == 1
    shown = command_table("curvelanes", curves, tmp_path / "found", "--iou", "0.75")
    assert shown[0].split()[-3:] == ["precision", "recall", "F1@75"]
    assert shown[2].split()[:5] == ["total", "2", "4", "0", "6"]
    with pytest.raises(DataError, match="no prediction file for any"):
        score_set("curvelanes", curves, "val", tmp_path / "nothing")


def marker(begin, end, z):
    pixel = [{"x": str(x), "y": str(y)} for x, y in (begin, end)]
    world = [{"x": "0", "y": "0", "z": str(z + step)} for step in (0, 1)]
    keys = ("pixel_start", "pixel_end", "world_start", "world_end")
    return dict(zip(keys, [*pixel, *world], strict=True))


def dashes(foot, slope):
    """Markers of a lane with x = foot + slope * (716 - y)."""

    def at(y):
        return round(foot + slope * (716 - y)), y

    return [marker(at(y), at(y - 40), 700 - y) for y in (660, 560, 460, 360)]


LABELS = {
    "image_name": "1_0",
    "lanes": [
        {"lane_id": "l2", "markers": dashes(60, 1.0)},
        {"lane_id": "l0", "markers": dashes(400, 0.5)},
        {"lane_id": "r0", "markers": dashes(900, -0.5)},
        {"lane_id": "r1", "markers": dashes(900, -0.4)[:1]},  # one marker: dropped
        {"lane_id": "r2", "markers": [marker((1200, 330 - k), (1190, 325 - k), 9) for k in (0, 5)]},
        {"lane_id": "r3", "markers": dashes(1200, -0.9)},
    ],
}


def test_markers_become_a_point_per_row():
    l1, l0, r0, r1 = lanes_of_markers(LABELS["lanes"])
    # l2 is counted as l1, r3 as r1, since r1 has one marker and r2 is five rows high
    for found, foot, slope in ((l1, 60, 1.0), (l0, 400, 0.5), (r0, 900, -0.5), (r1, 1200, -0.9)):
        assert found[:, 1].tolist() == list(range(320, 717)), "continued to the lowest row"
        np.testing.assert_allclose(found[:, 0], foot + slope * (716 - found[:, 1]), atol=1)
    assert lanes_of_markers([]) == [None] * 4


def test_a_marker_is_continued_to_the_side_that_it_leaves():
    lanes = [
        {
            "lane_id": "l0",
            "markers": [marker((100, 500), (200, 450), 5), marker((300, 400), (400, 350), 9)],
        }
    ]
    points = lanes_of_markers(lanes)[1]
    # the line x = 100 + 2 (500 - y) meets x = 0 at y = 550
    assert points[-1].tolist() == [0, 550] and points[0].tolist() == [400, 350]
    # at y = 425, between both markers: x = 250
    assert points[points[:, 1] == 425][0, 0] == pytest.approx(250)


@pytest.fixture
def highway(tmp_path):
    root = tmp_path / "llamas"
    put_image(root / "color_images/valid/run1/1_0_color_rect.png", (717, 1276))
    path = root / "labels/valid/run1/1_0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(LABELS))
    return root


def test_llamas_is_read_and_scored(highway, tmp_path):
    dataset = LLAMAS(LLAMASConfig(name="llamas", root=highway), "val")
    sample = dataset.read(0)
    assert sample.label.shape == (717, 1276) and set(np.unique(sample.label)) == {0, 1, 2, 3, 4}
    assert str(dataset.prediction_entry(0)) == "run1/1_0.png"
    lanes = dataset.annotation(0).lanes
    assert len(lanes) == 4 and all(one[0, 1] >= 300 for one in lanes)
    write_lines(
        tmp_path / "found", "run1/1_0.png", [lanes[0][::20], lanes[1][::40] + np.array([200, 0])]
    )
    result, missing = score_set("llamas", highway, "val", tmp_path / "found")
    assert (result.total.tp, result.total.fp, result.total.fn) == (1, 1, 3) and not missing
    shown = command_table("llamas", highway, tmp_path / "found")
    assert shown[0].split()[-1] == "F1" and shown[2].split()[-3:] == ["50.00", "25.00", "33.33"]


def test_files_of_llamas_may_be_named_after_the_whole_image(highway, tmp_path):
    lanes = LLAMAS(LLAMASConfig(name="llamas", root=highway), "val").annotation(0).lanes
    for number, entry in enumerate(("run1/1_0_color_rect.png", "1_0_color_rect.png")):
        write_lines(tmp_path / f"found{number}", entry, [lane[::20] for lane in lanes])
        result, missing = score_set("llamas", highway, "val", tmp_path / f"found{number}")
        assert result.total.tp == 4 and not missing


def test_a_missing_file_of_llamas_is_named_where_it_belongs(highway, tmp_path):
    with pytest.raises(DataError, match=r"found/run1/1_0\.lines\.txt: there is no prediction file"):
        score_set("llamas", highway, "val", tmp_path / "found")


def test_a_line_of_a_llamas_file_without_numbers_is_told(highway, tmp_path):
    file = tmp_path / "found/run1/1_0.lines.txt"
    file.parent.mkdir(parents=True)
    file.write_text("400 700 450 600\nlane 2: 900 700 850 600\n")
    with pytest.raises(DataError, match=r"1_0\.lines\.txt, line 2: .*is not pairs of numbers"):
        score_set("llamas", highway, "val", tmp_path / "found")


def test_malformed_llamas_is_one_message(highway):
    path = highway / "labels/valid/run1/1_0.json"
    path.write_text(json.dumps({"lanes": [{"lane_id": "l0", "markers": [{}]}]}))
    with pytest.raises(DataError, match="are not those of LLAMAS"):
        LLAMAS(LLAMASConfig(name="llamas", root=highway), "val").read(0)
    assert SIZE  # of the other set
