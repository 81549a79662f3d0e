"""Networks that learn beside the student: trained as it is, resumed, shared, scored and saved."""

import csv
import json

import pytest
import torch
import torch.nn.functional as F
from resuming import make_trainer, same, states, stop_after
from torch import nn
from toy_run import CLASSES, teacher_net, toy_config

from segkd.config.recipe import expand
from segkd.config.schema import RecipeConfig
from segkd.engine.recipe import compare
from segkd.engine.run import train_run
from segkd.engine.stepper import Stepper
from segkd.errors import ConfigError, Interrupted
from segkd.evaluation.evaluator import evaluate_network
from segkd.models.build import network_from_file
from segkd.models.module import wrap
from segkd.runtime import Runtime

PLAIN = {"arch": "toy", "options": {"norm": False}}  # no batch statistics, no dropout
WIDE = {"arch": "toy", "options": {"width": 8, "norm": False}}
OPTIM = {"lr": 0.05, "weight_decay": 0.01, "clip": 0.5, "lr_factors": {"encoder": 0.5}}
PAIR = {"dml": {"peers": {"second": {}}}}


def trained(config, **brought):
    trainer = make_trainer(config, **brought)
    for _ in trainer.steps():
        pass
    return trainer


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def other_start(seed=5):
    """Weights of another toy like the student."""
    return teacher_net(width=6, seed=seed, norm=False).state_dict()


# -- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", [OPTIM, {"name": "adamw", "lr": 1e-2, "accumulate": 2}])
def test_a_peer_is_trained_as_a_student_is(tmp_path, optim):
    """Beside a method without weight, both end where each would have ended alone."""
    keys = {"student": PLAIN, "optim": optim, "ema": 0.5, "schedule": {"warmup": 2}}
    methods = {"dml": {"peers": {"second": {}}, "weight": 0.0}}
    together = make_trainer(toy_config(tmp_path / "a", methods=methods, **keys))
    lone = [make_trainer(toy_config(tmp_path / name, **keys)) for name in "bc"]
    peer = together.peers.networks["dml.second"]
    for network in (peer, lone[1].student):
        network.load_state_dict(other_start())
    for average in (together.peers.evaluated()["dml.second"], lone[1].network):
        average.load_state_dict(other_start())
    for trainer in (together, *lone):
        for _ in trainer.steps():
            pass
    same(weights(together.student), weights(lone[0].student))
    same(weights(peer), weights(lone[1].student))
    same(weights(together.network), weights(lone[0].network))
    same(weights(together.peers.evaluated()["dml.second"]), weights(lone[1].network))


def test_two_networks_move_as_in_a_loop_by_hand(tmp_path):
    """Both at once, each by its task loss and KL from the other, clipped and scheduled alone."""
    config = toy_config(tmp_path / "run", student=PLAIN, optim=OPTIM, methods=PAIR, steps=3)
    trainer = make_trainer(config)
    peer = trainer.peers.networks["dml.second"]
    assert any(
        not torch.equal(one, other)
        for one, other in zip(peer.parameters(), trainer.student.parameters(), strict=True)
    )
    networks = [teacher_net(width=6, norm=False) for _ in range(2)]
    for mine, theirs in zip(networks, (trainer.student, peer), strict=True):
        mine.load_state_dict(theirs.state_dict())
    loader = [trainer._placed(batch) for batch in trainer._loader(0, 3, 0)]
    optimizers = [
        torch.optim.SGD(
            [
                {"params": [p for n, p in network.named_parameters() if n.startswith("encoder")]},
                {"params": list(network.classifier.parameters())},
            ],
            momentum=0.9,
            weight_decay=0.01,
        )
        for network in networks
    ]
    for step, batch in enumerate(loader):
        logits = [network.train()(batch.images).logits for network in networks]
        mask = F.interpolate(batch.valid[:, None].float(), logits[0].shape[2:])[:, 0] > 0
        losses = []
        for own, other in (logits, logits[::-1]):
            full = F.interpolate(own, batch.labels.shape[1:], mode="bilinear")
            task = F.cross_entropy(
                full, batch.labels.masked_fill(~batch.valid, 255), ignore_index=255
            )
            target, rows = other.detach().softmax(1), own.log_softmax(1)
            divergence = (target * (target.log() - rows)).sum(1)
            losses.append(task + divergence[mask].mean())
        for network, optimizer, loss in zip(networks, optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            used = [p for p in network.parameters() if p.grad is not None]
            nn.utils.clip_grad_norm_(used, 0.5)
            share = (1 - step / 3) ** 0.9
            optimizer.param_groups[0]["lr"] = 0.05 * 0.5 * share
            optimizer.param_groups[1]["lr"] = 0.05 * share
            optimizer.step()
    for _ in trainer.steps():
        pass
    for mine, theirs in zip(networks, (trainer.student, peer), strict=True):
        torch.testing.assert_close(weights(theirs), weights(mine), rtol=1e-4, atol=1e-6)


def test_networks_of_all_kinds_learn_together(tmp_path):
    peers = {"wide": WIDE, "deep": {"arch": "toy", "aux_head": {"tap": "stage4", "weight": 0.3}}}
    methods = {"dml": {"peers": peers}, "kdcl": {"peers": 2, "target": "naive"}, "kd": {}}
    config = toy_config(tmp_path / "run", methods=methods, steps=30)
    trainer = trained(config, teachers={"main": teacher_net()})
    names = ["dml.wide", "dml.deep", "kdcl.peer1", "kdcl.peer2"]
    assert list(trainer.peers.networks) == names
    own = [name for name in trainer.terms if name.startswith(("dml", "kdcl"))]
    assert own == [
        "dml.wide/cross_entropy",
        "dml.deep/cross_entropy",
        "dml.deep/cross_entropy.aux",
        "kdcl.peer1/cross_entropy",
        "kdcl.peer2/cross_entropy",
        *("dml/student", "dml/wide", "dml/deep"),
        *("kdcl/student", "kdcl/peer1", "kdcl/peer2"),
    ]
    values = trainer.tally.collect(trainer.runtime, own)
    assert all(values[name] > 0 for name in own)
    scores = {
        name: evaluate_network(network, trainer.parts.val_set, config.eval, trainer.runtime).score
        for name, network in trainer.peers.evaluated().items()
    }
    assert min(scores.values()) > 0.3


def test_peers_keep_learning_labels_before_the_method_starts(tmp_path):
    methods = {"dml": {"start": 4}}
    trainer = make_trainer(toy_config(tmp_path / "run", student=PLAIN, methods=methods))
    before = weights(trainer.peers.networks["dml.peer1"])
    next(trainer.steps())
    after = weights(trainer.peers.networks["dml.peer1"])
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])


def test_peers_outside_of_train_stay_as_they_are(tmp_path):
    methods = {"dml": {"peers": {"fixed": {"arch": "toy"}}}}
    config = toy_config(tmp_path / "run", methods=methods, train=["student.*"])
    trainer = make_trainer(config)
    before = weights(trainer.peers.networks["dml.fixed"])
    for _ in trainer.steps():
        pass
    same(weights(trainer.peers.networks["dml.fixed"]), before)
    assert not trainer.peers.optimizers


def test_a_method_may_measure_its_own_weight(tmp_path):
    methods = {"dml": {"weight": {"auto": 0.3, "every": 1}}}
    trainer = trained(toy_config(tmp_path / "run", student=PLAIN, methods=methods))
    assert trainer.objective.auto.factor("dml") > 0
    assert trainer.pulls(1)["dml"] > 0


def test_an_overflow_of_one_network_does_not_stop_the_other():
    mine, theirs = (nn.Parameter(torch.ones(1)) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizers = [torch.optim.SGD([weight], 1.0) for weight in (mine, theirs)]
    stepper = Stepper(optimizers[0], scaler, "the student", optimizers[1:])
    stepper.backward((mine * 0.5 + theirs * float("inf")).sum())
    assert not stepper.step(clip=10.0)
    assert mine.item() == 0.5 and theirs.item() == 1.0 and theirs.grad is None


# -- resume and several processes ------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": {"dml": {"peers": {"a": {}, "wide": WIDE}}}, "ema": 0.9},
        {
            "methods": {"kdcl": {"peers": 1}, "one": {"tap": "stage4"}},
            "optim": {"name": "adamw", "lr": 1e-2, "accumulate": 2, "clip": 1.0},
        },
    ],
    ids=["dml", "kdcl-one"],
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, changes):
    keys = {"steps": 8, "save_every": 4, "eval": {"every": 2}, **changes}
    train_run(toy_config(tmp_path / "whole", **keys))
    stop_after(monkeypatch, 5)
    with pytest.raises(Interrupted):
        train_run(toy_config(tmp_path / "parts", **keys))
    monkeypatch.undo()
    torch.rand(3)
    train_run(toy_config(tmp_path / "parts", **keys))
    found, expected = states(tmp_path / "parts"), states(tmp_path / "whole")
    if "dml" in changes["methods"]:
        assert {"dml.a", "dml.wide"} == found["peers"]["optimizers"].keys()
        assert {"dml.a", "dml.wide"} == found["peers"]["averages"].keys()
    same(found, expected)
    for name in (path.name for path in (tmp_path / "whole" / "checkpoints").glob("best*.pt")):
        networks = [
            network_from_file(tmp_path / f"{run}/checkpoints/{name}")[0]
            for run in ("whole", "parts")
        ]
        same(*(weights(network) for network in networks))


def test_buffers_and_gradients_are_shared_by_all_processes(tmp_path, monkeypatch):
    config = toy_config(tmp_path / "run", methods=PAIR, ema=0.9)
    trainer = make_trainer(config)
    shared, reduced = set(), set()
    monkeypatch.setattr(Runtime, "broadcast", lambda self, some: shared.update(map(id, some)))
    monkeypatch.setattr(
        Runtime, "reduce_gradients", lambda self, some: reduced.update(map(id, some))
    )
    trainer.share_statistics()
    next(trainer.steps())
    for network in (trainer.peers.networks, trainer.peers.evaluated()):
        assert {id(buffer) for buffer in network["dml.second"].buffers()} <= shared
    parameters = trainer.peers.networks["dml.second"].parameters()
    assert {id(p) for p in parameters if p.requires_grad} <= reduced


# -- scores and files ------------------------------------------------------------------------------


def test_every_peer_is_scored_reported_and_saved(tmp_path):
    methods = {"dml": {"peers": {"second": {}, "wide": WIDE}}}
    config = toy_config(
        tmp_path / "run", student=PLAIN, methods=methods, eval={"every": 2}, steps=6, ema=0.5
    )
    summary = train_run(config)
    names = ["dml.second", "dml.wide"]
    assert list(summary["peers"]) == names
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/miou"]]
    assert len(rows) == 3
    log = (tmp_path / "run" / "log.txt").read_text()
    for name in names:
        facts = summary["peers"][name]
        scores = [float(row[f"val/{name}"]) for row in rows]
        assert facts["miou"] == pytest.approx(scores[-1], abs=1e-4)
        assert facts["best_miou"] == pytest.approx(max(scores), abs=1e-4)
        network, payload = network_from_file(tmp_path / f"run/checkpoints/best_{name}.pt")
        assert payload["score"] == facts["best_score"] and tuple(payload["classes"]) == CLASSES
        assert not [key for key in payload["weights"] if "aux" in key or "dml" in key]
        assert sum(p.numel() for p in network.parameters()) == facts["parameters"]
        assert f"peer {name}: mIoU {100 * facts['miou']:.2f}" in log
        assert f"{name} {100 * facts['miou']:.2f}" in log.splitlines()[-1]
    assert summary["peers"]["dml.wide"]["parameters"] > summary["student"]["parameters"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["peers"] == summary["peers"]


def test_a_run_without_peers_says_nothing_of_them(tmp_path):
    summary = train_run(toy_config(tmp_path / "run"))
    assert "peers" not in summary
    assert list((tmp_path / "run" / "checkpoints").glob("best_*")) == []


def test_peers_have_rows_in_a_recipes_table(tmp_path):
    runs = {
        name: {"config": toy_config(None, methods=methods, steps=2).model_dump() | {"out": None}}
        for name, methods in (("alone", {}), ("both", PAIR))
    }
    keys = {"out": tmp_path, "runs": runs, "seeds": [0, 1], "baseline": "alone"}
    recipe = RecipeConfig.model_validate(keys)
    summaries = [(planned, train_run(planned.config)) for planned in expand(recipe)]
    rows = {row.name: row for row in compare(recipe, summaries)}
    assert list(rows) == ["alone", "both", "both: dml.second"]
    scores = [
        summary["peers"]["dml.second"]["score"]
        for plan, summary in summaries
        if plan.name == "both"
    ]
    row = rows["both: dml.second"]
    assert row.scores == scores and row.parameters == rows["both"].parameters
    assert row.seconds_per_step is None  # it is in the run's


# -- what cannot be --------------------------------------------------------------------------------


def test_a_peer_like_a_student_from_a_file_begins_anew_and_the_log_says_so(tmp_path):
    train_run(toy_config(tmp_path / "first", steps=1))
    student = {"checkpoint": str(tmp_path / "first")}
    trainer = make_trainer(toy_config(tmp_path / "run", student=student, methods=PAIR))
    (warning,) = [text for text in trainer.parts.warnings if "teaches noise" in text]
    assert warning.startswith("methods.dml.peers.second: ") and "methods.dml.start" in warning
    peer = trainer.peers.networks["dml.second"]
    mine, theirs = weights(trainer.student), weights(peer)
    assert mine.keys() == theirs.keys() and peer.config.arch == "toy"
    assert not torch.equal(mine["classifier.weight"], theirs["classifier.weight"])
    methods = {"dml": {"peers": {"second": student}}}
    trainer = make_trainer(toy_config(tmp_path / "run", student=student, methods=methods))
    same(weights(trainer.peers.networks["dml.second"]), weights(trainer.student))
    assert not trainer.parts.warnings


def test_a_peer_like_a_module_of_the_callers_is_a_copy_initialised_anew(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 5, 3, 4), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1))
    with torch.no_grad():
        module[1].running_mean += 7
        module[1].weight += 7
    trainer = make_trainer(toy_config(tmp_path / "run", methods=PAIR), student=wrap(module, 4))
    peer = trainer.peers.networks["dml.second"].module
    assert not torch.equal(peer[0].weight, module[0].weight)
    assert not peer[1].running_mean.any() and torch.equal(peer[1].weight, torch.ones(5))
    assert torch.equal(module[1].weight, torch.full((5,), 8.0))


def test_a_module_that_cannot_be_initialised_anew_is_refused(tmp_path):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3, 1, 1))

        def forward(self, images):
            return F.conv2d(images, self.weight)

    with pytest.raises(ConfigError, match=r"methods\.dml\.peers\.second: .*reset_parameters"):
        make_trainer(toy_config(tmp_path / "run", methods=PAIR), student=wrap(Bare(), 4))


def test_a_peer_that_cannot_be_built_is_named(tmp_path):
    methods = {"dml": {"peers": {"odd": {"arch": "toy", "options": {"widht": 3}}}}}
    with pytest.raises(ConfigError, match=r"methods\.dml\.peers\.odd: options\.widht: .* 'width'"):
        make_trainer(toy_config(tmp_path / "run", methods=methods))
