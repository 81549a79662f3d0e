"""Several teachers as one, against loops over pixels; what is drawn, and what then runs."""

import math

import pytest
import torch
from toy_run import CLASSES, teacher_net

from segkd.config.schema import ClassMap, TeacherConfig
from segkd.models.class_map import class_matrix
from segkd.models.ensemble import Ensemble, loss_weights
from segkd.models.frozen import Teacher
from segkd.models.teacher import Teachers, build_teachers
from segkd.runtime import generator
from segkd.structures import Batch, Outputs

B, K, H, W = 2, 3, 3, 4
VOID = 255


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return [Outputs(3 * torch.randn(B, K, H, W, dtype=torch.float64)) for _ in range(3)]


@pytest.fixture
def labels():
    found = torch.randint(0, K, (B, H, W), generator=torch.Generator().manual_seed(1))
    found[0, 0, :2] = VOID
    return found


def by_loss_slow(parts, labels, temperature):
    """log Σ_t w_t p_t with w = softmax over teachers of −cross-entropy / τ, pixel by pixel."""
    found = torch.empty(B, K, H, W, dtype=torch.float64)
    for b in range(B):
        for i in range(H):
            for j in range(W):
                shares = [part.logits[b, :, i, j].softmax(0).tolist() for part in parts]
                label = int(labels[b, i, j])
                scores = [0.0] * len(parts)
                if label < K:
                    scores = [math.log(p[label]) / temperature for p in shares]
                powers = [math.exp(score) for score in scores]
                weights = [power / sum(powers) for power in powers]
                for k in range(K):
                    mean = sum(w * p[k] for w, p in zip(weights, shares, strict=True))
                    found[b, k, i, j] = math.log(mean)
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_weights_by_the_loss_at_each_pixel(parts, labels, temperature):
    ensemble = Ensemble(("a", "b", "c"), "by_loss", temperature)
    outputs = ensemble.combined(parts, labels)
    assert outputs.kind == "log_prob"
    torch.testing.assert_close(outputs.logits, by_loss_slow(parts, labels, temperature))


def test_the_temperature_goes_from_the_best_teacher_to_the_mean(parts, labels):
    shares = [part.logits.softmax(1) for part in parts]
    known = labels != VOID
    target = labels.where(known, 0)[:, None]
    own = torch.stack([share.gather(1, target)[:, 0] for share in shares])
    cold, warm = (loss_weights(shares, labels, temperature=t) for t in (1e-4, 1e6))
    assert torch.equal(cold.argmax(0)[known], own.argmax(0)[known])
    assert (cold.max(0).values[known] > 0.999).all()
    torch.testing.assert_close(warm, torch.full_like(warm, 1 / 3), rtol=1e-4, atol=0)
    torch.testing.assert_close(cold[:, ~known], torch.full_like(cold[:, ~known], 1 / 3))


def test_without_labels_every_teacher_counts_the_same(parts, labels):
    mean = Ensemble(("a", "b", "c")).combined(parts, None).logits
    by_loss = Ensemble(("a", "b", "c"), "by_loss")
    torch.testing.assert_close(by_loss.combined(parts, None).logits, mean)
    void = torch.full_like(labels, VOID)
    torch.testing.assert_close(by_loss.combined(parts, void).logits, mean)


def test_a_certain_and_wrong_teacher_has_no_say_and_no_nan(parts, labels):
    right = torch.nn.functional.one_hot(labels.where(labels != VOID, 0), K).movedim(3, 1) * 400.0
    outputs = [Outputs(right), Outputs(right.roll(1, 1))]
    found = Ensemble(("a", "b"), "by_loss").combined(outputs, labels).logits
    assert found.isfinite().all()
    assert torch.equal(found.argmax(1)[labels != VOID], labels[labels != VOID])


def test_labels_are_reduced_to_the_size_of_the_maps(parts, labels):
    large = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    ensemble = Ensemble(("a", "b", "c"), "by_loss")
    torch.testing.assert_close(
        ensemble.combined(parts, large).logits, ensemble.combined(parts, labels).logits
    )


def test_the_mean_of_logits(parts):
    found = Ensemble(("a", "b", "c"), "logits").combined(parts, None)
    mean = sum(part.logits for part in parts) / 3
    torch.testing.assert_close(found.logits, mean.log_softmax(1), rtol=1e-5, atol=1e-5)


def test_one_member_is_drawn_alike_for_alike_generators():
    ensemble = Ensemble(("a", "b", "c"), "random")
    draws = [ensemble.drawn(generator(0, step)) for step in range(60)]
    assert draws == [ensemble.drawn(generator(0, step)) for step in range(60)]
    assert set(draws) == {("a",), ("b",), ("c",)}
    assert ensemble.drawn(None) == ensemble.members, "an evaluation has all of them"
    assert Ensemble(("a", "b")).drawn(generator(0, 0)) == ("a", "b")


def test_only_the_drawn_network_runs_and_it_is_what_is_returned():
    networks = {name: teacher_net(seed=seed) for seed, name in enumerate("ab")}
    calls = []
    for name, network in networks.items():
        network.register_forward_hook(lambda *_, name=name: calls.append(name))
    config = TeacherConfig(ensemble=["a", "b"], combine="random")
    teachers = build_teachers({"one": config}, {"one": ["logits"]}, 4, networks=networks)
    images = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    seen = set()
    for step in range(12):
        calls.clear()
        found = teachers(images, None, lambda name, step=step: generator(step, name))["one"]
        (drawn,) = set(calls)
        seen.add(drawn)
        with torch.no_grad():
            expected = networks[drawn](images).logits.log_softmax(1)
        torch.testing.assert_close(found.logits, expected)
    assert seen == {"a", "b"}
    calls.clear()
    whole = teachers.alone("one")(images).logits.exp()
    assert sorted(calls) == ["a", "b"]
    with torch.no_grad():
        mean = sum(network(images).logits.softmax(1) for network in networks.values()) / 2
    torch.testing.assert_close(whole, mean)


def test_a_member_of_other_classes_and_an_ensemble_inside_another():
    given = ["heaven", "street", "lorry"]
    table = {"heaven": "sky", "street": "road", "lorry": "car"}
    matrix = class_matrix(
        ClassMap.model_validate({"from": given, "map": table}), list(CLASSES), "toy"
    )
    other = teacher_net(seed=3)
    other.classifier = torch.nn.Conv2d(24, 3, 1)
    members = {
        "own": Teacher(teacher_net()),
        "second": Teacher(teacher_net(seed=2)),
        "other": Teacher(other, class_map=matrix),
    }
    ensembles = {
        "all": Ensemble(("pair", "other"), "by_loss"),
        "pair": Ensemble(("own", "second"), "random"),
    }
    teachers = Teachers(members, ensembles, ["all"])
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    labels = torch.full((2, 32, 48), CLASSES.index("tree"))
    batch = Batch(images, labels, labels >= 0, torch.arange(2))
    found = teachers(images, batch, lambda name: generator(0, name))["all"].logits
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2, 4, 6), rtol=0, atol=1e-4)
    alone = Teachers(members, {"pair": ensembles["pair"]}, ["pair"])
    pair = alone(images, batch, lambda name: generator(0, name))["pair"].logits
    # A tree is a class that "other" does not know: it has no say there.
    torch.testing.assert_close(found, pair, rtol=0, atol=1e-5)


def test_keys_of_ensembles_need_an_ensemble():
    with pytest.raises(ValueError, match="name its members"):
        TeacherConfig(arch="toy", combine="by_loss")
    with pytest.raises(ValueError, match="Set both, or neither"):
        TeacherConfig(ensemble=["a"], combine="mean", loss_temperature=2.0)
    config = TeacherConfig(ensemble=["a"], combine="by_loss", loss_temperature=2.0)
    assert TeacherConfig.model_validate(config.model_dump(mode="json")) == config
    assert (
        not {"combine", "loss_temperature"} & TeacherConfig(arch="toy").model().model_dump().keys()
    )
