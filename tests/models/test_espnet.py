"""ESPNet and ESPNetv2: sizes counted by hand, blocks by hand, and the public weights' outputs."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkd.api import evaluate
from segkd.config.schema import ModelConfig
from segkd.errors import CheckpointError, ConfigError
from segkd.models.build import build_network
from segkd.models.espnet_maps import STATISTICS, as_rgb
from segkd.models.espnet_maps import options as espnet_options
from segkd.models.key_maps import layout_of
from segkd.models.normalization import IMAGENET

REAL = Path(os.environ.get("SEGKD_REAL_DATA", "nowhere"))
PUBLIC = [
    ("espnetv2", {"scale": 2.0}, "espnetv2_s_2.0_city_1024x512.pth", "2.0"),
    ("espnetv2", {"scale": 0.5}, "espnetv2_s_0.5_city_1024x512.pth", "0.5"),
    ("espnet", {"p": 2, "q": 8}, "espnet_p_2_q_8.pth", "p2_q8"),
]


DILATIONS = (1, 2, 4, 8, 16)


def build(arch, num_classes=20, **keys):
    torch.manual_seed(0)
    return build_network(ModelConfig(arch=arch, **keys), num_classes).eval()


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "q"), [(2, 8), (2, 3), (1, 1)])
def test_size_of_espnet(p, q):
    """Layer by layer; a norm has two numbers a channel, its activation one."""

    def esp(before, after, kernel):
        inner = after // 5
        first = after - 4 * inner
        return kernel**2 * before * inner + 9 * inner * (first + 4 * inner) + 3 * after

    k = 20
    encoder = 9 * 3 * 16 + 3 * 16 + 3 * 19 + esp(19, 64, 3) + p * esp(64, 64, 1)
    encoder += 3 * 131 + esp(131, 128, 3) + q * esp(128, 128, 1) + 3 * 256
    decoder = 256 * k + 2 * k + 4 * k * k + 131 * k + 3 * 2 * k + esp(2 * k, k, 1)
    decoder += 4 * k * k + 3 * k + 9 * 36 * k + 3 * k
    assert count(build("espnet", options={"p": p, "q": q})) == encoder + decoder + 4 * k * k


def test_sizes_are_the_published_ones():
    """Those of the authors' files, less the activations that their down-sampling never runs."""
    assert count(build("espnet")) == 364_569
    unused = {0.5: 16 + 32 + 64, 2.0: 96 + 128 + 256}
    assert count(build("espnetv2", options={"scale": 0.5})) == 80_342 - unused[0.5]
    assert count(build("espnetv2", options={"scale": 2.0})) == 789_242 - unused[2.0]
    millions = {s: count(build("espnetv2", options={"scale": s})) / 1e6 for s in (1.0, 1.5)}
    assert {s: round(size, 2) for s, size in millions.items()} == {1.0: 0.23, 1.5: 0.47}


# -- blocks by hand --------------------------------------------------------------------------------


def lively(module):
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
        if isinstance(norm, nn.PReLU):
            nn.init.uniform_(norm.weight, -0.5, 0.5)
    return module


def normed(x, norm, eps):
    scale = norm.weight / (norm.running_var + eps).sqrt()
    return (x - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


def activated(x, activation):
    return torch.where(x > 0, x, x * activation.weight.view(-1, 1, 1))


@torch.no_grad()
def test_a_block_of_espnet_by_hand():
    block = lively(build("espnet").encoder.stage2[1])
    x = torch.randn(2, 64, 20, 28)
    reduced = F.conv2d(x, block.reduce.weight)
    maps = [
        F.conv2d(reduced, branch.weight, padding=d, dilation=d)
        for branch, d in zip(block.branches, DILATIONS, strict=True)
    ]
    assert [m.shape[1] for m in maps] == [16, 12, 12, 12, 12]
    sums = [maps[0], *(sum(maps[1 : last + 1]) for last in range(1, 5))]
    expected = activated(normed(x + torch.cat(sums, 1), block.norm, 1e-3), block.activation)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("place", "dilations"),
    [
        ("stage2.block", [1, 2, 3, 4]),
        ("down3.block", [1, 2, 3, 4]),
        ("stage3.0", [1, 2, 3, 4]),
        ("stage4.0", [1, 1, 2, 3]),  # nothing sees more than 7 pixels there
    ],
)
@torch.no_grad()
def test_a_block_of_espnetv2_by_hand(place, dilations):
    block = lively(build("espnetv2", options={"scale": 0.5}).encoder.get_submodule(place))
    stride = block.branches[0].stride[0]
    reduce, norm, activation = block.reduce
    x = torch.randn(2, reduce.in_channels, 20, 28)
    y = activated(normed(F.conv2d(x, reduce.weight, groups=4), norm, 1e-5), activation)
    maps = [
        F.conv2d(y, branch.weight, None, stride, d, d, groups=y.shape[1])
        for branch, d in zip(block.branches, dilations, strict=True)
    ]
    sums = torch.cat([sum(maps[: last + 1]) for last in range(4)], 1)
    y = activated(normed(sums, block.joined[0], 1e-5), block.joined[1])
    y = normed(F.conv2d(y, block.expand[0].weight, groups=4), block.expand[1], 1e-5)
    expected = y if stride == 2 else activated(x + y, block.activation)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def halved(x):
    return F.avg_pool2d(x, 3, stride=2, padding=1)


@torch.no_grad()
def test_what_follows_what_in_espnet():
    """Figure 4 of the paper: what is joined with what, in this order."""
    network = lively(build("espnet", 7))
    encoder, decoder = network.encoder, network.decoder
    x = torch.randn(2, 3, 48, 64)
    norm, activation = encoder.stage1[1:]
    one = F.conv2d(x, encoder.stage1[0].weight, stride=2, padding=1)
    one = activated(normed(one, norm, 1e-3), activation)
    two_first = encoder.down2(encoder.join1(torch.cat([one, halved(x)], 1)))
    two = encoder.stage2[1](encoder.stage2[0](two_first))
    joined = encoder.join2(torch.cat([two, two_first, halved(halved(x))], 1))
    three_first = encoder.down3(joined)
    three = three_first
    for block in encoder.stage3:
        three = block(three)
    three = encoder.join3(torch.cat([three_first, three], 1))
    score3 = normed(F.conv2d(three, decoder.score3[0].weight), decoder.score3[1], 1e-3)
    up3 = F.conv_transpose2d(score3, decoder.up3.weight, stride=2)
    y = torch.cat([F.conv2d(joined, decoder.score2.weight), up3], 1)
    y = decoder.up2(decoder.block(decoder.join(y)))
    y = decoder.merge(torch.cat([y, one], 1))
    expected = F.conv_transpose2d(y, network.classifier.weight, stride=2)
    found = network.compute(x, lambda name, value: None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", ["encoder.down2", "encoder.down3", "decoder.block"])
@torch.no_grad()
def test_blocks_of_espnet_without_a_skip(place):
    block = lively(build("espnet", 7)).get_submodule(place)
    x = torch.randn(2, block.reduce.in_channels, 20, 28)
    down = place != "decoder.block"  # it halves by a 3x3 convolution
    y = F.conv2d(x, block.reduce.weight, stride=2 if down else 1, padding=1 if down else 0)
    y = [
        F.conv2d(y, b.weight, padding=d, dilation=d)
        for b, d in zip(block.branches, DILATIONS, strict=True)
    ]
    y = torch.cat([y[0], *(sum(y[1 : last + 1]) for last in range(1, 5))], 1)
    expected = activated(normed(y, block.norm, 1e-3), block.activation)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_follows_what_in_espnetv2():
    network = lively(build("espnetv2", 7, options={"scale": 0.5}))
    encoder, decoder = network.encoder, network.decoder
    x = torch.randn(2, 3, 64, 96)

    def down(sampler, value, image):
        y = torch.cat([halved(value), sampler.block(value)], 1) + sampler.image(image)
        return activated(y, sampler.activation)

    one = encoder.stage1(x)
    two = down(encoder.stage2, one, halved(halved(x)))
    three = encoder.stage3(down(encoder.down3, two, halved(halved(halved(x)))))
    four = encoder.stage4(down(encoder.down4, three, halved(halved(halved(halved(x))))))
    y = decoder.pyramids[0](four)
    for number, skipped in enumerate((three, two, one)):
        y = F.interpolate(
            decoder.widen[number](y), scale_factor=2, mode="bilinear", align_corners=True
        )
        lateral = decoder.lateral[number]
        gate = F.conv2d(skipped.mean((2, 3), keepdim=True), lateral.gate[1].weight).sigmoid()
        y = decoder.merged[number](lateral.expand(skipped) * gate + y)
        y = decoder.pyramids[number + 1](y)
    expected = network.classifier(y)
    found = network.compute(x, lambda name, value: None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_pyramid_of_espnetv2_by_hand():
    pyramid = lively(build("espnetv2", 7, options={"scale": 0.5})).decoder.pyramids[3]
    x = torch.randn(2, pyramid.project[0].in_channels, 33, 20)
    reduced, count = pyramid.project(x), pyramid.channels

    def at(number, height, width):
        y = reduced
        if height >= 33:
            y = F.interpolate(y, (height, width), mode="bilinear", align_corners=True)
        else:
            y = F.adaptive_avg_pool2d(y, (height, width))
        y = F.conv2d(y, pyramid.convs[number].weight, padding=1, groups=count)
        if height >= 33:
            return F.adaptive_avg_pool2d(y, (33, 20))
        return F.interpolate(y, (33, 20), mode="bilinear", align_corners=True)

    sizes = [(66, 40), (50, 30), (33, 20), (17, 10), (5, 5)]  # the least side is 5
    maps = [at(number, *size) for number, size in enumerate(sizes)]
    y = activated(normed(torch.cat(maps, 1), pyramid.joined[0], 1e-5), pyramid.joined[1])
    order = [size * count + channel for channel in range(count) for size in range(5)]
    torch.testing.assert_close(pyramid(x), pyramid.merge(y[:, order]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("arch", "eps"), [("espnet", 1e-3), ("espnetv2", 1e-5)])
def test_norms_and_activations(arch, eps):
    kinds = [type(module) for module in build(arch).modules()]
    assert nn.PReLU in kinds and nn.ReLU not in kinds
    norms = [module.eps for module in build(arch).modules() if isinstance(module, nn.BatchNorm2d)]
    assert set(norms) == {eps}


def test_options_that_do_not_exist():
    for arch, options, hint in (
        ("espnetv2", {"scale": 3.0}, "expected one of 0.5, 1.0, 1.25, 1.5, 2.0"),
        ("espnetv2", {"scale": True}, "options.scale: got True"),
        ("espnetv2", {"projection": 0}, "options.projection: got 0"),
        ("espnet", {"p": 0}, "options.p: got 0, expected 1 or more"),
        ("espnet", {"q": 1.5}, "options.q: got 1.5"),
        ("espnet", {"width": 4}, "options.width: got 4, expected 5 or more"),
    ):
        with pytest.raises(ConfigError, match=hint):
            build(arch, options=options)
    for arch in ("espnet", "espnetv2"):
        assert build(arch, num_classes=2).num_classes == 2


# -- the public weights ----------------------------------------------------------------------------


def public(file):
    path = REAL / "weights" / file
    if not path.is_file():
        pytest.skip("needs the public weights in $SEGKD_REAL_DATA")
    return path


@torch.no_grad()
def outputs(network):
    """Every fourth row and column of the full-size logits for the stored image."""
    image = torch.from_numpy(np.load(REAL / "weights/input_128x256_rgb.npy"))
    logits = network(image.permute(2, 0, 1)[None]).logits
    if logits.shape[-2:] != image.shape[:2]:
        logits = F.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=True)
    return logits[0, :, ::4, ::4].numpy()


@pytest.mark.real
@pytest.mark.parametrize("num_classes", [20, 19])
@pytest.mark.parametrize(("arch", "options", "file", "name"), PUBLIC)
def test_outputs_are_those_of_the_authors_networks(arch, options, file, name, num_classes):
    network = build(arch, num_classes, options=options, checkpoint=str(public(file)))
    stored = np.load(REAL / f"weights/logits_{arch}_{name}.npy")
    np.testing.assert_allclose(outputs(network), stored[:num_classes], rtol=0, atol=1e-4)
    assert ("the last of its 20 outputs, void, is dropped" in str(network.match)) == (
        num_classes == 19
    )
    known = STATISTICS if arch == "espnet" else IMAGENET
    assert network.normalization.statistics == known and not network.normalization.warning


@pytest.mark.real
@pytest.mark.parametrize(
    ("arch", "keys", "num_classes", "hint"),
    [
        ("espnet", {}, 11, "has 20 classes"),
        ("espnet", {}, 21, "has 20 classes"),
        ("espnet", {"options": {"q": 3}}, 19, r"unknown .*encoder\.stage3\.3"),
        ("espnetv2", {}, 19, "fits arch 'espnet', not 'espnetv2'"),
    ],
)
def test_public_weights_that_do_not_fit(arch, keys, num_classes, hint):
    with pytest.raises(CheckpointError, match=hint):
        build(arch, num_classes, checkpoint=str(public("espnet_p_2_q_8.pth")), **keys)


@pytest.mark.real
def test_statistics_that_contradict_the_file_are_told():
    file = str(public("espnetv2_s_0.5_city_1024x512.pth"))
    network = build("espnetv2", 19, checkpoint=file, options={"scale": 0.5}, normalize="none")
    assert "EdgeNets ESPNetv2 was trained with mean 0.485" in network.normalization.warning


@pytest.mark.real
@pytest.mark.parametrize(
    ("arch", "file", "claimed"),
    [
        (*PUBLIC[0][::2], 66.6),
        (*PUBLIC[1][::2], 48.2),
        pytest.param(*PUBLIC[2][::2], 60.6, marks=pytest.mark.slow),
    ],
)
def test_scores_on_cityscapes_frames(arch, file, claimed):
    """Claimed is the authors' code, whose up-sampling aligns corners; ours does not."""
    told = []
    data = ["name=cityscapes", f"root={REAL / 'cityscapes_sample'}", "val_split=train"]
    data += ["resize=[512,1024]", "workers=0"]
    overrides = [f"student.arch={arch}", *(f"data.{key}" for key in data)]
    result = evaluate(public(file), overrides=overrides, tell=told.append)
    assert result.images == 2
    assert 100 * result.labelled_miou == pytest.approx(claimed, abs=0.3)
    assert "void, is dropped" in told[0] and told[1].startswith("normalize: mean")


# -- names and colours, without the public files ---------------------------------------------------

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def unit(name, conv="conv", norm="bn", activation="act"):
    """What the authors call a convolution, its norm and its activation; None: there is none."""
    keys = [f"{name}.{conv}.weight"] if conv else []
    keys += [f"{name}.{norm}.{part}" for part in _NORM] if norm else []
    return keys + ([f"{name}.{activation}.weight"] if activation else [])


def names_of_espnet(p, q):
    def block(name, wrapped):
        keys = [f"{name}.{part}.conv.weight" for part in ("c1", "d1", "d2", "d4", "d8", "d16")]
        return keys + unit(f"{name}.bn" if wrapped else name, None)

    keys = [*unit("encoder.level1"), *(k for i in (1, 2, 3) for k in unit(f"encoder.b{i}", None))]
    for level, repeats in ((2, p), (3, q)):
        keys += block(f"encoder.level{level}_0", False)
        keys += [k for i in range(repeats) for k in block(f"encoder.level{level}.{i}", True)]
    keys += ["encoder.classifier.conv.weight", "level3_C.conv.weight", "classifier.weight"]
    keys += [f"br.{part}" for part in _NORM] + unit("conv") + ["up_l3.0.weight", "up_l2.0.weight"]
    return (
        keys + unit("up_l2.1", None) + unit("combine_l2_l3.0", None) + block("combine_l2_l3.1", 1)
    )


def names_of_espnetv2():
    def eesp(name):
        keys = unit(f"{name}.proj_1x1") + [f"{name}.spp_dw.{i}.conv.weight" for i in range(4)]
        keys += unit(f"{name}.conv_1x1_exp", activation=None) + unit(f"{name}.br_after_cat", None)
        return [*keys, f"{name}.module_act.weight"]

    keys = unit("base_net.level1")
    for level, repeats in ((2, 0), (3, 3), (4, 7)):
        down = f"base_net.level{level}_0"
        keys += [*eesp(f"{down}.eesp"), f"{down}.act.weight", *unit(f"{down}.inp_reinf.0")]
        keys += unit(f"{down}.inp_reinf.1", activation=None)
        keys += [k for i in range(repeats) for k in eesp(f"base_net.level{level}.{i}")]
    for level in (1, 2, 3, 4):
        name = f"bu_dec_l{level}"
        keys += [f"{name}.stages.{i}.weight" for i in range(5)]
        keys += unit(f"{name}.projection_layer.cbr", "0", "1", "2")
        keys += [f"{name}.merge_layer.3.weight"]
        keys += unit(f"{name}.merge_layer.0.br", None, "0", "1")
        keys += unit(f"{name}.merge_layer.2.cbr", "0", "1", "2")
        keys += unit(f"{name}.br.br", None, "0", "1") if level < 4 else []
    for level in (2, 3, 4):
        keys += [f"merge_enc_dec_l{level}.wt_layer.1.weight"]
        keys += unit(f"merge_enc_dec_l{level}.expansion_layer.cbr", "0", "1", "2")
        keys += unit(f"bu_br_l{level}", None, "0", "1")
    return [*keys, "bu_dec_l4.merge_layer.3.bias"]


@pytest.mark.parametrize(
    ("names", "arch", "options", "left"),
    [
        (names_of_espnet(1, 2), "espnet", {"p": 1, "q": 2}, 0),
        (names_of_espnetv2(), "espnetv2", {}, 3),
    ],
)
def test_each_name_of_the_authors_is_known(names, arch, options, left):
    layout = layout_of(dict.fromkeys(names))
    found, others = layout.renamed(dict.fromkeys(names))
    assert set(found) == set(build(arch, options=options).state_dict())
    assert len(found) == len(names) - left and len(others) == left


@torch.no_grad()
def test_weights_for_bgr_images_become_weights_for_rgb():
    bgr = lively(build("espnet", normalize="none"))
    rgb = build("espnet", normalize="none")
    rgb.load_state_dict(as_rgb(bgr.state_dict()))
    images = torch.randint(0, 256, (1, 3, 40, 48), dtype=torch.uint8)
    expected = bgr(images.flip(1)).logits
    torch.testing.assert_close(rgb(images).logits, expected, rtol=1e-4, atol=1e-4)
    assert (bgr(images).logits - expected).abs().max() > 0.01


def test_a_file_decides_what_size_an_espnet_has():
    for arch, options in (("espnet", {"p": 3, "q": 2}), ("espnetv2", {"scale": 1.25})):
        assert espnet_options(arch, build(arch, options=options).state_dict()) == options
