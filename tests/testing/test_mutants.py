"""Wrong methods are caught, each by the check that names what is wrong with it."""

import inspect
from dataclasses import replace

import method_mutants as mutants
import pytest
import torch

from segkd import registry
from segkd.methods import rkd
from segkd.methods.base import Method
from segkd.methods.shared.feature_scale import FeatureScale
from segkd.methods.shared.teacher_bank import TeacherBank
from segkd.modules.class_queue import NodeQueue
from segkd.ops import (
    correlation,
    gram,
    lane_rows,
    similarity_kl,
    softmax_kl,
    squared_distance,
    target,
)
from segkd.structures import Term
from segkd.testing import METHOD_CHECKS, CheckFailed, check_method

# By mutant, the checks that it fails: the first names the fault, the others see it as well.
FAILS = {
    "WrongGradient": "gradient",
    "FlippedSign": "never_negative perfect_student",
    "FlippedSignAboveZero": "perfect_student any_temperature",
    "OverwritesTheTeacher": "inputs_unchanged half_precision",
    "ReplacesTheTeachersLogits": "inputs_unchanged half_precision",
    "OverwritesTheBatch": "inputs_unchanged",
    "WeighsItself": "weight_and_schedule",
    "WeighsItsTerms": "weight_and_schedule",
    "SchedulesItself": "weight_and_schedule",
    "WarmsItselfUp": "weight_and_schedule",
    "IgnoresTheMaskKey": "mask_not_padding",
    "TakesVoidForValid": "invalid_positions all_void nan_at_invalid_positions",
    "ReadsANumber": "no_waiting",
    "CopiesToTheCPU": "no_waiting",
    "Branches": "no_waiting",
    "IndexesByMask": "no_waiting",
    "MakesATensorOfANumber": "no_waiting",
    "Prints": "no_waiting",
    "WrongAxis": "log_probabilities swapped_axes upsampled_maps invalid_positions "
    "nan_at_invalid_positions",
    "WrongReshape": "renamed_classes log_probabilities swapped_axes upsampled_maps "
    "invalid_positions nan_at_invalid_positions mask_not_padding more_padding",
    "NoDetach": "who_is_taught",
    "NoMask": "invalid_positions all_padding all_void nan_at_invalid_positions mask_not_padding "
    "more_padding",
    "SumOverImages": "doubled_batch two_processes",
    "SumOverPositions": "upsampled_maps two_processes",
    "MeanOverAllPixels": "more_padding two_processes",
    "SumOverChannels": "doubled_channels",
    "NoSquaredTemperature": "any_temperature",
    "HalfPrecision": "half_precision",
    "NoUnit": "scaled_features doubled_batch upsampled_maps",
    "ShiftedBank": "renamed_classes",
    "LocalBank": "two_processes",
    "BankInAnAttribute": "state_round_trip no_waiting",
    "BankOfTheClass": "deep_copies two_classes weight_and_schedule renamed_classes "
    "reproducible two_processes no_waiting",
    "GlobalRandomness": "reproducible gradient doubled_batch upsampled_maps weight_and_schedule "
    "renamed_classes swapped_axes invalid_positions nan_at_invalid_positions mask_not_padding "
    "unlabelled_images state_round_trip pickling deep_copies two_processes more_padding",
    "SilentKey": "declaration",
    "TakesAnyKey": "declaration",
    "NoName": "declaration",
    "CountOfAnInteger": "terms",
    "ForgetsATap": "who_is_taught doubled_batch invalid_positions nan_at_invalid_positions "
    "mask_not_padding",
    "IdleLayer": "parameters_learn",
    "NoInnerSteps": "parameters_learn gradient inputs_unchanged reproducible two_processes "
    "no_waiting",
    "MultipliesByTheMask": "nan_at_invalid_positions",
    "NoGuardForNothing": "all_padding all_void two_processes",
    "CountsVoidPixels": "all_void two_processes",
    "DropsTheGraphOfNothing": "all_padding all_void perfect_student constant_maps two_processes "
    "no_waiting",
    "LogOfAProbability": "saturated_outputs",
    "RootAtZero": "constant_maps perfect_student saturated_outputs",
    "DividesByTheSpread": "batch_of_one perfect_student constant_maps "
    "invalid_positions nan_at_invalid_positions mask_not_padding two_processes more_padding",
    "DividesByTheClasses": "one_class",
    "MeanOfImageMeans": "one_image_empty all_padding all_void two_processes",
    "ThreeClasses": "two_classes",
    "FirstClassIsBackground": "renamed_classes",
    "OneRowCounts": "swapped_axes upsampled_maps more_padding",
    "NeedsLabelsUnsaid": "unlabelled_images mask_not_padding",
    "HoldsALambda": "pickling",
    "DeepStage": "shallow_networks",
    "DeadChannel": "dead_channels constant_maps nan_at_invalid_positions",
    "ListensToAnyTeacher": "without_a_teacher",
    "LocalCollective": "two_processes no_waiting",
    "LocalRelation": "two_processes",
    "FadesInPlace": "rewritten_batch",
    "FadesIntoItsOwnNext": "rewritten_batch",
}
RIGHT = ("Plain", "Features", "Bank", "Fades")


@pytest.fixture(autouse=True)
def empty_bank_of_a_class(monkeypatch):
    monkeypatch.setattr(mutants.BankOfTheClass, "kept", None)


def failed(method, only=()):
    """Names of the checks that a method fails."""
    with pytest.raises(CheckFailed) as caught:
        check_method(method, only=only)
    return set(caught.value.failed)


@pytest.mark.parametrize("name", RIGHT)
def test_what_the_mutants_are_made_of_is_right(name):
    assert "gradient" in check_method(getattr(mutants, name)).passed


@pytest.mark.parametrize("name", FAILS)
def test_a_mutant_is_caught_by_the_check_of_its_fault(name):
    first = FAILS[name].split()[0]
    assert failed(getattr(mutants, name), first) == {first}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILS)
def test_a_mutant_fails_no_other_check(name):
    assert failed(getattr(mutants, name)) == set(FAILS[name].split())


def test_each_mutant_has_a_row_and_each_check_has_a_mutant():
    found = {n for n, c in inspect.getmembers(mutants, inspect.isclass) if issubclass(c, Method)}
    own = {n for n in found if getattr(mutants, n).__module__ == mutants.__name__}
    assert own == {*FAILS, *RIGHT, "ReturnsATensor"}
    assert {row.split()[0] for row in FAILS.values()} == set(METHOD_CHECKS.names) - {"on_the_gpu"}


def test_a_method_that_breaks_everywhere_is_told_where():
    with pytest.raises(CheckFailed, match=r"seen: `loss` returned tensor") as caught:
        check_method(mutants.ReturnsATensor, only=("terms", "gradient"))
    assert "seen: RuntimeError: values expected sparse tensor" in str(caught.value)


# -- the same faults in methods that ship ----------------------------------------------------------


def spoil_backward(monkeypatch, function):
    """A gradient that is a tenth too large where it is positive."""
    right = function.backward

    def wrong(ctx, *upstream):
        found = right(ctx, *upstream)
        first = found[0] if isinstance(found, tuple) else found
        first = torch.where(first > 0, 1.1 * first, first)
        return (first, *found[1:]) if isinstance(found, tuple) else first

    monkeypatch.setattr(function, "backward", staticmethod(wrong))


@pytest.mark.parametrize(
    ("function", "methods"),
    [
        (softmax_kl._SoftmaxKL, ["kd", "cwd", "dkd", "wsld", "cs_kd", "tf_kd", "byot", "ld"]),
        (gram._AffinityDistance, ["pairwise"]),
        (similarity_kl._SimilarityKL, ["cirkd"]),
        (rkd._AngleDistance, ["rkd"]),
        (correlation._CentralSums, ["dist"]),
        (squared_distance._SquaredDistance, ["fitnets", "ofd", "defeat", "mgd", "at", "cankd"]),
        (squared_distance._AbsoluteSums, ["fgd"]),
        (target._TargetAndRest, ["dkd"]),
        (lane_rows._LogOdds, ["ld"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_hand_written_gradient_that_is_wrong(monkeypatch, function, methods):
    spoil_backward(monkeypatch, function)
    for name in methods:
        assert failed(name, "gradient"), name


FLIPPABLE = [name for name in registry.methods.names() if not name.startswith("toy_")]


@pytest.mark.parametrize("name", [name for name in FLIPPABLE if name != "holistic"])
def test_a_flipped_sign(monkeypatch, name):
    """Of every method but the one whose loss is a critic's score."""
    kind = registry.methods.get(name)
    right = kind.loss
    monkeypatch.setattr(
        kind,
        "loss",
        lambda *inputs: {k: Term(-t.value, t.count) for k, t in right(*inputs).items()},
    )
    assert failed(name, "never_negative")


@pytest.mark.parametrize("name", FLIPPABLE)
def test_logits_or_features_that_are_overwritten(monkeypatch, name):
    kind = registry.methods.get(name)
    right, taps = kind.loss, kind().needs

    def wrong(self, student, teacher, batch, context):
        terms = right(self, student, teacher, batch, context)
        side, names = (teacher, taps.teacher) if taps.teacher else (student, taps.student)
        side.tap(names[-1]).detach().mul_(1.0 + 1e-6)
        return terms

    monkeypatch.setattr(kind, "loss", wrong)
    assert failed(name, "inputs_unchanged")


@pytest.mark.parametrize("name", FLIPPABLE)
def test_a_weight_or_a_mask_of_its_own(monkeypatch, name):
    kind = registry.methods.get(name)
    right = kind.loss

    def weighted(self, *inputs):
        return {
            k: Term(self.config.weight * t.value, t.count) for k, t in right(self, *inputs).items()
        }

    def masked(self, student, teacher, batch, context):
        return right(self, student, teacher, batch, replace(context, mask="valid"))

    monkeypatch.setattr(kind, "loss", weighted)
    assert failed(name, "weight_and_schedule")
    monkeypatch.setattr(kind, "loss", masked)
    if "mask_not_padding" not in kind.exempt:
        assert failed(name, "mask_not_padding")


def test_local_banks_keys_and_units(monkeypatch):
    monkeypatch.setattr(
        TeacherBank,
        "_push",
        lambda self, kind, vectors, present, context: getattr(self, kind).push(vectors, present),
    )
    assert failed("cirkd", "two_processes")
    monkeypatch.undo()
    inverse = FeatureScale._inverse
    monkeypatch.setattr(
        FeatureScale,
        "_inverse",
        lambda self, maps, context: inverse(self, maps, replace(context, all_sum=lambda x: x)),
    )
    assert failed("fitnets", "two_processes")


def test_a_bank_that_stores_a_class_as_another_one(monkeypatch):
    append = NodeQueue.append
    monkeypatch.setattr(
        NodeQueue,
        "append",
        lambda self, nodes, classes: append(self, nodes, (classes + 1) % len(self.entries)),
    )
    assert failed("crd", "renamed_classes")


def test_a_temperature_without_its_square(monkeypatch):
    for name in ("kd", "cwd", "dkd", "wsld", "tf_kd", "cs_kd"):
        kind = registry.methods.get(name)
        right = kind.loss

        def wrong(self, *inputs, right=right):
            square = self.config.temperature**2
            return {k: Term(t.value / square, t.count) for k, t in right(self, *inputs).items()}

        monkeypatch.setattr(kind, "loss", wrong)
        assert failed(name, "any_temperature"), name
