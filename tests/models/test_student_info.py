"""StudentInfo beside the weights: names and colours, known or made up."""

import numpy as np

from segkd.data.palette import default_palette
from segkd.models.student_info import StudentInfo


def test_facts_of_a_payload_keep_what_other_files_need():
    payload = {
        "classes": ["a", "b"],
        "palette": [[1, 2, 3], [4, 5, 6]],
        "config": "data: {name: toy, resize: [32, 48], crop: [16, 24]}",
        "weights": {"w": 0},
        "miou": 0.5,
    }
    facts = StudentInfo.of(payload)
    assert facts.classes == ("a", "b")
    assert facts.palette.dtype == np.uint8 and facts.palette.tolist() == payload["palette"]
    assert facts.resize == (32, 48) and facts.crop == (16, 24)
    assert set(facts.payload) == {"classes", "palette", "config", "miou"}


def test_what_is_not_known_is_made_up():
    facts = StudentInfo.unknown(3)
    assert facts.classes == ("class 0", "class 1", "class 2")
    assert np.array_equal(facts.palette, default_palette(3))
    assert facts.resize is None and facts.crop is None
    assert StudentInfo.of({"classes": ["a"], "config": "steps: 3"}).resize is None
