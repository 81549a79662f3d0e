import torch

from segkd.modules.position_critic import PositionCritic


def test_each_position_is_scored_alone_by_the_perceptron():
    torch.manual_seed(0)
    critic = PositionCritic(3, (5, 4), 2).double()
    maps = torch.randn(2, 3, 2, 3, dtype=torch.float64)
    scores = critic(maps)
    assert scores.shape == (2, 2, 2, 3)
    layers = [layer for layer in critic.layers if isinstance(layer, torch.nn.Conv2d)]
    for b, y, x in torch.cartesian_prod(*map(torch.arange, (2, 2, 3))).tolist():
        value = maps[b, :, y, x]
        for number, layer in enumerate(layers):
            value = layer.weight[:, :, 0, 0] @ value + layer.bias
            if number < 2:
                value = torch.tensor([v if v > 0 else 0.2 * v for v in value.tolist()]).double()
        torch.testing.assert_close(scores[b, :, y, x], value)


def test_it_is_in_full_precision_under_autocast():
    critic = PositionCritic(3, (5,))
    maps = torch.randn(1, 3, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        scores = critic(maps)
    assert scores.dtype is torch.float32
    torch.testing.assert_close(scores, critic(maps.float()), rtol=0, atol=0)
