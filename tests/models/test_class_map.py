"""Teachers that know other classes than the data."""

import pytest
import torch
from toy_run import CLASSES, teacher_net, toy_config

from segkd import registry
from segkd.config.schema import ClassMap, TeacherConfig
from segkd.engine.setup import assemble
from segkd.errors import ConfigError
from segkd.models.class_map import class_matrix, described, mapped, source_classes
from segkd.runtime import Runtime

GIVEN = ["heaven", "street", "lorry", "car", "unicorn"]
TABLE = {"heaven": "sky", "street": "road", "lorry": "car", "car": "car", "unicorn": None}


def test_probabilities_of_one_class_are_added_and_the_rest_is_normalised():
    config = ClassMap.model_validate({"from": GIVEN, "map": TABLE})
    matrix = class_matrix(config, list(CLASSES), "toy")
    logits = torch.tensor([1.0, 2.0, 0.5, -1.0, 3.0]).view(1, 5, 1, 1)
    p = logits.flatten().softmax(0).tolist()
    shares = [p[0], p[1], p[2] + p[3], 1e-8]
    expected = torch.tensor([share / sum(shares) for share in shares])
    torch.testing.assert_close(mapped(logits, matrix).exp().flatten(), expected)
    assert described(matrix, GIVEN, CLASSES) == (
        "4 of its 5 classes are mapped; not in the data: unicorn; not in the teacher: tree"
    )


def test_the_shipped_tables_name_classes_that_exist():
    camvid = list(registry.datasets.get("camvid").classes)
    matrix = class_matrix(ClassMap(source="cityscapes"), camvid, "camvid")
    assert matrix.shape == (11, 19) and (matrix.sum(0) == 1).all() and matrix.any(1).all()
    given = source_classes(ClassMap(source="cityscapes"))
    assert matrix[camvid.index("car"), given.index("bus")] == 1
    named = ClassMap.model_validate({"from": "cityscapes", "to": "camvid"})
    assert torch.equal(class_matrix(named, camvid, "folder"), matrix)


def test_a_table_may_be_a_file(tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text("heaven: sky\nstreet: road\nlorry: car\ncar: car\nunicorn:\n")
    found, expected = (
        class_matrix(ClassMap.model_validate({"from": GIVEN, "map": table}), CLASSES, "toy")
        for table in (str(path), TABLE)
    )
    assert torch.equal(found, expected)
    path.write_text("- heaven\n")
    with pytest.raises(ConfigError, match="expected lines `teacher's class: class`"):
        class_matrix(ClassMap.model_validate({"from": GIVEN, "map": str(path)}), CLASSES, "toy")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"map": {"streat": "road"}}, "the teacher has no class 'streat'. Did you mean 'street'"),
        ({"map": {"street": "raod"}}, "the data has no class 'raod'. Did you mean 'road'"),
        ({"map": {"street": None}}, "no class of the teacher is mapped"),
        ({}, "segkd has no table from"),
        ({"map": "no/such.yaml"}, "cannot be read"),
    ],
)
def test_tables_that_do_not_fit_are_refused(keys, message):
    config = ClassMap.model_validate({"from": GIVEN, **keys})
    with pytest.raises(ConfigError, match=message):
        class_matrix(config, list(CLASSES), "toy")


def test_a_run_learns_from_logits_and_features_of_such_a_teacher(tmp_path):
    network = teacher_net()
    network.classifier = torch.nn.Conv2d(24, 5, 1)
    network.num_classes = 5
    teachers = {"main": {"arch": "toy", "classes": {"from": GIVEN, "map": TABLE}}}
    methods = {"kd": {}, "fitnets": {"tap": "stage4"}}
    config = toy_config(tmp_path, teachers=teachers, methods=methods)
    parts = assemble(config, Runtime.single(), teachers={"main": network})
    outputs = parts.teachers(torch.zeros(2, 3, 32, 48, dtype=torch.uint8))["main"]
    assert outputs.kind == "log_prob" and outputs.logits.shape[1] == 4
    torch.testing.assert_close(outputs.logits.exp().sum(1), torch.ones(2, 4, 6))
    assert outputs.tap("stage4").shape[1] == 16
    of_logits = toy_config(tmp_path, teachers=teachers, methods={"cwd": {}})
    with pytest.raises(ConfigError, match="has other classes than the data and returns prob"):
        assemble(of_logits, Runtime.single(), teachers={"main": network})


def test_the_config_survives_a_round_trip():
    config = TeacherConfig(arch="toy", classes={"from": "cityscapes", "map": {"road": "road"}})
    assert TeacherConfig.model_validate(config.model_dump(mode="json")) == config
    assert config.model().classes == []
