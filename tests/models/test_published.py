"""Published networks as networks of ours: taps, strides, options, training, student files."""

import pytest
import torch
from models.test_build import CLASSES, student

from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError
from segkd.models.build import build_network, network_from_file
from segkd.models.encoder_weights import are_here
from segkd.models.weights import FORMAT

CNN = {"encoder": "tu-resnet18", "options": {"channels": 8}}
KINDS = [
    ("fcn", CNN, 8),
    ("mmseg_pspnet", CNN | {"options": {"channels": 8, "pool_channels": 4}}, 8),
    ("mmseg_pspnet", CNN | {"options": {"channels": 8, "output_stride": 16}}, 16),
    ("mmseg_deeplabv3", CNN, 8),
    ("mmseg_deeplabv3plus", CNN, 4),
    ("mmseg_segformer", {"encoder": "mit_b0", "options": {"channels": 8}}, 4),
]


@pytest.mark.parametrize(("arch", "keys", "stride"), KINDS)
def test_taps_strides_and_gradients(arch, keys, stride):
    network = build_network(ModelConfig(arch=arch, **keys), 3)
    info = network.tap_info(["stage4", "head", "logits"])
    assert (info["head"].channels, info["head"].stride) == (8, stride)
    assert (info["logits"].channels, info["logits"].stride) == (3, stride)
    assert network.config.arch == arch and network.title == f"{arch} with {keys['encoder']}"
    network.train()(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).logits.sum().backward()
    assert all(p.grad is not None for p in network.decoder.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "options.channels: got 0, expected a number of channels"),
        ({"channels": "a"}, "options.channels: got 'a', expected a number of channels"),
        ({"pool_channels": -4}, "options.pool_channels: got -4"),
        ({"align_corners": "yes"}, "options.align_corners: got 'yes', expected true or false"),
    ],
)
def test_options_that_make_no_sense_are_one_message(options, message):
    with pytest.raises(ConfigError, match=message):
        build_network(ModelConfig(arch="mmseg_pspnet", encoder="resnet18", options=options), 3)


def test_a_student_file_of_one(tmp_path):
    network = build_network(ModelConfig(arch="mmseg_pspnet", **CNN), len(CLASSES))
    _, payload = student()
    payload |= {"model": network.config.model_dump(mode="json"), "weights": network.state_dict()}
    assert payload["format"] == FORMAT
    torch.save(payload, tmp_path / "best.pt")
    found, _ = network_from_file(tmp_path / "best.pt")
    torch.testing.assert_close(found.state_dict(), network.state_dict())
    assert found.config.options == CNN["options"]


def test_their_encoders_take_pretrained_weights(tmp_path):
    body = build_network(ModelConfig(arch="fcn", **CNN), 3).encoder
    torch.save(
        {k.removeprefix("model."): v for k, v in body.state_dict().items()}, tmp_path / "a.pt"
    )
    config = ModelConfig(arch="mmseg_pspnet", weights=str(tmp_path / "a.pt"), **CNN)
    network = build_network(config, 3)
    torch.testing.assert_close(network.encoder.state_dict(), body.state_dict())
    with pytest.raises(ConfigError, match=r"options\.width.*no such option"):
        build_network(ModelConfig(arch="fcn", encoder="tu-resnet18", options={"width": 1}), 3)


def test_weights_that_need_no_download(tmp_path, monkeypatch):
    (tmp_path / "a.pt").touch()
    offline = {"arch": "fcn", "encoder": "tu-resnet18"}
    assert are_here(ModelConfig(**offline))
    assert are_here(ModelConfig(weights=str(tmp_path / "a.pt"), **offline))
    found = []

    def cached(repository, file, revision=None):
        found.append(repository)
        return str(tmp_path / "a.pt") if "resnet18" in repository else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert are_here(ModelConfig(weights="imagenet", **offline))
    assert are_here(ModelConfig(arch="fpn", encoder="resnet18", weights="imagenet"))
    assert not are_here(ModelConfig(arch="fpn", encoder="resnet34", weights="imagenet"))
    assert not are_here(ModelConfig(arch="fpn", encoder="resnet34", weights="someone/else"))
    assert "someone/else" in found
    with pytest.raises(ConfigError, match="has no weights 'imagnet'"):
        are_here(ModelConfig(arch="fpn", encoder="resnet18", weights="imagnet"))
