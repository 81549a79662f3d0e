"""Whole runs on toys: every hook of the contract, exact resume, and what a run leaves behind."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from resuming import make_trainer, same, states, stop_after
from toy_run import CLASSES, ToyData, loss_on, teacher_net, toy_config

from segkd import checkpoint
from segkd.config.schema import ModelConfig
from segkd.engine.run import train_run
from segkd.engine.setup import assemble
from segkd.engine.trainer import Trainer
from segkd.errors import ConfigError, Interrupted, TrainingError
from segkd.models.build import build_network
from segkd.runtime import Runtime, seed_everything

LITE = "tu-tf_efficientnet_lite0"
SMALL = {"name": "toy", "batch_size": 2, "workers": 0, "resize": [32, 64]}
ALL_HOOKS = {
    "kd": {},
    "cwd": {"tap": "stage4", "weight": 1.0, "start": 2, "warmup": 3},
    "toy_critic": {},
    "toy_bank": {},
    "toy_self": {"decay": "cosine"},
}


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in table]


# -- learning --------------------------------------------------------------------------------------


def test_training_lowers_the_loss_on_unseen_images(tmp_path):
    config = toy_config(tmp_path / "run", steps=30)
    before = make_trainer(config)
    unseen = ToyData(config.data, "val")
    first = loss_on(before.student, unseen)
    for _ in before.steps():
        pass
    assert loss_on(before.student, unseen) < 0.7 * first


def test_a_student_follows_its_teacher_by_distillation_alone(tmp_path):
    teacher = teacher_net()
    config = toy_config(tmp_path / "run", steps=40, task={"weight": 0.0}, methods={"kd": {}})
    trainer = make_trainer(config, teachers={"main": teacher})
    values = []
    for _ in trainer.steps():
        values.append(trainer.tally.collect(trainer.runtime, ["kd/kd"])["kd/kd"])
    assert sum(values[-5:]) < 0.5 * sum(values[:5])


# -- resume ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ALL_HOOKS, "ema": 0.9},
        {
            "methods": {"toy_mix": {}, "kd": {}},
            "optim": {"name": "adamw", "lr": 1e-2, "accumulate": 2, "clip": 1.0},
            "data": {
                "name": "toy",
                "batch_size": 4,
                "workers": 2,
                "crop": [32, 48],
                "augment": [
                    {"Affine": {"rotate": 9}},
                    {"OneOf": {"transforms": ["Blur", "ToGray"]}},
                ],
            },
            "student": {"arch": "toy", "aux_head": {"tap": "stage4"}},
        },
    ],
    ids=["critic-bank-self-ema", "mix-accumulate-workers-aux-augment"],
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, changes):
    whole = toy_config(tmp_path / "whole", steps=8, save_every=4, **changes)
    train_run(whole, teachers={"main": teacher_net()})
    parts = toy_config(tmp_path / "parts", steps=8, save_every=4, **changes)
    stop_after(monkeypatch, 5)
    with pytest.raises(Interrupted, match="Run the same command again"):
        train_run(parts, teachers={"main": teacher_net()})
    monkeypatch.undo()
    torch.rand(3)  # the global state at the start must not matter
    train_run(parts, teachers={"main": teacher_net()})
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_killed_run_loses_only_what_came_after_its_checkpoint(tmp_path, monkeypatch):
    whole, killed = (toy_config(tmp_path / n, steps=8, methods={"toy_self": {}}) for n in "ab")
    train_run(whole)
    original = Trainer._train_step

    def die(self, batches):
        if self.step == 5:
            raise KeyboardInterrupt  # as hard as SIGKILL: nothing is saved
        original(self, batches)

    monkeypatch.setattr(Trainer, "_train_step", die)
    with pytest.raises(KeyboardInterrupt):
        train_run(killed)
    monkeypatch.undo()
    train_run(killed)
    same(states(tmp_path / "b"), states(tmp_path / "a"))
    assert [row["step"] for row in rows(tmp_path / "b")] == [
        row["step"] for row in rows(tmp_path / "a")
    ]


def test_a_signal_saves_at_the_step_at_hand_and_gives_the_shells_exit_code(tmp_path, monkeypatch):
    stop_after(monkeypatch, 4)
    with pytest.raises(Interrupted) as caught:
        train_run(toy_config(tmp_path / "run"))
    assert caught.value.exit_code == 143
    assert states(tmp_path / "run")["step"] == 4


def test_resuming_with_another_configuration_is_refused_with_the_difference(tmp_path, monkeypatch):
    stop_after(monkeypatch, 4)
    with pytest.raises(Interrupted):
        train_run(toy_config(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.05 -> 0\.01"):
        train_run(toy_config(tmp_path / "run", optim={"lr": 0.01}))


def test_a_run_that_began_with_the_earlier_default_of_normalize_goes_on(tmp_path, monkeypatch):
    stop_after(monkeypatch, 4)
    with pytest.raises(Interrupted):
        train_run(toy_config(tmp_path / "run"))
    monkeypatch.undo()
    stored = tmp_path / "run" / "config.yaml"
    assert "normalize: auto" in stored.read_text()
    stored.write_text(stored.read_text().replace("normalize: auto", "normalize: none"))
    with pytest.raises(ConfigError, match=r"student\.normalize: none -> imagenet"):
        train_run(toy_config(tmp_path / "run"))
    stored.write_text(stored.read_text().replace("normalize: none", "normalize: imagenet"))
    train_run(toy_config(tmp_path / "run"))
    assert states(tmp_path / "run")["step"] == 6


def test_the_log_says_what_images_are_normalised_with(tmp_path):
    torch.save(teacher_net(normalize="none").state_dict(), tmp_path / "teacher.pth")
    teacher = {"arch": "toy", "normalize": "none", "checkpoint": str(tmp_path / "teacher.pth")}
    teacher["options"] = {"width": 8}
    train_run(toy_config(tmp_path / "run", teachers={"main": teacher}, methods={"kd": {}}))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "student: normalize: mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (ImageNet's" in log
    assert "teacher main: normalize: mean 0 0 0, std 1 1 1 (as configured)" in log


def test_a_contradiction_to_the_weights_is_a_warning_in_the_log(tmp_path):
    encoder = build_network(ModelConfig(arch="fpn", encoder=LITE), 4).encoder
    torch.save(encoder.state_dict(), tmp_path / "encoder.pth")
    student = {"arch": "fpn", "encoder": LITE, "weights": str(tmp_path / "encoder.pth")}
    student["normalize"] = "imagenet"
    train_run(toy_config(tmp_path / "run", steps=1, student=student, data=SMALL))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "WARNING: student: normalize: mean 0.485 0.456 0.406" in log
    assert "were trained with mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in log


def test_a_finished_run_is_not_repeated(tmp_path, monkeypatch):
    config = toy_config(tmp_path / "run")
    summary = train_run(config)
    monkeypatch.setattr(Trainer, "_train_step", None)
    assert train_run(config) == json.loads(json.dumps(summary))


# -- what goes wrong -------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_term_and_step_and_keeps_the_checkpoint(
    tmp_path, monkeypatch
):
    from toys import ToySelf

    original = ToySelf.loss

    def explode(self, student, teacher, batch, context):
        terms = original(self, student, teacher, batch, context)
        if context.step == 4:
            terms["agree"].value = terms["agree"].value * float("nan")
        return terms

    monkeypatch.setattr(ToySelf, "loss", explode)
    with pytest.raises(TrainingError, match=r"'toy_self/agree' became nan at step 4"):
        train_run(toy_config(tmp_path / "run", methods={"toy_self": {}}))
    kept = states(tmp_path / "run")
    assert kept["step"] == 3
    assert all(v.isfinite().all() for v in kept["student"].values() if v.is_floating_point())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"kd": {}}}, "needs a teacher"),
        ({"methods": {"kd": {"teacher": "mian"}}}, "there is no teacher 'mian'"),
        ({"methods": {"cwd": {"tap": "stage9"}}}, r"methods\.cwd: there is no tap 'stage9'"),
        ({"methods": {"toy_mix": {}, "m": {"method": "toy_mix"}}}, "all rewrite the batch"),
        ({"task": {"weight": 0.0}}, "nothing to minimise"),
        ({"methods": {"kd": {"weights": {"kdd": 2}}}}, r"kd\.weights\.kdd.*Did you mean 'kd'"),
        ({"train": ["student.encodr.*"]}, "matches no parameter"),
        ({"optim": {"accumulate": 3}}, "Use a multiple of 3"),
        ({"data": {"name": "toy", "images": 0}}, "no images"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, changes, message):
    teachers = {} if message == "needs a teacher" else {"main": teacher_net()}
    with pytest.raises(ValueError, match=message):
        train_run(toy_config(tmp_path / "run", **changes), teachers=teachers)


def test_a_method_says_how_many_classes_it_needs(tmp_path, monkeypatch):
    from toys import ToySelf

    message = r"methods\.toy_self: needs at least 5 classes, the data has 4\. Remove this entry"
    monkeypatch.setattr(ToySelf, "needs", replace(ToySelf.needs, min_classes=5))
    with pytest.raises(ConfigError, match=message):
        make_trainer(toy_config(tmp_path, methods={"toy_self": {}}))
    monkeypatch.setattr(ToySelf, "needs", replace(ToySelf.needs, min_classes=4))
    make_trainer(toy_config(tmp_path, methods={"toy_self": {}}))


def test_losses_that_need_labels_are_refused_without_them(tmp_path, monkeypatch):
    original = ToyData.read

    def unlabelled(self, index):
        sample = original(self, index)
        sample.label = None
        return sample

    monkeypatch.setattr(ToyData, "read", unlabelled)
    with pytest.raises(ConfigError, match=r"Set task\.weight=0"):
        make_trainer(toy_config(tmp_path / "run"))
    changes = {"task": {"weight": 0.0}, "methods": {"toy_self": {}}}
    with pytest.raises(ConfigError, match=r"methods\.toy_self: needs labels"):
        make_trainer(toy_config(tmp_path / "run", **changes))


def test_a_folder_without_the_right_to_write_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot write into"):
        train_run(toy_config(tmp_path / "file" / "run"))


# -- parts of the contract -------------------------------------------------------------------------


def test_two_entries_listen_to_two_teachers(tmp_path):
    nets = {"one": teacher_net(seed=1), "two": teacher_net(seed=2)}
    methods = {"a": {"method": "kd", "teacher": "one"}, "b": {"method": "kd", "teacher": "two"}}
    trainer = make_trainer(toy_config(tmp_path / "run", methods=methods), teachers=nets)
    next(trainer.steps())
    values = trainer.tally.collect(trainer.runtime, ["a/kd", "b/kd"])
    assert values["a/kd"] != values["b/kd"]


def test_own_parameters_get_no_gradient_from_the_students_step(tmp_path):
    config = toy_config(tmp_path / "run", methods={"toy_critic": {"start": 3}})
    trainer = make_trainer(config, teachers={"main": teacher_net()})
    critic = trainer.methods["toy_critic"].inner_parameters()
    before = [p.clone() for p in critic]
    next(trainer.steps())
    assert all(p.grad is None and not p.requires_grad for p in critic)
    moved = [not torch.equal(a, b) for a, b in zip(before, critic, strict=True)]
    assert any(moved), "inner_loss is independent of the entry's start"


def test_parameters_that_no_loss_reaches_are_frozen_and_reported(tmp_path):
    trainer = make_trainer(toy_config(tmp_path / "run"))
    assert trainer.frozen == ["unused.weight", "unused.bias"]


def test_the_dry_step_leaves_no_trace(tmp_path):
    config = toy_config(tmp_path / "run", methods=ALL_HOOKS)
    seed_everything(5, 0)
    parts = assemble(config, Runtime.single(), teachers={"main": teacher_net()})
    before = {k: v.clone() for k, v in parts.student.state_dict().items()}
    bank = parts.objective.methods["toy_bank"].bank.clone()
    rng = torch.get_rng_state()
    trainer = Trainer(config, parts, Runtime.single())
    torch.testing.assert_close(dict(trainer.student.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(bank, trainer.methods["toy_bank"].bank)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(p.grad is None for p in trainer.student.parameters())


def test_only_what_train_names_moves_and_the_rest_stays_in_eval(tmp_path):
    config = toy_config(tmp_path / "run", train=["student.encoder.*"])
    trainer = make_trainer(config)
    before = {k: v.clone() for k, v in trainer.student.state_dict().items()}
    next(trainer.steps())
    after = trainer.student.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and all(name.startswith("encoder.") for name in changed)
    assert trainer.student.encoder[0][1].training and not trainer.student.drop.training


def test_a_second_phase_takes_over_student_and_method_state(tmp_path):
    hints = {"toy_bank": {}, "kd": {}}
    nets = {"main": teacher_net()}
    first = toy_config(
        tmp_path / "hints",
        task={"weight": 0.0},
        methods=hints,
        train=["student.encoder.*", "methods.toy_bank.*"],
    )
    train_run(first, teachers=nets)
    second = toy_config(
        tmp_path / "distil", init_from=str(tmp_path / "hints"), methods={"toy_bank": {}}
    )
    trainer = make_trainer(second, teachers=nets)
    state = checkpoint.load(tmp_path / "hints" / "checkpoints" / "last.pt")
    torch.testing.assert_close(dict(trainer.student.state_dict()), dict(state["student"]))
    assert torch.equal(
        trainer.methods["toy_bank"].bank, state["objective"]["methods.toy_bank.bank"]
    )
    assert trainer.step == 0


def test_accumulation_equals_the_whole_batch_without_batch_statistics(tmp_path):
    net = {"arch": "toy", "options": {"norm": False}}
    data = {"name": "toy", "batch_size": 4, "workers": 0, "crop": [32, 48], "void": False}
    data["scale"] = [1.0, 1.0]  # padding would give the micro-steps unequal counts
    found = []
    for accumulate in (1, 2):
        optim = {"lr": 0.05, "accumulate": accumulate}
        trainer = make_trainer(toy_config(tmp_path, student=net, data=data, optim=optim))
        next(trainer.steps())
        found.append(dict(trainer.student.state_dict()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


# -- what a run leaves behind ----------------------------------------------------------------------


def test_the_best_checkpoint_holds_the_student_alone(tmp_path):
    config = toy_config(
        tmp_path / "run",
        student={"arch": "toy", "aux_head": {"tap": "stage4"}},
        methods=ALL_HOOKS,
        ema=0.5,
    )
    train_run(config, teachers={"main": teacher_net()})
    best = checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")
    assert best["classes"] == list(CLASSES)
    assert best["model"]["aux_head"] is None
    plain = teacher_net(width=6).state_dict().keys()
    assert best["weights"].keys() == plain
    average = states(tmp_path / "run")["ema"]["weights"]
    assert torch.equal(best["weights"]["classifier.weight"], average["classifier.weight"])


def test_the_log_has_the_rate_without_the_factors_of_parts(tmp_path):
    optim = {"lr": 0.02, "lr_factors": {"encoder": 0.0}}
    schedule = {"name": "poly", "power": 1.0}
    train_run(toy_config(tmp_path / "run", optim=optim, schedule=schedule))
    with open(tmp_path / "run/metrics.csv", newline="") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
    assert rates == pytest.approx([0.02 * (1 - step / 6) for step in (1, 3, 5)], rel=1e-5)


def test_the_parts_of_a_step_are_all_in_the_table(tmp_path):
    changes = {
        "teachers": {"main": {"arch": "toy", "options": {"width": 8}}},
        "methods": {"kd": {"weight": {"auto": 0.3}}},
    }
    summary = train_run(toy_config(tmp_path / "run", **changes))
    with open(tmp_path / "run/metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["lr"]]
    parts = {key.removeprefix("seconds/") for key in rows[0] if key.startswith("seconds/")}
    assert parts >= set(summary["seconds"]) and "weights" in parts
    whole = sum(float(v or 0) for row in rows for k, v in row.items() if k.startswith("seconds/"))
    assert whole / len(rows) == pytest.approx(summary["seconds_per_step"], rel=1e-3)


def test_a_run_shows_its_cost_and_its_terms(tmp_path):
    summary = train_run(
        toy_config(tmp_path / "run", methods=ALL_HOOKS), teachers={"main": teacher_net()}
    )
    parts = {"data", "teacher", "student", "task", "backward", "update"}
    assert parts | {f"method/{name}" for name in ALL_HOOKS} == set(summary["seconds"])
    assert summary["peak_memory"] > 0 and summary["teachers"]["main"]["miou"] >= 0
    last = rows(tmp_path / "run")[-1]
    assert last["step"] == "6"
    for term in ("task/cross_entropy", "kd/kd", "cwd/cwd", "toy_critic/own_critic", "val/miou"):
        assert last[term] or rows(tmp_path / "run")[-2][term], term


# -- fresh layers ----------------------------------------------------------------------------------


def test_fresh_layers_learn_alone_before_they_teach(tmp_path):
    def student_after(steps, name, **keys):
        student = {"arch": "toy", "options": {"norm": False}}
        config = toy_config(tmp_path / name, steps=8, student=student, **keys)
        trainer = make_trainer(config, teachers={"main": teacher_net(norm=False)})
        for _ in trainer.steps():
            if trainer.step == steps:
                break
        return trainer

    methods = {"fitnets": {"weight": 5.0, "adapter_warmup": 3}}
    alone, beside = student_after(3, "a"), student_after(3, "b", methods=methods)
    same(beside.student.state_dict(), alone.student.state_dict())
    assert beside.objective.methods["fitnets"].regressor.weight.std() > 0.015  # it began at 0.01
    taught = student_after(5, "c", methods=methods).student.state_dict()
    alone = student_after(5, "d").student.state_dict()
    assert any(not torch.equal(taught[key], alone[key]) for key in alone)


def test_the_gradient_of_fresh_layers_rises_after_their_time_alone(tmp_path):
    methods = {
        "fitnets": {"adapter_warmup": 4, "start": 2},
        "kd": {"adapter_warmup": 4},  # has no layers
    }
    trainer = make_trainer(
        toy_config(tmp_path, steps=20, methods=methods), teachers={"main": teacher_net()}
    )
    shares = [trainer.objective._slow_start("fitnets", step) for step in (2, 5, 6, 7, 9, 10, 19)]
    assert shares == [0, 0, 0.25, 0.5, 1, 1, 1]
    assert trainer.objective._slow_start("kd", 0) == 1
