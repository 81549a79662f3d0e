import os
from pathlib import Path

import pytest


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("SEGKD_REAL_DATA")
    if not folder:
        pytest.skip("needs the real samples in $SEGKD_REAL_DATA")
    return Path(folder)
