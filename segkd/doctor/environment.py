"""Checks of the machine: Python, packages that must fit together, CUDA, cores, folders."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from segkd.cpus import available_cpus, cpu_quota
from segkd.doctor.finding import Finding, Level

_PYTHON = (3, 11)
_OPENCV = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
_IMPORTED = {  # module: distribution
    "torch": "torch",
    "torchvision": "torchvision",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "cv2": "opencv-python-headless",
    "albumentations": "albumentations",
}
# Run in a separate process: an inconsistent installation may crash the interpreter.
_PROBE = """
import importlib, json, sys
for name in sys.argv[1:]:
    try:
        module, reason = importlib.import_module(name), ""
        if name == "torchvision":
            module.ops.nms
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
    print(json.dumps([name, reason]), flush=True)
"""
_SHM = Path("/dev/shm")
_ENOUGH_SHM = 256 * 2**20  # containers have 64 MiB by default
SHARED_MEMORY_REPAIR = "data.workers=0, or a larger one: docker run --shm-size=8g (or --ipc=host)"
_BOTH = "Install both from the same index: pip install --force-reinstall torch torchvision"


def examine_environment(imports: Callable[[], dict[str, str]] | None = None) -> Iterator[Finding]:
    """Yields findings about the machine.

    Args:
        imports: returns, by module, the error of importing it; default: ``import_errors``.
    """
    yield _python()
    broken = (imports or import_errors)()
    yield from _packages(broken)
    yield from _versions()
    yield from _opencv()
    if not broken.get("torch"):
        yield from _pair(broken)
        yield from _cuda()
    yield _cores()
    yield from _shared_memory()
    yield from _data_root()


def import_errors() -> dict[str, str]:
    """By module, the error of importing it; empty if it succeeds."""
    # Otherwise albumentations queries PyPI for a newer version.
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
    command = [sys.executable, "-c", _PROBE, *_IMPORTED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    crashed = next((name for name in _IMPORTED if name not in found), None)
    if crashed is not None:
        found[crashed] = f"the interpreter ended with code {done.returncode}"
    return found


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _PYTHON:
        needed = ".".join(map(str, _PYTHON))
        return Finding("error", "python", f"{version}, required is {needed}", "Use a newer Python")
    return Finding("ok", "python", f"{version} on {sys.platform}")


def _packages(broken: dict[str, str]) -> Iterator[Finding]:
    for module, distribution in _IMPORTED.items():
        version = _version(distribution) or (_version("opencv-python") if module == "cv2" else None)
        if module not in broken:
            continue
        about = "opencv" if module == "cv2" else module
        if not broken[module]:
            yield Finding("ok", about, version or "imported")
        elif version is None:
            yield Finding("error", about, "is not installed", f"pip install {distribution}")
        else:
            text = f"{version} cannot be imported: {broken[module].partition(chr(10))[0]}"
            repair = f"pip install --force-reinstall {distribution}"
            pair = module in ("torchvision", "segmentation_models_pytorch")
            yield Finding("error", about, text, _BOTH if pair else repair)


def _versions() -> Iterator[Finding]:
    """Unmet requirements of segkd; unknown in a clone that is not installed."""
    try:
        from packaging.requirements import Requirement

        required = [Requirement(text) for text in metadata.requires("segkd") or ()]
    except (ImportError, metadata.PackageNotFoundError):
        return
    for one in required:
        version = None if one.marker else _version(one.name)
        if version and not one.specifier.contains(version, prereleases=True):
            text = f"{version}, required is {one.specifier}"
            yield Finding("error", one.name, text, f"pip install --upgrade '{one}'")


def _opencv() -> Iterator[Finding]:
    """Several distributions write into one folder ``cv2``; the last one wins."""
    there = [name for name in _OPENCV if _version(name)]
    if len(there) > 1:
        keep = there[0]
        version = _version(keep)
        yield Finding(
            "warning",
            "opencv",
            f"{len(there)} packages share one folder cv2: {', '.join(there)}. Removing one breaks "
            "the other",
            f"pip uninstall -y {' '.join(there)} && pip install {keep}=={version}",
        )


def _pair(broken: dict[str, str]) -> Iterator[Finding]:
    """torch and torchvision must be built for each other, including the CUDA version."""
    torch, vision = _build("torch"), _build("torchvision")
    if torch is None or vision is None or torch == vision:
        return
    level: Level = "error" if broken.get("torchvision") else "warning"
    text = f"torch is a build for {torch}, torchvision one for {vision}"
    yield Finding(level, "torchvision", text, _BOTH)


def _build(package: str) -> str | None:
    """The build of a package, e.g. ``cu132`` or ``cpu``, without importing it."""
    from importlib.util import find_spec

    spec = find_spec(package)
    path = Path(spec.origin).parent / "version.py" if spec and spec.origin else None
    lines = path.read_text().splitlines() if path and path.is_file() else []
    line = next((line for line in lines if line.startswith("__version__")), "")
    _, plus, build = line.rpartition("=")[2].strip(" '\"").partition("+")
    return build if plus else None


def _cuda() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            text = f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.0f} GiB"
            yield Finding("ok", "cuda", f"{text}, CUDA {torch.version.cuda}")
    elif not Path("/proc/driver/nvidia/version").exists() and not shutil.which("nvidia-smi"):
        yield Finding("ok", "cuda", "no NVIDIA driver here: runs use the CPU")
    elif torch.version.cuda is None:
        text = "there is an NVIDIA driver, but this torch is a CPU build"
        yield Finding("warning", "cuda", text, "Install a CUDA build: https://pytorch.org")
    else:
        text = f"there is an NVIDIA driver, but torch (CUDA {torch.version.cuda}) cannot use it"
        yield Finding("warning", "cuda", text, "Update the driver, see nvidia-smi")


def _cores() -> Finding:
    quota, threads = cpu_quota(), os.environ.get("OMP_NUM_THREADS")
    limit = f", a quota of {quota:g} CPUs" if quota else ""
    limit += f", OMP_NUM_THREADS={threads}" if threads else ""
    return Finding("ok", "cores", f"{available_cpus()}{limit}")


def shared_memory() -> int | None:
    """Free bytes of /dev/shm, which loader processes use for batches; None: it does not exist."""
    return shutil.disk_usage(_SHM).free if _SHM.is_dir() else None


def _shared_memory() -> Iterator[Finding]:
    free = shared_memory()
    if free is None:
        return
    text = f"{free / 2**20:.0f} MiB free in {_SHM}"
    if free >= _ENOUGH_SHM:
        yield Finding("ok", "shared memory", text)
    else:
        text += ": loader processes use it for batches, it may be too small"
        yield Finding("warning", "shared memory", text, SHARED_MEMORY_REPAIR)


def _data_root() -> Iterator[Finding]:
    variable = os.environ.get("SEGKD_DATASETS")
    root = Path(variable or "datasets").expanduser()
    source = "$SEGKD_DATASETS" if variable else "default"
    if root.is_dir():
        sets = sorted(path.name for path in root.iterdir() if path.is_dir())
        yield Finding("ok", "data root", f"{root} ({source}): {', '.join(sets) or 'empty'}")
    elif variable:
        repair = "Correct the variable, or unset it to use ./datasets"
        yield Finding("warning", "data root", f"{root} ($SEGKD_DATASETS) is not a folder", repair)
    else:
        yield Finding("ok", "data root", "./datasets does not exist; $SEGKD_DATASETS is not set")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
