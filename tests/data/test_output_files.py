"""Stored outputs of teachers: files, claims, and what is found for a crop."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from segkd.data.base import DataConfig
from segkd.data.cached_outputs import CachedOutputs, CacheFolder, Views, batched, sampled
from segkd.data.output_files import OutputFolder, Stored, fingerprint
from segkd.data.prediction_crops import PlaceMap
from segkd.data.transforms import TrainTransform


def outputs(seed=0, size=(4, 6)):
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 5, (3, *size)).astype(np.float16)
    return Stored(logits, draw.normal(size=2).astype(np.float32), (float(size[0]), 5.5))


def test_what_is_written_is_read(tmp_path):
    folder, stored = OutputFolder(tmp_path / "new"), outputs()
    assert (
        folder.read(300, 1, 7) is None and not folder.file(300, 1).is_file() and folder.unfit == 0
    )
    folder.write(300, 1, 7, stored)
    found = OutputFolder(tmp_path / "new").read(300, 1, 7)
    assert found.logits.dtype == np.float16 and np.array_equal(found.logits, stored.logits)
    assert np.array_equal(found.exist, stored.exist) and found.extent == (4.0, 5.5)
    assert folder.file(300, 1).is_file() and folder.read(300, 0, 7) is None
    count, size = folder.size()
    assert count == 1 and size == folder.file(300, 1).stat().st_size
    folder.write(300, 1, 7, Stored(stored.logits))
    assert folder.read(300, 1, 7).exist is None and folder.size()[0] == 1


def test_what_does_not_fit_is_not_read(tmp_path):
    folder = OutputFolder(tmp_path)
    folder.write(0, 0, 7, outputs())
    assert folder.read(0, 0, 8) is None, "of another image"
    path = folder.file(0, 0)
    whole = path.read_bytes()
    wrong = bytearray(whole)
    place = whole.index(outputs().logits.tobytes()) + 3
    wrong[place] ^= 1
    torn = [whole[:length] for length in (0, 5, 40, len(whole) // 2, len(whole) - 1)]
    for content in (*torn, bytes(len(whole)), bytes(wrong)):
        path.write_bytes(content)
        assert folder.read(0, 0, 7) is None, len(content)
    assert folder.unfit == 8
    path.write_bytes(whole)
    assert folder.read(0, 0, 7) is not None


def test_old_partial_files_are_removed(tmp_path):
    folder = OutputFolder(tmp_path)
    folder.write(0, 0, 7, outputs())
    for name, age in (("old", 7200), ("young", 0)):
        part = folder.file(0, 0).with_name(f".{name}.part")
        part.write_bytes(b"x")
        os.utime(part, (time.time() - age,) * 2)
    assert folder.size()[0] == 1
    assert [p.name for p in folder.file(0, 0).parent.iterdir() if "part" in p.name] == [
        ".young.part"
    ]


FILL = """
import sys, time
import numpy as np
from pathlib import Path
from segkd.data.output_files import OutputFolder, Stored
folder, me, (first, last, step) = OutputFolder(Path("made")), sys.argv[1], map(int, sys.argv[2:])
Path(f"ready{me}").touch()
while len(list(Path(".").glob("ready*"))) < 2:
    time.sleep(0.001)
for index in range(first, last, step):
    with folder.claimed([(index, 0), (index + 1, 0)]):
        for one in (index, index + 1):
            if not folder.file(one, 0).is_file():
                time.sleep(0.002)
                folder.write(one, 0, 7, Stored(np.full((1, 2, 2), one, np.float16)))
                print(one)
"""
HOLD = """
import time
from pathlib import Path
from segkd.data.output_files import OutputFolder
with OutputFolder(Path("made")).claimed([(5, 1)]):
    print("ready", flush=True)
    time.sleep(10_000)
"""


def process(folder, code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)


def test_processes_do_nothing_twice(tmp_path):
    one = process(tmp_path, FILL, "1", "0", "30", "1")
    other = process(tmp_path, FILL, "2", "29", "-1", "-1")
    found = [int(line) for running in (one, other) for line in running.communicate()[0].split()]
    assert (one.returncode, other.returncode) == (0, 0) and sorted(found) == list(range(31))
    for index in range(31):
        stored = OutputFolder(tmp_path / "made").read(index, 0, 7)
        assert (stored.logits == index).all()


def test_claims_of_a_killed_process_are_gone(tmp_path, monkeypatch):
    running, folder = process(tmp_path, HOLD), OutputFolder(tmp_path / "made")
    try:
        assert running.stdout.readline() == "ready\n"
        with folder.claimed([(5, 0), (6, 1)]):  # of others
            pass
        monkeypatch.setattr("segkd.data.output_files._PATIENCE", 0.05)
        begin = time.monotonic()
        with folder.claimed([(5, 1)]):  # a process that hangs is not waited for forever
            assert time.monotonic() - begin >= 0.05
    finally:
        running.kill()
        running.communicate()
    monkeypatch.setattr("segkd.data.output_files._PATIENCE", 30)
    with folder.claimed([(5, 1)]):
        assert time.monotonic() - begin < 30, "not because the patience was over"


def test_views_are_few_and_the_same_in_all_runs():
    views = Views(3, 0)
    seeds = {(view, index): views.of(view, index)[1] for view in range(3) for index in range(50)}
    assert len(set(seeds.values())) == 150
    for epoch in range(9):
        assert views.of(epoch, 7) == (epoch % 3, seeds[epoch % 3, 7])
    assert Views(3, 1).of(0, 0)[1] != seeds[0, 0]
    assert Views(5, 0).of(2, 7) == views.of(2, 7), "more views keep the first ones"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("stride", [4, 5])
def test_crops_of_whole_image_outputs_are_linear_in_place(seed, stride):
    """Outputs that are the coordinates of their position: the crop has those of its pixels."""
    image = np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8)
    h, w = 16, 24
    rows, columns = np.meshgrid(np.arange(h) * 4 + 2.0, np.arange(w) * 4 + 2.0, indexing="ij")
    stored = Stored(np.stack([rows, columns]).astype(np.float16), extent=(16.0, 24.0))
    config = DataConfig(name="toy", crop=(40, 60), scale=(0.5, 1.5), flip=0.5)
    places = PlaceMap(config)(image, seed)
    found = sampled(stored, places, (64, 96), stride)
    assert found.logits.shape == (2, -(-40 // stride), -(-60 // stride))
    inside = TrainTransform(config, 255)(image, None, seed)[2]
    checked = 0
    for i in range(40 // stride):
        for j in range(60 // stride):
            cell = np.s_[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride]
            wanted = [places[axis][cell].mean() for axis in (0, 1)]
            edge = not all(2 <= p <= side - 2 for p, side in zip(wanted, (64, 96), strict=True))
            if inside[cell].all() and not edge:
                np.testing.assert_allclose(found.logits[:, i, j], wanted, atol=1.1)
                checked += 1
            elif not inside[cell].any():
                assert not found.known[i, j]
    assert checked > 10
    if found.known is None:
        assert inside.all()


def test_an_image_that_is_not_moved_keeps_its_outputs():
    image = np.zeros((32, 48, 3), np.uint8)
    stored = outputs(size=(8, 12))
    stored = Stored(stored.logits, stored.exist, (8.0, 12.0))
    config = DataConfig(name="toy", crop=(32, 48), scale=(1.0, 1.0), flip=0)
    found = sampled(stored, PlaceMap(config)(image, 0), (32, 48), 4)
    assert np.array_equal(found.logits, stored.logits) and found.known is None
    mirrored = DataConfig(name="toy", crop=(32, 48), scale=(1.0, 1.0), flip=1)
    found = sampled(stored, PlaceMap(mirrored)(image, 0), (32, 48), 4)
    np.testing.assert_array_equal(found.logits, stored.logits[:, :, ::-1])


def test_a_batch_says_what_is_missing(tmp_path):
    folder = OutputFolder(tmp_path)
    look = CachedOutputs({"a": CacheFolder(folder, "views", 8)}, DataConfig(name="toy"))
    images = [np.full((32, 48, 3), value, np.uint8) for value in range(3)]
    for index in (0, 2):
        folder.write(index, 1, fingerprint(images[index]), outputs(index))
    items = [look(image, image, index, 1, 0) for index, image in enumerate(images)]
    extra = batched(items)
    assert extra["teacher/a/found"].tolist() == [True, False, True]
    assert extra["cache/view"].tolist() == [1, 1, 1]
    assert np.array_equal(extra["teacher/a/logits"][2].numpy(), outputs(2).logits)
    assert np.array_equal(extra["teacher/a/exist"][0].numpy(), outputs(0).exist)
    assert set(batched(items[1:2])) == {"cache/view", "cache/image", "teacher/a/found"}
    assert "teacher/a/found" not in batched([items[0], items[2]])
