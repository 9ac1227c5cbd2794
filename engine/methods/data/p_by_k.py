"""Batches of a few classes with a few samples each."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.fields import Count
from engine.kit.sampling import Members, Planned, shuffled
from engine.parts import sampler


@sampler(id="p-by-k", name="P classes by K samples", example={"sampler": {"each": 32}})
class PByK(Planned):
    """Fills each batch with some classes and the same number of samples from each. So every sample has others of its
    class beside it, which losses that compare samples need.

        a batch: P = batch_size / each classes, drawn without replacement;  of each, `each` different samples

    An epoch is as many batches as there would be in a pass over the data. The classes of a batch are drawn anew each
    time; within an epoch a class goes through its samples before one comes again.

    Helps: losses of pairs, triplets and neighbours.
    Hurts: rare classes come as often as frequent ones; a batch of few classes pulls normalization over the batch aside.
    Cost: none to speak of.

    Choices: samples that do not fill a last share of `each` wait for the next pass through their class, chosen anew
    each time. A class with fewer than `each` samples gives all of them and repeats some.

    Args:
        each: K, the samples of one class in a batch. training.batch_size must be a multiple of it.
        column: What makes the classes: target, or the name of a metadata column.

    Raises:
        ValueError: Where batch_size is no multiple of `each`, or asks for more classes than there are.
    """

    def __init__(self, each: Count = 4, column: str = "target"):
        self.each, self.column = each, column
        self.needs = (column,)

    def prepare(self) -> None:
        self._members = Members(self._meta[self.column], self.column)
        if self._batch_size % self.each:
            raise ValueError(f"A batch of {self._batch_size} samples is no multiple of each = {self.each}.")
        self._classes = self._batch_size // self.each
        if self._classes > len(self._members):
            raise ValueError(
                f"A batch of {self._batch_size} samples, {self.each} of each class, holds {self._classes} classes, but "
                f"{self.column} has {len(self._members)}. Raise each, or lower training.batch_size."
            )
        self.batches = -(-self._size // self._batch_size)

    def plan(self) -> tuple[Tensor, list[int]]:
        rng, total = self._rng, len(self._members)
        keys = torch.rand(self.batches, total, generator=rng, device=rng.device)
        chosen = keys.argsort(1)[:, : self._classes].flatten()
        visits = chosen.bincount(minlength=total)
        shares = torch.cat([self._shares(k, count) for k, count in enumerate(visits.tolist())])
        # The n-th visit of a class takes its n-th share; the shares of the classes stand one class after the other.
        order = torch.empty_like(chosen)
        order[chosen.argsort(stable=True)] = torch.arange(len(chosen), device=chosen.device)
        return shares[order].flatten(), [self._batch_size] * self.batches

    def _shares(self, k: int, visits: int) -> Tensor:
        """For each visit of a class `each` of its samples, in as many shuffled passes through it as it takes."""
        members, rng = self._members.of(k), self._rng
        whole = len(members) // self.each * self.each
        passes = -(-visits * self.each // max(whole, self.each))
        rows = []
        for _ in range(passes):
            row = shuffled(members, rng)
            if not whole:
                missing = (self.each - len(row),)
                row = torch.cat([row, row[torch.randint(len(row), missing, generator=rng, device=rng.device)]])
            rows.append(row[: whole or self.each])
        found = torch.cat(rows) if rows else members[:0]
        return found[: visits * self.each].view(visits, self.each)
