"""How often a training step waits for the device: never, but for the methods named here."""

from unittest import mock

import pytest
import torch
import triples
from counted_waits import counted_waits
from toy_lanes import ToyLanes
from toy_run import toy_config

from segkd import method_context, registry
from segkd.config.schema import TaskConfig
from segkd.engine.image_generators import ImageGenerators
from segkd.engine.setup import assemble
from segkd.engine.task_losses import TaskLosses
from segkd.engine.trained_parts import train_mode
from segkd.engine.trainer import Trainer
from segkd.ops import squared_distance
from segkd.runtime import Runtime, generator, seed_everything
from segkd.structures import Batch, Outputs
from segkd.testing.waits import META, cuda_waits, find_waits

# Nodes are as many as there are classes in the images: both numbers are read, by torch.unique and
# by nonzero, in `loss` and, where there is one, in `after_step` or `inner_loss`.
NODES = 2
ALLOWED = {
    **dict.fromkeys(("cc", "irg", "rkd", "sp"), NODES),
    "crd": 2 * NODES + 1,  # and, in the first steps, whether its constants have been measured
    "sskd": 2 * NODES,
    "mhgd": 1,  # patches are nodes if half of them is valid
}
LANES = {"ld"}
LANE_DATA = {"name": ToyLanes.name, "batch_size": 4, "workers": 0, "resize": [64, 160]}
METHODS = [name for name in registry.methods.names() if not name.startswith("toy_")]


def steps_of(folder, methods, device="cpu", **changes):
    """A trainer after its first step, and the batch of the second."""
    usual = {"steps": 3, "teachers": {"main": {"arch": "toy"}}, "methods": methods}
    usual |= {"runtime": {"device": device, "threads": 1}}
    if LANES & methods.keys():
        usual |= {"data": LANE_DATA, "student": {"arch": "toy", "exist_head": {}}}
    config = toy_config(folder, **{**usual, **changes})
    runtime = Runtime.start(device)
    seed_everything(0, 0)
    trainer = Trainer(config, assemble(config, runtime), runtime)
    train_mode(config, trainer.parts)
    batches = list(trainer._loader(0, 2 * config.optim.accumulate, workers=0))
    trainer._train_step([trainer._placed(one) for one in batches[: config.optim.accumulate]])
    trainer.step += 1
    return trainer, batches[config.optim.accumulate :]


def waits_of(trainer, batches):
    """The waits of a step: on the CPU those that a device would have, on CUDA as torch has them."""
    if trainer.runtime.device.type == "cuda":
        batches = [trainer._placed(batch) for batch in batches]
        return cuda_waits(lambda: trainer._train_step(batches))
    method_context._kept_places.cache_clear()
    modules = [trainer.student, trainer.parts.teachers, trainer.objective]
    modules += [trainer.ema.average] if trainer.ema else []
    optimizers = [trainer.optimizer, *(own.optimizer for own in trainer.own.values())]
    states = [state for one in optimizers for state in one.state.values()]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    tensors += [x for state in states for x in state.values() if torch.is_tensor(x) and x.dim()]
    # On a device it answers without asking, see test_squared_distance.py.
    asked = mock.patch.object(squared_distance, "_known_to_be_finite", return_value=False)
    with asked, counted_waits(*tensors) as found:
        trainer._train_step([trainer._placed(batch) for batch in batches])
    return found


def listed(found):
    return "\n".join(sorted(found))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_waits_no_more_often_than_it_must(tmp_path, name):
    options = triples.SMALL.get(name, {})
    found = waits_of(*steps_of(tmp_path, {name: options}))
    assert len(found) == ALLOWED.get(name, 0), listed(found)


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_a_step_on_cuda_waits_no_more_often_than_it_must(tmp_path, name):
    options = triples.SMALL.get(name, {})
    found = waits_of(*steps_of(tmp_path, {name: options}, "cuda"))
    assert len(found) <= ALLOWED.get(name, 0), listed(found)


ENGINE = {
    "average, clipping, micro-steps": {"ema": 0.9, "optim": {"clip": 1.0, "accumulate": 2}},
    "adamw": {"optim": {"name": "adamw"}},
    "without methods": {"methods": {}, "teachers": {}},
    "several methods": {"methods": {"kd": {}, "cwd": {}, "cirkd": triples.SMALL["cirkd"]}},
    "sampled anchors": {"methods": {"cirkd": {**triples.SMALL["cirkd"], "anchors": 2}}},
    "patches": {"methods": {"cirkd": {**triples.SMALL["cirkd"], "version": 2, "pool": 2}}},
    "a batch that is rewritten": {"methods": {"unix": {}, "kd": {}}},
    "void pixels teach": {"methods": {"kd": {"mask": "not_padding"}, "at": {}}},
}


@pytest.mark.parametrize("changes", ENGINE.values(), ids=ENGINE)
def test_the_engine_does_not_wait(tmp_path, changes):
    changes = dict(changes)
    found = waits_of(*steps_of(tmp_path, changes.pop("methods", {"kd": {}}), **changes))
    assert not found, listed(found)


def test_outputs_are_kept_for_the_methods_alone_that_act_after_a_step(tmp_path, monkeypatch):
    methods = {"kd": {}, "cwd": {}, "cirkd": triples.SMALL["cirkd"]}
    trainer, batches = steps_of(tmp_path, methods)
    asked, plain = [], trainer.objective.context

    def noted(entry, batch, step, draw="", *rest, **more):
        asked.append((entry, draw))
        return plain(entry, batch, step, draw, *rest, **more)

    monkeypatch.setattr(trainer.objective, "context", noted)
    trainer._train_step([trainer._placed(batch) for batch in batches])
    assert [entry for entry, draw in asked if draw == "after"] == ["cirkd"]
    trainer, batches = steps_of(tmp_path / "other", {"kd": {}})
    assert trainer._micro_step(trainer._placed(batches[0]), 1) is None


def test_a_measured_weight_is_read_where_it_is_due(tmp_path):
    auto = {"kd": {"weight": {"auto": 0.3, "every": 100}}}
    trainer, batches = steps_of(tmp_path, auto)
    assert waits_of(trainer, batches) == []


def test_what_would_wait_is_counted(tmp_path, monkeypatch):
    trainer, batches = steps_of(tmp_path, {"kd": {}})
    kd = trainer.methods["kd"]
    loss = kd.loss

    def slow(student, teacher, batch, context):
        float(student.logits.sum())
        mask = context.mask_at(*student.logits.shape[-2:])
        student.logits.movedim(1, -1)[mask].sum().tolist()
        torch.randperm(4).to(student.logits.device)
        torch.arange(4).tolist(), batch.index.tolist()  # on the host: nothing to wait for
        return loss(student, teacher, batch, context)

    monkeypatch.setattr(kd, "loss", slow)
    found = listed(waits_of(trainer, batches))
    for what in ("reads a number", "with a mask", "to the host (tolist)", "without non_blocking"):
        assert found.count(what) == 1, found
    assert len(found.splitlines()) == 4


# -- parts -----------------------------------------------------------------------------------------


TASKS = {
    "ohem": {"cross_entropy": {"ohem": True}},
    "ohem by number": {"cross_entropy": {"ohem": {"keep": 20}}},
    "class weights": {"cross_entropy": {"class_weights": [1.0, 2.0, 3.0]}},
    "smoothing": {"cross_entropy": {"label_smoothing": 0.1}},
    "dice": {"dice": {}},
    "lane_iou": {"lane_iou": {}},
    "existence": {"existence": {}},
}
ROWS = {"row_cells": {}, "row_similarity": {}, "row_shape": {}}
TASKS |= {name: {name: options} for name, options in ROWS.items()}


@pytest.mark.parametrize("losses", TASKS.values(), ids=TASKS)
def test_task_losses_do_not_wait(losses):
    of_rows = bool(losses.keys() & ROWS.keys())
    config = TaskConfig.model_validate({"losses": losses})
    task = TaskLosses(config, 3, has_rows=of_rows).to(META)
    logits = torch.randn(2, 3, 6, 9, device=META, requires_grad=True)
    exist = torch.randn(2, 2, device=META, requires_grad=True)
    rows = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8) if of_rows else ()
    size = torch.zeros(2, 24, 36)
    extra = {"exist": torch.zeros(2, 2), "lanes": torch.zeros(2, 2, 7, 2)}
    batch = Batch(size, size.long(), size == 0, torch.arange(2), extra=extra).to(META)
    outputs = Outputs(logits, exist=exist, rows=rows)

    def step():
        terms = task(outputs, batch)
        assert terms
        sum(term.value for term in terms.values()).backward()

    step_twice = [find_waits(step), find_waits(step)]
    assert step_twice[1] == [], step_twice[1]


def test_indices_stay_on_the_host():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    batch = Batch(images, images[:, 0].long(), images[:, 0] == 0, torch.tensor([5, 3])).to(META)
    assert batch.images.is_meta and batch.not_padding.is_meta and batch.index.tolist() == [5, 3]


def test_generators_of_images_are_made_once_and_only_if_used():
    made = ImageGenerators((0, 1, "kd", ""), torch.zeros(3, dtype=torch.int64, device=META))
    assert len(made) == 3  # without reading the device
    made = ImageGenerators((0, 1, "kd", ""), torch.tensor([5, 3]))
    first, second = (torch.rand(4, generator=made[1]) for _ in range(2))
    expected = generator(0, 1, "kd", "", 3)
    assert torch.equal(first, torch.rand(4, generator=expected))
    assert torch.equal(second, torch.rand(4, generator=expected))
    assert list(made) == made[0:2]
