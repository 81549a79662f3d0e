import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from segkd.errors import ConfigError
from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.cirkd import CIRKD, cirkd_loss
from segkd.structures import Batch, Outputs

CLASSES, T = 3, 0.1
F64 = torch.float64
TERMS = ("minibatch", "pixel_memory", "region_memory", "channel", "channel_memory")
TERMS += ("channel_distance", "feature")
ALONE = {term: dict.fromkeys(TERMS, 0) | {term: 1} for term in TERMS}


def divergence(anchor_s, keys_s, anchor_t, keys_t):
    """Σ_n p_t log(p_t / p_s) of one anchor, from vectors of any length."""
    rows = []
    for anchor, keys in ((anchor_s, keys_s), (anchor_t, keys_t)):
        exps = [math.exp(F.cosine_similarity(anchor, key, dim=0).item() / T) for key in keys]
        rows.append([value / sum(exps) for value in exps])
    return sum(p_t * math.log(p_t / p_s) for p_s, p_t in zip(*rows, strict=True))


def reference(student, teacher, mask):
    """The mini-batch term: every valid anchor with the valid positions of every image."""
    values = []
    for i, own in enumerate(mask):
        for j, other in enumerate(mask):
            if not other.any():
                continue
            keys = student[j][:, other].T, teacher[j][:, other].T
            for s, t in zip(student[i][:, own].T, teacher[i][:, own].T, strict=True):
                values.append(divergence(s, keys[0], t, keys[1]))
    return sum(values) / len(values)


@pytest.fixture
def maps():
    draw = torch.Generator().manual_seed(7)
    student = torch.randn(3, 4, 3, 4, generator=draw, dtype=F64)
    teacher = torch.randn(3, 6, 3, 4, generator=draw, dtype=F64)
    mask = torch.rand(3, 3, 4, generator=draw) > 0.3
    mask[1] = False
    return student.requires_grad_(), teacher, mask


def test_equals_the_equation(maps):
    student, teacher, mask = maps
    value = cirkd_loss(student, teacher, mask=mask, temperature=T)
    assert value.item() == pytest.approx(reference(student.detach(), teacher, mask), rel=1e-10)


def test_gradient_is_right(maps):
    student, teacher, mask = maps
    assert torch.autograd.gradcheck(
        lambda s: cirkd_loss(s, teacher, mask=mask, temperature=0.5), student
    )


def test_without_a_mask_all_positions_count(maps):
    student, teacher, mask = maps
    assert cirkd_loss(student, teacher) == cirkd_loss(student, teacher, mask=torch.ones_like(mask))


def test_one_image_relates_to_itself(maps):
    student, teacher, _ = maps
    value = cirkd_loss(student[:1], teacher[:1])
    expected = reference(student[:1].detach(), teacher[:1], torch.ones(1, 3, 4, dtype=torch.bool))
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_lengths_of_vectors_do_not_matter(maps):
    student, teacher, mask = maps
    scale = torch.rand(3, 1, 3, 4, dtype=F64) + 0.5
    torch.testing.assert_close(
        cirkd_loss(student * scale, teacher / scale, mask=mask),
        cirkd_loss(student, teacher, mask=mask),
    )


def test_a_student_that_is_its_teacher_has_nothing_to_learn(maps):
    _, teacher, mask = maps
    student = teacher.clone().requires_grad_()
    value = cirkd_loss(student, teacher, mask=mask)
    value.backward()
    assert abs(value.item()) < 1e-12 and student.grad.abs().max() < 1e-12


# -- the method ------------------------------------------------------------------------------------


def built(**keys):
    torch.manual_seed(0)
    sizes = {"pixel_queue": 60, "region_queue": 8, "pixel_keys": 30, "region_keys": 9}
    keys = {**sizes, "bank_dtype": "float32", **keys}
    method = CIRKD(CIRKD.Config(**keys))
    method.build(BuildContext({"head": TapInfo(4, 8)}, {"head": TapInfo(6, 8)}, CLASSES))
    return method.double()


def case(maps):
    student, teacher, mask = maps
    labels = torch.randint(CLASSES, mask.shape, generator=torch.Generator().manual_seed(2))
    labels = labels.masked_fill(~mask, 255)
    pixels = torch.zeros(3, 3, 3, 4, dtype=torch.uint8)
    batch = Batch(pixels, labels, torch.ones_like(mask), torch.arange(3))
    logits = torch.zeros(3, CLASSES, 3, 4)
    return Outputs(logits, {"head": student}), Outputs(logits, {"head": teacher}), batch


def context(batch, seed=0):
    generators = [torch.Generator().manual_seed(seed + int(index)) for index in batch.index]
    return Context(
        batch, generator=torch.Generator().manual_seed(seed), image_generators=generators
    )


def test_minibatch_term_is_the_function(maps):
    student, teacher, batch = case(maps)
    method = built()
    term = method.loss(student, teacher, batch, context(batch))["minibatch"]
    assert term.value == cirkd_loss(*maps[:2], mask=maps[2])
    assert term.count == maps[2].sum() * 2  # the second image has no valid position


@pytest.mark.parametrize("kind", ["pixel", "region"])
def test_memory_terms_equal_the_loop_over_keys(maps, kind):
    student, teacher, batch = case(maps)
    method = built(weights=ALONE[f"{kind}_memory"])
    method.after_step(student, teacher, batch, context(batch))
    ((name, term),) = method.loss(student, teacher, batch, context(batch)).items()
    ((_, keys, known),) = method.bank.sample(context(batch))
    assert name == f"{kind}_memory" and known.any()
    values = []
    with torch.no_grad():
        for s_map, t_map, own in zip(*maps, strict=True):
            for s, t in zip(method.projector(s_map[:, own].T), t_map[:, own].T, strict=True):
                values.append(divergence(s, keys[known], t, keys[known]))
    assert term.value.item() == pytest.approx(sum(values) / len(values), rel=1e-8)
    assert term.count == len(values)


def test_banks_start_empty_and_hold_nothing_of_the_same_step(maps):
    student, teacher, batch = case(maps)
    method = built()
    terms = method.loss(student, teacher, batch, context(batch))
    for name in ("pixel_memory", "region_memory"):
        assert terms[name].count == 0 and terms[name].value == 0 and terms[name].value.requires_grad
    assert not any(queue.written.any() for queue in (method.bank.pixel, method.bank.region))


@pytest.mark.parametrize("term", ALONE)
def test_each_term_works_alone_and_others_cost_nothing(maps, term):
    student, teacher, batch = case(maps)
    method = built(weights=ALONE[term])
    method.after_step(student, teacher, batch, context(batch))
    assert method.loss(student, teacher, batch, context(batch)).keys() == {term}
    kind = term.removesuffix("_memory")
    assert method.needs.labels == (term in ("pixel_memory", "region_memory"))
    state = method.state_dict()
    parts = {name.split(".")[1] for name in state if name.startswith("bank.")}
    assert parts == {kind} & {"pixel", "region"}
    assert any(name.startswith("channels.queue") for name in state) == (term == "channel_memory")
    assert bool(list(method.parameters())) == (term != "minibatch")


def test_mini_batch_alone_needs_no_labels(maps):
    student, teacher, batch = case(maps)
    batch = batch.replace(labels=None)
    method = built(weights=ALONE["minibatch"])
    method.after_step(student, teacher, batch, context(batch))
    assert method.loss(student, teacher, batch, context(batch))["minibatch"].value > 0


def test_channel_term_equals_the_loop_over_channels(maps):
    student, teacher, batch = case(maps)
    method = built(weights=ALONE["channel"])
    ((name, term),) = method.loss(student, teacher, batch, context(batch)).items()
    values = []
    with torch.no_grad():
        projected = method.projector(maps[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        own, taught = ((x * maps[2].unsqueeze(1)).flatten(2) for x in (projected, maps[1]))
        for i in (0, 2):  # the second image has no valid position
            for j in (0, 2):
                values += [
                    divergence(s, own[j], t, taught[j])
                    for s, t in zip(own[i], taught[i], strict=True)
                ]
    assert name == "channel" and term.count == len(values) == 24
    assert term.value.item() == pytest.approx(sum(values) / len(values), rel=1e-8)


def test_all_weights_zero_is_refused():
    with pytest.raises(ConfigError, match="all of its weights are 0"):
        built(weights=dict.fromkeys(ALONE, 0))


@pytest.mark.parametrize("pool", [2, (2, 3)])
def test_pooled_nodes_are_means_of_valid_positions(maps, pool):
    student, teacher, batch = case(maps)
    mask = maps[2].unsqueeze(1).double()
    rows = [(0, 2), (2, 3)] if pool == 2 else [(0, 2), (1, 3)]
    columns = [(0, 2), (2, 4)] if pool == 2 else [(0, 2), (1, 3), (2, 4)]
    pooled = []
    for values in maps[:2]:
        means = [
            (values * mask)[:, :, top:bottom, left:right].sum((2, 3))
            / mask[:, :, top:bottom, left:right].sum((2, 3)).clamp(min=1)
            for top, bottom in rows
            for left, right in columns
        ]
        pooled.append(torch.stack(means, dim=2).unflatten(2, (len(rows), len(columns))))
    keep = pooled[1].any(1)
    term = built(pool=pool).loss(student, teacher, batch, context(batch))["minibatch"]
    torch.testing.assert_close(term.value, cirkd_loss(*pooled, mask=keep))
    assert term.count == keep.sum() * 2


@pytest.mark.parametrize("pool", [5, (4, 2)])
def test_pooling_larger_than_the_map_is_refused(maps, pool):
    student, teacher, batch = case(maps)
    with pytest.raises(ConfigError, match=r"cirkd: pool .* 3x4"):
        built(pool=pool).loss(student, teacher, batch, context(batch))


def test_larger_maps_than_positions_are_averaged_over_windows(maps):
    student, teacher, batch = case(maps)
    value = {
        positions: built(positions=positions)
        .loss(student, teacher, batch, context(batch))["minibatch"]
        .value
        for positions in (None, 12, 11, 4)
    }
    pooled = built(pool=2).loss(student, teacher, batch, context(batch))["minibatch"].value
    assert value[None] == value[12] != value[11]  # 3x4 positions
    assert value[11] == value[4] == pooled


def test_scope_device_relates_the_images_of_one_process(maps):
    student, teacher, batch = case(maps)

    def twice(nodes):  # as if another process had the same images
        return torch.cat([nodes, nodes])

    given = context(batch)
    everywhere = Context(
        batch,
        generator=given.generator,
        image_generators=given.image_generators,
        gather=twice,
    )
    of_grid = {"channel_grid": (2, 2)}
    for term, keys in (("minibatch", {}), ("channel", {}), ("channel", of_grid)):
        keys = {"weights": ALONE[term], **keys}
        found = {}
        for scope in ("global", "device"):
            terms = built(scope=scope, **keys).loss(student, teacher, batch, everywhere)
            found[scope] = terms[term]
        alone = built(**keys).loss(student, teacher, batch, given)[term]
        assert found["device"].count == alone.count
        assert found["device"].value == alone.value
        assert found["global"].count == 2 * alone.count


def test_as_many_anchors_as_nodes_are_all_nodes(maps):
    student, teacher, batch = case(maps)
    full, sampled = (
        method.loss(student, teacher, batch, context(batch))
        for method in (filled(maps, anchors=None), filled(maps, anchors=12))
    )
    for name, term in full.items():
        torch.testing.assert_close(sampled[name].value, term.value)
        assert sampled[name].count == term.count


def filled(maps, **keys):
    student, teacher, batch = case(maps)
    method = built(**keys)
    method.after_step(student, teacher, batch, context(batch))
    return method


def test_sampled_anchors_are_random_and_right_on_average(maps):
    student, teacher, batch = case(maps)
    method = built(anchors=2, weights=ALONE["minibatch"])
    drawn = [
        method.loss(student, teacher, batch, context(batch, 10 * seed))["minibatch"]
        for seed in range(400)
    ]
    values = torch.stack([term.value.detach() for term in drawn])
    assert drawn[0].count == 8 and len(values.unique()) > 20
    per_image = [whole_image_mean(maps, image) for image in (0, 2)]
    assert values.mean().item() == pytest.approx(sum(per_image) / 2, rel=0.05)


def whole_image_mean(maps, image):
    """The mean over the anchors of one image and the keys of all."""
    student, teacher, mask = (values.detach() for values in maps)
    values = []
    for other in (0, 2):
        keys = student[other][:, mask[other]].T, teacher[other][:, mask[other]].T
        anchors = student[image][:, mask[image]].T, teacher[image][:, mask[image]].T
        values += [divergence(s, keys[0], t, keys[1]) for s, t in zip(*anchors, strict=True)]
    return sum(values) / len(values)


@pytest.mark.parametrize(
    "keys", [{"pool": 0}, {"anchors": 0}, {"pool": (2, 0)}, {"temperature": 0}]
)
def test_impossible_options_are_refused(keys):
    with pytest.raises(ValidationError):
        CIRKD.Config(**keys)


# -- published weights -----------------------------------------------------------------------------


def peer_minibatch(student, teacher):
    """The public double loop: KLDivLoss by batchmean per pair, over the number of pairs."""
    student, teacher = (F.normalize(x, dim=1).flatten(2) for x in (student, teacher))
    total = 0
    for i in range(len(student)):
        for j in range(len(student)):
            rows_s, rows_t = (x[i].T @ x[j] / T for x in (student, teacher))
            total += F.kl_div(rows_s.log_softmax(1), rows_t.softmax(1), reduction="batchmean")
    return total / len(student) ** 2


def peer_channels(student, teacher):
    """The second version, for projected maps: the double loop over channels by space."""
    student, teacher = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))
    total = 0
    for i in range(len(student)):
        for j in range(len(student)):
            rows_s, rows_t = (x[i] @ x[j].T / T for x in (student, teacher))
            total += F.kl_div(rows_s.log_softmax(1), rows_t.softmax(1), reduction="batchmean")
    return total / len(student) ** 2


def peer_memory(student, teacher, keys):
    """The public form for projected anchors: batchmean over pixels, T² with T = 1."""
    rows = [
        F.normalize(x, dim=1).permute(0, 2, 3, 1).flatten(0, 2) @ keys.T / T
        for x in (student, teacher)
    ]
    return F.kl_div(rows[0].log_softmax(1), rows[1].softmax(1), reduction="batchmean")


def test_converted_weights_act_as_the_peers(maps):
    maps = (*maps[:2], torch.ones_like(maps[2]))
    student, teacher, batch = case(maps)
    method = filled(maps, weights={"channel": 1})
    terms = method.loss(student, teacher, batch, context(batch))
    with torch.no_grad():
        projected = method.projector(maps[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    peers = {
        "CIRKD mini-batch": (1, peer_minibatch(*maps[:2]), "minibatch"),
        "CIRKD v2 channels": (1, peer_channels(projected, maps[1]), "channel"),
    }
    for kind, keys, known in method.bank.sample(context(batch)):
        value = peer_memory(projected, maps[1], keys[known])
        peers[f"CIRKD {kind} memory"] = (0.1, value, f"{kind}_memory")
    second = {"CIRKD v2 channel memory", "CIRKD v2 channel MSE", "CIRKD v2 FitNet"}
    assert peers.keys() == CIRKD.conversions.keys() - second  # test_cirkd_v2.py has these
    for peer, (published, value, term) in peers.items():
        weight = CIRKD.conversions[peer].at()
        torch.testing.assert_close(published * value, weight * terms[term].value)
        assert CIRKD(CIRKD.Config(version=2)).default_weights[term] == weight
