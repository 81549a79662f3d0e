import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.dml import DML, dml_loss
from segkd.structures import Batch, Outputs


def softmax(values, temperature):
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def equation(networks, learner, mask, temperature):
    """L of one network without its task loss: pixel by pixel, peer by peer."""
    total, others = 0.0, [one for number, one in enumerate(networks) if number != learner]
    pixels = mask.nonzero().tolist()
    for b, y, x in pixels:
        own = softmax(networks[learner][b, :, y, x].tolist(), temperature)
        for other in others:
            target = softmax(other[b, :, y, x].tolist(), temperature)
            pairs = zip(own, target, strict=True)
            divergence = sum(p * math.log(p / q) for q, p in pairs)
            total += temperature**2 * divergence / len(others)
    return total / max(1, len(pixels))


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(1)
    networks = [torch.randn(2, 4, 3, 5, generator=draw, dtype=torch.float64) for _ in range(3)]
    return networks, torch.rand(2, 3, 5, generator=draw) > 0.3


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("number", [2, 3])
def test_equals_the_equation(maps, number, temperature):
    networks, mask = maps
    networks = networks[:number]
    for learner in range(number):
        others = [one for place, one in enumerate(networks) if place != learner]
        found = dml_loss(networks[learner], others, mask=mask, temperature=temperature)
        expected = equation(networks, learner, mask, temperature)
        assert found.item() == pytest.approx(expected, rel=1e-12)


def test_all_pixels_without_a_mask(maps):
    (student, peer, _), mask = maps
    everywhere = dml_loss(student, [peer], mask=torch.ones_like(mask))
    torch.testing.assert_close(dml_loss(student, [peer]), everywhere)


def test_it_does_not_grow_with_the_number_of_peers(maps):
    (student, peer, _), mask = maps
    one = dml_loss(student, [peer], mask=mask)
    torch.testing.assert_close(dml_loss(student, [peer] * 4, mask=mask), one)


def test_the_direction_is_from_the_peer(maps):
    """KL(peer ‖ student): a student that is sure of the wrong class costs more than the reverse."""
    sure = torch.tensor([8.0, 0.0]).view(1, 2, 1, 1)
    unsure = torch.zeros(1, 2, 1, 1)
    assert dml_loss(sure, [unsure]) > 3 * dml_loss(unsure, [sure])


def test_gradient_is_right_and_peers_only_teach(maps):
    (student, peer, other), mask = maps
    student, peer = student.requires_grad_(), peer.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dml_loss(x, [peer, other], mask=mask), student)
    dml_loss(student, [peer, other], mask=mask).backward()
    assert peer.grad is None and student.grad.any()


def test_equal_networks_have_nothing_to_learn(maps):
    (student, *_), mask = maps
    student = student.requires_grad_()
    loss = dml_loss(student, [student.detach() + 3.0], mask=mask)
    loss.backward()
    assert loss.abs() < 1e-12 and student.grad.abs().max() < 1e-12


def test_no_epsilon_inside_of_logarithms():
    """Public code adds 1e-8 to probabilities: a gradient of 1e-9 of the class would vanish."""
    student = torch.tensor([40.0, 0.0], dtype=torch.float64).view(1, 2, 1, 1).requires_grad_()
    peer = torch.tensor([0.0, 40.0], dtype=torch.float64).view(1, 2, 1, 1)
    loss = dml_loss(student, [peer])
    assert loss.item() == pytest.approx(40.0, rel=1e-9)
    loss.backward()
    torch.testing.assert_close(student.grad[0, :, 0, 0], torch.tensor([1.0, -1.0]).double())


def test_networks_of_all_strides_meet_at_the_smallest_size(maps):
    (student, *_), _ = maps
    student, mask = student[:, :, :2, :4], torch.tensor([[[True, False]]] * 2)
    small = torch.randn(2, 4, 1, 2, dtype=torch.float64)
    large = F.interpolate(small, scale_factor=4, mode="nearest")
    found = dml_loss(student, [large, small], mask=mask)
    pooled = F.adaptive_avg_pool2d(student, (1, 2))
    assert found.item() == pytest.approx(equation([pooled, small], 0, mask, 1.0), rel=1e-12)


def test_a_network_needs_peers(maps):
    with pytest.raises(ValueError, match="at least one"):
        dml_loss(maps[0][0], [])


# -- the method ------------------------------------------------------------------------------------


def build(peers):
    method, asked = DML(DML.Config(peers=peers)), []

    def new_model(config, key):
        asked.append((config, key))
        return nn.Linear(1, 1)

    infos = {"logits": TapInfo(4, 4)}
    method.build(BuildContext(infos, {}, 4, new_model=new_model))
    return method, asked


def test_peers_are_like_the_student_or_have_keys_of_their_own():
    method, asked = build(2)
    assert asked == [(None, "peers.peer1"), (None, "peers.peer2")]
    assert list(method.peers()) == ["peer1", "peer2"] and not method.config.networks()
    method, asked = build({"wide": {"arch": "enet"}, "like": {}})
    assert asked == [({"arch": "enet"}, "peers.wide"), (None, "peers.like")]
    assert method.config.networks() == {("peers", "wide"): {"arch": "enet"}}


def test_peers_are_not_trained_by_the_students_optimiser():
    method, _ = build(2)
    assert len(list(method.parameters())) == 4 and method.trained_parameters() == []


def test_each_network_learns_from_all_others():
    method, _ = build(2)
    logits = [torch.randn(2, 4, *size, requires_grad=True) for size in ((4, 4), (2, 2), (8, 8))]
    student, peers = Outputs(logits[0]), dict(zip(("peer1", "peer2"), logits[1:], strict=True))
    labels = torch.randint(4, (2, 16, 16))
    labels[:, :8] = 255
    batch = Batch(torch.zeros(2, 3, 16, 16), labels, torch.ones(2, 16, 16) > 0, torch.arange(2))
    context = Context(batch, peers={name: Outputs(value) for name, value in peers.items()})
    terms = method.loss(student, None, batch, context)
    assert list(terms) == ["student", "peer1", "peer2"]
    pooled = [F.adaptive_avg_pool2d(value, (2, 2)) for value in logits]
    mask = torch.tensor([[[False, False], [True, True]]] * 2)
    for number, term in enumerate(terms.values()):
        assert term.count == 4
        others = [one for place, one in enumerate(pooled) if place != number]
        torch.testing.assert_close(term.value, dml_loss(pooled[number], others, mask=mask))
        (own,) = torch.autograd.grad(term.value, logits[number], retain_graph=True)
        assert own.any()
        rest = [value for place, value in enumerate(logits) if place != number]
        given = torch.autograd.grad(term.value, rest, retain_graph=True, allow_unused=True)
        assert given == (None, None)
