"""Memory format, SyncBN and torch.compile."""

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import nn

from segkd.config.schema import RunConfig, RuntimeConfig
from segkd.engine.compiled import CompilePlan, compile_plan
from segkd.engine.objective import Objective
from segkd.errors import ConfigError
from segkd.models.frozen import Teacher
from segkd.models.network import Network
from segkd.models.teacher import Teachers
from segkd.runtime import Runtime
from segkd.structures import Batch

_NEVER_CALLED = (nn.ModuleList, nn.ModuleDict)


def with_shared_statistics(student: Network, runtime: Runtime) -> Network:
    """The student with SyncBN layers (``runtime.sync_bn``); names and values of weights are kept.

    Raises:
        ConfigError: on a CPU, for which torch has no SyncBN.
    """
    if runtime.device.type != "cuda":
        raise ConfigError(
            f"runtime.sync_bn: batch statistics are shared between CUDA devices only, this run is "
            f"on {runtime.device.type}. Set runtime.sync_bn=false, or runtime.device=cuda"
        )
    if runtime.world == 1:
        return student
    if any(type(module).__module__.startswith("timm.") for module in student.modules()):
        # timm's batch norms contain an activation, which torch's own conversion would drop.
        from timm.layers import convert_sync_batchnorm

        converted = convert_sync_batchnorm(student)
    else:
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(student)
    assert isinstance(converted, Network)  # only layers inside are replaced
    return converted


def uses_channels_last(config: RuntimeConfig, device: str) -> bool:
    """Whether the student of a run is channels-last: as configured, by default on CUDA.

    Args:
        config: the block ``runtime:``.
        device: type of the device.
    """
    return device == "cuda" if config.channels_last is None else config.channels_last


def set_memory_format(config: RuntimeConfig, device: torch.device, *modules: nn.Module) -> bool:
    """Makes modules channels-last if the run is; returns whether it is."""
    last = uses_channels_last(config, device.type)
    if last:
        channels_last(*modules)
    return last


def channels_last(*modules: nn.Module) -> None:
    """Sets the memory format of convolution weights; teachers may have one of their own."""
    for module in modules:
        if isinstance(module, Teachers):
            members = (m for m in module.members.values() if isinstance(m, Teacher))
            channels_last(*(m.network for m in members if m.channels_last is None))
        else:
            module.to(memory_format=torch.channels_last)


def to_device(batch: Batch, device: torch.device, channels_last: bool) -> Batch:
    """The batch on a device, its images in the memory format of the networks."""
    batch = batch.to(device)
    if not channels_last:
        return batch
    return batch.replace(images=batch.images.contiguous(memory_format=torch.channels_last))


def compile_losses(config: RunConfig, objective: Objective, runtime: Runtime) -> CompilePlan:
    """What is compiled in a run; the losses of its methods are compiled at once if they are named.

    Raises:
        ConfigError: this machine or this run cannot compile as configured.
    """
    plan = compile_plan(config, runtime)
    if plan.losses:
        _try_backend(plan, runtime.device)
        objective.compile_losses(plan.options)
    return plan


def compile_networks(
    plan: CompilePlan,
    taps: Collection[str],
    student: nn.Module,
    *others: nn.Module,
) -> None:
    """Compiles the networks of a plan, in place.

    Names of weights are kept, and copies are not compiled. A submodule with the hook of a tap is
    not compiled itself; its children are.

    Args:
        plan: what is compiled, and how.
        taps: tapped values of the student.
        student: the student.
        others: all teachers, and networks that learn beside the student, compiled if it is.

    Raises:
        ConfigError: this machine cannot compile, e.g. it has no C++ compiler.
    """
    if not (plan.student or plan.teachers):
        return
    _try_backend(plan, next(student.parameters()).device)
    networks: list[tuple[Network, Collection[str]]] = []
    for one in (student, *others):
        if isinstance(one, Network) and plan.student:
            networks.append((one, taps if one is student else ()))
        elif isinstance(one, Teachers) and plan.teachers:
            members = one.members.values()
            networks += [(m.network, m.taps) for m in members if isinstance(m, Teacher)]
    parts = [part for network, used in networks for part in _parts(network, used)]
    # torch limits compilations per code object, and all parts share that of `nn.Module.__call__`.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * len(parts))
    for part in parts:
        part.compile(**plan.options)


def _try_backend(plan: CompilePlan, device: torch.device) -> None:
    """Compiles a tiny function, to fail before the first step."""
    backend = plan.options["backend"]
    try:
        torch.compile(_probe, backend=backend)(torch.zeros(8, device=device))
    except Exception as error:  # a third-party backend may raise anything
        cause = getattr(error, "inner_exception", error)
        reason = str(cause).strip().splitlines() or [type(cause).__name__]
        raise ConfigError(
            f"runtime.compile: '{backend}' cannot compile on this machine: {reason[0]} "
            "Install what is missing (inductor: g++ and Python's headers), or set "
            "runtime.compile=false"
        ) from error


def _probe(x: torch.Tensor) -> torch.Tensor:
    return 2 * x + 1


@contextlib.contextmanager
def uncompiled(config: RuntimeConfig) -> Iterator[None]:
    """Within the context, compiled networks run eagerly: for all image sizes, and for counting."""
    if not config.compile:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _parts(network: Network, taps: Collection[str]) -> list[nn.Module]:
    """The largest submodules without hooks of taps inside."""
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
