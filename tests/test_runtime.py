"""Runtime: devices, seeds, and what collectives mean on one process."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from segkd import collectives
from segkd.errors import ConfigError
from segkd.runtime import (
    Runtime,
    choose_kernels,
    derive_seed,
    generator,
    preserved_rng,
    seed_everything,
)


def test_one_process_collectives_are_the_identity():
    runtime = Runtime.single()
    value = torch.randn(3, requires_grad=True)
    assert runtime.gather(value) is value
    assert runtime.all_sum(value) is value
    assert runtime.gather_objects({"a": 1}) == [{"a": 1}]
    assert runtime.from_main(5) == 5


def test_missing_cuda_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"runtime\.device=cpu"):
        Runtime.start("cuda")


def test_unknown_device_is_a_clear_error():
    with pytest.raises(ConfigError, match="not a valid device"):
        Runtime.start("gpu")


@pytest.mark.parametrize("device", ["vulkan", "meta", "xla"])
def test_a_device_that_cannot_compute_here_is_a_clear_error(device):
    with pytest.raises(ConfigError, match=f"cannot compute on '{device}'.*Use auto, cpu"):
        Runtime.start(device)


def test_auto_takes_the_cpu_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Runtime.start("auto").device.type == "cpu"


@pytest.mark.parametrize("deterministic", [False, True])
def test_kernels_are_measured_unless_bits_must_repeat(monkeypatch, deterministic):
    chosen = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", deterministic)
    choose_kernels(deterministic=deterministic)
    assert chosen == [deterministic]
    assert torch.backends.cudnn.benchmark is not deterministic


def test_derived_seeds_depend_on_each_part_and_on_nothing_else():
    assert derive_seed(0, 5, "kd") == derive_seed(0, 5, "kd")
    seeds = {derive_seed(*key) for key in [(0, 5, "kd"), (1, 5, "kd"), (0, 6, "kd"), (0, 5, "cwd")]}
    assert len(seeds) == 4
    first = torch.rand(3, generator=generator(1, "a"))
    assert torch.equal(first, torch.rand(3, generator=generator(1, "a")))


def test_preserved_rng_leaves_no_trace_in_any_global_generator():
    seed_everything(3, 0)
    expected = (torch.rand(2), np.random.rand(2), random.random())
    seed_everything(3, 0)
    with preserved_rng():
        torch.rand(7), np.random.rand(7), random.random()
    found = (torch.rand(2), np.random.rand(2), random.random())
    assert torch.equal(expected[0], found[0])
    assert (expected[1] == found[1]).all()
    assert expected[2] == found[2]


def together(runtime, values, weights, exchanges):
    """Rows of several types at once, their gradients, and the number of exchanges."""
    wanted = values.clone().requires_grad_()
    narrow = values.float()[:, :1].requires_grad_()
    others = values.half(), values[:, 0].long(), values[:, :2, None] > 1, values.bfloat16()[:, 0]
    exchanges.clear()
    joined = runtime.gather_rows(wanted, narrow, *others)
    number = len(exchanges)
    assert [one.requires_grad for one in joined] == [True, True, False, False, False, False]
    (joined[0] * weights + joined[1].double() * weights).sum().backward()
    return [one.detach() for one in joined], wanted.grad, narrow.grad, number


def gather_on_two(rank, folder):
    """A process of the next test: leaves what it gathered, and its gradients."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    runtime = Runtime(torch.device("cpu"), rank, 2)
    torch.distributed.all_reduce = None  # a part's gradient travels once, not to all processes
    exchanges = []
    plain = collectives._all_gather

    def counted(*arguments):
        exchanges.append(arguments)
        plain(*arguments)

    collectives._all_gather = counted
    found = {}
    for name, lengths in {"equal": (2, 2), "unequal": (3, 1), "one empty": (0, 2)}.items():
        start = sum(lengths[:rank])
        values = torch.arange(start, start + lengths[rank]).double()[:, None] * torch.ones(3)
        values = values.double().requires_grad_()
        joined = runtime.gather(values)
        # The loss of each process weighs the rows differently.
        weights = torch.arange(1, 1 + len(joined)).double()[:, None] * (10**rank)
        (joined * weights).sum().backward()
        flags = runtime.gather(values.detach()[:, 0] > 1)
        found[name] = (joined.detach(), flags, values.grad)
        found[name, "together"] = together(runtime, values.detach(), weights, exchanges)
    torch.save(found, f"{folder}/{rank}.pt")
    runtime.stop()


def test_gather_joins_parts_of_any_length_and_sums_gradients_over_processes(tmp_path):
    torch.multiprocessing.spawn(gather_on_two, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, length in {"equal": 4, "unequal": 4, "one empty": 2}.items():
        expected = torch.arange(length).double()[:, None].expand(length, 3)
        for joined, flags, _ in (part[name] for part in parts):
            assert torch.equal(joined, expected)
            assert torch.equal(flags, expected[:, 0] > 1)
        gradients = torch.cat([part[name][2] for part in parts])
        assert torch.equal(gradients, 11 * (expected + 1))
        for joined, *_, exchanges in (part[name, "together"] for part in parts):
            assert exchanges == 2  # lengths, and all rows
            types = [torch.float16, torch.int64, torch.bool, torch.bfloat16]
            right = [expected, expected.float()[:, :1], expected, expected[:, 0]]
            right += [expected[:, :2, None] > 1, expected[:, 0]]
            for one, dtype, other in zip(joined[2:], types, right[2:], strict=True):
                assert one.dtype == dtype and torch.equal(one, other.to(dtype))
            assert torch.equal(joined[0], right[0]) and torch.equal(joined[1], right[1])
        wide = torch.cat([part[name, "together"][1] for part in parts])
        assert torch.equal(wide, 11 * (expected + 1))
        narrow = torch.cat([part[name, "together"][2] for part in parts])
        assert torch.equal(narrow, 3 * 11 * (expected.float()[:, :1] + 1))


def test_tensors_of_other_lengths_are_not_gathered_together():
    with pytest.raises(ValueError, match=r"equal lengths, got \(2, 3\), \(1,\)"):
        collectives.gather((torch.zeros(2, 3), torch.zeros(1)), 0, 2)


def test_one_process_gathers_what_it_has():
    tensors = torch.zeros(2), torch.ones(2, 3)
    found = Runtime.single().gather_rows(*tensors)
    assert found[0] is tensors[0] and found[1] is tensors[1]


class Wrapped(torch.nn.Module):
    """Stands for DDP: keeps its options."""

    def __init__(self, module, device_ids=None, broadcast_buffers=True, **flags):
        super().__init__()
        self.module, self.flags = module, flags | {"buffers": broadcast_buffers, "ids": device_ids}


def test_gradients_are_kept_once_and_buffers_are_the_runs_own_business(monkeypatch):
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", Wrapped)
    module = torch.nn.Linear(2, 2)
    several = Runtime(torch.device("cpu"), 0, 2)
    expected = {"buffers": False, "ids": None, "gradient_as_bucket_view": True}
    assert several.distribute(module).flags == expected
    assert Runtime.single().distribute(module) is module
    assert several.distribute(module.requires_grad_(False)) is module


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_rows_that_arrived_behind_others_are_read_wherever_they_begin(rows):
    """A slice of one row or none counts as contiguous, at any byte."""
    sent = torch.arange(19 * rows, dtype=torch.uint8).view(rows, 19)
    found = collectives._restored(sent[:, 3:19], torch.zeros(5, 2, dtype=torch.int64))
    expected = sent[:, 3:19].numpy().copy().view("<i8")
    assert found.shape == (rows, 2) and found.numpy().tolist() == expected.tolist()


SCRIPT = """
import atexit, sys
import torch.distributed as dist
atexit.register(lambda: print("left" if not dist.is_initialized() else "stayed", flush=True))
from segkd.runtime import Runtime
Runtime.start("cpu").barrier()
ENDING
"""


@pytest.mark.parametrize(
    ("ending", "end"),
    [
        ("", "left"),
        ("raise ValueError", "stayed"),
        ("from segkd.runtime import stay_in_processes as stay; stay()", "stayed"),
    ],
)
def test_a_script_leaves_the_process_group_when_it_has_succeeded(tmp_path, ending, end):
    """Threads of a group that is still there may abort the process while it ends."""
    (tmp_path / "script.py").write_text(SCRIPT.replace("ENDING", ending))
    keys = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        keys["MASTER_PORT"] = str(free.getsockname()[1])
    paths = os.environ | keys | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    both = [
        subprocess.Popen(
            [sys.executable, tmp_path / "script.py"],
            env=paths | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in (0, 1)
    ]
    assert [one.communicate(timeout=300)[0] for one in both] == [f"{end}\n"] * 2
