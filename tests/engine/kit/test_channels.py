"""Channels numbered through: sums, marks and removals against loops over the model's own tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.kit.channels import Channels
from engine.kit.surgery import cut, places_without
from engine.kit.tied import find_groups
from engine.methods.models.cnn import CNN
from engine.parts import Offer


class Joined(nn.Module):
    """Two convolutions side by side under one norm, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.norm = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 2, 1), nn.BatchNorm2d(5)
        self.a, self.b, self.head = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False), nn.Linear(5, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.left(x), self.right(x)], dim=1)
        return self.head(self.norm(both).relu().mean((2, 3)))


def channels(model: nn.Module) -> Channels:
    return Channels(model, find_groups(model, torch.empty(2, 1, 4, 4, device="meta")))


def test_sums_and_sizes_are_over_a_channels_own_entries() -> None:
    torch.manual_seed(0)
    model = Joined()
    for p in model.parameters():
        p.data.uniform_(0.5, 1.5)
    found = channels(model)
    assert found.count == 5 and [group.size for group in found.groups] == [3, 2]
    expected = []
    for conv, shift in ((model.left, 0), (model.right, 3)):
        for i in range(len(conv.weight)):
            own = [conv.weight[i].sum(), conv.bias[i], model.norm.weight[shift + i], model.norm.bias[shift + i]]
            expected.append(float(sum(own).detach()))
    assert found.sums([p.detach() for p in found.parameters]).tolist() == pytest.approx(expected, rel=1e-5)
    assert found.sizes().tolist() == [4.0] * 5
    assert found.layers().tolist() == [0, 0, 0, 1, 1]


def test_marks_are_read_back_and_follow_a_cut() -> None:
    model = CNN(Offer("image", (1, 8, 8), "classes", 10), widths=[4, 6])
    found = Channels(model, model.anatomy().tied())
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        chosen = torch.rand(found.count, generator=generator) < 0.4
        marks = found.marks(chosen)
        assert torch.equal(found.marked(marks), chosen)
        with torch.no_grad():
            total = sum(float(mark.sum()) for mark in marks)
            assert total == float(found.sizes()[chosen].sum()), "each entry is marked once"
    gone = torch.zeros(found.count, dtype=torch.bool)
    gone[[0, 3, found.count - 1]] = True
    left = torch.zeros_like(gone)
    left[[1, 5]] = True
    moves = cut(model, places_without(model, found.removals(gone)))
    marks = dict(zip(found.parameters, found.marks(left), strict=True))
    marks |= {moves[p].new: moves[p].take(mark) for p, mark in marks.items() if p in moves}
    after = Channels(model, model.anatomy().tied())
    assert after.count == found.count - 3
    assert torch.equal(after.marked([marks[p] for p in after.parameters]), left[~gone])


def test_removals_name_groups_and_their_channels() -> None:
    found = channels(Joined())
    removals = found.removals(torch.tensor([False, True, False, True, True]))
    assert [(group.size, numbers.tolist()) for group, numbers in removals] == [(3, [1]), (2, [0, 1])]
    assert found.removals(torch.tensor([True, False, False, False, False]))[0][0] is found.groups[0]
