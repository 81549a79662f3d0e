"""Reports of recipes whose runs teach each other."""

import json
import re
from contextlib import nullcontext
from dataclasses import replace

import pytest
from report_runs import silent
from toy_recipes import toy_recipe

from segkd.config.networks import TeacherConfig
from segkd.engine.recipe import run_recipe
from segkd.errors import SegKDError
from segkd.report.collect import collect
from segkd.report.make import make_report
from segkd.report.networks import _as_taught, cast
from segkd.report.sections import comparison_rows


def taught_by(name, **student):
    teachers = {"before": {"checkpoint": f"run:{name}"}}
    return {"teachers": teachers, "methods": {"kd": {}}, "student": student}


@pytest.fixture(scope="module")
def born_again(tmp_path_factory):
    """The folder of a recipe: alone, again, again_2, each taught by the one before."""
    runs = {"alone": {}, "again": taught_by("alone"), "again_2": taught_by("again")}
    recipe = toy_recipe(
        tmp_path_factory.mktemp("chain"), seeds=[0], teacher=None, runs=runs, title="Again"
    )
    run_recipe(recipe)
    return recipe.out


def test_the_baseline_of_a_chain_is_that_of_its_table(born_again, tmp_path):
    table = json.loads((born_again / "report/table.json").read_text())["rows"]
    collection = collect([born_again])
    assert {group.name: group.role for group in collection.groups} == {
        row["name"]: row["role"] for row in table
    }
    html = make_report([born_again], out=tmp_path, bar=silent, latency=False).html.read_text()
    result = re.search(r'<section id="result">(.*?)</section>', html, re.DOTALL)[1]
    for row in table[1:]:
        assert f"<td>{100 * row['gain']:+.2f}</td>" in result
    best = max(table[1:], key=lambda row: row["miou_mean"])["name"]
    assert collection.student.name == best


def test_a_run_of_the_report_is_no_teacher_from_outside(born_again):
    collection = collect([born_again])
    assert len(comparison_rows(collection)) == len(collection.groups) == 3
    assert [actor.role for actor in cast(collection)[0]] == ["baseline", ""]


def test_an_assistant_is_not_the_student_that_a_report_is_about(tmp_path):
    runs = {
        "teacher": {"once": True, "student": {"options": {"width": 8}}},
        "alone": {},
        "assistant": taught_by("teacher", options={"width": 7}),
        "distilled": taught_by("assistant"),
    }
    recipe = toy_recipe(tmp_path, seeds=[0], runs=runs)
    run_recipe(recipe)
    file = recipe.out / "assistant/seed0/summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"score": 0.99, "miou": 0.99}))
    collection = collect([recipe.out])
    assert collection.student.name == "distilled"
    assert collection.role("teacher").name == "teacher", "not the assistant, which comes before"
    table = recipe.out / "report/table.json"
    table.write_text(table.read_text().replace('"role": "teacher"', '"role": ""'))
    assert collect([recipe.out]).role("teacher").name == "teacher", "also if none is named"


@pytest.mark.parametrize(
    ("name", "why"),
    [("before", None), ("service", "it is a black box"), ("both", "has a member that is a black")],
)
def test_a_teacher_beside_a_black_box_is_shown(name, why, born_again):
    run = collect([born_again]).student.shown
    service = TeacherConfig(black_box={"predictions": "answers"})
    both = TeacherConfig(ensemble=["before", "service"])
    config = run.config.model_copy(
        update={"teachers": run.config.teachers | {"service": service, "both": both}}
    )
    run = replace(run, config=config)
    with nullcontext() if why is None else pytest.raises(SegKDError, match=why):
        assert _as_taught("title", run, name).name == "title"
