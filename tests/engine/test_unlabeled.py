"""Images without labels in training: task losses ignore them, methods learn from them."""

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import all_methods
from resuming import make_trainer, same, states, stop_after
from toy_run import CLASSES, ToyData, teacher_net, toy_config
from toys import ToyCritic

from segkd import registry
from segkd.engine.pseudo_labels import batch_for, confident_labels, takes_pseudo_labels
from segkd.engine.run import train_run
from segkd.engine.unlabeled import _about_method
from segkd.errors import ConfigError, DataError, Interrupted
from segkd.methods.base import Needs
from segkd.methods.dkd import DKD
from segkd.methods.kd import kd_loss
from segkd.methods.tf_kd import TfKD
from segkd.structures import Batch, Outputs
from segkd.testing.cases import make_case

NO_NORM = {"arch": "toy", "options": {"norm": False}}


@pytest.fixture
def folder(tmp_path):
    """Five images of the toy world, without labels."""
    root = tmp_path / "frames"
    root.mkdir()
    world = ToyData(toy_config(tmp_path, data=data(images=9)).data, "val")
    for number in range(5):
        image = world.read(number).image[..., ::-1]
        cv2.imwrite(str(root / f"frame{number + 7}.png"), image)
    return root


def data(**changes):
    plain = {"name": "toy", "batch_size": 4, "workers": 0, "crop": [32, 48], "images": 6}
    return plain | changes


def seen_batches(trainer):
    """The batches of one step, as its losses see them."""
    found, terms = [], trainer.objective.terms

    def note(student, teachers, batch, *args, **keys):
        weighted = terms(student, teachers, batch, *args, **keys)
        values = {one.name: (one.term.value.item(), one.term.count.item()) for one in weighted}
        found.append((student.detach(), teachers, batch, values))
        return weighted

    trainer.objective.terms = note
    next(trainer.steps())
    return found


def test_the_task_sees_labelled_images_and_methods_see_all(tmp_path, folder):
    config = toy_config(
        tmp_path / "run",
        student=NO_NORM,
        methods={"kd": {"temperature": 1.0}},
        data=data(unlabeled={"root": str(folder)}, scale=[0.5, 1.0]),
    )
    trainer = make_trainer(config, teachers={"main": teacher_net()})
    ((student, teachers, batch, values),) = seen_batches(trainer)
    assert batch.labelled.tolist() == [True, False, True, False]
    assert (batch.index < 6).tolist() == batch.labelled.tolist() and batch.index.max() < 11
    assert not batch.not_padding.all() and (batch.labels[batch.labelled] == 255).any()
    own, labels = student.logits[batch.labelled], batch.labels[batch.labelled]
    full = F.interpolate(own, labels.shape[1:], mode="bilinear")
    expected = F.cross_entropy(full, labels, ignore_index=255)
    pixels = int((labels != 255).sum())
    assert values["task/cross_entropy"] == pytest.approx((expected.item(), pixels))
    valid = batch.not_padding & ((batch.labels != 255) | ~batch.labelled[:, None, None])
    mask = valid[:, ::8, ::8]
    expected = kd_loss(student.logits, teachers["main"].logits, temperature=1.0, mask=mask)
    assert values["kd/kd"] == pytest.approx((expected.item(), int(mask.sum())))
    assert mask[~batch.labelled].sum() > 0


def test_inside_keeps_void_pixels_of_labelled_images_as_ever(tmp_path, folder):
    keys = {
        "methods": {"kd": {"mask": "not_padding"}},
        "data": data(unlabeled={"root": str(folder)}),
    }
    trainer = make_trainer(toy_config(tmp_path / "run", **keys), teachers={"main": teacher_net()})
    ((_, _, batch, values),) = seen_batches(trainer)
    assert values["kd/kd"][1] == batch.not_padding[:, ::8, ::8].sum()


# -- labels of the teacher -------------------------------------------------------------------------


def logits_of(probability):
    """(1, 3, 1, n): class 2 with this probability, the rest halved."""
    rest = (1 - probability) / 2
    return torch.stack([rest, rest, probability]).log()[None, :, None]


def test_confident_classes_become_labels():
    logits = logits_of(torch.tensor([0.89, 0.91, 0.9 + 1e-6, 0.05]))
    found = confident_labels(Outputs(logits), 0.9, (2, 8), 255)
    assert found.tolist() == [[[255, 255, 2, 2, 2, 2, 255, 255]] * 2]
    assert found.dtype == torch.int64


def pair():
    """A labelled image with a void pixel, an unlabelled one with a pixel of padding."""
    labels = torch.tensor([[[0, 1, 255, 1]], [[255] * 4]])
    inside = torch.tensor([[[True] * 4], [[True, True, True, False]]])
    images = torch.zeros(2, 3, 1, 4, dtype=torch.uint8)
    labelled = torch.tensor([True, False])
    return Batch(images, labels, inside, torch.arange(2), labelled=labelled)


def test_a_method_that_needs_labels_gets_the_teachers_confident_ones():
    teacher = Outputs(logits_of(torch.tensor([0.95, 0.5, 0.97, 0.99])).expand(2, -1, -1, -1))
    own = batch_for(DKD(), pair(), teacher)
    assert own.labels.tolist() == [[[0, 1, 255, 1]], [[2, 255, 2, 2]]]
    assert own.valid.tolist() == [[[True, True, False, True]], [[True, False, True, False]]]
    lower = batch_for(DKD(DKD.Config(pseudo_labels=0.4)), pair(), teacher)
    assert lower.valid[1].tolist() == [[True, True, True, False]]


@pytest.mark.parametrize(
    "method", [DKD(DKD.Config(pseudo_labels=None)), TfKD()], ids=["null", "no teacher"]
)
def test_without_them_unlabelled_images_count_as_padding(method):
    teacher = Outputs(logits_of(torch.tensor([0.95, 0.95, 0.95, 0.95])).expand(2, -1, -1, -1))
    own = batch_for(method, pair(), teacher)
    assert own.labels[1].tolist() == [[255] * 4] and not own.not_padding[1].any()
    assert own.not_padding[0].all() and own.valid[0].tolist() == [[True, True, False, True]]


@pytest.mark.parametrize("name", ["freekd", "maskd"])
def test_tokens_alone_need_labels_and_the_loss_sees_all_pixels(name):
    labels = torch.zeros(2, 4, 4, dtype=torch.int64)
    labels[1] = 255
    inside = torch.ones(2, 4, 4, dtype=torch.bool)
    batch = Batch(
        torch.zeros(2, 3, 4, 4),
        labels,
        inside,
        torch.arange(2),
        labelled=torch.tensor([True, False]),
    )
    unsure = Outputs(torch.zeros(2, 3, 4, 4))
    for threshold in (0.9, None):
        method = registry.methods.get(name)
        method = method(method.Config(pseudo_labels=threshold))
        assert batch_for(method, batch, unsure, inner=False).valid.all()
        assert not batch_for(method, batch, unsure).valid[1].any()


def test_valid_pixels_of_both_kinds():
    assert pair().valid.tolist() == [[[True, True, False, True]], [[True, True, True, False]]]


def test_dkd_equals_itself_on_a_batch_with_these_labels(tmp_path, folder):
    methods = {"dkd": {"pseudo_labels": 0.26}, "cs_kd": {}, "own": {"method": "dkd"}}
    keys = {"methods": methods, "data": data(unlabeled={"root": str(folder)})}
    trainer = make_trainer(toy_config(tmp_path / "run", **keys), teachers={"main": teacher_net()})
    ((_, teachers, batch, values),) = seen_batches(trainer)
    highest, classes = teachers["main"].logits.softmax(1).max(1)
    classes[highest < 0.26] = 255
    small = batch.labels[:, ::8, ::8].clone()
    small[~batch.labelled] = classes[~batch.labelled]
    valid = batch.not_padding[:, ::8, ::8] & (small != 255)
    assert values["dkd/target"][1] == valid.sum()
    assert 0 < valid[~batch.labelled].sum() < batch.not_padding[~batch.labelled][:, ::8, ::8].sum()
    share = valid[~batch.labelled].sum() / batch.not_padding[~batch.labelled][:, ::8, ::8].sum()
    assert trainer.confident["own"] == 0 and "cs_kd" not in trainer.confident
    assert trainer.confident["dkd"] == pytest.approx(share.item(), abs=0.1)
    known = valid & batch.labelled[:, None, None]
    assert values["cs_kd/cs_kd"][1] == known.sum()


def test_all_hooks_of_a_method_see_the_same_labels(tmp_path, folder, monkeypatch):
    seen = {}

    def noted(hook):
        original = getattr(ToyCritic, hook)

        def note(self, student, teacher, batch, context):
            assert context.batch is batch
            seen[hook] = batch
            return original(self, student, teacher, batch, context)

        monkeypatch.setattr(ToyCritic, hook, note)

    for hook in ("loss", "inner_loss", "after_step"):
        noted(hook)
    needs = Needs(student=("logits",), teacher=("logits",), labels=True)
    monkeypatch.setattr(ToyCritic, "needs", needs)
    keys = {"methods": {"toy_critic": {"pseudo_labels": 0.26}}}
    keys["data"] = data(unlabeled={"root": str(folder)})
    trainer = make_trainer(toy_config(tmp_path / "run", **keys), teachers={"main": teacher_net()})
    next(trainer.steps())
    assert seen.keys() == {"loss", "inner_loss", "after_step"}
    for batch in seen.values():
        assert batch.labelled is None and batch.labels.equal(seen["loss"].labels)
        assert (batch.labels[1::2] != 255).any()


# -- every method ----------------------------------------------------------------------------------


def half_labelled(method_class):
    """The contract's case with every second image without labels, as the engine hands it over."""
    case = make_case(method_class, dtype=torch.float64)
    labelled = torch.arange(len(case.batch)) % 2 == 0
    labels = case.batch.labels.masked_fill(~labelled[:, None, None], 255)
    exist = case.batch.extra["exist"].masked_fill(~labelled[:, None], torch.nan)
    extra = {**case.batch.extra, "exist": exist}
    bare = case.batch.replace(labels=labels, labelled=labelled, extra=extra)
    threshold = case.method.config.model_copy(update={"pseudo_labels": 0.3})
    case.method.config = threshold
    return replace(case, batch=batch_for(case.method, bare, case.teacher))


@pytest.mark.parametrize("method_class", all_methods().values(), ids=all_methods())
def test_every_method_learns_from_unlabelled_images_or_leaves_them_out(method_class):
    case = half_labelled(method_class)
    terms = case.terms()
    assert all(term.value.isfinite() for term in terms.values())
    sum(term.value for term in terms.values()).backward()
    gradients = [leaf.grad for leaf in case.leaves().values() if leaf.grad is not None]
    moved = sum(gradient[1::2].abs().sum() for gradient in gradients)
    assert all(gradient.isfinite().all() for gradient in gradients)
    learns = not case.method.needs.labels or takes_pseudo_labels(case.method)
    assert bool(moved > 0) == learns


# -- runs ------------------------------------------------------------------------------------------


METHODS = {"kd": {}, "dkd": {"pseudo_labels": 0.26}, "toy_bank": {}, "toy_self": {}}


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, folder, monkeypatch):
    keys = {
        "steps": 8,
        "save_every": 4,
        "methods": METHODS,
        "data": data(unlabeled={"root": str(folder), "share": 0.25}, workers=2, batch_size=8),
        "optim": {"lr": 0.05, "accumulate": 2},
    }
    train_run(toy_config(tmp_path / "whole", **keys), teachers={"main": teacher_net()})
    parts = toy_config(tmp_path / "parts", **keys)
    stop_after(monkeypatch, 5)
    with pytest.raises(Interrupted):
        train_run(parts, teachers={"main": teacher_net()})
    monkeypatch.undo()
    train_run(parts, teachers={"main": teacher_net()})
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))


def test_the_log_says_what_there_is_and_who_uses_it(tmp_path, folder):
    block = {"root": str(folder), "share": 0.25}
    config = toy_config(tmp_path / "run", methods=METHODS, data=data(unlabeled=block))
    train_run(config, teachers={"main": teacher_net()})
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "6 labelled and 5 unlabelled images" in log
    assert "each step has 3 images of the training split and 1 of the unlabelled set" in log
    assert log.count("methods.dkd: pseudo labels of unlabelled images are the teacher's") == 1
    assert re.search(r"probability of 0\.26 or more \(\d+ % of the pixels in the first", log)
    assert "WARNING: methods.dkd" not in log
    assert log.count("methods.toy_self: needs labels, so it skips unlabelled images") == 1
    assert "methods.kd: " not in log


def test_a_teacher_that_is_never_sure_is_a_warning(tmp_path, folder):
    config = toy_config(
        tmp_path / "run", methods={"dkd": {}}, data=data(unlabeled={"root": str(folder)}), steps=1
    )
    train_run(config, teachers={"main": teacher_net()})
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "0.9 or more (0 % of the pixels in the first batch)" in log
    assert "WARNING: methods.dkd hardly uses the unlabelled images" in log


@pytest.mark.parametrize("name", ["freekd", "maskd"])
def test_tokens_without_labels_are_no_reason_to_warn(name):
    method = registry.methods.get(name)
    (told,) = _about_method("m", method(method.Config(pseudo_labels=0.9)), share=0.0)
    assert told.endswith("in the first batch); the student learns from all of their pixels")
    (told,) = _about_method("m", method(method.Config(pseudo_labels=None)), share=None)
    assert told == "methods.m: its own layers need labels, so they skip unlabelled images"


def test_a_run_without_methods_warns(tmp_path, folder):
    train_run(toy_config(tmp_path / "run", data=data(unlabeled={"root": str(folder)})))
    assert (
        "WARNING: no method uses the unlabelled images"
        in (tmp_path / "run" / "log.txt").read_text()
    )


@pytest.mark.parametrize(
    "changes",
    [{"labels": "none"}, {"unlabeled": {"root": "frames", "share": 1}}],
    ids=["none", "share 1"],
)
def test_runs_without_any_label_are_scored_on_labels(tmp_path, folder, monkeypatch, changes):
    monkeypatch.chdir(tmp_path)
    methods = {"kd": {}, "dkd": {"pseudo_labels": 0.26}}
    keys = {"task": {"weight": 0}, "methods": methods, "data": data(**changes)}
    teachers = {"main": teacher_net()}
    summary = train_run(toy_config(tmp_path / "run", **keys), teachers=teachers)
    assert 0 <= summary["miou"] <= 1 and summary["images"] == 6
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "0 labelled and" in log
    keys["methods"] = {"toy_self": {}}
    with pytest.raises(ConfigError, match=r"methods\.toy_self: needs labels.*remove this entry"):
        make_trainer(toy_config(tmp_path / "bare", **keys), teachers=teachers)
    keys["methods"] = {"dkd": {"pseudo_labels": None}}
    with pytest.raises(ConfigError, match=r"set methods\.dkd\.pseudo_labels=0\.9"):
        make_trainer(toy_config(tmp_path / "bare", **keys), teachers=teachers)
    keys["task"] = {"weight": 1}
    with pytest.raises(ConfigError, match=r"the training images have none. Set task\.weight=0"):
        make_trainer(toy_config(tmp_path / "bare", **keys), teachers=teachers)


def test_a_batch_without_any_label_is_no_error(tmp_path, monkeypatch):
    original = ToyData.read

    def one_label(self, index):
        sample = original(self, index)
        if index != 4 and self.split != "val":
            sample.label = None
        return sample

    monkeypatch.setattr(ToyData, "read", one_label)
    keys = {"data": data(batch_size=2), "methods": {"kd": {}, "toy_self": {}}, "steps": 6}
    config = toy_config(tmp_path / "run", **keys)
    train_run(config, teachers={"main": teacher_net()})
    text = (tmp_path / "run" / "metrics.csv").read_text()
    assert "task/cross_entropy" in text.splitlines()[0]


@pytest.mark.parametrize(
    ("block", "changes", "message"),
    [
        ({"root": "nowhere"}, {}, "no such folder"),
        ({"root": "."}, {}, "no image in this folder"),
        ({}, {}, r"no images are named. Add `root: FOLDER`"),
        ({"split": "train"}, {"batch_size": 1}, "each micro-step needs one of both"),
        ({"split": "train", "share": 0.3}, {}, "1 unlabelled and 3 other"),
        ({"root": ".", "list": "names.txt"}, {}, "no image in this folder"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, monkeypatch, block, changes, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    keys = {"data": data(unlabeled=block, **changes), "optim": {"accumulate": 2}}
    if "batch_size" in changes:
        keys.pop("optim")
    with pytest.raises((ConfigError, DataError), match=message):
        make_trainer(toy_config(tmp_path / "run", **keys))


def test_classes_come_from_the_evaluation_split_where_no_label_is_read(tmp_path, folder):
    block = {"root": str(folder), "share": 1.0}
    keys = {"task": {"weight": 0}, "methods": {"kd": {}}, "data": data(unlabeled=block)}
    trainer = make_trainer(toy_config(tmp_path / "run", **keys), teachers={"main": teacher_net()})
    assert trainer.parts.train_set.classes == CLASSES and len(trainer.parts.train_set) == 5
    assert np.array_equal(trainer.parts.train_set.palette, ToyData.palette)
