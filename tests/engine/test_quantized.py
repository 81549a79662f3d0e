"""Runs with ``quantize:``: learning, files, resume, averages, half types, several runs."""

import pytest
import torch
from pydantic import ValidationError
from resuming import make_trainer, same, states, stop_after
from toy_run import ToyData, loss_on, teacher_net, toy_config

import segkd
from segkd import checkpoint
from segkd.engine.run import train_run
from segkd.errors import Interrupted
from segkd.models.build import network_from_file
from segkd.models.quantized import input_grids, quantized_layers
from segkd.models.weights import load_student_file
from segkd.report.collect import collect
from segkd.report.sections import _runs_table

BOTH = {"bits": 4, "activations": 8, "first_and_last": True}
LAYERS = [f"encoder.{number}.0" for number in range(3)]
QUIET = {"arch": "toy", "options": {"norm": False}}


def steps(trainer):
    for _ in trainer.steps():
        pass
    return trainer


def level_counts(weight):
    """The number of different values of each output channel."""
    rows = weight.flatten(1)
    rows = (rows / rows.abs().amax(1, keepdim=True)).round(decimals=4)
    return [len(set(row.tolist())) for row in rows]


@pytest.mark.parametrize("keys", [{"bits": 2}, {"bits": 4, "per": "bucket", "grid": "range"}, BOTH])
def test_training_lowers_the_loss_of_the_quantised_network(tmp_path, keys):
    config = toy_config(tmp_path / "run", steps=40, quantize=keys)
    trainer = make_trainer(config)
    unseen = ToyData(config.data, "val")
    first = loss_on(trainer.student, unseen)
    steps(trainer)
    assert loss_on(trainer.student, unseen) < 0.75 * first


def test_steps_that_are_smaller_than_the_grid_add_up(tmp_path):
    trainer = make_trainer(toy_config(tmp_path, quantize={"bits": 2}, optim={"lr": 1e-5}))
    layer = trainer.student.encoder[1][0]
    floats, rounded = layer.parametrizations.weight.original, layer.weight.detach().clone()
    before = floats.detach().clone()
    loop = trainer.steps()
    next(loop)
    assert torch.equal(layer.weight.sign(), rounded.sign()), "no value has left its level"
    moved = (floats != before).float().mean()
    assert moved > 0.9, "the gradient reaches every float value"


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_students_file_is_a_plain_network_with_quantised_weights(tmp_path, ema):
    config = toy_config(tmp_path / "run", steps=8, quantize=BOTH, ema=ema, methods={"kd": {}})
    summary = train_run(config, teachers={"main": teacher_net()})
    payload = load_student_file(tmp_path / "run")
    for path in LAYERS:
        assert 8 < max(level_counts(payload["weights"][f"{path}.weight"])) <= 15
    assert set(payload["quantization"]["layers"]) == {*LAYERS, "classifier"}
    network, _ = network_from_file(tmp_path / "run")
    assert not quantized_layers(network) and len(input_grids(network)) == 4
    assert segkd.evaluate(tmp_path / "run").score == summary["score"]
    last = checkpoint.load(tmp_path / "run/checkpoints/last.pt")
    assert last["student"].keys() == network.state_dict().keys()
    assert max(level_counts(last["student"]["encoder.1.0.weight"])) > 15, "floats go on from here"
    size = summary["quantization"]
    assert size["bits"] == 4 and size["layers"] == 4
    assert size["bytes"] < 0.4 * size["float_bytes"]


def test_the_average_is_that_of_the_float_values(tmp_path):
    trainer = steps(make_trainer(toy_config(tmp_path, steps=3, quantize=BOTH, ema=0.9)))
    mean = trainer.ema.average
    floats = mean.encoder[1][0].parametrizations.weight.original
    assert max(level_counts(floats)) > 15 >= max(level_counts(mean.encoder[1][0].weight))
    for path, grid in input_grids(trainer.student).items():
        assert torch.equal(input_grids(mean)[path].range, grid.range)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_it_resumes_bit_for_bit(tmp_path, monkeypatch, precision):
    changes = {
        "steps": 8,
        "save_every": 4,
        "quantize": BOTH,
        "ema": 0.9,
        "methods": {"kd": {}, "cwd": {"tap": "stage4"}},
        "runtime": {"device": "cpu", "threads": 1, "precision": precision},
    }
    train_run(toy_config(tmp_path / "whole", **changes), teachers={"main": teacher_net()})
    parts = toy_config(tmp_path / "parts", **changes)
    stop_after(monkeypatch, 5)
    with pytest.raises(Interrupted):
        train_run(parts, teachers={"main": teacher_net()})
    monkeypatch.undo()
    train_run(parts, teachers={"main": teacher_net()})
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))
    ranges = states(tmp_path / "whole")["quantization"]["student"]
    assert ranges.keys() == {*LAYERS, "classifier"}
    assert all(high > low for low, high in ranges.values())


COMPILED = {"compile": True, "compile_backend": "aot_eager"}
DML = {"dml": {"peers": {"like": {}, "wide": {"arch": "toy", "options": {"width": 8}}}}}


@pytest.mark.parametrize(
    ("runtime", "methods"),
    [
        (COMPILED, {"kd": {}, "cwd": {"tap": "stage4"}}),
        (COMPILED, DML),
        ({"precision": "bf16", "channels_last": True}, DML),
    ],
)
def test_it_ends_and_resumes_bit_for_bit_with_other_options(
    tmp_path, monkeypatch, runtime, methods
):
    changes = {"quantize": BOTH, "ema": 0.9, "methods": methods, "eval": {"every": 2}}
    changes |= {"runtime": {"device": "cpu", "threads": 1, **runtime}, "steps": 4, "save_every": 2}
    teachers = {"main": teacher_net()} if "kd" in methods else {}
    summary = train_run(toy_config(tmp_path / "whole", **changes), teachers=teachers)
    parts = toy_config(tmp_path / "parts", **changes)
    stop_after(monkeypatch, 3)
    with pytest.raises(Interrupted):
        train_run(parts, teachers=teachers)
    monkeypatch.undo()
    torch._dynamo.reset()
    assert train_run(parts, teachers=teachers)["score"] == summary["score"]
    same(states(tmp_path / "parts"), states(tmp_path / "whole"))
    network, _ = network_from_file(tmp_path / "parts")
    assert max(level_counts(network.encoder[1][0].weight.detach())) <= 15
    torch._dynamo.reset()


def test_an_evaluation_in_between_changes_no_bit(tmp_path):
    for name, every in (("a", 0), ("b", 2)):
        train_run(toy_config(tmp_path / name, quantize=BOTH, eval={"every": every}))
    found, expected = (states(tmp_path / name) for name in "ab")
    for key in ("student", "quantization", "optimizer"):
        same(found[key], expected[key])


def test_a_compiled_run_has_the_same_numbers(tmp_path):
    torch._dynamo.reset()
    plain = {"device": "cpu", "threads": 1}
    compiled = {**plain, "compile": "student", "compile_backend": "aot_eager"}
    one, other = (
        steps(make_trainer(toy_config(tmp_path, student=QUIET, quantize=BOTH, runtime=runtime)))
        for runtime in (plain, compiled)
    )
    torch._dynamo.reset()
    found, expected = (dict(trainer.student.state_dict()) for trainer in (one, other))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_float_and_quantised_runs_start_from_one_another(tmp_path):
    train_run(toy_config(tmp_path / "float"))
    quantised = toy_config(tmp_path / "q", quantize=BOTH, init_from=str(tmp_path / "float"))
    trainer = make_trainer(quantised)
    last = checkpoint.load(tmp_path / "float/checkpoints/last.pt")["student"]
    same(dict(trainer.student.state_dict()), dict(last))
    train_run(quantised)
    back = make_trainer(toy_config(tmp_path / "back", init_from=str(tmp_path / "q")))
    same(dict(back.student.state_dict()), dict(states(tmp_path / "q")["student"]))


def test_a_student_that_starts_from_quantised_inputs_has_float_ones(tmp_path):
    train_run(toy_config(tmp_path / "q", quantize=BOTH))
    student = {"checkpoint": str(tmp_path / "q")}
    trainer = make_trainer(toy_config(tmp_path / "next", student=student))
    assert not input_grids(trainer.student)
    assert "begin as floats" in "".join(trainer.parts.warnings)
    teachers = {"main": {"checkpoint": str(tmp_path / "q")}}
    taught = make_trainer(toy_config(tmp_path / "t", teachers=teachers, methods={"kd": {}}))
    assert len(input_grids(taught.parts.teachers)) == 4, "a teacher is what it was"


def test_only_what_train_names_moves_and_all_of_it_is_quantised(tmp_path):
    train = ["student.encoder.1.0.weight", "student.classifier.*"]
    trainer = make_trainer(toy_config(tmp_path, quantize=BOTH, train=train))
    before = {name: value.clone() for name, value in trainer.student.state_dict().items()}
    grids = input_grids(trainer.student)
    fixed = grids["encoder.0.0"].range.clone()
    assert fixed[1] > fixed[0], "the first images set the range of frozen layers, too"
    steps(trainer)
    moved = {
        name
        for name, value in trainer.student.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == {"encoder.1.0.weight", "classifier.weight", "classifier.bias"}
    assert torch.equal(grids["encoder.0.0"].range, fixed)


def test_a_module_of_the_caller_is_a_plain_one_afterwards(tmp_path):
    student = teacher_net(seed=3)
    train_run(toy_config(tmp_path / "run", quantize={"bits": 2}), student=student)
    assert not quantized_layers(student)
    assert max(level_counts(student.encoder[1][0].weight.detach())) <= 3
    assert isinstance(student.encoder[1][0].weight, torch.nn.Parameter)


def test_the_same_call_goes_on_with_the_module_of_a_stopped_run(tmp_path, monkeypatch):
    """As in a notebook, in which the module is still there."""
    config = toy_config(tmp_path / "run", quantize=BOTH)
    network = teacher_net()
    with monkeypatch.context() as patched:
        stop_after(patched, 4)
        with pytest.raises(Interrupted):
            train_run(config, student=network)
    assert not (quantized_layers(network) or input_grids(network))
    train_run(config, student=network)
    assert "begin as floats" not in (tmp_path / "run/log.txt").read_text()
    train_run(toy_config(tmp_path / "whole", quantize=BOTH), student=teacher_net())
    found, expected = (states(tmp_path / name) for name in ("run", "whole"))
    same(found["student"], expected["student"])


def test_the_log_and_the_card_name_bits_and_sizes(tmp_path, capsys):
    train_run(toy_config(tmp_path / "run", quantize={"bits": 4}))
    text = capsys.readouterr().out
    assert "4-bit weights per channel in 2 layers; stored in 0.00 MB instead of 0.01 MB" in text
    assert "encoder.0.0 (first), classifier (last)" in text
    shown = collect([tmp_path / "run"])
    assert "4-bit weights (0.00 MB of 0.01)" in _runs_table(shown).markdown()
    folder = segkd.save_pretrained(tmp_path / "run", tmp_path / "published")
    assert "Quantised in training: 4-bit weights per channel" in (folder / "README.md").read_text()
    found, expected = (load_student_file(tmp_path / name) for name in ("published", "run"))
    assert found["quantization"] == expected["quantization"]
    assert torch.equal(
        found["weights"]["encoder.1.0.weight"], expected["weights"]["encoder.1.0.weight"]
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"bits": 9}, "less than or equal to 8"),
        ({"bits": 1}, "greater than or equal to 2"),
        ({"per": "row"}, "'tensor', 'channel' or 'bucket'"),
        ({"bucket_size": 64}, "goes with `per: bucket`"),
        ({"bit": 4}, "Extra inputs"),
    ],
)
def test_mistakes_are_told(tmp_path, keys, message):
    with pytest.raises(ValidationError, match=message):
        toy_config(tmp_path, quantize=keys)


def test_a_damaged_fact_is_refused(tmp_path):
    train_run(toy_config(tmp_path / "run", steps=1, quantize=BOTH))
    path = tmp_path / "run/checkpoints/best.pt"
    payload = checkpoint.load(path)
    for change in ({"ranges": {}}, {"layers": []}, {"settings": {"bits": 77}}):
        torch.save(payload | {"quantization": payload["quantization"] | change}, path)
        with pytest.raises(segkd.SegKDError, match="quantization"):
            network_from_file(path)
