"""ENet: the paper's shapes and size, and an import without torchvision."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from segkd.checkpoint import restore, save
from segkd.config.schema import ModelConfig
from segkd.engine.optim import EMA
from segkd.errors import ConfigError
from segkd.metrics.cost import parameters
from segkd.models.build import build_network
from segkd.models.enet import ENet, unpool
from segkd.models.weights import FORMAT


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ENet(ModelConfig(arch="enet"), 19)


def test_size_is_the_papers(network):
    """The paper's table 3 gives 0.37 M parameters for its ENet on Cityscapes."""
    count = sum(parameter.numel() for parameter in network.parameters())
    assert 0.35e6 < count < 0.375e6


def test_unpool_is_the_inverse_of_pooling():
    x = torch.randn(2, 3, 6, 10)
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(unpool(pooled, indices), F.max_unpool2d(pooled, indices, 2))


# -- as in ENet-SAD --------------------------------------------------------------------------------


def lane_enet(num_classes=5, exist_head=None, **options):
    torch.manual_seed(0)
    config = ModelConfig(arch="enet", options={"stages": 4, **options}, exist_head=exist_head)
    return build_network(config, num_classes)


@pytest.mark.parametrize("share", [False, True])
def test_fourth_stage_and_what_the_decoder_takes(share):
    network = lane_enet(share=share)
    seen = []
    network.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    taps = network.tap_names()
    images = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8)
    outputs = network(images, taps)
    assert taps == ["stage1", "stage2", "stage3", "stage4", "stage5", "head", "logits"]
    assert outputs.features["stage5"].shape == (2, 128, 4, 8)
    assert outputs.logits.shape == (2, 5, 32, 64)
    joined = torch.cat([outputs.features["stage4"], outputs.features["stage5"]], 1)
    assert torch.equal(seen[-1], joined)
    outputs.logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_shared_stages_are_one_module_three_times():
    network = lane_enet(share=True).eval()
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    features = network(images, ["stage3", "stage4", "stage5"]).features
    shared = network.encoder.stage2
    assert torch.equal(shared(features["stage3"]), features["stage4"])
    assert torch.equal(shared(features["stage4"]), features["stage5"])
    assert parameters(lane_enet()) - parameters(network) == 2 * parameters(shared)


def test_taps_before_the_activation_of_shared_stages():
    """The same activation makes all three taps; each has its own input."""
    network = lane_enet(share=True)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    stages = ["stage3", "stage4", "stage5"]
    values = network(images, [*stages, *(f"{stage}:pre" for stage in stages)]).features
    activation = network.encoder.stage2[-1].activation
    for stage in stages:
        assert torch.equal(activation(values[f"{stage}:pre"]), values[stage])


def test_dropout_is_the_papers_and_can_be_left_out():
    def rates(**options):
        network = build_network(ModelConfig(arch="enet", options=options), 2)
        modules = network.named_modules()
        return {name: m.p for name, m in modules if isinstance(m, torch.nn.Dropout2d)}

    early = {name: p for name, p in rates().items() if "down1" in name or "encoder.stage1" in name}
    assert len(early) == 5 and set(early.values()) == {0.01}
    for version, decoder in ((2, 0.0), (1, 0.1)):
        found = rates(version=version)
        late = {name: p for name, p in found.items() if name not in early}
        assert {p for name, p in late.items() if name.startswith("encoder.")} == {0.1}
        assert [p for name, p in late.items() if name.startswith("decoder.")] == [decoder] * 5
    assert set(rates(dropout=0, version=1).values()) == {0.0}


def test_details_are_those_of_the_authors(network):
    """And of the former network, which was otherwise the same."""
    former = build_network(ModelConfig(arch="enet", options={"version": 1}), 19)
    for one, eps, sizes in ((network, 1e-3, [(1, 5), (5, 1)]), (former, 1e-5, [(5, 1), (1, 5)])):
        assert {m.eps for m in one.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {eps}
        pair = one.encoder.stage3[6].branch[3]
        assert [conv.kernel_size for conv in pair] == sizes
        assert pair(torch.zeros(1, 32, 7, 9)).shape == (1, 32, 7, 9)
        assert [tuple(conv.weight.shape[2:]) for conv in pair] == sizes


def test_weights_of_the_former_network_make_a_network_that_former_one():
    """Its parameters stay the same objects, so that an optimiser's state fits."""
    former = lane_enet(version=1, share=True).eval()
    for norm in former.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_var.uniform_(1e-3, 1)  # so that the epsilon counts
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    for options in ({}, {"version": 1}, {"version": 2}):
        network = lane_enet(share=True, **options)
        parameters_before = [id(parameter) for parameter in network.parameters()]
        restore(network, former.state_dict(), "the file")
        assert [id(parameter) for parameter in network.parameters()] == parameters_before
        assert torch.equal(network.eval()(images).logits, former(images).logits)
        assert network.config.options["version"] == 1
        restore(network, lane_enet(share=True).state_dict(), "the file")
        assert network.config.options["version"] == 2


def test_an_average_of_the_former_network_is_restored_as_such():
    stored = EMA(lane_enet(version=1), 0.9).state_dict()
    average = EMA(lane_enet(), 0.9)
    average.load_state_dict(stored)
    assert average.average.config.options["version"] == 1
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    expected = lane_enet(version=1).eval()
    expected.load_state_dict(stored["weights"])
    assert torch.equal(average.average(images).logits, expected(images).logits)


def test_a_configuration_need_not_give_the_version_of_a_file(tmp_path):
    payload = {"format": FORMAT, "classes": ["a", "b"]}
    for version in (1, 2):
        network = build_network(ModelConfig(arch="enet", options={"version": version}), 2)
        model = network.config.model_dump(mode="json")
        if version == 1:
            del model["options"]["version"]  # as segkd 0.1 wrote it
        save(tmp_path / "best.pt", {**payload, "model": model, "weights": network.state_dict()})
        config = ModelConfig(arch="enet", checkpoint=str(tmp_path / "best.pt"))
        assert build_network(config, 2).config.options["version"] == version


@pytest.mark.parametrize(
    "options",
    [
        {"stages": 5},
        {"stages": "4"},
        {"share": 1},
        {"dropout": 1},
        {"dropout": True},
        {"version": 3},
        {"version": True},
    ],
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ConfigError, match=r"options\.(stages|share|dropout|version): got"):
        lane_enet(**options)


def test_weights_of_the_plain_network_keep_their_names(network):
    names = {name.split(".")[1] for name in network.state_dict() if name.startswith("encoder.")}
    assert names == {"initial", "down1", "stage1", "down2", "stage2", "stage3"}


def count_enet(num_classes, public, stages):
    """Parameters by hand; ``public`` as InhwanBae/ENet-SAD_Pytorch writes it, else ours.

    The public code has one slope per PReLU, batch norm and PReLU between the two halves of an
    asymmetric convolution, a PReLU before the sum, the inner width of down- and up-sampling from
    the input instead of the output, 2x2 up-convolutions, and a last 3x3 convolution without bias.
    ENet's authors have it our way.
    """

    def bottleneck(channels, asymmetric=False, relu=False):
        inner = channels // 4
        middle = 10 * inner**2 if asymmetric else 9 * inner**2
        halves = 2 * inner if public and asymmetric else 0
        slopes = (4 + asymmetric) if public else 2 * inner + channels
        norms = 2 * (2 * inner + channels) + halves
        return 2 * channels * inner + middle + norms + (0 if relu else slopes)

    def down(before, after):
        inner = (before if public else after) // 4
        slopes = 4 if public else 2 * inner + after
        weights = 4 * before * inner + 9 * inner**2 + inner * after
        return weights + 2 * (2 * inner + after) + slopes

    def up(before, after):
        inner = (before if public else after) // 4
        middle = (4 if public else 9) * inner**2
        branch = before * inner + middle + inner * after + 2 * (2 * inner + after)
        return before * after + 2 * after + branch

    stage = 6 * bottleneck(128) + 2 * bottleneck(128, asymmetric=True)
    early = 13 * 27 + 2 * 16 + (1 if public else 16) + down(16, 64) + 4 * bottleneck(64)
    decoder = up(256, 64) + 2 * bottleneck(64, relu=True) + up(64, 16) + bottleneck(16, relu=True)
    last = 9 * 16 * num_classes if public else 4 * 16 * num_classes + num_classes
    return early + down(64, 128) + stages * stage + decoder + last


FLAT = {"kind": "flat", "size": (288, 800)}
P1 = (128 * 5 + 5) + (5 * 18 * 50 * 128 + 128) + (128 * 4 + 4)


@pytest.mark.parametrize(("share", "published"), [(True, 817_331), (False, 1_106_423)])
def test_size_differs_from_the_public_code_by_known_details(share, published):
    """The public network without sharing holds E4's weights but computes E4 with those of E3."""
    stages = 1 if share else 3
    assert count_enet(5, True, stages) + P1 == published
    network = lane_enet(exist_head=FLAT, share=share)
    assert parameters(network) == count_enet(5, False, stages) + P1
    assert parameters(network) == pytest.approx(published, rel=0.02)


def test_imports_without_smp_and_torchvision():
    code = (
        "import sys, torch\n"
        "from segkd.config.schema import ModelConfig\n"
        "from segkd.models.build import build_network\n"
        "network = build_network(ModelConfig(arch='enet', aux_head={'tap': 'stage3'}), 4)\n"
        "network(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), ['stage2:pre'])\n"
        "import segkd.models.teacher\n"
        "heavy = {'segmentation_models_pytorch', 'torchvision', 'timm', 'cv2', 'albumentations'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
