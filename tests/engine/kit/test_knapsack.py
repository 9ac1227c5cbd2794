"""The dynamic program against every combination."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from engine.kit.knapsack import cheapest


def brute(sizes: Any, costs: Any, limit: float, buckets: int) -> float | None:
    """The least size over all combinations, with the same rounding."""
    best = None
    for pick in itertools.product(*(range(len(row)) for row in sizes)):
        units = [costs[i][c] / limit * buckets for i, c in enumerate(pick)]
        if sum(0 if u == 0 else max(math.ceil(u), 1) for u in units) <= buckets:
            size = sum(sizes[i][c] for i, c in enumerate(pick))
            best = size if best is None else min(best, size)
    return best


@pytest.mark.parametrize("buckets", [7, 50, 1000])
def test_it_is_the_best_of_all_combinations(buckets: int) -> None:
    found = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        sizes, costs = rng.integers(1, 50, (4, 4)).astype(float), rng.exponential(1.0, (4, 4))
        limit = float(rng.uniform(0.5, 5.0))
        pick = cheapest(sizes.tolist(), costs.tolist(), limit, buckets)
        expected = brute(sizes, costs, limit, buckets)
        assert (pick is None) == (expected is None)
        if pick is not None:
            found += 1
            assert sum(sizes[i, c] for i, c in enumerate(pick)) == expected
            assert sum(costs[i, c] for i, c in enumerate(pick)) <= limit * (1 + 1e-12)
    assert found > 5


def test_rounding_up_may_lose_a_choice_but_never_breaks_the_limit() -> None:
    sizes, costs = [[1.0]] * 3, [[1.0]] * 3
    assert cheapest(sizes, costs, 3.0, 10) is None, "three thirds of ten buckets take four each"
    assert cheapest(sizes, costs, 3.0, 9) == [0, 0, 0]
    assert cheapest([[5.0, 1.0]], [[0.0, 1e-9]], 1.0, 4) == [1]
    assert cheapest([[5.0, 1.0]] * 5, [[0.0, 1e-9]] * 5, 1.0, 4).count(1) == 4  # type: ignore[union-attr]


def test_what_costs_nothing_fits_a_limit_of_nothing() -> None:
    assert cheapest([[4.0, 1.0], [2.0, 1.0]], [[0.0, 1.0], [0.0, 2.0]], 0.0) == [0, 0]
    assert cheapest([[1.0]], [[1.0]], 0.0) is None
    assert cheapest([], [], 1.0) == []
    with pytest.raises(ValueError, match="negative"):
        cheapest([[1.0]], [[-1.0]], 1.0)
