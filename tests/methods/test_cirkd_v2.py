"""The second version of cirkd: channels, their bank, and a hint after graph reasoning."""

import math

import pytest
import torch
import torch.nn.functional as F
from resuming import same, states, stop_after
from toy_run import teacher_net, toy_config

from segkd.engine.run import train_run
from segkd.errors import ConfigError, Interrupted
from segkd.explain import explain
from segkd.methods.base import BuildContext, Context, TapInfo
from segkd.methods.cirkd import CIRKD
from segkd.structures import Batch, Outputs

F64 = torch.float64
C_S, C_T, CLASSES, T = 4, 6, 3, 0.1
TERMS = ("channel", "channel_memory", "channel_distance", "feature")
ALL = {*TERMS, "minibatch", "pixel_memory", "region_memory"}
SMALL = {"pixel_queue": 60, "region_queue": 8, "pixel_keys": 30, "region_keys": 9}
SMALL |= {"channel_queue": 40, "channels_per_step": 10, "channel_keys": 15}
SMALL |= {"bank_dtype": "float32", "channel_grid": (2, 3)}


def built(**keys):
    torch.manual_seed(0)
    method = CIRKD(CIRKD.Config(**{"version": 2, **SMALL, **keys}))
    taps = {"head": TapInfo(C_S, 8)}, {"head": TapInfo(C_T, 8)}
    method.build(BuildContext(*taps, CLASSES))
    return method.double()


def only(*terms):
    return {"weights": dict.fromkeys(ALL, 0) | dict.fromkeys(terms, 1)}


@pytest.fixture
def case():
    """Outputs of both networks, and a batch whose second image is all padding."""
    draw = torch.Generator().manual_seed(7)
    student = torch.randn(3, C_S, 4, 6, generator=draw, dtype=F64).requires_grad_()
    teacher = torch.randn(3, C_T, 4, 6, generator=draw, dtype=F64)
    labels = torch.randint(CLASSES, (3, 4, 6), generator=draw)
    inside = torch.ones(3, 4, 6, dtype=torch.bool)
    inside[0, :2, :2], inside[0, 3, 5], inside[1] = False, False, False
    pixels = torch.zeros(3, 3, 4, 6, dtype=torch.uint8)
    batch = Batch(pixels, labels, inside, torch.arange(3))
    logits = torch.zeros(3, CLASSES, 4, 6)
    return Outputs(logits, {"head": student}), Outputs(logits, {"head": teacher}), batch


def context(batch, seed=0):
    generators = [torch.Generator().manual_seed(seed + int(index)) for index in batch.index]
    generator = torch.Generator().manual_seed(seed)
    return Context(batch, generator=generator, image_generators=generators)


def terms_of(method, case, seed=0):
    return method.loss(*case, context(case[2], seed))


# -- the equations ---------------------------------------------------------------------------------


def cells(maps, inside):
    """Means of the 2x2 positions of each cell, (B, C, 6), and whether a cell has any valid one."""
    means = torch.zeros(len(maps), maps.shape[1], 6, dtype=F64)
    known = torch.zeros(len(maps), 6, dtype=torch.bool)
    for b in range(len(maps)):
        for number, (y, x) in enumerate((y, x) for y in (0, 2) for x in (0, 2, 4)):
            places = [(i, j) for i in (y, y + 1) for j in (x, x + 1) if inside[b, i, j]]
            if places:
                known[b, number] = True
                means[b, :, number] = sum(maps[b, :, i, j] for i, j in places) / len(places)
    return means, known


def channel_vectors(method, case):
    """Per image with a valid cell: unit vectors of the student's projected channels and teacher's.

    Each is a list of C_t tensors over the cells.
    """
    student, teacher, batch = case
    own, known = cells(student.features["head"].detach(), batch.not_padding)
    theirs, _ = cells(teacher.features["head"], batch.not_padding)
    found = []
    for b in range(len(own)):
        if not known[b].any():
            continue
        projected = torch.zeros(C_T, 6, dtype=F64)
        for n in known[b].nonzero().flatten().tolist():
            with torch.no_grad():
                projected[:, n] = method.channels.projector(own[b, :, n][None])[0]
        pair = (projected, theirs[b])
        found.append([[row / row.square().sum().sqrt() for row in side] for side in pair])
    return found


def divergence(anchor_s, keys_s, anchor_t, keys_t):
    """Σ_n p_t log(p_t / p_s) of one anchor."""
    rows = []
    for anchor, keys in ((anchor_s, keys_s), (anchor_t, keys_t)):
        powers = [math.exp((anchor @ key).item() / T) for key in keys]
        rows.append([power / sum(powers) for power in powers])
    return sum(t * math.log(t / s) for s, t in zip(*rows, strict=True))


def mean(values):
    return sum(values) / len(values)


def test_channels_relate_to_those_of_all_images(case):
    method = built(**only("channel"))
    ((name, term),) = terms_of(method, case).items()
    images = channel_vectors(method, case)
    values = [
        divergence(s, other[0], t, other[1])
        for image in images
        for other in images
        for s, t in zip(*image, strict=True)
    ]
    assert name == "channel" and term.count == len(values) == 2 * 2 * C_T
    assert term.value.item() == pytest.approx(mean(values), rel=1e-9)


def test_channels_relate_to_the_bank(case):
    method = built(**only("channel_memory"))
    method.after_step(*case, context(case[2]))
    ((name, term),) = terms_of(method, case, seed=4).items()
    generator = torch.Generator().manual_seed(4)
    keys, known = method.channels.queue.sample(15, generator)
    assert name == "channel_memory" and known.all() and len(keys) == 15
    values = [
        divergence(s, keys, t, keys)
        for image in channel_vectors(method, case)
        for s, t in zip(*image, strict=True)
    ]
    assert term.count == len(values) == 2 * C_T
    assert term.value.item() == pytest.approx(mean(values), rel=1e-6)


def test_channels_are_compared_one_by_one(case):
    method = built(**only("channel_distance"))
    ((name, term),) = terms_of(method, case).items()
    values = [
        sum((a - b) ** 2 for a, b in zip(s.tolist(), t.tolist(), strict=True))
        for image in channel_vectors(method, case)
        for s, t in zip(*image, strict=True)
    ]
    assert name == "channel_distance" and term.count == len(values) == 2 * C_T
    assert term.value.item() == pytest.approx(mean(values), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_channels_start_with_the_sign_of_a_teacher_with_relu(case, seed):
    student, teacher, batch = case
    sides = [Outputs(o.logits, {"head": o.features["head"].abs()}) for o in (student, teacher)]
    torch.manual_seed(seed)
    method = CIRKD(CIRKD.Config(version=2, **SMALL, **only("channel_distance")))
    taps = {"head": TapInfo(C_S, 8)}, {"head": TapInfo(C_T, 8)}
    method.build(BuildContext(*taps, CLASSES))
    assert terms_of(method.double(), (*sides, batch))["channel_distance"].value < 1


def test_the_hint_is_after_graph_reasoning_in_units_of_the_teacher(case):
    method = built(**only("feature"))
    ((name, term),) = terms_of(method, case).items()
    student, teacher, batch = case
    inside = batch.not_padding
    target = teacher.features["head"]
    unit = (
        mean([target[b, :, y, x].square().mean() for b, y, x in inside.nonzero().tolist()]) ** 0.5
    )
    values = []
    with torch.no_grad():
        reasoned = method.reasoning(student.features["head"] / unit, inside)
        weight = method.adapter.weight[:, :, 0, 0]
        for b, y, x in inside.nonzero().tolist():
            difference = weight @ reasoned[b, :, y, x] - target[b, :, y, x] / unit
            values.append(difference.square().mean().item())
    assert name == "feature" and term.count == len(values)
    assert term.value.item() == pytest.approx(mean(values), rel=1e-9)


def test_its_result_takes_the_place_of_the_features_in_all_terms(case):
    plain, reasoned = built(**only("minibatch")), built(**only("minibatch", "feature"))
    student, teacher, batch = case
    unit = teacher.features["head"].movedim(1, -1)[batch.not_padding].square().mean().sqrt()
    maps = reasoned.reasoning(student.features["head"] / unit, batch.not_padding).detach()
    expected = terms_of(plain, (Outputs(student.logits, {"head": maps}), teacher, batch))
    found = terms_of(reasoned, case)
    torch.testing.assert_close(found["minibatch"].value, expected["minibatch"].value)
    assert not torch.isclose(found["minibatch"].value, terms_of(plain, case)["minibatch"].value)


# -- the bank --------------------------------------------------------------------------------------


def test_the_bank_holds_random_channels_of_the_teacher_from_earlier_steps(case):
    method = built(**only("channel_memory"))
    first = terms_of(method, case)["channel_memory"]
    assert first.count == 0 and first.value == 0 and first.value.requires_grad
    every = [t for image in channel_vectors(method, case) for t in image[1]]
    queue, stored = method.channels.queue, []
    for step in range(6):
        before = int(queue.written)
        method.after_step(*case, context(case[2], 10 * step))
        for slot in range(before, int(queue.written)):
            vector = queue.entries[0, slot % 40].double()
            distances = [(vector - one).abs().max().item() for one in every]
            assert min(distances) < 1e-6
            stored.append(distances.index(min(distances)))
        assert 0 < int(queue.written) - before <= 10  # of 18 channels, a third is of padding
    assert int(queue.written) > 40 - 10 and set(stored) == set(range(2 * C_T))


def test_a_bank_smaller_than_one_update_is_refused():
    with pytest.raises(ConfigError, match=r"channel_queue=40 is smaller.*channels_per_step=41"):
        built(channels_per_step=41)


def test_crops_of_another_size_fit_the_bank(case):
    method = built()
    method.after_step(*case, context(case[2]))
    *networks, batch = case
    sides = [Outputs(o.logits, {"head": o.features["head"][:, :, :3, :5]}) for o in networks]
    batch = Batch(
        batch.images[:, :, :3, :5],
        batch.labels[:, :3, :5],
        batch.not_padding[:, :3, :5],
        batch.index,
    )
    terms = terms_of(method, (*sides, batch))
    assert terms.keys() == ALL and all(term.value.isfinite() for term in terms.values())


# -- keys ------------------------------------------------------------------------------------------


def test_the_first_version_is_unchanged_and_the_second_has_all_terms(case):
    first, second = CIRKD(), built()
    assert {n for n, w in first.default_weights.items() if w} == ALL - set(TERMS)
    assert not any("scale" in name or "channel" in name for name in first.state_dict())
    assert terms_of(second, case).keys() == ALL
    assert second.default_weights == {
        "minibatch": 1,
        "pixel_memory": 0.1,
        "region_memory": 0.1,
        "channel": 1,
        "channel_memory": 0.1,
        "channel_distance": 0.2,
        "feature": 1,
    }
    assert CIRKD(CIRKD.Config(version=2)).grid == (16, 32) and CIRKD().grid is None
    bank = CIRKD.Config(weights={"channel_memory": 0.1})
    assert CIRKD(bank).grid == (16, 32)
    text = explain("cirkd")
    assert "version" in text and "channel_distance" in text


def peer_terms(student, teacher, keys):
    """The public code's other terms on projected, pooled features: mean square, and bank."""
    student, teacher = (F.normalize(x.flatten(2), dim=2).flatten(0, 1) for x in (student, teacher))
    rows = [x @ keys.T / T for x in (student, teacher)]
    memory = F.kl_div(rows[0].log_softmax(1), rows[1].softmax(1), reduction="batchmean")
    return ((student - teacher) ** 2).mean(), memory


def test_converted_weights_act_as_the_peers(case):
    student, teacher, batch = case
    batch = batch.replace(not_padding=torch.ones_like(batch.not_padding))
    case = student, teacher, batch
    method = built(scale="none")
    method.after_step(*case, context(batch))
    terms = terms_of(method, case)
    with torch.no_grad():
        maps = method.reasoning(student.features["head"], batch.not_padding)
        pooled, target = (F.avg_pool2d(x, 2) for x in (maps, teacher.features["head"]))
        projected = method.channels.projector(pooled.movedim(1, -1)).movedim(-1, 1)
        hint = (method.adapter(maps) - teacher.features["head"]).square().mean()
    generator = context(batch).generator
    for _ in method.bank.sample(Context(batch, generator=generator)):
        pass  # pixels and regions are drawn first
    keys = method.channels.queue.sample(15, generator)[0].double()
    square, memory = peer_terms(projected, target, keys)
    # The code pools 4x4 positions, so there are h·w/16 nodes; here it is 2x2.
    size = {"h": 4 * 2, "w": 6 * 2}
    peers = {
        "CIRKD v2 channel MSE": (100 * square, "channel_distance", size),
        "CIRKD v2 channel memory": (0.1 * memory, "channel_memory", {}),
        "CIRKD v2 FitNet": (hint, "feature", {}),
    }
    for peer, (theirs, term, sizes) in peers.items():
        ours = CIRKD.conversions[peer].at(**sizes) * terms[term].value
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-9)
    usual = CIRKD.conversions["CIRKD v2 channel MSE"].at(h=64, w=128)
    assert usual == pytest.approx(method.default_weights["channel_distance"], rel=0.03)


# -- a run -----------------------------------------------------------------------------------------


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch):
    methods = {"cirkd": {"version": 2, **SMALL, "pixels_per_class": 3, "bank_dtype": "bfloat16"}}
    whole, parts = (toy_config(tmp_path / name, methods=methods) for name in ("whole", "parts"))
    train_run(whole, teachers={"main": teacher_net()})
    stop_after(monkeypatch, 4)
    with pytest.raises(Interrupted):
        train_run(parts, teachers={"main": teacher_net()})
    monkeypatch.undo()
    train_run(parts, teachers={"main": teacher_net()})
    found = states(tmp_path / "parts")
    same(found, states(tmp_path / "whole"))
    assert int(found["objective"]["methods.cirkd.channels.queue.written"]) > 40
