"""What commands import: those that only look something up must not wait for torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NETWORKS = {"segmentation_models_pytorch", "torchvision", "timm", "albumentations"}
HEAVY = {"torch", "cv2", "scipy", "matplotlib", "tensorboard", "onnx", *NETWORKS}


def imported_by(*command, code=0):
    """Names of all modules that are loaded when ``segkd COMMAND`` ends with ``code``."""
    script = (
        "import sys\n"
        "from segkd.cli import main\n"
        "try:\n"
        f"    main({list(command)!r})\n"
        "finally:\n"
        "    print(*sys.modules, sep='\\n', file=sys.__stderr__)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == code, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "config --help",
        "list methods",
        "list methods --kind relation",
        "list models --json",
        "list datasets",
        "list configs",
    ],
)
def test_looking_up_loads_no_heavy_library(command):
    assert not imported_by(*command.split()) & HEAVY


@pytest.mark.parametrize("command", ["explain cwx", "config show no_such", "list methodz"])
def test_a_misspelt_name_is_told_without_heavy_libraries(command):
    assert not imported_by(*command.split(), code=2) & HEAVY


@pytest.mark.parametrize("command", ["explain cwd", "config show camvid/kd_cwd"])
def test_a_method_loads_torch_and_nothing_else_heavy(command):
    loaded = imported_by(*command.split())
    assert "segkd.methods.cwd" in loaded  # so that torch is needed
    assert not loaded & (HEAVY - {"torch", "scipy"})
    assert "segkd.methods.nst" not in loaded
