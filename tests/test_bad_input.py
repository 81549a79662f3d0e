"""Every mistake of a user, from the command line: one message that names the cause, exit code 2."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_checkpoint import Bomb
from toy_run import CLASSES, teacher_net

from segkd import checkpoint, cli
from segkd.commands import evaluate

RUN = """\
steps: 2
data: {name: folder, root: data, batch_size: 2, workers: 0, crop: [32, 48], spec: spec.yaml}
student: {arch: toy}
eval: {every: 0}
log: {every: 1, tensorboard: false}
runtime: {device: cpu, threads: 1}
"""
SPEC = """\
classes: [{name: sky}, {name: road}, {name: car}, {name: tree}]
splits:
  train: {images: images, masks: masks}
  val: {images: images, masks: masks}
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with four images, masks and a run that works."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number in range(4):
        image = draw.integers(0, 256, (32, 48, 3), dtype=np.uint8)
        mask = draw.integers(0, 4, (32, 48), dtype=np.uint8)
        cv2.imwrite(f"data/images/{number}.png", image)
        cv2.imwrite(f"data/masks/{number}.png", mask)
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path


@pytest.fixture
def call(capfd):
    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(list(arguments))
        out, err = capfd.readouterr()
        return stop.value.code or 0, " ".join((out + err).split())

    return run


def student_file(path, **changes):
    """A best.pt of the toy network."""
    network = teacher_net(width=6)
    payload = {
        "format": "segkd-student-1",
        "model": network.config.model_dump(mode="json") | {"options": {}},
        "weights": network.state_dict(),
        "classes": list(CLASSES),
        "palette": [[0, 0, 0]] * len(changes.get("classes", CLASSES)),
        "ignore_index": 255,
        "dataset": "toy",
        "config": "",
        "step": 1,
        "miou": 0.5,
    }
    checkpoint.save(Path(path), payload | changes)


def test_the_run_works_as_it_is(work, call):
    code, text = call("train", "run.yaml")
    assert code == 0, text
    code, text = call("eval", "runs/run")
    assert code == 0 and "mean IoU" in text


def big_mask(folder):
    cv2.imwrite("data/masks/1.png", np.zeros((16, 48), np.uint8))


def foreign_ids(folder):
    cv2.imwrite("data/masks/2.png", np.full((32, 48), 77, np.uint8))


def corrupt(folder):
    path = folder / "data/images/3.png"
    path.write_bytes(path.read_bytes()[:200])


def camvid(folder):
    text = RUN.replace("folder", "camvid").replace(", spec: spec.yaml", "")
    (folder / "run.yaml").write_text(text.replace("root: data", "root: nowhere"))


def foreign(folder):
    torch.save(teacher_net(width=6).state_dict(), "plain.pth")


def pickled(folder):
    torch.save({"format": "segkd-student-1", "bomb": Bomb(folder / "trace")}, "evil.pt")
    (folder / "trace").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (None, ["optim.lrr=1"], "Did you mean 'lr'"),
        (None, ["methods={kdd: {}}"], "unknown method 'kdd'. Did you mean 'kd'"),
        (None, ["steps=many"], "steps"),
        (None, ["data.root=nowhere"], "nowhere"),
        (camvid, [], "there is no folder nowhere. Expected, as nowhere:"),
        (camvid, [], "Set data.root=FOLDER, or put the set into $SEGKD_DATASETS/camvid"),
        (camvid, ["data.root=data"], "nothing found at data/val/*.png"),
        (
            None,
            ["eval.others={far: {name: voc, root: nowhere}}"],
            "Set eval.others.far.root=FOLDER, or put",
        ),
        (
            None,
            ["data.unlabeled={name: voc, root: nowhere, split: train}"],
            "Set data.unlabeled.root=FOLDER, or put",
        ),
        (big_mask, [], "1.png"),
        (foreign_ids, [], "77"),
        (corrupt, [], "3.png"),
        (None, ["data.crop=[64,96]", "data.pad=false"], "data.pad=true"),
        (None, ["runtime.device=cuda:7"], "runtime.device"),
        (None, ["student.checkpoint=nowhere.pt"], "there is no checkpoint nowhere.pt"),
        (pickled, ["student.checkpoint=evil.pt"], "nothing in it was executed"),
        (
            lambda _: student_file("five.pt", classes=[*CLASSES, "bus"]),
            ["student.checkpoint=five.pt"],
            "five.pt has 5 classes",
        ),
        (
            lambda _: student_file("five.pt", classes=[*CLASSES, "bus"]),
            ["teachers={main: {checkpoint: five.pt}}", "methods={kd: {}}"],
            "teachers.main: five.pt has 5 classes",
        ),
        (
            foreign,
            ["teachers={main: {checkpoint: plain.pth}}", "methods={kd: {}}"],
            "name the network: `arch`",
        ),
        (
            foreign,
            ["student={arch: toy, checkpoint: plain.pth, options: {width: 4}}"],
            "other shapes (",
        ),
        (
            foreign,
            ["teachers={main: {arch: enet, checkpoint: plain.pth}}", "methods={kd: {}}"],
            "teachers.main: plain.pth (plain layout) does not fit",
        ),
        (lambda f: (f / "out").write_text("a file"), ["out=out/run"], "cannot write into"),
    ],
)
def test_a_mistake_is_one_message_with_exit_code_2(work, call, prepare, arguments, message):
    if prepare:
        prepare(work)
    code, text = call("train", "run.yaml", *arguments)
    assert code == 2, text
    assert message in text and "Traceback" not in text
    assert text.count("=FOLDER") <= 1  # one advice, also if the message was put together again
    assert not (work / "trace").exists()


@pytest.mark.parametrize("command", ["curvelanes", "llamas"])
def test_a_missing_set_of_files_to_score_is_named_by_its_option(work, call, command):
    code, text = call("score", command, "--root", "nowhere", "--predictions", "data")
    assert code == 2 and "there is no folder nowhere" in text
    assert text.endswith("Set --root FOLDER.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "models", "--json", "--markdown"], "two forms of one list: leave one out"),
        (["report", "run.yaml"], "run.yaml is a file. Give run folders"),
        (["lane", "x.pt", "y.png", "--smooth", "1"], "'--smooth': Input should be less than"),
        (["lane", "x.pt", "y.png", "--top", "-1"], "'--top': Input should be greater than"),
        (
            ["score", "culane", "--annotations", "a", "--predictions", "b", "--lane-width", "0"],
            "'--lane-width': Input should be greater than",
        ),
        (
            ["data", "convert", "data", "new", "--to", "via", "--rows", "points"],
            "--rows is for --to tusimple, and this is --to via: leave it out",
        ),
    ],
)
def test_a_mistake_names_the_option_that_was_typed(work, call, arguments, message):
    code, text = call(*arguments)
    assert code == 2 and message in text, text


def test_the_folder_of_a_recipe_names_its_runs(work, call):
    for run in ("kd/seed0", "teacher"):  # the second is of all seeds
        folder = work / "runs" / "recipe" / run / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "best.pt").touch()
    code, text = call("eval", "runs/recipe")
    assert code == 2
    assert "Give one: runs/recipe/kd/seed0 (or another of its 2 runs)" in text


def test_an_encoder_that_no_network_reads_is_told(work, call):
    code, text = call("train", "run.yaml", "student={arch: enet, encoder: resnet34}")
    assert code == 0, text
    told = "WARNING: student.encoder=resnet34 changes nothing: enet has no encoder to choose"
    assert told in text
    code, text = call("train", "run.yaml", "student={arch: enet}", "out=runs/other")
    assert code == 0 and "encoder" not in text


def test_an_unreadable_image_is_passed_over_when_asked(work, call):
    corrupt(work)
    code, text = call("train", "run.yaml", "data.on_error=skip", "steps=4")
    assert code == 0, text
    assert "unusable" in text and "3.png" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['true']", "plain data"),
        ("steps: 2\nsteps: 3\n", "steps"),
        ("steps: [1, 2", "broken.yaml"),
    ],
)
def test_yaml_that_is_not_plain_is_refused(work, call, text, message):
    (work / "broken.yaml").write_text(text)
    code, told = call("train", "broken.yaml")
    assert code == 2 and message in told, told


def test_a_changed_config_does_not_go_on_with_another_run(work, call):
    assert call("train", "run.yaml")[0] == 0
    code, text = call("train", "run.yaml", "optim.lr=0.5")
    assert code == 2 and "optim.lr" in text and "out=" in text


def test_a_run_that_was_refused_at_its_start_may_start_with_a_repaired_config(work, call):
    assert call("train", "run.yaml", "student.aux_head={tap: nowhere}")[0] == 2
    assert (work / "runs/run/config.yaml").exists()
    assert call("train", "run.yaml")[0] == 0


def test_a_full_disk_leaves_the_earlier_checkpoint(work, call, monkeypatch):
    original = torch.save

    def full(payload, file):
        if payload["format"] == checkpoint.FORMAT and payload["step"] == 2:
            raise OSError(28, "No space left on device")
        original(payload, file)

    monkeypatch.setattr(torch, "save", full)
    code, text = call("train", "run.yaml", "save_every=1")
    assert code == 2 and "No space left" in text and "intact" in text
    assert checkpoint.load(work / "runs/run/checkpoints/last.pt")["step"] == 1


def test_eval_prints_its_score_also_where_it_cannot_be_written(work, call, monkeypatch):
    assert call("train", "run.yaml")[0] == 0

    def read_only(path, text):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(evaluate, "write_text", read_only)
    for options, score in (((), "mean IoU"), (("--json",), '"miou":')):
        code, text = call("eval", "runs/run", *options)
        assert code == 2 and score in text and "Traceback" not in text
        assert "could not be written to runs/run/checkpoints: Read-only file system" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights(work, call):
    (work / "locked").mkdir(mode=0o500)
    code, text = call("train", "run.yaml", "out=locked/run")
    assert code == 2 and "cannot write into" in text


def test_eval_of_a_training_state_names_the_student(work, call):
    assert call("train", "run.yaml")[0] == 0
    code, text = call("eval", "runs/run/checkpoints/last.pt")
    assert code == 2 and "best.pt" in text
    shutil.rmtree(work / "data")
    code, text = call("eval", "runs/run")
    assert code == 2 and "data" in text and "Traceback" not in text
