"""The statistics, against scipy and against the definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from engine.statistics import explained, holm, incomplete_beta, pareto, student_p, student_quantile, welch


def test_incomplete_beta_is_scipys():
    random = np.random.default_rng(0)
    a, b = 10 ** random.uniform(-1.5, 3.5, 4000), 10 ** random.uniform(-1.5, 3.5, 4000)
    x = np.concatenate([random.uniform(0, 1, 2000), random.beta(a[2000:], b[2000:])])
    assert np.allclose(incomplete_beta(a, b, x), special.betainc(a, b, x), rtol=1e-9, atol=1e-12)


def test_incomplete_beta_at_the_ends():
    assert incomplete_beta(2.0, 3.0, 0.0) == 0.0
    assert incomplete_beta(2.0, 3.0, 1.0) == 1.0


def test_student_is_scipys_far_into_the_tail():
    t, freedom = np.meshgrid([0.0, 1e-3, 0.5, 2.0, 9.0, 60.0], [1.0, 1.5, 4.0, 37.2, 1e4])
    assert np.allclose(student_p(t, freedom), 2 * stats.t.sf(t, freedom), rtol=1e-8, atol=0)


def test_quantile_is_scipys():
    freedom = np.array([1.0, 2.5, 8.0, 1000.0])
    assert np.allclose(student_quantile(freedom), stats.t.ppf(0.975, freedom), rtol=1e-9)


def test_welch_is_scipys():
    random = np.random.default_rng(1)
    for n, n2, scale in ((2, 2, 1.0), (3, 7, 1e-9), (30, 5, 1e3)):
        a, b = random.normal(0, scale, n), random.normal(0.7 * scale, 3 * scale, n2)
        error, freedom, p = welch(a.mean(), a.std(ddof=1), n, b.mean(), b.std(ddof=1), n2)
        told = stats.ttest_ind(a, b, equal_var=False)
        assert p == pytest.approx(told.pvalue, rel=1e-9)
        assert freedom == pytest.approx(told.df, rel=1e-9)
        half = student_quantile(freedom) * error
        assert a.mean() - b.mean() - half == pytest.approx(told.confidence_interval().low, rel=1e-7)


def test_welch_without_spread_says_nothing():
    error, freedom, p = welch(1.0, 0.0, 3, 2.0, 0.0, 3)
    assert error == 0.0 and np.isnan(freedom) and np.isnan(p)
    assert welch(1.0, 0.1, 3, 2.0, 0.0, 3)[1] == pytest.approx(2.0)  # all the spread is in the first


def test_holm_by_hand_and_unknowns_do_not_count():
    assert holm([0.01, np.nan, 0.04, 0.03])[[0, 2, 3]] == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(holm([0.01, np.nan])[1])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_pareto_is_the_definition():
    random = np.random.default_rng(2)
    for columns in (2, 3):
        points = random.integers(0, 8, (120, columns)).astype(float)
        points[3, 0] = np.nan
        maximize = [True, False, True][:columns]
        signed = points * np.where(maximize, 1, -1)
        beats = (signed[:, None] >= signed[None]).all(-1) & (signed[:, None] > signed[None]).any(-1)
        wanted = ~beats.any(axis=0) & ~np.isnan(points).any(axis=1)
        assert (pareto(points, maximize) == wanted).all()
    assert pareto(np.zeros((0, 2)), [True, True]).tolist() == []


def test_explained_is_epsilon_squared():
    random = np.random.default_rng(3)
    levels = random.integers(0, 3, 60)
    outcome = levels * 0.8 + random.normal(size=60)
    f = stats.f_oneway(*(outcome[levels == k] for k in range(3))).statistic
    wanted = 1 - 59 / (57 + f * 2)  # 1 - MS_within / MS_total, with SS_between / SS_within = 2 f / 57
    wanted = 1 - (1 / 57) / ((1 + 2 * f / 57) / 59)
    assert explained([f"level {k}" for k in levels], outcome) == pytest.approx(wanted, rel=1e-12)


def test_explained_bins_numbers_and_sees_a_bend():
    x = np.linspace(-1, 1, 41)
    assert explained(x.tolist(), x**2) > 0.5  # no linear correlation at all
    assert explained(x.tolist(), np.random.default_rng(4).normal(size=41)) < 0.2
    assert explained([0.1, 0.2], [1.0, 2.0]) is None
    assert explained(["a"] * 9, np.arange(9.0)) is None
    assert explained(["a", "b"] * 5, np.ones(10)) == 0.0
