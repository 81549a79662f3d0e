import torch
import torch.nn.functional as F

from segkd.modules.context_block import ContextBlock

F64 = torch.float64


def block_of(channels, seed=0):
    torch.manual_seed(seed)
    block = ContextBlock(channels).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return block


def slow(block, maps, mask):
    """The equation, position by position."""
    out = torch.zeros_like(maps)
    for b in range(len(maps)):
        places = mask[b].nonzero().tolist()
        nodes = {(y, x): maps[b, :, y, x] for y, x in places}
        for place, node in nodes.items():
            query = block.query.weight @ node
            scores = [query @ (block.key.weight @ n) / len(query) ** 0.5 for n in nodes.values()]
            shares = torch.stack(scores).softmax(0)
            around = sum(
                share * (block.value.weight @ n)
                for share, n in zip(shares, nodes.values(), strict=True)
            )
            context = normed(block.spread.weight @ around, block.spread_norm).clamp(min=0)
            joined = block.join.weight @ torch.cat([node, context])
            out[b, :, place[0], place[1]] = normed(joined, block.join_norm).clamp(min=0)
    return out


def normed(vector, norm):
    centred = vector - vector.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def test_equals_the_equation():
    block = block_of(4)
    maps = torch.randn(2, 4, 3, 4, dtype=F64)
    mask = torch.rand(2, 3, 4) > 0.3
    torch.testing.assert_close(block(maps, mask), slow(block, maps, mask))


def test_an_image_of_padding_is_zero_and_has_finite_gradients():
    block = block_of(4)
    maps = torch.randn(2, 4, 3, 4, dtype=F64, requires_grad=True)
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[1] = False
    out = block(maps, mask)
    out.sum().backward()
    assert not out[1].any() and not maps.grad[1].any() and maps.grad[0].any()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


def test_it_starts_by_passing_features_on():
    torch.manual_seed(0)
    block = ContextBlock(32)
    maps = torch.randn(1, 32, 4, 4).relu()
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    plain = F.layer_norm(maps.movedim(1, -1), (32,)).relu().movedim(-1, 1)
    likeness = F.cosine_similarity(block(maps, mask), plain, dim=1)
    assert likeness.min() > 0.99
