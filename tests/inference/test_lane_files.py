import json

import numpy as np

from segkd.inference.lane_decode import Lanes
from segkd.inference.lane_files import lines_text, tusimple_item, write_lines, write_tusimple
from segkd.metrics.culane_text import read_lanes
from segkd.metrics.tusimple import evaluate_files


def test_lines_as_the_official_ones(tmp_path):
    lanes = [np.array([[820.0, 589.0], [815.5, 569.0]]), np.array([[1.25, 2.0], [3.0, 4.0]])]
    path = write_lines(tmp_path, "driver/clip/00000.jpg", lanes)
    assert path == tmp_path / "driver/clip/00000.lines.txt"
    assert path.read_text() == "820 589 815.5 569 \n1.25 2 3 4 \n"
    for read, lane in zip(read_lanes(path), lanes, strict=True):
        np.testing.assert_array_equal(read, lane)


def test_an_image_without_lanes_has_an_empty_file(tmp_path):
    assert write_lines(tmp_path, "/a.png", []).read_text() == ""
    assert lines_text([]) == ""


def test_tusimple_lines_are_read_by_the_metric(tmp_path):
    rows = np.array([240.0, 250, 260])
    x = np.array([[10.0, np.nan, 12.5], [np.nan] * 3])
    item = tusimple_item("clips/a/20.jpg", Lanes(x, rows, np.ones(2, np.float32)), 12.3456)
    assert item == {
        "raw_file": "clips/a/20.jpg",
        "lanes": [[10, -2, 12.5]],
        "h_samples": [240, 250, 260],
        "run_time": 12.346,
    }
    write_tusimple(tmp_path / "found.json", [item])
    truth = {"raw_file": "clips/a/20.jpg", "lanes": [[10, -2, 12]], "h_samples": [240, 250, 260]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    result = evaluate_files(tmp_path / "found.json", tmp_path / "truth.json")
    assert (result.accuracy, result.fp, result.fn) == (1.0, 0.0, 0.0)
