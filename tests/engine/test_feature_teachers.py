"""Runs with teachers that have features but no classes, and with modules of the caller."""

import json

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import nn
from toy_run import CLASSES, ToyData, toy_config

import segkd
from segkd.doctor.parts import assembled, networks
from segkd.engine.recipe import run_recipe
from segkd.engine.teacher_store import open_store
from segkd.errors import ConfigError, SegKDError
from segkd.evaluation.results import NONE
from segkd.model_card import _lessons

ARGUMENTS = {"depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": 28}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """The folder of a small DINOv2 with registers."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, **ARGUMENTS)
    with torch.no_grad():  # fresh blocks of DINOv2 add next to nothing
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    timm.models.save_for_hf(model, folder, model_args=ARGUMENTS)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["license"] = "apache-2.0"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run_with(backbone, out, methods, steps=2, teachers=None, **more):
    entries = {"main": {"timm": str(backbone)}} | (teachers or {})
    return toy_config(out, teachers=entries, methods=methods, steps=steps, **more)


def test_methods_on_features_learn_from_a_backbone(backbone, tmp_path):
    methods = {"fitnets": {}, "sp": {}, "cwd": {"tap": "head"}, "nst": {}, "pkd": {}}
    summary = segkd.train(run_with(backbone, tmp_path / "run", methods))
    assert np.isfinite(summary["best_score"])
    facts = summary["teachers"]["main"]
    assert facts["licence"] == "apache-2.0"
    assert facts["parameters"] > 10_000 and facts["flops"] > 0
    assert not facts.keys() & {"score", "miou"}
    log = (tmp_path / "run/log.txt").read_text()
    assert "teacher main: not evaluated, because it has no classes" in log
    assert "teacher main: licence apache-2.0" in log


def test_the_loss_is_of_the_backbones_features(backbone, tmp_path):
    """The same features give the same losses, those of another block others."""
    losses = []
    for name, blocks in (("one", None), ("two", None), ("other", [0])):
        entry = {"main": {"timm": str(backbone), "options": {"blocks": blocks}}}
        if blocks is None:
            entry["main"]["options"] = {}
        config = run_with(backbone, tmp_path / name, {"fitnets": {}}, teachers=entry)
        segkd.train(config)
        rows = (tmp_path / name / "metrics.csv").read_text().splitlines()
        column = rows[0].split(",").index("fitnets/fitnets")
        losses.append([row.split(",")[column] for row in rows[1:]])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_methods_that_need_logits(backbone, tmp_path):
    for method in ("kd", "cwd", "dist", "irg"):
        with pytest.raises(ConfigError) as raised:
            segkd.train(run_with(backbone, tmp_path, {method: {}}))
        text = str(raised.value)
        assert text.startswith(f"methods.{method}: needs the teacher's logits, but teacher 'main'")
        assert "fitnets" in text and "`tap: head`" in text
        listed = text.partition("features alone: ")[2].partition(";")[0].split(", ")
        assert "sp" in listed and not {"kd", "cwd", "dml", "irg"} & set(listed)


def test_an_ensemble_with_a_backbone(backbone, tmp_path):
    more = {"other": {"arch": "toy"}, "both": {"ensemble": ["main", "other"]}}
    with pytest.raises(ConfigError, match=r"teachers.both.ensemble: .*'main'.*without classes"):
        segkd.train(run_with(backbone, tmp_path, {"kd": {"teacher": "both"}}, teachers=more))


def test_class_keys_of_a_backbone(backbone, tmp_path):
    entry = {"main": {"timm": str(backbone), "classes": {"from": list(CLASSES)}}}
    with pytest.raises(ConfigError, match=r"name the teacher's classes|features but no classes"):
        segkd.train(run_with(backbone, tmp_path, {"sp": {}}, teachers=entry))


def test_pseudo_labels_of_a_backbone(backbone, tmp_path):
    images = [np.zeros((32, 48, 3), np.uint8)] * 4
    config = run_with(backbone, tmp_path, {"sp": {}})
    with pytest.raises(ConfigError, match=r"methods.sp.pseudo_labels=null"):
        segkd.train(config, unlabeled_set=images)
    config = run_with(backbone, tmp_path, {"sp": {"pseudo_labels": None}})
    assert segkd.train(config, unlabeled_set=images)["steps"] == 2


def test_images_smaller_than_a_patch(backbone, tmp_path):
    data = {"name": "toy", "batch_size": 2, "workers": 0, "crop": [8, 48]}
    with pytest.raises(SegKDError, match=r"patches of 14x14 pixels, got images of 8x48"):
        segkd.train(run_with(backbone, tmp_path, {"fitnets": {}}, data=data))


def test_a_table_has_a_dash_for_its_score(backbone, tmp_path):
    from segkd.config.schema import RecipeConfig

    plain = run_with(backbone, tmp_path, {}).model_dump(mode="json", exclude={"out"})
    runs = {
        "alone": plain | {"teachers": {}, "out": str(tmp_path / "alone/seed_0")},
        "taught": plain | {"methods": {"fitnets": {}}, "out": str(tmp_path / "taught/seed_0")},
    }
    recipe = RecipeConfig.model_validate(
        {
            "out": str(tmp_path),
            "baseline": "alone",
            "teacher": "main",
            "sort": True,
            "runs": {name: {"config": run} for name, run in runs.items()},
        },
        context={"own_parts": True},
    )
    rows = run_recipe(recipe)["rows"]
    assert rows[-1]["name"] == "main" and rows[-1]["scores"] == []
    assert rows[-1]["parameters"] > 10_000
    table = (tmp_path / "report/table.txt").read_text()
    line = next(line for line in table.splitlines() if line.strip().startswith("main"))
    assert line.split()[1] == NONE
    assert "not better" not in table
    assert (tmp_path / "report/pictures.png").exists()


def test_it_predicts_nothing(backbone, tmp_path):
    config = run_with(backbone, tmp_path, {"sp": {}})
    with pytest.raises(ConfigError, match="features without classes, so it predicts nothing"):
        open_store(config, "main", tmp_path / "store", data=ToyData(config.data, "val"))


def test_doctor_opens_it(backbone, tmp_path):
    config = run_with(backbone, tmp_path, {"sp": {}})
    found = []
    student = networks(config, CLASSES, (32, 48), found)
    mine = [one for one in found if one.about == "teacher main"]
    assert [one.level for one in mine] == ["ok"]
    assert "features without classes" in mine[0].text and "apache-2.0" in mine[0].text
    sets = (ToyData(config.data, "train"), ToyData(config.data, "val"))
    assert assembled(config, student, sets, found) is not None
    assert not [one for one in found if one.level != "ok"]
    config = run_with(tmp_path / "none", tmp_path, {"sp": {}})
    found = []
    assert networks(config, CLASSES, (32, 48), found) is None
    mine = [one for one in found if one.about == "teacher main"]
    assert [one.level for one in mine] == ["error"] and "unknown model" in mine[0].text


class Parts(nn.Module):
    """A module of the caller, which knows nothing of segkd."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 9, 3, 2, 1))
        self.classifier = nn.Conv2d(9, len(CLASSES), 1)

    def forward(self, images):
        logits = self.classifier(self.backbone(images))
        return {"dict": {"out": logits, "aux": None}, "tuple": (logits, None)}[self.form]


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_a_module_of_the_caller_teaches_the_runs_of_a_recipe(tmp_path, form):
    torch.manual_seed(0)
    module = Parts(form)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    plain = toy_config(tmp_path, steps=2).model_dump(
        mode="json", exclude={"out"}, exclude_unset=True
    )
    recipe = {
        "out": str(tmp_path),
        "baseline": "alone",
        "runs": {"alone": plain, "taught": plain | {"methods": {"kd": {}, "fitnets": {}}}},
    }
    found = segkd.train(recipe, teachers=module)
    summaries = {name.split("/")[-2]: facts for name, facts in found["runs"].items()}
    assert summaries["alone"]["teachers"] == {}
    assert np.isfinite(summaries["taught"]["teachers"]["main"]["score"])
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key
    with pytest.raises(ConfigError, match="student: only for a single run"):
        segkd.train(recipe, student=module)


def test_an_onnx_teacher_of_fixed_size(tmp_path):
    """One message that names the size to set, before the first step."""
    pytest.importorskip("onnxruntime")
    path = tmp_path / "fixed.onnx"
    nodes = [onnx.helper.make_node("Conv", ["x", "w"], ["y"])]
    image = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["b", 3, 64, 96])
    logits = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["b", 4, 64, 96])
    weights = onnx.numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")
    graph = onnx.helper.make_graph(nodes, "g", [image], [logits], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)
    box = {"onnx": str(path), "returns": "logits"}
    teachers = {"main": {"black_box": box, "normalize": "none"}}
    with pytest.raises(SegKDError) as raised:
        segkd.train(toy_config(tmp_path / "run", teachers=teachers, methods={"kd": {}}))
    text = str(raised.value)
    assert "takes images of 64x96 only, got 32x48. Set data.crop=[64,96]" in text
    assert "\n" not in text


def test_model_card_names_library_and_licence():
    from types import SimpleNamespace

    teachers = {"main": {"timm": "vit_small_patch14_dinov2.lvd142m", "weights": "mine.pth"}}
    info = SimpleNamespace(
        config={"teachers": teachers},
        summary={"teachers": {"main": {"licence": "apache-2.0"}}},
        payload={},
    )
    text = _lessons(info)
    assert "`vit_small_patch14_dinov2.lvd142m` of timm" in text
    assert "`mine.pth`" in text and "licence apache-2.0" in text
