"""Two processes that are threads: their collectives are those of a process group."""

import pytest
import torch

from segkd.testing.processes import OutOfStep, on_two_processes


def test_gather_and_sums_and_their_gradients():
    def work(runtime):
        x = torch.full((runtime.rank + 1, 2), 1.0 + runtime.rank, requires_grad=True)
        rows = runtime.gather(x)
        total = runtime.all_sum(x.sum())
        (rows.square().sum() * (1 + runtime.rank) + 10 * total).backward()
        return rows.detach(), total.item(), runtime.all_reduce(x[0, 0]).item(), x.grad

    one, two = on_two_processes(work)
    rows = torch.tensor([[1.0, 1], [2, 2], [2, 2]])
    assert torch.equal(one[0], rows) and torch.equal(two[0], rows)
    assert one[1:3] == two[1:3] == (2.0 + 8.0, 3.0)
    # Both processes' losses reach a part: 2x · (1 + 2), and 10 from each.
    assert torch.equal(one[3], torch.full((1, 2), 6.0 + 20))
    assert torch.equal(two[3], torch.full((2, 2), 12.0 + 20))


def test_calls_that_do_not_match():
    def other_call(runtime):
        x = torch.zeros(())
        return runtime.all_sum(x) if runtime.rank else runtime.gather(x[None])

    with pytest.raises(OutOfStep, match="calls all_sum while the other calls gather"):
        on_two_processes(other_call)

    def fewer_calls(runtime):
        return runtime.all_sum(torch.zeros(())) if runtime.rank else None

    with pytest.raises(OutOfStep, match="calls all_sum while the other calls nothing more"):
        on_two_processes(fewer_calls)


def test_an_error_on_one_process_is_told():
    def work(runtime):
        if runtime.rank:
            raise KeyError("mine")
        return runtime.all_sum(torch.zeros(()))

    with pytest.raises(KeyError, match="mine"):
        on_two_processes(work)
