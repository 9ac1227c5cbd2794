"""Shifted copies: which they are, and that their mean is what an invariant model would say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.methods.adaptation.shifted_copies import ShiftedCopies, moved, shifts
from engine.parts import Batch


def answer(model: Any, x: Tensor, **settings: Any) -> Tensor:
    run: Any = SimpleNamespace(offer=SimpleNamespace(output="classes"), answer=lambda batch: model(batch.x))
    return ShiftedCopies(**settings).predict(run, Batch({"x": x}, None, torch.arange(len(x))), torch.Generator())


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (-1, 0), (0, 2), (2, -1)])
def test_a_copy_is_moved_and_its_edge_goes_on(shift: tuple[int, int]) -> None:
    x = torch.rand(3, 2, 6, 5)
    rows, columns = shift
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    expected = padded[..., 2 - rows : 8 - rows, 2 - columns : 7 - columns]
    assert torch.equal(moved(x, rows, columns), expected)


@pytest.mark.parametrize(("reach", "copies", "count"), [(1, "cross", 5), (2, "cross", 9), (1, "square", 9)])
def test_copies_are_counted(reach: int, copies: Any, count: int) -> None:
    found = shifts(reach, copies)
    assert len(set(found)) == len(found) == count == ShiftedCopies(reach, copies).cost
    assert found[0] == (0, 0) and {(-r, -c) for r, c in found} == set(found)


def test_the_answer_is_the_mean_of_the_probabilities() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(5, 1, 4, 4)
    found = answer(model, x)
    around = [(0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)]
    expected = torch.stack([model(moved(x, *shift)).softmax(-1) for shift in around]).mean(0)
    assert torch.allclose(found.exp(), expected, atol=1e-6)
    assert not torch.allclose(found.exp(), model(x).softmax(-1), atol=1e-3)


def test_what_does_not_see_the_place_answers_as_before() -> None:
    x = torch.zeros(2, 1, 6, 6)
    x[0, 0, 2, 3], x[1, 0, 3, 2] = 1.0, 2.0

    def model(x: Tensor) -> Tensor:
        return torch.stack([x.flatten(1).sum(1), x.flatten(1).amax(1)], 1)

    assert torch.allclose(answer(model, x, copies="square"), model(x).log_softmax(-1), atol=1e-6)
