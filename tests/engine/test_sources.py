"""A teacher, or first weights, that become others after a run has learned from them."""

import json
import shutil

import pytest
from toy_recipes import toy_recipe
from toy_run import toy_config

from segkd import checkpoint
from segkd.config.recipe import expand
from segkd.engine.recipe import run_recipe
from segkd.engine.run import train_run
from segkd.engine.sources import require_same, sources
from segkd.errors import ConfigError


def retrained(folder):
    """The recipe's teacher, trained anew from other random weights into the same folder."""
    path = folder / "toys" / "teacher"
    shutil.rmtree(path)
    train_run(expand(toy_recipe(folder, trained={"seed": 5}))[0].config)


def test_a_finished_run_does_not_pass_for_one_of_another_teacher(tmp_path):
    recipe = toy_recipe(tmp_path, seeds=[0])
    run_recipe(recipe)
    retrained(tmp_path)
    distilled = expand(recipe)[-1].config
    with pytest.raises(
        ConfigError, match=r"distilled/seed0: teachers\.main\.checkpoint: .*teacher"
    ):
        train_run(distilled)
    shutil.rmtree(distilled.out)
    assert train_run(distilled)["steps"] == 4


def test_an_interrupted_run_does_not_go_on_with_another_teacher(tmp_path):
    recipe = toy_recipe(tmp_path, seeds=[0])
    run_recipe(recipe)
    distilled = expand(recipe)[-1].config
    (distilled.out / "summary.json").unlink()
    retrained(tmp_path)
    with pytest.raises(ConfigError, match="is not what it was when this run learned from it"):
        train_run(distilled)


def test_first_weights_and_networks_of_methods_count_as_well(tmp_path):
    recipe = toy_recipe(tmp_path, seeds=[0])
    run_recipe(recipe)
    plan = expand(recipe)
    teacher, alone = plan[0].config, plan[1].config
    path = str(teacher.out)
    student = alone.student.model_copy(update={"checkpoint": path, "options": {"width": 8}})
    begun = {"out": tmp_path / "begun", "student": student}
    later = {"out": tmp_path / "later", "init_from": path, "student": teacher.student}
    for changes in (begun, later):
        train_run(alone.model_copy(update=changes))
    retrained(tmp_path)
    for changes, key in ((begun, "student.checkpoint"), (later, "init_from")):
        with pytest.raises(ConfigError, match=key):
            train_run(alone.model_copy(update=changes))


def test_a_first_run_that_was_trained_on_counts_also_where_its_best_stays(tmp_path):
    recipe = toy_recipe(tmp_path, seeds=[0])
    run_recipe(recipe)
    plan = expand(recipe)
    teacher, alone = plan[0].config, plan[1].config
    changes = {"out": tmp_path / "later", "init_from": str(teacher.out), "student": teacher.student}
    later = alone.model_copy(update=changes)
    train_run(later)
    assert train_run(later)["steps"] == alone.steps  # finished before
    last = teacher.out / "checkpoints/last.pt"
    state = checkpoint.load(last)
    state["student"] = {key: value + 0.5 for key, value in state["student"].items()}
    checkpoint.save(last, state)
    with pytest.raises(ConfigError, match=r"later: init_from: .* is not what it was"):
        train_run(later)


def test_a_first_run_whose_other_file_was_recorded_goes_on(tmp_path):
    """Earlier versions noted best.pt, which is not what `init_from` reads."""
    recipe = toy_recipe(tmp_path, seeds=[0])
    run_recipe(recipe)
    teacher = expand(recipe)[0].config
    config = toy_config(tmp_path / "x", init_from=str(teacher.out))
    stored = {"init_from": sources(teacher_of(str(teacher.out)))["teachers.main.checkpoint"]}
    require_same(config, stored, tmp_path)
    with pytest.raises(ConfigError, match="init_from"):
        require_same(config, {"init_from": "another"}, tmp_path)


def teacher_of(path):
    return toy_config("x", teachers={"main": {"checkpoint": path}})


def test_a_finished_run_needs_its_teacher_no_more(tmp_path):
    recipe = toy_recipe(tmp_path, seeds=[0])
    run_recipe(recipe)
    shutil.rmtree(tmp_path / "toys" / "teacher")
    assert train_run(expand(recipe)[-1].config)["steps"] == 4


def test_runs_of_earlier_versions_have_no_record(tmp_path):
    recipe = toy_recipe(tmp_path, seeds=[0])
    run_recipe(recipe)
    distilled = expand(recipe)[-1].config
    summary = json.loads((distilled.out / "summary.json").read_text())
    digest = summary.pop("sources")["teachers.main.checkpoint"]
    assert len(digest) == 16
    (distilled.out / "summary.json").write_text(json.dumps(summary))
    retrained(tmp_path)
    assert train_run(distilled)["steps"] == 4
    last = distilled.out / "checkpoints" / "last.pt"
    state = checkpoint.load(last)
    assert state.pop("sources") == {"teachers.main.checkpoint": digest}
    checkpoint.save(last, state)
    (distilled.out / "summary.json").unlink()
    assert train_run(distilled)["sources"]["teachers.main.checkpoint"] != digest


def test_black_boxes_and_networks_of_other_libraries_count_as_well(tmp_path):
    """What each key names is another when one of its files is, or one more is there."""
    named = {
        "black_box.onnx": tmp_path / "box.onnx",
        "hf": tmp_path / "segformer",
        "timm": tmp_path / "vit",
    }
    named["black_box.onnx"].write_bytes(b"graph")
    for folder in list(named.values())[1:]:
        (folder / "below").mkdir(parents=True)
        (folder / "below/one.npz").write_bytes(folder.name.encode())

    def digests():
        teachers = {}
        for key, path in named.items():
            first, _, second = key.partition(".")
            teachers[first + second] = {first: {second: str(path)} if second else str(path)}
        return sources(toy_config(tmp_path, teachers=teachers))

    before = digests()
    assert len(set(before.values())) == len(before) == 3 and digests() == before
    named["black_box.onnx"].write_bytes(b"g2aph")
    (tmp_path / "segformer/below/one.npz").write_bytes(b"Segformer")
    (tmp_path / "vit/below/two.npz").write_bytes(b"")
    after = digests()
    assert after.keys() == before.keys() and not set(after.values()) & set(before.values())
    (tmp_path / "box.onnx.data").write_bytes(b"weights")  # kept beside the graph
    (changed,) = {key for key, digest in digests().items() if digest != after[key]}
    assert changed.endswith("black_box.onnx")
    for path in named.values():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert digests() == {}
