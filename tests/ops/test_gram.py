import math

import pytest
import torch
from torch import Tensor

from segkd.ops import gram
from segkd.ops.blocks import BlockSize
from segkd.ops.gram import affinity_distance, pool_nodes

F64 = torch.float64


def cosines(nodes: Tensor, *, detach_norm: bool = False) -> Tensor:
    """(B, N, N), the map that the operation never makes."""
    norm = nodes.norm(dim=1, keepdim=True)
    unit = nodes / (norm.detach() if detach_norm else norm)
    return unit.mT @ unit


def direct(student: Tensor, teacher: Tensor, keep: Tensor, *, detach_norm: bool = False) -> Tensor:
    pairs = keep.unsqueeze(1) & keep.unsqueeze(2)
    difference = cosines(student, detach_norm=detach_norm) - cosines(teacher)
    return (difference.square() * pairs).sum()


def draw(*shapes: tuple[int, ...], dtype: torch.dtype = F64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator, dtype=F64).to(dtype) for shape in shapes]


def some(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(8)) > 0.3


# Channels of both and nodes; the form that is cheaper.
SIZES = {"gram": (3, 5, 40), "gram, wide student": (6, 2, 40), "direct": (12, 20, 7)}
every_form = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


def test_both_forms_are_tested():
    for name, sizes in SIZES.items():
        assert gram._direct_is_cheaper(*sizes) == (name == "direct")


@pytest.mark.parametrize("channels", [16, 128, 512])
def test_direct_form_is_taken_below_five_thirds_of_the_channels(channels):
    assert gram._direct_is_cheaper(channels, channels, math.floor(1.6 * channels))
    assert not gram._direct_is_cheaper(channels, channels, math.ceil(1.7 * channels))


@pytest.fixture(params=[2**18, 64], ids=["one block", "many blocks"])
def block(request, monkeypatch):
    monkeypatch.setattr(gram, "_BLOCK", BlockSize(request.param, request.param))


@every_form
def test_equals_the_sum_over_pairs(sizes, block):
    c_s, c_t, n = sizes
    student, teacher = draw((3, c_s, n), (3, c_t, n))
    keep = some(3, n)
    keep[1] = False
    total = 0.0
    for s, t, valid in zip(student, teacher, keep, strict=True):
        for i in valid.nonzero().flatten().tolist():
            for j in valid.nonzero().flatten().tolist():
                a_s = s[:, i].dot(s[:, j]) / s[:, i].norm() / s[:, j].norm()
                a_t = t[:, i].dot(t[:, j]) / t[:, i].norm() / t[:, j].norm()
                total += (a_s - a_t).item() ** 2
    assert affinity_distance(student, teacher, keep=keep).item() == pytest.approx(total, rel=1e-10)


@every_form
@pytest.mark.parametrize("detach_norm", [False, True])
def test_gradient_equals_that_of_the_sum_over_pairs(sizes, block, detach_norm):
    c_s, c_t, n = sizes
    student, teacher = draw((3, c_s, n), (3, c_t, n))
    student.requires_grad_()
    keep = some(3, n)
    gradients = []
    for form in (affinity_distance, direct):
        value = 3 * form(student, teacher, keep=keep, detach_norm=detach_norm)
        gradients += torch.autograd.grad(value, student)
    found, expected = gradients
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert not found.movedim(1, 2)[~keep].any()


@every_form
def test_gradient_is_right(sizes, block):
    c_s, c_t, n = sizes
    student, teacher = draw((2, c_s, n), (2, c_t, n))
    keep = some(2, n)
    assert torch.autograd.gradcheck(
        lambda s: affinity_distance(s, teacher, keep=keep), student.requires_grad_()
    )


@pytest.mark.parametrize("distance", [3.0, 0.1, 1e-3])
@pytest.mark.parametrize("channels", [(32, 64), (64, 64)])
def test_single_precision_is_as_good_as_the_norms_allow(channels, distance):
    """The student is the teacher behind a projection that keeps angles, plus noise."""
    c_s, c_t = channels
    n = 2048
    base, noise, rotation = draw((2, min(channels), n), (2, c_s, n), (c_t, c_t))
    turned = torch.linalg.qr(rotation).Q[:, : min(channels)] @ base
    student, teacher = (base + distance * noise).float(), turned.float()
    found = affinity_distance(student, teacher) / n**2
    exact = direct(student.double(), teacher.double(), some(2, n) | True) / n**2
    scale = sum(cosines(nodes.double()).square().sum() for nodes in (student, teacher)) / n**2
    assert found.dtype is torch.float32
    assert abs(found.double() - exact) < 1e-6 * scale


@every_form
def test_gradient_points_the_right_way_when_the_student_is_almost_the_teacher(sizes):
    c, _, n = sizes
    base, noise, rotation = draw((2, c, n), (2, c, n), (c, c))
    teacher = torch.linalg.qr(rotation).Q @ base
    student = (base + 1e-3 * noise).requires_grad_()
    (exact,) = torch.autograd.grad(direct(student, teacher, some(2, n) | True), student)
    student = student.detach().float().requires_grad_()
    (found,) = torch.autograd.grad(affinity_distance(student, teacher.float()), student)
    assert torch.cosine_similarity(found.double().flatten(), exact.flatten(), dim=0) > 0.9999
    assert found.double().norm() == pytest.approx(exact.norm().item(), rel=1e-2)


@every_form
def test_never_below_zero(sizes):
    c, _, n = sizes
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        student = torch.randn(2, c, n, generator=generator)
        rotation = torch.linalg.qr(torch.randn(c, c, generator=generator)).Q
        assert 0 <= affinity_distance(student, rotation @ student) < 1e-6 * n**2


@every_form
def test_nodes_without_direction_are_finite_and_get_no_gradient(sizes):
    c_s, c_t, n = sizes
    student, teacher = draw((2, c_s, n), (2, c_t, n), dtype=torch.float32)
    student[:, :, 0], student[:, :, 1] = 0, 1e-9
    teacher[:, :, 1], teacher[:, :, 2] = 0, 0
    student.requires_grad_()
    value = affinity_distance(student, teacher)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()
    assert not student.grad[:, :, :2].any() and student.grad[:, :, 2].any()
    unit_s, unit_t = (torch.nn.functional.normalize(x, dim=1) for x in (student, teacher))
    unit_s = unit_s * (torch.arange(n) > 1)
    expected = (unit_s.mT @ unit_s - unit_t.mT @ unit_t).square().sum()
    torch.testing.assert_close(value, expected)


def test_large_and_small_features_have_the_same_cosines():
    student, teacher = draw((2, 3, 40), (2, 5, 40), dtype=torch.float32)
    expected = affinity_distance(student, teacher)
    for own, other in ((1e-3, 1e10), (1e10, 1e-3)):
        found = affinity_distance(student * own, teacher * other)
        torch.testing.assert_close(found, expected)


@every_form
def test_half_types_are_raised(sizes):
    c_s, c_t, n = sizes
    student, teacher = (x.bfloat16() for x in draw((2, c_s, n), (2, c_t, n)))
    student.requires_grad_()
    value = affinity_distance(student, teacher)
    value.backward()
    wide = student.detach().float().requires_grad_()
    expected = affinity_distance(wide, teacher.float())
    expected.backward()
    assert value.dtype is torch.float32 and student.grad.dtype is torch.bfloat16
    assert value == expected
    torch.testing.assert_close(student.grad, wide.grad.bfloat16())


@every_form
def test_autocast_and_fast_products_change_nothing(sizes):
    c_s, c_t, n = (8 * size for size in sizes)
    student, teacher = draw((2, c_s, n), (2, c_t, n), dtype=torch.float32)
    student.requires_grad_()
    expected = affinity_distance(student, teacher)
    (gradient,) = torch.autograd.grad(expected, student)
    parts = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [part.fp32_precision for part in parts]
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            found = affinity_distance(student, teacher)
            (found_gradient,) = torch.autograd.grad(found, student)
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        # "highest" would set each part to "ieee", where it was "none": later tests would see it.
        torch.set_float32_matmul_precision("highest")
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision
    assert found == expected and torch.equal(found_gradient, gradient)


def test_channels_last_is_the_same():
    student, teacher = draw((2, 3, 5, 8), (2, 5, 5, 8))
    expected = affinity_distance(student.flatten(2), teacher.flatten(2))
    last = [x.to(memory_format=torch.channels_last).requires_grad_() for x in (student, teacher)]
    found = affinity_distance(*(x.flatten(2) for x in last))
    torch.testing.assert_close(found, expected)
    found.backward()
    assert last[0].grad.is_contiguous(memory_format=torch.channels_last) and last[1].grad is None


def test_keeps_no_map_of_nodes_by_nodes():
    student, teacher = draw((2, 8, 500), (2, 16, 500), dtype=torch.float32)
    student.requires_grad_()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: sizes.append(x.numel()) or x, lambda x: x
    ):
        affinity_distance(student, teacher, keep=some(2, 500)).backward()
    beside = sum(sizes) - student.numel() - teacher.numel()
    assert beside == 2 * (8 * 8 + 8 * 16) + 2 * 2 * 500
    sizes.clear()
    affinity_distance(student.detach(), teacher)
    assert not sizes


def test_backward_can_run_twice():
    student, teacher = draw((2, 3, 40), (2, 5, 40))
    student.requires_grad_()
    value = affinity_distance(student, teacher)
    first, second = (torch.autograd.grad(value, student, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_different_nodes_are_refused():
    for shape in ((2, 5, 39), (3, 5, 40)):
        with pytest.raises(ValueError, match="match_sizes"):
            affinity_distance(torch.ones(2, 3, 40), torch.ones(shape))


# -- pooling ---------------------------------------------------------------------------------------


def windows(pool: int | float | tuple[int, int], length: int, axis: int) -> list[range]:
    """The positions of each window along one axis."""
    if isinstance(pool, tuple):
        count = pool[axis]
        return [
            range(math.floor(i * length / count), math.ceil((i + 1) * length / count))
            for i in range(count)
        ]
    side = pool if isinstance(pool, int) else int(pool * length)
    return [range(start, min(start + side, length)) for start in range(0, length, side)]


@pytest.mark.parametrize("pool", [1, 2, 3, 5, 0.5, 0.3, (2, 3), (1, 1), (5, 7), (3, 5)], ids=str)
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_pools_the_valid_positions_of_each_window(pool, kind):
    (maps,) = draw((2, 3, 5, 7))
    mask = some(2, 5, 7)
    mask[0, :3, :4] = False
    nodes, valid = pool_nodes(maps, mask, pool, kind)
    rows, columns = windows(pool, 5, 0), windows(pool, 7, 1)
    assert nodes.shape == (2, 3, len(rows), len(columns)) and valid.shape == nodes[:, 0].shape
    for b in range(2):
        for y, row in enumerate(rows):
            for x, column in enumerate(columns):
                part = [maps[b, :, i, j] for i in row for j in column if mask[b, i, j]]
                assert valid[b, y, x] == bool(part)
                if not part:
                    assert not nodes[b, :, y, x].any()
                    continue
                part = torch.stack(part)
                expected = part.mean(0) if kind == "avg" else part.max(0).values
                torch.testing.assert_close(nodes[b, :, y, x], expected)


@pytest.mark.parametrize("pool", [2, 0.5, (2, 3)], ids=str)
@pytest.mark.parametrize("kind", ["avg", "max"])
def test_gradient_of_pooling_is_right_and_spares_invalid_positions(pool, kind):
    (maps,) = draw((2, 3, 5, 7))
    maps.requires_grad_()
    mask = some(2, 5, 7)
    mask[0, :3, :4] = False
    assert torch.autograd.gradcheck(lambda x: pool_nodes(x, mask, pool, kind)[0], maps)
    spoiled = torch.where(mask.unsqueeze(1), maps, torch.nan)
    nodes, _ = pool_nodes(spoiled, mask, pool, kind)
    torch.testing.assert_close(nodes, pool_nodes(maps, mask, pool, kind)[0])
    nodes.square().sum().backward()
    assert not maps.grad.movedim(1, 3)[~mask].any() and maps.grad.any()


def test_without_pooling_nothing_is_copied():
    (maps,) = draw((2, 3, 5, 7))
    mask = some(2, 5, 7)
    assert pool_nodes(maps, mask, None) == (maps, mask)


def test_pooling_raises_half_types():
    maps, mask = torch.ones(1, 2, 4, 4, dtype=torch.float16), some(1, 4, 4)
    assert all(pool_nodes(maps, mask, 2, kind)[0].dtype is torch.float32 for kind in ("avg", "max"))


@pytest.mark.parametrize("pool", [6, 0, -1, 0.1, 1.0, 2.5, -0.5, (6, 7), (5, 8), (0, 2)], ids=str)
def test_pooling_that_does_not_fit_is_refused(pool):
    with pytest.raises(
        ValueError, match=r"map of 5x7: choose at most 5.* grid of at most \(5, 7\)"
    ):
        pool_nodes(torch.ones(1, 2, 5, 7), some(1, 5, 7), pool)
