import torch

from segkd.modules.node_projector import node_projector


def test_each_position_is_projected_alone():
    torch.manual_seed(0)
    project, nodes = node_projector(5, 8), torch.randn(2, 7, 5)
    projected = project(nodes)
    assert projected.shape == (2, 7, 8) and not any("running" in n for n in project.state_dict())
    changed = nodes.clone()
    changed[:, 3:] = 100
    torch.testing.assert_close(project(changed)[:, :3], projected[:, :3])


def test_a_dead_position_has_a_finite_gradient():
    nodes = torch.zeros(1, 3, 5, requires_grad=True)
    node_projector(5, 8)(nodes).sum().backward()
    assert nodes.grad.isfinite().all()
