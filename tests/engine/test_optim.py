"""Schedules and averages against their definitions."""

import math

import pytest
import torch
from torch import nn
from toy_run import toy_config

from segkd.config.schema import OptimConfig, ScheduleConfig
from segkd.engine.optim import EMA, build_optimizer, lr_share, set_lr, weight_share
from segkd.engine.run import train_run
from segkd.methods.base import MethodConfig


def test_poly_falls_as_the_papers_write_it():
    config = ScheduleConfig(name="poly", power=0.9)
    assert lr_share(config, 0, 100) == 1.0
    assert lr_share(config, 50, 100) == pytest.approx(0.5**0.9)


def test_cosine_is_half_in_the_middle_and_keeps_its_floor():
    assert lr_share(ScheduleConfig(name="cosine"), 50, 100) == pytest.approx(0.5)
    assert lr_share(ScheduleConfig(name="cosine", min_lr_ratio=0.1), 100, 100) == pytest.approx(0.1)


def test_warmup_rises_linearly_to_the_full_rate():
    config = ScheduleConfig(name="constant", warmup=10)
    assert [lr_share(config, step, 100) for step in (0, 4, 9, 50)] == [0.1, 0.5, 1.0, 1.0]


def test_parts_have_their_own_rate():
    groups = {name: [nn.Parameter(torch.zeros(1))] for name in ("encoder", "decoder", "adapters")}
    config = OptimConfig(lr=0.1, lr_factors={"encoder": 0.1, "adapters": 10})
    optimizer = build_optimizer(config, groups)
    set_lr(optimizer, 0.5)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"encoder": 0.005, "decoder": 0.05, "adapters": 0.5})


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_both_optimisers_lower_a_loss(name):
    weight = nn.Parameter(torch.ones(1))
    optimizer = build_optimizer(OptimConfig(name=name, lr=0.1), {"decoder": [weight]})
    weight.square().sum().backward()
    optimizer.step()
    assert weight.item() < 1.0


def test_a_methods_weight_starts_late_warms_up_and_decays():
    late = MethodConfig(start=10, warmup=4)
    assert [weight_share(late, step, 100) for step in (0, 9, 10, 11, 13, 99)] == [
        0.0, 0.0, 0.25, 0.5, 1.0, 1.0,
    ]  # fmt: skip
    linear = MethodConfig(start=20, decay="linear")
    assert weight_share(linear, 60, 100) == pytest.approx(0.5)
    cosine = MethodConfig(decay="cosine")
    assert weight_share(cosine, 25, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_the_average_follows_weights_and_copies_statistics():
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    ema = EMA(network, decay=0.5)
    before = network[0].weight.clone()
    with torch.no_grad():
        network[0].weight += 1.0
        network[1].running_mean += 3.0
    ema.update(network)
    decay = min(0.5, 2 / 11)
    expected = decay * before + (1 - decay) * network[0].weight
    assert torch.allclose(ema.average[0].weight, expected)
    assert torch.equal(ema.average[1].running_mean, network[1].running_mean)
    assert not any(parameter.requires_grad for parameter in ema.average.parameters())


def test_the_average_goes_on_from_a_stored_state_bit_for_bit():
    network, decay = nn.Linear(3, 2), 0.3  # reached by the ninth update
    ema, expected = EMA(network, decay), network.weight.detach().clone()
    for n in range(1, 13):
        if n == 5:  # as version 0.1 stores it
            weights = {name: value.clone() for name, value in ema.average.state_dict().items()}
            ema = EMA(nn.Linear(3, 2), decay)
            ema.load_state_dict({"updates": 4, "weights": weights})
        with torch.no_grad():
            network.weight += n
            expected.lerp_(network.weight, 1.0 - min(decay, (1 + n) / (10 + n)))
        ema.update(network)
        assert torch.equal(ema.average.weight, expected), n
        assert ema.state_dict()["updates"] == n


def test_steps_fall_at_their_milestones_as_torch_has_them():
    config = ScheduleConfig(name="step", milestones=[3, 7], gamma=0.5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7], 0.5)
    assert [lr_share(config, step, 10) for step in (2, 3, 6, 7)] == [1.0, 0.5, 0.5, 0.25]
    for step in range(10):
        assert lr_share(config, step, 10) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step(), reference.step()


@pytest.mark.parametrize(
    "keys", [{}, {"pct_start": 0.5, "div_factor": 10.0, "final_div_factor": 100.0}]
)
@pytest.mark.parametrize("total", [10, 40])
def test_one_cycle_is_torchs(keys, total):
    config = ScheduleConfig(name="one_cycle", **keys)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        1.0,
        total,
        pct_start=config.pct_start,
        div_factor=config.div_factor,
        final_div_factor=config.final_div_factor,
        cycle_momentum=False,
    )
    for step in range(total):
        assert lr_share(config, step, total) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < total - 1:
            reference.step()


def test_one_cycle_begins_peaks_and_ends_where_it_says():
    config = ScheduleConfig(
        name="one_cycle", pct_start=0.2, div_factor=10.0, final_div_factor=100.0
    )
    assert lr_share(config, 0, 100) == pytest.approx(0.1)
    assert lr_share(config, 19, 100) == pytest.approx(1.0)
    assert lr_share(config, 99, 100) == pytest.approx(0.001)
    assert [0 < lr_share(config, 0, total) <= 1 for total in (1, 2, 5)] == [True] * 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "step"}, "milestones"),
        ({"milestones": [5]}, "need each other"),
        ({"name": "step", "milestones": [5, 3]}, "ascend"),
        ({"name": "one_cycle", "warmup": 5}, "remove `warmup`"),
    ],
)
def test_keys_of_another_schedule_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**keys)


def test_a_skipped_first_step_leaves_nothing_behind():
    parameter = nn.Parameter(torch.ones(1000))
    optimizer = build_optimizer(OptimConfig(lr=0.1, weight_decay=0.0), {"decoder": [parameter]})
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for gradient in (torch.inf, 1.0, 1.0):
        scaler.scale((gradient * parameter).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    expected = 1.0 - 0.1 * 1.0 - 0.1 * 1.9  # momentum 0.9
    torch.testing.assert_close(parameter.detach(), torch.full((1000,), expected))


@pytest.mark.parametrize(
    ("block", "keys", "told"),
    [
        (
            "optim",
            {"name": "adamw", "momentum": 0.5},
            "optim.momentum is of sgd, and",
        ),
        ("optim", {"name": "sgd", "betas": (0.8, 0.9)}, "optim.betas is of adamw"),
        ("schedule", {"name": "cosine", "power": 2.0}, "schedule.power is of poly"),
        ("schedule", {"name": "poly", "gamma": 0.5}, "schedule.gamma is of step"),
        ("schedule", {"name": "poly", "pct_start": 0.5}, "schedule.pct_start is of one_cycle"),
        (
            "schedule",
            {"name": "constant", "min_lr_ratio": 0.1},
            "schedule.min_lr_ratio is of",
        ),
        ("schedule", {"name": "cosine", "min_lr_ratio": 0.1}, ""),
        ("optim", {"name": "sgd", "momentum": 0.5}, ""),
    ],
)
def test_keys_that_the_optimiser_or_schedule_does_not_read_are_told(tmp_path, block, keys, told):
    train_run(toy_config(tmp_path / "run", steps=1, **{block: keys}))
    log = (tmp_path / "run/log.txt").read_text()
    assert ("it changes nothing" in log) == bool(told) and told in log
