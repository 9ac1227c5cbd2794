"""Masks of weights: which are kept, over a whole tensor or in every small group, and gradients through them."""

from __future__ import annotations

import torch
from torch import Tensor


def reduction_last(weight: Tensor) -> Tensor:
    """The weight with the inputs that a matrix product sums over innermost: conv kernels as (out, kh, kw, in)."""
    return weight.movedim(1, -1) if weight.dim() > 2 else weight


@torch.no_grad()
def nm_mask(weight: Tensor, n: int, m: int) -> Tensor:
    """True for the n largest |w| in every group of m consecutive weights along the reduction dimension.

    Exactly n are kept in each group; among equal ones which is not said. Raises ValueError where m does not divide.
    """
    if not 0 < n <= m:
        raise ValueError(f"{n}:{m} keeps no pattern; n must be from 1 to m.")
    turned = reduction_last(weight)
    if turned.shape[-1] % m:
        raise ValueError(f"The {turned.shape[-1]} inputs of a weight are not a multiple of {m}.")
    if n == m:
        return torch.ones_like(weight, dtype=torch.bool)
    groups = turned.abs().reshape(-1, m)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, groups.topk(n, dim=1, sorted=False).indices, True)
    kept = kept.view(turned.shape)
    return kept.movedim(-1, 1) if weight.dim() > 2 else kept


@torch.no_grad()
def top_k_mask(score: Tensor, k: int) -> Tensor:
    """True for the k highest scores of a tensor, exactly k of them."""
    if not 0 <= k <= score.numel():
        raise ValueError(f"Of {score.numel()} scores, {k} cannot be kept.")
    flat = score.flatten()
    kept = torch.zeros_like(flat, dtype=torch.bool)
    return kept.scatter_(0, flat.topk(k, sorted=False).indices, True).view_as(score)


def straight_through(value: Tensor, weight: Tensor) -> Tensor:
    """The value exactly, with the gradient of the weight: what comes back passes to the weight unchanged."""
    return value.detach() + (weight - weight.detach())
