"""Students by budget: what fits comes first, and the best choice at the top."""

import pytest

from segkd.errors import ConfigError
from segkd.pipeline import budget as module
from segkd.pipeline.budget import (
    Budget,
    Candidate,
    candidates,
    candidates_table,
    number_of,
    require_fitting,
)

SIZE = (64, 64)
NAMES = ("enet", "espnetv2", "erfnet")


def test_numbers():
    assert [number_of(text, "x") for text in ("800k", "1.5M", "7", "2 G")] == [
        800_000,
        1_500_000,
        7,
        2_000_000_000,
    ]
    assert [number_of(text, "x") for text in ("2.01M", "32.3k")] == [2_010_000, 32_300]
    for text in ("", "0", "-1", "1T", "M"):
        with pytest.raises(ConfigError, match="x: got"):
            number_of(text, "x")


def test_those_that_fit_come_first_the_largest_at_the_top():
    rows = candidates(Budget(parameters=1_000_000), 4, SIZE, names=NAMES)
    fitting = [row for row in rows if row.fits]
    assert [row.name for row in rows if not row.fits] == ["erfnet"]
    assert [row.parameters for row in fitting] == sorted(
        (row.parameters for row in fitting), reverse=True
    )
    assert all(row.milliseconds is None and bool(row.flops) == row.fits for row in rows)
    table = candidates_table(rows, Budget(parameters=1_000_000), SIZE).text()
    assert f"→ {fitting[0].name}" in table


def test_a_budget_that_none_fits_is_refused_without_measuring(monkeypatch):
    monkeypatch.setattr(module, "flops", lambda *_: pytest.fail("operations were counted"))
    monkeypatch.setattr(module, "_latency", lambda *_: pytest.fail("a network was timed"))
    limits = Budget(10, 20.0)
    with pytest.raises(ConfigError, match="no student fits --max-params 10 --max-latency-ms 20: "):
        require_fitting(candidates(limits, 4, SIZE, names=NAMES), limits)


def test_latency_is_measured_of_those_that_have_few_enough_parameters(monkeypatch):
    asked = []
    speeds = {"enet": 5.0, "espnetv2": 30.0}

    def latency(network, size):
        name = {"ENet": "enet"}.get(type(network).__name__, "espnetv2")
        asked.append(name)
        return speeds[name]

    monkeypatch.setattr(module, "_latency", latency)
    limits = Budget(1_000_000, 10.0)
    rows = candidates(limits, 4, SIZE, names=NAMES)
    assert sorted(asked) == ["enet", "espnetv2"]
    assert next((row.name, row.fits) for row in rows) == ("enet", True)
    assert sum(row.fits for row in rows) == 1
    speeds["enet"] = 11.0
    rows, text = candidates(limits, 4, SIZE, names=NAMES), r"fastest, enet, takes 11\.0 ms"
    with pytest.raises(ConfigError, match=text):
        require_fitting(rows, limits)


def test_latency_is_that_of_the_file_where_onnxruntime_is_installed(monkeypatch):
    pytest.importorskip("onnxruntime")
    seen = []
    measure = module.measure
    monkeypatch.setattr(module, "_REPEATS", 1)
    monkeypatch.setattr(
        module, "measure", lambda *a, **k: seen.append(sorted(a[1])) or measure(*a, **k)
    )
    (row,) = candidates(Budget(milliseconds=1e6), 4, SIZE, names=["enet"])
    assert seen == [["ONNX fp32"]] and row.milliseconds > 0


def test_weights_at_hand_count_more_than_size(monkeypatch):
    monkeypatch.setattr(module, "is_installed", lambda encoder: encoder.endswith("small_050"))
    names = ["erfnet", "fpn/tu-mobilenetv3_small_050"]
    rows = candidates(Budget(parameters=10_000_000), 4, SIZE, names=names)
    assert [row.name for row in rows] == [names[1], names[0]]
    assert isinstance(rows[0], Candidate) and rows[0].pretrained
