"""Files of students with fields that no segkd writes: one message each, at once."""

import json
import struct
import time
import zipfile

import pytest
import torch
from exported import toy_onnx, toy_student

from segkd import checkpoint
from segkd.errors import CheckpointError, SegKDError
from segkd.models.build import network_from_file
from segkd.models.payload import check_export
from segkd.models.weights import load_student_file, save_safetensors

ODD = (
    *(None, 0, -1, 3.5, float("nan"), True, "", "a" * 100_000, "\0", [], [None], [[]], [[1, 2]]),
    *({}, {"a": 1}, {"arch": 3}, [10**30] * 3, ["a"] * 100_000, [["r"] * 3] * 4, "[" * 5000),
)
FIELDS = (
    *("classes", "palette", "ignore_index", "dataset", "config", "step", "miou", "score"),
    *("score_name", "lanes", "model", "weights", "format"),
)
MODEL = ("arch", "encoder", "weights", "normalize", "aux_head", "exist_head", "options")


@pytest.fixture(scope="module")
def payload():
    return load_student_file(toy_student())


def used(path):
    """Reads a file and all that is computed of it; returns what was raised."""
    started = time.monotonic()
    try:
        network, _ = network_from_file(path)
        assert len(network.classes) == len(network.palette)
        _ = network.info.resize, network.info.crop
        error = None
    except SegKDError as raised:
        error = raised
        assert len(str(raised)) < 1500
    assert time.monotonic() - started < 20, "a guard against minutes, no measurement"
    return error


@pytest.mark.parametrize("field", [*FIELDS, *(f"model.{key}" for key in MODEL)])
def test_odd_values_are_refused_or_read_never_a_traceback(field, payload, tmp_path):
    path, (block, _, key) = tmp_path / "best.pt", field.rpartition(".")
    for value in ODD:
        changed = {**payload[block], key: value} if block else value
        checkpoint.save(path, {**payload, block or key: changed})
        used(path)
        if key not in ("weights", "format"):
            facts = {**payload, block or key: changed}
            save_safetensors(facts, tmp_path / "model.safetensors")
            used(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": "abcd"}, "classes: input should be a valid list"),
        ({"classes": ["a" * 201] * 4}, "classes.0: string should have at most 200"),
        ({"classes": ["a"] * 100_000}, "classes: list should have at most 10000"),
        ({"palette": [[0, 0, 0]] * 3}, "palette: 3 colours for 4 classes"),
        ({"palette": [[0, 0, 256]] * 4}, "palette.0.2: input should be less than"),
        ({"lanes": {"metric": "x", "cut_top": 0, "size": None}}, "lanes.metric"),
        ({"weights": {"a": 3}}, "weights: expected tensors by name"),
        ({"config": "data: 3"}, "not a mapping of blocks"),
        ({"config": "data: {resize: [a, 2]}"}, "expected .height, width."),
        ({"config": "a: " + "[" * 3000}, "nested too deeply|expected"),
        ({"config": "a: &a 1\nb: *a"}, "aliases"),
        ({"model": {"arch": "toy", "options": {"width": "wide"}}}, "cannot be built with options"),
    ],
)
def test_the_message_names_file_and_field(changes, message, payload, tmp_path):
    path = tmp_path / "best.pt"
    checkpoint.save(path, {**payload, **changes})
    error = used(path)
    assert error is not None
    import re

    assert re.search(message, str(error)), error


def test_metadata_of_onnx():
    onnx = pytest.importorskip("onnx")
    model = onnx.load(toy_onnx())
    facts = {entry.key: entry.value for entry in model.metadata_props}
    texts = [json.dumps(value) for value in ODD[:-1] if value == value] + ["{", "[" * 5000]
    refused = 0
    for key in facts:
        for text in texts:
            del model.metadata_props[:]
            onnx.helper.set_model_props(model, facts | {key: text})
            path = toy_onnx().with_name("odd.onnx")
            onnx.save(model, path)
            refused += used(path) is not None
    assert refused > len(facts) * 10
    with pytest.raises(CheckpointError, match="std: got"):
        good = {key.removeprefix("segkd."): json.loads(value) for key, value in facts.items()}
        check_export(good | {"std": [1, 1, 0]}, "f")


def test_every_flipped_byte_of_the_weights_is_noticed(payload, tmp_path):
    path = tmp_path / "best.pt"
    checkpoint.save(path, payload)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        parts = [part for part in archive.infolist() if part.file_size > 4]
    assert len(parts) > 5
    for part in parts:
        start = struct.unpack_from("<HH", whole, part.header_offset + 26)
        start = part.header_offset + 30 + sum(start)
        broken = bytearray(whole)
        broken[start + part.file_size // 2] ^= 1
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"is damaged.*checksum of .* is wrong"):
            checkpoint.load(path)
    path.write_bytes(whole)
    assert torch.equal(
        next(iter(checkpoint.load(path)["weights"].values())),
        next(iter(payload["weights"].values())),
    )


def test_cut_files_and_flipped_tables(payload, tmp_path):
    path = tmp_path / "best.pt"
    checkpoint.save(path, payload)
    whole = path.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        assert used(path) is not None
    for position in range(0, len(whole), max(1, len(whole) // 200)):
        broken = bytearray(whole)
        broken[position] ^= 0xFF
        path.write_bytes(broken)
        used(path)
