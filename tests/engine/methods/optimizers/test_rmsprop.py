"""RMSprop: a step by hand, and every setting reaches torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from engine.methods.optimizers.rmsprop import RMSprop


def test_a_step_by_hand() -> None:
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = RMSprop([w], lr=0.1, alpha=0.9, eps=1e-3, weight_decay=0.01)
    v, expected = torch.zeros(2, dtype=torch.float64), w.detach().clone()
    for gradient in ([0.5, 3.0], [-1.0, 0.2], [0.0, 0.1]):
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        g = w.grad + 0.01 * expected
        v = 0.9 * v + 0.1 * g**2
        expected = expected - 0.1 * g / (v.sqrt() + 1e-3)
        optimizer.step()
    assert torch.allclose(w, expected, atol=1e-14)


@pytest.mark.parametrize("more", [{}, {"momentum": 0.5}, {"centered": True}, {"maximize": True}])
def test_it_is_torchs(more: dict[str, Any]) -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    optimizers = [RMSprop(iter([ours]), lr=0.01, **more), torch.optim.RMSprop([theirs], lr=0.01, **more)]
    for step in range(4):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = (parameter.detach() - step).sin()
            optimizer.step()
    assert torch.equal(ours, theirs)
