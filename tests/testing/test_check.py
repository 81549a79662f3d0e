"""Lists of checks: choosing, skipping with a reason, and what is said."""

import pytest
import toys
from method_mutants import FlippedSign, Plain

from segkd.errors import ConfigError
from segkd.methods.cwd import CWD
from segkd.testing import METHOD_CHECKS, CheckFailed, check_method


def test_a_class_an_instance_and_a_name_are_the_same_method():
    checks = ("terms", "declaration")
    for method in ("kd", CWD, CWD(CWD.Config(tap="stage4"))):
        assert check_method(method, only=checks).passed == ["declaration", "terms"]
    keys = {"tap": "stage4", "temperature": 2.0}
    assert check_method("cwd", keys, only="scaled_features").passed == ["scaled_features"]
    assert check_method("cwd", only="scaled_features").skipped == {
        "scaled_features": "it looks at logits alone"
    }


def test_a_failure_names_the_check_what_was_seen_and_why_it_matters():
    with pytest.raises(CheckFailed) as caught:
        check_method(FlippedSign, only="never_negative")
    assert isinstance(caught.value, AssertionError)
    text, check = str(caught.value), next(c for c in METHOD_CHECKS if c.name == "never_negative")
    assert "method 'plain': never_negative failed" in text
    assert check.demand in text and f"why:  {check.reason}" in text
    assert "seen: terms below 0: plain = -0.2" in text
    assert caught.value.failed.keys() == {"never_negative"}


def test_what_is_left_out_needs_a_reason():
    report = check_method(
        FlippedSign,
        only=["never_negative", "perfect_student", "terms"],
        skip={"never_negative": "a score", "perfect_student": "a score"},
    )
    assert report.passed == ["terms"]
    assert str(report) == (
        "plain: 1 checks passed\n  never_negative: skipped, a score\n"
        "  perfect_student: skipped, a score"
    )
    with pytest.raises(ConfigError, match="'terms' is left out without a reason"):
        check_method(Plain, skip={"terms": " "})


def test_unknown_names_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"only: .*'gradeint' of a method. Did you .*'gradient'"):
        check_method(Plain, only="gradeint")
    with pytest.raises(ConfigError, match=r"skip: there is no check 'grad'"):
        check_method(Plain, skip={"grad": "x"})
    monkeypatch.setattr(Plain, "exempt", {"waiting": "x"})
    with pytest.raises(ConfigError, match=r"exempt of plain: there is no check 'waiting'"):
        check_method(Plain, only="terms")
    with pytest.raises(ConfigError, match="unknown method 'kdd'"):
        check_method("kdd")
    with pytest.raises(ConfigError, match="expected a class derived from segkd"):
        check_method(toys)
    with pytest.raises(ConfigError, match=r"check_method: temperatur: unknown key. Did you mean"):
        check_method("kd", {"temperatur": 2.0})


def test_each_check_says_what_and_why():
    for check in METHOD_CHECKS:
        assert check.demand.endswith(".") and check.reason.endswith("."), check.name
        assert check.name.isidentifier() and "\n" not in check.demand + check.reason
