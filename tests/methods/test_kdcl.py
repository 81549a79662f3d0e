import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.kdcl import KDCL, kdcl_loss, kdcl_target
from segkd.structures import Batch, Outputs

VOID = 255


def log_softmax(values):
    top = max(values)
    total = math.log(sum(math.exp(value - top) for value in values)) + top
    return [value - total for value in values]


def joint(pixel, label, target):
    """The target's logits at one pixel: ``pixel`` has those of each network."""
    classes = range(len(pixel[0]))
    if label == VOID:
        return [sum(one[k] for one in pixel) / len(pixel) for k in classes]
    if target == "min_logit":
        return [min(one[k] - one[label] for one in pixel) for k in classes]
    return min(pixel, key=lambda one: -log_softmax(one)[label])


def equation(networks, learner, labels, mask, temperature, target):
    total, pixels = 0.0, mask.nonzero().tolist()
    for b, y, x in pixels:
        pixel = [one[b, :, y, x].tolist() for one in networks]
        wanted = joint(pixel, labels[b, y, x].item(), target)
        log_t = log_softmax([value / temperature for value in wanted])
        log_s = log_softmax([value / temperature for value in pixel[learner]])
        pairs = zip(log_t, log_s, strict=True)
        total += temperature**2 * sum(math.exp(t) * (t - s) for t, s in pairs)
    return total / max(1, len(pixels))


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(2)
    networks = [2 * torch.randn(2, 4, 3, 5, generator=draw).double() for _ in range(3)]
    labels = torch.randint(4, (2, 3, 5), generator=draw)
    labels[0, 0, :2] = VOID
    return networks, labels, torch.rand(2, 3, 5, generator=draw) > 0.3


@pytest.mark.parametrize("target", ["min_logit", "naive"])
@pytest.mark.parametrize("void", [-100, 4, 254])
def test_labels_that_are_no_class_are_void(maps, target, void):
    """Logits are not indexed with them, which would be an assertion of the device."""
    networks, labels, _ = maps
    other = labels.masked_fill(labels == VOID, void)
    found, expected = (kdcl_target(networks, each, target=target) for each in (other, labels))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("target", ["min_logit", "naive"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equals_the_equation(maps, temperature, target):
    networks, labels, mask = maps
    mask[0, 0, 0] = True  # a void pixel that is taught
    for learner, own in enumerate(networks):
        others = networks[learner + 1 :] + networks[:learner]
        found = kdcl_loss(
            own, others, labels=labels, mask=mask, temperature=temperature, target=target
        ).item()
        expected = equation(networks, learner, labels, mask, temperature, target)
        assert found == pytest.approx(expected, rel=1e-12)


def test_min_logit_is_never_less_sure_of_the_label_than_a_network(maps):
    """The margin of the label over each other class is the largest of all networks'."""
    networks, labels, _ = maps
    target = kdcl_target(networks, labels)
    known = labels != VOID
    chosen = labels.masked_fill(~known, 0)[:, None]
    sure = target.log_softmax(1).gather(1, chosen)[:, 0][known]
    for one in networks:
        assert (sure >= one.log_softmax(1).gather(1, chosen)[:, 0][known] - 1e-12).all()


def test_naive_copies_the_best_network_at_each_pixel(maps):
    networks, labels, _ = maps
    labels = labels.masked_fill(labels == VOID, 0)
    losses = torch.stack([F.cross_entropy(one, labels, reduction="none") for one in networks])
    best = losses.argmin(0)
    assert best.unique().numel() == 3  # several of them win somewhere
    target = kdcl_target(networks, labels, target="naive")
    for number, one in enumerate(networks):
        chosen = (best == number)[:, None].expand_as(one)
        assert torch.equal(target[chosen], one[chosen])


def test_shifts_of_a_networks_logits_do_not_matter(maps):
    networks, labels, _ = maps
    moved = [one + 5.0 * number for number, one in enumerate(networks)]
    for target in ("min_logit", "naive"):
        first, second = (
            kdcl_target(each, labels, target=target).softmax(1) for each in (networks, moved)
        )
        torch.testing.assert_close(first, second)


def test_gradient_is_right_and_the_target_only_teaches(maps):
    (student, peer, _), labels, mask = maps
    target = kdcl_target([student, peer], labels)
    student, peer = student.requires_grad_(), peer.requires_grad_()
    kdcl_loss(student, [peer], labels=labels, mask=mask).backward()
    assert peer.grad is None
    assert not kdcl_target([student, peer], labels).requires_grad
    expected = 2.0 * ((student / 2).softmax(1) - (target / 2).softmax(1)) / mask.sum()
    torch.testing.assert_close(student.grad, (expected * mask[:, None]).detach())


def test_the_best_network_learns_nothing_from_naive():
    student = torch.tensor([5.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    peer, labels = torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64)
    loss = kdcl_loss(student, [peer], labels=labels, target="naive")
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-7) and not student.grad.any()


def test_labels_of_the_method_are_those_at_the_smallest_size():
    method = KDCL(KDCL.Config(target="naive"))
    infos = {"logits": TapInfo(4, 4)}
    new_model = lambda config, key: nn.Linear(1, 1)  # noqa: E731
    method.build(BuildContext(infos, {}, 4, new_model=new_model))
    logits = [torch.randn(2, 4, 4, 4), torch.randn(2, 4, 2, 2)]
    labels = torch.randint(4, (2, 16, 16))
    labels[:, :8] = VOID
    batch = Batch(torch.zeros(2, 3, 16, 16), labels, torch.ones(2, 16, 16) > 0, torch.arange(2))
    context = Context(batch, peers={"peer1": Outputs(logits[1])})
    terms = method.loss(Outputs(logits[0]), None, batch, context)
    pooled, small = F.avg_pool2d(logits[0], 2), labels[:, ::8, ::8]
    mask = small != VOID
    assert list(terms) == ["student", "peer1"] and terms["student"].count == 4
    for name, own, other in (("student", pooled, logits[1]), ("peer1", logits[1], pooled)):
        expected = kdcl_loss(own, [other], labels=small, mask=mask, target="naive")
        torch.testing.assert_close(terms[name].value, expected)
