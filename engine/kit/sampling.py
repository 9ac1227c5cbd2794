"""What samplers share: an epoch laid out at once, and the samples of each value of a column."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor

from engine.parts import Sampler


class Planned(Sampler):
    """A sampler that lays out the batches of a whole epoch at once, so that no step waits for a draw.

    A subclass sets `batches` in `prepare`, with whatever scratch `plan` needs, and implements `plan`.
    """

    def start(self, meta: Mapping[str, Tensor], size: int, batch_size: int, rng: torch.Generator) -> None:
        self._meta, self._size, self._batch_size, self._rng = meta, size, batch_size, rng
        self.order = torch.zeros(0, dtype=torch.long, device=rng.device)
        self.ends: list[int] = []  # where each batch of the epoch ends in the order
        self.at = 0
        self.prepare()

    def prepare(self) -> None:
        """Called once at the start, when the data are known."""
        raise NotImplementedError

    def plan(self) -> tuple[Tensor, list[int]]:
        """The indices of an epoch's samples, one batch after another, and the sizes of its batches."""
        raise NotImplementedError

    def next(self) -> Tensor:
        if self.at == len(self.ends):
            self.order, sizes = self.plan()
            self.ends, self.at = list(accumulate(sizes)), 0
        start = self.ends[self.at - 1] if self.at else 0
        self.at += 1
        return self.order[start : self.ends[self.at - 1]]


class Members:
    """The samples of each value of a column: of value k, in increasing order, the indices from start[k] on."""

    def __init__(self, column: Tensor, name: str):
        if column.is_floating_point() or column.dim() != 1:
            raise ValueError(f"The column {name} holds numbers, not groups: each sample would be a group of its own.")
        self.values, inverse, self.count = column.unique(return_inverse=True, return_counts=True)
        self.index = inverse.argsort(stable=True)
        self.start = self.count.cumsum(0) - self.count
        self.counts: list[int] = self.count.tolist()

    def __len__(self) -> int:
        return len(self.counts)

    def of(self, k: int) -> Tensor:
        """The samples of the k-th value."""
        start = sum(self.counts[:k])
        return self.index[start : start + self.counts[k]]


def shuffled(index: Tensor, rng: torch.Generator) -> Tensor:
    """The same indices in random order."""
    return index[torch.randperm(len(index), generator=rng, device=rng.device)]
