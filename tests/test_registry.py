"""The registry: what plug-ins add, and what broken ones are told."""

from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from segkd import registry
from segkd.errors import ConfigError
from segkd.losses.base import TaskLoss


class Fine(TaskLoss):
    name = "fine"


class Point(EntryPoint):
    """An entry point of a package 'their-losses'."""

    dist = SimpleNamespace(name="their-losses")


def losses(monkeypatch, *points):
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    return registry.Registry("loss", ["segkd.losses"], "segkd.losses.base:TaskLoss")


def plug_in(tmp_path, monkeypatch, module, text):
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return Point("theirs", f"{module}:Loss", "segkd.losses")


def test_a_plug_in_is_found_by_its_name(monkeypatch):
    found = losses(monkeypatch, Point("fine", f"{__name__}:Fine", "segkd.losses"))
    monkeypatch.setattr(Point, "load", lambda self: Fine)
    assert found.get("fine") is Fine
    assert {"fine", "cross_entropy"} <= set(found.names())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        ("", "AttributeError"),
        ("raise KeyError", "KeyError: no reason given"),
    ],
)
def test_a_broken_plug_in_is_named_each_time(tmp_path, monkeypatch, text, reason):
    module = f"broken_{abs(hash(text))}"
    found = losses(monkeypatch, plug_in(tmp_path, monkeypatch, module, text))
    for _ in range(2):  # what was found before the fault must not pass for all
        with pytest.raises(ConfigError) as caught:
            found.names()
        message = str(caught.value)
        assert f"'theirs' (loss, {module}:Loss) of package 'their-losses'" in message
        assert reason in message and "pip uninstall their-losses" in message


def test_a_plug_in_of_another_kind_is_named(tmp_path, monkeypatch):
    found = losses(monkeypatch, plug_in(tmp_path, monkeypatch, "odd_plug_in", "Loss = dict"))
    with pytest.raises(
        ConfigError, match="odd_plug_in:Loss of package their-losses' is not a loss"
    ):
        found.names()
