import pytest
import torch

from segkd.ops.correlation import class_correlation, pixel_correlation


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(5)
    student, teacher = torch.randn(2, 3, 4, 5, 6, generator=draw, dtype=torch.float64)
    mask = torch.rand(3, 5, 6, generator=draw) > 0.3
    return student.requires_grad_(), teacher, mask


def test_pixels_equal_corrcoef(maps):
    student, teacher, _ = maps
    found = pixel_correlation(student, teacher, eps=0)
    for b, y, x in ((0, 0, 0), (2, 4, 5), (1, 2, 3)):
        pair = torch.stack([student[b, :, y, x], teacher[b, :, y, x]]).detach()
        torch.testing.assert_close(found[b, y, x].detach(), pair.corrcoef()[0, 1])


def test_classes_equal_corrcoef_over_valid_positions_of_all_images(maps):
    student, teacher, mask = maps
    found, count = class_correlation(student, teacher, mask, eps=0)
    assert count == mask.sum()
    for k in range(4):
        pair = torch.stack([student[:, k][mask], teacher[:, k][mask]]).detach()
        torch.testing.assert_close(found[k].detach(), pair.corrcoef()[0, 1])


def test_eps_is_added_to_variances_not_to_sums(maps):
    student, teacher, mask = maps
    pixel = pixel_correlation(student, teacher, eps=0.3)[1, 2, 3]
    one_class = class_correlation(student, teacher, mask, eps=0.3)[0][2]
    sides = (student[1, :, 2, 3], teacher[1, :, 2, 3]), (student[:, 2][mask], teacher[:, 2][mask])
    for found, pair in zip((pixel, one_class), sides, strict=True):
        covariance = torch.stack(pair).detach().cov(correction=0)
        roots = (covariance.diagonal() + 0.3).sqrt()
        torch.testing.assert_close(found.detach(), covariance[0, 1] / roots.prod())


def test_gradients_are_right(maps):
    student, teacher, mask = maps
    assert torch.autograd.gradcheck(lambda a: pixel_correlation(a, teacher, eps=1e-3), student)
    assert torch.autograd.gradcheck(
        lambda a: class_correlation(a, teacher, mask, eps=1e-3)[0], student
    )


def test_sums_over_parts_make_the_correlation_of_the_whole(maps):
    """What each part sends is recorded, call by call, and added as processes would."""
    student, teacher, mask = maps
    parts = slice(0, 1), slice(1, 3)

    def correlation(part, all_sum):
        return class_correlation(student[part], teacher[part], mask[part], eps=0, all_sum=all_sum)

    first_pass = []
    for part in parts:
        correlation(part, lambda x: (first_pass.append(x), x)[1])
    means = first_pass[0] + first_pass[2]
    second_pass = []
    for part in parts:
        answers = iter([lambda x: means, lambda x: (second_pass.append(x), x)[1]])
        correlation(part, lambda x, answers=answers: next(answers)(x))
    answers = iter([means, sum(second_pass)])
    found, count = correlation(parts[0], lambda x: next(answers))
    expected, total = class_correlation(student, teacher, mask, eps=0)
    torch.testing.assert_close(found, expected)
    assert count == total


def test_constant_maps_correlate_with_nothing(maps):
    _, teacher, mask = maps
    student = torch.full_like(teacher, 0.25).requires_grad_()
    both = [pixel_correlation(student, teacher, eps=1e-10)]
    both += [class_correlation(student, teacher, mask, eps=1e-10)[0]]
    both += [class_correlation(teacher, student.detach(), mask, eps=1e-10)[0]]
    assert all((found.abs() < 1e-9).all() for found in both)
    sum(found.sum() for found in both).backward()
    assert student.grad.isfinite().all()


def test_small_probabilities_keep_their_correlation_in_float32(maps):
    student, teacher, mask = (x.detach() for x in maps)
    expected = class_correlation(student, teacher, mask, eps=0)[0].float()
    student, teacher = 0.5 + 1e-3 * student.float(), 1e-3 * teacher.float()
    found = class_correlation(student, teacher, mask, eps=1e-12)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
