"""What the documents show works as they show it."""

import importlib.util
import re
import runpy
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from toy_run import teacher_net, toy_config

from segkd import registry
from segkd.commands.class_map import show_map
from segkd.config.load import load_config
from segkd.config.quantize import QuantizeConfig
from segkd.config.schema import ModelConfig, TeacherConfig
from segkd.engine.run import train_run
from segkd.engine.task_losses import TaskLosses
from segkd.explain import facts
from segkd.inference.video_writer import VideoWriter
from segkd.lanes import BirdView
from segkd.models.build import build_network
from segkd.models.class_map import class_matrix, class_table
from segkd.models.label_sets import label_set
from segkd.testing import check_method

ROOT = Path(__file__).parent.parent


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.fixture
def brier(monkeypatch):
    """The example of CONTRIBUTING.md, as a module of a third party."""
    (code,) = [block for block in blocks("CONTRIBUTING.md", "python") if "class Brier" in block]
    module = types.ModuleType("brier_example")
    monkeypatch.setitem(sys.modules, "brier_example", module)
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    monkeypatch.setitem(registry.methods._entries(), "brier", module.Brier)
    return module


def test_the_example_method_trains_and_is_explained(brier, tmp_path):
    config = toy_config(tmp_path / "run", steps=2, methods={"brier": {"weight": 2.0}})
    summary = train_run(config, teachers={"main": teacher_net()})
    assert "method/brier" in summary["seconds"]
    assert facts("brier")["equation"] == brier.Brier.equation


def test_the_example_method_keeps_the_promises_in_a_package_of_its_own(brier):
    assert "pickling" in check_method(brier.Brier).passed


def test_the_run_of_the_readme_and_its_pages_is_a_valid_config(tmp_path):
    (text,) = blocks("README.md", "yaml")
    (unlabelled,) = blocks("docs/unlabelled_images.md", "yaml")
    (augmented,) = blocks("docs/augmentation.md", "yaml")
    plain = yaml.safe_load(text)
    plain["base"] = str(ROOT / "configs/_base_/streets.yaml")
    path = tmp_path / "readme.yaml"
    path.write_text(yaml.safe_dump(plain))
    assert set(load_config(path).run.methods) == {"kd", "cwd", "cwd_head"}
    path.write_text(yaml.safe_dump(plain | yaml.safe_load(unlabelled)))
    data = load_config(path).run.data
    assert data.unlabeled.share * data.batch_size == 4
    path.write_text(yaml.safe_dump(plain | yaml.safe_load(augmented)))
    assert next(iter(load_config(path).run.data.augment[0])) == "Affine"


def test_the_configs_of_the_page_on_schemes_are_valid(tmp_path):
    folder = tmp_path / "configs" / "page"
    folder.mkdir(parents=True)
    loaded = []
    for text in blocks("docs/schemes.md", "yaml"):
        (folder / "block.yaml").write_text(text.replace("../_base_", str(ROOT / "configs/_base_")))
        loaded.append(load_config(folder / "block.yaml"))
    chain, several, classes = loaded
    small = chain.recipe.runs["small"].config.teachers
    assert {name: teacher.checkpoint for name, teacher in small.items()} == {
        "previous": "run:middle"
    }
    assert several.run.teachers["both"].combine == "by_loss"
    camvid = registry.datasets.get("camvid").classes
    for teacher in classes.run.teachers.values():
        assert class_matrix(teacher.class_map, camvid, "camvid").any()


def test_the_configs_of_the_page_on_comparing_are_valid(tmp_path):
    folder = tmp_path / "configs" / "page"
    folder.mkdir(parents=True)
    loaded = []
    for text in blocks("docs/comparing.md", "yaml"):
        (folder / "block.yaml").write_text(re.sub(r"base: \.\./", f"base: {ROOT}/configs/", text))
        loaded.append(load_config(folder / "block.yaml"))
    matched, few, others = loaded
    assert len(few.recipe.series) == 3, "those of the base, two of which are written anew"
    assert matched.recipe.match.seconds == 1 and others.run.eval.others.keys() == {
        *("bdd", "fog", "streets")
    }


def loaded_blocks(page, folder, base):
    """The runs of a page's blocks, on another base than theirs."""
    plain = {"steps": 100, "student": {"arch": "enet"}}
    for number, text in enumerate(blocks(page, "yaml")):
        given = yaml.safe_load(text)
        if isinstance(given.get("road"), list) or "row_anchor" in text:
            continue  # of a road, or with a test of its own
        path = folder / f"{number}.yaml"
        own = {"base": str(ROOT / "configs/_base_" / base)}
        path.write_text(yaml.safe_dump(plain | given | own))
        yield load_config(path).run


def test_the_configs_of_the_pages_on_teachers_and_quantised_students_are_valid(tmp_path):
    (features,) = loaded_blocks("docs/teachers.md", tmp_path, "streets.yaml")
    assert features.methods["fitnets"].teacher == "features"
    one, two = loaded_blocks("docs/teacher_cache.md", tmp_path, "streets.yaml")
    assert one.teachers["main"].cache.count == 8 and two.teachers["live"].cache is None
    (boxes,) = loaded_blocks("docs/black_box.md", tmp_path, "streets.yaml")
    assert all(teacher.black_box for teacher in boxes.teachers.values())
    (quantised,) = loaded_blocks("docs/quantized.md", tmp_path, "streets.yaml")
    assert quantised.quantize == QuantizeConfig(), "the page shows the defaults"


def test_the_files_of_the_page_on_lanes_are_valid(tmp_path):
    (run,) = loaded_blocks("docs/lanes.md", tmp_path, "lanes.yaml")
    assert run.data.photographs.share == 0.6 and run.data.squeeze == 1.5
    (road,) = [text for text in blocks("docs/lanes.md", "yaml") if text.startswith("image:")]
    (tmp_path / "road.yaml").write_text(road)
    view = BirdView.read(tmp_path / "road.yaml")
    np.testing.assert_allclose(view.reach, 40)
    corners = view.to_road(np.array([[210.0, 540.0], [560.0, 350.0]]), (540, 960))
    np.testing.assert_allclose(corners, [[-1.8, 4], [1.8, 25]], atol=1e-3)


def test_the_student_with_row_anchors_has_losses_of_rows_alone(tmp_path):
    """A run refuses losses of maps and of an existence branch, which the base has."""
    (text,) = [block for block in blocks("docs/lanes.md", "yaml") if "row_anchor" in block]
    (tmp_path / "rows.yaml").write_text(text.replace("../_base_", str(ROOT / "configs/_base_")))
    run = load_config(tmp_path / "rows.yaml").run
    student = build_network(run.student.model_copy(update={"weights": None}), 5)
    losses = TaskLosses(run.task, 5, has_exist=False, has_rows=bool(student.rows)).losses
    assert {name for name, _ in losses.items()} == {"row_cells", "row_similarity", "row_shape"}
    default = build_network(ModelConfig(arch="row_anchor", encoder="resnet18"), 5)
    assert student.rows == default.rows and run.methods.keys() == {"ld"}


def test_the_page_on_class_maps_is_current(capsys):
    (text,) = blocks("docs/class_maps.md", "text")
    command, _, expected = text.partition("\n")
    assert command == "$ segkd data map camvid cityscapes"
    show_map("camvid", "cityscapes", None)
    assert capsys.readouterr().out.strip() == expected.strip()
    (config,) = blocks("docs/class_maps.md", "yaml")
    given = yaml.safe_load(config)["teachers"]
    loaded = {name: TeacherConfig.model_validate(keys) for name, keys in given.items()}
    cityscapes = registry.datasets.get("cityscapes").classes
    for teacher in (loaded["lab"], loaded["own"]):
        assert class_matrix(teacher.class_map, cityscapes, "cityscapes").any()
    table = class_table(loaded["city"].class_map, cityscapes, "", label_set("ade20k").classes)
    assert table.table["sidewalk"] == "sidewalk"


@pytest.mark.parametrize(
    "document",
    [
        *("README.md", "CONTRIBUTING.md", "datasets/README.md"),
        *("docs/schemes.md", "docs/class_maps.md", "docs/comparing.md"),
    ],
)
def test_files_that_documents_name_exist(document):
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    scripts = re.findall(r"python ((?:benchmarks|tests)/[\w./]+)", text)
    for target in (*links, *scripts):
        assert ((ROOT / document).parent / target).exists() or (ROOT / target).exists(), target


@pytest.mark.skipif(not hasattr(cv2, "imwriteanimation"), reason="needs OpenCV 4.12")
def test_a_video_becomes_an_animation(tmp_path, monkeypatch):
    with VideoWriter(tmp_path / "clip.avi", fps=10) as video:
        for number in range(7):
            frame = np.full((40, 64, 3), 30 * number, np.uint8)
            frame[:20] = (255, 0, 0)
            video.write(frame)
    out = tmp_path / "clip.webp"
    given = ["animate.py", f"{tmp_path}/clip.avi", str(out), "--width", "32", "--every", "3"]
    monkeypatch.setattr(sys, "argv", [*given, "--crop", "0.5"])
    runpy.run_path(str(ROOT / "docs/animate.py"), run_name="__main__")
    read, animation = cv2.imreadanimation(str(out))
    assert read and list(animation.durations) == [300, 300, 300]
    for number, frame in zip((0, 3, 6), animation.frames, strict=True):
        assert frame.shape[:2] == (10, 32)  # the red upper half is cut off
        np.testing.assert_allclose(frame[2:, :, :3].mean((0, 1)), 30 * number, atol=12)


def module_at(path):
    """A module of tests, by its file."""
    spec = importlib.util.spec_from_file_location("counted", ROOT / "tests" / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_counts_of_trials_are_those_of_the_tests():
    text = (ROOT / "docs/reliability.md").read_text()
    rows = dict(re.findall(r"\| ([\d ()]+) \| `pytest .*?(tests/\S+)` \|", text))
    rows = {command: tuple(map(int, re.findall(r"\d+", count))) for count, command in rows.items()}
    fuzz, hostile = module_at("config/test_fuzz.py"), module_at("data/test_hostile.py")
    payload, cases = module_at("models/test_payload.py"), module_at("test_cases.py")
    both = len(payload.FIELDS) + len(payload.MODEL)
    in_safetensors = both - 3  # `weights` twice, `format`
    assert rows == {
        "tests/config/test_fuzz.py": tuple(
            counts["configs"] + sum(counts.values()) for counts in (fuzz.MANY, fuzz.FEW)
        ),
        "tests/data/test_hostile.py": tuple(
            len(hostile.KINDS) * count for count in (hostile.MANY, hostile.FEW)
        ),
        "tests/models/test_payload.py": ((both + in_safetensors) * len(payload.ODD),),
        "tests/test_cases.py": (len(cases.CASES) + 1,),
    }
    kills = module_at("engine/test_processes.py").KILLS
    assert f"| {kills} kills |" in text
