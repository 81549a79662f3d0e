import math

import pytest
import torch
from torch.nn import functional

from segkd.methods.attnfd import AttnFD, BlockAttention, attend, attnfd_loss
from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.structures import Batch, Outputs


def places_of(mask):
    return [tuple(place) for place in mask.nonzero().tolist()]


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def squared_distance(student, teacher, mask):
    """The equation of one image, element by element."""
    elements = [(c, y, x) for c in range(len(student)) for y, x in places_of(mask)]
    lengths = [math.sqrt(sum(maps[e].item() ** 2 for e in elements)) for maps in (student, teacher)]
    return sum(
        (student[e].item() / lengths[0] - teacher[e].item() / lengths[1]) ** 2 for e in elements
    )


def attended(maps, mask, block=None):
    """A(F) of one image (C, h, w), element by element; without a block it has no parameters."""
    channels, places, out = range(len(maps)), places_of(mask), torch.zeros_like(maps)
    values = [[maps[c, y, x].item() for y, x in places] for c in channels]
    means = torch.tensor([sum(v) / len(v) for v in values], dtype=maps.dtype)
    largest = torch.tensor([max(v) for v in values], dtype=maps.dtype)
    logits = means + largest if block is None else dense(block, means) + dense(block, largest)
    for c in channels:
        for y, x in places:
            out[c, y, x] = maps[c, y, x] * sigmoid(logits[c].item())
    pooled = {
        (y, x): (sum(out[c, y, x].item() for c in channels) / len(maps), out[:, y, x].max().item())
        for y, x in places
    }
    gates = {place: sum(pair) for place, pair in pooled.items()}
    if block is not None:
        gates = normalised({place: convolved(block, pooled, place) for place in places}, block.norm)
    for y, x in places:
        out[:, y, x] *= sigmoid(gates[y, x])
    return out


def dense(block, vector):
    """The MLP, unit by unit."""
    first, _, last = block.mlp
    hidden = [
        max(0.0, (row @ vector + bias).item())
        for row, bias in zip(first.weight, first.bias, strict=True)
    ]
    rows = zip(last.weight, last.bias, strict=True)
    found = [
        sum(w.item() * h for w, h in zip(row, hidden, strict=True)) + bias.item()
        for row, bias in rows
    ]
    return torch.tensor(found, dtype=vector.dtype)


def convolved(block, pooled, place):
    total = 0.0
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            pair = pooled.get((place[0] + dy, place[1] + dx), (0.0, 0.0))
            weights = block.spatial.weight[0, :, dy + 3, dx + 3].tolist()
            total += sum(w * value for w, value in zip(weights, pair, strict=True))
    return total


def normalised(values, norm):
    mean = sum(values.values()) / len(values)
    variance = sum((v - mean) ** 2 for v in values.values()) / len(values)
    scale, shift = norm.weight.item(), norm.bias.item()
    return {
        p: (v - mean) / math.sqrt(variance + norm.eps) * scale + shift for p, v in values.items()
    }


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 3, 4, 3, 5, generator=draw, dtype=torch.float64)
    mask = torch.rand(3, 3, 5, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), teacher.requires_grad_(), mask


def block(channels=4):
    torch.manual_seed(1)
    module = BlockAttention(channels).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return module


def test_equals_the_equation(maps):
    student, teacher, mask = maps
    student, teacher = student.detach(), teacher.detach()
    expected = [squared_distance(student[b], teacher[b], mask[b]) for b in (0, 2)]
    found = attnfd_loss(student, teacher, mask=mask)
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, -4.0])  # below 0 the zeros of the padding would be maxima
@pytest.mark.parametrize("learned", [False, True])
def test_attention_equals_the_equation(maps, learned, shift):
    features, _, mask = maps
    features = features + shift
    module = block() if learned else None
    found = attend(features, mask) if module is None else module(features, mask)
    for b in (0, 2):
        torch.testing.assert_close(found[b], attended(features[b].detach(), mask[b], module))
    assert not found[1].any()


def test_gradient_is_right_and_none_goes_to_the_teacher(maps):
    student, teacher, mask = maps
    module = block()

    def loss(features):
        return attnfd_loss(module(features, mask), attend(teacher, mask), mask=mask)

    assert torch.autograd.gradcheck(loss, student)
    loss(student).backward()
    assert teacher.grad is None and not student.grad[1].any()


def test_invalid_positions_may_hold_anything(maps):
    student, teacher, mask = maps
    hidden = ~mask.unsqueeze(1)
    broken = student.detach().masked_fill(hidden, float("nan")).requires_grad_()
    module = block()
    value = attnfd_loss(
        module(broken, mask), attend(teacher.masked_fill(hidden, float("inf")), mask), mask=mask
    )
    value.backward()
    clean = attnfd_loss(module(student, mask), attend(teacher, mask), mask=mask)
    torch.testing.assert_close(value, clean)
    assert broken.grad.isfinite().all()


def test_each_image_has_its_own_norm(maps):
    """The public code's norm of the whole batch lets an image with large features drown others."""
    student, teacher, mask = maps
    value = attnfd_loss(student, teacher, mask=mask)
    louder = torch.tensor([1.0, 1.0, 50.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(attnfd_loss(student * louder, teacher, mask=mask), value)
    torch.testing.assert_close(attnfd_loss(student, teacher * louder, mask=mask), value)
    alone = [
        attnfd_loss(student[b : b + 1], teacher[b : b + 1], mask=mask[b : b + 1]) for b in (0, 2)
    ]
    torch.testing.assert_close(sum(alone) / 2, value)


def test_maps_without_a_direction_are_finite():
    student = torch.zeros(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    value = attnfd_loss(student, torch.ones(2, 4, 3, 5, dtype=torch.float64))
    value.backward()
    assert value.item() == pytest.approx(1) and not student.grad.any()


def test_the_published_weight_converts(maps):
    """Public code: one norm for all images of the batch, the sum over it divided by its size."""
    student, teacher, _ = maps
    student, teacher = (
        functional.normalize(x.flatten(1), dim=1).view_as(x) for x in (student, teacher)
    )
    theirs = 2 * (student / student.norm() - teacher / teacher.norm()).pow(2).sum() / 3
    ours = AttnFD.conversions["AttnFD"].at(N=3) * attnfd_loss(student, teacher)
    torch.testing.assert_close(ours, theirs)
    assert AttnFD(AttnFD.Config(weight="paper")).weight == AttnFD.conversions["AttnFD"].at(N=6)


def built(student=4, teacher=6, **keys):
    torch.manual_seed(0)
    method = AttnFD(AttnFD.Config(taps=["head"], **keys))
    method.build(BuildContext({"head": TapInfo(student, 4)}, {"head": TapInfo(teacher, 4)}, 3))
    return method.double()


def test_the_teachers_attention_cannot_learn():
    """A target that the layers could change would let them lower the loss without the student."""
    method = built()
    draw = torch.Generator().manual_seed(5)
    batch = Batch(torch.zeros(2, 3, 8, 8), None, torch.ones(2, 8, 8) > 0, torch.arange(2))
    student, teacher = (torch.randn(2, c, 2, 2, generator=draw).double() for c in (4, 6))
    sides = [Outputs(torch.zeros(2, 3, 2, 2), {"head": x}) for x in (student, teacher)]
    targets = []
    for shift in (0.0, 1.0):
        with torch.no_grad():
            for parameter in method.parameters():
                parameter += shift
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("segkd.methods.attnfd.attnfd_loss", lambda s, t, mask: targets.append(t))
            method.loss(*sides, batch, Context(batch))
    assert targets[0].equal(targets[1]) and not targets[0].requires_grad


@pytest.mark.parametrize(
    ("channels", "reduction", "hidden"), [(64, 16, 4), (512, 16, 32), (512, 4, 128)]
)
def test_the_mlp_is_as_wide_as_asked(channels, reduction, hidden):
    method = built(student=channels, reduction=reduction)
    assert method.attentions[0].mlp[0].weight.shape == (hidden, channels)


def test_a_connector_stands_even_where_channels_are_equal():
    assert built(student=6, teacher=6).connectors[0].weight.shape == (6, 6, 1, 1)
