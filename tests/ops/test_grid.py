import pytest
import torch

from segkd.ops.grid import grid_means

F64 = torch.float64


def slow(maps, mask, grid):
    """Each position in 60 x 60 parts, which are then sorted into cells one by one."""
    parts = 60
    rows, columns = (torch.arange(n * parts) for n in maps.shape[-2:])
    row = (rows * grid[0]).div(len(rows), rounding_mode="floor")
    column = (columns * grid[1]).div(len(columns), rounding_mode="floor")
    fine = maps[:, :, rows // parts][..., columns // parts]
    valid = mask[:, rows // parts][..., columns // parts]
    means = torch.zeros(*maps.shape[:2], *grid, dtype=F64)
    keep = torch.zeros(len(maps), *grid, dtype=torch.bool)
    for b in range(len(maps)):
        for y in range(grid[0]):
            for x in range(grid[1]):
                cell = (row == y)[:, None] & (column == x) & valid[b]
                keep[b, y, x] = cell.any()
                if cell.any():
                    means[b, :, y, x] = fine[b][:, cell].mean(1)
    return means, keep


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(3)
    maps = torch.randn(2, 3, 4, 6, generator=draw, dtype=F64)
    mask = torch.rand(2, 4, 6, generator=draw) > 0.4
    mask[1, :2, :3] = False
    return maps, mask


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 6), (3, 4), (5, 10), (2, 12)])
def test_equals_the_mean_over_parts_of_positions(maps, grid):
    found = grid_means(*maps, grid)
    expected = slow(*maps, grid)
    torch.testing.assert_close(found, expected)
    assert not found[0].masked_select(~found[1].unsqueeze(1)).any()


def test_the_size_of_the_map_does_not_matter(maps):
    larger = [x.repeat_interleave(2, -2).repeat_interleave(2, -1) for x in maps]
    torch.testing.assert_close(grid_means(*larger, (3, 5)), grid_means(*maps, (3, 5)))


def test_what_is_invalid_may_be_anything_and_gets_no_gradient(maps):
    values, mask = maps
    spoilt = values.masked_fill(~mask.unsqueeze(1), torch.nan).requires_grad_()
    means, keep = grid_means(spoilt, mask, (3, 4))
    torch.testing.assert_close(means, grid_means(values, mask, (3, 4))[0])
    means.sum().backward()
    assert not spoilt.grad.masked_select(~mask.unsqueeze(1)).any() and spoilt.grad.any()
    assert not grid_means(values, mask & False, (3, 4))[1].any() and keep.any()


def test_half_types_are_raised_also_under_autocast(maps):
    values, mask = maps
    with torch.autocast("cpu", torch.bfloat16):
        means, _ = grid_means(values.bfloat16(), mask, (3, 4))
    assert means.dtype is torch.float32
    expected, _ = grid_means(values.bfloat16().float(), mask, (3, 4))
    torch.testing.assert_close(means, expected, rtol=0, atol=0)
