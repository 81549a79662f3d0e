import pytest
import torch
import torch.nn.functional as F

from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.maskd import MasKD, maskd_loss
from segkd.structures import Batch, Outputs, Term
from segkd.testing import check_method


def reference(student, teacher, masks, valid):
    """The equation by loops: mean over images, masks and channels of Σ m² (s − t)² / Σ m."""
    by_image = []
    for image in range(len(student)):
        places = valid[image].nonzero().tolist()
        if not places:
            continue
        found = []
        for mask in masks[image]:
            area = sum(mask[y, x].item() for y, x in places)
            for own, target in zip(student[image], teacher[image], strict=True):
                squares = 0.0
                for y, x in places:
                    squares += (mask[y, x] * (own[y, x] - target[y, x])).item() ** 2
                found.append(squares / area)
        by_image.append(sum(found) / len(found))
    return sum(by_image) / len(by_image)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(4)
    student, teacher = 2 * torch.randn(2, 3, 4, 3, 5, generator=draw, dtype=torch.float64)
    masks = torch.rand(3, 2, 3, 5, generator=draw, dtype=torch.float64)
    valid = torch.rand(3, 3, 5, generator=draw) > 0.3
    valid[1] = False
    return student.requires_grad_(), teacher.requires_grad_(), masks, valid


def test_it_keeps_the_promises_at_the_head_too():
    check_method(MasKD, MasKD.Config(tap="head"))


def test_equals_the_equation(maps):
    student, teacher, masks, valid = maps
    found = maskd_loss(student, teacher, masks=masks, mask=valid).item()
    expected = reference(student, teacher, masks, valid)
    assert found == pytest.approx(expected, rel=1e-12)
    everything = reference(student, teacher, masks, torch.ones_like(valid))
    assert maskd_loss(student, teacher, masks=masks).item() == pytest.approx(everything, rel=1e-12)


def test_gradient_is_right_and_none_goes_to_the_teacher_or_the_masks(maps):
    student, teacher, masks, valid = maps
    masks = masks.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: maskd_loss(a, teacher, masks=masks, mask=valid), student
    )
    maskd_loss(student, teacher, masks=masks, mask=valid).backward()
    assert teacher.grad is None and masks.grad is None


def test_without_masks_it_is_the_mean_squared_difference(maps):
    student, teacher, _, _ = maps
    torch.testing.assert_close(maskd_loss(student, teacher), F.mse_loss(student, teacher))


def test_small_masks_count_as_much_as_large_ones():
    """A mask of one position and one of all others: each is a mean of its own."""
    student, teacher = torch.zeros(1, 1, 1, 4), torch.tensor([[[[3.0, 1.0, 1.0, 1.0]]]])
    masks = torch.tensor([[[[1.0, 0, 0, 0]], [[0, 1.0, 1.0, 1.0]]]])
    assert maskd_loss(student, teacher, masks=masks).item() == pytest.approx((9 + 1) / 2)


def test_masks_of_another_size_are_refused(maps):
    student, teacher, masks, _ = maps
    with pytest.raises(ValueError, match="smaller size"):
        maskd_loss(student, teacher, masks=masks[..., :2, :])


def peer(student, teacher, masks):
    """Public code for segmentation: every channel times every mask, halved."""
    total = 0.0
    for image in range(len(student)):
        for mask in masks[image]:
            square = (student[image] * mask - teacher[image] * mask) ** 2
            total += (square.sum((1, 2)) / mask.sum()).mean()
    return total / (masks.shape[0] * masks.shape[1]) / 2


def test_converted_weight_acts_as_the_peers(maps):
    student, teacher, masks, _ = maps
    assert MasKD.conversions.keys() == {"MasKD segmentation"}
    weight = MasKD.conversions["MasKD segmentation"].at()
    assert weight == MasKD.paper_weight
    ours = weight * maskd_loss(student, teacher, masks=masks)
    torch.testing.assert_close(ours, peer(student, teacher, masks))


def test_no_tensor_of_every_channel_and_every_mask_is_made():
    """The trap of public code: (B, T, C, h, w)."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for one in result if isinstance(result, tuple | list) else (result,):
                if isinstance(one, torch.Tensor):
                    largest = max(largest, one.numel())
            return result

    student, teacher = torch.randn(2, 2, 16, 8, 8)
    masks = torch.rand(2, 8, 8, 8)
    with Watch():
        maskd_loss(student.requires_grad_(), teacher, masks=masks).backward()
    assert largest == student.numel()


# -- the phase in which tokens learn ---------------------------------------------------------------


def task_loss(outputs, batch):
    value = F.cross_entropy(outputs.logits, Context(batch).labels_at(*outputs.logits.shape[2:]))
    return {"cross_entropy": Term(value, torch.tensor(1.0, dtype=torch.float64))}


def built(tap="logits", **keys):
    method = MasKD(MasKD.Config(tap=tap, **keys))
    method.build(BuildContext({tap: TapInfo(4, 8)}, {tap: TapInfo(4, 8)}, 4))
    return method


def scene():
    """A teacher that knows only the left half, and labels."""
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (2, 4, 8), generator=draw)
    logits = 4 * F.one_hot(labels, 4).permute(0, 3, 1, 2).float()
    logits[..., 4:] = 0.1 * torch.randn(2, 4, 4, 4, generator=draw)
    whole = torch.ones(2, 4, 8, dtype=torch.bool)
    batch = Batch(torch.zeros(2, 3, 4, 8, dtype=torch.uint8), labels, whole, torch.arange(2))
    return Outputs(logits), batch, Context(batch, task_loss=task_loss)


def learned(method, outputs, batch, context, steps=150):
    optimizer = method.inner_optimizer(method.inner_parameters())
    history = []
    for _ in range(steps):
        terms = method.inner_loss(outputs, outputs, batch, context)
        history.append({name: term.value.item() for name, term in terms.items()})
        optimizer.zero_grad()
        sum(term.value for term in terms.values()).backward()
        optimizer.step()
    return history


def test_tokens_learn_the_task_and_to_differ():
    torch.manual_seed(0)
    method = built()
    history = learned(method, *scene())
    assert history[0].keys() == {"cross_entropy", "overlap"}
    assert history[0]["overlap"] == pytest.approx(1, abs=0.01)  # new masks are all near 1/2
    assert history[-1]["overlap"] < 0.9 * history[0]["overlap"]
    assert history[-1]["cross_entropy"] < history[0]["cross_entropy"]


def test_the_task_loss_is_of_the_masked_logits_in_their_own_scale():
    method, (outputs, batch, context) = built(tokens=3), scene()
    with torch.no_grad():
        method.masks.tokens.zero_()  # all masks are 1/2
    terms = method.inner_loss(outputs, outputs, batch, context)
    expected = task_loss(Outputs(outputs.logits * 3 / 2), batch)["cross_entropy"].value
    torch.testing.assert_close(terms["cross_entropy"].value, expected)


def test_at_the_head_a_classifier_learns_along():
    method = built(tap="head")
    assert len(method.inner_parameters()) == 3
    assert len(built().inner_parameters()) == 1


def test_masks_follow_the_tokens():
    """With tokens that ignore the right half, what the student does there does not count."""
    method, (_, batch, context) = built(tokens=1, scale="none"), scene()
    teacher = Outputs(torch.where(torch.arange(8) < 4, 1.0, -1.0).expand(2, 4, 4, 8).clone())
    with torch.no_grad():
        method.masks.tokens.fill_(25.0)
    off = teacher.logits.clone()
    off[..., 4:] += 5
    assert method.loss(Outputs(off), teacher, batch, context)["maskd"].value < 1e-12
    off = teacher.logits.clone()
    off[..., :4] += 5
    value = method.loss(Outputs(off), teacher, batch, context)["maskd"].value
    assert value.item() == pytest.approx(25)


@pytest.mark.parametrize(("given", "total", "expected"), [(None, 1000, 100), (7, 50, 7), (0, 9, 0)])
def test_length_of_the_phase(given, total, expected):
    assert built(token_steps=given).preparation_steps(total) == expected
