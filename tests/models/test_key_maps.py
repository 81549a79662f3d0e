"""Weights of other programs: the network they are loaded into answers what theirs answered."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkd.config.schema import ModelConfig
from segkd.errors import CheckpointError
from segkd.models.build import build_network, network_from_file
from segkd.models.foreign import read_state
from segkd.models.key_maps import CAFFE, layout_of

K = 5
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def images(side=64):
    torch.manual_seed(3)
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)


def normalized(pictures, mean, std):
    shape = (1, 3, 1, 1)
    return (pictures / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def stirred(module):
    """Batch norms as after a training, so that a mixed-up one shows."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.2)
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 2.0)
    return module.eval()


def loaded(tmp_path, state, name="weights.pth", save=torch.save, **config):
    save(state, tmp_path / name)
    config = ModelConfig(checkpoint=str(tmp_path / name), **config)
    return build_network(config, K).eval()


def close(network, expected, side=64):
    with torch.no_grad():
        found = network(images(side)).logits
    tolerance = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


# -- torchvision -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "make"), [("deeplabv3", "deeplabv3_resnet50"), ("fcn", "fcn_resnet50")]
)
def test_torchvision_networks_answer_the_same(tmp_path, arch, make):
    from torchvision.models import segmentation

    build = getattr(segmentation, make)
    theirs = build(weights=None, weights_backbone=None, num_classes=K, aux_loss=True)
    theirs = stirred(theirs)
    network = loaded(tmp_path, theirs.state_dict(), arch=arch, encoder="resnet50")
    with torch.no_grad():
        features = theirs.backbone(normalized(images(), *IMAGENET))["out"]
        close(network, theirs.classifier(features))
    assert network.config.encoder == "tu-resnet50"
    assert all(key.startswith("aux_classifier.") for key in network.match.left)
    assert f"{network.match.matched} tensors matched, 8 unused" in str(network.match)


def test_smps_own_dilation_would_not_have_done(tmp_path):
    """Why the encoder is swapped: smp dilates the first block of a stage, torchvision does not."""
    import segmentation_models_pytorch as smp

    ours = smp.create_model("deeplabv3", "resnet50", encoder_weights=None, classes=K)
    assert ours.encoder.layer3[0].conv2.dilation == (2, 2)
    swapped = build_network(ModelConfig(arch="deeplabv3", encoder="tu-resnet50"), K)
    assert swapped.encoder.model.layer3[0].conv2.dilation == (1, 1)


# -- MMSegmentation --------------------------------------------------------------------------------


def block(state, name, x, **options):
    """A ConvModule of MMSegmentation: convolution, batch norm, ReLU."""
    x = F.conv2d(x, state[f"{name}.conv.weight"], **options)
    norm = [state[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
    return F.relu(F.batch_norm(x, *norm))


def resized(x, like):
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def psp(s, features):
    x = features[-1]
    parts = [x]
    for number, size in enumerate((1, 2, 3, 6)):
        small = block(s, f"decode_head.psp_modules.{number}.1", F.adaptive_avg_pool2d(x, size))
        parts.append(resized(small, x))
    return block(s, "decode_head.bottleneck", torch.cat(parts, 1), padding=1)


def separable(s, name, x, rate=1):
    x = block(s, f"{name}.depthwise_conv", x, padding=rate, dilation=rate, groups=x.shape[1])
    return block(s, f"{name}.pointwise_conv", x)


def aspp(s, features):
    x = features[-1]
    parts = [resized(block(s, "decode_head.image_pool.1", x.mean((2, 3), keepdim=True)), x)]
    parts.append(block(s, "decode_head.aspp_modules.0", x))
    for number, rate in ((1, 12), (2, 24), (3, 36)):
        name = f"decode_head.aspp_modules.{number}"
        parts.append(block(s, name, x, padding=rate, dilation=rate))
    return block(s, "decode_head.bottleneck", torch.cat(parts, 1), padding=1)


def separable_aspp(s, features):
    x = features[-1]
    parts = [resized(block(s, "decode_head.image_pool.1", x.mean((2, 3), keepdim=True)), x)]
    parts.append(block(s, "decode_head.aspp_modules.0", x))
    for number, rate in ((1, 12), (2, 24), (3, 36)):
        parts.append(separable(s, f"decode_head.aspp_modules.{number}", x, rate))
    deep = separable(s, "decode_head.bottleneck", torch.cat(parts, 1))
    shallow = block(s, "decode_head.c1_bottleneck", features[0])
    both = torch.cat([resized(deep, shallow), shallow], 1)
    both = separable(s, "decode_head.sep_bottleneck.0", both)
    return separable(s, "decode_head.sep_bottleneck.1", both)


@pytest.mark.parametrize(
    ("arch", "head"),
    [
        ("mmseg_pspnet", psp),
        ("mmseg_deeplabv3", aspp),
        ("mmseg_deeplabv3plus", separable_aspp),
    ],
)
def test_mmsegmentation_heads_answer_the_same(tmp_path, arch, head):
    from torchvision.models.resnet import Bottleneck, ResNet

    width = 16
    options = {"channels": width} | ({"pool_channels": 24} if head is psp else {})
    ours = ModelConfig(arch=arch, encoder="tu-resnet26", options=options)
    dilated = (False, True, True)
    body = stirred(ResNet(Bottleneck, [2, 2, 2, 2], replace_stride_with_dilation=dilated))
    source = stirred(build_network(ours, K))
    state = {f"backbone.{k}": v for k, v in body.state_dict().items() if not k.startswith("fc.")}
    for key, value in source.state_dict().items():
        if key.startswith("decoder."):
            state["decode_head." + key.removeprefix("decoder.")] = value
    torch.manual_seed(2)
    state["decode_head.conv_seg.weight"] = torch.randn(K, width, 1, 1)
    state["decode_head.conv_seg.bias"] = torch.randn(K)
    state["auxiliary_head.conv_seg.weight"] = torch.randn(K, 8, 1, 1)
    network = loaded(tmp_path, {"meta": {}, "state_dict": state}, arch=arch, encoder="resnet26")
    assert network.config.options == options
    assert network.match.left == ("auxiliary_head.conv_seg.weight",)
    with torch.no_grad():
        x = body.maxpool(body.relu(body.bn1(body.conv1(normalized(images(), *IMAGENET)))))
        features = [x := layer(x) for layer in (body.layer1, body.layer2, body.layer3, body.layer4)]
        names = ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")
        close(network, F.conv2d(head(state, features), *(state[name] for name in names)))


def test_the_deep_stem_of_mmsegmentation_is_timms_c(tmp_path):
    source = build_network(ModelConfig(arch="mmseg_pspnet", encoder="tu-resnet50c"), K)
    stem = {"conv1.": "stem.", "bn1.": "stem.7."}
    state = {}
    for key, value in source.state_dict().items():
        name = key.replace("encoder.model.", "backbone.").replace("decoder.", "decode_head.")
        name = name.replace("segmentation_head.0.", "decode_head.conv_seg.")
        for theirs, here in ((v, f"backbone.{k}") for k, v in stem.items()):
            name = name.replace(here, f"backbone.{theirs}") if name.startswith(here) else name
        state[name] = value
    assert "backbone.stem.6.weight" in state and "backbone.stem.7.running_var" in state
    network = loaded(tmp_path, state, arch="mmseg_pspnet", encoder="resnet50")
    assert network.config.encoder == "tu-resnet50c"
    close(network, source.eval()(images()).logits.detach())
    with pytest.raises(CheckpointError, match=r"stem of three 3x3.*timm has no 'tu-resnet18c'"):
        loaded(tmp_path, state, arch="mmseg_pspnet", encoder="resnet18")


# -- SegFormer -------------------------------------------------------------------------------------


def segformer(arch="segformer"):
    return stirred(build_network(ModelConfig(arch=arch, encoder="mit_b0"), K))


def of_mmsegmentation(state):
    """Our weights in MMSegmentation's layout."""
    found = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        words = rest.split(".")
        if part != "encoder":
            name = (
                f"decode_head.{rest}" if part == "decoder" else f"decode_head.conv_seg.{words[1]}"
            )
        elif words[0].startswith("patch_embed"):
            kind = {"proj": "projection", "norm": "norm"}[words[1]]
            name = f"backbone.layers.{int(words[0][-1]) - 1}.0.{kind}.{words[2]}"
        elif words[0].startswith("norm"):
            name = f"backbone.layers.{int(words[0][-1]) - 1}.2.{words[1]}"
        else:
            stage, inner = int(words[0][-1]) - 1, ".".join(words[2:-1])
            name = f"backbone.layers.{stage}.1.{words[1]}"
            if inner in ("attn.q", "attn.kv"):
                name += f".attn.attn.in_proj_{words[-1]}"
                joint = found.get(name)
                value = value if joint is None else torch.cat([joint, value])
            else:
                inner = {
                    "attn.proj": "attn.attn.out_proj",
                    "mlp.fc1": "ffn.layers.0",
                    "mlp.dwconv.dwconv": "ffn.layers.1",
                    "mlp.fc2": "ffn.layers.4",
                }.get(inner, inner)
                name += f".{inner}.{words[-1]}"
                if inner in ("ffn.layers.0", "ffn.layers.4") and words[-1] == "weight":
                    value = value[:, :, None, None]
        found[name] = value
    return found


def test_mmsegmentations_segformer(tmp_path):
    source = segformer("mmseg_segformer")
    state = of_mmsegmentation(source.state_dict())
    assert state["backbone.layers.0.1.0.attn.attn.in_proj_weight"].shape == (96, 32)
    assert state["backbone.layers.0.1.0.ffn.layers.0.weight"].shape == (128, 32, 1, 1)
    network = loaded(tmp_path, state, arch="mmseg_segformer", encoder="mit_b0")
    assert network.match.layout == "MMSegmentation"
    close(network, source(images()).logits.detach())
    with pytest.raises(CheckpointError, match="Set `arch: mmseg_segformer`"):
        loaded(tmp_path, state, arch="segformer", encoder="mit_b0")


def test_the_joint_projection_is_split_as_multi_head_attention_means_it():
    from segmentation_models_pytorch.encoders.mix_transformer import Attention

    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 2, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    state = {f"backbone.layers.0.1.0.attn.attn.{k}": v for k, v in theirs.state_dict().items()}
    state |= {"decode_head.conv_seg.weight": torch.zeros(1)}
    found, _ = layout_of(state).renamed(state)
    ours = Attention(16, 2, qkv_bias=True)
    prefix = "encoder.block1.0.attn."
    ours.load_state_dict({k.removeprefix(prefix): v for k, v in found.items() if prefix in k})
    x = torch.randn(2, 12, 16)
    torch.testing.assert_close(ours(x, 3, 4), theirs(x, x, x, need_weights=False)[0])


def of_the_authors(state):
    found = {}
    for key, value in state.items():
        name = key.replace("encoder.", "backbone.")
        for stage in range(4):
            here = f"decoder.mlp_stage.{stage}.linear"
            name = name.replace(here, f"decode_head.linear_c{4 - stage}.proj")
        name = name.replace("decoder.fuse_stage.0", "decode_head.linear_fuse.conv")
        name = name.replace("decoder.fuse_stage.1", "decode_head.linear_fuse.bn")
        name = name.replace("segmentation_head.0", "decode_head.linear_pred")
        found[name] = value
    return found | {"decode_head.conv_seg.weight": torch.zeros(K, 256, 1, 1)}


def of_hugging_face(state):
    found = {}
    for key, value in state.items():
        words = key.split(".")
        last = words[-1]
        if words[0] != "encoder":
            name = key.replace("segmentation_head.0", "decode_head.classifier")
            name = name.replace("decoder.fuse_stage.0", "decode_head.linear_fuse")
            name = name.replace("decoder.fuse_stage.1", "decode_head.batch_norm")
            for stage in range(4):
                here = f"decoder.mlp_stage.{stage}.linear"
                name = name.replace(here, f"decode_head.linear_c.{3 - stage}.proj")
        elif words[1].startswith("patch_embed"):
            kind = {"proj": "proj", "norm": "layer_norm"}[words[2]]
            name = f"segformer.encoder.patch_embeddings.{int(words[1][-1]) - 1}.{kind}.{last}"
        elif words[1].startswith("norm"):
            name = f"segformer.encoder.layer_norm.{int(words[1][-1]) - 1}.{last}"
        else:
            above = f"segformer.encoder.block.{int(words[1][-1]) - 1}.{words[2]}."
            inner = ".".join(words[3:-1])
            if inner == "attn.kv":
                half = len(value) // 2
                found[f"{above}attention.self.key.{last}"] = value[:half]
                inner, value = "attention.self.value", value[half:]
            inner = {
                "norm1": "layer_norm_1",
                "norm2": "layer_norm_2",
                "attn.q": "attention.self.query",
                "attn.sr": "attention.self.sr",
                "attn.norm": "attention.self.layer_norm",
                "attn.proj": "attention.output.dense",
                "mlp.fc1": "mlp.dense1",
                "mlp.fc2": "mlp.dense2",
            }.get(inner, inner)
            name = f"{above}{inner}.{last}"
        found[name] = value.contiguous()
    return found


def of_cirkd(state):
    """Its fusing convolution has a bias before the norm."""
    found = {}
    for key, value in of_the_authors(state).items():
        name = key.replace("backbone.", "").replace("decode_head.", "")
        name = name.replace("linear_fuse.conv", "linear_fuse.0").replace("fuse.bn", "fuse.1")
        found[name] = value
    del found["conv_seg.weight"]
    found["linear_fuse.0.bias"] = torch.linspace(-1, 1, 256)
    found["linear_fuse.1.running_mean"] = found["linear_fuse.1.running_mean"] + torch.linspace(
        -1, 1, 256
    )
    found["patch_embed1.proj.weight"] = found["patch_embed1.proj.weight"].flip(1)
    return found


@pytest.mark.parametrize(
    ("convert", "layout"),
    [
        (of_the_authors, "SegFormer of its authors"),
        (of_hugging_face, "Hugging Face SegFormer"),
        (of_cirkd, "CIRKD SegFormer"),
    ],
)
def test_segformers_of_other_programs(tmp_path, convert, layout):
    source = segformer()
    state = convert(source.state_dict())
    network = loaded(tmp_path, state, arch="segformer", encoder="mit_b0")
    assert network.match.layout == layout
    with torch.no_grad():
        x = normalized(images(), *IMAGENET)
        own = {}
        source.compute(x, lambda name, value: own.update({name: value}))
        found = {}
        network.compute(x, lambda name, value: found.update({name: value}))
    torch.testing.assert_close(found["head"], own["head"], rtol=1e-4, atol=1e-5)


# -- CIRKD -----------------------------------------------------------------------------------------


class OfCIRKD(nn.Module):
    """Its DeepLabV3: a stem of three convolutions, 512 channels in the head, BGR images."""

    def __init__(self, width=16):
        from torchvision.models.resnet import Bottleneck, ResNet

        super().__init__()
        body = ResNet(Bottleneck, [3, 4, 6, 3], replace_stride_with_dilation=(False, True, True))
        body.inplanes, body.dilation = 128, 1
        body.layer1 = body._make_layer(Bottleneck, 64, 3)
        self.pretrained = nn.Module()
        for number, (c_in, c_out) in enumerate(((3, 64), (64, 64), (64, 128)), start=1):
            conv = nn.Conv2d(c_in, c_out, 3, 2 if number == 1 else 1, 1, bias=False)
            setattr(self.pretrained, f"conv{number}", conv)
            setattr(self.pretrained, f"bn{number}", nn.BatchNorm2d(c_out))
        for number in range(1, 5):
            setattr(self.pretrained, f"layer{number}", getattr(body, f"layer{number}"))
        self.head = nn.Module()
        self.head.aspp = aspp = nn.Module()
        aspp.b0 = self._unit(2048, width, 1)
        for number, rate in ((1, 12), (2, 24), (3, 36)):
            part = nn.Module()
            part.block = self._unit(2048, width, 3, padding=rate, dilation=rate)
            setattr(aspp, f"b{number}", part)
        aspp.b4 = nn.Module()
        aspp.b4.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *self._unit(2048, width, 1))
        aspp.project = self._unit(5 * width, width, 1)
        unit = self._unit(width, width, 3, padding=1)
        self.head.block = nn.Sequential(*unit, nn.Dropout(0.1), nn.Conv2d(width, K, 1))
        self.auxlayer = nn.Conv2d(1024, K, 1)

    def _unit(self, c_in, c_out, kernel, **options):
        conv = nn.Conv2d(c_in, c_out, kernel, bias=False, **options)
        return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())

    def forward(self, bgr):
        body, aspp, x = self.pretrained, self.head.aspp, bgr
        for number in (1, 2, 3):
            x = F.relu(getattr(body, f"bn{number}")(getattr(body, f"conv{number}")(x)))
        x = F.max_pool2d(x, 3, 2, 1)
        x = body.layer4(body.layer3(body.layer2(body.layer1(x))))
        parts = [aspp.b0(x), *(part.block(x) for part in (aspp.b1, aspp.b2, aspp.b3))]
        parts.append(aspp.b4.gap(x).expand_as(parts[0]))
        return self.head.block(aspp.project(torch.cat(parts, 1)))


def test_cirkds_deeplab_answers_the_same_on_its_bgr_images(tmp_path):
    theirs = stirred(OfCIRKD())
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    network = loaded(tmp_path, state, arch="deeplabv3", encoder="resnet50")
    assert network.config.encoder == "tu-resnet50s"
    assert network.config.options == {"decoder_channels": 16}
    mean = torch.tensor([104.00698793, 116.66876762, 122.67891434]).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = theirs(images().flip(1).float() - mean)
    close(network, expected)
    assert network.config.normalize == CAFFE
    assert "BGR" in str(network.match)
    keys = {"arch": "deeplabv3", "encoder": "resnet50"}
    close(loaded(tmp_path, state, **keys, normalize=CAFFE), expected)
    rounded = ([round(value, 4) for value in CAFFE[0]], [0.00392] * 3)
    given = loaded(tmp_path, state, **keys, normalize=rounded)
    assert torch.equal(given.encoder.model.conv1[0].weight, network.encoder.model.conv1[0].weight)
    named = loaded(tmp_path, state, **keys, normalize="imagenet")
    own = loaded(tmp_path, state, **keys, normalize=IMAGENET)
    assert named.normalization.statistics == IMAGENET and named.normalization.warning
    with torch.no_grad():
        assert torch.equal(named(images()).logits, own(images()).logits)
    assert "images: RGB, not BGR minus Caffe's mean" in str(own.match)
    first = own.encoder.model.conv1[0].weight
    assert torch.equal(first, theirs.pretrained.conv1.weight)


def test_cirkds_pspnet_has_its_corners_aligned(tmp_path):
    options = {"channels": 8, "pool_channels": 4, "align_corners": True}
    config = ModelConfig(arch="mmseg_pspnet", encoder="tu-resnet18", options=options)
    source = stirred(build_network(config, K))
    state = {}
    for key, value in source.state_dict().items():
        name = key.replace("encoder.model.", "pretrained.")
        name = name.replace("segmentation_head.0", "head.classifier")
        name = name.replace("bottleneck.conv", "block.0").replace("bottleneck.bn", "block.1")
        for number in range(4):
            here = f"psp_modules.{number}.1."
            name = name.replace(f"{here}conv", f"psp.conv{number + 1}.0")
            name = name.replace(f"{here}bn", f"psp.conv{number + 1}.1")
        state[name.replace("decoder.", "head.")] = value
    state["pretrained.conv1.weight"] = state["pretrained.conv1.weight"].flip(1)
    network = loaded(tmp_path, state, arch="mmseg_pspnet", encoder="resnet18")
    assert network.config.options == options
    source._mean, source._scale = network._mean, network._scale
    close(network, source(images()).logits.detach())


# -- plain files, and what does not fit ------------------------------------------------------------


def plain(seed=0, classes=K):
    torch.manual_seed(seed)
    config = ModelConfig(arch="unet", encoder="resnet18", options={"decoder_channels": [8] * 5})
    return build_network(config, classes)


UNET = {"arch": "unet", "encoder": "resnet18", "options": {"decoder_channels": [8] * 5}}


def of_mmrazor(state):
    return {f"architecture.{key}": value for key, value in state.items()}


def safetensors(state, path):
    from safetensors.torch import save_file

    save_file(state, path)


@pytest.mark.parametrize(
    ("name", "save", "wrap"),
    [
        ("a.pth", torch.save, lambda s: s),
        ("a.safetensors", safetensors, lambda s: s),
        ("a.pt", torch.save, lambda s: {"epoch": 3, "state_dict": s}),
        ("a.pth", torch.save, lambda s: {"model": {f"module.model.{k}": v for k, v in s.items()}}),
        ("a.pth", torch.save, lambda s: {k: v for k, v in s.items() if "num_batches" not in k}),
        (
            "mmrazor.pth",
            torch.save,
            lambda s: {"state_dict": {"teacher.x": s["encoder.bn1.bias"]} | of_mmrazor(s)},
        ),
    ],
)
def test_plain_state_dicts_of_smp(tmp_path, name, save, wrap):
    source = plain().eval()
    network = loaded(tmp_path, wrap(source.state_dict()), name, save, **UNET)
    close(network, source(images()).logits.detach())
    assert network.match.layout == "plain" and network.config.encoder == "resnet18"


def test_plain_state_dicts_of_our_own_networks(tmp_path):
    torch.manual_seed(0)
    source = build_network(ModelConfig(arch="enet"), K).eval()
    network = loaded(tmp_path, source.state_dict(), arch="enet", aux_head={"tap": "stage3"})
    close(network, source(images()).logits.detach())
    assert network.aux_weight == 0.4
    first = build_network(ModelConfig(arch="enet", options={"version": 1}), K).eval()
    network = loaded(tmp_path, first.state_dict(), arch="enet")
    close(network, first(images()).logits.detach())


def test_a_branch_for_lanes_starts_untrained(tmp_path):
    network = loaded(tmp_path, plain().state_dict(), exist_head={}, **UNET)
    assert network(images()).exist.shape == (2, K - 1)


def test_a_head_that_is_not_here_is_no_pspnet(tmp_path):
    names = ("backbone.layer1.0.conv1", "decode_head.psp_modules.0.1.conv", "decode_head.conv_seg")
    state = {f"{name}.weight": torch.zeros(K, 1) for name in names}
    state["decode_head.fpn_convs.0.conv.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"unknown \(\d\).*decoder\.fpn_convs"):
        loaded(tmp_path, state, arch="unet", encoder="tu-resnet18")


def test_what_does_not_fit_is_listed(tmp_path):
    state = plain().state_dict()
    state["extra.weight"] = state.pop("decoder.blocks.0.conv1.0.weight")
    state["encoder.conv1.weight"] = torch.zeros(64, 4, 7, 7)
    with pytest.raises(CheckpointError) as told:
        loaded(tmp_path, state, **UNET)
    for part in (
        "plain layout",
        "missing (1): decoder.blocks.0.conv1.0.weight",
        "unknown (1): extra.weight",
        "encoder.conv1.weight: (64, 4, 7, 7) in the file, (64, 3, 7, 7) here",
    ):
        assert part in str(told.value)


def test_another_number_of_classes_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"has 7 classes .* the data has 5"):
        loaded(tmp_path, plain(classes=7).state_dict(), **UNET)


def test_files_without_tensors_and_files_that_need_an_arch(tmp_path):
    torch.save({"loss": 1.0, "names": ["a"]}, tmp_path / "facts.pt")
    with pytest.raises(CheckpointError, match="has no tensors by name, only loss, names"):
        read_state(tmp_path / "facts.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds list"):
        read_state(tmp_path / "list.pt")
    torch.save(plain().state_dict(), tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match="`arch`, `encoder` and `options`"):
        network_from_file(tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match="`arch`, `encoder` and `options`"):
        build_network(ModelConfig(checkpoint=str(tmp_path / "plain.pth")), K)


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickled_code_in_a_foreign_file_is_not_run(tmp_path):
    state = {"state_dict": plain().state_dict(), "hook": Malicious(tmp_path / "ran")}
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        loaded(tmp_path, state, **UNET)
    with pytest.raises(CheckpointError, match="If you trust its author, rewrite the tensors"):
        read_state(tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()
