"""Checks that any method, network or dataset must pass, for one line of its author's own test.

    from segkd.testing import check_method

    def test_it_keeps_the_promises():
        check_method(MyMethod)

Each check has a name, says what it demands and why, and can be run alone (``only``) or left out
with a reason (``skip``). ``segkd list checks`` shows all of them.
"""

from segkd.testing.check import Check, CheckFailed, CheckList, Report
from segkd.testing.dataset import check_dataset
from segkd.testing.dataset_checks import DATASET_CHECKS
from segkd.testing.method import METHOD_CHECKS, check_method
from segkd.testing.network import NETWORK_CHECKS, check_network

__all__ = [
    "DATASET_CHECKS",
    "METHOD_CHECKS",
    "NETWORK_CHECKS",
    "Check",
    "CheckFailed",
    "CheckList",
    "Report",
    "check_dataset",
    "check_method",
    "check_network",
]
