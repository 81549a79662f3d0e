"""What `--teacher` may name, and what is known of each before the training."""

import pytest
import torch
from exported import toy_onnx, toy_student
from toy_run import CLASSES

from segkd.config.networks import ClassMap
from segkd.errors import CheckpointError, ConfigError
from segkd.models.label_sets import label_set
from segkd.pipeline.teachers import TeacherChoice, require_same_classes, teacher_of
from segkd.yaml_tree import parse


def test_a_run_folder_and_an_exported_file_name_their_classes():
    run = teacher_of(str(toy_student()), {})
    assert run.block == {"checkpoint": str(toy_student())} and run.classes == CLASSES
    assert run.features and run.fixed is None
    pytest.importorskip("onnxruntime")
    file = teacher_of(str(toy_onnx()), {})
    assert file.block == {"black_box": {"onnx": str(toy_onnx())}} and file.classes == CLASSES
    assert not file.features and file.fixed is None


def test_a_foreign_file_of_one_size(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kind = onnx.TensorProto.FLOAT
    sides = [onnx.helper.make_tensor_value_info(n, kind, [1, 3, 64, 96]) for n in ("x", "y")]
    node = onnx.helper.make_node("Softmax", ["x"], ["y"], axis=1)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", sides[:1], sides[1:]),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.save(model, str(tmp_path / "other.onnx"))
    found = teacher_of(str(tmp_path / "other.onnx"), {})
    assert found.fixed == (64, 96) and found.classes is None and not found.features


def test_a_function_a_network_to_train_and_weights_of_others(tmp_path):
    found = teacher_of("my.api:predict", {})
    assert found.block == {"black_box": {"function": "my.api:predict"}} and not found.features
    trained = teacher_of("train:fpn/resnet18", {})
    assert trained.block == {"checkpoint": "run:teacher"}
    assert trained.student["encoder"] == "resnet18"
    path = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match=r"teachers\.teacher\.arch=NAME"):
        teacher_of(str(path), {})
    assert teacher_of(str(path), {"arch": "enet"}).block == {"checkpoint": str(path)}


@pytest.mark.parametrize(("kind", "features"), [("segformer", True), ("mask2former", False)])
def test_models_of_transformers(kind, features, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    names = {"id2label": {0: "road", 1: "sky"}, "label2id": {"road": 0, "sky": 1}}
    transformers.AutoConfig.for_model(kind, **names).save_pretrained(tmp_path)
    transformers.SegformerImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="write --teacher hf:"):
        teacher_of(str(tmp_path), {})
    (tmp_path / "a name").symlink_to(tmp_path)  # what the message says can be pasted
    with pytest.raises(ConfigError, match=r"write --teacher 'hf:.*a name'"):
        teacher_of(str(tmp_path / "a name"), {})
    found = teacher_of(f"hf:{tmp_path}", {})
    assert found.classes == ("road", "sky") and found.features is features
    assert found.block == {"hf": str(tmp_path)}
    monkeypatch.chdir(tmp_path.parent)  # the recipe can be trained from elsewhere
    assert teacher_of(f"hf:{tmp_path.name}", {}).block == {"hf": str(tmp_path)}


@pytest.mark.parametrize(
    "text", ["", "hf:", "none.pt", "none.onnx", "pretrained:none", "nobody/none"]
)
def test_there_is_no_such_teacher(text):
    with pytest.raises((ConfigError, CheckpointError)):
        teacher_of(text, {})


def test_classes_may_be_in_another_order_but_no_others():
    run = teacher_of(str(toy_student()), {})
    require_same_classes(run, CLASSES[::-1])
    with pytest.raises(ConfigError, match=r"only in the data: lake.*segkd data map"):
        require_same_classes(run, (*CLASSES[:3], "lake"))


CITY, CAMVID = label_set("cityscapes").classes, label_set("camvid").classes
KEY = "teachers.teacher.classes="


@pytest.mark.parametrize(
    ("block", "theirs", "ours", "typed"),
    [
        ({"checkpoint": "a"}, CITY, CAMVID, f"add {KEY}'{{from: cityscapes, to: camvid}}'"),
        ({"hf": "a/b"}, CITY, CAMVID, f"add {KEY}'{{to: camvid}}'"),
        ({"hf": "a/b"}, CITY, ["x", "y"], "data map a/b 'my data' --write map.yaml`|{map: map."),
        ({"hf": "a/b"}, ["p", "q"], CAMVID, "data map a/b camvid --write map.yaml`|'{map: map."),
        ({"checkpoint": "a"}, CITY, ["x", "y"], "data map cityscapes 'my|'{from: cityscapes, ma"),
        ({"checkpoint": "a"}, ["p", "q"], ["x", "y"], "data map theirs.yaml|'{from: [p, q], ma"),
    ],
)
def test_what_to_type_for_other_classes(block, theirs, ours, typed):
    choice = TeacherChoice("T", block, tuple(theirs))
    with pytest.raises(ConfigError) as caught:
        require_same_classes(choice, ours, "my data")
    for text in typed.split("|"):
        assert text in str(caught.value)
    # The keys that are shown are valid.
    keys = str(caught.value).partition(KEY)[2].partition("'")[2].partition("'")[0]
    ClassMap.model_validate(parse(keys, "x").plain())
