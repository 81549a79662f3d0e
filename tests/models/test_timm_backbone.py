"""Backbones of timm as teachers of features: small ones with random weights, saved to a folder."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F

from segkd.errors import CheckpointError, ConfigError, SegKDError
from segkd.models.timm_backbone import TimmBackbone

SMALL = {"depth": 4, "embed_dim": 32, "num_heads": 2}
MODELS = {
    "vit_tiny_patch16_224": SMALL | {"img_size": 64},
    "vit_small_patch14_dinov2": SMALL | {"img_size": 56},
    "vit_small_patch14_reg4_dinov2": SMALL | {"img_size": 56},
    "vit_small_patch16_dinov3": SMALL | {"img_size": 64},
    "vit_base_patch16_radio_v3": SMALL | {"img_size": 64},
}
HIERARCHICAL = {
    "resnet18": {},
    "convnext_atto": {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "swin_tiny_patch4_window7_224": {"embed_dim": 16, "depths": [1, 1, 1, 1]},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of a saved model by its name; written at the first call."""
    root = tmp_path_factory.mktemp("timm")

    def folder(name):
        path = root / name
        if not timm.is_model(name):
            pytest.skip(f"this version of timm has no {name}")
        if not path.exists():
            arguments = (MODELS | HIERARCHICAL)[name]
            torch.manual_seed(0)
            model = timm.create_model(name, num_classes=0, **arguments)
            with torch.no_grad():  # norms that scale, so that leaving them out is seen
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
            timm.models.save_for_hf(model, path, model_args=arguments)
        return path

    return folder


def library_model(folder, **more):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0, **more).eval()


def some_images(height, width, count=2):
    torch.manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def normalized(images, facts):
    mean, std = (torch.tensor(facts[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (images / 255 - mean) / std


def taps_of(network, images):
    with torch.no_grad():
        return network.eval()(images, network.known_taps())


@pytest.mark.parametrize("name", MODELS)
def test_last_stage_is_what_the_library_returns(folders, name):
    """Patch tokens of ``forward_features``; class and register tokens are dropped."""
    network = TimmBackbone(str(folders(name)))
    patch = network.patch
    images = some_images(3 * patch, 5 * patch)
    model = library_model(folders(name), dynamic_img_size=True)
    with torch.no_grad():
        tokens = model.forward_features(normalized(images, model.pretrained_cfg))
    expected = torch.empty(2, tokens.shape[-1], 3, 5)
    for row in range(3):
        for column in range(5):
            place = model.num_prefix_tokens + 5 * row + column
            expected[:, :, row, column] = tokens[:, place]
    found = taps_of(network, images)
    torch.testing.assert_close(found.tap("stage5"), expected, rtol=0, atol=1e-5)
    assert found.tap("head") is found.tap("stage5")
    assert found.logits.shape == (2, 0, 1, 1)


@pytest.mark.parametrize("blocks", [None, 3, [0, 2]])
def test_stages_are_blocks_after_the_final_normalisation(folders, blocks):
    folder = folders("vit_small_patch14_reg4_dinov2")
    options = {} if blocks is None else {"blocks": blocks}
    network = TimmBackbone(str(folder), options=options)
    images = some_images(28, 42)
    model = library_model(folder, dynamic_img_size=True)
    chosen = {None: [0, 1, 2, 3], 3: [1, 2, 3]}.get(blocks if blocks != [0, 2] else 0, [0, 2])
    expected = []
    with torch.no_grad():
        value = model._pos_embed(model.patch_embed(normalized(images, model.pretrained_cfg)))
        value = model.norm_pre(value)
        for number, block in enumerate(model.blocks):
            value = block(value)
            if number in chosen:
                expected.append(model.norm(value)[:, 5:].transpose(1, 2).reshape(2, 32, 2, 3))
    found = taps_of(network, images)
    names = [f"stage{level}" for level in range(6 - len(chosen), 6)]
    assert network.tap_names() == [*names, "head"]
    for tap, value in zip(names, expected, strict=True):
        torch.testing.assert_close(found.tap(tap), value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", HIERARCHICAL)
def test_stages_of_several_strides(folders, name):
    network = TimmBackbone(str(folders(name)))
    images = some_images(64, 96)
    any_size = {"strict_img_size": False} if "swin" in name else {}
    model = library_model(folders(name), features_only=True, **any_size)
    with torch.no_grad():
        expected = model(normalized(images, model.pretrained_cfg))
    found = taps_of(network, images)
    strides = model.feature_info.reduction()
    for value, stride in zip(expected, strides, strict=True):
        value = value.permute(0, 3, 1, 2) if "swin" in name else value
        tap = f"stage{stride.bit_length() - 1}"
        torch.testing.assert_close(found.tap(tap), value, rtol=0, atol=1e-5)
        assert network.tap_info([tap])[tap].stride == stride


@pytest.mark.parametrize(
    ("size", "whole"),
    [((28, 42), (28, 42)), ((34, 35), (28, 42)), ((20, 50), (14, 56)), ((14, 21), (14, 28))],
)
def test_images_are_resized_to_whole_patches(folders, size, whole):
    network = TimmBackbone(str(folders("vit_small_patch14_dinov2")))
    images = some_images(*size)
    found = taps_of(network, images).tap("stage5")
    assert found.shape[2:] == (whole[0] // 14, whole[1] // 14)
    larger = F.interpolate(images.float(), whole, mode="bilinear", align_corners=False)
    expected = taps_of(network, larger).tap("stage5")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_images_smaller_than_a_patch(folders):
    network = TimmBackbone(str(folders("vit_small_patch14_dinov2")))
    with pytest.raises(SegKDError, match=r"patches of 14x14 pixels, got images of 13x28.*multiple"):
        network(some_images(13, 28))


def test_positions_are_those_of_the_patches(folders):
    """A change of the image in one corner changes the first block's token there most."""
    folder = folders("vit_small_patch14_reg4_dinov2")
    network = TimmBackbone(str(folder), options={"blocks": [0]})
    images = some_images(42, 56, 1)
    changed = images.clone()
    changed[..., :14, -14:] = 255 - changed[..., :14, -14:]
    before, after = (taps_of(network, one).tap("stage5") for one in (images, changed))
    difference = (before - after).square().sum(1)[0]
    assert difference.argmax() == difference.shape[1] - 1


def test_statistics_and_licence_are_those_of_the_weights(folders, tmp_path):
    name = "vit_small_patch14_dinov2"
    model = library_model(folders(name))
    facts = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "license": "cc-by-4.0"}
    model.pretrained_cfg |= facts
    timm.models.save_for_hf(model, tmp_path, model_args=MODELS[name])
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"]["license"] = "cc-by-4.0"
    (tmp_path / "config.json").write_text(json.dumps(config))
    network = TimmBackbone(str(tmp_path))
    assert network.licence == "cc-by-4.0"
    images = some_images(28, 28)
    expected = normalized(images, facts)
    torch.testing.assert_close(network.normalized(images), expected, rtol=0, atol=1e-5)
    assert not network.normalization.warning
    other = TimmBackbone(str(tmp_path), normalize="none")
    assert "configured" in other.normalization.warning
    torch.testing.assert_close(other.normalized(images), images / 255)


def test_facts_of_a_published_name(monkeypatch):
    """The weights of a name are those that timm would download; the licence is timm's."""
    asked = []
    create = timm.create_model

    def without_download(name, pretrained=False, **arguments):
        asked.append((name, pretrained))
        return create(name, pretrained=False, depth=1, embed_dim=16, num_heads=2, **arguments)

    monkeypatch.setattr(timm, "create_model", without_download)
    network = TimmBackbone("vit_small_patch14_dinov2.lvd142m")
    assert asked == [("vit_small_patch14_dinov2.lvd142m", True)]
    assert (network.licence, network.patch) == ("apache-2.0", 14)


def test_weights_of_a_file(folders, tmp_path):
    name = "resnet18"
    file = next(path for path in folders(name).iterdir() if path.suffix in (".bin", ".safetensors"))
    network = TimmBackbone(name, weights=str(file))
    own = library_model(folders(name)).state_dict()
    for key, value in network.model.state_dict().items():
        assert torch.equal(value, own[key]), key
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"bad.pth cannot be read as weights of this model"):
        TimmBackbone(name, weights=str(tmp_path / "bad.pth"))
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other.pth has others than tensors of this .*layer"):
        TimmBackbone(name, weights=str(tmp_path / "other.pth"))
    state = timm.create_model(name).state_dict()
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"cut.pth misses .*: 1, e.g. layer3.0.conv1.weight"):
        TimmBackbone(name, weights=str(tmp_path / "cut.pth"))
    for name in ("resnet18", "convnext_atto", "vit_tiny_patch16_224"):
        assert TimmBackbone(name, weights=_whole(name, tmp_path)).tap_names()[-1] == "head"
    with pytest.raises(CheckpointError, match="there is no file"):
        TimmBackbone(name, weights=str(tmp_path / "none.pth"))


def _whole(name, folder):
    """A file with a classifier, which a backbone does not have."""
    torch.save(timm.create_model(name, num_classes=7).state_dict(), folder / "whole.pth")
    return str(folder / "whole.pth")


def test_without_a_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host\nmore lines")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    with pytest.raises(SegKDError, match=r"could not be downloaded \(OSError.*no route") as raised:
        TimmBackbone("resnet18.a1_in1k")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, "unknown model 'resnet81'. Did you mean 'resnet18'"),
        ("no_such_net", {}, "unknown model 'no_such_net'"),
        ("resnet18.a9", {}, "'resnet18' has no weights 'a9'. Its weights: .*a1_in1k"),
        ("vit_giant_patch14_224", {}, "has no pretrained weights. Give a file"),
    ],
)
def test_unknown_names(name, options, message):
    with pytest.raises(ConfigError, match=message):
        TimmBackbone(name, options=options)


@pytest.mark.parametrize("blocks", [0, 5, [1, 0], [4], [], "last", True, [0, 0]])
def test_blocks_that_do_not_exist(folders, blocks):
    with pytest.raises(ConfigError, match=r"timm.options.blocks: got .*1 to 4.*0 to 3"):
        TimmBackbone(str(folders("vit_tiny_patch16_224")), options={"blocks": blocks})


def test_unknown_options(folders):
    with pytest.raises(ConfigError, match=r"timm.options.block: .*Did you mean 'blocks'"):
        TimmBackbone(str(folders("vit_tiny_patch16_224")), options={"block": 1})
    with pytest.raises(ConfigError, match="stages of several strides"):
        TimmBackbone(str(folders("resnet18")), options={"blocks": 1})


def test_a_model_of_one_size_that_is_no_multiple_of_its_largest_stride(tmp_path):
    model = timm.create_model("levit_128s", num_classes=0)
    timm.models.save_for_hf(model, tmp_path)
    network = TimmBackbone(str(tmp_path))
    assert network.fixed_size == (224, 224) and network.patch == 64
    assert network.tap_info(["stage5"])["stage5"].channels == model.num_features


def test_a_model_of_one_size(tmp_path):
    arguments = {"depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": 32}
    model = timm.create_model("beit_base_patch16_224", num_classes=0, **arguments)
    model.pretrained_cfg |= {"input_size": (3, 32, 32)}
    timm.models.save_for_hf(model, tmp_path, model_args=arguments)
    network = TimmBackbone(str(tmp_path))
    assert taps_of(network, some_images(32, 32)).tap("stage5").shape == (2, 16, 2, 2)
    with pytest.raises(SegKDError, match=r"images of 32x32 only, got 48x32.*such as DINOv2"):
        network(some_images(48, 32))
