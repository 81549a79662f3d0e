import pytest

from segkd.errors import ConfigError
from segkd.methods.shared.tapped import paired_taps


def test_the_teachers_taps_are_the_same_unless_named():
    assert paired_taps(["head", "stage4"], [], "at") == {"head": "head", "stage4": "stage4"}
    assert paired_taps(["head", "stage4"], ["stage4", "stage5"], "at") == {
        "head": "stage4",
        "stage4": "stage5",
    }


@pytest.mark.parametrize(
    ("student", "teacher", "text"),
    [
        ([], [], "method 'at': got taps .*at least one"),
        (["head", "head"], ["stage4", "stage5"], "no duplicates"),
        (["head"], ["stage4", "stage5"], "got 1 taps but 2 teacher_taps"),
    ],
)
def test_what_cannot_be_paired_is_refused(student, teacher, text):
    with pytest.raises(ConfigError, match=text):
        paired_taps(student, teacher, "at")
