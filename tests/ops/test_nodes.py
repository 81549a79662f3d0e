import pytest
import torch

from segkd.ops.nodes import distances, mean_or_zero, paired_nodes, share_of_largest, unit_rows


def test_pairs_are_raised_and_the_teacher_is_cut_off():
    student, teacher = torch.ones(2, 3, dtype=torch.float16), torch.ones(2, 4).requires_grad_()
    own, other = paired_nodes(student, teacher)
    assert own.dtype is torch.float32 and not other.requires_grad
    assert paired_nodes(student.double(), teacher)[0].dtype is torch.float64


@pytest.mark.parametrize("shapes", [((2, 3), (3, 3)), ((2, 3, 1), (2, 3)), ((2, 3), (2,))])
def test_what_is_no_pair_is_refused(shapes):
    with pytest.raises(ValueError, match="node_sampler"):
        paired_nodes(*map(torch.zeros, shapes))


def test_limit_is_named():
    nodes = torch.zeros(5, 2)
    assert len(paired_nodes(nodes, nodes, limit=5)[0]) == 5
    with pytest.raises(ValueError, match="node_limit=4: the cost grows with M³"):
        paired_nodes(nodes, nodes, limit=4, size="M³")


def test_rows_have_length_1_unless_their_root_mean_square_is_tiny():
    nodes = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-7, 1e-7], [2e-6, 0.0]]).requires_grad_()
    unit = unit_rows(nodes)
    torch.testing.assert_close(unit[0], torch.tensor([0.6, 0.8]))
    assert not unit[1:3].any() and unit[3, 0] == 1
    unit.sum().backward()
    assert not nodes.grad[1:3].any() and nodes.grad.isfinite().all()
    wide = torch.full((1, 10_000), 9e-7)
    assert wide.norm() > 1e-6 and not unit_rows(wide).any()


def test_distances_keep_what_inner_products_lose():
    nodes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1e-4]], dtype=torch.float64) + 1e7
    assert distances(nodes)[0, 2].item() == pytest.approx(1e-4, rel=1e-3)
    small = torch.tensor([[0.0], [1.0], [1.0 + 2e-6], [1.0 + 1e-7]], dtype=torch.float64)
    apart = distances(small)
    assert apart[1, 2] > 0 and apart[1, 3] == 0 and apart.dtype is torch.float64


def test_gradient_of_distances_is_finite_at_equal_nodes():
    nodes = torch.randn(3, 2)[[0, 1, 0, 2]].requires_grad_()
    apart = distances(nodes)
    apart.sum().backward()
    assert apart[0, 2] == 0 and nodes.grad.isfinite().all() and nodes.grad[1].any()


def test_empty_sets_have_a_graph():
    nodes = torch.zeros(0, 3, requires_grad=True)
    apart = share_of_largest(distances(nodes))
    assert apart.shape == (0, 0) and mean_or_zero(apart) == 0 and mean_or_zero(apart).requires_grad


def test_share_of_largest():
    assert share_of_largest(torch.tensor([1.0, 4.0])).tolist() == [0.25, 1]
    assert share_of_largest(torch.zeros(2)).tolist() == [0, 0]
