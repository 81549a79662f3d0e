"""Every config that ships loads, and its methods exist."""

import pytest

from segkd import registry
from segkd.config.find import known_configs
from segkd.config.load import load_config
from segkd.config.recipe import expand

SHIPPED = {name: path for name, path in known_configs().items() if not name.startswith("_base_")}


@pytest.mark.parametrize("name", SHIPPED)
def test_it_loads_and_is_short(name):
    loaded = load_config(SHIPPED[name])
    assert loaded.run or expand(loaded.recipe)
    assert len(SHIPPED[name].read_text().splitlines()) <= 30


def test_the_catalogue_holds_every_method_but_those_of_lanes():
    names = {name for name in registry.methods.names() if not name.startswith("toy_")} - {"ld"}
    for config in ("streets/catalogue", "camvid/catalogue"):
        assert names <= set(load_config(SHIPPED[config]).recipe.runs)
