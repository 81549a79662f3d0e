"""Promises about the code itself: sizes, imports, and files that must not be there."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sources import parsed

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "segkd").rglob("*.py"))
LIGHT = [
    "segkd.ops.softmax_kl",
    "segkd.methods.kd",
    "segkd.methods.cwd",
    "segkd.metrics.confusion",
    "segkd.engine.run",
    "segkd.models.enet",
    "segkd.config.load",
]
HEAVY = ["segmentation_models_pytorch", "torchvision", "timm", "cv2", "albumentations"]
LATE = ["matplotlib", "tensorboard", "onnx"]


def name_of(path):
    return str(path.relative_to(ROOT))


def imported_after(code):
    """Names of all modules that are loaded after ``code`` ran in a fresh interpreter."""
    script = f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_and_functions_stay_small(path):
    text = path.read_text()
    is_method = path.parent.name == "methods" and path.name != "base.py"
    assert len(text.splitlines()) <= (250 if is_method else 400)
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


@pytest.mark.parametrize("name", ["train.py", "eval.py"])
def test_the_shims_stay_shims(name):
    assert len((ROOT / name).read_text().splitlines()) <= 15


def test_no_file_is_called_utils():
    assert not [path for path in MODULES if path.stem in ("utils", "common", "misc", "helpers")]


@pytest.mark.parametrize("folder", ["configs", "datasets", "tests"])
def test_folders_beside_the_package_are_no_packages(folder):
    assert not list((ROOT / folder).rglob("__init__.py"))


def test_help_and_the_bare_import_load_no_torch():
    loaded = imported_after("import segkd, segkd.cli")
    for name in ("torch", "numpy", "pydantic", "yaml", "cv2"):
        assert name not in loaded


def test_the_core_and_all_discovery_load_no_heavy_library():
    loaded = imported_after(
        f"import {', '.join(LIGHT)}\n"
        "from segkd import registry\n"
        "for kind in (registry.methods, registry.losses, registry.models): kind.names()"
    )
    assert set(LIGHT) <= loaded
    assert not loaded & {*HEAVY, *LATE}


def imports_of(path):
    """Dotted names that a module imports anywhere."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("ops", ("torch", "segkd.ops")),
        (
            "methods",
            (
                "torch",
                "pydantic",
                "typing_extensions",
                "segkd.methods.base",
                "segkd.methods.shared",
                "segkd.conversion",
                "segkd.method_config",
                "segkd.method_context",
                "segkd.method_names",
                "segkd.ops",
                "segkd.modules",
                "segkd.structures",
                "segkd.errors",
            ),
        ),
    ],
)
def test_what_methods_and_ops_may_import(folder, allowed):
    for path in (ROOT / "segkd" / folder).rglob("*.py"):
        for name in imports_of(path):
            first = name.partition(".")[0]
            ours = any(name == rule or name.startswith(f"{rule}.") for rule in allowed)
            assert ours or first in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_nothing_imports_the_command_line():
    for path in MODULES:
        if path.name not in ("cli.py", "__main__.py"):
            assert not [n for n in imports_of(path) if n.startswith("segkd.cli")], path.name


def test_all_configs_are_short():
    """That they load, ``config/test_shipped.py`` looks at."""
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        if path.name != "every_method.yaml":  # a line for each
            assert len(path.read_text().splitlines()) <= 30, path.name
