"""What samples are worth: exact matching, shares of modes, ranks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats

from engine.kit.generation import noise, rng_for, shares, spearman, wasserstein1
from engine.parts import Batch


def test_matching_in_one_dimension_is_sorting() -> None:
    x, y = torch.randn(50, 1), 2 * torch.rand(50, 1) - 1
    assert wasserstein1(x, y) == pytest.approx(stats.wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-9)


def test_matching_is_the_best_of_all() -> None:
    x, y = torch.randn(6, 3), torch.randn(6, 3)
    best = min(
        sum(float((x[i].double() - y[j].double()).norm()) for i, j in enumerate(order)) / 6
        for order in itertools.permutations(range(6))
    )
    assert wasserstein1(x, y) == pytest.approx(best, rel=1e-9)
    shift = torch.tensor([3.0, 0.0, 4.0])
    assert wasserstein1(x, x + shift) == pytest.approx(5.0, rel=1e-6)
    assert math.isnan(wasserstein1(x, x * float("nan")))
    with pytest.raises(ValueError, match="same shape"):
        wasserstein1(x, y[:5])


def test_shares_of_modes() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    samples = torch.tensor([[0.1, 0.0], [0.0, 3.0], [9.9, 0.0], [10.0, 0.2]])
    share, distance = shares(samples, centres, 1.0)
    assert share.tolist() == [0.25, 0.5] and torch.allclose(distance, torch.tensor([0.1, 3.0, 0.1, 0.2]), atol=1e-3)
    assert shares(samples, centres)[0].tolist() == [0.5, 0.5]


def test_rank_correlation_is_scipys() -> None:
    x = [3.0, 1.0, 1.0, 7.0, 5.0, 5.0, 2.0]
    y = [2.0, 0.0, 1.0, 9.0, 2.0, 4.0, 3.0]
    assert spearman(x, y) == pytest.approx(float(stats.spearmanr(x, y).statistic), abs=1e-12)
    assert spearman([1.0, 2.0, 3.0], [5.0, 4.0, -1.0]) == pytest.approx(-1)
    assert math.isnan(spearman([1.0, 1.0], [1.0, 2.0])) and math.isnan(spearman([1.0], [1.0]))


def test_the_same_samples_are_made_of_the_same_draws() -> None:
    first, next_ = (Batch({}, None, torch.arange(start, start + 4)) for start in (0, 4))
    draws = [noise((4, 2), rng_for(batch, 3)) for batch in (first, next_, first)]
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], noise((4, 2), rng_for(first, 4)))
