"""How often a fault is tried: seldom in every run of the tests, ATHANOR_FAULTS times as often where it is set."""

from __future__ import annotations

import os

TIMES = int(os.environ.get("ATHANOR_FAULTS") or 1)


def tries(number: int) -> range:
    """So many tries, or ATHANOR_FAULTS times as many."""
    return range(number * TIMES)
