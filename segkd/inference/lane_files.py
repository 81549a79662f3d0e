"""Detected lanes as files: ``.lines.txt`` for CULane, JSON lines for TuSimple."""

from typing import Any

import numpy as np

from segkd.data.lane_writing import ABSENT as ABSENT
from segkd.data.lane_writing import lines_text as lines_text
from segkd.data.lane_writing import number as number
from segkd.data.lane_writing import write_curvelanes as write_curvelanes
from segkd.data.lane_writing import write_lines as write_lines
from segkd.data.lane_writing import write_tusimple as write_tusimple
from segkd.inference.lane_decode import Lanes


def tusimple_item(raw_file: str, lanes: Lanes, run_time: float = 0.0) -> dict[str, Any]:
    """The JSON object of an image in a TuSimple file.

    Args:
        raw_file: path of the image below the root of its set.
        lanes: of the image, at TuSimple's rows.
        run_time: milliseconds.
    """
    present = lanes.x[~np.isnan(lanes.x).all(axis=1)]
    return {
        "raw_file": raw_file,
        "lanes": [[ABSENT if x != x else number(x) for x in lane] for lane in present.tolist()],
        "h_samples": [number(y) for y in lanes.y.tolist()],
        "run_time": number(run_time),
    }
