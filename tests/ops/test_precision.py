"""Where float32 products may be rounded, and what that changes."""

from contextlib import contextmanager

import pytest
import torch

from segkd.ops import similarity_kl, symmetric_kl
from segkd.ops.precision import full_precision, ieee_products, tf32_products
from segkd.ops.similarity_kl import mean_similarity_kl, unit

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
MATMUL = torch.backends.cuda.matmul


def test_tf32_is_for_cuda_and_ends_with_its_block():
    assert MATMUL.fp32_precision == "none"
    with tf32_products(CPU):
        assert MATMUL.fp32_precision == "none"
    with pytest.raises(ZeroDivisionError), tf32_products(CUDA):
        assert MATMUL.fp32_precision == "tf32"
        raise ZeroDivisionError
    assert MATMUL.fp32_precision == "none"


def test_a_precision_that_was_chosen_stays():
    with ieee_products(), tf32_products(CUDA):
        assert MATMUL.fp32_precision == "ieee"
    with tf32_products(CUDA):
        with full_precision(CUDA):
            assert MATMUL.fp32_precision == "ieee"
        assert MATMUL.fp32_precision == "tf32"


def test_threads_that_overlap_leave_the_precision_as_it_was():
    first, second = ieee_products(), ieee_products()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert MATMUL.fp32_precision == "ieee"
    second.__exit__(None, None, None)
    assert MATMUL.fp32_precision == "none"


def test_convolutions_are_full_only_where_asked_for():
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    with ieee_products():
        assert convolutions.fp32_precision == before
    with ieee_products(convolutions=True):
        assert convolutions.fp32_precision == "ieee"
    assert convolutions.fp32_precision == before


def tf32(values):
    """Rounds float32 to a mantissa of ten bits, as tensor cores do with operands."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)


def divergence(student, teacher, rounded, temperature=0.1):
    """KL of the similarities of all nodes to those of each image, and its gradient, written out."""
    images, size, _ = student.shape
    rows = []
    for nodes in (student, teacher):
        flat = nodes.flatten(0, 1)
        products = rounded(flat / temperature) @ rounded(flat).T
        rows.append(products.view(-1, images, size).log_softmax(2))
    log_s, log_t = rows
    difference = (log_s.exp() - log_t.exp()).flatten(1)
    flat = student.flatten(0, 1)
    gradient = rounded(difference) @ rounded(flat / temperature)
    gradient += rounded(difference.T) @ rounded(flat / temperature)
    return (log_t.exp() * (log_t - log_s)).sum(), gradient


@pytest.mark.parametrize("channels", [64, 512])
@pytest.mark.parametrize("apart", [0.2, 1.0])
def test_similarities_of_unit_vectors_bear_tf32(channels, apart):
    draw = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, channels, generator=draw)

    teacher = unit(2 * noise(2, 1) + noise(2, 256))
    student = unit(teacher + apart * noise(2, 256) / channels**0.5)
    exact, exact_gradient = divergence(student, teacher, lambda x: x)
    value, gradient = divergence(student, teacher, tf32)
    assert abs(value - exact) < 1e-3 * exact
    assert (gradient - exact_gradient).norm() < 1e-2 * exact_gradient.norm()
    coarse, _ = divergence(student, teacher, lambda x: x.bfloat16().float())
    assert abs(coarse - exact) > abs(value - exact)


@pytest.mark.parametrize(("nodes", "module"), [(256, symmetric_kl), (40, similarity_kl)])
def test_similarities_are_such_products(monkeypatch, nodes, module):
    inside = []

    @contextmanager
    def noted(device):
        inside.append(device.type)
        yield

    monkeypatch.setattr(module, "tf32_products", noted)
    vectors = unit(torch.randn(2, nodes, 8))
    keep = torch.ones(2, nodes, dtype=torch.bool)
    mean_similarity_kl(vectors, vectors, keep, vectors, vectors, keep, 0.1)
    assert inside == ["cpu"]


@pytest.mark.gpu
def test_tf32_changes_a_divergence_on_cuda_by_less_than_a_thousandth():
    draw = torch.Generator().manual_seed(0)
    teacher = unit(torch.randn(2, 512, 128, generator=draw))
    student = unit(teacher + torch.randn(2, 512, 128, generator=draw) / 128**0.5)
    keep = torch.ones(2, 512, dtype=torch.bool)
    on_cpu = student.clone().requires_grad_()
    there = student.cuda().requires_grad_()
    values = []
    for mine, other, kept in ((on_cpu, teacher, keep), (there, teacher.cuda(), keep.cuda())):
        value, _ = mean_similarity_kl(mine, other, kept, mine, other, kept, 0.1)
        value.backward()
        values.append(value.item())
    assert values[1] == pytest.approx(values[0], rel=1e-3)
    assert (there.grad.cpu() - on_cpu.grad).norm() < 1e-2 * on_cpu.grad.norm()
