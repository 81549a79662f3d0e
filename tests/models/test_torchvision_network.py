"""Segmentation models of torchvision by name, beside the library's own forward pass."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import get_model, get_model_weights

from segkd.config.schema import TeacherConfig
from segkd.errors import CheckpointError, ConfigError, SegKDError
from segkd.models.frozen import Teacher
from segkd.models.teacher import build_teachers
from segkd.models.torchvision_network import TorchvisionNetwork, find_weights

NAMES = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50")
VOC = "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
VOC = (VOC + "motorbike person pottedplant sheep sofa train tvmonitor").split()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of random weights by the model's name, called like the published one."""
    root = tmp_path_factory.mktemp("torchvision")

    def file(name):
        path = root / Path(get_model_weights(name).DEFAULT.url).name
        if not path.exists():
            torch.manual_seed(0)
            auxiliary = {} if name.startswith("lraspp") else {"aux_loss": True}
            model = get_model(name, weights=None, weights_backbone=None, **auxiliary)
            torch.save(model.state_dict(), path)
        return path

    return file


def some_images():
    torch.manual_seed(1)
    return torch.randint(0, 256, (2, 3, 64, 72), dtype=torch.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_librarys_pipeline(files, name):
    """Normalised by the weights' transforms, and up-sampled, logits are the library's."""
    network = TorchvisionNetwork(find_weights(name, str(files(name)))).eval()
    assert not any("aux" in key for key in network.state_dict())
    images = some_images()
    auxiliary = {} if name.startswith("lraspp") else {"aux_loss": True}
    model = get_model(name, weights=None, weights_backbone=None, **auxiliary).eval()
    model.load_state_dict(torch.load(files(name), weights_only=True))
    transforms = get_model_weights(name).DEFAULT.transforms(resize_size=None)
    with torch.no_grad():
        found = network(images)
        expected = model(transforms(images))["out"]
    assert found.kind == "logits" and not found.aux
    assert found.logits.shape[2:] in ((8, 9), (4, 5))
    mine = F.interpolate(found.logits, (64, 72), mode="bilinear", align_corners=False)
    torch.testing.assert_close(mine.softmax(1), expected.softmax(1), rtol=0, atol=3e-5)
    taps = network.known_taps()
    assert {"stage4", "stage5", "head", "logits"} <= set(taps)
    values = Teacher(network, taps)(images)
    for tap, info in network.tap_info(taps).items():
        assert values.tap(tap).shape[1] == info.channels, tap


def teachers(data=VOC, **keys):
    config = TeacherConfig.model_validate(keys)
    return build_teachers({"t": config}, {"t": ["logits"]}, len(data), classes=data)


def test_classes_are_those_of_the_weights(files):
    name = NAMES[0]
    keys = {"torchvision": name, "weights": str(files(name))}
    plain = teachers(**keys)
    assert plain.members["t"].network.classes_match == ""
    order = [20, *range(20)]
    turned = teachers([VOC[number] for number in order], **keys)
    with torch.no_grad():
        one, other = (some(some_images())["t"].logits for some in (plain, turned))
    torch.testing.assert_close(other, one[:, order])
    with pytest.raises(ConfigError, match=r"has 21 classes, the data has 2.*classes: \{map: FILE"):
        teachers(["a", "b"], **keys)


def test_other_classes_are_mapped(files):
    name = NAMES[0]
    table = dict.fromkeys(get_model_weights(name).DEFAULT.meta["categories"], "rest")
    table |= {"car": "car", "bus": "car"}
    keys = {"torchvision": name, "weights": str(files(name)), "classes": {"map": table}}
    with torch.no_grad():
        own = teachers(torchvision=name, weights=str(files(name)))(some_images())["t"].logits
        found = teachers(["rest", "car"], **keys)(some_images())["t"]
    cars = own.softmax(1)[:, [6, 7]].sum(1)
    expected = torch.stack([1 - cars, cars], 1)
    assert found.kind == "log_prob"
    torch.testing.assert_close(found.logits.exp(), expected, rtol=0, atol=1e-5)


def test_licence_is_a_fact_or_unknown(files, tmp_path):
    name = NAMES[0]
    published = find_weights(name, None)
    assert published.file is None and published.entry == get_model_weights(name).DEFAULT
    assert "not stated" in published.licence and "(COCO)" in published.licence
    own = tmp_path / "mine.pth"
    own.write_bytes(files(name).read_bytes())
    assert find_weights(name, str(own)).licence == ""


def test_a_file_with_other_classes(tmp_path):
    """A fine-tuned file: the number of classes is that of its classifier; names are asked for."""
    name, path = NAMES[0], tmp_path / "mine.pth"
    model = get_model(name, weights=None, weights_backbone=None, num_classes=3)
    torch.save({"model": model.state_dict(), "epoch": 3}, path)
    keys = {"torchvision": name, "weights": str(path)}
    built = teachers(["a", "b", "c"], **keys)
    assert built.members["t"].network.classes_match.startswith(f"{path} has no class names")
    built = teachers(["a", "b", "c"], **keys, classes=["c", "b", "a"])
    assert "reordered" in built.members["t"].network.classes_match


def test_weights_from_torchs_cache(files, tmp_path, monkeypatch):
    """By name, the published file is looked up in torch's cache before any download."""
    name = NAMES[0]
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    target = tmp_path / "checkpoints" / files(name).name
    target.write_bytes(files(name).read_bytes())
    network = TorchvisionNetwork(find_weights(name, "COCO_WITH_VOC_LABELS_V1"))
    own = torch.load(files(name), weights_only=True)
    for key, value in network.model.state_dict().items():
        assert torch.equal(value, own[key]), key


def test_without_a_network(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(SegKDError, match=r"could not be downloaded \(no route to host\).*https://"):
        TorchvisionNetwork(find_weights(NAMES[0], None))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        (
            "deeplabv3_resnet100",
            None,
            "unknown segmentation model.*Did you mean 'deeplab",
        ),
        ("resnet50", None, "unknown segmentation model 'resnet50'"),
        (NAMES[0], "imagenet", "has no weights 'imagenet'. Its weights: COCO_WITH_VOC_LABELS_V1"),
    ],
)
def test_unknown_names(name, weights, message):
    with pytest.raises(ConfigError, match=message):
        find_weights(name, weights)


def test_files_that_do_not_fit(files, tmp_path):
    with pytest.raises(CheckpointError, match="there is no file"):
        find_weights(NAMES[0], str(tmp_path / "none.pth"))
    with pytest.raises(CheckpointError, match="no classifier of 'lraspp_mobilenet_v3_large'"):
        teachers(torchvision=NAMES[0], weights=_copy(files(NAMES[1]), tmp_path))
    with pytest.raises(CheckpointError, match=r"does not fit fcn_resnet50: of its \d+ tensors"):
        teachers(torchvision=NAMES[2], weights=_copy(files(NAMES[1]), tmp_path))
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"^teachers.t: .*bad.pth"):
        teachers(torchvision=NAMES[0], weights=str(tmp_path / "bad.pth"))


def _copy(file, folder):
    path = folder / "copy.pth"
    path.write_bytes(file.read_bytes())
    return str(path)
