"""Statistics that follow the encoder's weights, and contradictions that are told."""

import json

import pytest
import torch

from segkd.config.schema import ModelConfig, TeacherConfig
from segkd.errors import CheckpointError
from segkd.models import weights
from segkd.models.build import build_network, network_from_file
from segkd.models.normalization import IMAGENET, normalization

HALF = ([0.5] * 3, [0.5] * 3)
LITE = "tu-tf_efficientnet_lite0"


def config(encoder=LITE, **keys):
    return ModelConfig(arch="fpn", encoder=encoder, **keys)


@pytest.mark.parametrize(
    ("encoder", "weights", "expected"),
    [
        (LITE, None, "imagenet"),
        (LITE, "imagenet", HALF),
        (LITE, "any.safetensors", HALF),
        ("timm-tf_efficientnet_lite3", "imagenet", HALF),
        ("tu-resnet50.a1_in1k", "imagenet", "imagenet"),
        ("tu-vit_base_patch16_clip_224.openai", "imagenet", None),
        ("tu-resnet50.no_such_tag", "imagenet", "imagenet"),
        ("tu-no_such_net", "imagenet", "imagenet"),
        ("resnet18", "a.pth", "imagenet"),
        ("resnet18", "no_such_name", "imagenet"),
    ],
)
def test_auto_is_what_the_weights_were_trained_with(encoder, weights, expected):
    found = normalization(config(encoder, weights=weights))
    if expected is None:  # neither ImageNet's nor one half
        assert found.key[0] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    else:
        assert found.key == expected
    assert not found.warning
    assert ("of the weights" in str(found)) == (
        weights is not None and "no_such" not in encoder + weights and encoder != "resnet18"
    )


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"mean": [0.5] * 3, "std": [0.5] * 3, "input_range": [0, 1]}, HALF),
        ({"mean": [127.5] * 3, "std": [127.5] * 3, "input_range": [0, 255]}, HALF),
        ({"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}, HALF),
        ({"mean": IMAGENET[0], "std": IMAGENET[1]}, "imagenet"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3, "input_space": "BGR"}, "imagenet"),
        ({"architectures": ["Net"]}, "imagenet"),
        ([], "imagenet"),
    ],
)
@pytest.mark.parametrize("weights", ["imagenet", "someone/net"])
def test_facts_of_a_hub_repository(tmp_path, monkeypatch, weights, facts, expected):
    (tmp_path / "config.json").write_text(json.dumps(facts))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    asked = []

    def download(repository, file, revision=None):
        asked.append(repository)
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("segkd.models.normalization.require_reachable", lambda: None)
    assert normalization(config("xception", weights=weights)).key == "imagenet"
    assert not asked  # without leave
    found = normalization(config("xception", weights=weights), download=True)
    assert found.key == expected
    assert asked == ["someone/net" if "/" in weights else "smp-hub/xception.imagenet"]


def test_a_contradiction_is_told_and_followed():
    found = normalization(config(weights="imagenet", normalize="imagenet"))
    assert found.key == "imagenet"
    assert "mean 0.5 0.5 0.5, std 0.5 0.5 0.5. Remove `normalize`" in found.warning
    assert not normalization(config(weights="imagenet", normalize=HALF)).warning
    assert not normalization(config(normalize=HALF)).warning
    rounded = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.2251])
    assert not normalization(config("tu-resnet18", weights="imagenet", normalize=rounded)).warning


def student(tmp_path, **keys):
    torch.manual_seed(0)
    network = build_network(ModelConfig(arch="fpn", encoder=LITE, **keys), 3)
    changes = {"weights": None, "checkpoint": None}
    model = network.config.model_copy(update=changes).model_dump(mode="json")
    payload = {"format": weights.FORMAT, "model": model, "weights": network.state_dict()}
    path = tmp_path / "best.pt"
    torch.save(payload | {"classes": ["a", "b", "c"], "ignore_index": 255}, path)
    return network.eval(), path


def encoder_file(tmp_path):
    path = tmp_path / "encoder.pth"
    torch.save(build_network(config(), 3).encoder.state_dict(), path)
    return str(path)


def test_a_file_holds_the_statistics_and_not_the_rule(tmp_path):
    network, path = student(tmp_path, weights=encoder_file(tmp_path))
    assert network.config.normalize == HALF
    found, payload = network_from_file(path)
    assert payload["model"]["normalize"] == [[0.5] * 3, [0.5] * 3]
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    for other in (found, build_network(ModelConfig(checkpoint=str(path)), 3).eval()):
        torch.testing.assert_close(other.normalized(images), network.normalized(images))
        assert str(other.normalization).endswith("(of the checkpoint)")
    teacher = TeacherConfig(arch="fpn", encoder=LITE, checkpoint=str(path)).model()
    assert build_network(teacher, 3).config.normalize == tuple(HALF)


def test_a_file_of_random_weights_says_imagenet_as_before(tmp_path):
    network, path = student(tmp_path)
    assert network.config.normalize == "imagenet"
    assert torch.load(path, weights_only=True)["model"]["normalize"] == "imagenet"


def test_a_checkpoint_decides_and_a_contradiction_is_told(tmp_path):
    _, path = student(tmp_path)
    found = build_network(ModelConfig(checkpoint=str(path), normalize="none"), 3)
    assert found.config.normalize == "imagenet"
    assert "mean 0 0 0, std 1 1 1 is configured, but the checkpoint" in found.normalization.warning
    named = {"arch": "fpn", "encoder": LITE, "checkpoint": str(path)}
    assert not build_network(ModelConfig(**named), 3).normalization.warning
    with pytest.raises(CheckpointError, match="normalize 'imagenet', the configuration has 'none'"):
        build_network(ModelConfig(**named, normalize="none"), 3)


def test_published_networks_keep_the_resolved_statistics(tmp_path):
    keys = {"arch": "mmseg_pspnet", "encoder": LITE, "weights": encoder_file(tmp_path)}
    options = {"channels": 8, "pool_channels": 8, "output_stride": 16}
    network = build_network(ModelConfig(**keys, options=options), 3)
    assert network.config.normalize == HALF and network.config.arch == "mmseg_pspnet"
