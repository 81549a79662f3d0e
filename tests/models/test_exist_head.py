"""The existence branch: on every kind of network, of any size or of one, saved and restored."""

import pytest
import torch
import torch.nn.functional as F

from segkd.config.schema import AuxHeadConfig, ExistHeadConfig, ModelConfig
from segkd.engine.run_folder import student_weights
from segkd.errors import CheckpointError, ConfigError, SegKDError
from segkd.metrics.cost import parameters
from segkd.models.build import build_network, network_from_file
from segkd.models.ensemble import Ensemble
from segkd.models.frozen import Teacher
from segkd.models.module import wrap
from segkd.models.weights import FORMAT
from segkd.structures import Outputs

K = 5
ENET = {"arch": "enet", "options": {"stages": 4}}
NETWORKS = {
    "enet": ({"arch": "enet"}, "stage4"),
    "enet-sad": (ENET, "stage5"),
    "erfnet": ({"arch": "erfnet"}, "stage4"),
    "resnet18": ({"arch": "fpn", "encoder": "resnet18"}, "stage5"),
}
FLAT = {"kind": "flat", "size": (64, 96)}


def build(exist_head, num_classes=K, **keys):
    torch.manual_seed(1)
    return build_network(ModelConfig(**(keys or ENET), exist_head=exist_head), num_classes)


def images(height=64, width=96, count=2):
    draw = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=draw)


@pytest.mark.parametrize("kind", ["pooled", "flat"])
@pytest.mark.parametrize(("keys", "tap"), NETWORKS.values(), ids=NETWORKS)
def test_every_network_answers_one_logit_per_lane(keys, tap, kind):
    network = build(FLAT if kind == "flat" else {}, **keys)
    outputs = network.train()(images())
    assert outputs.exist.shape == (2, K - 1) and not outputs.features
    assert network.exist_head.tap == tap
    outputs.exist.square().sum().backward()
    encoder = [p for name, p in network.named_parameters() if name.startswith("encoder.")]
    assert all(p.grad.any() for p in network.exist_head.parameters())
    assert any(p.grad is not None and p.grad.any() for p in encoder)


def test_without_it_there_is_none():
    assert build(None)(images()).exist is None


def test_pooled_by_hand():
    """Each lane's evidence, averaged with its own softmax over the positions, in loops."""
    network = build({"channels": 6}).eval().requires_grad_(False)
    outputs = network(images(), ["stage5"])
    branch = network.exist_head.branch
    hidden = branch.hidden(outputs.features["stage5"])
    for b in range(2):
        for lane in range(K - 1):
            scores, values = [], []
            for y in range(hidden.shape[2]):
                for x in range(hidden.shape[3]):
                    for conv, found in ((branch.attention, scores), (branch.evidence, values)):
                        weight = conv.weight[lane, :, 0, 0]
                        found.append(float(weight @ hidden[b, :, y, x] + conv.bias[lane]))
            share = torch.tensor(scores, dtype=torch.float64).softmax(0)
            expected = float(share @ torch.tensor(values, dtype=torch.float64))
            assert float(outputs.exist[b, lane]) == pytest.approx(expected, abs=1e-5)


def test_pooled_takes_any_size_and_does_not_depend_on_it():
    network = build({}).eval()
    assert network(images(32, 160)).exist.shape == (2, K - 1)
    features = torch.randn(2, 128, 5, 7)
    larger = features.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(network.exist_head(larger), network.exist_head(features))


def test_pooled_lanes_look_at_places_of_their_own():
    """A lane that one position alone shows is found, however large the image."""
    branch = build({"channels": 2}).exist_head.branch
    with torch.no_grad():
        for conv in (branch.attention, branch.evidence):
            conv.weight.zero_()
            conv.bias.zero_()
        branch.attention.weight[0, 0], branch.evidence.weight[0, 0] = 50.0, 1.0
        branch.hidden = torch.nn.Identity()
        features = torch.zeros(1, 2, 40, 100)
        features[0, 0, 30, 7] = 3.0
        found = branch(features)[0]
    assert float(found[0]) == pytest.approx(3.0, abs=1e-3) and not found[1:].any()


def test_flat_by_hand():
    """P1: conv 1x1, softmax over classes, mean of 2x2, two layers; the logit before the sigmoid."""
    network = build(FLAT).eval()
    outputs = network(images(), ["stage5"])
    conv, _, _, _, first, _, second = network.exist_head.branch
    maps = F.conv2d(outputs.features["stage5"], conv.weight, conv.bias).softmax(1)
    pooled = maps.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    expected = second(first(pooled.reshape(2, -1)).relu())
    torch.testing.assert_close(outputs.exist, expected)


@pytest.mark.parametrize(("size", "inputs"), [((288, 800), 4500), ((368, 640), 4600)])
def test_flat_has_the_published_sizes(size, inputs):
    """Inputs of the first layer on ENet at CULane's and TuSimple's sizes (LANES.md, section 1)."""
    branch = build({"kind": "flat", "size": size}).exist_head.branch
    assert branch[4].in_features == inputs


def test_flat_of_the_cropped_release():
    """The authors' Torch file reshapes to 3965 at 208x976."""
    assert build({"kind": "flat", "size": (208, 976)}).exist_head.branch[4].in_features == 3965


def test_flat_refuses_other_sizes():
    network = build(FLAT)
    with pytest.raises(SegKDError, match=r"kind flat takes images of 64x96 only.*pooled"):
        network(images(64, 128))
    network = build({**FLAT, "kind": "scnn"})
    with pytest.raises(SegKDError, match=r"with exist_head\.kind scnn takes images of 64x96 only"):
        network(images(64, 128))


@pytest.mark.parametrize("keys", [{"kind": "flat"}, {"size": (64, 96)}])
def test_size_and_kind_belong_together(keys):
    with pytest.raises(ValueError, match="kind: flat"):
        ExistHeadConfig(**keys)


@pytest.mark.parametrize(
    ("exist_head", "num_classes", "hint"),
    [
        ({"tap": "stage7"}, K, r"exist_head\.tap: there is no tap 'stage7'"),
        ({"kind": "flat", "size": (60, 96)}, K, r"exist_head\.size: .*multiples of 8"),
        ({"kind": "flat", "size": (8, 96)}, K, r"exist_head\.size: .*1x12"),
        ({}, 1, "no lane"),
    ],
)
def test_what_cannot_be_built_says_why(exist_head, num_classes, hint):
    with pytest.raises(ConfigError, match=hint):
        build(exist_head, num_classes)


def test_networks_of_one_size_take_no_other():
    network = build(None)
    network.fixed_size = (32, 32)
    with pytest.raises(ConfigError, match=r"exist_head\.size: .*\[32, 32\] only"):
        network.add_exist_head(ExistHeadConfig(**FLAT))


def test_a_module_of_the_callers_own():
    flat = torch.nn.Conv2d(3, K, 1)
    with pytest.raises(ConfigError, match=r"exist_head\.tap: the network names no stage"):
        wrap(flat, K).add_exist_head(ExistHeadConfig())
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.nn.ReLU())
    module.append(torch.nn.Conv2d(4, K, 1))
    for taps, tap in (({"stage2": "1"}, "stage2"), ({}, "stage1")):
        network = wrap(module, K, taps=taps)
        network.add_exist_head(ExistHeadConfig())
        assert network(images()).exist.shape == (2, K - 1)
        assert network.exist_head.tap == tap


def saved(tmp_path, network):
    model = network.config.model_copy(update={"aux_head": None}).model_dump(mode="json")
    classes = ["background", *(f"lane {n}" for n in range(1, K))]
    payload = {"format": FORMAT, "model": model, "weights": student_weights(network)}
    torch.save(payload | {"classes": classes, "ignore_index": 255}, tmp_path / "best.pt")
    return str(tmp_path / "best.pt")


@pytest.mark.parametrize("exist_head", [{}, FLAT], ids=["pooled", "flat"])
def test_it_is_part_of_the_student(tmp_path, exist_head):
    network = build(exist_head)
    path = saved(tmp_path, network)
    expected = network.eval()(images()).exist
    assert torch.equal(network_from_file(path)[0](images()).exist, expected)
    for keys in ({"arch": ""}, ENET, {**ENET, "exist_head": exist_head}):
        again = build_network(ModelConfig(**keys, checkpoint=path), K).eval()
        assert torch.equal(again(images()).exist, expected)
    without = parameters(build(None))
    assert parameters(network) == without + parameters(network.exist_head)


def test_a_file_with_another_branch_is_refused(tmp_path):
    path = saved(tmp_path, build({}))
    config = ModelConfig(**ENET, exist_head=FLAT, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"exist_head '\{kind: pooled, channels: 128\}'"):
        build_network(config, K)


def test_beside_an_auxiliary_head_and_taps():
    network = build({"tap": "stage4"})
    config = network.config.model_copy(update={"aux_head": AuxHeadConfig(tap="stage3")})
    both = build_network(config, K).train()
    outputs = both(images(), ["stage4", "logits"])
    assert set(outputs.features) == {"stage4"} and set(outputs.aux) == {"aux"}
    assert outputs.exist.shape == (2, K - 1)
    assert both.group_of("exist_head.branch.evidence.weight") == "decoder"


def test_teachers_answer_it_and_ensembles_the_mean_probability():
    teacher = Teacher(build({}), ["stage5"])
    assert not teacher(images()).exist.requires_grad
    logits = torch.zeros(2, K, 4, 6)
    first, second = torch.tensor([[0.0, 2.0, -90, 90]]), torch.tensor([[1.0, -1.0, -90, 90]])
    ensemble = Ensemble(("a", "b"))
    parts = [Outputs(logits, exist=first), Outputs(logits, exist=second)]
    joined = ensemble.combined(parts, None).exist
    expected = (first.sigmoid() + second.sigmoid()) / 2
    assert joined.isfinite().all()
    torch.testing.assert_close(joined.sigmoid(), expected, rtol=0, atol=2e-6)
    assert ensemble.combined([parts[0], Outputs(logits)], None).exist is None


def test_exported_program_equals_the_network():
    """No control flow depends on values: a traced program answers the same for other images."""
    network = build({}).eval()

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, pictures):
            outputs = self.network(pictures)
            return outputs.logits, outputs.exist

    with torch.no_grad():
        network(images())
        program = torch.export.export(Plain(), (images(),), strict=False).module()
        other = images().flip(3)
        for found, expected in zip(program(other), Plain()(other), strict=True):
            torch.testing.assert_close(found, expected)
