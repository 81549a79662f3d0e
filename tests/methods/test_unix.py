import math
from dataclasses import replace

import pytest
import torch
from resuming import make_trainer, same, states, stop_after
from toy_run import ToyNet, teacher_net, toy_config

from segkd.config.schema import ModelConfig
from segkd.engine.run import train_run
from segkd.engine.timing import StepTimer
from segkd.errors import ConfigError, Interrupted
from segkd.methods.base import Context
from segkd.methods.unix import UNIX, UNIXConfig, mixing_shares, uncertainty, unix_loss
from segkd.runtime import Runtime
from segkd.structures import Batch, Outputs

F64 = torch.float64


def reference(student, teacher, mask, temperature):
    """The equation, pixel by pixel."""
    values = []
    for b, y, x in mask.nonzero().tolist():
        exp_s = [math.exp(z / temperature) for z in student[b, :, y, x].tolist()]
        exp_t = [math.exp(z / temperature) for z in teacher[b, :, y, x].tolist()]
        p_s, p_t = [e / sum(exp_s) for e in exp_s], [e / sum(exp_t) for e in exp_t]
        values.append(sum(t * math.log(t / s) for s, t in zip(p_s, p_t, strict=True)))
    return temperature**2 * sum(values) / len(values)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 2, 4, 3, 5, generator=draw, dtype=F64)
    mask = torch.rand(2, 3, 5, generator=draw) > 0.3
    return student.requires_grad_(), teacher, mask


def test_loss_equals_the_equation(maps):
    student, teacher, mask = maps
    value = unix_loss(student, teacher, mask=mask)
    assert value.item() == pytest.approx(reference(student.detach(), teacher, mask, 4.0), rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: unix_loss(z, teacher, mask=mask), student)


def public_code(student, teacher, temperature):
    """kl_div(log_softmax, softmax, reduction='batchmean') of (B, K) times T²."""
    rows = [z.movedim(1, -1).flatten(0, 2) / temperature for z in (student, teacher)]
    log_s, p_t = rows[0].log_softmax(1), rows[1].softmax(1)
    kind = torch.nn.functional.kl_div
    return kind(log_s, p_t, reduction="batchmean") * temperature**2


def test_converted_weight_acts_as_the_public_code(maps):
    student, teacher, _ = maps
    assert UNIX.conversions.keys() == {"UNIXKD"}
    ours = UNIX.conversions["UNIXKD"].at() * unix_loss(student, teacher)
    torch.testing.assert_close(ours, public_code(student, teacher, 4.0))
    config = UNIX.Config()
    assert (config.temperature, config.keep, config.center, config.steepness) == (
        4,
        48 / 64,
        0.5,
        10,
    )


# -- which images, and how much of the other one ---------------------------------------------------


def test_scores_are_means_over_valid_pixels(maps):
    logits, _, mask = maps
    for score in ("entropy", "confidence", "margin"):
        for image in range(2):
            values = []
            for y, x in mask[image].nonzero().tolist():
                exp = [math.exp(z) for z in logits[image, :, y, x].tolist()]
                p = sorted((e / sum(exp) for e in exp), reverse=True)
                values.append(
                    {
                        "entropy": -sum(q * math.log(q) for q in p),
                        "confidence": 1 - p[0],
                        "margin": p[1] - p[0],
                    }[score]
                )
            found = uncertainty(logits.detach(), mask, score)[image]
            assert found.item() == pytest.approx(sum(values) / len(values), rel=1e-12)


def test_entropy_of_a_certain_pixel_is_zero_and_empty_images_are_last():
    logits = torch.tensor([1e4, 0.0, -1e4]).view(1, 3, 1, 1).repeat(3, 1, 2, 2)
    logits[1] = 0  # uniform
    logits[0, :, 0, 0] = torch.nan
    mask = torch.ones(3, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = mask[2] = False
    for score, highest in (("entropy", math.log(3)), ("confidence", 2 / 3), ("margin", 0.0)):
        found = uncertainty(logits, mask, score).tolist()
        assert found == pytest.approx([-1 if score == "margin" else 0, highest, -math.inf])


@pytest.mark.parametrize(("images", "b", "w"), [(64, 32, 10.0), (4, 2, 10.0), (16, 4, 1000.0)])
def test_shares_equal_the_public_code(images, b, w):
    m = (2 * b - 1) / (2 * images)
    expected = [1 / (1 + math.exp(min(-w * (r / images - m), 700))) for r in range(images)]
    found = mixing_shares(images, steepness=w, center=b / images)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_four_images_have_three_shares_whatever_is_drawn():
    assert mixing_shares(4)[:3].tolist() == pytest.approx([0.023, 0.223, 0.777], abs=1e-3)


# -- prepare ---------------------------------------------------------------------------------------


def batch_of(images, *, size=(4, 6), labels=True, **changes):
    draw = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (images, 3, *size), generator=draw, dtype=torch.uint8)
    ids = torch.randint(3, (images, *size), generator=draw) if labels else None
    inside = torch.ones(images, *size, dtype=torch.bool)
    return replace(Batch(pixels, ids, inside, 10 + torch.arange(images)), **changes)


def context_of(batch, scores=None, step=0, mask="valid"):
    """The student is the surer of an image, the larger its number in ``scores``."""
    certainty = torch.arange(len(batch)) if scores is None else torch.tensor(scores)

    def forward(images):
        logits = torch.zeros(len(images), 3, 2, 3)
        logits[:, 0] = certainty[:, None, None]
        return Outputs(logits)

    return Context(
        batch,
        mask=mask,
        generator=torch.Generator().manual_seed(step),
        image_generators=[torch.Generator().manual_seed(i) for i in batch.index.tolist()],
        student_forward=forward,
    )


def draws(images, kept, step=0):
    """What ``prepare`` draws: the permutation and λ."""
    draw = torch.Generator().manual_seed(step)
    other = torch.randperm(images, generator=draw)[:kept].tolist()
    return other, torch.rand((), generator=draw, dtype=F64).item()


def test_images_are_mixed_as_in_the_equation():
    """The most uncertain images go on; the others come from the batch in its own order."""
    batch = batch_of(8)
    certainty = [5, 1, 7, 3, 0, 6, 2, 4]
    mixed = UNIX(UNIXConfig()).prepare(batch, context_of(batch, certainty))
    first = sorted(range(8), key=lambda i: certainty[i])[:6]
    second, largest = draws(8, 6)
    assert mixed.index.tolist() == [10 + i for i in first]
    for r, (i, j) in enumerate(zip(first, second, strict=True)):
        c = largest / (1 + math.exp(-10 * (r / 8 - 7 / 16)))
        expected = (1 - c) * batch.images[i].double() + c * batch.images[j].double()
        assert (mixed.images[r].double() - expected).abs().max() <= 0.5 + 1e-4
    assert mixed.images.dtype is torch.uint8
    assert mixed.not_padding.all() and mixed.labels.shape == (6, 4, 6)


def test_ties_rank_in_the_order_of_the_batch():
    batch = batch_of(8)
    mixed = UNIX(UNIXConfig(keep=0.5)).prepare(batch, context_of(batch, [0] * 8))
    assert mixed.index.tolist() == [10, 11, 12, 13]


def test_labels_are_drawn_with_the_probability_of_the_share():
    size = (60, 100)
    batch = batch_of(8, size=size)
    batch.labels[:] = torch.arange(8)[:, None, None]
    mixed = UNIX(UNIXConfig(keep=1.0)).prepare(batch, context_of(batch, step=3))
    second, largest = draws(8, 8, step=3)
    assert largest > 0.5
    for r, j in enumerate(second):
        c = largest / (1 + math.exp(-10 * (r / 8 - 7 / 16)))
        of_other = (mixed.labels[r] == j).double().mean().item()
        assert set(mixed.labels[r].unique().tolist()) <= {r, j}
        assert of_other == pytest.approx(1.0 if r == j else c, abs=4 * math.sqrt(c / 6000) + 1e-3)


def test_expected_task_loss_is_the_mixed_cross_entropy_of_the_public_code():
    size = (100, 100)
    batch = batch_of(8, size=size)
    batch.labels[:] = (torch.arange(8) % 3)[:, None, None]
    mixed = UNIX(UNIXConfig()).prepare(batch, context_of(batch, step=3))
    second, largest = draws(8, 6, step=3)
    logits = torch.randn(6, 3, 1, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    logits = logits.expand(6, 3, *size)
    ce = torch.nn.functional.cross_entropy
    for r, j in enumerate(second):
        c = largest / (1 + math.exp(-10 * (r / 8 - 7 / 16)))
        one, two = (ce(logits[[r]], batch.labels[[i]]) for i in (r, j))
        found = ce(logits[[r]], mixed.labels[[r]])
        assert found.item() == pytest.approx(((1 - c) * one + c * two).item(), abs=0.03)


def test_void_and_padding_are_not_mixed():
    """Where the other image is invalid an image stays as it is; its own void stays void."""
    batch = batch_of(8)
    batch.labels[:, 0] = 255  # each image: a void row, and padding at the right of every second
    batch.labels[::2, 1] = 255
    batch.not_padding[1::2, :, 5] = False
    mixed = UNIX(UNIXConfig()).prepare(batch, context_of(batch, step=3))
    second, _ = draws(8, 6, step=3)
    changed = False
    for r, j in enumerate(second):
        assert torch.equal(mixed.not_padding[r], batch.not_padding[r])
        assert torch.equal(mixed.valid[r], batch.valid[r])
        hidden = ~batch.valid[j]
        assert torch.equal(mixed.images[r][:, hidden], batch.images[r][:, hidden])
        assert torch.equal(mixed.labels[r][hidden], batch.labels[r][hidden])
        changed |= bool((mixed.images[r] != batch.images[r]).any())
    assert changed


def test_mask_not_padding_mixes_void_pixels():
    batch = batch_of(8)
    batch.labels[:, 0] = 255
    method = UNIX(UNIXConfig(mask="not_padding"))
    mixed = method.prepare(batch, context_of(batch, step=3, mask="not_padding"))
    second, _ = draws(8, 6, step=3)
    others = [r for r, j in enumerate(second) if r != j and r > 2]
    assert others and all((mixed.images[r, :, 0] != batch.images[r, :, 0]).any() for r in others)


def test_unlabelled_images_give_no_labels_and_keep_none():
    labelled = torch.arange(8) % 2 == 0
    batch = batch_of(8, labelled=labelled)
    batch.labels[~labelled] = 255
    mixed = UNIX(UNIXConfig(keep=1.0)).prepare(batch, context_of(batch, step=3))
    second, _ = draws(8, 8, step=3)
    assert torch.equal(mixed.labelled, labelled)
    for r, j in enumerate(second):
        if not labelled[r]:
            assert (mixed.labels[r] == 255).all() and mixed.valid[r].all()
        elif not labelled[j]:
            assert ((mixed.labels[r] == batch.labels[r]) | (mixed.labels[r] == 255)).all()


def test_without_labels_void_pixels_stay_hidden():
    batch = batch_of(8)
    batch.labels[:, 0] = 255
    mixed = UNIX(UNIXConfig(labels="none")).prepare(batch, context_of(batch))
    assert mixed.labels is None and mixed.labelled is None
    assert not mixed.valid[:, 0].any() and mixed.valid[:, 1:].all()
    bare = batch_of(8, labels=False)
    assert UNIX(UNIXConfig()).prepare(bare, context_of(bare)).labels is None


def test_lanes_exist_by_shares():
    exist = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(4, 1)
    exist[7] = torch.nan
    batch = batch_of(8, extra={"exist": exist, "lanes": torch.arange(8.0)[:, None]})
    mixed = UNIX(UNIXConfig(keep=1.0)).prepare(batch, context_of(batch, step=3))
    second, largest = draws(8, 8, step=3)
    for r, j in enumerate(second):
        c = largest / (1 + math.exp(-10 * (r / 8 - 7 / 16)))
        expected = (1 - c) * exist[r] + c * exist[j]
        torch.testing.assert_close(mixed.extra["exist"][r], expected, equal_nan=True)
    assert mixed.extra["lanes"].flatten().tolist() == list(range(8))


def test_random_scores_need_no_student_and_others_say_so():
    batch = batch_of(8)
    bare = replace(context_of(batch), student_forward=None)
    assert len(UNIX(UNIXConfig(score="random")).prepare(batch, bare)) == 6
    with pytest.raises(ConfigError, match=r"Give Context\.student_forward, or set score=random"):
        UNIX(UNIXConfig()).prepare(batch, bare)


def test_small_batches_are_warned_of():
    method = UNIX(UNIXConfig())
    assert method.notes(10, 8) == []
    (note,) = method.notes(10, 4)
    assert note.startswith("WARNING: 3 of the 4 images")
    assert "0.023, 0.22, 0.78" in note and "data.batch_size to 8 or more" in note


# -- in a run --------------------------------------------------------------------------------------


def test_scoring_leaves_batch_norms_alone(tmp_path, monkeypatch):
    """Each step updates their statistics once, on the mixed images."""
    seen = []
    right = UNIX.prepare

    def counted(self, batch, context):
        norm = next(m for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d))
        seen.append(norm.num_batches_tracked.item())
        mixed = right(self, batch, context)
        seen.append(norm.num_batches_tracked.item())
        return mixed

    student = ToyNet(ModelConfig(arch="toy"), 4)
    monkeypatch.setattr(UNIX, "prepare", counted)
    config = toy_config(tmp_path / "run", steps=3, methods={"unix": {}})
    train_run(config, student=student, teachers={"main": teacher_net()})
    assert seen == [0, 0, 0, 0, 1, 1, 2, 2]  # the dry step, and three steps


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch):
    keys = {"steps": 6, "save_every": 2, "methods": {"unix": {}}, "optim": {"accumulate": 2}}
    train_run(toy_config(tmp_path / "whole", **keys), teachers={"main": teacher_net()})
    stop_after(monkeypatch, 3)
    with pytest.raises(Interrupted):
        train_run(toy_config(tmp_path / "parts", **keys), teachers={"main": teacher_net()})
    monkeypatch.undo()
    train_run(toy_config(tmp_path / "parts", **keys), teachers={"main": teacher_net()})
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))


def test_the_seconds_of_a_method_include_its_scoring(tmp_path, monkeypatch):
    """Of the clock only its turns are counted: two parts of the step are the method's."""
    parts = []
    right = StepTimer._add
    monkeypatch.setattr(
        StepTimer, "_add", lambda self, name, t: (parts.append(name), right(self, name, t))
    )
    config = toy_config(tmp_path / "run", steps=1, methods={"unix": {}})
    train_run(config, teachers={"main": teacher_net()})
    assert parts.count("method/unix") == 2 and parts.index("method/unix") < parts.index("teacher")


def test_dropped_labels_are_refused_beside_a_task_loss(tmp_path):
    keys = {"steps": 2, "methods": {"unix": {"labels": "none"}}}
    with pytest.raises(ConfigError, match=r"methods.unix removes them. Set task.weight=0"):
        train_run(toy_config(tmp_path / "a", **keys), teachers={"main": teacher_net()})
    train_run(
        toy_config(tmp_path / "b", task={"weight": 0}, **keys), teachers={"main": teacher_net()}
    )


def test_images_are_ranked_by_the_statistics_of_the_first_process(tmp_path, monkeypatch):
    """A checkpoint shares them, and what is ranked must not depend on when one is saved."""
    trainer = make_trainer(
        toy_config(tmp_path / "run", methods={"unix": {}}), teachers={"main": teacher_net()}
    )
    batch = trainer._placed(next(iter(trainer._loader(0, 1, workers=0))))
    own = trainer.objective.student_forward(batch.images).logits
    shared = []
    monkeypatch.setattr(Runtime, "broadcast", lambda self, tensors: shared.extend(tensors))
    assert torch.equal(trainer.objective.student_forward(batch.images).logits, own)
    assert {id(one) for one in shared} == {id(one) for one in trainer.student.buffers()}
