"""What all tests share: toys are registered, and tests that lack something skip with a reason."""

import gc
import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import pytest
import torch
import toy_run

from segkd.doctor import environment

toy_run.register()


def pytest_runtest_setup(item):
    """Tests are small, so that threads only wait for each other. A run in a test sets its own."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    real = pytest.mark.skip(reason="real samples: set SEGKD_REAL_DATA to their folder")
    gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "real" in item.keywords and not os.environ.get("SEGKD_REAL_DATA"):
            item.add_marker(real)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(gpu)


def pytest_collection_finish(session):
    """Modules and tests stay to the end: neither garbage collection nor a fork looks at them."""
    gc.collect()
    gc.freeze()


def precisions():
    backends = torch.backends.cuda, torch.backends.mkldnn
    parts = [backend.matmul for backend in backends]
    parts += [torch.backends.cudnn.conv, torch.backends.mkldnn.conv]
    return [part.fp32_precision for part in parts]


@pytest.fixture(autouse=True)
def no_setting_is_left_behind():
    """What a test sets for the whole process would change tests after it, in some orders only."""

    def settings():
        return precisions(), torch.get_default_dtype(), torch.is_grad_enabled()

    before = settings()
    yield
    assert settings() == before, "the test leaves a setting of the process changed"


@pytest.fixture
def quick_imports(monkeypatch):
    """The doctor takes all packages for sound, instead of importing them in a fresh interpreter."""
    good = dict.fromkeys(environment._IMPORTED, "")
    monkeypatch.setattr(environment, "import_errors", lambda: good)
