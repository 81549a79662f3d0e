"""Running means of losses on several processes: what a checkpoint holds of them."""

from dataclasses import dataclass

import pytest
import torch

from segkd.engine.objective import Weighted
from segkd.engine.records import LossMeter
from segkd.structures import Term


@dataclass
class Room:
    """A process among others, whose objects are given."""

    rank: int
    others: list
    device: str = "cpu"

    @property
    def world(self) -> int:
        return len(self.others)

    def gather_objects(self, own):
        return [own if rank == self.rank else other for rank, other in enumerate(self.others)]


def meter(value: float, count: float) -> LossMeter:
    found = LossMeter()
    term = Term(torch.tensor(value), torch.tensor(count, dtype=torch.float64))
    found.add(0, [Weighted("kd/kd", term, 1.0)])
    return found


def stored() -> dict:
    """The state of two processes, as the first one writes it."""
    second = meter(8.0, 30.0)
    second.check()
    own, room = meter(2.0, 10.0), Room(0, [None, second._sums])
    own.unusable = lambda runtime: []
    return own.state_dict(room)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_process_goes_on_with_its_own_sums_or_the_first_one_with_all(world):
    found = []
    for rank in range(world):
        restored = LossMeter()
        restored.load_state_dict(stored(), Room(rank, [None] * world))
        found.append(restored._sums)
    if world == 2:
        assert found == [{"kd/kd": [20.0, 10.0]}, {"kd/kd": [240.0, 30.0]}]
    else:
        assert found == [{"kd/kd": [260.0, 40.0]}, *[{}] * (world - 1)]


def test_samples_that_were_skipped_are_those_of_all_processes_and_of_the_run_before():
    first = LossMeter()
    first.skipped = {"a is broken": 2}
    state = first.state_dict(Room(0, [None, ["b is broken"]]))
    again = LossMeter()
    again.load_state_dict(state, Room(0, [None, None]))
    again.skipped = {"a is broken": 1, "c is broken": 5}
    expected = ["a is broken", "b is broken", "c is broken", "d is broken"]
    assert again.unusable(Room(0, [None, ["d is broken", "b is broken"]])) == expected
    del state["skipped"]  # of an early version
    again.load_state_dict(state, Room(0, [None, None]))
    assert again.unusable(Room(0, [None])) == ["a is broken", "c is broken"]


def test_sums_of_an_early_version_are_those_of_the_first_process():
    state = stored() | {"sums": {"kd/kd": [20.0, 10.0]}}
    restored = [LossMeter(), LossMeter()]
    for rank, one in enumerate(restored):
        one.load_state_dict(state, Room(rank, [None, None]))
    assert [one._sums for one in restored] == [{"kd/kd": [20.0, 10.0]}, {}]
