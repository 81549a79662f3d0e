"""Teachers that see larger images than the student."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from segkd.config.load import load_config
from segkd.config.schema import TeacherConfig
from segkd.doctor.parts import networks
from segkd.engine.run import train_run
from segkd.engine.setup import assemble
from segkd.engine.trainer import Trainer
from segkd.errors import SegKDError
from segkd.methods.base import IMAGE
from segkd.models.module import wrap
from segkd.models.teacher import open_networks
from segkd.models.teacher_members import brought
from segkd.runtime import Runtime, seed_everything

ENET = {"arch": "enet"}


def network(stride=4, scale=1.0, divisor=None):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 5, 3, stride=stride, padding=1), nn.ReLU())
    module = nn.Sequential(body, nn.Conv2d(5, 3, 1))
    made = wrap(module, 3, taps={"stage1": "0.1"}, divisor=divisor or stride)
    made.input_scale = scale
    return made.eval()


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)


@pytest.mark.parametrize(("scale", "size"), [(2.0, (32, 48)), (1.5, (24, 36)), (0.5, (8, 12))])
def test_outputs_are_those_of_resized_images(images, scale, size):
    found = network(scale=scale)(images, ["stage1"])
    larger = F.interpolate(images.float(), size, mode="bilinear", antialias=scale < 1)
    expected = network()(larger, ["stage1"])
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.features["stage1"], expected.features["stage1"])


@pytest.mark.parametrize(("stride", "scale"), [(4, 2.0), (8, 4.0), (2, 0.5)])
def test_strides_are_those_of_the_images_that_are_given(images, stride, scale):
    made = network(stride, scale)
    found = made(images, ["stage1"]).features["stage1"]
    assert made.tap_info(["stage1"])["stage1"].stride == images.shape[2] // found.shape[2]
    assert made.tap_info(["stage1"])["stage1"].channels == 5


def test_logits_are_no_larger_than_the_images(images):
    """They are means: of four logits each, for a network whose logits have the size of images."""
    found = network(1, 2.0)(images).logits
    larger = network(1)(F.interpolate(images.float(), (32, 48), mode="bilinear")).logits
    torch.testing.assert_close(
        found, larger.unflatten(3, (24, 2)).unflatten(2, (16, 2)).mean((3, 5))
    )


def test_logits_are_no_wider_than_the_images():
    """32 and 256 times 1.1 are 35 and 282: with a divisor of 32, 32 and 288."""
    images = torch.zeros(1, 3, 32, 256, dtype=torch.uint8)
    assert network(1, 1.1, divisor=32)(images).logits.shape[2:] == (32, 256)


def test_any_size_becomes_a_multiple_of_the_divisor():
    """20 and 27 times 1.5 are 30 and 40.5: with a divisor of 8, 32 and 40."""
    images = torch.zeros(1, 3, 20, 27, dtype=torch.uint8)
    assert network(1, 1.5, divisor=8)(images, ["stage1"]).features["stage1"].shape[2:] == (32, 40)
    with pytest.raises(SegKDError, match="multiples of 8"):
        network(1, divisor=8)(images)


def test_gradients_are_by_the_images_that_are_given(images):
    outputs = network(scale=2.0)(images, [IMAGE])
    given = outputs.features[IMAGE]
    (gradient,) = torch.autograd.grad(outputs.logits.sum(), given)
    assert gradient.shape == images.shape and gradient.abs().sum() > 0


def test_images_of_a_wrong_shape_are_refused():
    with pytest.raises(SegKDError, match=r"got images of shape \(3, 8, 8\)"):
        network(scale=2.0)(torch.zeros(3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"ensemble": ["a"], "input_scale": 2.0}, "Give it to the members"),
        ({"black_box": {"onnx": "a.onnx"}, "input_scale": 2.0}, "a `black_box` has its own"),
        (ENET | {"input_scale": 0}, "greater than 0"),
        (ENET | {"input_scale": 100}, "less than or equal to 8"),
    ],
)
def test_what_cannot_be_scaled_is_refused(keys, text):
    with pytest.raises(ValidationError, match=text):
        TeacherConfig(**keys)


def test_a_teacher_that_is_given_sees_images_as_its_entry_says(images):
    given = network(divisor=4)
    entry = TeacherConfig(arch="enet", input_scale=2.0)
    own = brought("main", entry, given, ["a", "b", "c"])
    assert own.input_scale == 2.0 and given.input_scale == 1.0
    assert torch.equal(own.eval()(images).logits, network(scale=2.0)(images).logits)
    assert brought("main", None, network(scale=2.0), ["a", "b", "c"]).input_scale == 2.0


def test_the_key_is_only_of_teachers():
    with pytest.raises(SegKDError, match="input_scale"):
        load_config({"student": ENET | {"input_scale": 2.0}, "data": {"name": "streets"}})


def test_entries_of_a_run_have_their_scales():
    configs = {"one": TeacherConfig(**ENET), "two": TeacherConfig(**ENET, input_scale=2.0)}
    opened = open_networks(configs, {}, 3)
    assert [opened[name].input_scale for name in configs] == [1.0, 2.0]


def toy_run(folder, scale, **data):
    """ENet from an FPN, whose images have sides of multiples of 32."""
    return load_config(
        {
            "out": str(folder),
            "steps": 1,
            "data": {"name": "streets", "size": [64, 128], "train_images": 4, "val_images": 2}
            | {"batch_size": 2, "workers": 0, **data},
            "student": ENET,
            "teachers": {"main": {"arch": "fpn", "encoder": "resnet18", "input_scale": scale}},
            "methods": {"kd": {}},
            "runtime": {"device": "cpu"},
        }
    ).run


def test_a_run_whose_images_only_fit_when_scaled(tmp_path):
    """Crops of 40x72 are no multiples of 32; 60x108 become 64x96."""
    errors = []
    for scale in (1.0, 1.5):
        found = []
        networks(toy_run(tmp_path, scale, crop=[40, 72]), ["class"] * 19, (40, 72), found)
        errors.append([one.about for one in found if one.level == "error"])
    assert errors == [["teacher main"], []]
    train_run(toy_run(tmp_path, 1.5, crop=[40, 72]))
    log = (tmp_path / "log.txt").read_text()
    assert "step 1: mIoU" in log and "teacher main: mIoU" in log
    assert "teacher main: it sees images 1.5 times as large" in log


def test_every_kind_of_method_trains_with_a_scaled_teacher(tmp_path):
    """On logits, on features with adapters, and on relations: maps of both sides differ in size."""
    run = load_config(
        {
            "out": str(tmp_path),
            "steps": 2,
            "data": {"name": "streets", "size": [64, 128], "crop": [64, 64], "train_images": 4}
            | {"batch_size": 2, "workers": 0},
            "student": ENET,
            "teachers": {"main": {"arch": "erfnet", "input_scale": 2.0}},
            "methods": {"kd": {}, "cwd": {}, "fitnets": {}, "pairwise": {}, "at": {}, "mgd": {}},
            "runtime": {"device": "cpu"},
        }
    ).run
    runtime = Runtime.start("cpu")
    seed_everything(0, 0)
    trainer = Trainer(run, assemble(run, runtime), runtime)
    for _ in trainer.steps():
        trainer.tally.check()
    assert trainer.step == 2
