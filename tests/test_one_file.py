"""CONTRIBUTING.md's method, dataset and network, saved where it says, in a copy of the repository.

Nothing else is edited there, and nothing fails.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from segkd.testing import CheckFailed, check_method

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
COPIED = ("segkd", "tests", "configs", "docs", "datasets", "benchmarks", "CONTRIBUTING.md")
COPIED += ("README.md", "CHANGELOG.md", "pyproject.toml", "train.py", "eval.py")
LEFT = shutil.ignore_patterns(
    "__pycache__", "*.pyc", "runs", "streets_*.safetensors", "lanes_*.safetensors"
)
FILES = {  # where a block of the page belongs, and what it contains
    "segkd/methods/brier.py": "class Brier(Method)",
    "tests/methods/test_brier.py": "from segkd.methods.brier import",
    "segkd/data/plates.py": "class Plates(PairedDataset)",
    "tests/data/test_plates.py": "from segkd.data.plates import",
    "segkd/models/slim.py": "class Slim(Network)",
    "tests/models/test_slim.py": "from segkd.models.slim import",
}
QUICKSTART = "train quickstart runs.distilled.methods.brier.weight=2.0 steps=2 eval.limit=2"
RUN = """\
steps: 2
data: {name: plates, root: plates, batch_size: 2, workers: 0, crop: [32, 32]}
student: {arch: slim, options: {width: 4}}
teachers: {main: {arch: slim}}
methods: {brier: {}}
eval: {every: 2}
runtime: {device: cpu}
log: {tensorboard: false}
"""


def block(content: str) -> str:
    """The page's Python block with this in it."""
    found = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (one,) = [text for text in found if content in text]
    return one


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=LEFT)
        else:
            shutil.copy(ROOT / name, folder / name)
    pretrained = "segkd/models/pretrained"
    for path in (ROOT / pretrained).glob("*.safetensors"):  # large, and not written to
        (folder / pretrained / path.name).symlink_to(path)
    for path, content in FILES.items():
        (folder / path).write_text(block(content))
    return folder


def run(folder: Path, *command: str, seconds: int = 600) -> str:
    """What a Python command prints in the copy. Fails unless it succeeds in time."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_files_are_in_the_style_of_the_package(copy):
    ruff = pytest.importorskip("ruff")
    assert ruff
    paths = [path for path in FILES if path.startswith("segkd/")]
    run(copy, "-m", "ruff", "check", *paths)
    run(copy, "-m", "ruff", "format", "--check", *FILES)


def test_their_own_tests_and_those_of_all_parts_pass(copy):
    tests = [path for path in FILES if path.startswith("tests/")]
    tests += ["tests/methods/test_form.py", "tests/test_methods_page.py", "tests/test_floors.py"]
    tests += ["tests/data/test_datasets_readme.py", "tests/test_contract.py"]
    skipped = "not test_one_and_two_real and (not test_contract or brier)"
    print(run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", skipped))


def commands(folder: Path, *lines: str) -> str:
    """What some `segkd` commands print in the copy, one after the other in one process."""
    script = (
        "from segkd import cli\n"
        f"for line in {lines!r}:\n"
        "    try:\n"
        "        cli.main(line.split())\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code, (line, stop.code)\n"
    )
    return run(folder, "-c", script)


def test_commands_know_them(copy):
    make_plates(copy / "plates")
    (copy / "run.yaml").write_text(RUN)
    listed = "explain brier", "list methods", "list methods --markdown"
    said = commands(copy, *listed, "train run.yaml")
    assert re.search(r"brier +response +yours", said)
    assert re.search(r"## Without a paper\n\n.*\n.*\n\| `brier` \| yours \|.*\| \? \| \? \|", said)
    assert "mean_pixels Σ_k (p_s − p_t)²" in said and "not measured" in said
    summary = json.loads((copy / "runs/run/summary.json").read_text())
    assert summary["steps"] == 2 and "method/brier" in summary["seconds"]


@pytest.mark.slow
def test_the_first_recipe_takes_the_method(copy):
    assert "2 steps" in commands(copy, QUICKSTART)


def make_plates(root: Path) -> None:
    """Two splits of three images."""
    import cv2
    import numpy as np

    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(3):
            for kind, array in (
                ("images", draw.integers(0, 256, (48, 64, 3))),
                ("masks", draw.choice([0, 1, 255], (48, 64))),
            ):
                path = root / split / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), array.astype(np.uint8))


@pytest.mark.slow
def test_no_test_of_the_package_fails(copy):
    """The whole fast suite; that of this file would copy the copy."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    print(run(copy, *command, "--ignore=tests/test_one_file.py", seconds=5400))


def test_the_failure_that_the_page_shows_is_what_is_said():
    code = block("class Brier(Method)")
    right = "(distance * mask).sum() / mask.sum().clamp(min=1)"
    assert right in code
    (shown,) = [
        text for text in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL) if "seen:" in text
    ]
    module = {"__name__": "wrong_brier"}
    exec(compile(code.replace(right, "(distance * mask).mean()"), "wrong_brier", "exec"), module)
    with pytest.raises(CheckFailed) as caught:
        check_method(module["Brier"], skip={"pickling": "it is in no module"})
    said = str(caught.value)
    for line in shown.splitlines():
        for part in filter(None, (part.strip() for part in line.split("…"))):
            words = re.escape(re.sub(r"\s+", " ", part))
            words = re.sub(r"\d\\\.\d+", r"[\\d.]+", words)  # numbers depend on the version
            assert re.search(words, re.sub(r"\s+", " ", said)), part
