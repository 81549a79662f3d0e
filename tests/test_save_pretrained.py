"""A student as a folder: exact weights, a card that says what the run says, no machine paths."""

import json
import shutil

import pytest
import torch
import yaml
from test_api import Own, pairs, settings
from toy_run import CLASSES, teacher_net

import segkd
from segkd import checkpoint
from segkd.errors import CheckpointError
from segkd.model_card import CardFacts, model_card
from segkd.models.weights import load_student_file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with a teacher's file and a method."""
    folder = tmp_path_factory.mktemp("run")
    teacher = teacher_net(width=8)
    payload = {
        "format": "segkd-student-1",
        "model": teacher.config.model_dump(mode="json"),
        "weights": teacher.state_dict(),
        "classes": list(CLASSES),
    }
    checkpoint.save(folder / "big.pt", payload)
    config = settings(folder / "out") | {
        "student": {"arch": "toy"},
        "teachers": {"main": {"checkpoint": str(folder / "big.pt")}},
        "methods": {"kd": {"weight": 0.7, "temperature": 3.0}},
    }
    return segkd.train(config, steps=3, overrides=[f"data.root={folder}"])


def test_the_round_trip_is_exact(run, tmp_path):
    folder = segkd.save_pretrained(run["name"], tmp_path / "a" / "b")
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    before, after = (segkd.load_student(p).network for p in (run["name"], folder))
    shutil.copy(folder / "model.safetensors", tmp_path / "MODEL.SAFETENSORS")
    assert segkd.load_student(tmp_path / "MODEL.SAFETENSORS").classes == CLASSES
    assert before.state_dict().keys() == after.state_dict().keys()
    for key, value in before.state_dict().items():
        found = after.state_dict()[key]
        assert found.dtype == value.dtype and torch.equal(found, value), key
    assert after.classes == CLASSES
    assert segkd.evaluate(folder).miou == segkd.evaluate(run["name"]).miou


def test_the_card_says_what_the_run_says(run, tmp_path):
    folder = segkd.save_pretrained(run, tmp_path / "out")
    card = (folder / "README.md").read_text()
    for part in (
        "# TODO of the author: license:",
        "the author of these weights chooses a licence",
        "distilled from `main`",
        "- Method `kd`: weight 0.7, temperature 3.0.",
        "weights `big.pt`",
        "- Dataset: toy, split `train`",
        "- Classes, by id: sky, road, car, tree.",
        f"| this student | {100 * run['best_miou']:.2f} |",
        f"| teacher main | {100 * run['teachers']['main']['miou']:.2f} |",
        f"| road | {100 * run['iou']['road']:.2f} |",
        f"3 steps on 1 process(es), {run['seconds_per_step']:.3f} s per step",
        "segkd.load_student(",
    ):
        assert part in card, part
    assert not [line for line in card.splitlines() if line.startswith("license")]


def test_the_card_says_of_which_images_its_numbers_are(run, tmp_path):
    payload = load_student_file(run["name"])
    config = yaml.safe_load(payload["config"])
    config["eval"]["limit"] = 7
    config["data"]["unlabeled"] = {"root": "more", "share": 1}
    facts = CardFacts(payload=payload, config=config, summary=run, title="x", divisor=1)
    card = model_card(facts)
    assert "On the first 7 images of split `val` of toy" in card
    assert "- Dataset: toy, images without labels alone" in card and "besides the split" not in card


@pytest.mark.parametrize(
    ("teacher", "line"),
    [
        ({"arch": "espnetv2", "encoder": "resnet101"}, "- Teacher `big`: espnetv2."),
        ({"arch": "fpn", "encoder": "resnet18"}, "- Teacher `big`: fpn with resnet18."),
        ({"arch": "row_anchor", "encoder": "resnet18"}, "row_anchor with resnet18."),
        (
            {"black_box": {"onnx": "a.onnx"}, "encoder": "resnet18"},
            "- Teacher `big`: a black box, the ONNX file `a.onnx`.",
        ),
        ({"black_box": {"function": "m:f"}}, "a black box, the function `m:f`."),
    ],
)
def test_the_card_says_what_a_teacher_is(run, teacher, line):
    payload = load_student_file(run["name"])
    config = yaml.safe_load(payload["config"]) | {"teachers": {"big": teacher}}
    facts = CardFacts(payload=payload, config=config, summary=run, title="x", divisor=1)
    assert line in model_card(facts)


def test_the_card_of_a_peer_has_its_own_numbers(tmp_path):
    config = settings(tmp_path / "out") | {
        "student": {"arch": "toy"},
        "methods": {"dml": {"peers": {"wide": {"arch": "toy", "options": {"width": 12}}}}},
    }
    run = segkd.train(config, steps=2)
    peer, folder = run["peers"]["dml.wide"], tmp_path / "card"
    segkd.save_pretrained(f"{run['name']}/checkpoints/best_dml.wide.pt", folder)
    card = (folder / "README.md").read_text()
    assert peer["parameters"] != run["student"]["parameters"]
    row = f"| {peer['parameters'] / 1e6:.2f} |"
    assert row in card and f"| {run['student']['parameters'] / 1e6:.2f} |" not in card
    assert "| class |" not in card


def test_config_json_describes_the_weights(run, tmp_path):
    folder = segkd.save_pretrained(run, tmp_path / "out")
    facts = json.loads((folder / "config.json").read_text())
    assert facts["classes"] == list(CLASSES) and facts["model"]["arch"] == "toy"
    assert facts["segkd_version"] == segkd.__version__


def test_no_folder_of_this_machine_is_published(run, tmp_path):
    folder = segkd.save_pretrained(run, tmp_path / "out")
    home = run["name"].rpartition("/")[0].encode()
    assert len(home) > 5
    for file in folder.iterdir():
        assert home not in file.read_bytes(), file.name
    assert "root" not in yaml.safe_load(load_student_file(folder)["config"])["data"]


def test_an_edited_card_is_not_overwritten(run, tmp_path):
    (tmp_path / "README.md").write_text("license: mit")
    with pytest.raises(CheckpointError, match=r"already has README\.md"):
        segkd.save_pretrained(run, tmp_path)
    assert (tmp_path / "README.md").read_text() == "license: mit"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_without_a_student_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*best\.pt"):
        segkd.save_pretrained(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_own_module_and_an_unfinished_run(tmp_path):
    summary = segkd.train(
        settings(tmp_path / "run") | {"data": {"name": "arrays", "batch_size": 2, "workers": 0}},
        student=Own(),
        train_set=pairs(),
        val_set=pairs(2),
        classes=CLASSES,
    )
    (tmp_path / "run" / "summary.json").unlink()
    folder = segkd.save_pretrained(summary["name"], tmp_path / "out")
    card = (folder / "README.md").read_text()
    assert "trained without a teacher" in card and "module=MyNetwork()" in card
    assert "the run was not finished" in card
    found = segkd.load_student(folder, Own()).network.state_dict()
    expected = segkd.load_student(summary["name"], Own()).network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_lane_students_card_names_its_own_score():
    payload = {
        "classes": ["background", "lane 1"],
        "model": {"arch": "enet"},
        "lanes": {"metric": "culane"},
        "score": 0.7123,
        "score_name": "F1",
    }
    card = model_card(CardFacts(payload, {}, {}, "enet", 8))
    assert "lane detection" in card and "F1 %" in card and "71.23" in card and "mIoU" not in card
