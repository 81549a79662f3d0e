import math

import pytest
import torch
import torch.nn.functional as F

from segkd.config.schema import ModelConfig
from segkd.errors import ConfigError
from segkd.methods.base import Context, TapNames
from segkd.methods.sad import SAD, sad_loss
from segkd.models.build import build_network
from segkd.structures import Batch, Outputs


def attention(features, valid, over_channels, power, normalize):
    """One image's normalised map as a list, from loops over positions and channels."""
    values = []
    for y, x in valid.nonzero().tolist():
        sizes = [abs(a) ** power for a in features[:, y, x].tolist()]
        values.append(sum(sizes) if over_channels == "sum" else max(sizes))
    if normalize == "softmax":
        peak = max(values)
        values = [math.exp(value - peak) for value in values]
        return [value / sum(values) for value in values]
    norm = math.sqrt(sum(value**2 for value in values))
    return [value / norm for value in values]


def reference(student, target, mask, over_channels="sum", power=2.0, normalize="l2"):
    per_image = []
    for s_map, t_map, valid in zip(student, target, mask, strict=True):
        if valid.any():
            options = (valid, over_channels, power, normalize)
            q_s, q_t = (attention(a, *options) for a in (s_map, t_map))
            total = sum((s - t) ** 2 for s, t in zip(q_s, q_t, strict=True))
            per_image.append(total / len(q_s) if normalize == "softmax" else total)
    return sum(per_image) / len(per_image)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student = torch.randn(3, 4, 3, 5, generator=draw, dtype=torch.float64)
    target = torch.randn(3, 6, 3, 5, generator=draw, dtype=torch.float64)
    mask = torch.rand(3, 3, 5, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), target.requires_grad_(), mask


FORMS = [
    {"over_channels": over_channels, "power": power, "normalize": normalize}
    for over_channels, power in [("sum", 1.0), ("sum", 2.0), ("sum", 3.0), ("max", 2.0)]
    for normalize in ("l2", "softmax")
]
every_form = pytest.mark.parametrize(
    "form", FORMS, ids=lambda form: "-".join(map(str, form.values()))
)


@every_form
def test_equals_the_equation(maps, form):
    student, target, mask = maps
    value = sad_loss(student, target, mask=mask, **form)
    expected = reference(student.detach(), target.detach(), mask, **form)
    assert value.item() == pytest.approx(expected, rel=1e-9)


@every_form
def test_gradient_is_right_and_none_goes_to_the_target(maps, form):
    student, target, mask = maps
    fixed = target.detach()
    assert torch.autograd.gradcheck(lambda a: sad_loss(a, fixed, mask=mask, **form), student)
    sad_loss(student, target, mask=mask, **form).backward()
    assert target.grad is None


@every_form
def test_target_learns_too_if_it_is_not_detached(maps, form):
    student, target, mask = maps
    options = {"mask": mask, "detach": False, **form}
    assert torch.autograd.gradcheck(lambda a, b: sad_loss(a, b, **options), (student, target))
    sad_loss(student, target, **options).backward()
    assert target.grad.any()


@every_form
def test_dead_and_saturated_maps_have_a_finite_gradient(maps, form):
    _, target, mask = maps
    for scale in (0.0, 1e4):
        student = (scale * torch.ones(3, 4, 3, 5)).requires_grad_()
        value = sad_loss(student, 1e4 * target.float(), mask=mask, **form)
        value.backward()
        assert value.isfinite() and student.grad.isfinite().all()


@every_form
def test_values_at_invalid_positions_do_not_matter(maps, form):
    student, target, mask = maps
    hidden = ~mask.unsqueeze(1)
    spoiled = [m.masked_fill(hidden, 1e6) for m in (student, target)]
    expected = sad_loss(student, target, mask=mask, **form)
    torch.testing.assert_close(sad_loss(*spoiled, mask=mask, **form), expected)


@every_form
def test_empty_mask_gives_a_zero_with_a_graph(maps, form):
    student, target, mask = maps
    value = sad_loss(student, target, mask=torch.zeros_like(mask), **form)
    value.backward()
    assert value == 0 and not student.grad.any()


def test_scale_of_the_features_is_no_matter(maps):
    student, target, mask = maps
    expected = sad_loss(student, target, mask=mask)
    for scale in (1e-3, 1e4):
        torch.testing.assert_close(sad_loss(scale * student, target, mask=mask), expected)


def test_without_a_mask_all_positions_count(maps):
    student, target, mask = maps
    assert sad_loss(student, target) == sad_loss(student, target, mask=torch.ones_like(mask))


@pytest.mark.parametrize("larger", ["student", "target"])
def test_maps_are_made_before_they_are_averaged_to_the_smaller_size(larger):
    """Averaged features of alternating sign would be zero; their attention is a flat map."""
    checkers = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(1, 1, 2, 4)
    ramp, flat = torch.arange(8.0).view(1, 1, 2, 4), torch.ones(1, 1, 2, 4)
    pair = (checkers, ramp) if larger == "student" else (ramp, checkers)
    torch.testing.assert_close(sad_loss(*pair), sad_loss(flat, ramp))


def test_literal_form_at_unequal_sizes_is_the_same_as_at_the_smaller(maps):
    student, target, _ = maps
    wide = student.repeat_interleave(2, 2).repeat_interleave(2, 3)
    found = sad_loss(wide, target, normalize="softmax")
    torch.testing.assert_close(found, sad_loss(student, target, normalize="softmax"))


def test_no_map_of_the_features_size_is_kept(maps):
    student, target, mask = maps
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        sad_loss(student, target, mask=mask)
    large = [x for x in kept if x.numel() >= student.numel()]
    assert all(x.data_ptr() == student.data_ptr() for x in large)


def test_bad_options_and_masks_are_refused(maps):
    student, target, mask = maps
    with pytest.raises(ValueError, match="normalize='L2' is unknown"):
        sad_loss(student, target, normalize="L2")
    with pytest.raises(ValueError, match="over_channels='mean' is unknown"):
        sad_loss(student, target, over_channels="mean")
    with pytest.raises(ValueError, match="expected"):
        sad_loss(student, target, mask=mask[:, :2])


# -- against the public code -----------------------------------------------------------------------


def peer(student, target):
    """Softmax over positions of the summed squares, mean over everything, no detach."""
    q_s, q_t = (a.pow(2).sum(1).flatten(1).softmax(1) for a in (student, target))
    return F.mse_loss(q_s, q_t)


PEERS = {"ENet-SAD_Pytorch": peer}


def test_every_conversion_is_checked():
    assert PEERS.keys() == SAD.conversions.keys()


@pytest.mark.parametrize("name", PEERS)
def test_converted_weight_acts_as_the_peers(maps, name):
    inputs = maps[:2]
    weight = SAD.conversions[name].at(h=3, w=5)
    theirs = 0.1 * PEERS[name](*inputs)
    ours = weight * sad_loss(*inputs, normalize="softmax", detach=False)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs)
    )


# -- on ENet ---------------------------------------------------------------------------------------


def norm(value, parameters):
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(g.double().square().sum().item() for g in gradients if g is not None))


def fresh_enet(stages, seed=0):
    """A fresh ENet's outputs on random images, its loss, and weights below all learners."""
    torch.manual_seed(seed)
    network = build_network(ModelConfig(arch="enet", options={"stages": stages}), 5).train()
    images = torch.randint(0, 256, (2, 3, 96, 160), dtype=torch.uint8)
    labels = torch.randint(0, 5, (2, 96, 160))
    batch = Batch(images, labels, torch.ones_like(labels, dtype=torch.bool), torch.arange(2))
    outputs = network(images, network.tap_names())
    early = [*network.encoder.down1.parameters(), *network.encoder.stage1.parameters()]
    return (
        outputs,
        batch,
        F.cross_entropy(outputs.logits, labels),
        list(network.parameters()),
        early,
    )


@pytest.fixture(scope="module")
def enet():
    return fresh_enet(3)


@pytest.fixture(scope="module")
def lane_enet():
    """With the fourth stage, as the paper has it."""
    return fresh_enet(4)


def weighted(enet, **options):
    outputs, batch, *_ = enet
    method = SAD(SAD.Config(**options))
    terms = method.loss(outputs, None, batch, Context(batch))
    return method.config.weight * sum(term.value for term in terms.values())


PAIRS = {
    "next": [("stage3", "stage4")],
    "cross-block": [("stage2", "stage4")],
    "two": [("stage2", "stage3"), ("stage3", "stage4")],
}


@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("where", ["whole network", "early encoder"])
def test_gradient_on_a_fresh_enet_is_within_two_orders_of_the_task_loss(enet, pairs, where):
    *_, task, everything, early = enet
    parameters = everything if where == "whole network" else early
    ratio = norm(weighted(enet, pairs=pairs), parameters) / norm(task, parameters)
    assert 1e-2 < ratio < 1e2


def test_literal_form_has_practically_no_gradient_on_most_fresh_enets():
    """Its softmax picks one position, which teaches nothing; near a tie it teaches far too much."""
    shares = []
    for seed in range(5):
        network = fresh_enet(3, seed)
        *_, task, everything, _ = network
        literal = weighted(network, pairs=PAIRS["next"], normalize="softmax", detach=False)
        shares.append(norm(literal, everything) / norm(task, everything))
    assert sorted(shares)[2] < 1e-2 and min(shares) < 1e-6


@pytest.mark.parametrize("where", ["whole network", "early encoder"])
def test_default_pairs_of_the_papers_enet_teach_as_much(lane_enet, where):
    *_, task, everything, early = lane_enet
    parameters = everything if where == "whole network" else early
    ratio = norm(weighted(lane_enet), parameters) / norm(task, parameters)
    assert 1e-2 < ratio < 1e2
    literal = weighted(lane_enet, normalize="softmax", detach=False)
    assert norm(literal, parameters) < 1e-4 * norm(task, parameters)


# -- the entry -------------------------------------------------------------------------------------


def test_entry_needs_no_teacher_and_names_its_terms():
    method = SAD()
    assert method.needs.teacher == () and not method.needs.labels
    assert method.needs.student == ("stage3", "stage4", "stage5")
    assert method.taps_with_gradient == ("stage3", "stage4")
    assert SAD(SAD.Config(detach=False)).taps_with_gradient == method.needs.student


@pytest.mark.parametrize(
    ("stages", "pairs"),
    [
        ((1, 2, 3, 4, 5), [("stage3", "stage4"), ("stage4", "stage5")]),
        ((1, 2, 3, 4), [("stage2", "stage3"), ("stage3", "stage4")]),
        ((2, 3), [("stage2", "stage3")]),
        ((2, 3, 4, 5), [("stage3", "stage4"), ("stage4", "stage5")]),
    ],
)
def test_default_pairs_are_those_that_the_network_has(stages, pairs):
    method = SAD()
    method.bind_taps(TapNames((*(f"stage{k}" for k in stages), "head", "logits")), None)
    assert method.needs.student == tuple(dict.fromkeys(tap for pair in pairs for tap in pair))
    assert method.taps_with_gradient == tuple(learner for learner, _ in pairs)


def test_chosen_pairs_stay_whatever_the_network_has():
    """So a tap that is not there is an error, and nothing else is trained instead."""
    method = SAD(SAD.Config(pairs=[("stage4", "stage5")]))
    method.bind_taps(TapNames(("stage3", "stage4")), None)
    assert method.needs.student == ("stage4", "stage5")


@pytest.mark.parametrize(
    "student",
    [
        {"arch": "enet"},
        {"arch": "enet", "options": {"stages": 4, "share": True}},
        {"arch": "erfnet"},
        {"arch": "fpn", "encoder": "resnet18"},
    ],
    ids=["enet", "enet-sad", "erfnet", "smp"],
)
def test_entry_runs_on_plain_segmentation_networks(student):
    network = build_network(ModelConfig(**student), 4)
    method = SAD()
    method.bind_taps(network.named_taps(), None)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    labels = torch.zeros(2, 64, 96, dtype=torch.int64)
    batch = Batch(images, labels, labels == 0, torch.arange(2))
    outputs = network(images, method.needs.student)
    terms = method.loss(outputs, None, batch, Context(batch))
    sum(term.value for term in terms.values()).backward()
    assert terms and all(term.value > 0 and term.count == 2 for term in terms.values())
    assert any(p.grad is not None and p.grad.any() for p in network.parameters())


def test_entry_passes_its_options_on(maps):
    student, target, mask = maps
    labels = torch.zeros(mask.shape, dtype=torch.int64)
    batch = Batch(torch.zeros(3, 3, 3, 5), labels, mask, torch.arange(3))
    options = {"power": 3.0, "over_channels": "max", "normalize": "softmax", "detach": False}
    config = SAD.Config.model_validate({"pairs": [["stage2", "stage5"]], **options})
    outputs = Outputs(student, {"stage2": student, "stage5": target})
    term = SAD(config).loss(outputs, None, batch, Context(batch))["stage2_stage5"]
    assert term.value == sad_loss(student, target, mask=mask, **options)
    assert term.count == 2


@pytest.mark.parametrize(
    "pairs", [[], [("stage3", "stage3")], [("stage3", "stage4"), ("stage3", "stage4")]]
)
def test_pairs_that_mean_nothing_are_refused(pairs):
    with pytest.raises(ConfigError, match=r"expected at least one, no duplicates"):
        SAD(SAD.Config(pairs=pairs))


@pytest.mark.parametrize("bad", [{"power": 0.5}, {"normalize": "none"}, {"pairs": [["stage3"]]}])
def test_options_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="validation error"):
        SAD.Config.model_validate(bad)
