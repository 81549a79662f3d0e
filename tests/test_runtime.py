"""Runtime: devices, seeds, and what collectives mean on one process."""

import random

import numpy as np
import pytest
import torch

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


def gather_on_two(rank, folder):
    """A process of the next test: leaves what it gathered, and its gradients."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    runtime = Runtime(torch.device("cpu"), rank, 2)
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
