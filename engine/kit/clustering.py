"""Clusters of vectors, and what is summed over them."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """The index of the centre that is nearest to each row of x; of equal ones the first."""
    return torch.cdist(x, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


def sums(x: Tensor, group: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The sum of the rows of each of `count` groups, and how many there are."""
    total = x.new_zeros(count, x.shape[1]).index_add_(0, group, x)
    return total, x.new_zeros(count).index_add_(0, group, x.new_ones(len(x)))


@torch.no_grad()
def k_means(x: Tensor, k: int, rounds: int = 10, rng: torch.Generator | None = None) -> Tensor:
    """k centres of the rows of x: chosen far from each other at random (k-means++), then moved to their means.

    A centre that has lost all its rows stays where it is. With fewer different rows than k, some are chosen twice.
    """
    first = torch.randint(len(x), (1,), generator=rng, device=x.device)
    chosen = [first]
    apart = (x - x[first]).square().sum(1)
    for _ in range(k - 1):
        # Where every row is a centre already, all weights are zero: then any may be taken again.
        weights = torch.where(apart.sum() > 0, apart, torch.ones_like(apart))
        chosen.append(torch.multinomial(weights, 1, generator=rng))
        apart = torch.minimum(apart, (x - x[chosen[-1]]).square().sum(1))
    centres = x[torch.cat(chosen)].clone()
    for _ in range(rounds):
        total, count = sums(x, nearest(x, centres), k)
        centres = torch.where(count.unsqueeze(1) > 0, total / count.clamp_min(1).unsqueeze(1), centres)
    return centres
