"""A recipe whose teacher was trained on another dataset than its students, with other classes."""

import json
import re

import numpy as np
import pytest
from report_runs import silent
from toy_recipes import toy_recipe
from toy_run import ToyData

from segkd import registry
from segkd.config.recipe import expand
from segkd.data.base import same_validation
from segkd.engine import recipe_pictures
from segkd.engine.recipe import run_recipe
from segkd.report.make import make_report

MAP = {"thing": "tree", "stuff": "car"}  # a raw class id is never that of a student's class


class OtherData(ToyData):
    """The toy images, of which another set knows two classes."""

    name = "toyother"
    classes = tuple(MAP)
    palette = ToyData.palette[:2]

    def read(self, index):
        sample = ToyData(self.config, self.split).read(index)
        sample.label = np.where(sample.label == 255, 255, sample.label % 2).astype(np.uint8)
        return sample


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    registry.datasets.add(OtherData)
    recipe = toy_recipe(
        tmp_path_factory.mktemp("elsewhere"),
        distilled={
            "teachers": {
                "main": {
                    "checkpoint": "run:teacher",
                    "classes": {"from": list(MAP), "map": MAP},
                }
            }
        },
        seeds=[0],
    )
    run = recipe.runs["teacher"]
    data = OtherData.Config(**{**run.config.data.model_dump(), "name": "toyother"})
    config = run.config.model_copy(update={"data": data})
    runs = {**recipe.runs, "teacher": run.model_copy(update={"config": config})}
    return recipe.model_copy(update={"runs": runs})


@pytest.fixture(scope="module")
def trained(recipe):
    """The result of the recipe, and the label maps of its picture."""
    maps = {}

    def sheet(images, labels, found, *arguments, **options):
        maps.update(found)
        return original(images, labels, found, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        original = recipe_pictures.comparison_sheet
        patch.setattr(recipe_pictures, "comparison_sheet", sheet)
        return run_recipe(recipe), maps


def of(result, recipe, name):
    (summary,) = (s for folder, s in result["runs"].items() if f"/{name}" in folder)
    return summary


def test_its_row_has_the_score_on_the_students_set(recipe, trained):
    result, _ = trained
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["teacher (students' set)", "alone", "distilled"]
    seen = of(result, recipe, "distilled")["teachers"]["main"]["score"]
    assert rows["teacher (students' set)"]["scores"] == [seen]
    assert seen != of(result, recipe, "teacher")["score"]
    table = json.loads((recipe.out / "report/table.json").read_text())["rows"]
    gap = seen - rows["alone"]["miou_mean"]
    gain = rows["distilled"]["miou_mean"] - rows["alone"]["miou_mean"]
    assert table[2]["gap_closed"] == (pytest.approx(gain / gap) if gap > 0 else None)


def test_its_picture_has_the_students_classes(trained):
    _, maps = trained
    (own,) = (found for title, found in maps.items() if title.startswith("teacher (students' set)"))
    known = {ToyData.classes.index(name) for name in MAP.values()}
    assert set(np.unique(np.stack(own))) <= known


def test_without_a_student_of_it_there_is_no_score_and_no_picture(recipe, trained, tmp_path):
    runs = {name: recipe.runs[name] for name in ("teacher", "alone")}
    rows = run_recipe(recipe.model_copy(update={"runs": runs, "out": tmp_path / "two"}))["rows"]
    assert rows[0]["name"] == "teacher (students' set)" and rows[0]["scores"] == []


def test_sizes_and_training_keys_are_no_other_set(recipe):
    config = expand(recipe)[-1].config.data
    for key, value, same in (
        ("resize", (64, 96), True),
        ("batch_size", 2, True),
        ("train_split", "extra", True),
        ("val_split", "test", False),
        ("root", "elsewhere", False),
        ("images", 5, False),
    ):
        other = type(config).model_validate({**config.model_dump(), key: value})
        assert same_validation(config, other) is same


def test_the_report_shows_it_on_the_students_set(recipe, trained, tmp_path):
    result, _ = trained
    html = make_report([recipe.out], out=tmp_path, bar=silent, latency=False).html.read_text()
    seen = of(result, recipe, "distilled")["teachers"]["main"]
    assert f"<td>{100 * seen['score']:.2f}" in html
    classes = re.search(r'<section id="classes">(.*?)</section>', html, re.DOTALL)[1]
    titles = re.findall(r"<th [^>]*>(.*?)</th>", classes)
    assert titles == ["class", "teacher", "alone", "distilled", "gain"]
    rows = re.findall(r"<td>(sky|road|car|tree)</td><td>(.*?)</td>", classes)
    assert {name for name, _ in rows} == set(ToyData.classes)
