"""The few statistics that a comparison needs, with numpy alone: Welch's test, Holm's correction, Pareto front, shares.

Every function takes and returns arrays, so that a table of many groups costs one call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
TINY = 1e-300


def incomplete_beta(a: ArrayLike, b: ArrayLike, x: ArrayLike, rest: ArrayLike | None = None) -> Floats:
    """The regularized incomplete beta function I_x(a, b); `rest` is 1 - x where the caller knows it more exactly."""
    x = np.asarray(x, dtype=float)
    rest = 1.0 - x if rest is None else np.asarray(rest, dtype=float)
    a, b, x, rest = np.broadcast_arrays(np.asarray(a, dtype=float), np.asarray(b, dtype=float), x, rest)
    swap = x > (a + 1.0) / (a + b + 2.0)  # the fraction converges fast on the other side only
    p, q = np.where(swap, b, a), np.where(swap, a, b)
    y, z = np.where(swap, rest, x), np.where(swap, x, rest)
    with np.errstate(divide="ignore"):
        log_front = p * np.log(y) + q * np.log(z) - _log_beta(p, q) - np.log(p)
    value = np.exp(log_front) * _beta_fraction(p, q, y)
    return np.where(swap, 1.0 - value, value)


def _log_beta(a: Floats, b: Floats) -> Floats:
    log_gamma = np.vectorize(math.lgamma, otypes=[float])
    return log_gamma(a) + log_gamma(b) - log_gamma(a + b)


def _beta_fraction(a: Floats, b: Floats, x: Floats) -> Floats:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    c = np.ones_like(x)
    d = _invert(1.0 - (a + b) * x / (a + 1.0))
    value = d.copy()
    for m in range(1, 2000):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        d, c = _invert(1.0 + even * d), _away_from_zero(1.0 + even / c)
        value = value * d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        d, c = _invert(1.0 + odd * d), _away_from_zero(1.0 + odd / c)
        value = value * d * c
        if np.all(np.abs(d * c - 1.0) < 1e-14):
            break
    return value


def _away_from_zero(values: Floats) -> Floats:
    return np.where(np.abs(values) < TINY, TINY, values)


def _invert(values: Floats) -> Floats:
    return 1.0 / _away_from_zero(values)


def student_p(t: ArrayLike, freedom: ArrayLike) -> Floats:
    """The two-sided p of Student's t with that many degrees of freedom."""
    t, freedom = np.asarray(t, dtype=float), np.asarray(freedom, dtype=float)
    total = freedom + t * t
    return incomplete_beta(freedom / 2.0, 0.5, freedom / total, t * t / total)


def student_quantile(freedom: ArrayLike, level: float = 0.95) -> Floats:
    """The t that a Student variable stays within, on both sides, with probability `level`."""
    freedom = np.asarray(freedom, dtype=float)
    with np.errstate(invalid="ignore"):
        log_scale = _log_beta(freedom / 2.0, np.full_like(freedom, 0.5)) + np.log(freedom) / 2.0
    t = np.zeros_like(freedom)
    # p falls ever more slowly, so Newton's steps from zero never go too far.
    for _ in range(100):
        slope = 2.0 * np.exp(-(freedom + 1.0) / 2.0 * np.log1p(t * t / freedom) - log_scale)
        step = (student_p(t, freedom) - (1.0 - level)) / slope
        t = t + step
        if not np.any(np.abs(step) > 1e-12 * t):
            break
    return t


def welch(
    mean: ArrayLike, std: ArrayLike, n: ArrayLike, mean2: ArrayLike, std2: ArrayLike, n2: ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """Welch's test of two samples known by mean, standard deviation and size (each at least 2).

    Returns the standard error of the difference, the degrees of freedom and the two-sided p. Where neither sample has
    any spread the test says nothing: freedom and p are NaN there.
    """
    share, share2 = (np.asarray(s, dtype=float) ** 2 / np.asarray(k, dtype=float) for s, k in ((std, n), (std2, n2)))
    n, n2 = np.asarray(n, dtype=float), np.asarray(n2, dtype=float)
    variance = share + share2
    with np.errstate(divide="ignore", invalid="ignore"):
        largest = np.maximum(share, share2)  # divided out first: the squares of tiny variances vanish otherwise
        a, b = share / largest, share2 / largest
        freedom = (a + b) ** 2 / (a**2 / (n - 1.0) + b**2 / (n2 - 1.0))
        t = (np.asarray(mean, dtype=float) - np.asarray(mean2, dtype=float)) / np.sqrt(variance)
        usable = variance > 0
        p = np.where(usable, student_p(np.where(usable, t, 0.0), np.where(usable, freedom, 1.0)), np.nan)
    return np.sqrt(variance), np.where(usable, freedom, np.nan), p


def holm(p: ArrayLike) -> Floats:
    """Holm's correction of p values for as many comparisons as there are; NaN stays and does not count."""
    p = np.asarray(p, dtype=float)
    corrected = p.copy()
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def pareto(points: ArrayLike, maximize: Sequence[bool]) -> NDArray[np.bool_]:
    """Which rows no other row beats (as good in every column and better in one); one with NaN is never on the front."""
    table = np.asarray(points, dtype=float).reshape(-1, len(maximize)) * np.where(maximize, -1.0, 1.0)
    front = np.zeros(len(table), dtype=bool)
    known = np.flatnonzero(~np.isnan(table).any(axis=1))
    # Whatever beats a row comes before it in this order, and a row on the front beats all that the beaten ones beat.
    order = known[np.lexsort(table[known].T[::-1])]
    if len(maximize) == 2:
        front[order[_kept_of_two(table[order])]] = True
        return front
    kept: list[int] = []
    for row in order:
        others = table[kept]
        beaten = (others <= table[row]).all(axis=1) & (others < table[row]).any(axis=1)
        if not beaten.any():
            kept.append(int(row))
    front[kept] = True
    return front


def _kept_of_two(table: Floats) -> NDArray[np.bool_]:
    """The same for two columns in one sweep over rows in order: what comes before is at least as good in the first."""
    first, second = table[:, 0], table[:, 1]
    least = np.minimum.accumulate(second)
    new = np.concatenate([[True], least[1:] < least[:-1]])[: len(table)]
    since = first[np.maximum.accumulate(np.where(new, np.arange(len(table)), 0))]  # where the least was reached
    return (second == least) & (first == since)


def explained(values: Sequence[Any], outcome: ArrayLike, bins: int = 4) -> float | None:
    """The share of the outcome's variance that a setting explains by itself (epsilon squared, from 0 to 1).

    Numbers of many values are put into bins of equal counts. None where there are too few points to say.
    """
    told = np.asarray(outcome, dtype=float)
    known = np.isfinite(told) & np.array([value is not None for value in values], dtype=bool)
    told = told[known]
    labels = _labels([value for value, keep in zip(values, known, strict=True) if keep], bins)
    levels = int(labels.max()) + 1 if len(labels) else 0
    if levels < 2 or len(told) < levels + 2:
        return None
    total = float(((told - told.mean()) ** 2).sum())
    if total == 0.0:
        return 0.0
    counts = np.bincount(labels, minlength=levels)
    means = np.bincount(labels, weights=told, minlength=levels) / counts
    within = float(((told - means[labels]) ** 2).sum())
    # A setting without any effect explains (levels - 1) / (n - 1) by chance; that is taken off.
    return max(0.0, 1.0 - (within / (len(told) - levels)) / (total / (len(told) - 1)))


def _labels(values: Sequence[Any], bins: int) -> NDArray[np.intp]:
    """A level number for each value: its own where values repeat, its bin of equal counts where numbers do not."""
    distinct = sorted(set(values), key=lambda value: (str(type(value)), value))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in distinct)
    if not numbers or len(distinct) <= bins:
        place = {value: i for i, value in enumerate(distinct)}
        return np.array([place[value] for value in values], dtype=np.intp)
    array = np.asarray(values, dtype=float)
    edges = np.quantile(array, np.linspace(0, 1, bins + 1)[1:-1])
    labels = np.searchsorted(edges, array, side="right")
    return np.unique(labels, return_inverse=True)[1]
