"""Files of ERFNet's author and of ERFNet-CULane, made here in their layout, answer the same."""

import pytest
import torch
import torch.nn.functional as F

from segkd import checkpoint
from segkd.config.schema import ModelConfig
from segkd.errors import CheckpointError, ConfigError
from segkd.models.build import build_network
from segkd.models.erfnet_maps import CULANE
from segkd.models.normalization import normalization

BGR_MEAN = torch.tensor([103.939, 116.779, 123.68])
DILATIONS = (2, 4, 8, 16, 2, 4, 8, 16)
LANES = (208, 976)


def convolution(state, name, shape, bias=True):
    fan = shape[1] * shape[2] * shape[3]
    state[f"{name}.weight"] = torch.randn(shape) * (2 / fan) ** 0.5
    if bias:
        state[f"{name}.bias"] = torch.randn(shape[0]) * 0.1


def norm(state, name, channels):
    state[f"{name}.weight"] = torch.empty(channels).uniform_(0.5, 1.5)
    state[f"{name}.bias"] = torch.randn(channels) * 0.2
    state[f"{name}.running_mean"] = torch.randn(channels) * 0.2
    state[f"{name}.running_var"] = torch.empty(channels).uniform_(0.01, 2)
    state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def block(state, name, channels):
    for number in (1, 2):
        convolution(state, f"{name}.conv3x1_{number}", (channels, channels, 3, 1))
        convolution(state, f"{name}.conv1x3_{number}", (channels, channels, 1, 3))
        norm(state, f"{name}.bn{number}", channels)


def down(state, name, before, after):
    convolution(state, f"{name}.conv", (after - before, before, 3, 3))
    norm(state, f"{name}.bn", after)


def up(state, name, before, after):
    convolution(state, f"{name}.conv", (before, after, 3, 3))
    state[f"{name}.conv.bias"] = torch.randn(after) * 0.1
    norm(state, f"{name}.bn", after)


def encoder_file():
    torch.manual_seed(0)
    state = {}
    down(state, "encoder.initial_block", 3, 16)
    down(state, "encoder.layers.0", 16, 64)
    down(state, "encoder.layers.6", 64, 128)
    for number in range(1, 6):
        block(state, f"encoder.layers.{number}", 64)
    for number in range(7, 15):
        block(state, f"encoder.layers.{number}", 128)
    return state


def whole_file(classes):
    state = encoder_file()
    convolution(state, "encoder.output_conv", (classes, 128, 1, 1))
    for first, before, after in ((0, 128, 64), (3, 64, 16)):
        up(state, f"decoder.layers.{first}", before, after)
        block(state, f"decoder.layers.{first + 1}", after)
        block(state, f"decoder.layers.{first + 2}", after)
    convolution(state, "decoder.output_conv", (16, classes, 2, 2))
    state["decoder.output_conv.bias"] = torch.randn(classes)
    return state


def culane_file():
    state = whole_file(5)
    convolution(state, "lane_exist.layers.0", (32, 128, 3, 3), bias=False)
    norm(state, "lane_exist.layers.1", 32)
    convolution(state, "lane_exist.layers_final.1", (5, 32, 1, 1))
    state["lane_exist.linear1.weight"] = torch.randn(128, 3965) * 0.05
    state["lane_exist.linear1.bias"] = torch.randn(128)
    state["lane_exist.linear2.weight"] = torch.randn(4, 128) * 0.3
    state["lane_exist.linear2.bias"] = torch.randn(4)
    return state


class Theirs:
    """The published networks, computed from a state by their names."""

    def __init__(self, state):
        self.state = state

    def conv(self, name, x, **options):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), **options)

    def norm(self, name, x):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.state[f"{name}.{key}"] for key in keys), eps=1e-3)

    def down(self, name, x):
        both = [self.conv(f"{name}.conv", x, stride=2, padding=1), F.max_pool2d(x, 2)]
        return self.norm(f"{name}.bn", torch.cat(both, 1)).relu()

    def block(self, name, x, d=1):
        y = self.conv(f"{name}.conv3x1_1", x, padding=(1, 0)).relu()
        y = self.norm(f"{name}.bn1", self.conv(f"{name}.conv1x3_1", y, padding=(0, 1))).relu()
        y = self.conv(f"{name}.conv3x1_2", y, padding=(d, 0), dilation=(d, 1)).relu()
        y = self.conv(f"{name}.conv1x3_2", y, padding=(0, d), dilation=(1, d))
        return (self.norm(f"{name}.bn2", y) + x).relu()

    def transposed(self, name, x, **options):
        keys = f"{name}.weight", f"{name}.bias"
        return F.conv_transpose2d(x, *(self.state[key] for key in keys), stride=2, **options)

    def encode(self, x):
        x = self.down("encoder.layers.0", self.down("encoder.initial_block", x))
        for number in range(1, 6):
            x = self.block(f"encoder.layers.{number}", x)
        x = self.down("encoder.layers.6", x)
        for number, dilation in enumerate(DILATIONS, 7):
            x = self.block(f"encoder.layers.{number}", x, dilation)
        return x

    def decode(self, x):
        for first in (0, 3):
            name = f"decoder.layers.{first}"
            x = self.transposed(f"{name}.conv", x, padding=1, output_padding=1)
            x = self.norm(f"{name}.bn", x).relu()
            x = self.block(f"decoder.layers.{first + 1}", x)
            x = self.block(f"decoder.layers.{first + 2}", x)
        return self.transposed("decoder.output_conv", x)

    def exist(self, x):
        x = self.norm(
            "lane_exist.layers.1", self.conv("lane_exist.layers.0", x, padding=4, dilation=4)
        )
        x = self.conv("lane_exist.layers_final.1", x.relu()).softmax(1)
        x = F.max_pool2d(x, 2).flatten(1)
        s = self.state
        x = F.linear(x, s["lane_exist.linear1.weight"], s["lane_exist.linear1.bias"]).relu()
        return F.linear(x, s["lane_exist.linear2.weight"], s["lane_exist.linear2.bias"])


def built(tmp_path, state, classes, **config):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    config = ModelConfig(arch="erfnet", checkpoint=str(path), **config)
    return build_network(config, classes).eval()


def pictures(size):
    torch.manual_seed(3)
    return torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)


def close(found, expected):
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * scale)


@torch.no_grad()
def test_the_authors_network_and_its_void_class(tmp_path):
    state = whole_file(20)
    network = built(tmp_path, state, 19)
    images = pictures((48, 64))
    theirs = Theirs(state)
    expected = theirs.decode(theirs.encode(images / 255))
    close(network(images).logits, expected[:, :19])
    assert network.match.layout == "Eromera's ERFNet"
    assert "void, is dropped" in str(network.match) and network.config.normalize == "none"


@torch.no_grad()
def test_erfnet_culane_with_its_existence_branch(tmp_path):
    """BGR minus a mean there, RGB here: the image's channels are pooled through the encoder."""
    state = culane_file()
    network = built(tmp_path, state, 5)
    images = pictures(LANES)
    bgr = images.float().flip(1) - BGR_MEAN.view(3, 1, 1)
    theirs = Theirs(state)
    deep = theirs.encode(bgr)
    outputs = network(images, ["stage4"])
    close(outputs.logits, theirs.decode(deep))
    close(outputs.exist, theirs.exist(deep))
    assert network.config.options == {"dropout": 0.1, "early_dropout": 0.1}
    assert {m.p for m in network.encoder.modules() if isinstance(m, torch.nn.Dropout2d)} == {0.1}
    assert network.fixed_size == LANES


@torch.no_grad()
def test_an_encoder_trained_on_imagenet(tmp_path):
    state = encoder_file()
    path = tmp_path / "erfnet_encoder_pretrained.pth.tar"
    theirs = {f"module.features.{key}": value for key, value in state.items()}
    theirs["module.classifier.linear.weight"] = torch.randn(10, 128)
    torch.save({"epoch": 3, "state_dict": theirs}, path)
    config = ModelConfig(arch="erfnet", weights=str(path), normalize="none")
    network = build_network(config, 4).eval()
    images = pictures((32, 40))
    found = network(images, ["stage4"]).features["stage4"]
    close(found, Theirs(state).encode(images / 255))


@torch.no_grad()
@pytest.mark.parametrize(
    ("state", "key", "fed"),
    [
        (lambda: whole_file(20), "none", lambda images: images / 255),
        (culane_file, CULANE, lambda images: images.float().flip(1) - BGR_MEAN.view(3, 1, 1)),
    ],
)
def test_the_encoder_of_a_whole_network_sees_images_as_that_did(tmp_path, state, key, fed):
    state, images = state(), pictures((32, 40))
    torch.save(state, tmp_path / "whole.pth")
    config = ModelConfig(arch="erfnet", weights=str(tmp_path / "whole.pth"))
    network = build_network(config, 4).eval()
    assert network.config.normalize == normalization(config).key == key
    assert not network.normalization.warning
    expected = Theirs(state).encode(fed(images))
    # The last three channels are those of the image, pooled: of ERFNet-CULane blue, green, red.
    order = [*range(125), *([127, 126, 125] if key == CULANE else [125, 126, 127])]
    close(network(images, ["stage4"]).features["stage4"], expected[:, order])
    other = build_network(config.model_copy(update={"normalize": "imagenet"}), 4)
    assert "Remove `normalize`" in other.normalization.warning


def test_the_encoder_trained_on_imagenet_alone_has_its_statistics(tmp_path):
    torch.save(encoder_file(), tmp_path / "encoder.pth")
    network = build_network(ModelConfig(arch="erfnet", weights=str(tmp_path / "encoder.pth")), 4)
    assert network.config.normalize == "imagenet"


def test_the_encoder_of_a_student_sees_images_as_that_did(tmp_path):
    trained = build_network(ModelConfig(arch="erfnet", normalize="none"), 4)
    payload = {
        "format": "segkd-student-1",
        "model": trained.config.model_dump(mode="json"),
        "weights": trained.state_dict(),
        "classes": ["a", "b", "c", "d"],
        "palette": [[number] * 3 for number in range(4)],
    }
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    checkpoint.save(tmp_path / "run/checkpoints/best.pt", payload)
    for weights in ("run/checkpoints/best.pt", "run"):
        config = ModelConfig(arch="erfnet", weights=str(tmp_path / weights))
        network = build_network(config, 5)
        assert network.config.normalize == "none"
        mine, theirs = network.encoder.state_dict(), trained.encoder.state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_an_encoder_file_that_does_not_fit(tmp_path):
    state = encoder_file()
    del state["encoder.layers.3.bn2.weight"]
    torch.save(state, tmp_path / "short.pth")
    for weights, text in (
        (tmp_path / "short.pth", r"missing: stage2.3.branch.8.weight"),
        (tmp_path / "none.pth", "there is no file"),
    ):
        with pytest.raises(CheckpointError, match=text):
            build_network(ModelConfig(arch="erfnet", weights=str(weights)), 4)
    with pytest.raises(ConfigError, match="not offered by any package"):
        build_network(ModelConfig(arch="erfnet", weights="imagenet"), 4)
