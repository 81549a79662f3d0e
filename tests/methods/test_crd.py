import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from segkd.methods.crd import CRD, crd_loss
from segkd.modules.class_queue import NodeQueue, by_class
from segkd.testing.cases import make_case


def reference(student, teacher, negatives, keep, temperature, stored, means):
    """The equation with its probabilities h, node by node; ``stored`` is n."""
    total = 0.0
    sides = (student, teacher, negatives[1], means[0]), (teacher, student, negatives[0], means[1])
    for anchors, positives, others, mean in sides:
        values = []
        for i in range(len(anchors)):
            drawn = [k for k in range(len(others)) if keep[i][k]]

            def h(other, anchor=anchors[i], mean=mean):
                return math.exp(float(anchor @ other) / temperature) / (stored * mean)

            noise = len(drawn) / stored
            value = -math.log(h(positives[i]) / (h(positives[i]) + noise))
            for k in drawn:
                value -= math.log(noise / (h(others[k]) + noise))
            if drawn:
                values.append(value)
        total += sum(values) / len(values)
    return total


@pytest.fixture
def nodes():
    draw = torch.Generator().manual_seed(7)
    shapes = (5, 3), (5, 3), (7, 3), (7, 3)
    nodes = [normalize(torch.randn(s, generator=draw, dtype=torch.float64)) for s in shapes]
    keep = torch.rand(5, 7, generator=draw) > 0.4
    keep[2] = False
    return nodes[0].requires_grad_(), nodes[1].requires_grad_(), tuple(nodes[2:]), keep


@pytest.mark.parametrize("stored", [7, 1000])
def test_equals_the_equation_whatever_number_is_stored(nodes, stored):
    student, teacher, negatives, keep = nodes
    means = torch.tensor([1.7, 0.6], dtype=torch.float64)
    value = crd_loss(
        student, teacher, negatives=negatives, keep=keep, temperature=0.5, log_mean=means.log()
    )
    plain = (student.detach(), teacher.detach(), negatives, keep, 0.5, stored, means.tolist())
    assert value.item() == pytest.approx(reference(*plain), rel=1e-12)


def test_without_a_mean_that_of_the_negatives_is_taken(nodes):
    student, teacher, negatives, keep = nodes
    pairs = (student, negatives[1]), (teacher, negatives[0])
    means = torch.stack([(x @ y.T / 0.07).exp()[keep].mean() for x, y in pairs]).detach()
    expected = crd_loss(student, teacher, negatives=negatives, keep=keep, log_mean=means.log())
    torch.testing.assert_close(crd_loss(student, teacher, negatives=negatives, keep=keep), expected)


def test_without_a_mask_all_are_negatives(nodes):
    student, teacher, negatives, keep = nodes
    value = crd_loss(student, teacher, negatives=negatives)
    expected = crd_loss(student, teacher, negatives=negatives, keep=torch.ones_like(keep))
    assert value == expected


def test_gradient_is_right_on_both_sides(nodes):
    student, teacher, negatives, keep = nodes
    options = {"keep": keep, "temperature": 0.5, "log_mean": torch.zeros(2, dtype=torch.float64)}
    assert torch.autograd.gradcheck(
        lambda s, t: crd_loss(s, t, negatives=negatives, **options), (student, teacher)
    )


def test_doubled_nodes_and_longer_vectors_change_nothing(nodes):
    student, teacher, negatives, keep = nodes
    expected = crd_loss(student, teacher, negatives=negatives, keep=keep)
    doubled = crd_loss(
        student.repeat(2, 1), teacher.repeat(2, 1), negatives=negatives, keep=keep.repeat(2, 1)
    )
    torch.testing.assert_close(doubled, expected)
    longer = crd_loss(100 * student, 9 * teacher, negatives=negatives, keep=keep)
    torch.testing.assert_close(longer, expected)


def test_unscaled_half_vectors_are_finite_where_the_exponential_is_not():
    student = torch.full((2, 64), 3.0, dtype=torch.float16).requires_grad_()
    negatives = (student.detach().clone(), -student.detach())
    assert (student.float() @ negatives[0].float().T / 0.07).exp().isinf().all()
    for mean in (None, torch.tensor([-80.0, 80.0])):
        with torch.autocast("cpu", torch.bfloat16):
            value = crd_loss(student, student.detach(), negatives=negatives, log_mean=mean)
        value.backward()
        assert value.dtype is torch.float32
        assert value.isfinite() and student.grad.isfinite().all()


def test_nothing_to_tell_apart_is_a_zero_with_a_graph(nodes):
    student, teacher, negatives, keep = nodes
    for count in (5, 0):
        own, other = student[:count], teacher[:count]
        value = crd_loss(own, other, negatives=negatives, keep=torch.zeros_like(keep[:count]))
        value.backward()
        assert value == 0 and not student.grad.any()


@pytest.mark.parametrize("wrong", ["teacher", "negatives", "one side", "keep"])
def test_what_does_not_fit_is_refused(nodes, wrong):
    student, teacher, negatives, keep = nodes
    if wrong == "teacher":
        teacher = teacher[:4]
    elif wrong == "keep":
        keep = keep.T
    else:
        negatives = (
            negatives[0],
            negatives[1][:, :2] if wrong == "negatives" else negatives[1][1:],
        )
    with pytest.raises(ValueError, match="expected"):
        crd_loss(student, teacher, negatives=negatives, keep=keep)


def peer_repdistiller(student, teacher, negatives, temperature, stored, means):
    """Its memory is n long, every anchor has the same m negatives; the positive is given."""

    def direction(anchors, positives, others, constant):
        with_positive = torch.cat([positives[:, None], others.expand(len(anchors), -1, -1)], 1)
        x = (with_positive @ anchors[:, :, None]).squeeze(2).div(temperature).exp() / constant
        noise = others.shape[0] / stored
        real = x[:, 0] / (x[:, 0] + noise)
        fake = noise / (x[:, 1:] + noise)
        return -(real.log().sum() + fake.log().sum()) / len(anchors)

    return direction(student, teacher, negatives[1], means[0] * stored) + direction(
        teacher, student, negatives[0], means[1] * stored
    )


def test_converted_weight_acts_as_the_peers(nodes):
    student, teacher, negatives, _ = nodes
    (conversion,) = CRD.conversions.values()
    means = torch.tensor([2.0, 0.7], dtype=torch.float64)
    theirs = peer_repdistiller(student, teacher, negatives, 0.07, 50_000, means)
    ours = crd_loss(student, teacher, negatives=negatives, log_mean=means.log())
    torch.testing.assert_close(conversion.weight * theirs, conversion.at() * ours)
    assert CRD.paper_weight == conversion.at()


# -- the queue -------------------------------------------------------------------------------------


def test_rows_are_sorted_into_classes_and_the_last_ones_stay():
    nodes, classes = torch.arange(1.0, 8).view(7, 1), torch.tensor([2, 0, 2, 9, 2, -1, 0])
    rows, present = by_class(nodes, classes, 3, 2)
    assert rows[0, :, 0].tolist() == [2, 7] and rows[2, :, 0].tolist() == [3, 5]
    assert present.tolist() == [[True, True], [False, False], [True, True]]


def test_queue_keeps_the_last_nodes_of_each_class_and_names_others():
    queue = NodeQueue(3, 2, 1)
    for value, kind in enumerate([0, 1, 0, 0, 1], start=1):
        queue.append(torch.tensor([[float(value)]]), torch.tensor([kind]))
    queue.append(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long))
    vectors, keep = queue.others(torch.tensor([0, 2]))
    assert sorted(vectors[keep[0]].flatten().tolist()) == [2, 5]
    assert sorted(vectors[keep[1]].flatten().tolist()) == [2, 3, 4, 5]


def test_queue_filled_at_once_equals_one_filled_in_steps():
    nodes, classes = torch.randn(9, 4), torch.tensor([0, 1, 1, 0, 1, 1, 1, 0, 1])
    once, steps = NodeQueue(2, 4, 4), NodeQueue(2, 4, 4)
    once.append(nodes, classes)
    for part in (slice(0, 3), slice(3, 8), slice(8, 9)):
        steps.append(nodes[part], classes[part])
    for kind in (0, 1):
        ages = [queue.entries[kind][queue.entries[kind].any(1)] for queue in (once, steps)]
        assert sorted(map(tuple, ages[0].tolist())) == sorted(map(tuple, ages[1].tolist()))
        expected = nodes[classes == kind][-4:]
        assert sorted(map(tuple, ages[0].tolist())) == sorted(map(tuple, expected.tolist()))


# -- the method ------------------------------------------------------------------------------------


def test_first_step_teaches_nothing_and_measures_the_mean_once():
    case = make_case(CRD)
    assert case.method.measured
    mean = case.method.log_mean.clone()
    own, other, classes = case.method._embedded(
        case.student, case.teacher, case.context(case.batch)
    )
    stored, keep = case.method.queue.others(classes)
    halves = stored.chunk(2, dim=1)
    pairs = (own, halves[1]), (other, halves[0])
    expected = torch.stack([(x @ y.T / 0.07).exp()[keep].mean().log() for x, y in pairs])
    torch.testing.assert_close(mean, expected.detach())
    changed = case.each(lambda x: 3 * x.flip(0))
    changed.after_step()
    assert torch.equal(case.method.log_mean, mean)
    case.method.measured.fill_(False)
    assert case.terms()["crd"].value == 0


def test_one_class_alone_is_no_contrast():
    case = make_case(CRD)
    case.method.queue.written.zero_()
    case.method.measured.fill_(False)
    labels = case.batch.labels.masked_fill(case.batch.labels < 5, 0)
    case = replace(case, batch=case.batch.replace(labels=labels))
    case.after_step()
    term = case.terms()["crd"]
    term.value.backward()
    assert not case.method.measured and term.value == 0


def test_an_image_is_never_its_own_negative():
    class Images(CRD):
        class Config(CRD.Config):
            nodes: str = "image"

    case = make_case(Images)
    _, _, groups = case.method._embedded(case.student, case.teacher, case.context(case.batch))
    _, keep = case.method.queue.others(groups)
    assert groups.tolist() == [0, 1, 2, 3] and keep.sum(1).tolist() == [3, 3, 3, 3]
