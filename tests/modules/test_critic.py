import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from segkd.modules.critic import Critic, SelfAttention, critic_losses, frozen, gradient_penalty

F64 = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(3)


def awake(critic):
    """The critic with attention that does something: gamma is 0 at the start."""
    for module in critic.modules():
        if isinstance(module, SelfAttention):
            nn.init.constant_(module.gamma, 0.7)
    return critic.double()


# -- attention -------------------------------------------------------------------------------------


def attended(layer, features):
    """The equation, position by position, for one image (C, h, w)."""
    channels, h, w = features.shape
    places = [features[:, y, x] for y in range(h) for x in range(w)]

    def apply(convolution, vector):
        weight = convolution.weight[:, :, 0, 0]
        return weight @ vector + (0 if convolution.bias is None else convolution.bias)

    rows = []
    for place in places:
        logits = [apply(layer.query, place) @ apply(layer.key, other) for other in places]
        total = sum(math.exp(z) for z in logits)
        mixed = sum(
            math.exp(z) / total * apply(layer.value, other)
            for z, other in zip(logits, places, strict=True)
        )
        rows.append(place + layer.gamma * mixed)
    return torch.stack(rows, dim=1).view(channels, h, w)


def test_attention_equals_the_equation():
    layer = SelfAttention(16).double()
    nn.init.constant_(layer.gamma, 0.7)
    features = torch.randn(2, 16, 2, 3, dtype=F64)
    with torch.no_grad():
        expected = torch.stack([attended(layer, image) for image in features])
        torch.testing.assert_close(layer(features), expected)


def test_attention_starts_as_the_identity_and_can_leave_it():
    layer, features = SelfAttention(4), torch.randn(2, 4, 3, 5)
    assert torch.equal(layer(features), features)
    layer(features).square().sum().backward()
    assert layer.gamma.grad != 0


# -- the critic ------------------------------------------------------------------------------------


def test_it_has_the_size_of_the_published_one():
    assert sum(p.numel() for p in Critic(19).parameters()) == pytest.approx(3.2e6, rel=0.01)
    assert Critic(19).body[0].in_channels == 22
    assert Critic(19, condition_on_image=False).body[0].in_channels == 19


@pytest.mark.parametrize("size", [(1, 1), (4, 6), (8, 12), (16, 16), (17, 33), (45, 45), (64, 128)])
@pytest.mark.parametrize("image", [True, False])
def test_one_score_per_image_for_maps_of_any_size(size, image):
    critic = Critic(3, condition_on_image=image, width=2)
    maps, picture = torch.rand(2, 3, *size), torch.randn(2, 3, *size) if image else None
    scores = critic(maps, picture)
    assert scores.shape == (2,) and scores.isfinite().all() and scores[0] != scores[1]


def test_small_maps_are_continued_by_what_invalid_positions_hold():
    critic = awake(Critic(3, condition_on_image=False, width=4))
    maps = torch.rand(2, 3, 9, 20, dtype=F64)
    larger = torch.zeros(2, 3, 16, 20, dtype=F64)
    larger[:, :, :9] = maps
    torch.testing.assert_close(critic(maps), critic(larger))


@pytest.mark.parametrize("spectral", [True, False])
def test_an_image_is_scored_without_regard_to_the_others(spectral):
    critic = awake(Critic(3, width=4, spectral_norm=spectral)).eval()
    maps, images = torch.rand(2, 4, 3, 16, 24, dtype=F64)
    alone = [critic(maps[i : i + 1], images[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(critic(maps, images), torch.cat(alone))


def test_the_image_matters():
    critic = Critic(3, width=4)
    maps, images = torch.rand(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    assert (critic(maps, images) != critic(maps, -images)).all()


def test_nothing_is_computed_in_half_precision():
    critic = Critic(3, condition_on_image=False, width=4)
    maps = torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        scores = critic(maps.bfloat16().float())
    assert scores.dtype is torch.float32
    assert torch.equal(scores, critic(maps.bfloat16()))


# -- spectral norm ---------------------------------------------------------------------------------


def singular_values(critic):
    return [
        torch.linalg.svdvals(layer.weight.detach().flatten(1))[0].item()
        for layer in critic.body
        if isinstance(layer, nn.Conv2d)
    ]


def test_spectral_norm_bounds_the_four_convolutions():
    critic = Critic(3, width=4, spectral_norm=True)
    maps = torch.rand(1, 3, 16, 16)
    for _ in range(50):
        critic(maps, maps)
    assert singular_values(critic.eval()) == pytest.approx([1.0] * 4, rel=0.02)
    assert singular_values(Critic(3, width=4)) != pytest.approx([1.0] * 4, rel=0.02)


def buffers(critic):
    return {name: value.clone() for name, value in critic.named_buffers()}


def same_buffers(critic, expected):
    return all(torch.equal(value, expected[name]) for name, value in critic.named_buffers())


def test_the_power_iteration_depends_on_the_weights_alone_and_rests_in_eval():
    critics = [Critic(3, width=4, spectral_norm=True) for _ in range(2)]
    critics[1].load_state_dict(critics[0].state_dict())
    start = buffers(critics[0])
    for critic in critics:  # each with data of its own, as processes have
        critic(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16))
    assert len(start) == 8 and not same_buffers(critics[0], start)
    moved = buffers(critics[0])
    assert same_buffers(critics[1], moved)
    critics[0].eval()(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16))
    assert same_buffers(critics[0], moved)


# -- frozen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spectral", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_frozen_gives_the_gradient_of_the_inputs_and_leaves_no_trace(
    spectral, training, requires_grad
):
    critic = awake(Critic(3, condition_on_image=False, width=4, spectral_norm=spectral))
    critic.train(training).requires_grad_(requires_grad)
    critic.body[1].eval()
    modes, start = [m.training for m in critic.modules()], buffers(critic)
    maps = torch.rand(2, 3, 16, 20, dtype=F64, requires_grad=True)
    scores = frozen(critic, maps)
    (found,) = torch.autograd.grad(scores.sum(), maps)
    scores = frozen(critic, maps)
    scores.sum().backward()
    assert all(p.grad is None and p.requires_grad == requires_grad for p in critic.parameters())
    assert [m.training for m in critic.modules()] == modes and same_buffers(critic, start)
    plain = critic.eval()(maps)
    torch.testing.assert_close(scores, plain)
    torch.testing.assert_close(found, torch.autograd.grad(plain.sum(), maps)[0])


def test_frozen_restores_the_modes_after_an_error():
    critic = Critic(3, condition_on_image=False, width=4)
    with pytest.raises(RuntimeError):
        frozen(critic, torch.rand(1, 7, 16, 16))
    assert all(module.training for module in critic.modules())


# -- the penalty -----------------------------------------------------------------------------------


def test_penalty_of_a_plane_is_known():
    slope = torch.randn(1, 2, 3, 4, dtype=F64)
    real, fake = torch.rand(2, 5, 2, 3, 4, dtype=F64)
    found = gradient_penalty(lambda x: (x * slope).flatten(1).sum(1), real, fake, torch.rand(5))
    expected = (math.sqrt((slope**2).sum()) - 1) ** 2
    torch.testing.assert_close(found, torch.full((5,), expected, dtype=F64))


def test_penalty_is_taken_between_the_maps_with_an_own_share_for_each_image():
    real, fake = torch.rand(2, 3, 1, 2, 2, dtype=F64)
    mix = torch.tensor([0.0, 1.0, 0.3], dtype=F64)
    found = gradient_penalty(lambda x: x.square().flatten(1).sum(1), real, fake, mix)
    points = [fake[0], real[1], 0.3 * real[2] + 0.7 * fake[2]]
    expected = [(2 * point.square().sum().sqrt().item() - 1) ** 2 for point in points]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64))


def test_penalty_teaches_the_critic_and_neither_map():
    weight = torch.randn(1, 2, 3, 3, dtype=F64, requires_grad=True)
    real, fake = torch.rand(2, 4, 2, 3, 3, dtype=F64)
    real.requires_grad_(), fake.requires_grad_()
    found = gradient_penalty(
        lambda x: (x.square() * weight).flatten(1).sum(1), real, fake, torch.rand(4)
    )
    found.sum().backward()
    assert weight.grad.all() and real.grad is None and fake.grad is None


def slow_penalty(score, real, fake, mix, step=1e-5):
    """Central differences of each image's score in each entry of its map."""
    values = []
    for i in range(len(real)):
        point = mix[i] * real[i] + (1 - mix[i]) * fake[i]
        total = 0.0
        for entry in range(point.numel()):
            shift = torch.zeros(point.numel(), dtype=F64)
            shift[entry] = step
            up, down = (score(i, point + s * shift.view_as(point)) for s in (1, -1))
            total += ((up - down) / (2 * step)).item() ** 2
        values.append((math.sqrt(total) - 1) ** 2)
    return torch.tensor(values, dtype=F64)


def test_penalty_of_a_critic_equals_finite_differences():
    critic = awake(Critic(2, width=4))
    real, fake = torch.rand(2, 2, 2, 5, 7, dtype=F64)
    images, mix = torch.randn(2, 3, 5, 7, dtype=F64), torch.rand(2, dtype=F64)
    found = gradient_penalty(lambda maps: critic(maps, images), real, fake, mix)

    @torch.no_grad()
    def score(i, maps):
        return critic(maps[None], images[i : i + 1])[0]

    torch.testing.assert_close(found, slow_penalty(score, real, fake, mix), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["body.0.weight", "body.6.gamma", "body.6.query.bias"])
def test_penalty_is_differentiated_twice_correctly(name):
    critic = awake(Critic(2, condition_on_image=False, width=2))
    real, fake = torch.rand(2, 2, 2, 16, 16, dtype=F64)
    mix = torch.rand(2, dtype=F64)
    parameter = dict(critic.named_parameters())[name]

    def penalty(flat):
        values = {name: torch.cat([flat, parameter.detach().flatten()[len(flat) :]])}
        values[name] = values[name].view_as(parameter)
        return gradient_penalty(lambda x: functional_call(critic, values, x), real, fake, mix)

    first = parameter.detach().flatten()[:12].clone().requires_grad_()
    assert torch.autograd.gradcheck(penalty, first)


def test_penalty_is_finite_where_the_critic_is_flat():
    weight = torch.zeros(1, 2, 3, 3, dtype=F64, requires_grad=True)
    real, fake = torch.rand(2, 4, 2, 3, 3, dtype=F64)
    found = gradient_penalty(lambda x: (x * weight).flatten(1).sum(1), real, fake, torch.rand(4))
    found.sum().backward()
    torch.testing.assert_close(found, torch.ones(4, dtype=F64), rtol=0, atol=1e-5)
    assert weight.grad.isfinite().all()


def test_an_image_without_valid_positions_has_a_finite_penalty_that_does_not_count():
    critic = Critic(3, width=4)
    student, teacher, images = torch.randn(3, 2, 3, 16, 16)
    mask = torch.ones(2, 16, 16, dtype=torch.bool)
    mask[1] = False
    mix = torch.rand(2)
    both = critic_losses(student, teacher, critic=critic, mix=mix, image=images, mask=mask)
    first = critic_losses(
        student[:1], teacher[:1], critic=critic, mix=mix[:1], image=images[:1], mask=mask[:1]
    )
    torch.testing.assert_close(both, first)
    sum(both.values()).backward()
    assert all(p.grad.isfinite().all() for p in critic.parameters())
