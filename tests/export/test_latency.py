"""The latency table: every runtime takes turns, medians, a reason where there are none."""

import pytest
import torch
from exported import toy_int8, toy_onnx, toy_student

from segkd.export import latency
from segkd.export.latency import COMPILED, EAGER, Latency, interleaved, latency_table, measure
from segkd.models.build import network_from_file

pytest.importorskip("onnxruntime")


def test_runners_take_turns_and_warm_up():
    calls = []
    runners = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds = interleaved(runners, 4)
    assert calls == ["a", "b"] * (4 + latency._WARM_UP)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4}


def test_a_table_of_all_runtimes(monkeypatch):
    network = network_from_file(toy_student())[0]
    before = torch.get_num_threads()
    files = {"ONNX fp32": toy_onnx(), "ONNX int8": toy_int8()}
    monkeypatch.setattr(latency, "has_openvino", lambda: False)  # see test_openvino.py
    monkeypatch.setattr(latency, "interleaved", lambda runners, repeats: _fixed(runners))
    rows = measure(network, files, size=(32, 48), threads=1, repeats=3)
    assert [row.name for row in rows] == [EAGER, "ONNX fp32", "ONNX int8"]
    assert rows[1].megabytes == pytest.approx(toy_onnx().stat().st_size / 1e6)
    assert torch.get_num_threads() == before
    table = latency_table(
        rows, network, size=(32, 48), threads=1, repeats=3, scores={"ONNX int8": 0.5}
    )
    assert table.rows[0][1:4] == ["3.00", "2.00", "1.00"]
    assert table.rows[1][1:4] == ["6.00", "4.00", "0.50"]
    assert [row[-1] for row in table.rows] == ["–", "–", "50.00"]
    assert "1 threads" in table.notes[1] and "parameters" in table.notes[0]


def test_operations_are_those_of_the_resized_image():
    network = network_from_file(toy_student())[0]
    keys = {"threads": 1, "repeats": 1}
    notes = [
        latency_table([Latency(EAGER, 1.0)], network, size=size, resize=resize, **keys).notes[:2]
        for size, resize in (((64, 96), None), ((720, 1280), (64, 96)))
    ]
    assert notes[0][0] == notes[1][0] and " GFLOPs" in notes[0][0]
    assert "720x1280 resized to 64x96" in notes[1][1]


def _fixed(runners):
    """Times 2, 3, 9 ms times the position, after each runner was called once."""
    for run in runners.values():
        run()
    return {
        name: [place * ms / 1e3 for ms in (9, 2, 3)] for place, name in enumerate(runners, start=1)
    }


def test_without_a_compiler_the_row_says_so(monkeypatch):
    def fail(module):
        def call(image):
            raise RuntimeError("InvalidCxxCompiler: no g++\nmore")

        return call

    monkeypatch.setattr(torch, "compile", fail)
    network = network_from_file(toy_student())[0]
    rows = measure(network, {}, size=(32, 48), repeats=1, compiled=True)
    assert rows[1].name == COMPILED and rows[1].median is None
    table = latency_table(rows, network, size=(32, 48), threads=None, repeats=1)
    assert table.rows[1][1:] == ["–"] * 4
    assert "no g++" in table.notes[-1] and "install g++" in table.notes[-1]
