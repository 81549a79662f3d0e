"""Our networks pass the checks of a network; wrong ones fail the check of their fault."""

import inspect

import network_mutants as mutants
import pytest
import torch
from torch import nn

from segkd import registry
from segkd.errors import ConfigError
from segkd.models.module import wrap
from segkd.models.network import Network
from segkd.testing import NETWORK_CHECKS, CheckFailed, check_network

FAILS = {  # by mutant, the check that names its fault
    "GroupOfItsOwn": "declaration",
    "NoLogitsTap": "declaration",
    "Probabilities": "logits",
    "LogProbabilities": "logits",
    "OneClassMore": "logits",
    "FixedSizeOfLogits": "sizes",
    "ForgetsAnOddRow": "divisor",
    "TakesAnySize": "divisor",
    "TapThatDoesNotExist": "taps",
    "TapThatIsAnother": "taps",
    "DetachedTap": "taps_learn",
    "BlueFirst": "normalisation",
    "BlueFirstWhenNormalised": "normalisation",
    "BytesFromZeroToOne": "normalisation",
    "WritesIntoTheImages": "normalisation",
    "NineteenClasses": "classes",
    "AuxiliaryForEver": "auxiliary_head",
    "StatisticsOfTheBatch": "batch_neighbours",
    "DropsInEvaluation": "evaluation",
    "CountsInEvaluation": "evaluation",
    "LeavesTraining": "modes",
    "LearnsTheOpposite": "learns",
    "OtherNetworkEachTime": "state_round_trip",
    "StateBesideTheState": "state_round_trip",
    "HoldsALambda": "deep_copies",
    "LayerOfTheClass": "deep_copies",
    "OverflowsInHalf": "half_and_layout",
    "ReadsMemory": "half_and_layout",
}


class Own(nn.Module):
    """A module of somebody's own, which answers at half resolution."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.score = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.score(self.down(x))


NAMES = [  # the structures of other toolboxes have ResNet's size
    pytest.param(name, marks=pytest.mark.slow) if name.startswith("mmseg_") else name
    for name, network in zip(registry.models.names(), registry.models, strict=True)
    if network.__module__.startswith("segkd.")  # other tests register networks of their own
]


SMALL = {"encoder": "tu-test_resnet"}
SMALL |= {"options": {"size": [64, 96], "rows": 6, "cells": 10, "hidden": 16}}


@pytest.mark.parametrize("check", NETWORK_CHECKS.names)
@pytest.mark.parametrize("name", NAMES)
def test_our_networks(name, check):
    fixed = name == "row_anchor"  # for images of one size
    report = check_network(name, SMALL if fixed else None, only=check)
    assert report.passed == [check] or (fixed and check == "divisor"), report.skipped


@pytest.mark.slow
@pytest.mark.parametrize("arch", registry.smp_architectures())
def test_networks_of_smp(arch):
    encoder = {"encoder": "tu-vit_tiny_patch16_224"} if arch == "dpt" else {"encoder": "resnet18"}
    report = check_network(arch, encoder, least=128 if arch == "pan" else 32)
    assert set(report.skipped) <= {"divisor"}, report


def test_a_module_of_the_callers_own():
    torch.manual_seed(0)
    report = check_network(wrap(Own(), 4, divisor=2))
    assert report.skipped == {"classes": "it is a module of the caller's own"}


def test_the_right_one_is_right():
    assert check_network(mutants.Right).passed == NETWORK_CHECKS.names
    assert check_network(mutants.Right, {"options": {"width": 3}}, only="sizes", classes=2).passed


@pytest.mark.parametrize("name", FAILS)
def test_a_mutant_is_caught_by_the_check_of_its_fault(name):
    with pytest.raises(CheckFailed, match=f"network 'right': {FAILS[name]} failed"):
        check_network(getattr(mutants, name), only=FAILS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILS)
def test_a_mutant_is_caught_among_all_checks(name):
    with pytest.raises(CheckFailed) as caught:
        check_network(getattr(mutants, name))
    assert FAILS[name] in caught.value.failed


def test_each_mutant_has_a_row_and_each_check_has_a_mutant():
    found = dict(inspect.getmembers(mutants, inspect.isclass))
    own = {n for n, c in found.items() if issubclass(c, Network) and c is not Network}
    assert own == {*FAILS, "Right"}
    assert set(FAILS.values()) == set(NETWORK_CHECKS.names)


def test_what_is_no_network_is_refused():
    with pytest.raises(ConfigError, match="expected a class derived from segkd"):
        check_network(Own())
    with pytest.raises(ConfigError, match="an instance, which is checked as it is, and classes"):
        check_network(wrap(Own(), 4, divisor=2), classes=4)
    with pytest.raises(ConfigError, match="and config, which would change nothing"):
        check_network(wrap(Own(), 4, divisor=2), {"options": {}})
    with pytest.raises(ConfigError, match="unknown arch 'enett'"):
        check_network("enett")
    with pytest.raises(ConfigError, match=r"check_network: option: unknown key. Did you mean 'op"):
        check_network("enet", {"option": {}})
    with pytest.raises(ConfigError, match="there is no check 'size' of a network"):
        check_network("enet", only="size")
