"""The doctor finds what would stop a run, names its repair, and leaves no trace."""

import json
from pathlib import Path

import pytest
import test_bad_input
import torch
from test_bad_input import RUN, corrupt, student_file
from toy_run import CLASSES, toy_config

from segkd import doctor
from segkd.config.schema import OptimConfig
from segkd.doctor import environment, memory
from segkd.doctor import runs as doctor_runs
from segkd.doctor.finding import Finding, reported
from segkd.errors import ConfigError

work, call = test_bad_input.work, test_bad_input.call  # fixtures
GOOD = dict.fromkeys(environment._IMPORTED, "")


@pytest.fixture(autouse=True)
def quick_imports(monkeypatch):
    monkeypatch.setattr(environment, "import_errors", lambda: GOOD)


def files_below(folder):
    return sorted(str(path) for path in Path(folder).rglob("*"))


def of(text, level):
    """The findings of a level in the JSON of a call."""
    return [one for one in json.loads(text)["findings"] if one["level"] == level]


# -- the machine -----------------------------------------------------------------------------------


def installed(monkeypatch, **versions):
    """Only these distributions, with ``_`` for ``-`` in their names."""
    named = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(environment, "_version", named.get)


def machine(broken=GOOD):
    return list(environment.examine_environment(lambda: broken))


def test_this_machine_can_be_examined():
    found = machine()
    assert not [one for one in found if one.level == "error"]
    assert {"python", "torch", "cuda", "cores", "data root"} <= {one.about for one in found}


def test_two_opencvs_are_told_with_one_line_to_type(monkeypatch):
    installed(monkeypatch, opencv_python="5.0.0.93", opencv_python_headless="5.0.0.93")
    (finding,) = environment._opencv()
    assert finding.level == "warning" and "opencv-python-headless, opencv-python" in finding.text
    assert finding.repair == (
        "pip uninstall -y opencv-python-headless opencv-python && "
        "pip install opencv-python-headless==5.0.0.93"
    )
    installed(monkeypatch, opencv_python_headless="5.0.0.93")
    assert list(environment._opencv()) == []


@pytest.mark.parametrize(("free", "level"), [(64, "warning"), (2048, "ok"), (None, None)])
def test_a_small_shared_memory_is_told_with_what_to_type(monkeypatch, free, level):
    monkeypatch.setattr(environment, "shared_memory", lambda: free and free * 2**20)
    found = [one for one in machine() if one.about == "shared memory"]
    assert [one.level for one in found] == ([level] if level else [])
    for one in found:
        assert f"{free} MiB free in /dev/shm" in one.text
        assert ("--shm-size" in one.repair and "data.workers=0" in one.repair) == (level != "ok")


@pytest.mark.parametrize(("workers", "errors"), [(0, 0), (1, 0), (2, 1)])
def test_batches_of_loader_processes_must_fit_into_shared_memory(monkeypatch, workers, errors):
    config = toy_config("runs/x", data={"name": "toy", "batch_size": 4, "workers": workers})
    free = 4 * 3 * 32 * 48 * 12  # three batches of 4 images: image, label, mask
    monkeypatch.setattr(doctor_runs, "shared_memory", lambda: free)
    found = []
    doctor_runs._examine_shared_memory(config, (32, 48), found)
    assert [one.level for one in found] == ["error"] * errors


@pytest.mark.parametrize(
    ("builds", "broken", "levels"),
    [
        ({"torch": "cpu", "torchvision": "cu132"}, "RuntimeError: nms", ["error", "error"]),
        ({"torch": "cpu", "torchvision": "cu132"}, "", ["warning"]),
        ({"torch": "cu132", "torchvision": "cu132"}, "", []),
        ({"torch": None, "torchvision": "cu132"}, "", []),
    ],
)
def test_torch_and_torchvision_of_different_builds(monkeypatch, builds, broken, levels):
    monkeypatch.setattr(environment, "_build", builds.get)
    found = [
        one
        for one in machine(GOOD | {"torchvision": broken})
        if one.about == "torchvision" and one.level != "ok"
    ]
    assert [one.level for one in found] == levels
    for one in found:
        assert "--force-reinstall torch torchvision" in one.repair
    if levels:
        assert "torch is a build for cpu, torchvision one for cu132" in found[-1].text


def test_the_build_is_read_without_an_import(tmp_path, monkeypatch):
    package = tmp_path / "brokenvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "version.py").write_text("__version__ = '0.29.2+cu132'\ngit = 'x'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert environment._build("brokenvision") == "cu132"
    (package / "version.py").write_text("__version__ = '0.29.2'\n")
    assert environment._build("brokenvision") is None
    assert environment._build("json") is None


def test_missing_broken_and_crashing_packages(monkeypatch):
    installed(monkeypatch, torch="2.15.0", torchvision="0.29.2", albumentations="2.0.8")
    found = {
        one.about: one
        for one in machine(GOOD | {"cv2": "ModuleNotFoundError: x", "albumentations": "OSError: y"})
        if one.level == "error"
    }
    assert found["opencv"].repair == "pip install opencv-python-headless"
    assert "2.0.8 cannot be imported: OSError: y" in found["albumentations"].text


@pytest.mark.parametrize(("code", "told"), [("raise OSError('x')", "OSError: x"), ("", "")])
def test_the_import_probe(monkeypatch, tmp_path, code, told):
    monkeypatch.undo()
    (tmp_path / "first_toy.py").write_text("")
    (tmp_path / "second_toy.py").write_text(code)
    (tmp_path / "third_toy.py").write_text("import os\nos._exit(11)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(environment, "_IMPORTED", ["first_toy", "second_toy", "third_toy"])
    found = environment.import_errors()
    assert found["first_toy"] == "" and found["second_toy"] == told
    assert "ended with code 11" in found["third_toy"]


def test_an_old_package_is_told(monkeypatch):
    monkeypatch.setattr(
        environment.metadata, "requires", lambda name: ["torch>=2.11", "x>=9; extra=='b'"]
    )
    installed(monkeypatch, torch="2.4.1", x="1.0")
    (finding,) = environment._versions()
    assert finding.level == "error" and finding.repair == "pip install --upgrade 'torch>=2.11'"


def test_a_data_root_that_is_no_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGKD_DATASETS", str(tmp_path / "nowhere"))
    (finding,) = environment._data_root()
    assert finding.level == "warning" and "nowhere" in finding.text
    monkeypatch.setenv("SEGKD_DATASETS", str(tmp_path))
    (tmp_path / "camvid").mkdir()
    (finding,) = environment._data_root()
    assert finding.level == "ok" and "camvid" in finding.text


# -- a run -----------------------------------------------------------------------------------------


def test_a_sound_run_starts_and_nothing_is_written(work, call):
    before = files_below(work)
    code, text = call("doctor", "run.yaml", "methods={}")
    assert code == 0 and text.endswith("a run would start"), text
    for part in (
        "run folder: runs/run: a new run",
        "data: folder train: 4 images, 4 classes",
        "student: toy",
        "memory: about",
        "disk: checkpoints take about",
    ):
        assert part in text, part
    assert files_below(work) == before


def test_json(work, call):
    code, text = call("doctor", "run.yaml", "--json", "--quick")
    assert code == 0 and json.loads(text)["ok"] is True
    assert not of(text, "error")
    assert not [one for one in json.loads(text)["findings"] if one["about"] == "memory"]
    code, text = call("doctor", "run.yaml", "--json", "--quick", "data.root=nowhere")
    assert code == 2 and json.loads(text)["ok"] is False
    assert {"level", "about", "text", "repair"} == set(of(text, "error")[0])


def test_transforms_are_listed(work, call):
    entries = "[{ToGray: {p: 0.25}}, {OneOf: {transforms: [Blur, {Affine: {p: 1}}]}}]"
    code, text = call("doctor", "run.yaml", "--quick", f"data.augment={entries}")
    assert code == 0, text
    assert "augment: ToGray(p=0.25), OneOf(p=0.5: Blur(p=0.5) | Affine(p=1))" in text


def five(folder):
    student_file("five.pt", classes=[*CLASSES, "bus"])


def teacher(folder):
    student_file("teacher.pt")


TEACHER = "teachers={main: {checkpoint: teacher.pt}}"


@pytest.mark.parametrize(
    ("prepare", "arguments", "about", "message"),
    [
        (None, ["optim.lrr=1"], "config", "Did you mean 'lr'"),
        (None, ["data.root=nowhere"], "data", "nowhere"),
        (corrupt, [], "data", "3.png"),
        (None, ["student.checkpoint=nowhere.pt"], "student", "there is no checkpoint nowhere.pt"),
        (five, ["student.checkpoint=five.pt"], "student", "five.pt has 5 classes"),
        (
            five,
            ["teachers={main: {checkpoint: five.pt}}", "methods={kd: {}}"],
            "teacher main",
            "five.pt has 5 classes",
        ),
        (
            teacher,
            [TEACHER, "methods={cwd: {tap: stage9}}"],
            "methods",
            "there is no tap 'stage9'",
        ),
        (None, ["data.crop=[30,48]"], "student", "multiples of 8, training images are 30x48"),
        (None, ["data.crop=[30,48]"], "student", "data.crop=[32,48]"),
        (None, ["optim.accumulate=3"], "batch", "Use a multiple of 3"),
        (None, ["runtime.device=cuda:7"], "methods", "runtime.device"),
        (lambda f: (f / "out").write_text("a"), ["out=out/run"], "run folder", "out=FOLDER"),
    ],
)
def test_what_would_stop_a_run_is_found(work, call, prepare, arguments, about, message):
    if prepare:
        prepare(work)
    code, text = call("doctor", "run.yaml", "--json", *arguments)
    found = of(text, "error")
    assert code == 2, text
    assert [one for one in found if message in f"{one['text']} {one['repair']}"], found
    assert about in {one["about"] for one in found}


def test_all_problems_are_told_at_once(work, call):
    teacher(work)
    methods = "methods={cwd: {tap: stage9}, kd: {}, at: {taps: [stage8]}}"
    code, text = call("doctor", "run.yaml", TEACHER, methods, "--json")
    told = [one["text"] for one in of(text, "error")]
    assert code == 2 and len(told) == 2, told
    assert "methods.cwd" in told[0] and "methods.at" in told[1]
    five(work)
    teachers = "teachers={a: {checkpoint: five.pt}, b: {checkpoint: nowhere.pt}}"
    code, text = call("doctor", "run.yaml", teachers, "--json")
    assert {one["about"] for one in of(text, "error")} == {"teacher a", "teacher b"}


def test_warnings_do_not_stop_a_run(work, call):
    code, text = call("doctor", "run.yaml", "teachers={main: {arch: toy}}", "methods={kd: {}}")
    assert code == 0, text
    assert "its weights are random" in text and "1 warning: a run would start" in text
    corrupt(work)
    code, text = call("doctor", "run.yaml", "data.on_error=skip", "--json", "--quick")
    assert code == 0 and "3.png" in of(text, "warning")[0]["text"]


def test_statistics_that_contradict_the_weights_are_told(work, call):
    lite = ("student.arch=fpn", "student.encoder=tu-tf_efficientnet_lite0")
    _, out = call("doctor", "run.yaml", *lite, "student.weights=imagenet", "--quick", "--json")
    found = [one for one in of(out, "ok") if one["about"] == "student"]
    assert "mean 0.5 0.5 0.5, std 0.5 0.5 0.5 (of the weights)" in found[0]["text"]
    arguments = (*lite, "student.weights=imagenet", "student.normalize=imagenet")
    _, out = call("doctor", "run.yaml", *arguments, "--quick", "--json")
    told = [one["text"] for one in of(out, "warning") if "normalize" in one["text"]]
    assert len(told) == 1 and "were trained with mean 0.5 0.5 0.5" in told[0]


def test_the_state_of_the_run_folder(work, call):
    assert call("train", "run.yaml", "save_every=1")[0] == 0
    before = files_below(work)
    code, text = call("doctor", "run.yaml", "save_every=1")
    assert code == 0 and "runs/run: finished, not repeated" in text
    code, text = call("doctor", "run.yaml", "optim.lr=0.5")
    assert code == 2 and "optim.lr" in text
    assert files_below(work) == before
    (work / "runs/run/summary.json").unlink()
    code, text = call("doctor", "run.yaml", "--quick")
    assert code == 0 and "resuming from step 2 of 2" in text
    code, text = call("doctor", "run.yaml", "--quick", "optim.lr=0.5")
    assert code == 2 and "optim.lr" in text


def test_a_run_that_could_not_be_extended(work, call):
    Path("recipe.yaml").write_text(
        RUN.replace("student:", "schedule: {name: constant}\nstudent:")
        + "runs:\n  big: {}\n  small: {teachers: {t: {checkpoint: 'run:big'}}, methods: {kd: {}}}\n"
    )
    assert call("train", "recipe.yaml", "out=runs/r")[0] == 0
    code, text = call("doctor", "recipe.yaml", "out=runs/r", "runs.small.steps=4", "--quick")
    assert code == 2 and "it depends on another run of its recipe" in text
    code, text = call("doctor", "recipe.yaml", "out=runs/r", "--quick")
    assert code == 0


def test_runs_of_a_recipe_that_wait_for_each_other(work, call):
    recipe = RUN.replace("student:", "common:\n  methods: {}\nstudent:") + (
        "seeds: [0, 1]\nruns:\n"
        "  big: {once: true, seed: 3}\n"
        "  small:\n"
        "    teachers: {main: {checkpoint: 'run:big'}}\n"
        "    methods: {kd: {}, at: {taps: [stage7]}}\n"
    )
    (work / "recipe.yaml").write_text(recipe)
    before = files_below(work)
    code, text = call("doctor", "recipe.yaml", "--json")
    found = of(text, "error")
    assert code == 2 and [one["about"] for one in found] == ["small: methods"], found
    assert "stage7" in found[0]["text"]
    code, text = call("doctor", "recipe.yaml", "runs.small.methods.at=null")
    assert code == 0 and "its weights are random" not in text, text
    assert files_below(work) == before


def test_a_config_that_cannot_be_imported_for_is_no_crash(work, call, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("operator torchvision::nms does not exist\nmore lines")

    monkeypatch.setattr("segkd.doctor.parts.build_network", broken)
    code, text = call("doctor", "run.yaml", "--json")
    assert code == 2
    (finding,) = of(text, "error")
    assert finding["text"] == "RuntimeError: operator torchvision::nms does not exist"


def test_without_torch_the_config_is_not_looked_at(monkeypatch):
    broken = GOOD | {"torch": "OSError: libcudart"}
    monkeypatch.setattr(environment, "import_errors", lambda: broken)
    found = list(doctor.examine("quickstart"))
    assert found[-1].about == "config" and "torch cannot be imported" in found[-1].text


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "level", "repair"),
    [
        (None, "ok", ""),
        (100, "ok", ""),
        (41, "warning", "data.batch_size=28, or optim.accumulate=4"),
        (30, "error", "data.batch_size=18, or optim.accumulate=4"),
        (16, "error", "data.batch_size=6, or optim.accumulate=16"),
        (8, "error", "Use a smaller data.crop or other networks"),
    ],
)
def test_memory_is_compared_with_what_there_is(free, level, repair):
    unit = 2**30
    optim = OptimConfig(accumulate=2)
    free = None if free is None else free * unit
    found = memory._memory(40 * unit, 2 * unit, 16, free, optim)
    assert (found.level, found.repair) == (level, repair)


def test_memory_is_extrapolated_from_two_small_steps(tmp_path, monkeypatch):
    from segkd.engine.setup import assemble
    from segkd.runtime import Runtime

    config = toy_config(tmp_path / "run", data={"name": "toy", "batch_size": 12, "workers": 0})
    parts = assemble(config, Runtime.single())
    tried = []

    def peak(config, parts, runtime, images):
        tried.append(images)
        return 1000 + 10 * images

    monkeypatch.setattr(memory, "_peak", peak)
    monkeypatch.setattr(memory, "available", lambda device: None)
    seen = []

    def noted(*given):
        seen.append(given[:4])
        return Finding("ok", "memory", "")

    monkeypatch.setattr(memory, "_memory", noted)
    memory.trial_step(config, parts, [])
    trained = sum(p.numel() for p in parts.student.parameters())
    assert tried == [1, 2]
    assert seen == [(1000 + 10 * 12 + 4 * trained, 10.0, 12, None)]


def test_a_batch_norm_of_one_value_is_tried_with_more_images(tmp_path, monkeypatch):
    from segkd.engine.setup import assemble
    from segkd.engine.single_value import single_value_explained
    from segkd.runtime import Runtime

    def peak(config, parts, runtime, images):
        if images == 1:
            with single_value_explained(1, 2):
                raise ValueError("Expected more than 1 value per channel when training")
        return 1000 * images

    monkeypatch.setattr(memory, "_peak", peak)
    config = toy_config(tmp_path / "run")
    parts = assemble(config, Runtime.single())
    found = []
    memory.trial_step(config, parts, found)
    assert [one.about for one in found] == ["memory", "disk"]
    single = config.model_copy(update={"data": config.data.model_copy(update={"batch_size": 1})})
    found = []
    memory.trial_step(single, parts, found)
    assert found[0].level == "error" and "data.batch_size=2" in found[0].repair


@pytest.mark.parametrize(("seconds", "level"), [(0.5, "ok"), (3.0, "warning")])
def test_the_cost_of_a_method_is_told_and_warned_of_above_a_step(
    tmp_path, monkeypatch, seconds, level
):
    from segkd.doctor.pulls import pulls
    from segkd.engine.setup import assemble
    from segkd.engine.timing import StepTimer
    from segkd.runtime import Runtime

    teachers = {"main": {"arch": "toy", "options": {"width": 8}}}
    config = toy_config(tmp_path / "run", teachers=teachers, methods={"kd": {"weight": 0.001}})
    step = {"teacher": 9.0, "student": 0.5, "task": 0.25, "backward": 1.0, "update": 0.25}
    parts = assemble(config, Runtime.single())
    monkeypatch.setattr(StepTimer, "take", lambda self: step | {"method/kd": seconds})
    found = []
    pulls(config, parts, found)
    (one,) = [one for one in found if one.about == "methods.kd"]
    assert f"it takes {seconds / 2:.2g} of a student's step of 4 images" in one.text
    assert ("slower than the student" in one.repair) is (level == "warning")
    assert "weight: " in one.repair or "weight=" in one.repair  # 0.001 is far too small


def test_a_critic_learns_in_each_of_the_trial_steps(tmp_path):
    """Each trainer freezes it between its steps, which `train:` does for good."""
    from segkd.doctor.trainers import trainer_of
    from segkd.engine.setup import assemble
    from segkd.runtime import Runtime

    teachers = {"main": {"arch": "toy", "options": {"width": 8}}}
    entries = {"methods": {"holistic": {"width": 4}}, "teachers": teachers}
    for train, learning in (([], ["holistic"]), (["student.*"], [])):
        config = toy_config(tmp_path / "run", **entries, train=train)
        parts = assemble(config, Runtime.single())
        for _ in range(3):
            assert list(trainer_of(config, parts, Runtime.single()).own) == learning


def test_memory_of_this_machine_and_folders():
    free = memory.available(torch.device("cpu"))
    assert free is None or free > 2**20
    assert memory.existing_above(Path("/nowhere/at/all")) == Path("/")


def test_whatever_is_raised_becomes_a_finding():
    found = []
    with reported("x", found):
        raise ConfigError("lr: too large. Use 0.1")
    with reported("y", found):
        raise MemoryError("no room")
    assert found[0] == Finding("error", "x", "lr: too large. Use 0.1")
    assert "data.batch_size" in found[1].repair
