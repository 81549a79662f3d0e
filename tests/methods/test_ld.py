import math

import pytest
import torch
import torch.nn.functional as F

from segkd.errors import ConfigError, DataError
from segkd.methods.base import Context
from segkd.methods.ld import LD, ld_loss
from segkd.ops.lane_rows import lane_rows
from segkd.structures import Batch, Outputs

B, K, H, W = 3, 4, 4, 6
L = K - 1


def odds_of(scores, lane):
    """log p / (1 - p) of one pixel's class, from its scores as a list."""
    others = [score for k, score in enumerate(scores) if k != lane]
    return scores[lane] - math.log(sum(math.exp(score) for score in others))


def softmax(values, temperature):
    peak = max(values)
    exps = [math.exp((value - peak) / temperature) for value in values]
    return [e / sum(exps) for e in exps]


def rows_of(student, teacher, gates, mask, threshold):
    """Gate, valid columns and both networks' log-odds of each row of each lane."""
    for b in range(student.shape[0]):
        for lane in range(1, student.shape[1]):
            for y in range(student.shape[2]):
                columns = [x for x in range(student.shape[3]) if mask[b, y, x]]
                own, target = (
                    [odds_of(z[b, :, y, x].tolist(), lane) for x in columns]
                    for z in (student, teacher)
                )
                seen = [1 / (1 + math.exp(-o)) > threshold for o in target]
                gate = float(gates[b, lane - 1, y]) if any(seen) else 0.0
                yield gate, columns, own, target


def reference(student, teacher, gates, mask, temperature=2.0, threshold=0.3):
    """Values of both terms and the summed gates, row by row."""
    divergence = distance = weight = 0.0
    for gate, columns, own, target in rows_of(student, teacher, gates, mask, threshold):
        if not gate:
            continue
        q_s, q_t = softmax(own, temperature), softmax(target, temperature)
        kl = sum(t * math.log(t / s) for s, t in zip(q_s, q_t, strict=True))
        places = [(x + 0.5) / student.shape[3] for x in columns]
        apart = abs(sum((s - t) * x for s, t, x in zip(q_s, q_t, places, strict=True)))
        smooth = apart**2 / (2 * 0.02) if apart < 0.02 else apart - 0.01
        divergence += gate * temperature**2 * kl
        distance += gate * smooth
        weight += gate
    return divergence / weight, distance / weight, weight


@pytest.fixture
def case():
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, B, K, H, W, generator=draw, dtype=torch.float64)
    mask = torch.rand(B, H, W, generator=draw) > 0.3
    mask[1, 2] = False
    exist = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 1]], dtype=torch.bool)
    return student.requires_grad_(), teacher, mask, exist


def by_row(exist):
    return exist.unsqueeze(2).expand(B, L, H)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 10.0])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.8])
def test_equals_the_equation(case, temperature, threshold):
    student, teacher, mask, exist = case
    options = {"temperature": temperature, "threshold": threshold}
    found = ld_loss(student, teacher, exist=exist, mask=mask, **options)
    expected, distance, weight = reference(
        student.detach(), teacher, by_row(exist), mask, **options
    )
    assert found.item() == pytest.approx(expected, rel=1e-9)
    rows = lane_rows(student, teacher, exist=exist, mask=mask, threshold=threshold)
    assert rows.distance(temperature).item() == pytest.approx(distance, rel=1e-9)
    assert rows.gate.sum().item() == weight
    assert threshold == 0 or 0 < weight < exist.sum() * H


def test_weights_of_lanes_and_of_single_rows(case):
    student, teacher, mask, _ = case
    draw = torch.Generator().manual_seed(1)
    gates = torch.rand(B, L, H, generator=draw, dtype=torch.float64)
    for exist in (gates, gates[:, :, 0]):
        whole = exist if exist.ndim == 3 else by_row(exist)
        found = ld_loss(student, teacher, exist=exist, mask=mask)
        expected = reference(student.detach(), teacher, whole, mask)[0]
        assert found.item() == pytest.approx(expected, rel=1e-9)


def test_gradient_is_right_and_none_goes_to_the_teacher(case):
    student, teacher, mask, exist = case
    teacher = teacher.requires_grad_()
    options = {"exist": exist, "mask": mask}
    assert torch.autograd.gradcheck(lambda a: ld_loss(a, teacher, **options), student)
    rows = {**options, "threshold": 0.3}
    assert torch.autograd.gradcheck(lambda a: lane_rows(a, teacher, **rows).distance(2.0), student)
    ld_loss(student, teacher, **options).backward()
    assert teacher.grad is None and student.grad.any()


def test_without_gates_all_lanes_and_positions_count(case):
    student, teacher, mask, exist = case
    everything = {"exist": torch.ones_like(exist), "mask": torch.ones_like(mask)}
    assert ld_loss(student, teacher) == ld_loss(student, teacher, **everything)


def test_only_the_position_within_a_row_matters():
    """Mass may move between rows, unlike in CWD: each row is a distribution of its own."""
    draw = torch.Generator().manual_seed(3)
    base = torch.randn(1, 2, H, W, generator=draw, dtype=torch.float64)
    row_wise = torch.randn(1, 1, H, 1, generator=draw, dtype=torch.float64)
    student = torch.cat([base[:, :1], base[:, 1:] + row_wise], 1)
    assert ld_loss(student, base, threshold=0.0).item() == pytest.approx(0, abs=1e-12)


def test_a_shift_of_all_logits_of_a_pixel_is_no_matter(case):
    """So log-probabilities teach exactly as logits do."""
    student, teacher, mask, exist = case
    expected = ld_loss(student, teacher, exist=exist, mask=mask)
    found = ld_loss(student.log_softmax(1), teacher.log_softmax(1), exist=exist, mask=mask)
    torch.testing.assert_close(found, expected)


def test_rows_that_the_teacher_does_not_see_teach_nothing():
    """Where the lane is, it is learned; where the teacher's map is flat and low, nothing is."""
    teacher = torch.zeros(1, 2, 2, W, dtype=torch.float64)
    teacher[:, 0] = 4.0
    teacher[0, 1, 0, 2] = 9.0
    draw = torch.Generator().manual_seed(0)
    student = torch.randn(1, 2, 2, W, generator=draw, dtype=torch.float64).requires_grad_()
    ld_loss(student, teacher).backward()
    assert student.grad[0, :, 0].any() and not student.grad[0, :, 1].any()


def test_the_larger_network_is_brought_to_the_smaller_size(case):
    student, teacher, mask, exist = case
    wide = teacher.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = ld_loss(student, teacher, exist=exist, mask=mask)
    torch.testing.assert_close(ld_loss(student, wide, exist=exist, mask=mask), expected)


@pytest.mark.parametrize("empty", ["exist", "mask", "threshold"])
def test_no_gated_row_gives_a_zero_with_a_graph(case, empty):
    student, teacher, mask, exist = case
    options = {"exist": exist, "mask": mask, "threshold": 0.3}
    options[empty] = 0.9999 if empty == "threshold" else torch.zeros_like(options[empty])
    rows = lane_rows(student, teacher, **options)
    for value in (ld_loss(student, teacher, **options), rows.distance(2.0)):
        student.grad = None
        value.backward()
        assert value == 0 and not student.grad.any()


def test_saturated_logits_are_finite(case):
    student, teacher, mask, exist = case
    student = (1e4 * student.detach().float()).requires_grad_()
    rows = lane_rows(student, 1e4 * teacher.float(), exist=exist, mask=mask, threshold=0.3)
    for value in (rows.divergence(2.0), rows.distance(2.0)):
        student.grad = None
        value.backward(retain_graph=True)
        assert value.isfinite() and student.grad.isfinite().all()


def test_shapes_that_do_not_fit_are_refused(case):
    student, teacher, mask, exist = case
    with pytest.raises(ValueError, match=r"exist has shape \(3, 2\), expected \(3, 3\)"):
        ld_loss(student, teacher, exist=exist[:, :2])
    with pytest.raises(ValueError, match="the mask has shape"):
        ld_loss(student, teacher, mask=mask[:, :2])


# -- against the public code -----------------------------------------------------------------------


def peer(student, teacher, temperature=10.0):
    """The edges of a box: KL of the bins times T², mean over bins, mean over edges."""
    pair = (a.flatten(0, -2) / temperature for a in (student, teacher))
    own, target = (a.log_softmax(1) for a in pair)
    return (F.kl_div(own, target.exp(), reduction="none").mean(1) * temperature**2).mean()


PEERS = {"HikariTJU/LD": peer}


def test_every_conversion_is_checked():
    assert PEERS.keys() == LD.conversions.keys()


@pytest.mark.parametrize("name", PEERS)
def test_converted_weight_acts_as_the_peers(case, name):
    """With two classes and a background of 0 the log-odds are the lane's logits themselves."""
    student, teacher = (torch.cat([torch.zeros_like(z[:, :1]), z[:, :1]], 1) for z in case[:2])
    theirs = 0.25 * PEERS[name](student[:, 1], teacher[:, 1])
    weight = LD.conversions[name].at(w=W)
    ours = weight * ld_loss(student, teacher, temperature=10.0, threshold=0.0)
    torch.testing.assert_close(ours, theirs)
    (mine,), (expected,) = (torch.autograd.grad(loss, case[0]) for loss in (ours, theirs))
    torch.testing.assert_close(mine, expected)


# -- the entry -------------------------------------------------------------------------------------


def make_batch(mask, exist=None, labels=None):
    extra = {} if exist is None else {"exist": exist.float()}
    return Batch(torch.zeros(B, 3, H, W), labels, mask, torch.arange(B), extra=extra)


def terms_of(case, batch, teacher_exist=None, **options):
    student, teacher, _, _ = case
    method = LD(LD.Config(**options))
    outputs = Outputs(student), Outputs(teacher, exist=teacher_exist)
    return method.loss(*outputs, batch, Context(batch))


def test_entry_gates_by_annotated_lanes_and_passes_its_options_on(case):
    student, teacher, mask, exist = case
    options = {"temperature": 3.0, "threshold": 0.5}
    terms = terms_of(case, make_batch(mask, exist), **options)
    expected, _, weight = reference(student.detach(), teacher, by_row(exist), mask, **options)
    assert list(terms) == ["ld"]
    assert terms["ld"].value.item() == pytest.approx(expected, rel=1e-9)
    assert terms["ld"].count.item() == weight and terms["ld"].count.dtype is torch.float64


def test_entry_adds_the_distance_of_positions_on_request(case):
    student, teacher, mask, exist = case
    terms = terms_of(case, make_batch(mask, exist), weights={"position": 5.0})
    expected = reference(student.detach(), teacher, by_row(exist), mask)
    assert terms["position"].value.item() == pytest.approx(expected[1], rel=1e-9)
    assert terms["position"].count == terms["ld"].count == expected[2]


def test_the_teachers_branch_stands_in_for_missing_annotation(case):
    _, _, mask, exist = case
    guess = torch.where(exist, 2.0, -2.0)
    found = terms_of(case, make_batch(mask), teacher_exist=guess)["ld"]
    expected = terms_of(case, make_batch(mask, exist))["ld"]
    assert found.value == expected.value and found.count == expected.count
    partly = exist.float()
    partly[1] = torch.nan
    extra = {"exist": partly}
    mixed = terms_of(case, make_batch(mask).replace(extra=extra), teacher_exist=guess)["ld"]
    assert mixed.value == expected.value
    annotated = terms_of(case, make_batch(mask, exist), teacher_exist=-guess)["ld"]
    assert annotated.value == expected.value


def test_horizontal_lanes_are_left_out(case):
    """Lane 1 is labelled in one column of row 0 and across row 1; only row 1 is left out."""
    student, teacher, mask, exist = case
    labels = torch.zeros(B, H, W, dtype=torch.int64)
    labels[:, 0, 2] = 1
    labels[:, 1, 1:5] = 1
    mask = torch.ones_like(mask)
    gates = by_row(exist).clone()
    gates[:, 0, 1] = False
    term = terms_of(case, make_batch(mask, exist, labels), max_width=0.5)["ld"]
    value, _, weight = reference(student.detach(), teacher, gates, mask)
    assert term.value.item() == pytest.approx(value, rel=1e-9) and term.count == weight
    wider = terms_of(case, make_batch(mask, exist, labels), max_width=0.7)["ld"]
    assert wider.count > term.count


def test_images_without_labels_are_gated_by_what_the_teacher_sees(case):
    student, teacher, mask, _ = case
    found = terms_of(case, make_batch(mask))["ld"]
    assert found.value == ld_loss(student, teacher, mask=mask)


def test_other_data_is_refused_with_the_way_out(case):
    with pytest.raises(DataError, match=r"lanes.*exist_head.*cwd"):
        terms_of(case, make_batch(case[2], labels=torch.zeros(B, H, W, dtype=torch.int64)))


def test_parity_is_the_softmax_of_logits_in_every_row():
    torch.manual_seed(3)
    student, teacher = torch.randn(2, 2, K, 3, W, dtype=torch.float64)
    teacher[:, 1:] -= 20  # no row would pass the gate
    values = []
    for b, lane, y in torch.cartesian_prod(*map(torch.arange, (2, L, 3))).tolist():
        q_s, q_t = (softmax(z[b, lane + 1, y].tolist(), 10.0) for z in (student, teacher))
        values.append(100 * sum(t * math.log(t / s) for s, t in zip(q_s, q_t, strict=True)))
    found = ld_loss(student, teacher, temperature=10.0, parity=True)
    assert found.item() == pytest.approx(sum(values) / len(values), rel=1e-6)
    assert not LD(LD.Config(parity=True)).needs.accepts_log_prob


ROWS = (0.3, 0.55, 0.8)
CELLS = 7


def anchored_reference(student, teacher, gates, keep, temperature=2.0, threshold=0.3):
    """ld and presence of a student of rows, from a map whose rows and columns are its own."""
    divergence = presence = weight = rows = 0.0
    for b in range(B):
        for lane in range(1, K):
            for r in range(len(ROWS)):
                columns = [c for c in range(CELLS) if keep[b, r, c]]
                if not columns:
                    continue
                own = [float(student[b, lane, r, c] - student[b, 0, r, c]) for c in columns]
                target = [odds_of(teacher[b, :, r, c].tolist(), lane) for c in columns]
                chance = max(1 / (1 + math.exp(-o)) for o in target)
                odds = sum(math.exp(o) for o in own)
                share = odds / (1 + odds)
                presence -= chance * math.log(share) + (1 - chance) * math.log(1 - share)
                rows += 1
                if chance > threshold and gates[b, lane - 1]:
                    q_s, q_t = softmax(own, temperature), softmax(target, temperature)
                    kl = sum(t * math.log(t / s) for s, t in zip(q_s, q_t, strict=True))
                    divergence += temperature**2 * kl
                    weight += 1
    return divergence / weight, presence / rows, weight, rows


def test_a_student_of_rows_learns_from_a_map():
    draw = torch.Generator().manual_seed(5)
    student = torch.randn(B, K, len(ROWS), CELLS, generator=draw, dtype=torch.float64)
    # Rows of a map of 20 rows at whole numbers: 0.3 · 20 − 0.5 = 5.5 is between 5 and 6.
    teacher = 2 * torch.randn(B, K, 20, CELLS, generator=draw, dtype=torch.float64)
    at_rows = torch.stack([(teacher[:, :, y] + teacher[:, :, y + 1]) / 2 for y in (5, 10, 15)], 2)
    not_padding = torch.ones(B, 40, 70, dtype=torch.bool)
    not_padding[0, :, 20:] = False
    not_padding[1, 30:] = False
    keep = not_padding[:, [12, 22, 32]][:, :, 5::10]
    exist = torch.tensor([[1.0, 0, 1], [1, 1, 1], [0, 0, 1]])
    labels = torch.zeros(B, 40, 70, dtype=torch.int64)
    batch = Batch(
        torch.zeros(B, 3, 40, 70), labels, not_padding, torch.arange(B), extra={"exist": exist}
    )
    outputs = Outputs(student.requires_grad_(), rows=ROWS)
    terms = LD().loss(outputs, Outputs(teacher), batch, Context(batch))
    kl, presence, weight, rows = anchored_reference(student.detach(), at_rows, exist, keep)
    assert float(terms["ld"].value) == pytest.approx(kl)
    assert float(terms["presence"].value) == pytest.approx(presence)
    assert (float(terms["ld"].count), float(terms["presence"].count)) == (weight, rows)
    sum(term.value for term in terms.values()).backward()
    assert student.grad.isfinite().all() and student.grad[0, :, :, 3:].eq(0).all()


def test_the_same_rows_teach_each_other_and_others_do_not():
    draw = torch.Generator().manual_seed(6)
    logits = torch.randn(B, K, len(ROWS), CELLS, generator=draw, dtype=torch.float64)
    logits[:, 0] = 0
    inside = torch.ones(B, 40, 70, dtype=torch.bool)
    exist = {"exist": torch.ones(B, L)}
    batch = Batch(torch.zeros(B, 3, 40, 70), None, inside, torch.arange(B), extra=exist)
    same, other = Outputs(logits, rows=ROWS), Outputs(logits, rows=(0.2, 0.5, 0.8))
    terms = LD().loss(same, same, batch, Context(batch))
    assert float(terms["ld"].value) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ConfigError, match=r"give both the same options\.rows"):
        LD().loss(same, other, batch, Context(batch))
    with pytest.raises(ConfigError, match="the teacher classifies rows"):
        LD().loss(Outputs(logits), same, batch, Context(batch))
