"""What version 0.1 has written still works: runs, students, exported files, configurations.

``files/README.md`` says how ``files/v0_1`` was made. Numbers are compared to the last digit on the
machine that made them, and closely elsewhere.
"""

import csv
import json
import lzma
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import store_values
import test_bad_input
import torch
import yaml

import segkd
from segkd.config.former_names import KEYS, VALUES
from segkd.config.load import load_config
from segkd.cpus import saturates_int8

call = test_bad_input.call  # a fixture: the command line
FILES = Path(__file__).parent / "files" / "v0_1"
MADE_ON = json.loads((FILES / "made_on.json").read_text(encoding="utf-8"))
SAME_MACHINE = MADE_ON["machine"] == store_values.machine()
STUDENT = "recipe/distilled/seed0"
# Keys of configurations that have another name now, as dotted paths.
RENAMED = {".".join(path): ".".join((*path[:-1], new)) for path, new in KEYS.items()}
pytestmark = pytest.mark.filterwarnings("ignore::segkd.errors.FormerName")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The files as version 0.1 left them."""
    folder = tmp_path_factory.mktemp("files") / "v0_1"
    shutil.copytree(FILES, folder)
    for path in folder.rglob("*.xz"):
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()
    return folder


@pytest.fixture
def here(unpacked, tmp_path, monkeypatch):
    """A copy to work in: paths of the files are relative."""
    folder = shutil.copytree(unpacked, tmp_path / "v0_1")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def predictions():
    return dict(np.load(FILES / "predictions.npz"))


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def nearly(expected, elsewhere=1e-3):
    """The number itself on the machine that stored it."""
    return pytest.approx(expected, rel=0 if SAME_MACHINE else elsewhere, abs=0)


def same_labels(found, expected):
    assert found.shape == expected.shape
    elsewhere = 0.02 if saturates_int8() else 0.01
    assert (found != expected).mean() <= (0 if SAME_MACHINE else elsewhere)


# -- students --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "stored"),
    [
        (STUDENT, STUDENT),
        (f"{STUDENT}/checkpoints/best.pt", STUDENT),
        ("recipe/big", "recipe/big"),
        ("shipped", STUDENT),
        ("shipped/model.safetensors", STUDENT),
        ("exported/student.onnx", "exported/student.onnx"),
        ("exported/student.int8.onnx", "int8"),
    ],
)
def test_a_student_predicts_what_it_did(here, predictions, source, stored):
    if source.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    student = segkd.load_student(source)
    assert len(student.classes) == len(student.palette) == 19
    assert student.classes[:3] == ("road", "sidewalk", "building")
    for image, expected in zip(
        predictions["images"], predictions[f"labels of {stored}"], strict=True
    ):
        same_labels(student.predict(image), expected)
        same_labels(segkd.predict(source, image), expected)


def test_a_student_of_lanes_finds_what_it_did(here, predictions):
    road = predictions["road"]
    same_labels(segkd.load_student("lanes").predict(road), predictions["labels of lanes"])
    found = segkd.lanes.LaneDetector("lanes")(road)
    assert [lane.slot for lane in found] == [0, 1, 2, 3]
    for lane in found:
        assert lane.score == nearly(predictions[f"score {lane.slot}"])
        if SAME_MACHINE:  # points are those of single pixels
            assert np.array_equal(lane.points, predictions[f"lane {lane.slot}"])


def test_a_program_of_torch_export_computes_what_the_student_does(here, predictions):
    try:
        program = torch.export.load("exported/student.pt2")
    except Exception as error:
        if MADE_ON["torch"] == torch.__version__:
            raise
        pytest.skip(f"torch {torch.__version__} reads no file of {MADE_ON['torch']}: {error}")
    images = torch.from_numpy(predictions["images"]).permute(0, 3, 1, 2).contiguous()
    found = program.module()(images)
    logits = found[0] if isinstance(found, tuple | list) else found
    larger = torch.nn.functional.interpolate(logits, images.shape[-2:], mode="bilinear")
    differ = larger.argmax(1).numpy() != predictions[f"labels of {STUDENT}"]
    assert differ.mean() < 0.01  # interpolated here, not by segkd


@pytest.mark.parametrize("source", [STUDENT, "shipped", "exported/student.onnx"])
def test_eval_scores_a_student_as_it_did(here, call, source):
    if source.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    found = evaluated(call, source)
    assert found["miou"] == nearly(read(f"{STUDENT}/summary.json")["miou"], 0.02)


def test_eval_scores_lanes_as_it_did(here, call):
    found, stored = evaluated(call, "lanes"), read("lanes/summary.json")
    for key in ("images", "fn", "tp", "fp") if SAME_MACHINE else ("images",):
        assert found[key] == stored[key], key


def evaluated(call, source):
    """What `segkd eval --json` prints."""
    code, text = call("eval", source, "--json")
    assert code == 0, text
    return json.loads(text[text.index("{") : text.rindex("}") + 1])


# -- runs ------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_to_the_same_end(here, call):
    def rows():
        with open("interrupted/metrics.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    before = rows()
    assert 3 < len(before) < 13, "the file is of a run in its middle"
    code, text = call("train", "interrupted.yaml")
    assert code == 0, text
    # Columns may have been added since.
    after = [{key: row[key] for key in before[0]} for row in rows()[:7]]
    assert after == before[:7]
    found = store_values.run_facts(Path("interrupted"), read("interrupted/summary.json"))
    expected = read("interrupted_ends_with.json")
    assert found.keys() == expected.keys()
    differ = {
        key: (found[key], value) for key, value in expected.items() if found[key] != nearly(value)
    }
    scores = {"score", "best_score", "16/val/miou", "16/val/pixel_accuracy", "pixel_accuracy"}
    assert not differ.keys() - (set() if SAME_MACHINE else scores), differ


def test_a_finished_recipe_is_not_trained_anew(here):
    before = Path(STUDENT, "summary.json").read_bytes()
    result = segkd.train("recipe.yaml")
    assert Path(STUDENT, "summary.json").read_bytes() == before
    assert result["runs"].keys() == {"recipe/big", "recipe/alone/seed0", STUDENT}
    assert result["runs"][STUDENT]["miou"] == read(f"{STUDENT}/summary.json")["miou"]


def test_a_run_starts_from_the_state_of_another(here):
    config = yaml.safe_load(Path(STUDENT, "config.yaml").read_text(encoding="utf-8"))
    config |= {"out": "next", "init_from": STUDENT, "steps": 1}
    assert segkd.train(config)["steps"] == 1


def test_a_finished_run_is_known_by_its_configuration(here, call):
    code, text = call("train", f"{STUDENT}/config.yaml")
    assert code == 0 and "already finished" in text, text
    code, text = call("train", f"{STUDENT}/config.yaml", "optim.lr=0.04")
    assert code == 2 and "optim.lr: 0.05 -> 0.04" in text and text.count(" -> ") == 1, text


def test_the_report_of_a_recipe(here, call):
    code, text = call("report", "recipe", "--no-latency", "--limit", "2")
    assert code == 0, text
    html = Path("recipe/report/report.html").read_text(encoding="utf-8")
    for name in ("big", "alone", "distilled"):
        score = read(f"recipe/{'big' if name == 'big' else name + '/seed0'}/summary.json")["miou"]
        assert re.search(rf"<td>{name}</td>\s*<td>[^0-9]*{100 * score:.2f}", html), name
    assert "cwd/cwd" in html


# -- configurations --------------------------------------------------------------------------------


def flat(value, above=""):
    """{dotted key: value}, without what is not set."""
    if not isinstance(value, dict):
        return {} if value is None else {above: value}
    found = {}
    for key, inner in value.items():
        found |= flat(inner, f"{above}.{key}" if above else key)
    return found


def renamed(key):
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key


def check_arrives(old, new):
    found = flat(new)
    masks = VALUES["methods", "*", "mask"]
    expected = {
        key: masks.get(value, value) if key.endswith(".mask") else value
        for key, value in flat(old).items()
    }
    lost = {
        k: (v, found.get(renamed(k))) for k, v in expected.items() if found.get(renamed(k)) != v
    }
    assert not lost


@pytest.mark.parametrize(
    "file", ["every_key.yaml", "interrupted.yaml", "interrupted/config.yaml", "lanes/config.yaml"]
)
def test_every_key_of_a_run_arrives(here, file):
    run = load_config(file).run
    check_arrives(
        yaml.safe_load(Path(file).read_text(encoding="utf-8")),
        run.model_dump(mode="json", by_alias=True),
    )


def test_every_key_of_every_method_is_in_the_file():
    methods = yaml.safe_load((FILES / "every_key.yaml").read_text(encoding="utf-8"))["methods"]
    assert len(methods) == 31 and sum(map(len, methods.values())) > 350


def test_every_key_of_a_dataset_arrives(here):
    blocks = yaml.safe_load(Path("datasets.yaml").read_text(encoding="utf-8"))
    assert len(blocks) >= 10
    for block in blocks.values():
        run = load_config({"steps": 1, "student": {"arch": "enet"}, "data": block}).run
        check_arrives(block, run.data.model_dump(mode="json", by_alias=True))


def test_the_recipe_is_what_its_runs_were(here):
    recipe = load_config("recipe.yaml").recipe
    assert list(recipe.runs) == ["big", "alone", "distilled"]
    assert recipe.runs["distilled"].config.methods["cwd"].weight == 2.0


def test_no_file_names_a_machine():
    for path in FILES.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        data = lzma.decompress(data) if path.suffix == ".xz" else data
        assert not re.search(rb"/(tmp|home|root|usr|opt|work|mnt|Users)/", data), path
