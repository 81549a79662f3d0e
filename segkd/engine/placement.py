"""How networks lie on the machine: layout of memory, shared batch statistics, compilation."""

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import nn

from segkd.config.schema import RuntimeConfig
from segkd.errors import ConfigError
from segkd.models.network import Network
from segkd.models.teacher import Teacher, Teachers
from segkd.runtime import Runtime
from segkd.structures import Batch

_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict)


def with_shared_statistics(student: Network, runtime: Runtime) -> Network:
    """The student with batch statistics over all processes (``runtime.sync_bn``).

    Names and values of its weights stay as they are.

    Raises:
        ConfigError: on a CPU, which torch has no such layer for.
    """
    if runtime.device.type != "cuda":
        raise ConfigError(
            f"runtime.sync_bn: batch statistics are shared between CUDA devices only, this run is "
            f"on {runtime.device.type}. Set runtime.sync_bn=false, or runtime.device=cuda"
        )
    if runtime.world == 1:
        return student
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    if any(type(module).__module__.startswith("timm.") for module in student.modules()):
        # timm's batch norms hold an activation, which torch's own conversion would drop.
        from timm.layers import convert_sync_batchnorm as convert
    return convert(student)


def channels_last(*modules: nn.Module) -> None:
    """Lays out the weights of convolutions with channels innermost."""
    for module in modules:
        module.to(memory_format=torch.channels_last)


def to_device(batch: Batch, device: torch.device, channels_innermost: bool) -> Batch:
    """The batch on a device, its images in the layout of the networks."""
    batch = batch.to(device)
    if not channels_innermost:
        return batch
    return batch.replace(images=batch.images.contiguous(memory_format=torch.channels_last))


def compile_networks(
    config: RuntimeConfig, student: Network, taps: Collection[str], teachers: Teachers
) -> None:
    """Compiles what ``runtime.compile`` names, as it is called from now on.

    Parts of the networks are compiled in place: names of weights stay as they are, and copies are
    not compiled. A part that a tap hooks into stays as it is, and its own parts are compiled.

    Raises:
        ConfigError: this machine cannot compile, for want of a C++ compiler for example.
    """
    _try_backend(config.compile_backend, next(student.parameters()).device)
    networks = []
    if config.compile in (True, "student"):
        networks.append((student, taps))
    if config.compile in (True, "teachers"):
        members = teachers.members.values()
        networks += [(m.network, m.taps) for m in members if isinstance(m, Teacher)]
    parts = [part for network, used in networks for part in _parts(network, used)]
    # All parts run the same code, `nn.Module.__call__`, which torch counts compilations of.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * len(parts))
    for part in parts:
        part.compile(backend=config.compile_backend)


def _try_backend(backend: str, device: torch.device) -> None:
    """One tiny compilation, which tells before the first step whether there can be more."""
    try:
        torch.compile(_probe, backend=backend)(torch.zeros(8, device=device))
    except Exception as error:  # whatever a backend of a third party may raise
        cause = getattr(error, "inner_exception", error)
        reason = str(cause).strip().splitlines() or [type(cause).__name__]
        raise ConfigError(
            f"runtime.compile: '{backend}' cannot compile on this machine: {reason[0]} "
            f"Install what it misses (inductor: g++ and Python's headers), or set "
            f"runtime.compile=false"
        ) from error


def _probe(x: torch.Tensor) -> torch.Tensor:
    return 2 * x + 1


@contextlib.contextmanager
def uncompiled(config: RuntimeConfig) -> Iterator[None]:
    """Compiled networks run as they are written inside: for images of all sizes, and to count."""
    if not config.compile:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _parts(network: Network, taps: Collection[str]) -> list[nn.Module]:
    """The largest submodules that nothing hooks into."""
    hooked = network.hooked_paths(taps)
    found: list[nn.Module] = []
    waiting = list(network.named_children())
    while waiting:
        path, module = waiting.pop(0)
        inside = any(hook == path or hook.startswith(f"{path}.") for hook in hooked)
        if inside or isinstance(module, _NEVER_CALLED):
            waiting += [(f"{path}.{name}", child) for name, child in module.named_children()]
        else:
            found.append(module)
    return found
