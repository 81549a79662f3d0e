import pytest
import torch
import torch.nn.functional as F

from segkd.ops import principal
from segkd.ops.principal import group_directions, principal_directions


@pytest.fixture
def maps():
    """Maps whose first singular values are far apart, and non-negative like those of a ReLU."""
    draw = torch.Generator().manual_seed(3)
    parts = torch.rand(2, 7, 4, generator=draw, dtype=torch.float64)
    where = torch.rand(2, 4, 5 * 8, generator=draw, dtype=torch.float64)
    scale = torch.tensor([1.0, 0.5, 0.25, 0.1], dtype=torch.float64)
    maps = (parts * scale) @ where + 1e-3 * torch.rand(
        2, 7, 40, generator=draw, dtype=torch.float64
    )
    mask = torch.rand(2, 5, 8, generator=draw) > 0.3
    return maps.view(2, 7, 5, 8), mask


def exact(maps, mask, number):
    """Right singular vectors of each image's rows, positive in the mean of the rows."""
    found = []
    for image, valid in zip(maps, mask, strict=True):
        rows = torch.stack([image[:, y, x] for y, x in valid.nonzero().tolist()])
        vectors = torch.linalg.svd(rows, full_matrices=False)[2][:number]
        found.append(vectors.T * (rows.mean(0) @ vectors.T).sign())
    return torch.stack(found)


def test_equals_the_singular_vectors(maps):
    values, mask = maps
    found = principal_directions(values, mask, 3)
    vectors = exact(values, mask, 3)
    torch.testing.assert_close(found[..., 0], vectors[..., 0], rtol=0, atol=1e-9)
    cosines = (found * vectors).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones_like(cosines), rtol=0, atol=1e-4)


def test_fewer_positions_than_channels_need_no_square_matrix(maps):
    values, mask = maps
    thin = values[:, :, :1, :6]
    found = principal_directions(thin, mask[:, :1, :6] | True)
    expected = exact(thin, torch.ones(2, 1, 6, dtype=torch.bool), 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_the_sign_does_not_depend_on_the_solver(maps):
    values, mask = maps
    found = principal_directions(values, mask)
    assert (found > 0).all()  # of non-negative maps
    torch.testing.assert_close(principal_directions(-values, mask), -found)


def test_gradient_is_nearly_that_of_the_decomposition(maps):
    values, mask = maps
    values.requires_grad_()
    weights = torch.linspace(-1, 1, 7, dtype=torch.float64)
    slopes = [
        torch.autograd.grad((found[..., 0] @ weights).sum(), values)[0].flatten()
        for found in (principal_directions(values, mask), exact(values, mask, 1))
    ]
    assert F.cosine_similarity(*slopes, dim=0) > 0.99
    assert slopes[0].norm() / slopes[1].norm() == pytest.approx(1, abs=0.1)


def test_groups_of_positions_have_directions_of_their_own(maps):
    values, mask = maps
    values.requires_grad_()
    groups = torch.stack([mask.flatten(1), ~mask.flatten(1)], dim=1)
    found = group_directions(values, groups)
    weights = torch.linspace(-1, 1, 7, dtype=torch.float64)
    for group, part in enumerate((mask, ~mask)):
        vectors = exact(values, part, 1)[..., 0]
        torch.testing.assert_close(found[:, group], vectors, rtol=0, atol=1e-6)
        slopes = [
            torch.autograd.grad((rows @ weights).sum(), values, retain_graph=True)[0].flatten()
            for rows in (found[:, group], vectors)
        ]
        assert F.cosine_similarity(*slopes, dim=0) > 0.99
    length = torch.autograd.grad(found.square().sum(), values)[0]
    assert length.abs().max() < 1e-9  # it is 1, whatever the features


def test_gradient_of_dead_channels_is_finite(maps):
    """Equal eigenvalues: the gradient of a full decomposition is NaN."""
    values, mask = maps
    values[:, 3:] = 0
    values.requires_grad_()
    vectors = torch.linalg.svd(values[0].flatten(1).T, full_matrices=False)[2]
    slope = torch.autograd.grad(vectors[0, :3].sum(), values)[0]
    assert not slope.isfinite().all()
    for number in (1, 4):
        found = principal_directions(values, mask, number)
        slope = torch.autograd.grad(found[:, :3].sum(), values)[0]
        assert found.isfinite().all() and slope.isfinite().all()


def test_directions_that_do_not_exist_are_zero():
    flat = torch.ones(1, 3, 4, 5) * torch.tensor([2.0, 0.0, 1.0]).view(1, 3, 1, 1)
    found = principal_directions(flat, torch.ones(1, 4, 5, dtype=torch.bool), 4)
    expected = torch.zeros(1, 3, 4)
    expected[0, :, 0] = torch.tensor([2.0, 0.0, 1.0]) / 5**0.5
    torch.testing.assert_close(found, expected)
    empty = principal_directions(flat, torch.zeros(1, 4, 5, dtype=torch.bool))
    assert (empty == 0).all()


def test_huge_and_tiny_features_have_the_same_directions(maps):
    values, mask = maps
    found = principal_directions(values.float(), mask)
    for factor in (1e-25, 1e25):
        torch.testing.assert_close(principal_directions(factor * values.float(), mask), found)


def test_the_square_matrix_is_formed_once(maps, monkeypatch):
    values, mask = maps
    sizes = []
    original = principal._orthonormal
    monkeypatch.setattr(principal, "_orthonormal", lambda x: sizes.append(x.shape) or original(x))
    with torch.autograd.profiler.profile() as profile:
        principal_directions(values, mask)
    products = sum(event.count for event in profile.key_averages() if event.key == "aten::bmm")
    assert len(sizes) == principal.STEPS + 1
    # X Xᵀ, a product per step, and those of the gradient
    assert products <= principal.STEPS + 6
