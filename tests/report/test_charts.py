import re

import numpy as np
import pytest

from segkd.evaluation.plots import run_colors
from segkd.report.charts import class_bars, color_key, confusion_chart, cost_bars, curves
from segkd.viz import fonts

cv2 = pytest.importorskip("cv2")


def texts(chart):
    return re.findall(r"<text[^>]*>([^<]+)</text>", chart.svg)


def size(chart):
    width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', chart.svg).groups()
    return float(width), float(height)


def white(chart):
    image = cv2.imdecode(np.frombuffer(chart.png, np.uint8), cv2.IMREAD_COLOR)
    return (image == 255).all(2).mean()


def test_bars_are_sorted_by_gain():
    scores = {
        "alone": {"road": 0.9, "car": 0.2, "tram": float("nan")},
        "distilled": {"road": 0.88, "car": 0.5, "tram": float("nan")},
    }
    palette = {"alone": "#777777", "distilled": "#0072b2"}
    found = class_bars(scores, palette, name="x", measure="IoU", gain_of=("alone", "distilled"))
    shown = texts(found)
    places = [shown.index(name) for name in ("car", "road", "tram")]
    assert places == sorted(places)
    assert "+30.0" in shown and "-2.0" in shown and "IoU in %" in shown
    plain = texts(class_bars(scores, palette, name="x", measure="IoU"))
    assert plain.index("road") < plain.index("car") and "+30.0" not in plain


@pytest.mark.parametrize(("count", "smallest"), [(19, 9), (150, 7.5)])
def test_a_confusion_matrix_is_readable_at_any_size(count, smallest):
    draw = np.random.default_rng(0)
    matrix = draw.integers(0, 9, (count, count)) + 400 * np.eye(count, dtype=int)
    matrix[3] = 0
    classes = [f"class number {k}" for k in range(count)]
    found = confusion_chart(matrix, classes, name="c")
    shown = texts(found)
    assert all(shown.count(name) == 2 for name in classes)
    sizes = [float(value) for value in re.findall(r"font(?:-size)?: ([\d.]+)px", found.svg)]
    assert min(sizes) >= 7.5 and smallest in sizes
    assert size(found)[0] / count >= smallest * 1.3  # a label fits into its row
    assert found.wide == (count > 25)
    share = f"{100 * matrix[0, 0] / matrix[0].sum():.0f}"
    assert (share in shown) == (count <= 25)
    assert 0.1 < white(found) < 0.99


def test_curves_and_costs():
    steps = np.arange(1.0, 40)
    runs = {"a": [(steps, 100 / steps**3), (steps, 1 / steps)]}
    found = curves(
        {"kd/kd": runs, "lr": runs}, {"a": "#0072b2"}, name="x", alt="y", logarithmic=True
    )
    assert {"kd/kd", "lr", "a", "step"} <= set(texts(found)) and white(found) < 0.99
    split = {"alone": {"data": 0.1, "update": 0.2}, "kd": {"data": 0.1, "method/kd": 0.3}}
    bars = cost_bars(split, ["data", "method/kd", "update"])
    assert {"300 ms", "400 ms", "method/kd"} <= set(texts(bars))


def test_a_run_has_one_colour_and_no_two_share_one():
    roles = {"big": "teacher", "alone": "baseline", **{f"m{k}": "" for k in range(8)}}
    found = run_colors(list(roles), roles)
    assert len(set(found.values())) == len(roles)
    assert found["m0"] == run_colors(["m0"], {})["m0"]


def test_names_cannot_break_the_page():
    chart = cost_bars({'<b>&"x"': {"data": 0.1}}, ["data"], name="n")
    assert "<b>" not in chart.svg and "&lt;b&gt;&amp;" in chart.svg


def test_names_that_begin_with_an_underscore_are_in_the_legends():
    """matplotlib leaves them out where artists are labelled, older ones in explicit legends too."""
    palette = {"_alone": "#777777", "distilled": "#0072b2"}
    scores = {"_alone": {"_background_": 0.2}, "distilled": {"_background_": 0.5}}
    assert {*palette} <= {*texts(class_bars(scores, palette, name="x", measure="IoU"))}
    lines = {run: [(np.arange(3.0), np.arange(3.0))] for run in palette}
    assert {*palette} <= {*texts(curves({"lr": lines}, palette, name="x", alt="y"))}
    key = color_key(["_background_", "road"], np.array([[9, 9, 9], [0, 90, 0]], np.uint8))
    assert texts(key) == ["_background_", "road"]


def test_the_page_keeps_names_for_which_no_font_is_installed_here(monkeypatch):
    """A reader's browser has fonts; the picture beside it is written with what is here."""
    monkeypatch.setattr(fonts, "_family_of", lambda letter: None)
    name, drawn = "\u9053\u8def", []
    monkeypatch.setattr(fonts, "_instead", lambda letter: drawn.append(letter) or "X")
    found = class_bars({"alone": {name: 0.9}}, {"alone": "#777777"}, name="x", measure="IoU")
    assert name in texts(found) and set(name) == set(drawn)
