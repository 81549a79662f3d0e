import math

import pytest
import torch
import torch.nn.functional as F

from segkd.methods.ifvd import IFVD, ifvd_loss

VOID = 255


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def variation(features, labels):
    """Cosines of one image's labelled pixels to the mean of their class, by pixel."""
    pixels = (labels != VOID).nonzero().tolist()
    found = []
    for y, x in pixels:
        same = [features[:, j, i].tolist() for j, i in pixels if labels[j, i].equal(labels[y, x])]
        mean = [sum(values) / len(same) for values in zip(*same, strict=True)]
        found.append(cosine(features[:, y, x].tolist(), mean))
    return found


def reference(student, teacher, labels, mask):
    labels = labels.masked_fill(~mask, VOID)
    squares = []
    for s_map, t_map, image in zip(student, teacher, labels, strict=True):
        v_s, v_t = variation(s_map, image), variation(t_map, image)
        squares += [(s - t) ** 2 for s, t in zip(v_s, v_t, strict=True)]
    return sum(squares) / len(squares)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student = 2 * torch.randn(3, 4, 3, 5, generator=draw, dtype=torch.float64)
    teacher = 2 * torch.randn(3, 6, 3, 5, generator=draw, dtype=torch.float64)
    labels = torch.randint(4, (3, 3, 5), generator=draw)
    labels[labels == 2] = VOID
    mask = torch.rand(3, 3, 5, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), teacher.requires_grad_(), labels, mask


@pytest.mark.parametrize("num_classes", [None, 4, 19])
def test_equals_the_equation(maps, num_classes):
    student, teacher, labels, mask = maps
    value = ifvd_loss(student, teacher, labels=labels, mask=mask, num_classes=num_classes)
    expected = reference(student.detach(), teacher.detach(), labels, mask)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_gradient_is_right_and_none_goes_to_the_teacher(maps):
    student, teacher, labels, mask = maps
    assert torch.autograd.gradcheck(
        lambda a: ifvd_loss(a, teacher, labels=labels, mask=mask), student
    )
    ifvd_loss(student, teacher, labels=labels, mask=mask).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("void", [VOID, -1, 200])
def test_void_pixels_are_left_out(maps, void):
    student, teacher, labels, mask = maps
    ignored = {} if void != 200 else {"ignore_index": 200}
    renamed = labels.masked_fill(labels == VOID, void)
    expected = ifvd_loss(student, teacher, labels=labels, mask=mask)
    hidden = (labels == VOID).unsqueeze(1)
    found = ifvd_loss(student + 9 * hidden, teacher, labels=renamed, mask=mask, **ignored)
    torch.testing.assert_close(found, expected)


def test_ids_that_are_no_class_are_void(maps):
    """They have no centre; counted as pixels they would dilute the mean."""
    student, teacher, labels, mask = maps
    known = labels != 255
    found, expected = (
        ifvd_loss(student, teacher, labels=each, mask=mask, num_classes=4)
        for each in (labels.where(known, 4), labels)
    )
    assert found == expected


def test_invalid_positions_may_hold_anything(maps):
    student, teacher, labels, mask = maps
    hidden = ~mask.unsqueeze(1)
    broken = student.detach().masked_fill(hidden, float("nan")).requires_grad_()
    value = ifvd_loss(broken, teacher.masked_fill(hidden, float("inf")), labels=labels, mask=mask)
    value.backward()
    torch.testing.assert_close(value, ifvd_loss(student, teacher, labels=labels, mask=mask))
    assert broken.grad.isfinite().all()


def test_without_a_mask_all_labelled_pixels_count(maps):
    student, teacher, labels, mask = maps
    full = ifvd_loss(student, teacher, labels=labels, mask=torch.ones_like(mask))
    assert ifvd_loss(student, teacher, labels=labels) == full


def test_nothing_labelled_is_a_zero_with_a_graph(maps):
    student, teacher, labels, _ = maps
    value = ifvd_loss(student, teacher, labels=torch.full_like(labels, VOID))
    value.backward()
    assert value == 0 and not student.grad.any()


def test_features_of_zero_have_a_finite_gradient(maps):
    _, teacher, labels, mask = maps
    student = torch.zeros(3, 4, 3, 5, requires_grad=True)
    ifvd_loss(student, teacher.float(), labels=labels, mask=mask).backward()
    assert student.grad.isfinite().all()


def test_no_tensor_is_kept_for_each_class():
    student, labels = torch.randn(1, 32, 8, 8, requires_grad=True), torch.arange(64).view(1, 8, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        ifvd_loss(student, torch.randn(1, 32, 8, 8), labels=labels % 16)
    assert max(kept) <= 32 * 64


def peer(student, teacher, labels):
    """Class by class with masks of the features' size; void pixels are their own centre."""
    cosines = []
    for features in (student, teacher):
        centres = features.clone()
        for label in range(4):
            own = (labels == label).unsqueeze(1).to(features.dtype)
            mean = (own * features).sum((2, 3), keepdim=True) / (
                own.sum((2, 3), keepdim=True) + 1e-6
            )
            centres = (1 - own) * centres + own * mean
        cosines.append(F.cosine_similarity(features, centres))
    return F.mse_loss(*cosines)


def test_every_conversion_is_checked():
    assert IFVD.conversions.keys() == {"IFVD", "CIRKD"}


@pytest.mark.parametrize("name", IFVD.conversions)
def test_converted_weight_acts_as_the_peers_without_void_pixels(maps, name):
    student, teacher, labels, _ = maps
    clean = labels.masked_fill(labels == VOID, 2)
    theirs = IFVD.conversions[name].weight * peer(student, teacher, clean)
    ours = IFVD.conversions[name].at() * ifvd_loss(student, teacher, labels=clean)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=0)


def test_void_pixels_dilute_the_peers_mean(maps):
    student, teacher, labels, _ = maps
    share = (labels != VOID).double().mean()
    ours = ifvd_loss(student, teacher, labels=labels)
    torch.testing.assert_close(peer(student, teacher, labels), share * ours, rtol=1e-5, atol=0)


def test_needs_labels():
    assert IFVD().needs.labels
