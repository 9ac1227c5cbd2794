"""How often a fault is tried: seldom in every run of the tests, ATHANOR_TRIES times as often where it is set."""

from __future__ import annotations

import os

TIMES = int(os.environ.get("ATHANOR_TRIES", "1"))


def tries(number: int) -> range:
    """So many tries, or ATHANOR_TRIES times as many."""
    return range(number * TIMES)
