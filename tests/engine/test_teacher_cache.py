"""Runs whose teachers' outputs are kept on disk."""

import csv
import json
import os
import re
import shutil
import signal
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import test_bad_input
import torch
from processes import Training
from resuming import make_trainer, same, states, stop_after
from toy_run import CLASSES, ToyData, teacher_net, toy_config

from segkd import registry
from segkd.config.load import dump_config, load_text
from segkd.config.networks import TeacherConfig
from segkd.data.output_files import OutputFolder
from segkd.data.sources import TrainSource
from segkd.data.unlabeled import ImageFolder, Joined
from segkd.engine.cache_filling import summary_lines
from segkd.engine.cache_key import cache_facts, differences, key_of
from segkd.engine.run import train_run
from segkd.engine.teacher_cache import views_of
from segkd.errors import DataError, Interrupted, MachineError
from segkd.models.class_names import match_classes
from segkd.models.frozen import Teacher
from segkd.models.output_cache import OutputCache

work, call = test_bad_input.work, test_bad_input.call  # fixtures
DATA = {"name": "toy", "batch_size": 4, "workers": 0, "crop": [24, 40], "color_jitter": 0.3}
SEEN = re.compile(r"cache: (\d+) outputs were read, (\d+) computed")


def cached_config(out, folder, *, cache=None, data=None, names=("main",), **changes):
    """Six steps of four of seven images, of which two views are stored: 14 are new, 10 are read."""
    cache = {"views": 2, "dir": str(folder)} if cache is None else cache
    plain = {"data": DATA | (data or {}), "methods": {"kd": {}, "cwd": {}}}
    teachers = {name: {"arch": "toy", "cache": cache} for name in names}
    return toy_config(out, **(plain | {"teachers": teachers} | changes))


def losses(folder):
    """The losses of the logged steps, without times."""
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    names = ("task/", "kd/", "cwd/", "dkd/", "wsld/")
    found = [{k: float(v) for k, v in row.items() if k.startswith(names) and v} for row in rows]
    return [row for row in found if row]


def counted(folder):
    """Outputs that were read and computed, by the log."""
    return [tuple(map(int, pair)) for pair in SEEN.findall((folder / "log.txt").read_text())]


def times(folder):
    return {p: p.stat().st_mtime_ns for p in folder.glob("cache/*/outputs/*/*.bin")}


def live(monkeypatch):
    """Caches that always ask the teacher, in full precision."""

    def outputs(self, images, batch):
        return self.teacher(images)

    monkeypatch.setattr(OutputCache, "outputs", outputs)


def test_stored_outputs_are_the_teachers_up_to_halves(tmp_path, monkeypatch):
    given = {"main": teacher_net()}
    train_run(cached_config(tmp_path / "one", tmp_path / "cache"), teachers=given)
    assert counted(tmp_path / "one") == [(10, 14)]
    train_run(cached_config(tmp_path / "two", tmp_path / "cache"), teachers=given)
    assert counted(tmp_path / "two") == [(24, 0)], "shared by runs"
    live(monkeypatch)
    train_run(cached_config(tmp_path / "live", tmp_path / "cache"), teachers=given)
    one, two, wanted = (losses(tmp_path / name) for name in ("one", "two", "live"))
    assert one == two, "whether an output is new or stored changes nothing"
    assert len(wanted) == 3 and wanted[-1]["kd/kd"] > 1e-4
    for found, row in zip(one, wanted, strict=True):
        assert found == pytest.approx(row, rel=2e-3)
    log = (tmp_path / "one/log.txt").read_text()
    assert "the outputs for 2 views of each of 7 images" in log and "0 of 14 are there" in log
    assert "14 of 14 are there" in (tmp_path / "two/log.txt").read_text()


def test_the_teacher_is_not_run_for_what_is_there(tmp_path, monkeypatch):
    given, calls = {"main": teacher_net()}, []
    train_run(cached_config(tmp_path / "one", tmp_path / "cache"), teachers=given)
    original = Teacher.forward

    def forward(self, images):
        calls.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Teacher, "forward", forward)
    monkeypatch.setattr("segkd.engine.run.Run._evaluate_teachers", lambda self: None)
    config = cached_config(tmp_path / "two", tmp_path / "cache", data={"workers": 1})
    train_run(config, teachers=given)
    assert calls == []


def test_other_seeds_see_the_same_views_in_another_order(tmp_path):
    given = {"main": teacher_net()}
    seen, orders = [], []
    for seed in (0, 1):
        config = cached_config(tmp_path / "x", tmp_path / "cache", seed=seed)
        trainer = make_trainer(config, teachers=given)
        batches = list(trainer._loader(0, 7, workers=0))
        marks = [
            (int(i), int(v), int(mark))
            for batch in batches
            for i, v, mark in zip(
                batch.index, batch.extra["cache/view"], batch.extra["cache/image"], strict=True
            )
        ]
        seen.append(set(marks))
        orders.append(marks)
    assert seen[0] == seen[1] and len(seen[0]) == 14 and orders[0] != orders[1]
    assert len({mark for _, _, mark in seen[0]}) == 14, "views differ"
    other = {"views": 2, "dir": str(tmp_path / "cache"), "seed": 5}
    config = cached_config(tmp_path / "x", tmp_path / "cache", cache=other)
    batch = next(iter(make_trainer(config, teachers=given)._loader(0, 1, workers=0)))
    assert not {mark for _, _, mark in seen[0]} & set(batch.extra["cache/image"].tolist())


@pytest.mark.parametrize("stop", [2, 5])
def test_a_run_that_is_stopped_while_filling_goes_on_bit_for_bit(tmp_path, monkeypatch, stop):
    given = {"main": teacher_net()}
    train_run(cached_config(tmp_path / "whole", tmp_path / "a"), teachers=given)
    config = cached_config(tmp_path / "parts", tmp_path / "b", save_every=1)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, stop)
        train_run(config, teachers=given)
    train_run(config, teachers=given)
    parts, whole = states(tmp_path / "parts"), states(tmp_path / "whole")
    same(parts, whole)
    new = max(0, 14 - 4 * stop)
    assert counted(tmp_path / "parts")[-1] == (24 - 4 * stop - new, new)


def test_a_killed_run_leaves_whole_files_that_the_next_one_uses(tmp_path):
    cache = f"teachers={{main: {{arch: toy, cache: {{views: 2, dir: {tmp_path}/cache}}}}}}"
    arguments = (cache, "methods={kd: {}}", "steps=400", "out=run")
    with Training(tmp_path, *arguments, faults="slow-step") as training:
        training.until(lambda: len(list(tmp_path.glob("cache/*/outputs/*/*.bin"))) > 2)
        os.killpg(training.process.pid, signal.SIGKILL)
    before = times(tmp_path)
    assert len(before) >= 3
    short = (cache, "methods={kd: {}}", "steps=6", "out=next")
    with Training(tmp_path, *short) as training:
        ended = training.end()
    assert ended.code == 0, ended.text
    after = times(tmp_path)
    assert len(after) == 14 and before.items() <= after.items()


def test_two_runs_at_once_compute_nothing_twice(tmp_path):
    cache = f"teachers={{main: {{arch: toy, cache: {{views: 2, dir: {tmp_path}/cache}}}}}}"
    arguments = (cache, "methods={kd: {}}")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with (
        Training(tmp_path / "a", *arguments, "out=run") as one,
        Training(tmp_path / "b", *arguments, "out=run") as other,
    ):
        for training in (one, other):
            ended = training.end()
            assert ended.code == 0, ended.text
    pairs = [*counted(tmp_path / "a/run"), *counted(tmp_path / "b/run")]
    assert sum(computed for _, computed in pairs) == 14, pairs
    assert losses(tmp_path / "a/run") == losses(tmp_path / "b/run")
    assert not list(tmp_path.glob("cache/*/outputs/*/.*"))


def test_damaged_outputs_are_computed_again(tmp_path, caplog):
    given = {"main": teacher_net()}
    train_run(cached_config(tmp_path / "one", tmp_path / "cache"), teachers=given)
    first, second, *_ = sorted(tmp_path.glob("cache/*/outputs/*/*.bin"))
    first.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:-20])
    train_run(cached_config(tmp_path / "two", tmp_path / "cache"), teachers=given)
    assert counted(tmp_path / "two") == [(22, 2)]
    assert caplog.text.count("some stored outputs are damaged") == 1
    same(losses(tmp_path / "two"), losses(tmp_path / "one"))


def test_images_that_changed_unseen_are_not_taught_with_old_outputs(tmp_path, monkeypatch, caplog):
    given = {"main": teacher_net()}
    train_run(cached_config(tmp_path / "one", tmp_path / "cache"), teachers=given)
    original = ToyData.read

    def read(self, index):
        sample = original(self, index)
        if index == 2:  # neither the first, the middle nor the last
            sample.image[:] = 255 - sample.image
        return sample

    monkeypatch.setattr(ToyData, "read", read)
    train_run(cached_config(tmp_path / "two", tmp_path / "cache"), teachers=given)
    assert counted(tmp_path / "two") == [(22, 2)]
    assert "belong to other pixels" in caplog.text


def facts_of(teacher, data=None, cache=None, images=None, precision=None, **keys):
    data = DATA | (data or {})
    config = toy_config(
        "x", data=data, teachers={"main": {"arch": "toy", "cache": "views", **keys}}
    )
    frozen = Teacher(teacher, half=precision)
    images = images or ToyData(ToyData.Config(**data), "train")
    chosen = TeacherConfig(arch="toy", cache=cache or "views").cache
    return cache_facts(config, chosen, "main", frozen, images)


def test_each_cause_makes_a_new_key():
    start = facts_of(teacher_net())
    assert key_of(start) == key_of(facts_of(teacher_net()))
    moved = teacher_net()
    with torch.no_grad():
        moved.classifier.bias[1] += 1e-4
    layered = teacher_net()
    layered.drop = torch.nn.ReLU()
    turned = teacher_net()
    turned.reorder_classes = lambda order: None  # as networks whose weights stay as they are
    turned.classes_match = match_classes(turned, CLASSES, CLASSES[::-1], "file")
    other = ToyData(ToyData.Config(name="toy", images=8), "train")
    for facts, names in {
        "classes": (facts_of(turned), ["teacher.classes"]),
        "weights": (facts_of(moved), ["teacher.weights"]),
        "layers": (facts_of(layered), ["teacher.layers"]),
        "normalize": (facts_of(teacher_net(normalize="none")), ["teacher.normalize"]),
        "precision": (facts_of(teacher_net(), precision=torch.bfloat16), ["teacher.precision"]),
        "input": (facts_of(teacher_net(), input_scale=2.0), ["teacher.config.input_scale"]),
        "crop": (facts_of(teacher_net(), data={"crop": [32, 40]}), ["views.crop"]),
        "scale": (facts_of(teacher_net(), data={"scale": [1, 2]}), ["views.scale"]),
        "flip": (facts_of(teacher_net(), data={"flip": 0}), ["views.flip"]),
        "jitter": (facts_of(teacher_net(), data={"color_jitter": 0.1}), ["views.color_jitter"]),
        "augment": (
            facts_of(teacher_net(), data={"augment": [{"GaussNoise": {"p": 0.5}}]}),
            ["views.augment"],
        ),
        "resize": (facts_of(teacher_net(), data={"resize": [32, 48]}), ["data.reading.resize"]),
        "seed": (facts_of(teacher_net(), cache={"seed": 1}), ["views.seed"]),
        "images": (facts_of(teacher_net(), images=other), ["data.images", "data.files"]),
    }.values():
        assert differences(start, facts) == names, names
        assert key_of(facts) != key_of(start), names
    for facts in (
        facts_of(teacher_net(), data={"batch_size": 2, "workers": 1, "cache": 7}),
        facts_of(teacher_net(), cache={"views": 5, "dir": "elsewhere"}),
        facts_of(teacher_net(), checkpoint="another_path.pt"),
    ):
        assert key_of(facts) == key_of(start)
    whole = facts_of(teacher_net(), cache="images")
    assert key_of(whole) == key_of(facts_of(teacher_net(), cache="images", data={"flip": 0}))
    assert key_of(whole) != key_of(start)


def test_files_count_by_name_size_and_time(work):
    def key():
        data = {"name": "folder", "root": "data", "batch_size": 2, "spec": "spec.yaml"}
        config = toy_config("x", data=data, teachers={"main": {"arch": "toy", "cache": "views"}})
        images = registry.datasets.get("folder")(config.data, "train")
        teacher = Teacher(teacher_net())
        return key_of(cache_facts(config, config.teachers["main"].cache, "main", teacher, images))

    start, path = key(), work / "data/images/1.png"
    assert key() == start
    (work / "data/masks/1.png").touch()
    assert key() == start, "labels do not matter"
    times = path.stat().st_mtime_ns
    os.utime(path, ns=(times, times + 1))
    assert key() != start
    os.utime(path, ns=(times, times))
    assert key() == start
    cv2.imwrite(str(path), np.zeros((40, 48, 3), np.uint8))
    os.utime(path, ns=(times, times))
    assert key() != start
    for kind in ("images", "masks"):
        shutil.move(work / f"data/{kind}/3.png", work / f"data/{kind}/5.png")
    renamed = key()
    assert renamed != start
    shutil.move(work / "data", work / "moved")
    shutil.move(work / "moved", work / "data")
    assert key() == renamed


def test_a_new_folder_says_why(tmp_path):
    given = {"main": teacher_net()}
    train_run(cached_config(tmp_path / "one", tmp_path / "cache", steps=1), teachers=given)
    config = cached_config(tmp_path / "two", tmp_path / "cache", steps=1, data={"flip": 0.0})
    train_run(config, teachers=given)
    log = (tmp_path / "two/log.txt").read_text()
    assert "new, because views.flip differs from that of" in log
    assert len(list(tmp_path.glob("cache/*/record.json"))) == 2


def test_whole_images_are_stored_first_and_move_with_their_crops(tmp_path, monkeypatch):
    """Neither scaled nor flipped, crops of all of an image have the teacher's own outputs."""
    given = {"main": teacher_net()}
    data = {"crop": [32, 48], "scale": [1, 1], "flip": 0, "color_jitter": 0}
    cache = {"kind": "images", "dir": str(tmp_path / "cache")}
    config = cached_config(tmp_path / "one", tmp_path / "cache", cache=cache, data=data)
    train_run(config, teachers=given)
    log = (tmp_path / "one/log.txt").read_text()
    assert counted(tmp_path / "one") == [(24, 7)] and "storing the outputs for 7 images" in log
    assert "an approximation" in log
    live(monkeypatch)
    train_run(cached_config(tmp_path / "x", tmp_path / "c", cache=cache, data=data), teachers=given)
    for found, wanted in zip(losses(tmp_path / "one"), losses(tmp_path / "x"), strict=True):
        assert found == pytest.approx(wanted, rel=2e-3)


def test_whole_images_with_jitter_and_crops_train(tmp_path):
    given = {"main": teacher_net()}
    cache = {"kind": "images", "dir": str(tmp_path / "cache")}
    for out, read in (("one", 7), ("two", 0)):
        config = cached_config(tmp_path / out, tmp_path, cache=cache, data={"workers": 1})
        train_run(config, teachers=given)
        assert counted(tmp_path / out) == [(24, read)]


CASES = {
    "two teachers and an ensemble": {
        "names": ("a", "b"),
        "methods": {
            "kd": {"teacher": "both"},
            "cwd": {"teacher": "a"},
            "dkd": {"teacher": "b", "weight": {"auto": 0.5}},
        },
        "more": {"both": {"ensemble": ["a", "b"]}},
    },
    "unlabelled images": {
        "data": {"unlabeled": {"split": "other", "share": 0.5}},
        "methods": {"kd": {}, "wsld": {"pseudo_labels": 0.4}},
    },
    "accumulation": {"optim": {"lr": 0.05, "accumulate": 2}},
}


@pytest.mark.parametrize("case", CASES)
def test_other_runs_have_the_same_losses_with_a_cache(case, tmp_path, monkeypatch):
    keys = dict(CASES[case])
    names, more = keys.pop("names", ("main",)), keys.pop("more", {})
    given = {name: teacher_net(seed=seed) for seed, name in enumerate(names)}

    def config(out, folder):
        found = cached_config(tmp_path / out, tmp_path / folder, names=names, **keys)
        ensembles = {name: TeacherConfig(**one) for name, one in more.items()}
        return found.model_copy(update={"teachers": found.teachers | ensembles})

    train_run(config("one", "cache"), teachers=given)
    train_run(config("two", "cache"), teachers=given)
    assert {computed for _, computed in counted(tmp_path / "two")} == {0}
    live(monkeypatch)
    train_run(config("live", "cache"), teachers=given)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    for found, wanted in zip(losses(tmp_path / "two"), losses(tmp_path / "live"), strict=True):
        assert found == pytest.approx(wanted, rel=5e-3, abs=1e-6)


SAME = {name: name for name in CLASSES}
MAPPINGS = {
    "two classes in one": {**SAME, "shrub": "tree"},
    "one left over": {**SAME, "shrub": None},
    "one left over, one unknown": {n: n for n in CLASSES if n != "car"} | {"shrub": None},
}


@pytest.mark.parametrize("rule", [{}, {"left_over": "void"}], ids=["renormalise", "void"])
@pytest.mark.parametrize("case", MAPPINGS)
def test_log_probabilities_of_mapped_classes_are_stored(case, rule, tmp_path, monkeypatch):
    names = ["sky", "road", *(["car"] if "car" in MAPPINGS[case] else []), "shrub", "tree"]
    mapping = {"from": names, "map": MAPPINGS[case]} | rule
    torch.manual_seed(0)
    teachers = {
        "main": {
            "arch": "toy",
            "classes": mapping,
            "cache": {"views": 2, "dir": str(tmp_path / "cache")},
        }
    }
    keys = {"teachers": teachers, "methods": {"kd": {}}}
    for out in ("one", "two", "live"):
        if out == "live":
            trainer = make_trainer(cached_config(tmp_path / "x", tmp_path, **keys))
            batch = next(iter(trainer._loader(0, 1, workers=0)))
            outputs = trainer.parts.teachers(batch.images, batch)["main"]
            assert outputs.kind == "log_prob" and outputs.logits.shape[1] == 4
            assert trainer.parts.teachers.caches["main"].computed == 0
            live(monkeypatch)
        train_run(cached_config(tmp_path / out, tmp_path, **keys))
    assert counted(tmp_path / "two") == [(24, 0)]
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    for found, wanted in zip(losses(tmp_path / "two"), losses(tmp_path / "live"), strict=True):
        assert found == pytest.approx(wanted, rel=5e-3)


def test_whole_images_keep_what_a_mapped_teacher_cannot_know(tmp_path):
    mapping = {"from": list(CLASSES), "map": {"sky": "sky", "road": "road"}, "left_over": "void"}
    cache = {"kind": "images", "dir": str(tmp_path / "cache")}
    teachers = {"main": {"arch": "toy", "classes": mapping, "cache": cache}}
    data = {"crop": [32, 48], "scale": [1, 1], "flip": 0, "color_jitter": 0}
    keys = {"teachers": teachers, "methods": {"kd": {}}, "data": data}
    train_run(cached_config(tmp_path / "one", tmp_path, **keys))
    trainer = make_trainer(cached_config(tmp_path / "x", tmp_path, **keys))
    batch = next(iter(trainer._loader(0, 1, workers=0)))
    found = trainer.parts.teachers(batch.images, batch)["main"]
    wanted = trainer.parts.teachers.members["main"](batch.images)
    assert trainer.parts.teachers.caches["main"].computed == 0
    assert wanted.known.any() and not wanted.known.all()
    assert torch.equal(found.known, wanted.known)


def test_replaced_images_keep_their_own_views(tmp_path, monkeypatch):
    given = {"main": teacher_net()}
    original = ToyData.read

    def read(self, index):
        if index == 3 and self.split == "train":
            raise DataError("image 3 is broken")
        return original(self, index)

    monkeypatch.setattr(ToyData, "read", read)
    keys = {"data": {"on_error": "skip"}}
    for out in ("one", "two"):
        train_run(cached_config(tmp_path / out, tmp_path / "cache", **keys), teachers=given)
    assert counted(tmp_path / "two") == [(24, 0)]
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


def test_checks_and_measurements_write_nothing(tmp_path):
    config = cached_config(tmp_path / "x", tmp_path / "cache")
    trainer = make_trainer(config, teachers={"main": teacher_net()})
    next(trainer.steps())
    trainer.pulls(1)
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_while_training_is_a_warning(tmp_path, monkeypatch, caplog):
    def write(self, *arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(OutputFolder, "write", write)
    train_run(cached_config(tmp_path / "x", tmp_path / "c"), teachers={"main": teacher_net()})
    assert caplog.text.count("outputs cannot be stored any more") == 1
    cache = {"kind": "images", "dir": str(tmp_path / "c")}
    config = cached_config(tmp_path / "y", tmp_path, cache=cache)
    with pytest.raises(MachineError, match=r"cannot write into .*No space left on device"):
        train_run(config, teachers={"main": teacher_net()})


MISTAKES = {
    "no views": ("main: {arch: toy, cache: {views: 0}}", "kd: {}", "greater than 0"),
    "unknown kind": (
        "main: {arch: toy, cache: crops}",
        "kd: {}",
        "cache: got 'crops', expected",
    ),
    "views of images": (
        "main: {arch: toy, cache: {kind: images, views: 2}}",
        "kd: {}",
        "`views` is of `kind: views`",
    ),
    "black box": (
        "main: {black_box: {onnx: x.onnx}, cache: views}",
        "kd: {}",
        "`cache` is for networks. A `black_box` has its own",
    ),
    "ensemble": (
        "a: {arch: toy}, b: {arch: toy}, main: {ensemble: [a, b], cache: views}",
        "kd: {teacher: main}",
        "Give it to the members",
    ),
    "peers": ("", "dml: {peers: {second: {arch: toy, cache: views}}}", "unknown key"),
    "features": (
        "main: {arch: toy, cache: views}",
        "kd: {}, fitnets: {tap: stage4}",
        "teachers.main.cache: methods.fitnets needs the teacher's stage4, and only logits",
    ),
    "gradient": (
        "main: {arch: toy, cache: views}",
        "at: {form: gradient}",
        "only logits are stored",
    ),
    "rewritten batches": (
        "main: {arch: toy, cache: views}",
        "unix: {}",
        "methods.unix makes new images in each step, which have no stored outputs. Remove this",
    ),
    "different views": (
        "a: {arch: toy, cache: views}, b: {arch: toy, cache: {views: 3}}",
        "kd: {teacher: a}, cwd: {teacher: b}",
        "teachers.a: 8 of seed 0, teachers.b: 3 of seed 0",
    ),
    "no folder": (
        "main: {arch: toy, cache: {dir: run.yaml/below}}",
        "kd: {}",
        "cannot write into run.yaml/below",
    ),
    "no access": ("main: {arch: toy, cache: {dir: closed}}", "kd: {}", "no write access"),
    "no space": ("main: {arch: toy, cache: {dir: full}}", "kd: {}", "10 B are free at"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case, work, call, monkeypatch):
    teachers, methods, text = MISTAKES[case]
    if case == "no access":
        (work / "closed").mkdir()
        original = os.access
        monkeypatch.setattr(
            os, "access", lambda path, mode: "closed" not in str(path) and original(path, mode)
        )
    if case == "no space":
        usage = shutil.disk_usage(work)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    code, found = call("train", "run.yaml", f"teachers={{{teachers}}}", f"methods={{{methods}}}")
    assert code == 2 and text in found and "Traceback" not in found, found
    assert not list(work.glob("full/*"))


def test_doctor_and_explain_say_what_can_be_stored(work, call, quick_imports):
    arguments = ("run.yaml", "teachers={t: {arch: toy, cache: {views: 3}}}", "methods={kd: {}}")
    text = call("doctor", *arguments)[1]
    assert "cache: the outputs for 3 views of each of 4 images" in text
    text = call("doctor", "run.yaml", "teachers={t: {arch: toy}}", "methods={kd: {}}")[1]
    assert "its outputs can be stored: teachers.t.cache=views" in text
    methods = "methods={fitnets: {tap: stage4}}"
    text = call("doctor", "run.yaml", "teachers={t: {arch: toy}}", methods)[1]
    assert "its outputs cannot be stored: methods.fitnets needs the teacher's stage4" in text
    assert not (work / "runs").exists()
    assert "teacher's cache: yes" in call("explain", "kd")[1]
    assert "teacher's cache: no: needs the teacher's" in call("explain", "fitnets")[1]
    assert "teacher's cache: no: makes new images in each step" in call("explain", "unix")[1]


def test_views_cycle(tmp_path):
    config = cached_config(tmp_path / "x", tmp_path / "cache")
    images = ToyData(config.data, "train")
    source = TrainSource(images, config.data, 9, views=views_of(config))
    first, second, third = (source.__getitems__([(epoch, 3)])[0].batch for epoch in (0, 1, 2))
    assert torch.equal(first.images, third.images) and not torch.equal(first.images, second.images)
    assert torch.equal(first.labels, third.labels)


def test_caches_are_listed_and_deleted(tmp_path, call):
    given, root = {"main": teacher_net()}, str(tmp_path / "cache")
    code, text = call("cache", "list", root)
    assert code == 2 and f"there is no folder {root}" in text
    (tmp_path / "cache").mkdir()
    code, text = call("cache", "list", root)
    assert code == 0 and f"{root}: no outputs of teachers are stored here" in text
    assert call("cache", "clear", "--all", "--dir", root)[0] == 0
    code, text = call("cache", "clear", "views-0", "--dir", root)
    assert code == 2 and "there is no cache 'views-0'. It holds none." in text
    for name, flip in (("one", 0.0), ("two", 0.5)):
        config = cached_config(tmp_path / name, root, data={"flip": flip})
        train_run(config, teachers=given)
    first, second = sorted(path.name for path in (tmp_path / "cache").iterdir())
    code, text = call("cache", "list", root)
    assert code == 0 and first in text and second in text and "views 24x40 7" in text
    for arguments in ((), (first, "--all"), ("views-0",)):
        assert call("cache", "clear", *arguments, "--dir", root)[0] == 2
    assert call("cache", "clear", first, "--dir", root)[0] == 0
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [second]
    assert call("cache", "clear", "--all", "--dir", root)[0] == 0
    assert not list((tmp_path / "cache").iterdir())


def test_views_without_a_crop_are_listed_as_views(tmp_path, call):
    for kind, facts in (("views", {"views": {"crop": None}}), ("images", {})):
        folder = tmp_path / f"{kind}-0"
        folder.mkdir()
        (folder / "record.json").write_text(json.dumps({"kind": kind, **facts}))
    text = call("cache", "list", str(tmp_path))[1]
    assert "images-0 whole images" in text and "views-0 views" in text


def test_no_cache_in_the_default_folder_is_no_error(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEGKD_TEACHER_CACHE", raising=False)
    code, text = call("cache", "list")
    assert code == 0 and "runs/teacher_cache (does not exist yet): no outputs of teachers" in text


@pytest.mark.parametrize("cache", ["views", "images", {"views": 3, "seed": 1}])
def test_a_stored_config_with_a_cache_can_be_read(tmp_path, cache):
    teachers = {"main": {"arch": "toy", "cache": cache}}
    config = toy_config(tmp_path, teachers=teachers, methods={"kd": {}})
    assert load_text(dump_config(config)) == config


def test_outputs_of_all_processes_are_counted():
    runtime = SimpleNamespace(gather_objects=lambda own: [own, {"main": (1, 3)}])
    source = SimpleNamespace(outputs=SimpleNamespace(path="kept"))
    caches = {"main": SimpleNamespace(read=2, computed=5, source=source)}
    (line,) = summary_lines(caches, runtime)
    assert "3 outputs were read, 8 computed in this run; kept" in line


def test_torn_outputs_of_whole_images_are_stored_anew(tmp_path):
    given = {"main": teacher_net()}
    cache = {"kind": "images", "dir": str(tmp_path / "cache")}
    train_run(cached_config(tmp_path / "one", tmp_path / "cache", cache=cache), teachers=given)
    first, second, *_ = sorted(tmp_path.glob("cache/*/outputs/*/*.bin"))
    whole = second.read_bytes()
    first.write_bytes(b"")
    second.write_bytes(whole[:-60] + b"\0" * 60)
    train_run(cached_config(tmp_path / "two", tmp_path / "cache", cache=cache), teachers=given)
    assert "storing the outputs for 2 images" in (tmp_path / "two/log.txt").read_text()
    assert second.read_bytes() == whole
    same(losses(tmp_path / "two"), losses(tmp_path / "one"))


def test_other_rows_of_unlabelled_images_are_another_cache(tmp_path):
    main = ToyData(ToyData.Config(**DATA), "train")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 48, 3), np.uint8))

    def key(rows, data=None):
        both = Joined(main, ImageFolder(tmp_path, main, rows=rows), 0.5)
        return key_of(facts_of(teacher_net(), data=data, images=both))

    assert len({key(None), key((0.3, 0.9)), key((0.2, 0.9))}) == 3
    # The doctor's config does not name the joined set any more.
    named = {"unlabeled": {"root": str(tmp_path), "rows": [0.3, 0.9]}}
    assert key((0.3, 0.9), named) == key((0.3, 0.9))
