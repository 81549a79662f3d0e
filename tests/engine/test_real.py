"""Real frames through loader, training steps and evaluation."""

import os
from pathlib import Path

import pytest

from segkd.config.load import load_config
from segkd.engine.run import train_run


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "folder", "extra", "absent"),
    [
        ("cityscapes", "cityscapes_sample", {"val_split": "train", "crop": [128, 256]}, True),
        ("camvid", "camvid", {"resize": [96, 128], "crop": [96, 128]}, False),
    ],
)
def test_two_steps_and_an_evaluation(tmp_path, name, folder, extra, absent):
    root = Path(os.environ["SEGKD_REAL_DATA"]) / folder
    data = {"name": name, "root": str(root), "batch_size": 2, "workers": 0, **extra}
    plain = {
        "out": str(tmp_path / "run"),
        "steps": 2,
        "data": data,
        "student": {"arch": "enet"},
        "eval": {"every": 0, "limit": 1},
        "log": {"tensorboard": False},
        "runtime": {"device": "cpu", "threads": 1},
    }
    summary = train_run(load_config(plain).run)
    assert summary["images"] == 1
    assert 0 <= summary["miou"] < 0.5
    pixels = sum(map(sum, summary["matrix"]))
    full = 1024 * 2048 if absent else 360 * 480
    assert 0.7 * full < pixels <= full  # scored at the label's own resolution
