"""Chains: each run learns from the one before it; repeated names are generations."""

from pathlib import Path

import pytest

from segkd.config.load import load_config
from segkd.config.recipe import expand

CHAIN = """\
base: _base_/toy.yaml
steps: 100
student: {arch: toy}
teachers: {main: {arch: toy}}
methods: {kd: {}}
"""
RUNS = "runs: {big: {}, middle: {steps: 50}, small: {}}\n"


def plan_of(chain, *overrides, runs=RUNS, text=CHAIN):
    Path("configs/chain.yaml").write_text(f"{text}chain: {chain}\n{runs}")
    return expand(load_config("chain", overrides).recipe)


def teachers(plan):
    return {
        run.name: {key: one.checkpoint for key, one in run.config.teachers.items()} for run in plan
    }


def test_each_run_learns_from_the_one_before_it(folder):
    plan = plan_of("[big, middle, small]", "seeds=[0, 3]")
    names = [(run.name, run.seed) for run in plan]
    assert names == [(name, seed) for seed in (0, 3) for name in ("big", "middle", "small")]
    assert teachers(plan[:3]) == {
        "big": {"main": None},
        "middle": {"previous": "runs/chain/big/seed0"},
        "small": {"previous": "runs/chain/middle/seed0"},
    }
    assert plan[5].config.teachers["previous"].checkpoint == "runs/chain/middle/seed3"
    assert plan[2].depends_on == (Path("runs/chain/middle/seed0"),)


def test_the_order_of_the_runs_follows_the_chain(folder):
    assert [run.name for run in plan_of("[small, middle, big]")] == ["small", "middle", "big"]


def test_a_repeated_name_is_a_new_generation(folder):
    plan = plan_of("[big, middle, middle, middle, small]", "runs.middle_3.steps=7")
    assert [run.name for run in plan] == ["big", "middle", "middle_2", "middle_3", "small"]
    assert [run.config.steps for run in plan] == [100, 50, 50, 7, 100]
    found = [run.config.teachers["previous"].checkpoint for run in plan[1:]]
    names = ("big", "middle", "middle_2", "middle_3")
    assert found == [f"runs/chain/{name}/seed0" for name in names]


def test_a_student_that_learns_from_its_like_begins_otherwise(folder):
    """With the same weights and images as its teacher it would repeat the teacher's steps."""
    runs = "runs: {big: {student: {options: {width: 9}}}, middle: {}, small: {}, like: {}}"
    chain = "[[big, middle, middle, small], [big, like]]"
    plan = plan_of(chain, "seeds=[0, 5]", runs=runs)
    found = {(run.name, run.seed): run.config.seed - run.seed for run in plan}
    expected = {"big": 0, "middle": 0, "middle_2": 1, "small": 2, "like": 0}
    assert found == {(name, seed): offset for name, offset in expected.items() for seed in (0, 5)}
    again = plan_of(chain, "runs.middle_2.seed_offset=7", "runs.small.seed_offset=0", runs=runs)
    assert {run.name: run.config.seed for run in again} == expected | {"middle_2": 7, "small": 0}
    assert [str(run.config.out) for run in again if run.name == "middle_2"] == [
        "runs/chain/middle_2/seed0"
    ]


@pytest.mark.parametrize("value", ["-1", "x", "true", "1.5"])
def test_a_wrong_offset_is_told_with_its_place(refused, value):
    text = refused(f"{CHAIN}runs:\n  big: {{seed_offset: {value}}}\n")
    assert text.startswith("configs/bad.yaml:7: runs.big.seed_offset: got ")


def test_overrides_of_a_run_are_those_of_its_generations(folder):
    plan = plan_of("[middle, middle]", "runs.middle.optim.lr=0.5", "runs.middle_2.steps=3")
    assert {run.name: run.config.steps for run in plan}["middle_2"] == 3
    lr = {run.name: run.config.optim.lr for run in plan}
    assert lr == {"big": 0.01, "middle": 0.5, "middle_2": 0.5, "small": 0.01}


def test_several_chains_share_their_beginning(folder):
    plan = plan_of("[[big, middle], [big, small]]")
    found = teachers(plan)
    assert found["middle"] == found["small"] == {"previous": "runs/chain/big/seed0"}


def test_inherited_teachers_go_and_those_of_the_run_stay(folder):
    runs = (
        "runs: {big: {}, small: {teachers: {other: {arch: toy}}, methods: {kd: {teacher: other}}}}"
    )
    found = teachers(plan_of("[big, small]", "teachers.main.normalize=none", runs=runs))
    assert found["small"] == {"previous": "runs/chain/big/seed0", "other": None}
    runs = "runs: {big: {}, small: {teachers: {main: {normalize: none}}}}"
    assert list(teachers(plan_of("[big, small]", runs=runs))["small"]) == ["main", "previous"]
    own = "runs: {big: {}, small: {teachers: null}}"
    assert teachers(plan_of("[big, small]", runs=own))["small"] == {
        "previous": "runs/chain/big/seed0"
    }


def test_the_teacher_may_have_further_keys(folder):
    plan = plan_of("[big, middle, small]", "runs.small.teachers.previous.normalize=none")
    teacher = plan[-1].config.teachers["previous"]
    assert (teacher.normalize, teacher.checkpoint) == ("none", "runs/chain/middle/seed0")


def test_the_resolved_chain_loads_to_the_same_plan(folder):
    Path("configs/chain.yaml").write_text(f"{CHAIN}chain: [big, middle, middle]\n{RUNS}")
    loaded = load_config("chain", ["out=r"])
    Path("again.yaml").write_text(loaded.text)
    assert load_config("again.yaml").recipe == loaded.recipe


def test_a_chain_from_the_command_line(folder):
    Path("configs/chain.yaml").write_text(f"{CHAIN}chain: [big, middle]\n{RUNS}")
    found = teachers(expand(load_config("chain", ["chain=[middle, small]"]).recipe))
    assert list(found["middle"]) == ["main"] and list(found["small"]) == ["previous"]
    found = teachers(expand(load_config("chain", ["chain=null"]).recipe))
    assert list(found["middle"]) == list(found["small"]) == ["main"]


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("[big, smal]", "configs/bad.yaml:6: chain: there is no run 'smal'. Did you mean 'small'?"),
        ("[big]", "configs/bad.yaml:6: chain: got ['big'], expected the names of at least two"),
        ("big", "configs/bad.yaml:6: chain: got 'big', expected the names of at least two"),
        ("[big, 3]", "configs/bad.yaml:6: chain: got ['big', 3], expected the names"),
        ("", "configs/bad.yaml:6: chain: got None, expected the names"),
        ("{big: small}", "configs/bad.yaml:6: chain: got {'big': 'small'}, expected the names"),
        ("[[big, small], middle]", "configs/bad.yaml:6: chain: got 'middle', expected the names"),
        ("[big, small, big]", "configs/bad.yaml:6: chain: 'big' stands twice with others"),
        (
            "[[big, small], [middle, small]]",
            "configs/bad.yaml:6: chain: 'small' comes after 'big' and after 'middle'",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(refused, chain, message):
    assert refused(f"{CHAIN}chain: {chain}\n{RUNS}").startswith(message)


def test_two_chains_in_a_circle_are_refused(refused):
    text = refused(f"{CHAIN}chain: [[big, small], [small, big]]\n{RUNS}")
    assert "runs depend on each other in a circle: " in text


def test_a_run_that_would_not_learn_from_its_teacher_is_refused(refused):
    runs = "runs: {big: {}, small: {methods: null}}"
    text = refused(f"{CHAIN}chain: [big, small]\n{runs}\n")
    assert text.startswith("configs/bad.yaml:6: chain: run 'small' has a teacher, but no method")


def test_a_teacher_that_is_given_twice_is_refused(refused):
    runs = "runs: {big: {}, small: {teachers: {previous: {checkpoint: x.pt}}}}"
    text = refused(f"{CHAIN}chain: [big, small]\n{runs}\n")
    assert text.startswith(
        "configs/bad.yaml:7: runs.small.teachers.previous.checkpoint: `chain` makes it run:big."
    )


def test_a_chain_without_runs_is_refused(refused):
    text = refused(f"{CHAIN}chain: [big, small]\n")
    assert text.startswith("configs/bad.yaml:6: chain: is for recipes.")
