"""Batches in which every group has the same chance."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kit.sampling import Members, Planned
from engine.parts import sampler


@sampler(name="Balanced batches")
class Balanced(Planned):
    """Draws every sample anew: first a group, each with the same chance, then one of its samples. Rare groups are seen
    as often as frequent ones.

        g ~ uniform over the groups;   i ~ uniform over the samples of g;   drawn with replacement

    An epoch is as many batches as there would be in a pass over the data, all of full size.

    Helps: classes or groups of very different size, where the rare ones count as much.
    Hurts: a rare group's few samples come again and again, and are learned by heart; the model overstates how likely
        rare classes are.
    Cost: none to speak of.

    Args:
        column: What makes the groups: target for the classes, or the name of a metadata column, such as group.

    Raises:
        ValueError: For a column of numbers that are no groups.
    """

    def __init__(self, column: str = "target"):
        self.column = column
        self.needs = (column,)

    def prepare(self) -> None:
        self._members = Members(self._meta[self.column], self.column)
        self.batches = -(-self._size // self._batch_size)

    def plan(self) -> tuple[Tensor, list[int]]:
        members, rng = self._members, self._rng
        draws = self.batches * self._batch_size
        group = torch.randint(len(members), (draws,), generator=rng, device=rng.device)
        count = members.count[group]
        share = torch.rand(draws, generator=rng, device=rng.device, dtype=torch.float64)
        within = (share * count).long().minimum(count - 1)
        return members.index[members.start[group] + within], [self._batch_size] * self.batches
