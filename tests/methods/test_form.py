"""What a method's file looks like: every registered method of segkd's own."""

import ast
import inspect
import sys

import pytest

from segkd import registry
from segkd.methods.base import Conversion

OWN = {method.name: method for method in registry.methods if method.__module__.startswith("segkd.")}
registered = pytest.mark.parametrize("method", OWN.values(), ids=OWN)
ALLOWED = (
    "segkd.methods.base",
    "segkd.methods.shared",
    "segkd.ops",
    "segkd.modules",
    "segkd.structures",
    "segkd.errors",
)
ALLOWED += ("torch", "pydantic", *sys.stdlib_module_names)


@registered
def test_module_has_pure_function_text_and_size(method):
    module = inspect.getmodule(method)
    function = getattr(module, f"{method.name}_loss")
    keywords = list(inspect.signature(function).parameters.values())[2:]
    assert function.__doc__ and all(p.kind is p.KEYWORD_ONLY for p in keywords)
    assert "arXiv" in module.__doc__ or "doi" in module.__doc__
    assert method.kind and method.paper and method.equation and method.cost and method.conversions
    assert all(isinstance(item, Conversion) for item in method.conversions.values())
    assert len(inspect.getsource(module).splitlines()) <= 250


@registered
def test_module_imports_only_what_methods_may(method):
    module = inspect.getmodule(method)
    parents = {parent.__module__ for parent in method.__mro__}
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            allowed = any(f"{name}.".startswith(f"{root}.") for root in ALLOWED)
            assert allowed or name in parents, name


@registered
def test_config_is_explained_and_survives_a_round_trip(method):
    config = method.Config()
    assert method.Config.model_validate(config.model_dump()) == config
    assert all(item.description for item in method.Config.model_fields.values())
    with pytest.raises(ValueError, match="extra"):
        method.Config(wieght=1)
