"""Toy runs that are trained once, and the reports that are made of copies of them."""

import shutil

import pytest
from report_runs import ToyLanes, silent
from toy_run import toy_config

from segkd import registry
from segkd.engine.run import train_run
from segkd.report.make import make_report


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A recipe's folder: teacher, alone on two seeds, distilled."""
    folder = tmp_path_factory.mktemp("runs") / "streets"
    registry.datasets.add(ToyLanes)
    train_run(toy_config(folder / "big", student={"arch": "toy", "options": {"width": 8}}))
    teachers = {"big": {"checkpoint": str(folder / "big")}}
    for seed in (0, 1):
        train_run(toy_config(folder / "alone" / f"seed{seed}", seed=seed, eval={"every": 2}))
    train_run(
        toy_config(folder / "distilled" / "seed0", teachers=teachers, methods={"kd": {}, "cwd": {}})
    )
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    """A copy of the recipe's folder that a test may change."""
    return shutil.copytree(trained, tmp_path / "streets")


@pytest.fixture(scope="session")
def report():
    """``report(path, …)``: makes a report without a progress bar."""

    def make(*paths, **options):
        return make_report(list(paths), bar=silent, **{"latency": False, **options})

    return make


@pytest.fixture(scope="session")
def written(trained, tmp_path_factory):
    """One whole report, latency included."""
    out = tmp_path_factory.mktemp("report")
    return make_report([trained], out=out, bar=silent)
