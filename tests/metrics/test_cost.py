import mmap
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from segkd.metrics.cost import flops, parameters, peak_memory, reset_peak_memory
from segkd.structures import Outputs


class Two(nn.Module):
    divisor = 8

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(5)
        self.last = nn.Conv2d(5, 4, 1)
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1), persistent=False)
        self.aux_heads = nn.ModuleDict({"aux": nn.Conv2d(5, 4, 1)})

    def forward(self, images):
        assert not self.training
        return Outputs(self.last(self.norm(self.first(images.to(self.mean.dtype) - self.mean))))


def test_parameters_are_those_that_are_kept():
    network = Two()
    network.tied = network.last
    assert parameters(network) == (3 * 5 * 9 + 5) + 2 * 5 + (5 * 4 + 4)


def test_flops_by_hand():
    network = Two()
    multiply_adds = 8 * 12 * (3 * 5 * 9) + 8 * 12 * (5 * 4)
    assert flops(network, (16, 24)) == 2 * multiply_adds
    assert flops(network, (10, 17)) == 2 * multiply_adds  # rounded up to the divisor


def test_flops_leaves_no_trace():
    network = Two().train()
    network.norm.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flops(network, (16, 24))
    assert network.training and not network.norm.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())


def test_flops_of_the_same_network_under_autocast():
    network = Two()
    with torch.autocast("cpu", torch.bfloat16):
        assert flops(network, (16, 24)) == flops(Two(), (16, 24))


def test_flops_of_a_black_box_are_unknown():
    class BlackBox(nn.Module):
        def forward(self, images):
            return Outputs(torch.from_numpy(images.numpy()).float())

    class Decides(nn.Module):
        def forward(self, images):
            return Outputs(images.float() if images.max() > 3 else images)

    assert flops(BlackBox(), (8, 8)) is None and flops(Decides(), (8, 8)) is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux")
def test_peak_memory_is_what_the_system_says():
    reset_peak_memory()
    found = peak_memory()
    line = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found == pytest.approx(1024 * int(line.group(1)), rel=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_peak_memory_on_a_gpu_starts_anew():
    kept = torch.zeros(2**22, device="cuda")
    reset_peak_memory("cuda")
    assert peak_memory("cuda") >= kept.numel() * 4
    del kept
    reset_peak_memory("cuda")
    assert peak_memory("cuda") < 2**24


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux resets its peak")
def test_a_reset_peak_forgets_what_was_freed():
    large = mmap.mmap(-1, 2**28)  # what malloc frees may stay with the process
    for page in range(0, 2**28, mmap.PAGESIZE):
        large[page] = 1
    before = peak_memory()
    large.close()
    reset_peak_memory()
    assert peak_memory() < before - 2**27


class KeepsTensors(nn.Module):
    """As many networks of others do: constants that are no buffers, and positions by size."""

    def __init__(self):
        super().__init__()
        self.conv, self.mean = nn.Conv2d(3, 4, 1), torch.full((1, 3, 1, 1), 0.4)
        self.grid, self.by_size, self.seen = torch.zeros(1), {}, []

    def forward(self, images):
        width = images.shape[3]
        if len(self.grid) != width:
            self.grid = torch.arange(width).float()
        if width not in self.by_size:
            self.by_size[width] = torch.ones(width)
        self.seen.append(self.grid)
        scaled = (images.float() - self.mean) * self.by_size[width]
        return Outputs(self.conv(scaled + self.seen[0]))


def test_flops_of_a_network_that_keeps_tensors():
    network = KeepsTensors()
    assert flops(network, (16, 24)) == 2 * 16 * 24 * (3 * 4)
    assert network.grid.tolist() == [0] and not network.by_size and not network.seen
    logits = network(torch.zeros(1, 3, 16, 24, dtype=torch.uint8)).logits
    assert type(logits) is torch.Tensor and logits.isfinite().all()  # it still computes


def test_flops_are_unknown_at_a_size_that_the_network_refuses():
    class OfOneSize(nn.Module):
        def forward(self, images):
            assert images.shape[2:] == (224, 224)
            return Outputs(images.float())

    class Picky(nn.Module):
        def forward(self, images):
            raise ValueError("too small")

    assert flops(OfOneSize(), (16, 24)) is None and flops(Picky(), (16, 24)) is None
