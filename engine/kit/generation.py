"""What those need that make samples, and those that measure them: noise to start from, and how far off samples are."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from engine.parts import Batch


def rng_for(batch: Batch, seed: int = 0) -> torch.Generator:
    """A generator for the samples that a batch asks for.

    The same samples (by their indices) are made of the same draws every time, so that curves over a training show the
    model and not the draw.
    """
    first = int(batch.index[0]) if len(batch) else 0
    return torch.Generator(batch.index.device).manual_seed(seed * 1_000_003 + first)


def noise(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Standard normal noise on the generator's device."""
    return torch.randn(shape, generator=rng, device=rng.device)


def wasserstein1(x: Tensor, y: Tensor) -> float:
    """The exact 1-Wasserstein distance of two equally large sets of points: the mean length of the best matching."""
    if x.shape != y.shape:
        raise ValueError(f"Matching takes sets of the same shape, not {list(x.shape)} and {list(y.shape)}.")
    cost = torch.cdist(x.flatten(1).double(), y.flatten(1).double()).cpu().numpy()
    if not np.isfinite(cost).all():
        return math.nan
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean())


def shares(samples: Tensor, centres: Tensor, within: float = math.inf) -> tuple[Tensor, Tensor]:
    """Of modes, by their centres [M, d]: the share of the samples that are nearest to each and within that distance of
    it [M]; and how far each sample is from its nearest centre [n]."""
    distance, nearest = torch.cdist(samples.flatten(1), centres.flatten(1)).min(1)
    near = nearest[distance <= within]
    return torch.bincount(near, minlength=len(centres)).to(samples.dtype) / max(len(samples), 1), distance


def spearman(x: list[float], y: list[float]) -> float:
    """The rank correlation of two lists; NaN where one of them is constant or shorter than two."""
    if len(x) < 2:
        return math.nan
    ranks = [torch.tensor(_ranks(values), dtype=torch.float64) for values in (x, y)]
    a, b = (rank - rank.mean() for rank in ranks)
    length = float(a.norm() * b.norm())
    return float(a @ b) / length if length > 0 else math.nan


def _ranks(values: list[float]) -> list[float]:
    """Places from 0; those that are equal share the mean of theirs."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    found = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for i in order[start:stop]:
            found[i] = (start + stop - 1) / 2
        start = stop
    return found
