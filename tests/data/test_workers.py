"""Memory of loader processes; how they are watched is in test_loader.py."""

import platform
import subprocess
import sys

import pytest

_COUNT = """
import resource
import numpy as np
from segkd.data.workers import keep_freed_memory
if {kept}:
    keep_freed_memory()
for turn in range(12):
    arrays = [np.ones(6 * 2**20, np.uint8) for _ in range(4)]  # images of 1024x2048
    del arrays
    if turn == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another one")
def test_images_are_made_in_the_memory_of_earlier_ones():
    pages = [
        int(
            subprocess.run(
                [sys.executable, "-c", _COUNT.format(kept=kept)],
                capture_output=True,
                check=True,
                text=True,
            ).stdout
        )
        for kept in (True, False)
    ]
    assert pages[0] < 100 and pages[1] > 1000
