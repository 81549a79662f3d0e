"""smp's architectures: all of them, their stages, dilation, and errors that help."""

import pytest
import torch

from segkd.config.schema import ModelConfig
from segkd.errors import CheckpointError, ConfigError, SegKDError
from segkd.models.build import build_network
from segkd.models.weights import FORMAT, save_safetensors
from segkd.registry import smp_architectures

VIT = "tu-vit_tiny_patch16_224"


def build(arch, encoder="resnet18", **keys):
    torch.manual_seed(0)
    return build_network(ModelConfig(arch=arch, encoder=encoder, **keys), 3)


def check_shapes(network, size):
    """Answers of every tap are as ``tap_info`` says; up-sampled logits are smp's own answer."""
    taps = network.tap_names()
    info = network.tap_info(taps)
    images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    with torch.no_grad():
        outputs = network.eval()(images, taps)
    for tap in taps:
        value = outputs.tap(tap)
        assert value.shape[1] == info[tap].channels
        assert [side // info[tap].stride for side in size] == list(value.shape[2:])
    with torch.no_grad():
        whole = network.segmentation_head(_before_head(network, outputs))
    assert whole.shape == (1, 3, *size)


def _before_head(network, outputs):
    if network.config.arch != "dpt":
        return outputs.features["head"]
    network.segmentation_head.head = network.segmentation_head.head[-1:]
    return outputs.features["head"]


@pytest.mark.parametrize("arch", smp_architectures())
def test_every_architecture(arch):
    size = (128, 192) if arch == "pan" else (64, 96)
    check_shapes(build(arch, VIT if arch == "dpt" else "resnet18"), size)


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoder",
    [
        *("mit_b0", "mobilenet_v2", "efficientnet-b0", "vgg11_bn", "densenet121", "dpn68"),
        *("xception", "mobileone_s0", "tu-convnext_atto", "tu-mobilenetv3_small_050"),
    ],
)
@pytest.mark.parametrize("arch", [arch for arch in smp_architectures() if arch != "dpt"])
def test_architectures_with_many_encoders(arch, encoder):
    try:
        network = build(arch, encoder)
    except ConfigError as error:
        # Encoders that pool cannot be dilated; two decoders cannot use MiT.
        assert "dilated" in str(error) or encoder == "mit_b0"
        return
    check_shapes(network, (128, 192))


def test_empty_stages_of_transformers_are_no_taps():
    network = build("segformer", "mit_b0")
    assert network.tap_names() == ["stage2", "stage3", "stage4", "stage5", "head", "logits"]
    assert [i.stride for i in network.tap_info(["stage2", "stage5"]).values()] == [4, 32]
    with pytest.raises(ConfigError, match="no tap 'stage1'"):
        network.tap_info(["stage1"])


def test_published_pspnet_has_stride_8():
    network = build("pspnet", options={"encoder_depth": 5, "output_stride": 8})
    assert network.tap_info(["stage5"])["stage5"].stride == 8
    assert network.tap_info(["stage5"])["stage5"].channels == 512
    assert network.divisor == 8
    assert "stage4" not in build("pspnet").tap_names()


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        ({"arch": "deeplabv33"}, "Did you mean 'deeplabv3'"),
        ({"arch": "unet", "encoder": "resnet19"}, "Did you mean 'resnet"),
        ({"arch": "unet", "encoder": "tu-resnet19"}, "Did you mean 'tu-resnet"),
        ({"arch": "unet", "options": {"decoder_chanels": 1}}, "Did you mean 'decoder_channels'"),
        ({"arch": "fpn", "options": {"output_stride": 8}}, "decoder of fpn cannot use a dilated"),
        ({"arch": "deeplabv3", "encoder": "vgg11_bn"}, "dilate the encoder"),
        ({"arch": "fcn", "options": {"output_stride": 32}}, "output_stride: 32.*'fcn'.* 8 or 16"),
        ({"arch": "dpt"}, "tu-vit_small_patch16_224"),
        ({"arch": "unet", "options": {"encoder_options": {"a": 1}}}, "begin with 'tu-'"),
        ({"arch": "unet", "weights": "imagenett"}, "imagenet"),
        ({"arch": "unet", "encoder": VIT.replace("_224", "_384")}, "cannot be built"),
    ],
)
def test_mistakes_are_named(keys, hint):
    with pytest.raises(ConfigError, match=hint):
        build(**keys)


@pytest.mark.parametrize(
    "key",
    ["checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained"],
)
def test_options_that_read_files_never_reach_timm(key, monkeypatch):
    """timm 1.0.20 and older execute the pickle that ``checkpoint_path`` names."""
    monkeypatch.setattr("timm.create_model", lambda *a, **k: pytest.fail("timm was called"))
    options = {"encoder_options": {key: "/tmp/evil.pth"}}
    with pytest.raises(ConfigError, match=rf"encoder_options\.{key}: not allowed"):
        build("unet", "tu-resnet18", options=options)


def test_values_of_encoder_options_are_plain():
    options = {"encoder_options": {"norm_layer": {"type": "x"}}}
    with pytest.raises(ConfigError, match="expected a number, a word, or a list"):
        build("unet", "tu-resnet18", options=options)
    assert build("unet", "tu-resnet18", options={"encoder_options": {"drop_path_rate": 0.1}})


def test_dpt_takes_multiples_of_twice_its_patch():
    network = build("dpt", VIT)
    with pytest.raises(SegKDError, match=r"multiples of 32.*nearest valid size is 64x64"):
        network(torch.zeros(1, 3, 48, 80, dtype=torch.uint8))
    assert network.eval()(torch.zeros(1, 3, 32, 64, dtype=torch.uint8)).logits.isfinite().all()


def test_dpt_of_other_patches_is_refused_or_works():
    with pytest.raises(ConfigError, match=r"needs an encoder with patches of 16x16, .* has 14"):
        build("dpt", "tu-vit_small_patch14_dinov2")


def test_transformer_of_fixed_size():
    options = {"encoder_options": {"img_size": [64, 96]}}
    network = build("fpn", "tu-swin_tiny_patch4_window7_224", options=options)
    assert network.tap_info(["stage2"])["stage2"].stride == 4
    with pytest.raises(SegKDError, match="64x96 only, got 64x64"):
        network(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ([112, 176], "takes multiples of 32, got .112, 176."),
        ("large", "img_size: got 'large', expected a number of pixels, or two"),
        ([64, 64, 64], "expected a number of pixels, or two"),
        (64.0, "img_size: got 64.0, expected a number"),
    ],
)
def test_sizes_of_transformers_that_cannot_be_are_one_message(size, message):
    with pytest.raises(ConfigError, match=message):
        build("dpt", VIT, options={"encoder_options": {"img_size": size}})


def test_an_option_of_an_encoder_is_removed_by_null():
    options = {"encoder_options": {"img_size": None, "dynamic_img_size": None}}
    assert build("dpt", VIT, options=options).fixed_size is None


@pytest.fixture
def no_downloads(monkeypatch):
    def refuse(*args, **keys):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.utils.get_session", refuse)


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_a_hub_that_cannot_be_reached_is_asked_once_for_weights(monkeypatch, encoder):
    asked = []

    class Client:
        def head(self, address, *, timeout):
            asked.append(timeout)
            raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", Client)
    for name in ("huggingface_hub.hf_hub_download", "timm.models._hub.hf_hub_download"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("the library has tried"))
    with pytest.raises(SegKDError, match=r"could not be downloaded \(ConnectionError: no route\)"):
        build("unet", encoder=encoder, weights="imagenet")
    assert asked and set(asked) == {5.0}


def test_no_weights_touch_no_network(no_downloads):
    build("unet")
    with pytest.raises(SegKDError, match=r"no route.*weights: null"):
        build("unet", weights="imagenet")
    with pytest.raises(SegKDError, match="could not be downloaded"):
        build("unet", weights="someone/some-encoder")


@pytest.mark.parametrize("prefix", ["", "encoder.", "module.encoder."])
def test_encoder_weights_from_a_file(tmp_path, prefix):
    source = build("unet").encoder
    with torch.no_grad():
        source.conv1.weight.fill_(0.25)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state | {"fc.weight": torch.ones(2)}}, tmp_path / "encoder.pth")
    network = build("unet", weights=str(tmp_path / "encoder.pth"))
    assert (network.encoder.conv1.weight == 0.25).all()
    old = {key: value for key, value in state.items() if "num_batches" not in key}
    torch.save(old, tmp_path / "early.pth")
    network = build("unet", weights=str(tmp_path / "early.pth"))
    assert (network.encoder.conv1.weight == 0.25).all()


@pytest.mark.parametrize("ending", ["pt", "safetensors", "folder"])
def test_encoder_weights_from_a_students_file(tmp_path, ending):
    source = build("fpn", normalize="none")
    with torch.no_grad():
        source.encoder.conv1.weight.fill_(0.25)
    model = source.config.model_dump(mode="json")
    payload = {"format": FORMAT, "model": model, "weights": source.state_dict()}
    payload |= {"classes": ["a", "b", "c"], "palette": [[0, 0, 0]] * 3, "ignore_index": 255}
    path = tmp_path / "checkpoints" / "best.pt"
    path.parent.mkdir()
    torch.save(payload, path)
    if ending == "safetensors":
        path = tmp_path / "best.safetensors"
        save_safetensors(payload, path)
    network = build("unet", weights=str(tmp_path if ending == "folder" else path))
    assert (network.encoder.conv1.weight == 0.25).all()
    assert network.config.normalize == "none", "as the encoder was trained"


def test_files_of_smp_with_layers_that_nothing_reads(tmp_path):
    import segmentation_models_pytorch as smp

    source = smp.PSPNet("resnet18", encoder_weights=None, classes=3).eval()
    torch.save(source.state_dict(), tmp_path / "psp.pth")
    network = build("pspnet", checkpoint=str(tmp_path / "psp.pth"))
    assert "60 unused (encoder)" in str(network.match)
    first = network.encoder.conv1.weight
    assert torch.equal(first, source.encoder.conv1.weight)


def test_encoder_weights_for_timms_extractor(tmp_path):
    from safetensors.torch import save_file

    own = build("fpn", "tu-convnext_atto").encoder.state_dict()
    plain = {key.removeprefix("model."): value for key, value in own.items()}
    plain = {
        key.replace("stages_", "stages.").replace("stem_", "stem."): value + 1.0
        for key, value in plain.items()
    }
    save_file(plain, tmp_path / "model.safetensors")
    network = build("fpn", "tu-convnext_atto", weights=str(tmp_path / "model.safetensors"))
    key = next(iter(own))
    torch.testing.assert_close(network.encoder.state_dict()[key], own[key] + 1.0)


def test_encoder_weights_that_do_not_fit(tmp_path):
    with pytest.raises(CheckpointError, match="there is no file"):
        build("unet", weights=str(tmp_path / "missing.pth"))
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"tensors are missing, e\.g\. conv1\.weight"):
        build("unet", weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "is a web page"),
        (b"", "it is empty"),
    ],
)
def test_encoder_weights_that_are_something_else_are_called_what_they_are(
    content, message, ending, tmp_path
):
    (tmp_path / f"w.{ending}").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"weights: \S+w\.{ending} .*{message}"):
        build("unet", weights=str(tmp_path / f"w.{ending}"))


def test_encoder_weights_with_pickled_extras(tmp_path):
    import argparse

    state = build("unet").encoder.state_dict()
    state["conv1.weight"] = torch.full_like(state["conv1.weight"], 0.25)
    path = tmp_path / "w.pth"
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1)}, path)
    assert (build("unet", weights=str(path)).encoder.conv1.weight == 0.25).all()
    torch.save({"model": state, "config": ModelConfig(arch="unet")}, path)
    with pytest.raises(
        CheckpointError, match=r"weights: .*a pickled segkd.*nothing in it was exec"
    ):
        build("unet", weights=str(path))
    state["bn1.running_var"][3] = torch.nan
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"weights: .*bn1\.running_var is NaN in 1 of 64"):
        build("unet", weights=str(path))
