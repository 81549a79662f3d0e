"""Classes found by reading files: the same that importing them finds."""

import importlib
import inspect
import pkgutil
import sys
import textwrap

import pytest

from segkd import outline, registry
from segkd.errors import ConfigError

REGISTRIES = [registry.methods, registry.models, registry.datasets, registry.losses]


def by_import(kind):
    """{name: class} of all classes with a name of their own in the modules of a registry."""
    module, name = kind._base.split(":")
    base = getattr(importlib.import_module(module), name)
    found = {}
    for package in map(importlib.import_module, kind.packages):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            for _, entry in inspect.getmembers(module, inspect.isclass):
                own = entry.__module__ == module.__name__ and issubclass(entry, base)
                if own and isinstance(entry.__dict__.get("name"), str):
                    found[entry.name] = entry
    return found


@pytest.mark.parametrize("kind", REGISTRIES, ids=lambda kind: kind.kind)
def test_reading_and_importing_find_the_same(kind, monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    fresh = registry.Registry(kind.kind, kind.packages, kind._base)
    expected = by_import(kind)
    assert fresh.names() == sorted(expected)
    facts = list(fresh.facts())
    assert {name: fresh.get(name) for name in fresh.names()} == expected
    assert list(fresh.facts()) == facts  # as the classes themselves say


def test_facts_of_a_method_are_those_of_its_class():
    rows = {row["name"]: row for row in registry.methods.facts("kind", "paper")}
    kd = registry.methods.get("kd")
    about = (kd.__doc__ or "").partition("\n")[0]
    assert rows["kd"] == {"name": "kd", "about": about, "kind": kd.kind, "paper": kd.paper}


def test_the_architectures_of_smp_are_those_of_the_installed_version(monkeypatch):
    smp = importlib.import_module("segmentation_models_pytorch")
    expected = sorted(smp.MODEL_ARCHITECTURES_MAPPING)
    read = outline.assigned_list("segmentation_models_pytorch", "_MODEL_ARCHITECTURES")
    assert sorted(name.lower() for name in read) == expected
    monkeypatch.setattr(registry, "assigned_list", lambda *names: None)  # of another version
    assert registry.smp_architectures() == expected


FILES = {
    "__init__.py": "",
    "base.py": "class Base:\n    paper: str = 'none'\n    size = 3\n",
    "plain.py": '''
        from things_of_test import base

        raise RuntimeError("this module must not be imported")

        class Plain(base.Base):
            """First line.

            More.
            """

            name, kind = "no", "pair"
            name = "plain"
            kind: str = "literal"
        ''',
    "generic.py": """
        from things_of_test.deeper.middle import Middle

        class Config:
            name = "config"

        class Generic(Middle[Config]):
            name = "generic"
            kind = "computed".upper()
            size = 4

        class Nameless(Middle):
            pass
        """,
    "computed.py": """
        from things_of_test.base import Base

        class Computed(Base):
            name = "".join(["com", "puted"])
        """,
    "deeper/__init__.py": "",
    "deeper/middle.py": """
        from things_of_test.base import Base

        class Middle(Base):
            name = "not at the top level"

            @property
            def paper(self):
                return "asked of an instance"

            def __class_getitem__(cls, item):
                return cls
        """,
}


@pytest.fixture
def things(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / "things_of_test" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    yield registry.Registry("thing", ["things_of_test"], "things_of_test.base:Base")
    for name in [name for name in sys.modules if name.startswith("things_of_test")]:
        del sys.modules[name]


def test_names_are_found_without_importing_what_has_them_as_literals(things):
    assert things.names() == ["computed", "generic", "plain"]
    assert "plain" in things and "config" not in things
    assert "things_of_test.computed" in sys.modules
    assert "things_of_test.generic" not in sys.modules
    assert things.get("generic").__name__ == "Generic"
    with pytest.raises(RuntimeError, match="must not be imported"):
        things.get("plain")


def test_facts_import_only_where_the_file_does_not_show_them(things):
    assert [row["about"] for row in things.facts()] == ["", "", "First line."]
    things.get("computed").kind = "set"
    assert [row["kind"] for row in things.facts("kind")] == ["set", "COMPUTED", "literal"]


def test_facts_of_bases_are_known_without_an_import(things):
    assert things.get("computed")
    assert [row["size"] for row in things.facts("size")] == [3, 4, 3]
    assert "things_of_test.generic" not in sys.modules
    papers = {row["name"]: row["paper"] for row in things.facts("paper")}
    assert papers["plain"] == "none"  # which cannot be imported
    assert isinstance(papers["generic"], property)  # the class in between has its own


def test_an_unknown_name_imports_nothing(things):
    with pytest.raises(ConfigError, match=r"unknown thing 'plane'.*plain"):
        things.get("plane")
    assert "things_of_test.generic" not in sys.modules
