"""Answers on disk: by content, whole or not at all, and never more queries than allowed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segkd.data.predictions import Prediction, top_of
from segkd.errors import ConfigError, DataError
from segkd.models.query_cache import QueryCache

DRAW = np.random.default_rng(0)
FACTS = {"queried": "my:box", "stride": 4}


def cache(folder, most=None, facts=FACTS):
    return QueryCache(folder, facts, 5, most, "teachers.t.black_box")


def answer():
    values = DRAW.random((5, 2, 3))
    return Prediction((values / values.sum(0)).astype(np.float32))


def test_answers_are_found_by_content_and_size(tmp_path):
    image = DRAW.integers(0, 256, (3, 8, 12), np.uint8)
    kept = cache(tmp_path).keep(image, top_of(answer().values, 2))
    found = cache(tmp_path).find(image.copy())
    assert (found.values == kept.values).all() and (found.ids == kept.ids).all()
    changed = image.copy()
    changed[2, 7, 11] ^= 1
    assert cache(tmp_path).find(changed) is None
    assert cache(tmp_path).find(image.reshape(3, 12, 8)) is None
    strided = np.ascontiguousarray(image.transpose(1, 2, 0)).transpose(2, 0, 1)
    assert cache(tmp_path).find(strided) is not None


def test_a_folder_is_of_one_box_and_written_with_its_first_query(tmp_path):
    first = cache(tmp_path / "new", 3)
    assert not (tmp_path / "new").exists()
    assert first.reserve(1) == 1
    cache(tmp_path / "new", 9)
    with pytest.raises(ConfigError, match=r"queried was 'my:box', now it is 'his:box'"):
        cache(tmp_path / "new", 3, {**FACTS, "queried": "his:box"})


def test_the_budget_counts_over_runs(tmp_path):
    assert cache(tmp_path, 5).reserve(3) == 3
    again = cache(tmp_path, 5)
    assert again.used == 3 and again.reserve(4) == 2 and again.reserve(1) == 0
    assert cache(tmp_path, 6).reserve(4) == 1
    assert cache(tmp_path).reserve(4) == 4, "no budget"
    assert cache(tmp_path, 0).reserve(4) == 0


def test_a_damaged_answer_is_named(tmp_path):
    image = np.zeros((3, 8, 12), np.uint8)
    cache(tmp_path).keep(image, answer())
    path = cache(tmp_path).path(image)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=rf"black_box\.cache: {path}: cannot be read.*delete it"):
        cache(tmp_path).find(image)


def test_what_another_process_takes_in_between_is_not_granted(tmp_path, monkeypatch):
    assert cache(tmp_path, 5).reserve(4) == 4
    late = cache(tmp_path, 5)
    monkeypatch.setattr(QueryCache, "used", 3)  # read before the other process reserved its last
    assert late.reserve(2) == 1 and late.reserve(2) == 0


WORKER = """
import sys
from pathlib import Path
from segkd.models.query_cache import QueryCache
box = QueryCache(Path(sys.argv[1]), {"queried": "my:box", "stride": 4}, 5, 200, "key")
print(sum(box.reserve(1) for _ in range(150)))
"""


def test_processes_together_stay_within_the_budget(tmp_path):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    running = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    granted = [int(process.communicate(timeout=300)[0]) for process in running]
    assert sum(granted) == 200


def test_files_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="where a folder is needed") as caught:
        cache(tmp_path / "file").reserve(1)
    assert caught.value.filename == str(tmp_path / "file")
    (tmp_path / "box.json").write_text("x")
    with pytest.raises(DataError, match=r"box\.json: is not valid JSON.*Give another folder"):
        cache(tmp_path)
