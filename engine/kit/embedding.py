"""Embeddings: distances between the samples of a batch, which of them are alike, and how well neighbours answer."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 512  # queries compared at a time


def distances(points: Tensor) -> Tensor:
    """Euclidean distances between the rows [B, D], computed from differences: exact where points coincide.

    The gradient of a distance of zero is zero.
    """
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def pairs_of(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which other samples have the same label, and which have another one; [B, B] each."""
    alike = labels.unsqueeze(1) == labels
    alone = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return alike & ~alone, ~alike


def recall_at_1(points: Tensor, labels: Tensor) -> Tensor:
    """The share of the samples whose nearest other sample has the same label; of equally near ones the first counts."""
    hits = []
    for start in range(0, len(points), ROWS):
        queries = points[start : start + ROWS]
        apart = torch.cdist(queries, points, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(start, start + len(queries), device=points.device).unsqueeze(1)
        nearest = apart.scatter(1, own, float("inf")).argmin(1)
        hits.append(labels[nearest] == labels[start : start + len(queries)])
    return torch.cat(hits).double().mean()


def worst_violation(apart: Tensor, same: Tensor, other: Tensor, margin: float) -> Tensor:
    """The largest margin + d(a, p) - d(a, n) over all triplets, 0 where every one meets the margin or there is none."""
    farthest = torch.where(same, apart, -torch.inf).amax(1)
    nearest = torch.where(other, apart, torch.inf).amin(1)
    return (margin + farthest - nearest).amax().clamp_min(0)
