"""Runs with teachers that only return predictions: stored ones, and functions with a budget."""

import csv
import dataclasses
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import test_bad_input
import torch
import torch.nn.functional as F
from processes import train
from resuming import make_trainer
from toy_run import CLASSES, ToyData, teacher_net, toy_config

from segkd import registry
from segkd.data.predictions import top_of, write_prediction
from segkd.engine.run import train_run
from segkd.engine.setup import assemble
from segkd.errors import ConfigError, DataError
from segkd.methods.base import Method, Needs
from segkd.runtime import Runtime
from segkd.structures import Term

pytestmark = pytest.mark.usefixtures("quick_imports")  # of the doctor
work, call = test_bad_input.work, test_bad_input.call  # fixtures
DATA = {"name": "toy", "batch_size": 4, "workers": 0, "crop": [24, 40], "images": 5}


def shares_of(image, network):
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        return network.eval()(pixels).logits.softmax(1)[0].numpy()


@pytest.fixture
def stored(tmp_path):
    """Stored predictions of the toy set's five training images."""
    network = teacher_net()
    data = ToyData(ToyData.Config(name="toy", images=5), "train")
    for index in range(5):
        sample = data.read(index)
        path = tmp_path / "stored" / f"{sample.name}.npz"
        write_prediction(path, top_of(shares_of(sample.image, network), None))
    return tmp_path / "stored"


def box(**keys):
    return {"main": {"black_box": {key: str(value) for key, value in keys.items()}}}


def test_a_run_learns_from_stored_predictions(tmp_path, stored):
    teachers = box(predictions=stored)
    config = toy_config(tmp_path / "run", teachers=teachers, methods={"kd": {}}, data=DATA)
    summary = train_run(config)
    assert summary["steps"] == 6 and summary["teachers"] == {}
    assert summary["without_teacher"] == {"main": 0}
    log = (tmp_path / "run/log.txt").read_text()
    assert "teacher main: predictions of 5 of 5 training images\n" in log
    assert "teacher main: not evaluated, because its stored predictions are those of" in log
    assert "5 stored predictions in" in log


def test_a_whole_image_has_the_value_of_the_teacher_itself(tmp_path, stored):
    """Without crops and flips stored predictions are the teacher's outputs, up to halves."""
    data = {**DATA, "crop": [32, 48], "scale": [1, 1], "flip": 0}
    losses = []
    for teachers, given in (({"main": {"arch": "toy"}}, {"main": teacher_net()}), (None, None)):
        teachers = teachers or box(predictions=stored, stride="8")
        config = toy_config(tmp_path / "x", teachers=teachers, methods={"kd": {}}, data=data)
        trainer = make_trainer(config, teachers=given)
        next(trainer.steps())
        losses.append(trainer.tally.collect(trainer.runtime, trainer.terms)["kd/kd"])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2) and losses[0] > 1e-4


def test_predictions_are_cut_and_flipped_with_their_image(tmp_path):
    """A label map stored as prediction is the label, wherever the crop lies."""
    data = ToyData(ToyData.Config(name="toy", images=5, void=False), "train")
    (tmp_path / "maps").mkdir()
    for index in range(5):
        sample = data.read(index)
        cv2.imwrite(str(tmp_path / "maps" / f"{sample.name}.png"), sample.label)
    teachers = box(predictions=tmp_path / "maps", stride=4)
    keys = {**DATA, "void": False, "crop": [24, 40], "workers": 1}
    config = toy_config(tmp_path / "x", teachers=teachers, methods={"kd": {}}, data=keys)
    trainer = make_trainer(config)
    for read in trainer._loader(0, 4, workers=1):
        batch = trainer._placed(read)
        outputs = trainer.parts.teachers(batch.images, batch)["main"]
        ids = batch.labels.clamp(0, 3)
        counts = F.one_hot(ids, 4).permute(0, 3, 1, 2).float() * batch.not_padding[:, None]
        mean = F.avg_pool2d(counts, 8)
        mean = mean / mean.sum(1, keepdim=True).clamp_min(1e-8)
        inside = F.avg_pool2d(batch.not_padding[:, None].float(), 8)[:, 0] > 0
        found = outputs.logits.exp().permute(0, 2, 3, 1)[inside]
        torch.testing.assert_close(found, mean.permute(0, 2, 3, 1)[inside], atol=1e-5, rtol=1e-4)


class Seen(Method):
    """Notes what it is given."""

    name = "toy_seen"
    kind = "toy"
    needs = Needs(student=("logits",), teacher=("logits",), accepts_log_prob=True)
    last = None

    def loss(self, student, teacher, batch, context):
        mask = context.mask_at(*student.logits.shape[2:])
        type(self).last = (mask, teacher, batch)
        value = (student.logits.square().mean(1) * mask).sum() / mask.sum().clamp(min=1)
        return {"seen": Term(value, mask.sum(dtype=torch.float64))}


def test_images_without_a_prediction_teach_nothing_but_keep_their_labels(tmp_path, stored):
    (stored / "train_2.npz").unlink()
    teachers = box(predictions=stored)
    config = toy_config(tmp_path / "run", teachers=teachers, methods={"kd": {}}, data=DATA)
    with pytest.raises(DataError, match=r"1 of 5 training .*: train_2\. .*black_box\.missing=skip"):
        train_run(config)
    registry.methods.add(Seen)
    teachers = box(predictions=stored, missing="skip")
    config = toy_config(tmp_path / "other", teachers=teachers, methods={"toy_seen": {}}, data=DATA)
    trainer = make_trainer(config)
    steps, met = trainer.steps(), set()
    for _ in range(4):
        next(steps)
        mask, teacher, batch = Seen.last
        gone = batch.index == 2
        met.update(gone.tolist())
        assert not mask[gone].any() and mask[~gone].flatten(1).any(1).all()
        assert teacher.known is None or not teacher.known[gone].any()
        assert (batch.labels is not None and (batch.labels[gone] != 255).any()) or not gone.any()
    assert met == {True, False}


def test_images_without_a_prediction_are_counted(tmp_path, stored):
    """Before the run in the set, after it in all steps: seven images, each once in seven."""
    keys = {"teachers": box(predictions=stored, missing="skip"), "methods": {"kd": {}}, "steps": 5}
    for left in (4, 2):
        for file in sorted(stored.iterdir())[left:]:
            file.unlink()
        data = {**DATA, "batch_size": 5}
        folder = tmp_path / str(left)
        summary = train_run(toy_config(folder, data=data, **keys))
        assert summary["without_teacher"] == {"main": 5 * (5 - left)}
        log = (folder / "log.txt").read_text()
        sign = "WARNING: " if left == 2 else ""
        told = f"teacher main: predictions of {left} of 5 training images; {5 - left} are left out"
        assert f" {sign}{told}, e.g. train_{left}\n" in log
        assert ("WARNING: teacher main: predictions" in log) == (left == 2)
        assert f"no prediction for {5 * (5 - left)} of the 25 images of all steps" in log
    for file in stored.iterdir():
        file.rename(file.with_stem(f"other_{file.stem}"))
    with pytest.raises(
        DataError, match=r"none of 5 training images .* holds 2, e\.g\. other_train_0"
    ):
        train_run(toy_config(tmp_path / "none", data=DATA, **keys))


def test_of_large_sets_without_files_some_images_are_looked_at(tmp_path, stored):
    data = {**DATA, "images": 100}
    keys = {"teachers": box(predictions=stored, missing="skip"), "methods": {"kd": {}}}
    parts = assemble(toy_config(tmp_path / "x", data=data, **keys), Runtime.single())
    assert "predictions of 2 of 32 of the 100 training images, which were looked" in parts.notes[0]


def test_methods_see_the_tail_as_the_student_spreads_it(tmp_path, stored):
    network, data = teacher_net(), ToyData(ToyData.Config(name="toy", images=5), "train")
    for index in range(5):
        sample = data.read(index)
        top = top_of(shares_of(sample.image, network), 1)
        write_prediction(stored / f"{sample.name}.npz", top)
    registry.methods.add(Seen)
    config = toy_config(
        tmp_path / "x", teachers=box(predictions=stored), methods={"toy_seen": {}}, data=DATA
    )
    trainer = make_trainer(config)
    next(trainer.steps())
    mask, teacher, batch = Seen.last
    assert teacher.tail is None
    plain = trainer.parts.teachers(batch.images, batch)["main"]
    assert plain.tail is not None and bool((plain.tail > 0).any())
    moved = (teacher.logits.exp() - plain.logits.exp()).abs().amax(1)[mask]
    assert moved.max() > 1e-3, "not evenly"
    single = ((plain.tail > 0).sum(1) == 3) & mask  # cells in which all pixels name one class
    named = (plain.tail == 0) & single[:, None]
    torch.testing.assert_close(teacher.logits.exp()[named], plain.logits.exp()[named])


def test_missing_files_are_told_before_the_run(tmp_path, work, call):
    (work / "frames").mkdir()
    (work / "stored").mkdir()
    draw = np.random.default_rng(1)
    for number in range(3):
        image = draw.integers(0, 256, (32, 48, 3), dtype=np.uint8)
        cv2.imwrite(f"frames/{number}.jpg", image)
        if number:
            cv2.imwrite(f"stored/{number}.png", image[..., 0] % 4)
    arguments = (
        *("run.yaml", "methods={kd: {}}", "data.unlabeled={root: frames, share: 1}"),
        *("task.weight=0", "teachers={t: {black_box: {predictions: stored}}}"),
    )
    code, text = call("train", *arguments)
    assert code == 2 and "1 of 3 training images have no prediction in stored: frames/0.jpg" in text
    assert "Traceback" not in text
    skip = "teachers.t.black_box.missing=skip"
    code, text = call("doctor", *arguments, skip)
    assert "black box of 4 classes, stored; 2 stored predictions in stored" in text
    code, text = call("train", *arguments, skip)
    assert code == 0, text


def test_methods_that_stored_predictions_cannot_serve(tmp_path, stored):
    class Mixing(Seen):
        name = "toy_mixing"
        needs = dataclasses.replace(Seen.needs, rewrites_batch=True)

    registry.methods.add(Mixing)
    teachers = box(predictions=stored)
    for methods, message in (
        ({"toy_mixing": {}}, r"methods\.toy_mixing makes new images in each step"),
        ({"fitnets": {"tap": "stage4"}}, "is a black box and has no features"),
        ({"cwd": {}}, "needs logits, but teacher 'main' is a black box"),
    ):
        config = toy_config(tmp_path / "x", teachers=teachers, methods=methods, data=DATA)
        with pytest.raises(ConfigError, match=message):
            assemble(config, Runtime.single())


ASKED = """
import json
import numpy as np
from pathlib import Path

def ask(images):
    with open({log!r}, "a") as file:
        file.write("." * len(images))
    values = np.exp(images.astype(np.float32).transpose(0, 3, 1, 2) / 50)
    values = np.concatenate([values, values.mean(1, keepdims=True)], 1)
    return values / values.sum(1, keepdims=True)
"""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    log = tmp_path / "asked.txt"
    (tmp_path / "asked_box.py").write_text(ASKED.format(log=str(log)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "asked_box", raising=False)
    return lambda: len(log.read_text()) if log.exists() else 0


def test_a_budget_ends_a_run_with_one_message_or_leaves_images_out(work, call, asked):
    keys = "{function: 'asked_box:ask', cache: kept, max_queries: 3}"
    arguments = ("run.yaml", "methods={kd: {}}", f"teachers={{t: {{black_box: {keys}}}}}")
    code, text = call("doctor", *arguments)
    assert code == 0, text
    assert "not queried here: 0 of 3 queries are spent" in text
    assert asked() == 0 and not Path("kept").exists()
    code, text = call("train", *arguments, "save_every=1")
    assert code == 2 and "max_queries=3 images have been queried" in text
    assert "Traceback" not in text and asked() == 3
    assert "WARNING: teacher t: 3 of 3 queries are left, kept holds 0 predictions" in text
    assert "up to 4 different images" in text and "possibly after 1 steps" in text
    skip = ("save_every=1", "teachers.t.black_box.missing=skip")
    code, text = call("train", *arguments, *skip)
    assert code == 0 and "resuming from step 1" in text, text
    assert asked() == 3, "nothing is queried twice, and no more than allowed"
    assert "teacher t: not evaluated, because an evaluation would spend its max_queries" in text
    code, text = call("doctor", *arguments, "out=runs/new")
    assert "3 of 3 queries are spent" in text
    assert "0 of 3 queries are left, kept holds 3 predictions" in text


def test_a_spent_budget_is_told_when_it_happens_and_counted(work, call, asked):
    """Six images in three steps, four queries: the third step has no teacher."""
    keys = "{function: 'asked_box:ask', cache: kept, max_queries: 4, missing: skip}"
    arguments = ("run.yaml", "methods={kd: {}}", f"teachers={{t: {{black_box: {keys}}}}}")
    more = ("steps=3", "save_every=1", "log.every=5")
    code, text = call("train", *arguments, *more)
    assert code == 0 and asked() == 4
    spent = "WARNING: teacher t: max_queries=4 are spent: from here on images that are not in kept"
    assert text.count(spent) == 1
    log = Path("runs/run/log.txt").read_text().splitlines()
    assert any("teacher t: 4 of 4 queries are left" in line for line in log)
    summary = json.loads(Path("runs/run/summary.json").read_text())
    assert summary["without_teacher"] == {"t": 2}
    assert "no prediction for 2 of the 6 images of all steps" in text


def test_no_query_is_spent_before_a_method_teaches(work, call, asked):
    """Of three steps with two images each the last one teaches; the first batch is tried before."""
    keys = "{function: 'asked_box:ask', cache: kept, max_queries: 4, missing: skip}"
    teachers = f"teachers={{t: {{black_box: {keys}}}}}"
    code, text = call("train", "run.yaml", "methods={kd: {start: 2}}", teachers, "steps=3")
    assert code == 0 and asked() <= 4, text
    assert "max_queries=4 are spent" not in text
    assert json.loads(Path("runs/run/summary.json").read_text())["without_teacher"] == {"t": 0}


@pytest.mark.parametrize("missing", ["error", "skip"])
def test_a_budget_of_nothing_is_refused_before_the_run(work, call, asked, missing):
    keys = f"{{function: 'asked_box:ask', cache: kept, max_queries: 0, missing: {missing}}}"
    arguments = ("run.yaml", "methods={kd: {}}", f"teachers={{t: {{black_box: {keys}}}}}")
    for command in ("train", "doctor"):
        code, text = call(command, *arguments)
        assert code == 2
        assert "teachers.t.black_box.max_queries=0 allows no query, and kept holds no" in text
        assert asked() == 0 and "Traceback" not in text


def test_a_box_that_says_nothing_is_told_before_the_first_step(work, call, tmp_path, monkeypatch):
    text = "import numpy as np\ndef ask(images):\n    return np.full(images.shape[:3], 255)\n"
    (tmp_path / "silent_box.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    teachers = "teachers={t: {black_box: {function: 'silent_box:ask', stride: 40}}}"
    code, text = call("train", "run.yaml", "methods={kd: {}}", teachers)
    told = "WARNING: teacher t: had no prediction for any position of the first batch"
    assert code == 0 and text.index(told) < text.index("step 1/2"), text
    assert "WARNING: teacher t: had no prediction for 4 of the 4 images" in text
    assert "WARNING: teacher t: stride 40 leaves a single row or column of predictions" in text


def test_errors_of_a_function_name_the_images(work, call, tmp_path, monkeypatch):
    (tmp_path / "bad_box.py").write_text("def ask(images):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    teachers = "teachers={t: {black_box: {function: 'bad_box:ask'}}}"
    code, text = call("train", "run.yaml", "methods={kd: {}}", teachers)
    assert code == 2 and "bad_box:ask returned None" in text and "Traceback" not in text
    assert text.count("Images: data/images/") == 1 and ".png, data/images/" in text
    cached = "teachers.t.black_box.cache=kept"
    code, text = call("train", "run.yaml", "methods={kd: {}}", teachers, cached)
    assert code == 2 and "Images: data/images/" in text
    code, text = call("query", "run.yaml", "data/images", teachers)
    assert code == 2 and text.endswith("Image: 0.png"), text


def test_the_doctor_examines_models_of_transformers(work, call):
    (work / "empty").mkdir()
    teachers = "teachers={t: {hf: empty}}"
    code, text = call("doctor", "run.yaml", "methods={kd: {}}", teachers, "--quick")
    assert code == 2 and "Traceback" not in text
    assert "error teacher t: hf: the folder empty has no config.json" in text
    assert "its weights are random" not in text


def test_teachers_that_no_method_uses(work, call, asked):
    box = "{black_box: {function: 'asked_box:ask'}}"
    two = ("run.yaml", f"teachers={{t: {box}, other: {box}}}", "methods={kd: {teacher: t}}")
    one = ("run.yaml", f"teachers={{t: {box}}}")
    for arguments, message in (
        (two, "teacher other: used by no method: it is scored only. Name it in one, methods."),
        (one, "teacher t: used by no method: it is scored only. Add a method, e.g. methods.kd={}"),
    ):
        code, text = call("doctor", *arguments)
        assert code == 0 and f"warning {message}" in text, text
    code, text = call("train", *two)
    assert code == 0 and f"WARNING: {'teacher other: used by no method'}" in text
    assert "teacher t: used" not in text
    both = ("methods={kd: {teacher: both}}", f"teachers={{t: {box}, both: {{ensemble: [t, t]}}}}")
    code, text = call("doctor", "run.yaml", *both, "--quick")
    assert "used by no method" not in text, "members of a teacher are used"


def test_a_function_without_a_cache(tmp_path, asked):
    keys = {"methods": {"kd": {}}, "teachers": {"t": {"black_box": {"function": "asked_box:ask"}}}}
    summary = train_run(toy_config(tmp_path / "one", data=DATA, **keys))
    assert asked() == 5 + 4 * 7, "the evaluation, the trial step, six steps"
    assert summary["teachers"]["t"]["flops"] is None and summary["teachers"]["t"]["score"] > 0


def test_a_resumed_run_asks_nothing_twice(tmp_path, asked):
    whole = {"function": "asked_box:ask", "cache": str(tmp_path / "a"), "top_k": 2}
    keys = {"methods": {"kd": {}}, "teachers": {"t": {"black_box": whole}}}
    keys["data"] = {**DATA, "batch_size": 2}
    train_run(toy_config(tmp_path / "one", **keys))
    spent = asked()
    train_run(toy_config(tmp_path / "two", **keys))
    first, second = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")
    )
    assert asked() == spent > 6 * 2
    assert first["miou"] == second["miou"]
    assert first["teachers"]["t"]["score"] == second["teachers"]["t"]["score"]


def test_class_names_of_the_folder_decide_the_order(tmp_path, stored):
    turned = CLASSES[::-1]
    rows = [{"id": number, "name": name} for number, name in enumerate(turned)]
    (stored / "classes.json").write_text(json.dumps(rows))
    teachers = box(predictions=stored, stride=8)
    data = {**DATA, "crop": [32, 48], "scale": [1, 1], "flip": 0}
    config = toy_config(tmp_path / "x", teachers=teachers, methods={"kd": {}}, data=data)
    trainer = make_trainer(config)
    batch = next(iter(trainer._loader(0, 1, workers=0)))
    found = trainer.parts.teachers(batch.images, batch)["main"].logits.exp()
    with torch.no_grad():
        plain = teacher_net().eval()(batch.images).logits.softmax(1)
    torch.testing.assert_close(found, plain.flip(1), atol=2e-3, rtol=1e-2)


@pytest.mark.slow
def test_one_and_two_processes_have_the_same_losses(tmp_path, stored):
    """Also with images that are left out, so that the processes count unequal numbers of them."""
    (stored / "train_2.npz").unlink()
    box = f"teachers={{main: {{black_box: {{predictions: {stored}, missing: skip}}}}}}"
    keys = ("methods={kd: {}}", "data.images=5", "student.options.norm=false", box)
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        ended = train(folder, *keys, processes=processes)
        assert ended.code == 0, ended.text
        with open(folder / "runs/run/metrics.csv") as file:
            found.append([float(row["kd/kd"]) for row in csv.DictReader(file) if row["kd/kd"]])
    assert len(found[0]) == 3 and found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_prediction_is_not_taken_for_two_images_of_one_name(work, call):
    """Of the labelled folder and of another drive, say, whose frames have the same numbers."""
    for name in ("a", "b"):
        (work / name).mkdir()
        cv2.imwrite(f"{name}/1.jpg", np.zeros((32, 48, 3), np.uint8))
    (work / "both").mkdir()
    for name in ("a", "b"):
        (work / "both" / name).symlink_to(work / name)
    (work / "stored").mkdir()
    cv2.imwrite("stored/1.png", np.zeros((32, 48), np.uint8))
    arguments = (
        *("run.yaml", "methods={kd: {}}", "task.weight=0"),
        *("teachers={t: {black_box: {predictions: stored}}}", "steps=1"),
    )
    code, text = call("train", *arguments, "data.unlabeled={root: both, share: 1}")
    assert code == 2 and "stored/1.png would be the prediction of both/a/1.jpg and of" in text
    code, text = call("train", *arguments, "data.unlabeled={root: a, share: 1}")
    assert code == 0, text
