"""The keys ``only`` and ``match`` of a recipe: what is kept, what is said, what is refused."""

import pytest
from toy_recipes import toy_recipe

from segkd.commands.configs import show_config
from segkd.config.load import dump_recipe, load_config
from segkd.config.match import exempt
from segkd.config.recipe import expand
from segkd.errors import ConfigError

RECIPE = """\
seeds: [0]
baseline: alone
steps: 100
data: {name: toy, batch_size: 4, workers: 0, crop: [32, 48]}
student: {arch: toy}
runs:
  big: {student: {options: {width: 8}}}
  middle: {teachers: {t: {checkpoint: "run:big"}}, methods: {kd: {}}}
  small: {teachers: {t: {checkpoint: "run:middle"}}, methods: {kd: {}}}
  hints: {train: [student.encoder.*], teachers: {t: {checkpoint: "run:big"}}, methods: {at: {}}}
  then: {init_from: "run:hints"}
  other: {}
  alone: {}
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE + f"out: {tmp_path / 'out'}\n")
    return str(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("only", "kept"),
    [
        ("[small]", ["big", "middle", "small", "alone"]),
        ("[then, other]", ["big", "hints", "then", "other", "alone"]),
        ("[alone]", ["alone"]),
    ],
)
def test_only_keeps_runs_with_what_they_depend_on_and_the_baseline(recipe, only, kept):
    found = load_config(recipe, [f"only={only}"]).recipe
    assert list(found.runs) == kept
    assert {planned.name for planned in expand(found)} == set(kept)


def test_only_keeps_the_teacher_that_the_gap_is_measured_to(tmp_path):
    assert list(toy_recipe(tmp_path, only=["alone"]).runs) == ["teacher", "alone"]


def test_only_takes_generations_of_a_chain(recipe):
    found = load_config(recipe, ["chain=[alone, other, other]", "common.methods.kd={}"])
    assert list(found.recipe.runs)[-2:] != ["other_2"]
    kept = load_config(
        recipe, ["chain=[alone, other, other]", "common.methods.kd={}", "only=[other_2]"]
    ).recipe
    assert set(kept.runs) == {"alone", "other", "other_2"}


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["only=[smal]"], r"only.0: there is no run 'smal'. Did you mean 'small'"),
        (["only=[]"], "only: names no run"),
        (["match=second"], "match: got 'second', expected `seconds`"),
        (["match.seconds=0"], r"match.seconds: got 0, expected a number greater than 0"),
        (["match.seconds=-1"], r"match.seconds: got -1"),
        (["match=seconds", "baseline=null"], "match: needs `baseline`"),
        (["common.shared=true"], "^command line: common.shared: is a key of the recipe, not of"),
        (["runs.big.match=seconds"], "^command line: runs.big.match: is a key of the recipe"),
    ],
)
def test_mistakes_are_one_message(recipe, overrides, text):
    with pytest.raises(ConfigError, match=text):
        load_config(recipe, overrides)


@pytest.mark.parametrize("override", ["only=[kd]", "match=seconds"])
def test_a_single_run_has_no_such_keys(override):
    key = override.partition("=")[0]
    plain = {"steps": 1, "data": {"name": "toy"}, "student": {"arch": "toy"}}
    with pytest.raises(ConfigError, match=f"{key}: is for recipes"):
        load_config(plain, [override])


def test_match_is_a_word_or_a_factor_and_is_written_out(recipe):
    assert load_config(recipe).recipe.match is None
    assert load_config(recipe, ["match=seconds"]).recipe.match.seconds == 1
    found = load_config(recipe, ["match.seconds=1.5"]).recipe
    assert found.match.seconds == 1.5 and "seconds: 1.5" in dump_recipe(found)
    assert load_config(recipe, ["match.seconds=1.5", "match=null"]).recipe.match is None


def test_config_show_says_what_will_be_matched(recipe):
    text = show_config(recipe, ["match.seconds=2"])
    assert text.startswith("# match: each run gets 2 times the training time of 'alone'.")
    for name, why in (("alone", "the baseline"), ("big", "'middle' uses it"), ("hints", "a phase")):
        assert f"# not matched: {name} ({why}" in text
    assert "not matched: small" not in text
    one = show_config(recipe, ["match=seconds"], run="small")
    assert one.startswith("# steps: measured before the run, to take the seconds of 'alone'")
    exempt = show_config(recipe, ["match=seconds"], run="alone")
    assert exempt.startswith("# steps: 100, as configured: it is not matched (the baseline)")
    assert not show_config(recipe, []).startswith("#")


def test_what_only_leaves_out_still_says_what_is_matched(recipe):
    whole = load_config(recipe, ["match=seconds"]).recipe
    part = load_config(recipe, ["match=seconds", "only=[middle]"]).recipe
    assert list(part.runs) == ["big", "middle", "alone"]
    for name in part.runs:
        assert exempt(part, name) == exempt(whole, name)
    assert exempt(part, "middle") == "'small' uses it"


def test_a_part_of_a_recipe_is_a_config_of_its_own(recipe, tmp_path):
    series = ["series={rising: [alone, small], rest: [small]}", "teacher=t", "only=[other]"]
    loaded = load_config(recipe, series)
    assert loaded.recipe.series == {"rising": ["alone"]} and loaded.recipe.teacher is None
    (tmp_path / "part.yaml").write_text(loaded.text)
    again = load_config(tmp_path / "part.yaml").recipe
    assert again == loaded.recipe


def test_a_series_without_runs(recipe):
    with pytest.raises(ConfigError, match=r"series.rising: names no run"):
        load_config(recipe, ["series={rising: []}"])
