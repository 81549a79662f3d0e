import math

import pytest
import torch
import torch.nn.functional as F

from segkd.methods.base import BuildContext, Context, TapInfo, TapNames
from segkd.methods.one import ONE, Gate, one_ensemble, one_loss
from segkd.methods.shared.exits import Exit
from segkd.structures import Batch, Outputs, Term


def softmax(values, temperature):
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def equation(branches, shares, mask, temperature):
    """Σ_i T² · mean over pixels of KL(p_e ‖ p_i), with z_e = Σ_i g_i z_i."""
    total, pixels = 0.0, mask.nonzero().tolist()
    for b, y, x in pixels:
        pixel = [branch[b, :, y, x].tolist() for branch in branches]
        gate = shares[b].tolist()
        joint = [sum(g * z[k] for g, z in zip(gate, pixel, strict=True)) for k in range(4)]
        target = softmax(joint, temperature)
        for logits in pixel:
            pairs = zip(target, softmax(logits, temperature), strict=True)
            total += temperature**2 * sum(t * math.log(t / s) for t, s in pairs)
    return total / max(1, len(pixels))


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(3)
    branches = [torch.randn(2, 4, 3, 5, generator=draw, dtype=torch.float64) for _ in range(3)]
    shares = torch.randn(2, 3, generator=draw, dtype=torch.float64).softmax(1)
    return branches, shares, torch.rand(2, 3, 5, generator=draw) > 0.3


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_equals_the_equation(maps, temperature):
    branches, shares, mask = maps
    joint = one_ensemble(branches, shares, mask=mask)
    found = one_loss(branches, joint, mask=mask, temperature=temperature)
    expected = equation(branches, shares, mask, temperature)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_gradient_is_right_and_the_ensemble_only_teaches(maps):
    branches, shares, mask = maps
    joint = one_ensemble(branches, shares).requires_grad_()
    student = branches[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: one_loss([x], joint, mask=mask), student)
    one_loss(branches, joint, mask=mask).backward()
    assert joint.grad is None


def test_the_ensemble_is_joined_at_the_smallest_size(maps):
    branches, shares, _ = maps
    large = F.interpolate(branches[0], scale_factor=2, mode="nearest")
    found = one_ensemble([large, *branches[1:]], shares)
    torch.testing.assert_close(found, one_ensemble(branches, shares))


def test_what_is_hidden_reaches_neither_shares_nor_branches(maps):
    branches, shares, mask = maps
    dirty = [one.masked_fill(~mask[:, None], math.nan).requires_grad_() for one in branches]
    shares = shares.requires_grad_()
    (one_ensemble(dirty, shares, mask=mask) * mask[:, None]).sum().backward()
    assert shares.grad.isfinite().all() and all(one.grad.isfinite().all() for one in dirty)


# -- gate and branches -----------------------------------------------------------------------------


def test_a_new_gate_gives_equal_shares_and_learns_others_per_image():
    gate, features = Gate(6, 3), torch.randn(4, 6, 3, 5)
    mask = torch.ones(4, 3, 5) > 0
    torch.testing.assert_close(gate(features, mask), torch.full((4, 3), 1 / 3))
    torch.nn.init.normal_(gate.linear.weight)
    shares = gate(features, mask)
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    assert shares.unique(dim=0).shape[0] == 4


@pytest.mark.parametrize("kind", [Gate, Exit])
def test_padding_has_no_part(kind):
    torch.manual_seed(0)
    part = Gate(6, 3) if kind is Gate else Exit(6, 8, 3)
    if kind is Gate:
        torch.nn.init.normal_(part.linear.weight)
    maps, mask = torch.randn(2, 6, 4, 5), torch.ones(2, 4, 5) > 0
    wide = F.pad(maps, (0, 3)), F.pad(mask, (0, 3))
    found, expected = part(*wide), part(maps, mask)
    if kind is Exit:
        found, expected = found[1][..., :5], expected[1]
    torch.testing.assert_close(found, expected)


# -- the method ------------------------------------------------------------------------------------


def task_loss(outputs, batch):
    return {"mean": Term(outputs.logits.mean(), torch.tensor(1.0, dtype=torch.float64))}


def make(**options):
    torch.manual_seed(0)
    method = ONE(ONE.Config(width=8, **options))
    infos = {"stage4": TapInfo(5, 8), "logits": TapInfo(4, 4)}
    method.build(BuildContext(infos, {}, 4))
    student = Outputs(torch.randn(2, 4, 4, 4), {"stage4": torch.randn(2, 5, 2, 2)})
    for tensor in student.tensors():
        tensor.requires_grad_()
    labels = torch.randint(4, (2, 16, 16))
    batch = Batch(torch.zeros(2, 3, 16, 16), labels, torch.ones(2, 16, 16) > 0, torch.arange(2))
    return method, student, batch


def test_branches_and_ensemble_learn_the_task_and_all_learn_from_the_ensemble():
    method, student, batch = make()
    torch.nn.init.normal_(method.gate.linear.weight)
    terms = method.loss(student, None, batch, Context(batch, task_loss=task_loss))
    assert list(terms) == [
        *("mean_branch1", "mean_branch2", "mean_ensemble"),
        *("kd_student", "kd_branch1", "kd_branch2"),
    ]
    mask = torch.ones(2, 2, 2) > 0
    ends = [branch(student.tap("stage4"), mask)[1] for branch in method.branches.values()]
    everyone = [student.logits, *ends]
    joint = one_ensemble(everyone, method.gate(student.tap("stage4"), mask))
    torch.testing.assert_close(terms["mean_branch2"].value, ends[1].mean())
    torch.testing.assert_close(terms["mean_ensemble"].value, joint.mean())
    distances = sum(term.value for name, term in terms.items() if name.startswith("kd_"))
    torch.testing.assert_close(distances, one_loss(everyone, joint))
    sum(term.value for term in terms.values()).backward()
    assert student.logits.grad.any() and student.tap("stage4").grad.any()
    assert all(parameter.grad.any() for parameter in method.parameters())


def test_only_task_losses_reach_the_gate():
    """The target has no gradient: the gate is not drawn to what the branches agree on."""
    method, student, batch = make()
    terms = method.loss(student, None, batch, Context(batch, task_loss=task_loss))
    sum(term.value for name, term in terms.items() if name.startswith("kd_")).backward()
    assert method.gate.linear.weight.grad is None


def test_branches_begin_one_stage_before_the_deepest():
    method = ONE()
    method.bind_taps(TapNames(("stage1", "stage2", "stage3", "head", "logits")), None)
    assert method.needs.student == ("stage2", "logits")
    method = ONE(ONE.Config(tap="head"))
    method.bind_taps(TapNames(("stage1", "stage2", "stage3", "head", "logits")), None)
    assert method.needs.student == ("head", "logits")
