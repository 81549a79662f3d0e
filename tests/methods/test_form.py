"""What a method's file looks like: every registered method of segkd's own."""

import inspect

import pytest

from segkd import registry
from segkd.methods.base import Conversion

OWN = {method.name: method for method in registry.methods if method.__module__.startswith("segkd.")}
PUBLISHED = {name: method for name, method in OWN.items() if method.paper}
registered = pytest.mark.parametrize("method", OWN.values(), ids=OWN)


@pytest.mark.parametrize("method", PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_methods_module_has_pure_function_text_and_references(method):
    """Of a method without a paper nothing of it is asked."""
    module = inspect.getmodule(method)
    function = getattr(module, f"{method.name}_loss")
    keywords = list(inspect.signature(function).parameters.values())[2:]
    assert function.__doc__ and all(p.kind is p.KEYWORD_ONLY for p in keywords)
    assert "arXiv" in module.__doc__ or "doi" in module.__doc__
    assert method.kind and method.equation and method.cost and method.conversions and method.year
    assert all(isinstance(item, Conversion) for item in method.conversions.values())


@registered
def test_config_is_explained_and_survives_a_round_trip(method):
    config = method.Config()
    assert method.Config.model_validate(config.model_dump()) == config
    assert all(item.description for item in method.Config.model_fields.values())
    with pytest.raises(ValueError, match="extra"):
        method.Config(wieght=1)
