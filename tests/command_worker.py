"""`segkd …` with the toys known, and with the faults that $FAULTS names: for tests of processes.

Faults, separated by commas:
    hang-loader    loader processes never finish reading once $FLAG exists
    hang-step      the third step hangs where no Python code runs
    slow-step      a step takes 20 ms longer
    slow-eval      an image takes 200 ms longer to read in an evaluation
    broken-rank1   the second process cannot read its images
"""

import ctypes
import os
import sys
import time
from pathlib import Path

import torch
import toy_run
from torch.utils.data import get_worker_info

from segkd import cli
from segkd.engine.trainer import Trainer
from segkd.errors import DataError

FAULTS = os.environ.get("FAULTS", "").split(",")


def _read(self, index, original=toy_run.ToyData.read):
    if "hang-loader" in FAULTS and get_worker_info() and Path(os.environ["FLAG"]).exists():
        time.sleep(10_000)
    if "slow-eval" in FAULTS and self.split == "val":
        Path(os.environ["FLAG"]).touch()
        time.sleep(0.2)
    if "broken-rank1" in FAULTS and os.environ.get("RANK") == "1" and index > 3:
        raise DataError(f"image {index} of the second process is broken")
    return original(self, index)


def _step(self, batches, original=Trainer._train_step):
    if "slow-step" in FAULTS:
        time.sleep(0.02)
    if "hang-step" in FAULTS and self.step == 2:
        lock, libc = ctypes.create_string_buffer(256), ctypes.CDLL(None)
        Path(os.environ["FLAG"]).touch()
        libc.pthread_mutex_lock(lock), libc.pthread_mutex_lock(lock)
    original(self, batches)


if __name__ == "__main__":
    toy_run.ToyData.read, Trainer._train_step = _read, _step
    toy_run.register()
    torch.set_num_threads(1)
    cli.main(sys.argv[1:])
