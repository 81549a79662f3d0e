"""`segkd distill`: one command from images to a student, which goes on where it was stopped."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from exported import toy_onnx
from image_folders import folder, write
from torch import nn
from toy_run import teacher_net

import segkd
from segkd import checkpoint, cli
from segkd.config.load import load_config
from segkd.models.onnx_network import OnnxNetwork
from segkd.pipeline import distill as distill_module
from segkd.pipeline.distill import Distilled, summary_lines
from segkd.pipeline.folder import DistillFolder
from segkd.pipeline.request import Request
from segkd.pipeline.source import data_of
from segkd.pipeline.start import start

pytest.importorskip("onnxruntime")
NAMES = lambda n: (f"images/{n}.png", f"masks/{n}.png")  # noqa: E731
FAST = ("log.tensorboard=false", "runtime.threads=1", "data.color_jitter=0", "save_every=1")


@pytest.fixture
def fields(tmp_path):
    root = folder(tmp_path / "fields", NAMES, count=10)
    (root / "classes.txt").write_text("sky\nroad\ncar\ntree\n")
    return root


@pytest.fixture
def call(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["distill", *map(str, arguments)])
        out, err = capfd.readouterr()
        return stop.value.code or 0, out, err

    return run


def test_teacher_baseline_student_report_and_file_in_one_go(call, fields, tmp_path):
    folder(tmp_path / "more", lambda n: (f"{n}.png", None), count=5)
    command = ["--teacher", "train:toy", "--student", "toy", "--data", "fields", "--steps", 3]
    command += ["--unlabeled", "more", "--out", "out", *FAST]
    code, out, err = call(*command)
    assert code == 0, err
    folder_ = tmp_path / "out"
    head = (folder_ / "recipe.yaml").read_text().splitlines()[1]
    assert head.endswith(shlex.join(["segkd", "train", str(folder_ / "recipe.yaml")]))
    loaded = load_config(folder_ / "recipe.yaml").recipe
    assert list(loaded.runs) == ["teacher", "distilled", "baseline"]
    distilled = loaded.runs["distilled"].config
    assert set(distilled.methods) == {"kd", "cwd"} and distilled.data.batch_size == 12
    assert distilled.data.unlabeled.root == tmp_path / "more"
    assert not loaded.runs["baseline"].config.methods
    result = json.loads((folder_ / "result.json").read_text())
    assert list(result["scores"]) == ["teacher", "distilled", "baseline", "onnx"]
    assert result["scores"]["onnx"] == pytest.approx(result["scores"]["distilled"], abs=0.02)
    assert Path(result["report"]).is_file() and "mIoU %: teacher" in out
    exported = OnnxNetwork(folder_ / "student.onnx")
    assert exported.classes == ("sky", "road", "car", "tree")
    code, out, _ = call(*command)
    assert code == 0 and "already finished" in out
    code, _, err = call(*command, "optim.lr=0.1")
    assert code == 2 and "belongs to another command" in err and "overrides" in err


def test_images_without_masks_learn_from_the_teacher_alone(tmp_path):
    frames = folder(tmp_path / "frames", lambda n: (f"{n}.png", None), count=12)
    (frames / "classes.txt").write_text("sky\nroad\ncar\ntree\n")
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    found = segkd.distill(teacher, "toy", frames, out=tmp_path / "out", steps=2, overrides=FAST)
    assert found.agreement and set(found.scores) == {"teacher", "distilled", "onnx"}
    assert found.scores["teacher"] == pytest.approx(1)  # with its own label maps
    run = load_config(found.recipe, own_parts=True).recipe.runs["distilled"].config
    assert run.task.weight == 0 and run.data.labels == "none"
    assert len(list((tmp_path / "out/teacher_labels").glob("*.png"))) == 2
    assert found.student.predict(frames / "0.png").shape == (32, 48)


def test_modules_of_the_caller(fields, tmp_path):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    student = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    before = student[0].weight.clone()
    found = segkd.distill(teacher, student, fields, out=tmp_path / "out", steps=2, overrides=FAST)
    assert set(found.scores) == {"teacher", "distilled", "baseline", "onnx"}
    assert torch.equal(student[0].weight, before)  # copies are trained
    weights = found.student.network.state_dict()
    assert any(
        not torch.equal(value, before) for value in weights.values() if value.shape == before.shape
    )
    again = segkd.distill(teacher, student, fields, out=tmp_path / "out", steps=2, overrides=FAST)
    assert again.scores == found.scores


@pytest.mark.parametrize(
    ("teacher", "options", "text"),
    [
        ("train:toy", {}, "Train the teacher first, by segkd train CONFIG"),
        (toy_onnx, {"max_params": "1M"}, "the student is a module: leave them out"),
        (toy_onnx, {"max_latency_ms": 9.0}, "the student is a module: leave them out"),
    ],
)
def test_what_a_module_as_student_rules_out(teacher, options, text, fields, tmp_path):
    teacher = teacher if isinstance(teacher, str) else teacher()
    student = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with pytest.raises(segkd.SegKDError, match=text):
        segkd.distill(teacher, student, fields, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


FIELDS = ["--teacher", "train:toy", "--data", "fields"]
MISTAKES = {
    "no data": (["--teacher", "train:toy"], "--data is missing"),
    "no folder": (["--teacher", "train:toy", "--data", "none"], "there is no folder 'none'"),
    "no images": (["--teacher", "train:toy", "--data", "empty"], "there is no image"),
    "no teacher": (["--data", "fields"], "--teacher is missing"),
    "no teacher, no masks": (["--data", "frames"], "--teacher is missing"),
    "teacher of no kind": (["--teacher", "toyy", "--data", "fields"], "there is no file or folder"),
    "unknown teacher to train": (
        ["--teacher", "train:enett", "--data", "fields"],
        "Did you mean 'enet'?",
    ),
    "masks to train a teacher": (
        ["--teacher", "train:toy", "--data", "frames"],
        "no masks to train",
    ),
    "unknown student": (
        ["--teacher", "train:toy", "--data", "fields", "--student", "ennet"],
        "Did you mean 'enet'?",
    ),
    "unknown encoder": (
        ["--teacher", "train:toy", "--data", "fields", "--student", "fpn/resnet81"],
        "resnet18",
    ),
    "encoder missing": (
        ["--teacher", "train:toy", "--data", "fields", "--student", "fpn"],
        "fpn needs an encoder",
    ),
    "teacher to train without a network": (
        ["--teacher", "train:", "--data", "fields"],
        "--teacher train:ARCH/ENCODER: is empty",
    ),
    "a file of Python code": (
        ["--teacher", "my code/api.py", "--data", "fields"],
        "name its function as api:FUNCTION, and begin the command with PYTHONPATH='my code'",
    ),
    "module in the working folder": (
        ["--teacher", "fields.api:f", "--data", "fields"],
        "--teacher: module 'fields.api' cannot be imported: ",
    ),
    "function": (["--teacher", "os.path:joinn", "--data", "fields"], "Did you mean 'join'?"),
    "empty student": (
        ["--teacher", "train:toy", "--data", "fields", "--student", " "],
        "--student: is empty. Give a value, or leave the option out",
    ),
    "a file as data": (["--teacher", "train:toy", "--data", "x.txt"], "'x.txt' is a file, no fol"),
    "other classes": (
        ["--teacher", "pretrained:streets_fpn_mobilenetv3_small", "--data", "fields"],
        "segkd data map",
    ),
    "student and budget": (
        ["--teacher", "train:toy", "--data", "fields", "--student", "toy", "--max-params", "1M"],
        "not both",
    ),
    "budget": (
        ["--teacher", "train:toy", "--data", "fields", "--max-params", "10k"],
        "no student fits",
    ),
    "odd budget": (
        ["--teacher", "train:toy", "--data", "fields", "--max-params", "small"],
        "expected a number",
    ),
    "device": (["--teacher", "train:toy", "--data", "fields", "--on", "phone"], "on the CPU only"),
    "unlabelled": (
        ["--teacher", "train:toy", "--data", "fields", "--unlabeled", "empty"],
        "--unlabeled: there is no image in this folder",
    ),
    "other folder": (
        ["--teacher", "train:toy", "--data", "fields", "--out", "fields"],
        "has other files",
    ),
    "steps": (["--teacher", "train:toy", "--data", "fields", "steps=5"], "write --steps N"),
    "runs to leave out": (
        [*FIELDS, "only=[distilled]"],
        "only=…: write --no-baseline to leave out",
    ),
    "a student as a value": (
        [*FIELDS, "student=enet"],
        "student: got 'enet', expected keys, e.g. student.weights=imagenet; for another network",
    ),
    "teachers as a value": (
        [*FIELDS, "teachers=3"],
        "teachers: got 3, expected keys",
    ),
    "a teacher as a value": (
        [*FIELDS, "teachers.teacher=null"],
        "teachers.teacher: got None, expected keys",
    ),
    "data as a value": (
        [*FIELDS, "common.data=3"],
        "data: got 3, expected keys",
    ),
    "common as a value": (
        [*FIELDS, "common=3"],
        "common: got 3, expected keys",
    ),
    "key of the student": (
        [*FIELDS, "student.weigths=imagenet"],
        "command line: student.weigths: unknown key. Did you mean 'weights'?",
    ),
}


@pytest.mark.parametrize(("arguments", "text"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_message(arguments, text, call, fields, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.txt").touch()
    folder(tmp_path / "frames", lambda n: (f"{n}.png", None))
    code, _, err = call(*arguments)
    assert code == 2 and text in err and err.count("error:") == 1, err
    assert "Traceback" not in err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("kind", "text"), [("ids", "(ids 0, 2, 3, 4)"), ("colors", "(they have 4 colours)")]
)
def test_names_of_the_teacher_are_not_given_to_values_out_of_order(kind, text, call, tmp_path):
    root = folder(tmp_path / "gaps", NAMES, values=(0, 2, 3, 4))
    for path in (root / "masks").glob("*.png") if kind == "colors" else []:
        ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        write(path, np.stack([ids * 40, 255 - ids, ids], 2))
    code, _, err = call("--teacher", toy_onnx(), "--student", "toy", "--data", "gaps")
    assert code == 2 and text in err and "Put a classes.txt into gaps" in err, err
    assert not (tmp_path / "runs").exists()


def test_a_teacher_that_was_trained_on_such_masks_has_their_classes(call, tmp_path):
    """Its names were made up from the same ids, by `segkd init` without a classes.txt."""
    folder(tmp_path / "gaps", NAMES, values=(0, 2, 3, 4))
    teacher, names = teacher_net(width=8), ["class_0", "class_2", "class_3", "class_4"]
    facts = {"model": teacher.config.model_dump(mode="json"), "weights": teacher.state_dict()}
    checkpoint.save(tmp_path / "t.pt", facts | {"format": "segkd-student-1", "classes": names})
    command = ("--teacher", "t.pt", "--student", "toy", "--data", "gaps", "--out", "out")
    code, _, err = call(*command, "optim.no_such_key=1")
    assert code == 2 and "no_such_key" in err and "have no names" not in err, err


def test_a_teacher_of_one_size_sets_the_size(tmp_path, fields, call):
    from segkd.export import to_onnx
    from segkd.models.build import network_from_file

    assert (
        call(
            "--teacher",
            "train:toy",
            "--student",
            "toy",
            "--data",
            "fields",
            "--steps",
            1,
            "--no-baseline",
            "--out",
            "first",
            *FAST,
        )[0]
        == 0
    )
    network, _ = network_from_file(tmp_path / "first/teacher")
    to_onnx(network, tmp_path / "t.onnx", size=(64, 96), dynamic=False)
    code, _, err = call(
        "--teacher",
        "t.onnx",
        "--student",
        "toy",
        "--data",
        "fields",
        "--steps",
        1,
        "--no-baseline",
        "--out",
        "second",
        *FAST,
    )
    assert code == 0, err
    run = load_config(tmp_path / "second/recipe.yaml").recipe.runs["distilled"].config
    assert run.data.resize == run.data.crop == (64, 96) and set(run.methods) == {"kd"}


def written(call, tmp_path, *overrides: str, student: str = "toy") -> dict:
    """The recipe's runs of a command that is stopped before its first step."""
    folder(tmp_path / "more", lambda n: (f"{n}.png", None), count=5)
    command = ["--teacher", "train:toy", "--student", student, "--data", "fields", "--steps", 1]
    command += ["--unlabeled", "more", "--out", "out", "runtime.device=cuda:99", *overrides]
    code, _, err = call(*command)
    assert code == 2 and "cuda" in err
    runs = load_config(tmp_path / "out/recipe.yaml").recipe.runs
    return {name: run.config for name, run in runs.items()}


def test_methods_that_are_asked_for_are_those_of_the_distilled_run(call, fields, tmp_path):
    runs = written(
        call, tmp_path, "methods.kd.weight=2", "methods.cwd=null", "methods.dist.weight=1"
    )
    assert runs["distilled"].methods.keys() == {"kd", "dist"}
    assert runs["distilled"].methods["kd"].weight == 2
    assert not runs["baseline"].methods and not runs["teacher"].methods


def test_the_share_that_is_asked_for_is_taken(call, fields, tmp_path):
    runs = written(call, tmp_path, "data.unlabeled.share=0.5")
    assert runs["distilled"].data.unlabeled.share == 0.5
    assert runs["distilled"].data.batch_size == 2 * runs["baseline"].data.batch_size
    assert runs["baseline"].data.unlabeled is None and runs["teacher"].data.unlabeled is None


def test_that_images_without_masks_would_help_is_said(call, fields, tmp_path):
    folder(tmp_path / "more", lambda n: (f"{n}.png", None), count=5)
    command = ["--teacher", "train:toy", "--student", "toy", "--data", "fields", "--steps", 1]
    command += ["runtime.device=cuda:99"]
    told = "Images without masks: none"
    assert told in call(*command, "--out", "one")[1]
    assert told not in call(*command, "--out", "two", "--unlabeled", "more")[1]
    own = f"data.unlabeled.root={tmp_path / 'more'}"
    assert told not in call(*command, "--out", "three", own)[1]


@pytest.mark.parametrize(
    ("scores", "advice"),
    [
        ((0.6, 0.52, 0.5), None),
        ((0.6, 0.5, 0.5), "--unlabeled FOLDER"),
        ((0.5, 0.49, 0.5), "take one that scores higher"),
        ((math.nan, 0.49, 0.5), "--unlabeled FOLDER"),  # it may not be queried
        ((0.6, 0.5, None), None),  # no baseline
        ((0.6, math.nan, 0.5), None),
    ],
)
def test_a_student_that_gained_nothing_is_told_what_helps(scores, advice):
    names = ("teacher", "distilled", "baseline")
    found = {name: one for name, one in zip(names, scores, strict=True) if one is not None}
    here = Path("out")
    lines = summary_lines(Distilled(here, here, here, here, None, found))
    told = [line for line in lines if "--unlabeled" in line or "take one" in line]
    assert (advice is None and not told) or (len(told) == 1 and advice in told[0])


def test_runs_may_be_matched_by_seconds(call, fields, tmp_path):
    written(call, tmp_path, "match={seconds: 2.0}")
    assert load_config(tmp_path / "out/recipe.yaml").recipe.match.seconds == 2.0


def test_the_file_of_a_student_is_found_from_any_folder(call, fields, tmp_path):
    network = teacher_net(width=6)
    torch.save(network.state_dict(), tmp_path / "first.pt")
    runs = written(call, tmp_path, "student.arch=toy", student="first.pt")
    assert runs["distilled"].student.checkpoint == str(tmp_path / "first.pt")


@pytest.mark.parametrize("given", ["methods=kd", "data.unlabeled=more"])
def test_methods_and_images_are_given_by_keys(call, fields, given):
    key = given.split("=")[0].split(".")[-1]
    code, _, err = call("--teacher", "train:toy", "--data", "fields", given)
    assert code == 2 and f"{key}: got" in err and "expected keys, e.g." in err


def test_a_size_that_is_no_number_is_told(call, fields, tmp_path):
    folder(tmp_path / "more", lambda n: (f"{n}.png", None), count=5)
    command = ["--teacher", "train:toy", "--student", "toy", "--data", "fields"]
    code, _, err = call(*command, "--unlabeled", "more", "--no-baseline", "data.batch_size=four")
    assert code == 2 and "batch_size: got 'four', expected a whole number" in err, err


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("data.flipp=0", "common.data.flipp: unknown key. Did you mean 'flip'?"),
        ("data.resize=3", "common.data.resize: got 3, expected a list [a, b]"),
        ("teachers.teacher.claases=1", "claases: unknown key. Did you mean 'classes'?"),
        ("runtime.device=cuda:99", "cuda:99"),
    ],
)
def test_keys_are_checked_before_the_teacher_labels_images(given, text, call, tmp_path):
    frames = folder(tmp_path / "frames", lambda n: (f"{n}.png", None), count=8)
    (frames / "classes.txt").write_text("sky\nroad\ncar\ntree\n")
    command = ["--teacher", toy_onnx(), "--student", "toy", "--data", "frames", "--out", "out"]
    code, _, err = call(*command, given)
    assert code == 2 and text in err and "Traceback" not in err, err
    assert not (tmp_path / "out/teacher_labels").exists()


def test_a_config_as_data_may_have_bases(fields, tmp_path):
    start(fields, out=tmp_path, name="set")
    config = tmp_path / "mine.yaml"
    config.write_text("base: set.yaml\ncommon:\ndata: {batch_size: 3}\n")
    found = data_of(str(config), {}, lambda done, total: None)
    assert found.classes == ("sky", "road", "car", "tree") and found.block["batch_size"] == 3
    assert found.counts == {"train": 8, "val": 2}
    config.write_text("common:\n")
    with pytest.raises(segkd.SegKDError, match="has no block `data:`"):
        data_of(str(config), {}, lambda done, total: None)


def test_the_file_of_a_student_of_windows_is_scored_as_the_student(fields, tmp_path, monkeypatch):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    keys = ("data.resize=[64,96]", "data.crop=[64,64]", "eval.sliding=32", *FAST)

    def go():
        return segkd.distill(
            *(teacher, "toy", fields),
            out=tmp_path / "out",
            steps=4,
            baseline=False,
            overrides=keys,
        )

    found = go()
    assert found.scores["onnx"] == pytest.approx(found.scores["distilled"], abs=1e-3)
    (tmp_path / "out/result.json").unlink()

    def refuse(*_, **__):
        raise segkd.SegKDError("it takes no windows")

    monkeypatch.setattr(distill_module, "evaluate_network", refuse)
    monkeypatch.setattr(distill_module, "to_onnx", lambda *_, **__: "the file is there")
    found = go()
    assert "onnx" not in found.scores and found.onnx.is_file() and found.report.is_file()


def test_the_folder_of_a_killed_preparation_is_used_again(tmp_path):
    request, other = Request("t", "d"), Request("u", "d")
    found = DistillFolder(tmp_path)
    found.begin(request.plain())
    (tmp_path / "recipe.yaml").write_text("x: 1\n")
    (tmp_path / "teacher_labels").mkdir()
    assert not found.prepared(request.plain()) and (tmp_path / "teacher_labels").exists()
    assert not found.prepared(other.plain()) and not (tmp_path / "teacher_labels").exists()
    found.store(request.plain())
    assert found.prepared(request.plain())
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(segkd.SegKDError, match="is gone"):
        found.prepared(request.plain())


@pytest.mark.parametrize("name", ["spec.yaml", "recipe.yaml", "train.txt"])
def test_a_folder_with_files_of_the_user_is_refused(name, call, fields, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    command = ["--teacher", "train:toy", "--student", "toy", "--data", "fields", "--out", "out"]
    code, _, err = call(*command, "optim.no_such_key=1")  # ends before the training
    assert code == 2 and f"has other files: {name}" in err and "delete them" in err, err
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "out" / name).rename(tmp_path / "out/command.json")
    (tmp_path / "out/command.json").write_text('{"mine": 1}')
    code, _, err = call(*command)
    assert code == 2 and "has other files: command.json" in err, err
    assert (tmp_path / "out/command.json").read_text() == '{"mine": 1}'


def test_a_failed_preparation_can_be_corrected_in_its_folder(call, fields, tmp_path):
    command = ["--teacher", "train:toy", "--student", "toy", "--data", "fields", "--out", "out"]
    command += ["--steps", 1, "--no-baseline", *FAST]
    code, _, err = call(*command, "optim.no_such_key=1")
    assert code == 2 and "no_such_key" in err, err
    assert json.loads((tmp_path / "out/command.json").read_text())["state"] == "preparing"
    code, _, err = call(*command)
    assert code == 0, err
    assert "state" not in json.loads((tmp_path / "out/command.json").read_text())


def test_a_command_that_failed_before_its_first_step_may_be_corrected(tmp_path):
    found, first, second = DistillFolder(tmp_path), Request("a", "d"), Request("b", "d")
    found.write_recipe("x: 1\n")
    found.store(first.plain())
    (tmp_path / "teacher_labels").mkdir()
    assert not found.prepared(second.plain()) and not (tmp_path / "teacher_labels").exists()
    assert not found.prepared(first.plain())  # the labels are gone
    found.store(first.plain())
    (tmp_path / "distilled/seed0/checkpoints").mkdir(parents=True)
    (tmp_path / "distilled/seed0/checkpoints/last.pt").touch()
    with pytest.raises(segkd.SegKDError, match="belongs to another command:\n  teacher: a -> b"):
        found.prepared(second.plain())
    with pytest.raises(segkd.SegKDError, match="another command:\n  unlabeled: not given -> u"):
        found.prepared(replace(first, unlabeled="u").plain())


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import toy_run
toy_run.register()
from segkd.cli import main
main({arguments!r})
"""


def test_a_killed_command_goes_on_and_ends_with_the_same_weights(tmp_path, fields):
    def finished(out):
        found = segkd.distill(
            "train:toy", "toy", fields, out=out, steps=20, baseline=False, overrides=FAST
        )
        return torch.load(found.run / "checkpoints/last.pt")["student"]

    out = tmp_path / "killed"
    arguments = ["distill", "--teacher", "train:toy", "--student", "toy", "--data", str(fields)]
    arguments += ["--steps", "20", "--no-baseline", "--out", str(out), *FAST]
    script = SCRIPT.format(tests=str(Path(__file__).parent.parent), arguments=arguments)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    while process.poll() is None and not (out / "distilled/seed0/checkpoints/last.pt").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "distilled/seed0/summary.json").exists()  # else the test is too slow
    resumed, whole = finished(out), finished(tmp_path / "whole")
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
