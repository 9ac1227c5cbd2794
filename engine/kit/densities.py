"""Densities of a few points in the unit cube, some of whose coordinates are categories: products of kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class ProductKernel:
    """A density estimate with one kernel a coordinate.

    `points` [n, d] hold numbers from 0 to 1, and codes 0, 1, ... where `levels` has a number of categories (0: a
    number). Numbers get a Gaussian kernel, categories that of Aitchison and Aitken: 1 - h where they agree, h / (k - 1)
    elsewhere. The bandwidth is the normal reference rule, h = 1.06 std n^(-1 / (4 + d)), and at least `least`; that of
    a category is at most (k - 1) / k, with which all categories are alike.
    """

    def __init__(self, points: Tensor, levels: Sequence[int], least: float = 1e-3):
        self.points = points.double()
        self.levels = tuple(levels)
        n, d = self.points.shape
        reference = 1.06 * self.points.std(0, correction=0) * n ** (-1 / (4 + d))
        most = torch.tensor([(k - 1) / k if k else math.inf for k in self.levels], dtype=torch.float64)
        self.bandwidth = reference.clamp_min(least).minimum(most)

    def density(self, at: Tensor) -> Tensor:
        """The density at points [m, d]."""
        at = at.double()
        product = torch.ones(len(at), len(self.points), dtype=torch.float64)
        for j, k in enumerate(self.levels):
            h = self.bandwidth[j]
            here, there = at[:, j, None], self.points[None, :, j]
            if k == 0:
                z = (here - there) / h
                product *= torch.exp(-0.5 * z.square()) / (h * math.sqrt(2 * math.pi))
            elif k > 1:
                product *= torch.where(here == there, 1 - h, h / (k - 1))
        return product.mean(1)

    def near(self, centres: Tensor, wider: float, rng: torch.Generator) -> Tensor:
        """A point near each of the centres [m, d]: numbers from normal distributions, `wider` bandwidths wide and cut
        off at 0 and 1; a category is kept with probability 1 - h and else drawn from all."""
        drawn = centres.double().clone()
        for j, k in enumerate(self.levels):
            if k == 0:
                drawn[:, j] = truncated_normal(drawn[:, j], wider * self.bandwidth[j], rng)
                continue
            another = torch.rand(len(drawn), dtype=torch.float64, generator=rng) < self.bandwidth[j]
            codes = torch.randint(k, (len(drawn),), generator=rng).double()
            drawn[:, j] = torch.where(another, codes, drawn[:, j])
        return drawn


def truncated_normal(mean: Tensor, std: Tensor | float, rng: torch.Generator) -> Tensor:
    """Draws from normal distributions that are cut off at 0 and 1, by inverting their distribution functions."""
    low, high = torch.special.ndtr((0 - mean) / std), torch.special.ndtr((1 - mean) / std)
    share = torch.rand(mean.shape, dtype=torch.float64, generator=rng)
    return (mean + std * torch.special.ndtri(low + share * (high - low))).clamp(0, 1)


def filled_in(points: Tensor, levels: Sequence[int], rng: torch.Generator) -> Tensor:
    """The points with every NaN replaced by that coordinate of a random point that has it; by a uniform draw where
    none has."""
    found = points.double().clone()
    for i, j in torch.isnan(points).nonzero().tolist():
        known = points[~torch.isnan(points[:, j]), j]
        if len(known):
            found[i, j] = known[int(torch.randint(len(known), (), generator=rng))]
        elif levels[j]:
            found[i, j] = int(torch.randint(levels[j], (), generator=rng))
        else:
            found[i, j] = torch.rand((), dtype=torch.float64, generator=rng)
    return found


def ranks(values: Sequence[float]) -> Tensor:
    """Ranks from 1, the mean rank where values are equal."""
    x = torch.tensor(list(values), dtype=torch.float64)
    below = (x[None, :] < x[:, None]).sum(1)
    equal = (x[None, :] == x[:, None]).sum(1)
    return below + (equal.double() + 1) / 2


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's correlation; NaN with fewer than two pairs, or where all values of a side are equal."""
    if len(one) < 2:
        return math.nan
    a, b = (r - r.mean() for r in (ranks(one), ranks(other)))
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 0 else math.nan
