"""A stream of experiences, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.fields import Count
from engine.kit.sampling import Members, Planned, shuffled
from engine.parts import sampler


@sampler(name="Experiences in order", example={"sampler": {"column": "target"}})
class Experiences(Planned):
    """Trains on one experience after the other, as data come in life, and never returns to an earlier one. Inside an
    experience the samples are shuffled.

        for e in experiences:  for each of `passes`:  the samples of e in random order, in batches

    An epoch is the whole stream once: with budget.epochs = 1 nothing comes back. Validation follows each experience.

    Helps: seeing what a model forgets, and what methods against forgetting do.
    Hurts: a plain network is best at the last experience and has lost much of the first.
    Cost: none to speak of.

    Choices: experiences come by the increasing value of their column. The last batch of a pass may be smaller.

    Args:
        column: Which column says the experience of a sample; target makes each class one.
        passes: How many times an experience's samples are seen before the next one comes.

    Raises:
        ValueError: For a column of numbers that are no experiences.
    """

    def __init__(self, column: str = "experience", passes: Count = 1):
        self.column, self.passes = column, passes
        self.needs = (column,)

    def prepare(self) -> None:
        self._members = Members(self._meta[self.column], self.column)
        each = [self.passes * -(-count // self._batch_size) for count in self._members.counts]
        self._owner = [k for k, batches in enumerate(each) for _ in range(batches)]
        self.batches = len(self._owner)

    def plan(self) -> tuple[Tensor, list[int]]:
        members = self._members
        rows = [shuffled(members.of(k), self._rng) for k in range(len(members)) for _ in range(self.passes)]
        sizes = [len(cut) for row in rows for cut in row.split(self._batch_size)]
        return torch.cat(rows), sizes

    def next(self) -> Tensor:
        index = super().next()
        self.experience = self._owner[self.at - 1]
        self.experience_ended = self.at == self.batches or self._owner[self.at] != self.experience
        return index
