"""What the documents show works as they show it."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from cases import make_case
from toy_run import teacher_net, toy_config

from segkd import registry
from segkd.config.load import load_config
from segkd.engine.run import train_run
from segkd.explain import facts

ROOT = Path(__file__).parent.parent


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.fixture
def brier(monkeypatch):
    """The example of CONTRIBUTING.md, as a module of a third party."""
    (code,) = [block for block in blocks("CONTRIBUTING.md", "python") if "class Brier" in block]
    module = types.ModuleType("brier_example")
    monkeypatch.setitem(sys.modules, "brier_example", module)
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    registry.methods.add(module.Brier)
    yield module
    del registry.methods._entries()["brier"]


def test_the_example_method_trains_and_is_explained(brier, tmp_path):
    config = toy_config(tmp_path / "run", steps=2, methods={"brier": {"weight": 2.0}})
    summary = train_run(config, teachers={"main": teacher_net()})
    assert "method/brier" in summary["seconds"]
    assert facts("brier")["equation"] == brier.Brier.equation


def test_the_example_method_keeps_the_promises(brier):
    case = make_case(brier.Brier, equal=True)
    term = case.terms()["brier"]
    doubled = case.images(torch.arange(4).repeat(2)).terms()["brier"]
    torch.testing.assert_close(doubled.value, term.value)
    assert doubled.count == 2 * term.count


def test_the_readmes_run_is_a_valid_config(tmp_path):
    (text,) = blocks("README.md", "yaml")
    plain = yaml.safe_load(text)
    plain["base"] = str(ROOT / "configs/_base_/streets.yaml")
    path = tmp_path / "readme.yaml"
    path.write_text(yaml.safe_dump(plain))
    assert set(load_config(path).run.methods) == {"kd", "cwd", "cwd_head"}


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "datasets/README.md"])
def test_files_that_documents_name_exist(document):
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    scripts = re.findall(r"python ((?:benchmarks|tests)/[\w./]+)", text)
    for target in (*links, *scripts):
        assert ((ROOT / document).parent / target).exists() or (ROOT / target).exists(), target
