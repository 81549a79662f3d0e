import itertools

import torch

from segkd.ops.resize import common_size, match_sizes, reduce_valid


def test_each_axis_takes_the_smaller_size():
    student, teacher = torch.randn(2, 3, 8, 5), torch.randn(2, 7, 4, 10)
    assert common_size(student, teacher) == (4, 5)
    small_student, small_teacher = match_sizes(student, teacher)
    assert small_student.shape == (2, 3, 4, 5) and small_teacher.shape == (2, 7, 4, 5)
    torch.testing.assert_close(small_student[1, 2, 3, 4], student[1, 2, 6:8, 4].mean())
    torch.testing.assert_close(small_teacher[1, 6, 3, 4], teacher[1, 6, 3, 8:10].mean())


def test_equal_sizes_pass_unchanged():
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    matched = match_sizes(student, teacher)
    assert matched[0] is student and matched[1] is teacher


def test_half_types_are_raised_and_float64_stays():
    student, teacher = torch.randn(1, 2, 3, 3).bfloat16(), torch.randn(1, 2, 3, 3).double()
    student, teacher = match_sizes(student, teacher)
    assert student.dtype is torch.float32 and teacher.dtype is torch.float64


def test_a_cell_is_the_mean_of_its_valid_positions():
    draw = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 6, 4, generator=draw, dtype=torch.float64)
    mask = torch.rand(2, 6, 4, generator=draw) > 0.5
    mask[0, :3, :2] = False  # a cell without any
    found = reduce_valid(maps.masked_fill(~mask.unsqueeze(1), torch.nan), mask, (2, 2))
    for b, y, x in itertools.product(range(2), range(2), range(2)):
        cell = slice(3 * y, 3 * y + 3), slice(2 * x, 2 * x + 2)
        inside = maps[b][:, *cell][:, mask[b][cell]]
        expected = inside.mean(1) if inside.numel() else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(found[b, :, y, x], expected)
    assert reduce_valid(maps, mask, (6, 4)) is maps
    torch.testing.assert_close(
        reduce_valid(maps, torch.ones_like(mask), (2, 2)), match_sizes(maps, maps[..., :2, :2])[0]
    )
