"""Batches are copied one ahead, beside the computation, and waited for before they are used."""

import contextlib

import pytest
import torch

from segkd.data.transfer import Ahead, lane_for


class Lane:
    """Writes down what a CUDA lane would queue."""

    def __init__(self, events):
        self.events, self.beside = events, False

    @contextlib.contextmanager
    def copying(self):
        self.beside = True
        yield
        self.beside = False

    def mark(self):
        assert self.beside
        return len(self.events)

    def wait(self, mark, tensors):
        assert not self.beside
        self.events.append(("wait", [int(t) for t in tensors], self.events[mark - 1]))


def watched(count, *, lane=True, fails_at=None):
    events = []

    def source():
        for number in range(count):
            if number == fails_at:
                raise OSError(f"item {number}")
            events.append(("read", number))
            yield number
        events.append(("end",))

    def move(number):
        assert used.beside or not lane
        events.append(("copy", number))
        return torch.tensor(number)

    used = Lane(events)
    items = source()
    return Ahead(items, move, lambda item: [item], used if lane else None), events, items


def test_the_next_batch_is_copied_before_the_present_one_is_computed():
    batches, events, _ = watched(3)
    for batch in batches:
        events.append(("compute", int(batch)))
    assert events == [
        *(("read", 0), ("copy", 0), ("read", 1), ("copy", 1)),
        *(("wait", [0], ("copy", 0)), ("compute", 0), ("read", 2), ("copy", 2)),
        *(("wait", [1], ("copy", 1)), ("compute", 1), ("end",)),
        *(("wait", [2], ("copy", 2)), ("compute", 2)),
    ]


def test_without_a_lane_each_batch_is_moved_when_it_is_asked_for():
    batches, events, _ = watched(2, lane=False)
    for batch in batches:
        events.append(("compute", int(batch)))
    one = [[("read", k), ("copy", k), ("compute", k)] for k in range(2)]
    assert events == [*one[0], *one[1], ("end",)]


@pytest.mark.parametrize("lane", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_batch_comes_once_and_in_order(count, lane):
    assert [int(batch) for batch in watched(count, lane=lane)[0]] == list(range(count))


@pytest.mark.parametrize("lane", [True, False])
def test_an_error_comes_after_the_batches_before_it(lane):
    batches, _, _ = watched(5, lane=lane, fails_at=2)
    assert [int(next(batches)), int(next(batches))] == [0, 1]
    with pytest.raises(OSError, match="item 2"):
        next(batches)


@pytest.mark.parametrize("lane", [True, False])
def test_closing_ends_the_source(lane):
    batches, _, source = watched(5, lane=lane)
    next(batches)
    batches.close()
    assert source.gi_frame is None


def test_there_is_no_lane_on_a_cpu():
    assert lane_for(torch.device("cpu")) is None


@pytest.mark.gpu
def test_on_cuda_values_arrive_while_others_are_computed():
    device, lane = torch.device("cuda"), lane_for(torch.device("cuda"))
    hosts = [torch.full((2**22,), float(k)).pin_memory() for k in range(8)]
    batches = Ahead(iter(hosts), lambda x: x.to(device, non_blocking=True), lambda x: [x], lane)
    busy = torch.randn(2048, 2048, device=device)
    for number, batch in enumerate(batches):
        for _ in range(10):
            busy = (busy @ busy).tanh()
        assert bool((batch == number).all())
