"""A folder of small configs to break, one piece at a time."""

import textwrap

import pytest

from segkd.config.load import load_config
from segkd.errors import ConfigError

BASE = """\
data:
  name: toy
  batch_size: 4
optim: {name: sgd, lr: 1e-2}
eval: {every: 50}
"""
RUN = """\
base: _base_/toy.yaml
steps: 100
student: {arch: toy}
teachers:
  main: {arch: toy, options: {width: 8}}
methods:
  kd: {weight: 2}
  cwd_head: {method: cwd, tap: head}
"""
RECIPE = """\
base: _base_/toy.yaml
title: Toys
seeds: [0, 3]
baseline: alone
teacher: main
common:
  steps: 100
  student: {arch: toy}
  teachers:
    main: {arch: toy, checkpoint: "run:big"}
runs:
  alone: {}
  distilled:
    steps: 200
    methods:
      kd: {}
  big: {once: true, student: {options: {width: 8}}, teachers: null}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with configs/run.yaml, configs/recipe.yaml and their base."""
    monkeypatch.chdir(tmp_path)
    write("configs/_base_/toy.yaml", BASE)
    write("configs/run.yaml", RUN)
    write("configs/recipe.yaml", RECIPE)
    return tmp_path


def write(path, text):
    from pathlib import Path

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


@pytest.fixture
def refused(folder):
    """``refused(text, *overrides)``: the message about a config configs/bad.yaml of that text."""

    def message(text, *overrides):
        write("configs/bad.yaml", text)
        with pytest.raises(ConfigError) as caught:
            load_config("bad", overrides)
        return str(caught.value)

    return message
