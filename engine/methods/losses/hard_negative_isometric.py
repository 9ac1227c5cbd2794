"""The triplet loss with its ways of choosing triplets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from engine.fields import Positive
from engine.kit.embedding import distances, pairs_of
from engine.parts import Batch, Loss, Terms, loss

if TYPE_CHECKING:
    from engine.training.run import Run

ID = "hard-negative-isometric"
FAR = float("inf")


def hinge(same: Tensor, other: Tensor, margin: float) -> Tensor:
    return (margin + same - other).clamp_min(0)


def mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """The mean of the values that count; 0, with gradient 0, where none does."""
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp_min(1)


def batch_hard(apart: Tensor, same: Tensor, other: Tensor, margin: float) -> Tensor:
    """For each anchor its farthest positive and its nearest negative."""
    farthest = torch.where(same, apart, -FAR).amax(1)
    nearest = torch.where(other, apart, FAR).amin(1)
    counted = same.any(1) & other.any(1)
    return mean_where(hinge(torch.where(counted, farthest, 0), torch.where(counted, nearest, 0), margin), counted)


def batch_all(apart: Tensor, same: Tensor, other: Tensor, margin: float) -> Tensor:
    """Every triplet of the batch."""
    return mean_where(hinge(apart.unsqueeze(2), apart.unsqueeze(1), margin), same.unsqueeze(2) & other.unsqueeze(1))


def semi_hard(apart: Tensor, same: Tensor, other: Tensor, margin: float) -> Tensor:
    """For each anchor and positive the nearest negative that is farther than the positive; none where there is none."""
    farther = other.unsqueeze(1) & (apart.unsqueeze(1) > apart.unsqueeze(2))  # [anchor, positive, negative]
    nearest = torch.where(farther, apart.unsqueeze(1), FAR).amin(2)
    counted = same & farther.any(2)
    return mean_where(hinge(apart, torch.where(counted, nearest, 0), margin), counted)


def random_pair(apart: Tensor, same: Tensor, other: Tensor, margin: float, rng: torch.Generator | None) -> Tensor:
    """For each anchor one positive and one negative at random."""
    keys = torch.rand((2, *apart.shape), generator=rng, device=apart.device)
    positive = torch.where(same, keys[0], -1).argmax(1, keepdim=True)
    negative = torch.where(other, keys[1], -1).argmax(1, keepdim=True)
    each = hinge(apart.gather(1, positive), apart.gather(1, negative), margin).squeeze(1)
    return mean_where(each, same.any(1) & other.any(1))


@loss(
    id=ID,
    name="Triplet loss with hard mining",
    paper="Mathematical Justification of Hard Negative Mining via Isometric Approximation Theorem",
    arxiv="2210.11173",
    recommends={
        "sampler": {"use": "p-by-k", "each": 4},
        "optimizer": {"use": "adamw", "lr": 0.001, "weight_decay": 0.0},
        "training": {"batch_size": 32},
    },
    example={
        "task": {"use": "digit-retrieval", "dimensions": 4, "train_limit": 200},
        "sampler": {"use": "p-by-k", "each": 8},
    },
)
class HardNegativeIsometric(Loss):
    """Learns an embedding in which each sample is nearer to those of its class than to all others, by a margin. From
    each batch it takes the triplets that violate this most.

        L_a = max(0, margin + max_(p: y_p = y_a) |f_a - f_p| - min_(n: y_n != y_a) |f_a - f_n|),   mean over anchors a

    The worst violation measures how far, in its distances, the embedding is from one that meets every margin. Such a
    bound turns into one on the embedding itself, up to a rigid motion: that is why hard mining works, and why it fails
    where the worst case is too hard.

    Helps: search and recognition by nearest neighbours, also among classes that training did not have.
    Hurts: with a large batch or very few dimensions every embedding collapses to a point and the loss stays at the
        margin; wrong labels, which are the hardest negatives of all.
    Cost: a distance for each pair of a batch; `batch-all` and `semi-hard` compare each triplet, batch^3 numbers.
    Choices: embeddings are not normalized. Batches need several samples of each class: P classes by K samples. An
        anchor without a positive or a negative does not count. `batch-all` is the mean over all triplets, met or not.
        `semi-hard` takes, for each positive, the nearest negative that is farther than it; a pair without one is left
        out.

    Args:
        margin: How much farther a sample of another class must be.
        mining: Which triplets count.
        squared: Whether distances are squared.
    """

    additive = False
    outputs = ("embedding",)

    def __init__(
        self,
        margin: Positive = 1.0,
        mining: Literal["batch-hard", "batch-all", "semi-hard", "random"] = "batch-hard",
        squared: bool = False,
    ):
        self.margin, self.mining, self.squared = margin, mining, squared
        self._rng: torch.Generator | None = None

    def setup(self, run: Run) -> None:
        self._rng = run.rng(ID)

    def __call__(self, output: Any, batch: Batch) -> Terms:
        apart = distances(output)
        apart = apart.square() if self.squared else apart
        same, other = pairs_of(batch.target)
        if self.mining == "random":
            return {"task": random_pair(apart, same, other, self.margin, self._rng)}
        mine = {"batch-hard": batch_hard, "batch-all": batch_all, "semi-hard": semi_hard}[self.mining]
        return {"task": mine(apart, same, other, self.margin)}
