"""The scaling with width by its definition: variances, steps and features, against the plain formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.methods.models.scaled_residual_mlp import ScaledResidualMlp
from engine.parts import Offer

OFFER = Offer("vector", (12,), "values", 3)


def made(seed: int = 0, **settings) -> ScaledResidualMlp:
    torch.manual_seed(seed)
    return ScaledResidualMlp(OFFER, **settings).double()


def weights(model: ScaledResidualMlp, gamma: float) -> list[Tensor]:
    """The weights of the formula: gamma times the parameters."""
    return [gamma * p.detach().clone() for p in model.parameters()]


def formula(w: list[Tensor], x: Tensor, gamma: float, depth_scale: bool) -> Tensor:
    width, blocks = len(w[0]), w[1:-1]
    h = x @ w[0].T / math.sqrt(x.shape[1])
    for matrix in blocks:
        h = h + torch.relu(h) @ matrix.T / math.sqrt(width) / (math.sqrt(len(blocks)) if depth_scale else 1)
    return h @ w[-1].T / (gamma * math.sqrt(width))


@pytest.mark.parametrize("parametrization", ["mup", "ntp"])
@pytest.mark.parametrize("depth_scale", [True, False])
def test_a_step_in_the_parameters_is_a_step_of_eta_gamma_squared_in_the_weights(parametrization, depth_scale):
    width, eta = 24, 0.05
    gamma = math.sqrt(width) if parametrization == "mup" else 1.0
    model = made(width=width, depth=2, parametrization=parametrization, depth_scale=depth_scale)
    w = [t.requires_grad_() for t in weights(model, gamma)]
    x = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x), formula(w, x, gamma, depth_scale), rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(formula(w, x, gamma, depth_scale).square().sum(), w)
    model(x).square().sum().backward()
    for parameter, weight, grad in zip(model.parameters(), w, grads, strict=True):
        moved = gamma * (parameter.detach() - eta * parameter.grad)
        torch.testing.assert_close(moved, weight.detach() - eta * gamma**2 * grad, rtol=1e-10, atol=1e-12)


def slope(values: dict[int, float]) -> float:
    """How a value scales with the width: the slope of its logarithm."""
    return float(np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0])


WIDTHS = (32, 64, 128, 256, 512)


def test_at_the_start_mup_answers_shrink_with_the_width_and_ntp_answers_do_not():
    x = torch.randn(40, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for parametrization, expected in (("mup", -0.5), ("ntp", 0.0)):
        spread = {}
        for width in WIDTHS:
            with torch.no_grad():
                answers = [made(s, width=width, parametrization=parametrization)(x) for s in range(12)]
            spread[width] = float(torch.stack(answers).std())
        assert slope(spread) == pytest.approx(expected, abs=0.1)


def test_mup_features_learn_as_fast_at_any_width_and_ntp_features_ever_slower():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(32, 12, dtype=torch.float64, generator=rng)
    y = torch.nn.functional.one_hot(torch.arange(32) % 3).double()
    for parametrization, expected in (("mup", 0.0), ("ntp", -0.5)):
        change = {}
        for width in (64, 128, 256):
            model = made(width=width, parametrization=parametrization)
            before = model.features(x).detach()
            for _ in range(20):
                loss = (model(x) - y).square().sum() / (2 * len(x))
                for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
                    p.data -= 0.5 * g
            change[width] = float((model.features(x).detach() - before).norm() / before.norm())
        assert slope(change) == pytest.approx(expected, abs=0.15)


def test_it_refuses_what_it_cannot_read():
    for offer in (Offer("tokens", (8,), "classes", 2, vocabulary=5), Offer("tokens", (8,), "next-token", 5, 5)):
        with pytest.raises(ValueError, match="it takes numbers"):
            ScaledResidualMlp(offer)


def test_images_are_flattened():
    offer = Offer("image", (1, 4, 3), "classes", 2)
    assert ScaledResidualMlp(offer, width=8)(torch.zeros(5, 1, 4, 3)).shape == (5, 2)
