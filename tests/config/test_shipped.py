"""Every config that ships loads, and its methods exist."""

import functools

import pytest
import torch

from segkd import registry
from segkd.config.load import load_config
from segkd.config.recipe import expand
from segkd.config.schema import ModelConfig
from segkd.config_files import known_configs
from segkd.models.build import build_network

SHIPPED = {name: path for name, path in known_configs().items() if not name.startswith("_base_")}


@functools.cache
def loaded(name):
    """The config; nothing here changes it."""
    return load_config(SHIPPED[name])


@functools.cache
def runs_of(name):
    """The runs of a recipe as they are planned; of a run none."""
    return expand(loaded(name).recipe) if loaded(name).recipe else []


@pytest.mark.parametrize("name", SHIPPED)
def test_it_loads_and_is_short(name):
    assert loaded(name).run or runs_of(name)
    assert len(SHIPPED[name].read_text().splitlines()) <= 30


@functools.cache
def divisor_of(model: str) -> int:
    """Of the network that this JSON describes; on the meta device nothing is computed."""
    with torch.device("meta"):
        return build_network(ModelConfig.model_validate_json(model), num_classes=5).divisor


@pytest.mark.parametrize("name", SHIPPED)
def test_its_networks_exist_and_take_its_training_images(name):
    runs = [loaded(name).run] if loaded(name).run else [one.config for one in runs_of(name)]
    for run in runs:
        teachers = (one.model() for one in run.teachers.values() if not one.ensemble)
        for model in (run.student, *teachers):
            if model.arch:
                structure = model.model_copy(update={"weights": None, "checkpoint": None})
                divisor = divisor_of(structure.model_dump_json())
                assert not any(side % divisor for side in run.data.crop), (model.arch, divisor)


@pytest.mark.parametrize("name", SHIPPED)  # of a run there is nothing to look at
def test_its_runs_take_the_networks_of_other_runs_as_they_are(name):
    plan = runs_of(name)
    made = {str(planned.config.out): planned.config.student for planned in plan}
    for planned in plan:
        for teacher in planned.config.teachers.values():
            if teacher.checkpoint in made and teacher.arch:
                mine, theirs = teacher.model(), made[teacher.checkpoint]
                for part in ("arch", "encoder", "options"):
                    assert getattr(mine, part) == getattr(theirs, part), part


def test_the_catalogue_holds_every_method_but_those_of_lanes():
    names = {method.name for method in registry.methods if method.paper} - {"ld"}
    for config in ("streets/catalogue", "camvid/catalogue", "camvid/small_catalogue"):
        assert names <= set(loaded(config).recipe.runs)


@pytest.mark.parametrize("name", [name for name in SHIPPED if "/cirkd_" in name])
def test_published_pairs_of_cirkd_relate_images_as_its_public_code_does(name):
    """All positions of the images of one device; the defaults bound memory and cost."""
    cirkd = loaded(name).run.methods["cirkd"]
    assert (cirkd.scope, cirkd.positions) == ("device", None)
