"""Every mistake is told with file, line, key, what was got and what was expected."""

import pytest
from pydantic import model_validator

from segkd import registry
from segkd.config.load import load_config
from segkd.errors import ConfigError
from segkd.methods.base import MethodConfig

HEAD = "base: run.yaml\n"  # the mistake is on line 2 or later


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lrr: 1}", "configs/bad.yaml:2: optim.lrr: unknown key. Did you mean 'lr'?"),
        (
            "quantize: {seed: 8}",
            "configs/bad.yaml:2: quantize.seed: unknown key. Known: activations, bi",
        ),
        ("lr: 1", "configs/bad.yaml:2: lr: unknown key. Did you mean 'optim.lr'?"),
        ("batch_size: 1", "configs/bad.yaml:2: batch_size: unknown key. Did you mean 'data.batch"),
        (
            "optim:\n  lr: fast",
            "configs/bad.yaml:3: optim.lr: got 'fast', expected a number",
        ),
        ("steps: 0", "configs/bad.yaml:2: steps: got 0, expected a number greater than 0"),
        ("steps: 1.5", "configs/bad.yaml:2: steps: got 1.5, expected a whole number"),
        ("steps: [1]", "configs/bad.yaml:2: steps: got [1], expected a whole number"),
        ("optim: {lr: inf}", "configs/bad.yaml:2: optim.lr: got inf, expected a finite number"),
        (
            "methods: {kd: {weight: inf}}",
            "configs/bad.yaml:2: methods.kd.weight: got inf, expected",
        ),
        (
            "optim: {name: sdg}",
            "configs/bad.yaml:2: optim.name: got 'sdg', expected 'sgd' or 'adamw'. "
            "Did you mean 'sgd'?",
        ),
        ("optim: 3", "configs/bad.yaml:2: optim: got 3, expected keys and values"),
        ("optim:", "configs/bad.yaml:2: optim: is empty"),
        ("eval: {flip: maybe}", "configs/bad.yaml:2: eval.flip: got 'maybe', expected true or fal"),
        ("eval: {sliding: [0, 5]}", "configs/bad.yaml:2: eval.sliding.0: got 0, expected a number"),
        (
            "eval: {sliding: big}",
            "configs/bad.yaml:2: eval.sliding: got 'big', expected a whole number or a",
        ),
        ("data: {name: tyo}", "configs/bad.yaml:2: data.name: unknown dataset 'tyo'. Did you mean"),
        ("data: {crp: 1}", "configs/bad.yaml:2: data.crp: unknown key. Did you mean 'crop'?"),
        ("data: {images: x}", "configs/bad.yaml:2: data.images: got 'x', expected a whole number"),
        (
            "data: {name: lanes, root: /data/culane}",
            "configs/bad.yaml:2: data.root: got /data/culane, but this set draws its images",
        ),
        (
            "data: {name: streets, root: /data/city}",
            "configs/bad.yaml:2: data.root: got /data/city, but this set draws its images",
        ),
        ("student: {arch: tyo}", "configs/bad.yaml:2: student.arch: unknown architecture 'tyo'."),
        (
            "methods:\n  kd: {}\n  cdw: {}",
            "configs/bad.yaml:4: methods.cdw: unknown method 'cdw'. Did you mean 'cwd'?",
        ),
        (
            "methods:\n  x: {method: cdw}",
            "configs/bad.yaml:3: methods.x.method: unknown method 'cdw'. Did you mean 'cwd'?",
        ),
        (
            "methods:\n  kd:\n    temperatur: 1",
            "configs/bad.yaml:4: methods.kd.temperatur: unknown key. Did you mean 'temperature'?",
        ),
        (
            "methods: {kd: {temperature: -1}}",
            "configs/bad.yaml:2: methods.kd.temperature: got -1, expected a number greater than 0",
        ),
        ("methods: {kd: 3}", "configs/bad.yaml:2: methods.kd: got 3, expected keys and values"),
        (
            "methods:\n  kd:",
            "configs/bad.yaml:3: methods.kd: is empty: write a value ({} for the defaults), or",
        ),
        (
            "methods: {kd: {teacher: man}}",
            "configs/bad.yaml:2: methods.kd.teacher: unknown teacher 'man'. Did you mean 'main'?",
        ),
        ("teachers: {b: {}}", "configs/bad.yaml:2: teachers.b: give `arch` or `checkpoint`"),
        (
            "teachers: {b: {ensemble: [main, c]}}",
            "configs/bad.yaml:2: teachers.b.ensemble.1: there is no other teacher 'c'",
        ),
        (
            "task: {losses: {cros_entropy: {}}}",
            "configs/bad.yaml:2: task.losses.cros_entropy: unknown loss 'cros_entropy'. Did you",
        ),
        ("optim: {betas: [.9, 1.0]}", "configs/bad.yaml:2: optim.betas.1: got 1.0, expected a num"),
        (
            "methods: {pairwise: {mode: [full]}}",
            "configs/bad.yaml:2: methods.pairwise.mode: got ['full'], expected 'full', 'skd'",
        ),
        ("init_from: run:x", "configs/bad.yaml:2: init_from: got 'run:x', but only runs of a rec"),
    ],
)
def test_a_mistake_is_told_with_its_place(refused, text, message):
    assert refused(HEAD + text).startswith(message)


def test_an_own_validator_that_stumbles_is_a_problem_of_its_block(refused, monkeypatch):
    @model_validator(mode="before")
    def stumble(keys):
        return {list: 1}[keys["tap"]]

    class Stumbling(MethodConfig):
        tap: str = "head"
        check = stumble

    monkeypatch.setattr(registry.methods.get("kd"), "Config", Stumbling)
    message = refused(HEAD + "methods: {kd: {tap: [head]}}")
    assert message.startswith("configs/bad.yaml:2: methods.kd: got values that cannot be checked")


def test_places_of_bases_and_overrides(folder, refused):
    (folder / "configs" / "worse.yaml").write_text("base: run.yaml\n\noptim: {momentum: 2}\n")
    message = refused("base: worse.yaml\nsteps: 5\n", "seed=-1", "optim.lr=slow")
    assert message.splitlines() == [
        "3 problems in configs/bad.yaml:",
        "  command line: seed: got -1, expected a number greater than or equal to 0",
        "  command line: optim.lr: got 'slow', expected a number",
        "  configs/worse.yaml:3: optim.momentum: got 2, expected a number less than 1",
    ]


def test_a_missing_key_is_told_with_the_block_that_lacks_it(refused):
    message = refused("data:\n  batch_size: 3\nstudent: {}\n")
    assert message.splitlines()[1:] == [
        "  configs/bad.yaml: steps: is missing",
        "  configs/bad.yaml:1: data.name: is missing (dataset: see `segkd list datasets`)",
        "  configs/bad.yaml:3: student: give `arch` (a network), or `checkpoint` (all of it from a "
        "file)",
    ]


def test_all_problems_are_told_at_once_in_the_order_of_lines(refused):
    message = refused(HEAD + "steps: x\nmethods: {kd: {a: 1}, cwd: {b: 2}}\nseed: x\n")
    lines = [line.split(": ")[0].strip() for line in message.splitlines()[1:]]
    assert lines == [f"configs/bad.yaml:{number}" for number in (2, 3, 3, 4)]


def test_null_takes_an_entry_away_and_back_to_the_default(folder):
    assert list(load_config("run", ["methods.kd=null"]).run.methods) == ["cwd_head"]
    assert load_config("run", ["methods=null", "teachers=null"]).run.methods == {}
    losses = load_config("run", ["task.losses={cross_entropy: null, dice: {}}"]).run.task.losses
    assert list(losses) == ["dice"]
    options = load_config("run", ["teachers.main.options={width: null, depth: 2}"]).run.teachers
    assert options["main"].options == options["main"].model().options == {"depth": 2}
    overrides = ["eval.scales=null", "teachers.main.options=null", "optim.clip=null"]
    run = load_config("run", overrides).run
    assert (run.eval.scales, run.teachers["main"].options, run.optim.clip) == ([1.0], {}, None)


def test_a_python_config_with_mistakes_has_no_lines_but_keys(folder):
    with pytest.raises(ConfigError, match=r"config: optim\.lr: got 'x', expected a number"):
        load_config(
            {"steps": 1, "data": {"name": "toy"}, "student": {"arch": "toy"}, "optim": {"lr": "x"}}
        )
