"""Epochs laid out at once, and the samples of each value of a column."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.kit.sampling import Members, Planned, shuffled


class Countdown(Planned):
    """Batches of 3, 2, 0 and 1 samples, one higher each epoch."""

    def prepare(self) -> None:
        self.batches, self.epochs = 4, 0

    def plan(self) -> tuple[Tensor, list[int]]:
        self.epochs += 1
        return torch.arange(6) + self.epochs, [3, 2, 0, 1]


def test_a_plan_is_cut_into_its_batches() -> None:
    sampler = Countdown()
    sampler.start({}, 10, 3, torch.Generator())
    taken = [sampler.next().tolist() for _ in range(8)]
    assert taken == [[1, 2, 3], [4, 5], [], [6], [2, 3, 4], [5, 6], [], [7]]


def test_members_are_the_samples_of_each_value() -> None:
    column = torch.randint(0, 5, (200,), generator=torch.Generator().manual_seed(0)) * 3 - 4
    members = Members(column, "group")
    assert members.values.tolist() == [-4, -1, 2, 5, 8] and len(members) == 5
    for k, value in enumerate(members.values.tolist()):
        assert members.of(k).tolist() == [i for i, v in enumerate(column.tolist()) if v == value]
        assert members.of(k)[0] == members.index[members.start[k]]
    with pytest.raises(ValueError, match="holds numbers, not groups"):
        Members(torch.rand(3), "group")


def test_shuffled_keeps_every_index() -> None:
    index = torch.tensor([4, 9, 2, 7])
    made = shuffled(index, torch.Generator().manual_seed(1))
    assert sorted(made.tolist()) == [2, 4, 7, 9]
    assert torch.equal(made, shuffled(index, torch.Generator().manual_seed(1)))
