import pytest
import torch

from segkd.config.schema import TaskConfig
from segkd.engine.task_losses import TaskLosses
from segkd.errors import ConfigError
from segkd.structures import Batch, Outputs

K = 3


def make_batch():
    labels = torch.randint(0, K, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    inside = torch.ones(2, 8, 8, dtype=torch.bool)
    return Batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), labels, inside, torch.arange(2))


def make_outputs():
    logits, aux = torch.randn(2, 2, K, 4, 4, generator=torch.Generator().manual_seed(1))
    return Outputs(logits, aux={"stage4": aux})


def test_default_is_the_plain_cross_entropy():
    assert list(TaskLosses(TaskConfig(), K)(make_outputs(), make_batch())) == ["cross_entropy"]


def test_weights_of_losses_and_of_auxiliary_heads():
    outputs, batch = make_outputs(), make_batch()
    plain = {"cross_entropy": {}, "dice": {}}
    config = TaskConfig(losses=plain)
    single = TaskLosses(config, K)(outputs, batch)
    alone = TaskLosses(config, K)(Outputs(outputs.aux["stage4"]), batch)
    weighted = TaskLosses(
        TaskConfig(weight=9.0, losses={"cross_entropy": {"weight": 2.0}, "dice": {"weight": 0.5}}),
        K,
        aux_weight=0.4,
    )(outputs, batch)
    assert list(weighted) == ["cross_entropy", "dice", "cross_entropy.aux", "dice.aux"]
    for name, factor in (("cross_entropy", 2.0), ("dice", 0.5)):
        value, aux = weighted[name].value, weighted[f"{name}.aux"].value
        assert float(value) == pytest.approx(factor * float(single[name].value))
        assert float(aux) == pytest.approx(0.4 * factor * float(alone[name].value))
        assert weighted[name].count == single[name].count


def test_several_auxiliary_heads_have_names_of_their_own():
    outputs = make_outputs()
    outputs.aux["stage3"] = outputs.logits
    terms = TaskLosses(TaskConfig(), K, aux_weight=1.0)(outputs, make_batch())
    assert sorted(terms) == [
        "cross_entropy",
        "cross_entropy.aux.stage3",
        "cross_entropy.aux.stage4",
    ]


def test_class_weights_of_another_dataset_are_refused_at_build():
    config = TaskConfig(losses={"cross_entropy": {"class_weights": [1.0] * 19}})
    with pytest.raises(ConfigError, match=r"19 numbers.*3 classes"):
        TaskLosses(config, K)


def test_no_state_in_checkpoints():
    config = TaskConfig(losses={"cross_entropy": {"class_weights": [1.0] * K}})
    assert not TaskLosses(config, K).state_dict()
