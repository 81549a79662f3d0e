"""Keys and values of earlier versions go on working, and say what they are called now."""

import warnings

import pytest

from segkd.config.load import config_difference, dump_config, load_config, load_text
from segkd.errors import ConfigError, FormerName

ONE_CYCLE = {"name": "one_cycle", "start": 10, "end": 100, "peak": 0.5, "floor": 0.1}


def test_former_keys_of_a_file_are_taken_with_a_line_each(folder):
    path = folder / "configs" / "old.yaml"
    path.write_text("base: run.yaml\nschedule:\n  floor: 0.2\nmethods: {kd: {mask: inside}}\n")
    with pytest.warns(FormerName) as told:
        run = load_config("old").run
    assert run.schedule.min_lr_ratio == 0.2 and run.methods["kd"].mask == "not_padding"
    assert [str(one.message) for one in told] == [
        "configs/old.yaml:3: schedule.floor is now called `min_lr_ratio`",
        "configs/old.yaml:4: methods.kd.mask: inside is now called `not_padding`",
    ]


def test_all_keys_of_one_cycle(folder):
    with pytest.warns(FormerName):
        schedule = load_config("run", values={"schedule": ONE_CYCLE}).run.schedule
    found = (schedule.div_factor, schedule.final_div_factor, schedule.pct_start)
    assert found == (10, 100, 0.5) and schedule.min_lr_ratio == 0.1


def test_an_override_by_either_name_wins(folder):
    (folder / "configs" / "old.yaml").write_text("base: run.yaml\nschedule: {floor: 0.2}\n")
    with pytest.warns(FormerName):
        assert load_config("old", ["schedule.min_lr_ratio=0.3"]).run.schedule.min_lr_ratio == 0.3
        assert load_config("old", ["schedule.floor=0.4"]).run.schedule.min_lr_ratio == 0.4


def test_both_names_in_one_place_are_refused(folder):
    with pytest.raises(ConfigError, match=r"`min_lr_ratio`, which is also given"):
        load_config("run", ["schedule.floor=0.1", "schedule.min_lr_ratio=0.1"])


def test_recipes_have_them_in_common_and_in_runs(folder):
    (folder / "configs" / "both.yaml").write_text(
        "base: run.yaml\nmethods: null\ncommon: {schedule: {floor: 0.2}}\n"
        "runs: {a: {methods: {kd: {mask: inside}}}, b: {schedule: {floor: 0.5}}}\n"
    )
    with pytest.warns(FormerName):
        runs = load_config("both").recipe.runs
    assert runs["a"].config.methods["kd"].mask == "not_padding"
    assert [run.config.schedule.min_lr_ratio for run in runs.values()] == [0.2, 0.5]


def test_a_stored_config_is_the_same_run_without_a_word(folder):
    run = load_config("run", ["schedule.min_lr_ratio=0.2", "methods.kd.mask=not_padding"]).run
    old = dump_config(run).replace("min_lr_ratio", "floor").replace("not_padding", "inside")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_text(old) == run
        assert config_difference(load_text(old), run) == []
