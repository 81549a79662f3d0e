import math

import pytest
import torch
import torch.nn.functional as F

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.byot import BYOT, byot_loss
from segkd.methods.shared.exits import Exit
from segkd.structures import Batch, Outputs, Term


def softmax(values, temperature):
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def divergence(student, deepest, mask, temperature):
    """The equation, pixel by pixel."""
    found = []
    for b, y, x in mask.nonzero().tolist():
        own = softmax(student[b, :, y, x].tolist(), temperature)
        target = softmax(deepest[b, :, y, x].tolist(), temperature)
        pairs = zip(own, target, strict=True)
        found.append(temperature**2 * sum(t * math.log(t / s) for s, t in pairs))
    return sum(found) / max(1, len(found))


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(1)
    sizes = ((2, 3), (2, 3), (4, 6))
    exits = [torch.randn(2, 4, *size, generator=draw, dtype=torch.float64) for size in sizes]
    masks = [torch.rand(2, 2, 3, generator=draw) > 0.3 for _ in exits]
    return exits, torch.randn(2, 4, 2, 3, generator=draw, dtype=torch.float64), masks


def test_equals_the_equation(maps):
    exits, deepest, masks = maps
    expected = 0.0
    for student, mask in zip(exits, masks, strict=True):
        pooled = student if student.shape[-1] == 3 else F.avg_pool2d(student, 2)
        expected += divergence(pooled, deepest, mask, 3.0)
    assert byot_loss(exits, deepest, masks=masks).item() == pytest.approx(expected, rel=1e-12)
    everywhere = [torch.ones_like(mask) for mask in masks]
    found = byot_loss(exits, deepest, masks=everywhere, temperature=1.0)
    torch.testing.assert_close(byot_loss(exits, deepest, temperature=1.0), found)


def test_gradient_is_right_and_none_goes_to_the_end(maps):
    exits, deepest, masks = maps
    student, deepest = exits[2].requires_grad_(), deepest.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: byot_loss([x], deepest, masks=masks[2:]), student)
    byot_loss(exits, deepest, masks=masks).backward()
    assert deepest.grad is None


def test_as_many_masks_as_exits(maps):
    exits, deepest, masks = maps
    with pytest.raises(ValueError):
        byot_loss(exits, deepest, masks=masks[:2])


def task_loss(outputs, batch):
    return {"mean": Term(outputs.logits.mean(), torch.tensor(1.0, dtype=torch.float64))}


def make(taps=("stage2", "stage4"), **options):
    torch.manual_seed(0)
    method = BYOT(BYOT.Config(taps=list(taps), **options))
    infos = {"stage2": TapInfo(3, 4), "stage4": TapInfo(5, 8), "head": TapInfo(6, 4)}
    method.build(BuildContext(infos | {"logits": TapInfo(4, 4)}, {}, 4))
    features = {
        "stage2": torch.randn(2, 3, 4, 4),
        "stage4": torch.randn(2, 5, 2, 2),
        "head": torch.randn(2, 6, 4, 4),
    }
    student = Outputs(torch.randn(2, 4, 4, 4), features)
    for tensor in student.tensors():
        tensor.requires_grad_()
    labels = torch.randint(4, (2, 16, 16))
    batch = Batch(torch.zeros(2, 3, 16, 16), labels, torch.ones(2, 16, 16) > 0, torch.arange(2))
    return method, student, batch


def test_every_exit_learns_from_labels_end_and_features():
    method, student, batch = make()
    terms = method.loss(student, None, batch, Context(batch, task_loss=task_loss))
    names = [f"{kind}_{tap}" for tap in ("stage2", "stage4") for kind in ("mean", "kd", "feature")]
    assert list(terms) == names
    assert set(method.default_weights) == {name for name in names if "mean" not in name}
    features, logits = method.exits[1](student.tap("stage4"), torch.ones(2, 2, 2) > 0)
    torch.testing.assert_close(terms["mean_stage4"].value, logits.mean())
    head = student.tap("head").detach()
    end = F.avg_pool2d(head / head.square().mean().sqrt(), 2)
    torch.testing.assert_close(terms["feature_stage4"].value, (features - end).square().mean())
    torch.testing.assert_close(
        terms["kd_stage4"].value, byot_loss([logits], student.logits), check_dtype=False
    )
    sum(term.value for term in terms.values()).backward()
    assert student.logits.grad is None and student.tap("head").grad is None
    assert all(student.tap(tap).grad.any() for tap in ("stage2", "stage4"))
    assert all(parameter.grad.any() for parameter in method.parameters())


def test_padding_has_no_part_in_an_exit():
    torch.manual_seed(0)
    branch, maps = Exit(3, 8, 4), torch.randn(1, 3, 4, 4)
    mask = torch.ones(1, 4, 4) > 0
    mask[:, :, 2:] = False
    other = maps.masked_fill(~mask.unsqueeze(1), 50.0)
    for one, two in zip(branch(maps, mask), branch(other, mask), strict=True):
        assert torch.equal(one, two)


def test_the_same_stage_twice_is_refused():
    with pytest.raises(ConfigError, match="no duplicates"):
        make(taps=("stage2", "stage2"))
