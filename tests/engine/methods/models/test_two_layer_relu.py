"""The two-layer network: its formula, what learns, and that it starts at zero."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from engine.methods.models.two_layer_relu import TwoLayerReLU
from engine.parts import Offer

OFFER = Offer("vector", (3,), "values", 2)


def made(**settings: object) -> TwoLayerReLU:
    torch.manual_seed(0)
    return TwoLayerReLU(OFFER, **{"width": 64, **settings}).double()  # type: ignore[arg-type]


def test_it_is_its_formula() -> None:
    model = made(centred=False)
    x = torch.randn(5, 3, dtype=torch.float64)
    w, b = model.hidden.weight, model.head.weight
    assert set(b.flatten().tolist()) == {-1.0, 1.0}
    expected = torch.stack([(b[i] * F.relu(x @ w.T)).sum(1) / 8 for i in range(2)], 1)
    assert torch.allclose(model(x), expected, atol=1e-12)
    wide = made(width=20_000)
    assert float(wide.hidden.weight.detach().mean()) == pytest.approx(0, abs=0.02)
    assert float(wide.hidden.weight.detach().var()) == pytest.approx(1, rel=0.02)


def test_it_starts_at_zero_and_only_the_hidden_weights_learn() -> None:
    model = made()
    x = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(model(x), torch.zeros(5, 2, dtype=torch.float64))
    signs, first = model.head.weight.clone(), model.hidden.weight.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    (model(x) - 1).square().sum().backward()
    optimizer.step()
    assert torch.equal(model.head.weight, signs) and not torch.equal(model.hidden.weight, first)
    both = made(train="both")
    (both(x) - 1).square().sum().backward()
    assert both.head.weight.grad is not None and both(x).abs().max() == 0


def test_it_is_linear_in_the_signs() -> None:
    model = made()
    x = torch.randn(5, 3, dtype=torch.float64)
    model.hidden.weight.data += 0.1 * torch.randn_like(model.hidden.weight)
    answers = []
    one, two = torch.randn(2, 2, 64, dtype=torch.float64)
    for signs in (one, two, 2 * one - 3 * two):
        model.head.weight.data = signs
        answers.append(model(x).detach())
    assert torch.allclose(answers[2], 2 * answers[0] - 3 * answers[1], atol=1e-10)


def test_it_takes_no_tokens() -> None:
    with pytest.raises(ValueError, match="takes numbers"):
        TwoLayerReLU(Offer("tokens", (4,), "classes", 2, vocabulary=9))
