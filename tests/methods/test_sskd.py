import dataclasses
import itertools
import math

import pytest
import torch
from resuming import make_trainer, same, states, stop_after
from toy_run import teacher_net, toy_config

from segkd.engine.introduction import components
from segkd.engine.pseudo_labels import batch_for
from segkd.engine.run import train_run
from segkd.errors import ConfigError, Interrupted
from segkd.methods.base import Context
from segkd.methods.shared.views import VIEW, aligned, of_images, with_views
from segkd.methods.sskd import SSKD, SSKDConfig, similarities, sskd_loss
from segkd.ops.error_levels import error_levels, kept_shares
from segkd.structures import Batch
from segkd.testing.cases import make_case

F64 = torch.float64


def softmax(values, temperature):
    exp = [math.exp(value / temperature) for value in values]
    return [e / sum(exp) for e in exp]


def divergence(z_t, z_s, temperature):
    p_t, p_s = softmax(z_t, temperature), softmax(z_s, temperature)
    return temperature**2 * sum(t * math.log(t / s) for t, s in zip(p_t, p_s, strict=True))


def rank_of(values, right):
    return sorted(range(len(values)), key=lambda j: -values[j]).index(right)


def reference(student, teacher, keep, temperature):
    """The public code: cosines row by row, ranks by a stable sort, a cut, and a mean."""
    cosine = torch.nn.functional.cosine_similarity
    views, nodes = student.shape[0] - 1, student.shape[1]
    rows = []
    for v in range(1, views + 1):
        for i in range(nodes):
            own, target = (
                [cosine(z[v, i], z[0, j], dim=0).item() for j in range(nodes)]
                for z in (student, teacher)
            )
            rows.append((rank_of(target, i), divergence(target, own, temperature)))
    wrong = sum(rank > 0 for rank, _ in rows)
    kept = sorted(rows, key=lambda row: row[0])[: len(rows) - wrong + int(wrong * keep)]
    return sum(value for _, value in kept) / len(kept), wrong


def nodes(seed, views=2, count=7, noise=1.5):
    """Embeddings of both networks; views are like their images, to some degree."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for width in (3, 4):
        images = torch.randn(1, count, width, generator=draw, dtype=F64)
        others = images + noise * torch.randn(views, count, width, generator=draw, dtype=F64)
        found.append(torch.cat([images, others]))
    return found


# -- similarity ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_similarity_equals_the_public_code(keep):
    student, teacher = nodes(1)
    expected, wrong = reference(student, teacher, keep, 0.5)
    assert wrong > 3
    value = sskd_loss(student, teacher, keep=keep)
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_similarity_equals_the_public_code_where_no_rank_is_cut():
    """A cut between two ranks, found for these nodes, leaves nothing to share."""
    student, teacher = nodes(1)
    levels = error_levels(similarities(teacher)).tolist()
    wrong = sorted(level for level in levels if level)
    cut = next(i for i in range(1, len(wrong)) if wrong[i - 1] < wrong[i])
    keep = cut / len(wrong)
    expected, _ = reference(student, teacher, keep + 1e-9, 0.5)
    assert sskd_loss(student, teacher, keep=keep).item() == pytest.approx(expected, rel=1e-9)


def test_gradient_is_right_and_the_teacher_has_none():
    student, teacher = nodes(2)
    student.requires_grad_()
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: sskd_loss(z, teacher), student)
    sskd_loss(student, teacher).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_twice_the_same_nodes_are_no_mistake():
    """A sort would put the copy of the right node above it in half of the rows."""
    student, teacher = nodes(3)
    twice = [torch.cat([z, z], dim=1) for z in (student, teacher)]
    levels = error_levels(similarities(teacher))
    doubled = error_levels(similarities(twice[1]))
    assert doubled.view(2, 2, -1)[:, 0].flatten().tolist() == (2 * levels).tolist()
    torch.testing.assert_close(sskd_loss(*twice), sskd_loss(student, teacher))


def test_shares_are_the_mean_over_all_orders_of_equal_ranks():
    errors = torch.tensor([0, 2, 1, 2, 0, 2, 1])
    wrong = [i for i, level in enumerate(errors.tolist()) if level]
    for number in range(len(wrong) + 1):
        expected = torch.tensor([0.0 if level else 1.0 for level in errors.tolist()], dtype=F64)
        orders = list(itertools.permutations(wrong))
        for order in orders:
            for i in sorted(order, key=lambda i: errors[i])[:number]:  # stable
                expected[i] += 1 / len(orders)
        found = kept_shares(errors, number / len(wrong), levels=3)
        torch.testing.assert_close(found, expected)


def test_without_nodes_there_is_a_zero_with_a_graph():
    empty = torch.zeros(2, 0, 3, requires_grad=True)
    value = sskd_loss(empty, torch.zeros(2, 0, 4))
    value.backward()
    assert value == 0 and empty.grad.shape == (2, 0, 3)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected \(1 \+ V, M, D_s\)"):
        sskd_loss(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4))


def test_converted_weights_act_as_the_public_code():
    """Its factors are the default weights of the terms, each of a mean (batchmean)."""
    assert SSKD.conversions.keys() == {"SSKD"} and SSKD.conversions["SSKD"].at() == 1
    assert SSKD.paper_weight == 1
    assert SSKD.default_weights == {"kd": 0.9, "views": 2.7, "similarity": 10.0}
    config = SSKD.Config()
    assert (config.temperature, config.similarity_temperature) == (4, 0.5)
    assert (config.keep, config.keep_views) == (0.75, 1)
    student, teacher = nodes(4)
    own, target = similarities(student) / 0.5, similarities(teacher) / 0.5
    theirs = torch.nn.functional.kl_div(
        own.log_softmax(1), target.softmax(1), reduction="batchmean"
    )
    torch.testing.assert_close(sskd_loss(student, teacher, keep=1.0), theirs * 0.5**2)


# -- views -----------------------------------------------------------------------------------------


def batch_of(size, **changes):
    draw = torch.Generator().manual_seed(5)
    images = torch.randint(256, (3, 3, *size), generator=draw, dtype=torch.uint8)
    labels = torch.randint(4, (3, *size), generator=draw)
    labels[0, 0] = 255
    inside = torch.ones(3, *size, dtype=torch.bool)
    inside[1, :, 0] = False
    exist = torch.ones(3, 2)
    keys = {"extra": {"exist": exist}, **changes}
    return Batch(images, labels, inside, torch.tensor([4, 5, 6]), **keys)


def context_of(batch, mask="valid"):
    each = [torch.Generator().manual_seed(i) for i in batch.index.tolist()]
    return Context(batch, mask=mask, image_generators=each)


@pytest.mark.parametrize(
    ("kind", "size", "views"), [("mirrored", (4, 6), 1), ("rotated", (4, 4), 3)]
)
def test_maps_of_views_are_turned_back_onto_their_images(kind, size, views):
    batch = batch_of(size)
    keys = SSKDConfig(views=kind, color=0.0)
    both = with_views(batch, keys, context_of(batch))
    assert both.index.tolist() == [i for i in (4, 5, 6) for _ in range(1 + views)]
    assert both.extra[VIEW].tolist() == 3 * list(range(1 + views))
    for maps, expected in ((both.images, batch.images), (both.not_padding[:, None], None)):
        parts = aligned(maps, kind)
        assert len(parts) == 1 + views and len(parts[0]) == 3
        expected = batch.valid[:, None] if expected is None else expected
        assert all(torch.equal(part, expected) for part in parts[1:])
    assert torch.equal(both.images[1], both.images[0].flip(-1)) == (kind == "mirrored")
    assert not torch.equal(both.images[1], both.images[0])
    again = of_images(context_of(both), kind).batch
    assert torch.equal(again.images, batch.images) and torch.equal(again.labels, batch.labels)
    assert torch.equal(again.valid, batch.valid)


def test_images_stay_where_their_views_are_left_out_for_want_of_labels():
    """`pseudo_labels: null` makes images without labels padding, and views are such images."""
    batch = batch_of((4, 6))
    both = with_views(batch, SSKDConfig(), context_of(batch))
    seen = batch_for(SSKD(SSKDConfig(pseudo_labels=None)), both, None)
    assert not seen.valid[1::2].any()
    assert torch.equal(of_images(context_of(seen), "mirrored").batch.valid, batch.valid)


def test_views_are_images_without_labels():
    batch = batch_of((4, 6))
    both = with_views(batch, SSKDConfig(), context_of(batch))
    assert both.labelled.tolist() == [True, False] * 3
    assert (both.labels[1::2] == 255).all() and torch.equal(both.labels[::2], batch.labels)
    assert torch.equal(both.valid[1::2], batch.valid.flip(-1))  # void and padding stay hidden
    assert both.extra["exist"][1::2].isnan().all()
    kept = with_views(batch, SSKDConfig(mask="not_padding"), context_of(batch, "not_padding"))
    assert torch.equal(kept.not_padding[1::2], batch.not_padding.flip(-1))
    bare = batch.replace(labels=None)
    assert with_views(bare, SSKDConfig(), context_of(bare)).labels is None
    part = batch.replace(labelled=torch.tensor([True, False, True]))
    found = with_views(part, SSKDConfig(), context_of(part)).labelled
    assert found.tolist() == [True, False, False, False, True, False]


def test_views_are_recoloured_by_their_own_image():
    batch = batch_of((4, 6))
    both = with_views(batch, SSKDConfig(), context_of(batch))
    assert not torch.equal(both.images[1::2], batch.images.flip(-1))
    last = batch.replace(**{k: getattr(batch, k)[2:] for k in ("images", "labels", "not_padding")})
    last = last.replace(index=batch.index[2:], extra={})
    alone = with_views(last, SSKDConfig(), context_of(last))
    assert torch.equal(alone.images, both.images[4:])


def test_rotated_views_need_square_images():
    batch = batch_of((4, 6))
    with pytest.raises(ConfigError, match=r"4x6 pixels. Set data\.crop to a square"):
        with_views(batch, SSKDConfig(views="rotated"), context_of(batch))


# -- soft targets on images and views --------------------------------------------------------------


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_soft_targets_equal_the_equation(keep):
    """Pixel by pixel; of the wrong pixels of views the least wrong, shared among equals."""
    case = make_case(SSKD, dtype=F64, config=SSKDConfig(keep_views=keep), equal=True)
    terms, labels = case.terms(), Context(case.batch).labels_at(8, 12)
    valid = Context(case.batch).mask_at(8, 12)
    logits = case.student.logits.detach().tolist(), case.teacher.logits.detach().tolist()
    sums = {"kd": [], "views": []}
    for b, y, x in valid[::2].nonzero().tolist():
        for name, image, column in (("kd", 2 * b, x), ("views", 2 * b + 1, 11 - x)):
            z_s, z_t = ([row[y][column] for row in z[image]] for z in logits)
            error = sum(z > z_t[labels[2 * b, y, x]] for z in z_t)
            sums[name].append((error, divergence(z_t, z_s, 4.0)))
    found = {name: terms[name].value.item() for name in sums}
    values = [value for _, value in sums["kd"]]
    assert found["kd"] == pytest.approx(sum(values) / len(values), rel=1e-9)
    levels = [sum(error == level for error, _ in sums["views"]) for level in range(5)]
    left, shares = keep * sum(levels[1:]), [1.0]
    for count in levels[1:]:
        shares.append(min(1.0, left / count) if count else 0.0)
        left = max(0.0, left - count)
    weights = [shares[error] for error, _ in sums["views"]]
    total = sum(w * value for w, (_, value) in zip(weights, sums["views"], strict=True))
    assert found["views"] == pytest.approx(total / sum(weights), rel=1e-9)
    assert terms["views"].count.item() == pytest.approx(sum(weights))
    assert (keep == 1) == (sum(weights) == len(weights))


@pytest.mark.parametrize("kind", ["region", "image"])
def test_nodes_are_means_of_the_same_places(kind):
    """Embeddings of views that show exactly what their images show are those of the images."""
    case = make_case(SSKD, dtype=F64, config=SSKDConfig(nodes=kind), equal=True)
    for side in (case.student, case.teacher):
        head = side.features["head"].detach()
        head[1::2] = head[::2].flip(-1)
        side.features["head"] = head
    context = case.context(case.batch)
    own, target = case.method._embedded(case.student, case.teacher, context, learns=True)
    assert own.shape[:2] == (2, 4 if kind == "image" else own.shape[1])
    for embedded in (own, target):
        torch.testing.assert_close(embedded[1], embedded[0])


# -- phases ----------------------------------------------------------------------------------------


def head_of(trainer):
    state = trainer.methods["sskd"].state_dict()
    return {k: v.clone() for k, v in state.items() if k.startswith("teacher_head")}


def trainer_of(folder, **changes):
    return make_trainer(toy_config(folder / "run", **changes), teachers={"main": teacher_net()})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_teachers_head_learns_in_the_first_steps_and_is_frozen_after_them(tmp_path, accumulate):
    keys = {"method": "sskd", "head_steps": 3, "adapter_warmup": 0}
    trainer = trainer_of(
        tmp_path, steps=6, methods={"sskd": keys}, optim={"lr": 0.05, "accumulate": accumulate}
    )
    heads = [head_of(trainer)]
    for _ in trainer.steps():
        heads.append(head_of(trainer))
    moved = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in itertools.pairwise(heads)]
    assert moved == [True] * 3 + [False] * 3


def test_similarity_teaches_the_student_only_after_the_phase():
    case = make_case(SSKD, dtype=F64)
    for preparing in (True, False):
        other = case.fresh()
        context = dataclasses.replace(other.context(other.batch), preparing=preparing)
        terms = other.method.loss(other.student, other.teacher, other.batch, context)
        terms["similarity"].value.backward()
        gradient = other.student.features["head"].grad
        assert (gradient is None) == preparing
        assert preparing or bool(gradient.any())
        assert all(p.grad is not None for p in other.method.student_head.parameters())


def test_a_run_says_whether_the_phase_is_over(tmp_path):
    """Without labels, `kd` and `views` the student learns nothing in it, but its head does."""
    keys = {"head_steps": 2, "start": 1, "adapter_warmup": 0, "weights": {"kd": 0, "views": 0}}
    still = {"arch": "toy", "options": {"norm": False}}
    adam = {"name": "adamw", "lr": 0.01, "weight_decay": 0.0}
    trainer = trainer_of(
        tmp_path, student=still, steps=5, methods={"sskd": keys}, task={"weight": 0}, optim=adam
    )
    method, seen = trainer.methods["sskd"], []
    for _ in itertools.chain([None], trainer.steps()):
        parts = trainer.student.encoder, method.student_head, method.teacher_head
        seen.append(
            [torch.cat([p.detach().flatten() for p in part.parameters()]) for part in parts]
        )
    moved = [
        [not a.equal(b) for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(seen)
    ]
    student, own_head, teachers_head = zip(*moved, strict=True)
    assert student == (False, False, False, True, True)
    assert own_head == (False, True, True, True, True)
    assert teachers_head == (False, True, True, False, False)


def test_before_its_start_nothing_is_added_and_no_head_learns(tmp_path):
    keys = {"head_steps": 2, "start": 2}
    trainer = trainer_of(tmp_path, steps=5, methods={"sskd": keys})
    heads = [head_of(trainer)]
    for _ in trainer.steps():
        heads.append(head_of(trainer))
    moved = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in itertools.pairwise(heads)]
    assert moved == [False, False, True, True, False]


def test_the_contrast_is_the_public_codes_cross_entropy():
    case = make_case(SSKD, dtype=F64)
    (term,) = case.inner_terms().values()
    context = case.context(case.batch)
    _, target = case.method._embedded(case.student, case.teacher, context, learns=False)
    cosine, values = torch.nn.functional.cosine_similarity, []
    for i in range(target.shape[1]):
        row = [cosine(target[1, i], other, dim=0).item() for other in target[0]]
        values.append(-math.log(softmax(row, 1.0)[i]))
    assert term.value.item() == pytest.approx(sum(values) / len(values), rel=1e-9)
    assert term.count is None


def test_a_run_resumed_inside_the_phase_equals_the_uninterrupted_one(tmp_path, monkeypatch):
    keys = {"steps": 8, "save_every": 2, "methods": {"sskd": {"head_steps": 6}}}
    train_run(toy_config(tmp_path / "whole", **keys), teachers={"main": teacher_net()})
    stop_after(monkeypatch, 3)
    with pytest.raises(Interrupted):
        train_run(toy_config(tmp_path / "parts", **keys), teachers={"main": teacher_net()})
    monkeypatch.undo()
    train_run(toy_config(tmp_path / "parts", **keys), teachers={"main": teacher_net()})
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))


def test_a_later_run_takes_over_the_head_and_does_not_train_it_again(tmp_path):
    keys = {"steps": 3, "methods": {"sskd": {"head_steps": 2}}}
    train_run(toy_config(tmp_path / "first", **keys), teachers={"main": teacher_net()})
    keys["methods"] = {"sskd": {"head_steps": 0}}
    trainer = trainer_of(tmp_path, init_from=str(tmp_path / "first"), **keys)
    before = head_of(trainer)
    for _ in trainer.steps():
        pass
    after, first = head_of(trainer), states(tmp_path / "first")["objective"]
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(torch.equal(before[k], first[f"methods.sskd.{k}"]) for k in before)


def test_the_task_loss_counts_the_pixels_of_images_alone(tmp_path):
    counts = []
    for methods in ({"kd": {}}, {"sskd": {}}):
        trainer = trainer_of(tmp_path, steps=1, methods=methods)
        right = trainer.objective.task.forward

        def noted(outputs, batch, right=right):
            terms = right(outputs, batch)
            counts.append((len(batch), terms["cross_entropy"].count.item()))
            return terms

        trainer.objective.task.forward = noted
        list(trainer.steps())
    (images, pixels), (views, same_pixels) = counts
    assert views == 2 * images and same_pixels == pixels


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (
            2,
            "methods.sskd: its own layers learn for 2 steps; the terms that need them teach from "
            "step 3 on",
        ),
        (
            7,
            "WARNING: methods.sskd: its own layers learn for 7 steps, until step 8, and the run "
            "has 8 steps: the terms that need them never teach",
        ),
        (0, "WARNING: methods.sskd: its own layers learn for 0 steps, so it teaches with random"),
    ],
)
def test_the_log_tells_of_the_first_phase(tmp_path, steps, expected):
    trainer = trainer_of(tmp_path, steps=8, methods={"sskd": {"head_steps": steps, "start": 1}})
    (line,) = (x for x in components(trainer.config, trainer) if "own layers" in x)
    assert line.startswith(expected)
