"""What waits for a GPU is found without one."""

import pytest
import torch

from segkd.testing.waits import META, Unknown, find_waits


@pytest.fixture
def x():
    return torch.empty(4, 5, device=META)


WAITS = {
    "reads numbers": [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: 1 if x.sum() > 0 else 0,
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.long().unique(),
        lambda x: x.long().flatten().bincount(),
        lambda x: x.repeat_interleave(x[:, 0].long(), 0),
        lambda x: torch.equal(x, x),
        lambda x: range(x[0, 0].long()),
        lambda x: torch.nn.functional.one_hot(x.long()),
    ],
    "copies": [
        lambda x: torch.randperm(4).to(x.device),
        lambda x: x.copy_(torch.zeros(4, 5)),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.new_tensor(3.0),
    ],
    "is copied": [lambda x: x[torch.tensor([0, 1])]],
    "positions are read": [lambda x: x.__setitem__(x > 0, x[0])],
    "prints": [lambda x: f"{x.sum():.3f}", lambda x: str(x)],
    "joins": [lambda x: x + torch.zeros(5)],
}
ROWS = [(what, number) for what, works in WAITS.items() for number in range(len(works))]


@pytest.mark.parametrize(("what", "number"), ROWS)
def test_what_waits(x, what, number):
    (found,) = find_waits(lambda: WAITS[what][number](x))
    assert what in found and "tests/testing/test_waits.py" in found


def test_what_does_not_wait(x):
    def work():
        order = torch.randperm(4).to(x.device, non_blocking=True)
        y = torch.where(x > 0, x, 0.0)[order].softmax(1)
        y[y > 1] = 2.0
        with torch.autocast(x.device.type, enabled=False):
            y = y @ y.mT + torch.full((), 3.0, device=x.device)
        torch.zeros(4).copy_(torch.ones(4))  # on the CPU it may be as it likes
        return y.shape[0] + y.masked_fill(y > 0, 0).sum() * torch.ones(())

    assert find_waits(work) == []


def test_what_cannot_be_looked_at_is_told(x):
    with pytest.raises(Unknown, match="lengths"):
        find_waits(lambda: torch.nn.utils.rnn.pack_padded_sequence(x[None], x[:, 0].long()))


def test_errors_of_other_kinds_pass(x):
    with pytest.raises(ZeroDivisionError):
        find_waits(lambda: 1 / 0)
