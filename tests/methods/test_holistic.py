import copy
import os
import signal

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from toy_run import teacher_net, toy_config

from segkd import checkpoint
from segkd.config.schema import RunConfig
from segkd.engine.run import train_run
from segkd.engine.setup import assemble
from segkd.engine.trainer import Trainer
from segkd.errors import Interrupted
from segkd.methods.holistic import Holistic, critic_losses, holistic_loss
from segkd.modules.critic import Critic
from segkd.runtime import Runtime
from segkd.testing.cases import make_case

F64 = torch.float64


class Small(Holistic):
    """The default, but small; named as the method, so that it draws the same numbers."""

    class Config(Holistic.Config):
        width: int = 4


class Hinge(Holistic):
    class Config(Holistic.Config):
        width: int = 4
        loss: str = "hinge"
        spectral_norm: bool = True


both_losses = pytest.mark.parametrize("kind", [Small, Hinge], ids=["wgan-gp", "hinge"])


@pytest.fixture
def critic():
    torch.manual_seed(1)
    critic = Critic(3, width=4).double()
    for name, parameter in critic.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.7)
    return critic


@pytest.fixture
def maps():
    """Student, teacher, images and a mask that leaves nothing of the second image."""
    draw = torch.Generator().manual_seed(7)
    student, teacher = 2 * torch.randn(2, 3, 3, 4, 5, generator=draw, dtype=F64)
    images = torch.randn(3, 3, 8, 10, generator=draw, dtype=F64)
    mask = torch.rand(3, 4, 5, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), teacher, images, mask


# -- the equation ----------------------------------------------------------------------------------


def seen(logits, image, valid):
    """One image's probabilities and picture, place by place; zeros where invalid."""
    probabilities, picture = torch.zeros_like(logits), torch.zeros_like(logits[:3])
    for y, x in valid.nonzero().tolist():
        exp = logits[:, y, x].exp()
        probabilities[:, y, x] = exp / exp.sum()
        picture[:, y, x] = image[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2))
    return probabilities[None], picture[None]


def reference(critic, student, images, mask):
    scores = [
        critic(*seen(logits, image, valid)).item()
        for logits, image, valid in zip(student, images, mask, strict=True)
        if valid.any()
    ]
    return -sum(scores) / len(scores)


def test_equals_the_equation(critic, maps):
    student, teacher, images, mask = maps
    value = holistic_loss(student, teacher, critic=critic, image=images, mask=mask)
    expected = reference(critic, student.detach(), images, mask)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_gradient_is_right(critic, maps):
    student, teacher, images, mask = maps
    assert torch.autograd.gradcheck(
        lambda z: holistic_loss(z, teacher, critic=critic, image=images, mask=mask), student
    )


def slow_critic_terms(critic, student, teacher, images, mask, mix, step=1e-5):
    """Scores and penalty image by image; the slope by differences at each valid place."""
    distances, penalties, fakes, reals = [], [], [], []
    for i in mask.flatten(1).any(1).nonzero().flatten().tolist():
        fake, picture = seen(student[i], images[i], mask[i])
        real, _ = seen(teacher[i], images[i], mask[i])
        of_fake, of_real = critic(fake, picture).item(), critic(real, picture).item()
        distances.append(of_fake - of_real)
        fakes.append(max(0, 1 + of_fake))
        reals.append(max(0, 1 - of_real))
        point, squares = mix[i] * real + (1 - mix[i]) * fake, 0.0
        for y, x in mask[i].nonzero().tolist():
            for k in range(len(student[i])):
                shift = torch.zeros_like(point)
                shift[0, k, y, x] = step
                rise = critic(point + shift, picture) - critic(point - shift, picture)
                squares += (rise.item() / (2 * step)) ** 2
        penalties.append((squares**0.5 - 1) ** 2)
    means = [sum(values) / len(values) for values in (distances, penalties, fakes, reals)]
    names = ("minus_wasserstein", "penalty", "fake", "real")
    means[1] *= 10
    return {name: torch.tensor(mean, dtype=F64) for name, mean in zip(names, means, strict=True)}


def test_critic_terms_equal_the_equations(critic, maps):
    student, teacher, images, mask = maps
    mix = torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    keys = {"critic": critic, "image": images, "mask": mask}
    found = critic_losses(student, teacher, mix=mix, **keys)
    found |= critic_losses(student, teacher, loss="hinge", **keys)
    with torch.no_grad():
        expected = slow_critic_terms(critic, student, teacher, images, mask, mix)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", [1000, -1000])
def test_hinge_leaves_alone_what_is_beyond_its_margin(critic, maps, scale):
    student, teacher, images, mask = maps
    with torch.no_grad():
        critic.score.weight *= scale
        expected = slow_critic_terms(critic, student, teacher, images, mask, torch.zeros(3))
        found = critic_losses(
            student, teacher, critic=critic, loss="hinge", image=images, mask=mask
        )
    torch.testing.assert_close(found, {name: expected[name] for name in found})


@pytest.mark.parametrize("loss", ["wgan-gp", "hinge"])
def test_the_critics_terms_teach_neither_network(critic, maps, loss):
    student, teacher, images, mask = maps
    teacher.requires_grad_()
    terms = critic_losses(student, teacher, critic=critic, loss=loss, image=images, mask=mask)
    sum(terms.values()).backward()
    assert student.grad is None and teacher.grad is None
    assert all(parameter.grad.isfinite().all() for parameter in critic.parameters())


def test_without_mask_and_image_all_positions_count_and_the_share_is_drawn(maps):
    student, teacher, _, mask = maps
    critic = Critic(3, condition_on_image=False, width=4).double()
    everywhere = holistic_loss(student, teacher, critic=critic, mask=torch.ones_like(mask))
    assert holistic_loss(student, teacher, critic=critic) == everywhere
    draws = [critic_losses(student, teacher, critic=critic)["penalty"] for _ in range(2)]
    assert draws[0] != draws[1]


def test_log_probabilities_teach_the_critic_the_same(critic, maps):
    student, teacher, images, mask = maps
    keys = {"critic": critic, "image": images, "mask": mask, "mix": torch.rand(3)}
    torch.testing.assert_close(
        critic_losses(student, teacher.log_softmax(1), **keys),
        critic_losses(student, teacher, **keys),
    )


# -- who learns from what --------------------------------------------------------------------------


def own_gradients(case, autocast=False):
    """Values and gradients of the critic's own step, autocast as in the trainer."""
    case.method.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        terms = case.inner_terms()
    sum(term.value for term in terms.values()).backward()
    gradients = {n: p.grad.clone() for n, p in case.method.named_parameters()}
    return {name: term.value.detach() for name, term in terms.items()}, gradients


@both_losses
def test_the_students_step_leaves_nothing_in_the_critic(kind):
    case = make_case(kind)
    before = {name: value.clone() for name, value in case.method.state_dict().items()}
    case.terms()["holistic"].value.backward()
    assert case.student.logits.grad.any() and case.teacher.logits.grad is None
    assert all(p.grad is None and p.requires_grad for p in case.method.parameters())
    torch.testing.assert_close(dict(case.method.state_dict()), before, rtol=0, atol=0)
    assert all(module.training for module in case.method.modules())


@both_losses
def test_nothing_at_invalid_positions_teaches_the_critic(kind):
    case = make_case(kind, equal=True, dtype=F64)
    other = copy.deepcopy(case)
    hidden = ~case.batch.valid
    for outputs, noise in ((other.student, 50), (other.teacher, 99)):
        outputs.logits = outputs.logits.detach() + noise * hidden[:, None, ::8, ::8]
    other.batch = case.batch.replace(images=case.batch.images.masked_fill(hidden[:, None], 77))
    assert not torch.equal(other.batch.images, case.batch.images)
    torch.testing.assert_close(own_gradients(other), own_gradients(case))


def test_pixels_of_padding_do_not_leak_through_the_average_of_the_image():
    case = make_case(Small)
    case.batch.not_padding[:, 1::2] = False  # nearest neighbour sees the even rows alone
    images = case.batch.images.clone()
    images[:, :, 1::2] = 200
    other = copy.deepcopy(case)
    other.batch = case.batch.replace(images=images)
    assert case.context(case.batch).mask_at(8, 12).any()
    torch.testing.assert_close(own_gradients(other), own_gradients(case), rtol=0, atol=0)
    assert other.terms()["holistic"].value == case.terms()["holistic"].value


def test_the_method_shows_the_critic_images_from_minus_one_to_one():
    case = make_case(Small)
    case.batch = case.batch.replace(
        labels=None, not_padding=torch.ones_like(case.batch.not_padding)
    )
    value = holistic_loss(
        case.student.logits,
        case.teacher.logits,
        critic=case.method.critic,
        image=(case.batch.images.float() - 127.5) / 127.5,
    )
    torch.testing.assert_close(case.terms()["holistic"].value, value)


@both_losses
def test_shares_of_a_batch_add_up_and_leave_the_same_buffers(kind):
    case = make_case(kind, dtype=F64)
    case = case.images(torch.tensor([1, 2, 0]))
    case.batch.not_padding[0] = False
    whole = copy.deepcopy(case)
    values, gradients = own_gradients(whole)
    shares = [copy.deepcopy(case.images(part)) for part in (slice(0, 2), slice(2, 3))]
    found = [own_gradients(share) for share in shares]
    for name, value in values.items():
        torch.testing.assert_close((found[0][0][name] + found[1][0][name]) / 2, value)
    for name, gradient in gradients.items():
        torch.testing.assert_close((found[0][1][name] + found[1][1][name]) / 2, gradient)
    for share in shares:
        torch.testing.assert_close(
            dict(share.method.named_buffers()), dict(whole.method.named_buffers()), rtol=0, atol=0
        )


def test_the_power_iteration_goes_on_in_the_own_steps_even_if_left_in_eval():
    case = make_case(Hinge)
    case.method.eval()
    before = {name: value.clone() for name, value in case.method.named_buffers()}
    case.terms()
    assert all(torch.equal(value, before[n]) for n, value in case.method.named_buffers())
    case.inner_terms()
    assert any(not torch.equal(value, before[n]) for n, value in case.method.named_buffers())


def test_shares_of_the_mix_belong_to_images_and_are_drawn_anew():
    case = make_case(Small, dtype=F64)
    contexts = [case.context(batch) for batch in (case.batch, case.images(slice(2, 3)).batch)]
    drawn = [[torch.rand((), generator=g) for g in c.image_generators] for c in contexts]
    assert drawn[1][0] == drawn[0][2] and len(set(drawn[0])) == 4
    turned = case.images(torch.tensor([3, 1, 0, 2]))
    torch.testing.assert_close(own_gradients(turned), own_gradients(case))


@both_losses
def test_autocast_does_not_touch_the_critics_step(kind):
    case, other = make_case(kind), make_case(kind)
    expected = own_gradients(case)
    found = own_gradients(other, autocast=True)
    assert all(value.dtype is torch.float32 for value in found[0].values())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    values, gradients = own_gradients(other.each(lambda x: x.bfloat16()), autocast=True)
    assert all(v.isfinite().all() for v in (*values.values(), *gradients.values()))


@both_losses
def test_saturated_logits_and_empty_masks_leave_the_critic_finite(kind):
    saturated = make_case(kind).each(lambda x: 1e4 * x.sign())
    empty = make_case(kind)
    empty.batch.not_padding[:] = False
    for case in (saturated, empty):
        values, gradients = own_gradients(case)
        assert all(v.isfinite().all() for v in (*values.values(), *gradients.values()))
    assert not any(values.values()) and not any(g.any() for g in gradients.values())


# -- the game --------------------------------------------------------------------------------------


def gap(case):
    """How much higher the critic scores the teacher."""
    case.method.eval()
    with torch.no_grad():
        real = -case.method.loss(case.teacher, case.teacher, case.batch, case.context(case.batch))[
            "holistic"
        ].value
        fake = -case.terms()["holistic"].value
    return (real - fake).item()


def train_critic(case, steps):
    parameters = case.method.inner_parameters()
    optimizer = case.method.inner_optimizer(parameters)
    for _ in range(steps):
        own_gradients(case)
        optimizer.step()


@both_losses
def test_the_critic_learns_to_separate_and_the_student_closes_the_gap(kind):
    case = make_case(kind, equal=True)
    case.teacher.logits = (3 * case.teacher.logits).detach()  # sharper than the student
    start = gap(case)
    train_critic(case, 100)
    learned = gap(case)
    assert learned > start + 0.3
    logits = case.student.logits
    optimizer = torch.optim.SGD([logits], lr=100.0)
    for _ in range(10):
        optimizer.zero_grad()
        case.terms()["holistic"].value.backward()
        optimizer.step()
    assert gap(case) < 0.5 * learned


def test_the_estimate_is_the_gap_and_the_penalty_keeps_the_slope_near_one():
    case = make_case(Small, equal=True)
    train_critic(case, 150)
    values, _ = own_gradients(case)
    assert -values["minus_wasserstein"].item() == pytest.approx(gap(case), rel=1e-4)
    assert values["penalty"] < 10 * 0.5**2


# -- whole runs ------------------------------------------------------------------------------------

ENTRIES = {
    "holistic": {"width": 3, "critic_steps": 2},
    "hinge": {"method": "holistic", "loss": "hinge", "width": 3},
}


def run_state(folder):
    """All tensors and numbers of the last checkpoint: weights, critics, their optimisers."""
    payload = checkpoint.load(folder / "checkpoints" / "last.pt")
    return tree_leaves({key: payload[key] for key in ("step", "student", "objective", "own")})


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch):
    whole, parts = (toy_config(tmp_path / n, steps=6, methods=ENTRIES) for n in ("whole", "parts"))
    train_run(whole, teachers={"main": teacher_net()})
    original = Trainer._train_step

    def interrupted(self, batches):
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, batches)

    monkeypatch.setattr(Trainer, "_train_step", interrupted)
    with pytest.raises(Interrupted):
        train_run(parts, teachers={"main": teacher_net()})
    monkeypatch.undo()
    train_run(parts, teachers={"main": teacher_net()})
    found, expected = run_state(tmp_path / "parts"), run_state(tmp_path / "whole")
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other) if torch.is_tensor(one) else one == other


def test_a_run_steps_the_critics_as_often_as_asked_and_logs_their_losses(tmp_path):
    config = toy_config(tmp_path / "run", methods=ENTRIES)
    trainer = Trainer(
        config,
        assemble(config, Runtime.single(), teachers={"main": teacher_net()}),
        Runtime.single(),
    )
    critics = {name: trainer.methods[name].inner_parameters() for name in ENTRIES}
    next(trainer.steps())
    for name, steps in {"holistic": 2, "hinge": 1}.items():
        counts = {int(state["step"]) for state in trainer.own[name].optimizer.state.values()}
        assert counts == {steps}
        assert all(p.grad is None and not p.requires_grad for p in critics[name])
    own = {name for name in trainer.terms if "/own_" in name}
    assert own == {
        "holistic/own_minus_wasserstein",
        "holistic/own_penalty",
        "hinge/own_fake",
        "hinge/own_real",
    }
    assert {"holistic/holistic", "hinge/holistic"} <= set(trainer.terms)


# -- options ---------------------------------------------------------------------------------------


def test_defaults_are_the_papers_for_each_loss():
    wgan, hinge = Holistic.Config(), Holistic.Config(loss="hinge")
    assert (wgan.spectral_norm, wgan.critic_steps) == (False, 1)
    assert Holistic(Holistic.Config(weight="paper")).weight == 0.1
    assert Holistic(Holistic.Config(weight="paper", loss="hinge")).weight == 0.001
    assert (hinge.weight, hinge.spectral_norm) == (0.001, True)
    assert Holistic.Config(loss="hinge", weight=2, spectral_norm=False).weight == 2
    optimizer = Holistic(wgan).inner_optimizer([nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["lr"] == 4e-4 and optimizer.defaults["betas"] == (0.9, 0.99)


def test_options_reach_the_critic_and_its_loss():
    class Chosen(Holistic):
        class Config(Holistic.Config):
            width: int = 4
            penalty: float = 3.0
            condition_on_image: bool = False
            critic_lr: float = 0.5
            critic_betas: tuple[float, float] = (0.0, 0.9)

    case, other = make_case(Chosen), make_case(Holistic)
    assert other.method.critic.body[0].weight.shape == (64, 8, 4, 4)
    assert case.method.critic.body[0].weight.shape == (4, 5, 4, 4)
    optimizer = case.method.inner_optimizer(case.method.inner_parameters())
    assert optimizer.defaults["lr"] == 0.5 and optimizer.defaults["betas"] == (0.0, 0.9)
    threefold = case.inner_terms()["penalty"].value
    case.method.config = Chosen.Config(penalty=1.0)
    torch.testing.assert_close(threefold, 3 * case.inner_terms()["penalty"].value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss": "hinge", "penalty": 10}, "loss: hinge has no gradient penalty.*Remove penalty"),
        ({"loss": "wgan"}, "wgan-gp"),
        ({"penalty": 0}, "greater than 0"),
        ({"critic_steps": 0}, "greater than 0"),
        ({"critic_betas": [0.9, 1.0]}, "less than 1"),
        ({"width": 0}, "greater than 0"),
    ],
)
def test_bad_options_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate({"methods": {"holistic": keys}})


def peer(scores):
    """How public codes write the generator's loss, wgan-gp and hinge alike."""
    return -scores.view(len(scores), 1, 1, 1).mean()


PEERS = {"SKD": 0.1, "TorchDistiller, IFVD": 0.001, "CIRKD": 0.001}


def test_every_conversion_is_checked():
    assert PEERS.keys() == Holistic.conversions.keys()


@pytest.mark.parametrize("name", PEERS)
def test_converted_weight_acts_as_the_peers(critic, maps, name):
    student, teacher, images, _ = maps
    picture = nn.functional.avg_pool2d(images, 2)
    theirs = PEERS[name] * peer(critic(student.softmax(1), picture))
    ours = Holistic.conversions[name].at() * holistic_loss(
        student, teacher, critic=critic, image=images
    )
    torch.testing.assert_close(theirs, ours)
