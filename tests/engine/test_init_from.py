"""A run that starts from another one: its classes have to mean the same."""

import pytest
import torch
from resuming import make_trainer
from toy_run import ToyData, teacher_net, toy_config

from segkd.engine.run import train_run
from segkd.errors import CheckpointError


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    train_run(toy_config(folder, steps=1))
    return folder


def second(first, tmp_path):
    return train_run(toy_config(tmp_path / "second", steps=1, init_from=str(first)))


def without_names(first, tmp_path, *, best):
    """A copy of the first run as older versions wrote it; ``best``: whether best.pt is there."""
    old = tmp_path / "old" / "checkpoints"
    old.mkdir(parents=True)
    state = torch.load(first / "checkpoints/last.pt", weights_only=True)
    del state["classes"]
    torch.save(state, old / "last.pt")
    if best:
        (old / "best.pt").write_bytes((first / "checkpoints/best.pt").read_bytes())
    return old.parent


def test_the_same_classes_go_on(first, tmp_path, monkeypatch):
    monkeypatch.setattr(ToyData, "classes", ("Sky", "road", "car", "tree"))  # but for the case
    assert second(first, tmp_path)["steps"] == 1
    assert "does not name its classes" not in (tmp_path / "second/log.txt").read_text()


@pytest.mark.parametrize("old", [False, True])
def test_other_classes_of_the_same_number_are_refused(first, tmp_path, monkeypatch, old):
    source = without_names(first, tmp_path, best=True) if old else first
    monkeypatch.setattr(ToyData, "classes", ("sky", "road", "car", "person"))
    with pytest.raises(CheckpointError) as caught:
        second(source, tmp_path)
    assert f"init_from: {source} was trained on other classes" in str(caught.value)
    assert "only in the file: tree; only in the data: person" in str(caught.value)


def test_another_order_is_refused_with_the_way_out(first, tmp_path, monkeypatch):
    monkeypatch.setattr(ToyData, "classes", ("sky", "car", "road", "tree"))
    text = r"1 is 'road' in that run and 'car' in this one.*student\.checkpo"
    with pytest.raises(CheckpointError, match=text):
        second(first, tmp_path)


def test_a_run_that_names_no_classes_is_told(first, tmp_path):
    second(without_names(first, tmp_path, best=False), tmp_path)
    assert "does not name its classes" in (tmp_path / "second/log.txt").read_text()


def test_layers_that_nobody_has_trained_are_told(first, tmp_path):
    """Masks of `maskd`, say, if the other run calls the entry something else."""
    for steps in (0, 1):
        log = tmp_path / f"{steps}/log.txt"
        keys = {"teachers": {"t": {"arch": "toy"}}, "methods": {"maskd": {"token_steps": steps}}}
        train_run(toy_config(log.parent, steps=2, init_from=str(first), **keys))
        assert ("has no methods.maskd, whose own layers learn for 0" in log.read_text()) == (
            not steps
        )


def test_peers_that_begin_untrained_are_told(first, tmp_path):
    """Not where they have a checkpoint, nor where the other run has trained them."""
    best = {"arch": "toy", "checkpoint": str(first / "checkpoints/best.pt")}

    def log(name, source, peers):
        keys = {"methods": {"dml": {"peers": peers}}, "init_from": str(source)}
        train_run(toy_config(tmp_path / name, steps=1, **keys))
        return (tmp_path / name / "log.txt").read_text()

    told = "has no methods.dml, so that its peers (a) begin untrained beside a student that is"
    assert told in log("fresh", first, {"a": {}, "b": best})
    assert "untrained" not in log("trained", first, {"b": best})
    assert "untrained" not in log("again", tmp_path / "fresh", {"a": {}, "b": best})


def test_a_critic_outside_of_train_stays_as_it_is(tmp_path):
    keys = {"teachers": {"t": {"arch": "toy"}}, "methods": {"holistic": {"width": 8}}}
    critics = []
    for number, changes in enumerate(
        [
            {},
            {"init_from": str(tmp_path / "0"), "train": ["student.*"]},
            {"init_from": str(tmp_path / "0")},
        ]
    ):
        train_run(toy_config(tmp_path / str(number), steps=2, **keys, **changes))
        state = torch.load(tmp_path / f"{number}/checkpoints/last.pt", weights_only=True)
        critics.append({k: v for k, v in state["objective"].items() if k.startswith("methods.")})
    kept, trained = (
        all(torch.equal(value, critics[0][key]) for key, value in other.items())
        for other in critics[1:]
    )
    assert kept and not trained


def test_a_frozen_batch_norm_of_timm_keeps_its_statistics(tmp_path):
    """Which has submodules, an activation and a dropout, unlike torch's own."""
    size = {"name": "toy", "batch_size": 2, "workers": 0, "resize": [64, 64], "crop": [64, 64]}
    student = {"arch": "fpn", "encoder": "tu-mobilenetv3_small_050"}
    keys = {"train": ["student.decoder.*"], "data": size, "student": student}
    trainer = make_trainer(toy_config(tmp_path, **keys))
    before = {key: value.clone() for key, value in trainer.student.state_dict().items()}
    next(trainer.steps())
    moved = [k for k, v in trainer.student.state_dict().items() if not torch.equal(v, before[k])]
    assert moved and all(key.startswith("decoder.") for key in moved)
    inside = trainer.student.encoder.modules()
    assert not any(module.training for module in inside), "dropout of a function, too, is off"
    assert trainer.student.training and trainer.student.decoder.training


def test_what_train_left_out_is_trained_in_the_next_run_of_a_module(tmp_path):
    network = teacher_net()
    network.encoder[1].requires_grad_(False)  # as the caller wants it
    train_run(toy_config(tmp_path / "0", steps=1, train=["student.classifier.*"]), student=network)
    before = network.encoder[0][0].weight.clone(), network.encoder[1][0].weight.clone()
    train_run(toy_config(tmp_path / "1", steps=1), student=network)
    assert not torch.equal(network.encoder[0][0].weight, before[0])
    assert torch.equal(network.encoder[1][0].weight, before[1])


def test_a_folder_in_the_home_is_found_and_none_is_called_by_a_tilde(first, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(first.parent))
    monkeypatch.chdir(tmp_path)
    assert toy_config("~/second").out == first.parent / "second"
    train_run(toy_config("second", steps=1, init_from="~/run"))
    assert [path.name for path in tmp_path.iterdir()] == ["second"]
