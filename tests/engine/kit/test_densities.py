"""Kernel densities against scipy and plain sums, draws against their distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from engine.kit.densities import ProductKernel, filled_in, rank_correlation, truncated_normal


def some(n: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    numbers = torch.rand(n, 2, generator=rng, dtype=torch.float64)
    codes = torch.randint(3, (n, 1), generator=rng).double()
    return torch.cat([numbers, codes], 1)


def test_density_and_bandwidth_are_the_plain_sums() -> None:
    points, at = some(25), some(40, 1)
    ours = ProductKernel(points, [0, 0, 3], least=1e-3)
    widths = 1.06 * np.std(points.numpy(), axis=0) * 25 ** (-1 / 7)
    assert ours.bandwidth.numpy() == pytest.approx(np.minimum(widths, [9, 9, 2 / 3]), rel=1e-12)
    for x, found in zip(at.tolist(), ours.density(at).tolist(), strict=True):
        total = 0.0
        for centre in points.tolist():
            numbers = [stats.norm.pdf(x[j], centre[j], widths[j]) for j in (0, 1)]
            h = float(ours.bandwidth[2])
            total += numbers[0] * numbers[1] * (1 - h if x[2] == centre[2] else h / 2)
        assert found == pytest.approx(total / 25, rel=1e-10)


def test_a_density_is_one_in_all() -> None:
    kernel = ProductKernel(some(12), [0, 0, 3])
    axis = torch.linspace(-3, 4, 281, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis, torch.arange(3).double())
    step = float(axis[1] - axis[0])
    assert float(kernel.density(grid).sum()) * step**2 == pytest.approx(1.0, abs=1e-6)


def test_bandwidths_have_a_floor_and_categories_a_ceiling() -> None:
    alike = torch.tensor([[0.5, 1.0], [0.5, 1.0]])
    assert ProductKernel(alike, [0, 2], least=0.01).bandwidth.tolist() == [0.01, 0.01]
    far = torch.tensor([[0.0], [9.0]])
    kernel = ProductKernel(far, [10])
    assert float(kernel.bandwidth[0]) == 0.9
    assert kernel.density(torch.arange(10.0)[:, None]).tolist() == pytest.approx([0.1] * 10)
    assert ProductKernel(torch.zeros(3, 1), [1]).density(torch.zeros(1, 1)).tolist() == [1.0], "one value is no choice"


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.1), (0.02, 0.3), (0.9, 2.0)])
def test_a_truncated_normal_has_its_distribution(mean: float, std: float) -> None:
    rng = torch.Generator().manual_seed(0)
    drawn = truncated_normal(torch.full((2000,), mean, dtype=torch.float64), std, rng).tolist()
    expected = stats.truncnorm(-mean / std, (1 - mean) / std, loc=mean, scale=std)
    assert stats.kstest(drawn, expected.cdf).pvalue > 0.01
    assert min(drawn) >= 0 and max(drawn) <= 1


def test_near_a_point_a_category_is_kept_as_often_as_the_kernel_says() -> None:
    kernel = ProductKernel(some(30), [0, 0, 3])
    rng = torch.Generator().manual_seed(0)
    drawn = kernel.near(torch.tensor([[0.5, 0.5, 1.0]]).expand(3000, 3), 3.0, rng)
    h = float(kernel.bandwidth[2])
    assert float((drawn[:, 2] == 1).double().mean()) == pytest.approx(1 - h + h / 3, abs=0.03)
    width = 3 * float(kernel.bandwidth[0])
    expected = stats.truncnorm(-0.5 / width, 0.5 / width, loc=0.5, scale=width)
    assert stats.kstest(drawn[:, 0].numpy(), expected.cdf).pvalue > 0.01


def test_what_is_missing_comes_from_a_point_that_has_it() -> None:
    nan = math.nan
    points = torch.tensor([[0.1, nan, nan, 2.0], [nan, 1.0, nan, 0.0], [0.3, nan, nan, nan]])
    rng = torch.Generator().manual_seed(0)
    seen = torch.stack([filled_in(points, [0, 3, 5, 3], rng) for _ in range(300)])
    assert not torch.isnan(seen).any()
    known = ~torch.isnan(points)
    assert bool((seen[:, known] == points[known].double()).all())
    assert set(seen[:, 1, 0].tolist()) == {points[0, 0].double().item(), points[2, 0].double().item()}
    assert set(seen[:, 0, 1].tolist()) == {1.0} and set(seen[:, 2, 3].tolist()) == {0.0, 2.0}
    assert set(seen[:, :, 2].flatten().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}, "none has it: any"
    number = torch.stack([filled_in(torch.tensor([[nan]]), [0], rng) for _ in range(500)]).flatten()
    assert stats.kstest(number.numpy(), "uniform").pvalue > 0.01


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 6, 15).tolist(), rng.integers(0, 6, 15).tolist()
        assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert math.isnan(rank_correlation([1.0], [2.0])) and math.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0]))
