"""CPUs that this process may use, and how its threads wait for each other."""

import math
import os
import sys
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_CPU_INFO = Path("/proc/cpuinfo")


# How often libgomp's threads look whether they may go on before they sleep, and the milliseconds
# that those of Intel's and LLVM's OpenMP look. benchmarks/threads.py: no loss on an idle machine,
# where threads that sleep at once take 1.5 times as long; beside other work a sixth of the time
# with libgomp's own 300,000.
SPINS = 10_000
_BLOCK_TIME = 1


def available_cpus() -> int:
    """The number of CPUs that this process may use, at least 1.

    The smaller of its affinity (``taskset``, Slurm) and of its cgroup's quota (``docker run --cpus
    2``, Kubernetes), rounded up: a container with a quota sees all CPUs of its machine, but more
    threads than the quota are stopped in the middle of their work.
    """
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = cpu_quota()
    return max(1, min(known or 1, math.ceil(quota) if quota else known or 1))


def cpu_quota(own: Path = _OWN_CGROUPS, root: Path = _CGROUPS) -> float | None:
    """CPUs' worth of time that the cgroups of this process grant; None: no limit is known.

    Args:
        own: the list of the process's cgroups, as in ``/proc/self/cgroup``.
        root: where cgroups are mounted.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2: one tree
            folder, read = root, _quota_v2
        elif "cpu" in controllers.split(","):
            folder, read = root / "cpu", _quota_v1
        else:
            continue
        # A limit of any group above holds as well. In a container the path may not exist here.
        parts = Path(path.lstrip("/"))
        for group in (parts, *parts.parents):
            quota = read(folder / group)
            quotas += [] if quota is None else [quota]
    return min(quotas, default=None)


def saturates_int8(info: Path = _CPU_INFO) -> bool:
    """Whether this CPU adds products of 8-bit numbers in 16 bits, where large sums are cut off.

    That is so on x86 without VNNI: ONNX Runtime's kernels for uint8 activations and int8 weights
    are less accurate there than elsewhere.

    Args:
        info: facts about the CPU, as in ``/proc/cpuinfo``; what is not known counts as False.
    """
    try:
        lines = info.read_text().splitlines()
    except OSError:  # not Linux
        return False
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    return bool(flags) and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}


def wait_briefly() -> None:
    """Lets waiting OpenMP threads spin only briefly; has an effect before torch is imported.

    Where another process uses a core, a thread that spins at a barrier takes the time of the
    thread that it waits for. A choice of the user's (``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT``,
    ``KMP_BLOCKTIME``) stays.
    """
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys()
    if "torch" not in sys.modules and not chosen:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
        os.environ["KMP_BLOCKTIME"] = str(_BLOCK_TIME)


def interruptions() -> int:
    """How often other work took a CPU from a thread of this process; 0 where it is not known."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _quota_v2(group: Path) -> float | None:
    try:
        limit, period = (group / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(group: Path) -> float | None:
    try:
        limit = int((group / "cpu.cfs_quota_us").read_text())
        return limit / int((group / "cpu.cfs_period_us").read_text()) if limit > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
