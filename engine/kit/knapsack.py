"""Choosing one of several options for each item under a common limit, exactly, by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def cheapest(
    sizes: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], limit: float, buckets: int = 10000
) -> list[int] | None:
    """The option of each item with the least total size whose total cost is at most `limit`; None where there is none.

    ``sizes[i][c]`` and ``costs[i][c]`` belong to option c of item i. Costs are rounded up to multiples of
    ``limit / buckets``, a cost above zero to one at least, so that the limit always holds; a choice that only fits
    before rounding is not found. Of equally cheap choices the first option counts.
    """
    if any(min(row) < 0 for row in costs) or limit < 0:
        raise ValueError("Costs and the limit must not be negative.")
    whole = [[_rounded_up(cost, limit, buckets) for cost in row] for row in costs]
    best = np.zeros(buckets + 1)  # least size of the items so far, by the most that they may cost
    picks = []
    for row, units in zip(sizes, whole, strict=True):
        tried = np.full((len(row), buckets + 1), np.inf)
        for option, (size, unit) in enumerate(zip(row, units, strict=True)):
            if unit <= buckets:
                tried[option, unit:] = best[: buckets + 1 - unit] + size
        pick = tried.argmin(0)
        best = tried[pick, np.arange(buckets + 1)]
        picks.append(pick)
    if not np.isfinite(best[buckets]):
        return None
    left, chosen = buckets, []
    for pick, units in zip(reversed(picks), reversed(whole), strict=True):
        option = int(pick[left])
        chosen.append(option)
        left -= units[option]
    return chosen[::-1]


def _rounded_up(cost: float, limit: float, buckets: int) -> int:
    if cost == 0:
        return 0
    if not cost <= limit:
        return buckets + 1
    return max(math.ceil(cost / limit * buckets), 1)
