"""Recipes: layers of keys, seeds, folders, and runs that feed each other."""

from pathlib import Path

import pytest

from segkd.config.load import load_config
from segkd.config.recipe import expand
from segkd.errors import ConfigError


def steps(recipe):
    return {name: run.config.steps for name, run in recipe.runs.items()}


def test_a_recipe_becomes_runs_in_an_order_that_works(folder):
    plan = expand(load_config("recipe").recipe)
    assert [(run.name, run.seed, str(run.config.out)) for run in plan] == [
        ("big", 0, "runs/recipe/big"),
        ("alone", 0, "runs/recipe/alone/seed0"),
        ("distilled", 0, "runs/recipe/distilled/seed0"),
        ("alone", 3, "runs/recipe/alone/seed3"),
        ("distilled", 3, "runs/recipe/distilled/seed3"),
    ]
    assert [run.config.seed for run in plan] == [0, 0, 0, 3, 3]
    assert plan[0].depends_on == ()
    assert plan[4].depends_on == (Path("runs/recipe/big"),)
    assert plan[4].config.teachers["main"].checkpoint == "runs/recipe/big"
    assert plan[4].config.data.batch_size == 4  # from the base


def test_layers_of_keys(folder):
    recipe = load_config("recipe").recipe
    assert steps(recipe) == {"alone": 100, "distilled": 200, "big": 100}
    recipe = load_config("recipe", ["steps=10"]).recipe
    assert steps(recipe) == {"alone": 10, "distilled": 10, "big": 10}
    recipe = load_config("recipe", ["runs.alone.steps=5", "steps=10", "seeds=[7]"]).recipe
    assert steps(recipe) == {"alone": 5, "distilled": 10, "big": 10}
    assert [run.seed for run in expand(recipe)] == [0, 7, 7]
    assert recipe.runs["big"].config.student.options == {"width": 8}
    assert recipe.runs["big"].config.teachers == {}


def test_runs_refer_to_the_same_seed_of_each_other(folder):
    text = Path("configs/recipe.yaml").read_text()
    Path("configs/phases.yaml").write_text(
        text + "  second: {init_from: 'run:first'}\n  first: {methods: {cwd: {}}}\n"
    )
    plan = expand(load_config("phases").recipe)
    second = {run.seed: run for run in plan if run.name == "second"}
    for seed in (0, 3):
        assert second[seed].config.init_from == f"runs/phases/first/seed{seed}"
        names = [(run.name, run.seed) for run in plan]
        assert names.index(("first", seed)) < names.index(("second", seed))


def test_the_resolved_recipe_loads_to_the_same_plan(folder):
    loaded = load_config("recipe", ["steps=10", "out=r"])
    Path("again.yaml").write_text(loaded.text)
    assert load_config("again.yaml").recipe == loaded.recipe
    assert expand(load_config("again.yaml").recipe) == expand(loaded.recipe)


def test_a_base_may_be_a_recipe_and_null_removes_a_run(folder):
    Path("configs/less.yaml").write_text("base: recipe.yaml\nruns: {distilled: null}\nseeds: [1]\n")
    assert list(load_config("less").recipe.runs) == ["alone", "big"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("titel: x", "configs/bad.yaml:2: titel: unknown key. Did you mean 'title'?"),
        ("common: {optim: {lrr: 1}}", "configs/bad.yaml:2: common.optim.lrr: unknown key."),
        ("common: 3", "configs/bad.yaml:2: common: got 3, expected a mapping"),
        ("runs:\n  alone: {steps: -1}", "configs/bad.yaml:3: runs.alone.steps: got -1"),
        ("runs:\n  alone: {seed: 1}", "configs/bad.yaml:3: runs.alone.seed: a recipe has `seeds`"),
        ("runs:\n  alone: {out: x}", "configs/bad.yaml:3: runs.alone.out: set `out` of the recipe"),
        ("runs:\n  alone: {once: 2}", "configs/bad.yaml:3: runs.alone.once: got 2, expected true"),
        ("runs:\n  alone:", "configs/bad.yaml:3: runs.alone: is empty"),
        ("runs:\n  alone: 3", "configs/bad.yaml:3: runs.alone: got 3, expected a mapping"),
        ("runs: 3", "configs/bad.yaml:2: runs: got 3, expected"),
        ("runs: {'a/b': {}}", "configs/bad.yaml:2: runs: 'a/b' is not a valid name"),
        ("baseline: alon", "configs/bad.yaml:2: baseline: 'alon' is unknown. Did you mean 'alone'"),
        ("teacher: mian", "configs/bad.yaml:2: teacher: 'mian' is unknown. Did you mean 'main'?"),
        ("seeds: []", "configs/bad.yaml:2: seeds: got [], expected"),
        ("seeds: [1, 1]", "configs/bad.yaml:2: seeds: duplicate seed"),
        ("seeds: 3", "configs/bad.yaml:2: seeds: got 3, expected a list"),
        (
            "runs: {alone: {init_from: 'run:bgi'}}",
            "configs/bad.yaml:2: runs.alone.init_from: there is no run 'bgi' in this recipe. Did "
            "you mean 'big'?",
        ),
        (
            "runs: {big: {init_from: 'run:alone'}}",
            "configs/bad.yaml:2: runs.big.init_from: 'alone' has 2 seeds, but 'big' is `once`",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(refused, text, message):
    told = refused("base: recipe.yaml\n" + text)
    assert told.startswith(message)


def test_runs_in_a_circle_are_refused(refused):
    runs = "runs: {a: {init_from: 'run:b'}, b: {init_from: 'run:a'}}"
    assert "runs depend on each other in a circle: " in refused(f"base: recipe.yaml\n{runs}\n")


def test_overrides_of_runs_that_are_not_there(folder):
    with pytest.raises(ConfigError, match=r"command line: runs\.alnoe: .* Did you mean 'alone'?"):
        load_config("recipe", ["runs.alnoe.steps=3"])
    with pytest.raises(ConfigError, match=r"command line: seed: a recipe has `seeds`"):
        load_config("recipe", ["seed=3"])


def test_a_problem_of_all_runs_is_told_once(folder):
    with pytest.raises(ConfigError) as caught:
        load_config("recipe", ["optim.lr=x"])
    assert str(caught.value) == "command line: optim.lr: got 'x', expected a number"


REMOVED = """
seeds: [0]
out: runs/r
common:
  steps: 5
  data: {name: toy}
  student: {arch: toy}
  teachers: {city: {arch: toy}}
runs:
  alone: {teachers: {city: null}}
  taught: {methods: {kd: {}}}
"""


@pytest.mark.parametrize(
    "override", ["common.teachers.city.checkpoint=f", "teachers.city.options.width=8"]
)
def test_an_override_of_all_runs_does_not_bring_back_what_one_removes(tmp_path, override):
    (tmp_path / "recipe.yaml").write_text(REMOVED)
    runs = load_config(tmp_path / "recipe.yaml", [override]).recipe.runs
    assert runs["alone"].config.teachers == {}
    city = runs["taught"].config.teachers["city"]
    assert city.checkpoint == "f" or city.options == {"width": 8}


def test_an_override_of_the_run_itself_does(tmp_path):
    (tmp_path / "recipe.yaml").write_text(REMOVED)
    overrides = ["runs.alone.teachers.city.arch=toy", "common.steps=7"]
    alone = load_config(tmp_path / "recipe.yaml", overrides).recipe.runs["alone"].config
    assert alone.teachers["city"].arch == "toy" and alone.steps == 7
