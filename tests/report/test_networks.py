"""Networks of a report: which of them are one and the same."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from segkd.config.networks import TeacherConfig
from segkd.report import networks


@pytest.mark.parametrize("library", ["hf", "timm"])
def test_a_teacher_of_another_library_is_known_by_the_files_of_its_folder(
    tmp_path, monkeypatch, library
):
    built = SimpleNamespace(has_classes=lambda name: True, alone=lambda name: nn.Identity())
    monkeypatch.setattr(networks, "build_teachers", lambda *args, **keys: built)

    def fingerprint(value):
        teacher = TeacherConfig(**{library: value})
        config = SimpleNamespace(teachers={"main": teacher}, data=SimpleNamespace(name="toy"))
        run = SimpleNamespace(config=config, located=Path, summary={"classes": ["a", "b"]})
        return networks._as_taught("main", run, "main").fingerprint

    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1")
    first = fingerprint(str(tmp_path))
    assert fingerprint(str(tmp_path)) == first
    weights.write_bytes(b"2")
    assert fingerprint(str(tmp_path)) != first
    assert fingerprint("nvidia/segformer") == fingerprint("nvidia/segformer")
