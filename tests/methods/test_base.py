"""The bases of methods: configs by type parameter, methods without a teacher, version 0.1."""

import copy
import pickle

import pytest
import torch

from segkd.errors import DataError, FormerName
from segkd.methods.base import Context, Method, MethodConfig, Needs, SelfMethod
from segkd.methods.kd import KD, KDConfig
from segkd.structures import Batch, Outputs, Term


class OwnConfig(MethodConfig):
    factor: float = 2.0


class Own(SelfMethod[OwnConfig]):
    name = "own"

    def self_loss(self, student, batch, context):
        return {"own": Term(self.config.factor * student.logits.sum())}


def batch():
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    return Batch(images, None, torch.ones(1, 2, 2, dtype=torch.bool), torch.arange(1))


def outputs():
    return Outputs(torch.ones(1, 2, 2, 2))


def test_the_type_parameter_is_the_config_of_a_method():
    assert KD.Config is KDConfig and KD().config == KDConfig()
    assert KD(KDConfig(temperature=3.0)).config.temperature == 3.0
    assert Own.Config is OwnConfig and Own().config.factor == 2.0
    assert Method.Config is MethodConfig and SelfMethod.Config is MethodConfig


def test_a_derived_method_has_the_config_of_its_base_or_its_own():
    class Derived(KD):
        pass

    class Nested(Method):
        class Config(MethodConfig):
            size: int = 3

    class Both(Method[OwnConfig]):
        class Config(OwnConfig):
            factor: float = 5.0

    assert Derived.Config is KDConfig
    assert Nested().config.size == 3
    assert Both().config.factor == 5.0


@pytest.mark.parametrize("teacher", [None, outputs()])
def test_a_method_without_a_teacher_is_called_like_the_others(teacher):
    terms = Own().loss(outputs(), teacher, batch(), Context(batch()))
    assert terms["own"].value == 16.0


def test_generic_methods_are_copied_and_pickled():
    method = KD(KDConfig(temperature=3.0))
    for other in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert type(other) is KD and other.config == method.config


def test_a_method_of_version_0_1_works():
    with pytest.warns(FormerName, match="own_steps is now called `inner_steps`"):

        class Old(Method):
            name = "old"
            own_steps = 2

            class Config(MethodConfig):
                factor: float = 4.0

            def __init__(self, config=None):
                super().__init__(config)
                self.needs = Needs(student=("logits",))
                self.default_weights = {"old": 0.5}

            def loss(self, student, teacher, batch, context):
                assert teacher is None
                return {"old": Term(self.config.factor * student.logits.sum())}

    method = Old()
    assert method.inner_steps == 2 and method.needs.student == ("logits",)
    assert Method().needs == Needs() and Method().inner_steps == 0
    assert method.loss(outputs(), None, batch(), Context(batch()))["old"].value == 32.0


def test_a_method_that_would_change_the_student_at_the_end_is_told_that_none_does():
    with pytest.warns(FormerName, match=r"Old\.finish is no longer called"):

        class Old(Method):
            def finish(self, student): ...

    assert not hasattr(Method, "finish")


def test_labels_of_a_batch_without_any_are_refused():
    with pytest.raises(DataError, match=r"Needs\(labels=True\)"):
        Context(batch()).labels_at(2, 2)


# -- masks and labels at the stride of features ----------------------------------------------------


def pixels(labelled=None):
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (3, 12, 20), generator=draw)
    labels[labels == 3] = 255
    not_padding = torch.rand(3, 12, 20, generator=draw) > 0.3
    images = torch.zeros(3, 3, 12, 20, dtype=torch.uint8)
    return Batch(images, labels, not_padding, torch.arange(3), labelled=labelled)


@pytest.mark.parametrize("size", [(12, 20), (6, 10), (3, 4), (5, 7), (6, 20), (24, 30)])
@pytest.mark.parametrize("labelled", [None, torch.tensor([True, False, True])])
@pytest.mark.parametrize("mask", ["valid", "not_padding"])
def test_masks_and_labels_are_those_of_torchs_nearest(size, labelled, mask):
    batch = pixels(labelled)
    context = Context(batch, mask=mask)

    def resized(values):
        values = values.double().unsqueeze(1)
        return torch.nn.functional.interpolate(values, size, mode="nearest").squeeze(1)

    for _ in range(2):  # the second time with indices that were kept
        assert torch.equal(context.mask_at(*size), resized(getattr(batch, mask)).bool())
        labels = batch.labels.masked_fill(~batch.not_padding, 255)
        assert torch.equal(context.labels_at(*size), resized(labels).long())


def test_a_mask_at_another_size_is_not_the_batchs_own():
    batch = pixels()
    Context(batch, mask="not_padding").mask_at(6, 10).fill_(False)
    assert batch.not_padding.any()
