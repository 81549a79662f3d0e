"""Seconds by part of a step, also where a device computes while the CPU waits for images."""

import pytest
import torch

from segkd.engine import timing
from segkd.engine.timing import StepTimer


class Machine:
    """A CPU whose clock moves by what it does, and a device that works through a queue."""

    cpu = device = 0.0

    def launch(self, seconds):
        """Work for the device, which begins when the earlier one is done."""
        self.device = max(self.device, self.cpu) + seconds

    def event(self, **options):
        machine = self

        class Event:
            def record(self):
                machine.device = max(machine.device, machine.cpu)
                self.at = machine.device

            def synchronize(self):
                machine.cpu = max(machine.cpu, self.at)

            def elapsed_time(self, other):
                return 1e3 * (other.at - self.at)

        return Event()


@pytest.fixture
def machine(monkeypatch):
    made = Machine()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.cpu)
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    return made


@pytest.mark.parametrize(
    ("loading", "computing", "whole"),
    [(0.030, 0.024, 0.030), (0.022, 0.024, 0.024), (0.0, 0.024, 0.024), (0.030, 0.0, 0.030)],
)
def test_waiting_beside_the_device_does_not_count_twice(machine, loading, computing, whole):
    timer = StepTimer(torch.device("cuda"))
    ready, found = 0.0, {}
    for step in range(100):
        with timer.step():
            with timer.part("data", host=True):
                ready += loading  # a batch per period, whatever the device does
                machine.cpu = max(machine.cpu, ready)
            with timer.part("student"):
                machine.launch(computing)
        if step % 20 == 19:
            machine.cpu += 5.0  # an evaluation between two steps is in no part
            ready = machine.cpu
            found = timer.take()
    assert sum(found.values()) / 20 == pytest.approx(whole, rel=0.06)
    assert found["student"] / 20 == pytest.approx(computing)


def test_on_the_cpu_parts_are_as_measured(machine):
    timer = StepTimer(torch.device("cpu"))
    with timer.step(), timer.part("data", host=True):
        machine.cpu += 3.0
    with timer.part("student"):
        machine.cpu += 2.0
    assert timer.take() == {"data": 3.0, "student": 2.0} and timer.take() == {}
