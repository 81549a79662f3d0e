import torch

from segkd.methods.fgd import GlobalContext


def block():
    torch.manual_seed(0)
    module = GlobalContext(3).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return module


def test_a_new_block_is_the_identity():
    maps = torch.randn(2, 4, 3, 5)
    assert torch.equal(GlobalContext(4)(maps, torch.ones(2, 3, 5) > 0), maps)


def test_equals_a_loop_over_positions():
    module, maps = block(), torch.randn(2, 3, 2, 4, dtype=torch.float64)
    mask = torch.rand(2, 2, 4) > 0.4
    found = module(maps, mask)
    for b in range(2):
        places = mask[b].nonzero().tolist()
        vectors = [maps[b, :, y, x] for y, x in places]
        scores = [(module.score.weight[0, :, 0, 0] @ v + module.score.bias[0]) for v in vectors]
        total = sum(score.exp() for score in scores)
        context = sum(score.exp() / total * v for score, v in zip(scores, vectors, strict=True))
        expected = maps[b] + module.transform(context)[:, None, None]
        torch.testing.assert_close(found[b], expected, rtol=1e-6, atol=1e-6)


def test_an_image_without_valid_positions_is_finite():
    module = block()
    maps = torch.zeros(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    module(maps, torch.zeros(1, 2, 2) > 0).sum().backward()
    assert maps.grad.isfinite().all()
