"""Explicit Runge-Kutta pairs: order conditions, how errors really fall, and an adaptive solver's own numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchdiffeq._impl.dopri5 import _DORMAND_PRINCE_SHAMPINE_TABLEAU as TABLEAU
from torchdiffeq._impl.misc import _compute_error_ratio, _rms_norm, _select_initial_step
from torchdiffeq._impl.rk_common import _runge_kutta_step

from engine.kit.runge_kutta import DOPRI5, PAIRS, TSIT5, Pair, first_length, scaled_error, step, stiffness

BOTH = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def pendulum(t: Tensor, z: Tensor) -> Tensor:
    return torch.stack([z[..., 1], -z[..., 0].sin() * (1 + 0.5 * t)], -1)


@BOTH
def test_the_order_conditions_hold(pair: Pair) -> None:
    a = np.zeros((7, 7))
    for i, row in enumerate(pair.a):
        a[i, : len(row)] = row
    b, c = np.array(pair.b), np.array(pair.c)
    assert np.allclose(a.sum(1), c, atol=1e-12) and np.allclose(a[-1], b)
    other = b - np.array(pair.error)
    for weights, order in ((b, 5), (other, 4)):
        for k in range(order):
            assert weights @ c**k == pytest.approx(1 / (k + 1), abs=1e-11)
        assert weights @ (a @ c) == pytest.approx(1 / 6, abs=1e-11)
        assert weights @ (c * (a @ c)) == pytest.approx(1 / 8, abs=1e-11)
        assert weights @ (a @ c**2) == pytest.approx(1 / 12, abs=1e-11)
        assert weights @ (a @ a @ c) == pytest.approx(1 / 24, abs=1e-11)
    assert b @ (a @ a @ a @ c) == pytest.approx(1 / 120, abs=1e-11)


@BOTH
def test_errors_fall_as_the_orders_say(pair: Pair) -> None:
    z = torch.tensor([1.0, 0.3], dtype=torch.float64)
    lengths, true, told = [0.2, 0.1], [], []
    for h in lengths:
        made = step(pendulum, number(0.2), z, number(h), pair)
        fine = z
        for i in range(20):
            fine = step(pendulum, number(0.2 + i * h / 20), fine, number(h / 20), pair).new
        true.append(float((made.new - fine).norm()))
        told.append(float(made.error.norm()))
    assert math.log2(true[0] / true[1]) > 5.5
    assert 4.5 < math.log2(told[0] / told[1]) < 5.6


def test_a_step_is_that_of_an_adaptive_solver() -> None:
    torch.manual_seed(0)
    z, t, h = torch.randn(5, 2, dtype=torch.float64), number(0.3), number(0.4)
    func: Any = lambda t, z, perturb=None: pendulum(t, z)  # noqa: E731
    slope = pendulum(t, z)
    new, last, error, _ = _runge_kutta_step(func, z, slope, t, h, t + h, TABLEAU)
    made = step(pendulum, t, z, h, DOPRI5, slope)
    assert torch.allclose(made.new, new, rtol=1e-13) and torch.allclose(made.slopes[-1], last, rtol=1e-12)
    for rtol, atol in ((1e-4, 1e-4), (1e-3, 1e-8)):
        expected = _compute_error_ratio(error, rtol, atol, z, new, _rms_norm)
        assert scaled_error(made, rtol, atol) == pytest.approx(float(expected), rel=1e-10)
        begun = _select_initial_step(func, t, z, 4, rtol, atol, _rms_norm, f0=slope)
        assert first_length(pendulum, t, z, slope, DOPRI5, rtol, atol) == pytest.approx(float(begun), rel=1e-10)


@BOTH
def test_it_is_stable_for_just_as_far_as_it_says(pair: Pair) -> None:
    """On z' = -z a step multiplies by a polynomial of its length, which leaves [-1, 1] there."""

    def grown(h: float) -> float:
        return float(step(lambda t, z: -z, number(0.0), torch.ones(1, dtype=torch.float64), number(h), pair).new)

    assert abs(grown(pair.stability * 0.999)) < 1 < abs(grown(pair.stability * 1.001))


def test_stiffness_of_a_linear_equation_is_its_rate() -> None:
    z, h = torch.tensor([2.0, -1.0], dtype=torch.float64), number(0.1)
    for rate in (0.5, 40.0):
        made = step(lambda t, z, rate=rate: -rate * z, number(0.0), z, h, TSIT5)
        assert stiffness(made, TSIT5) == pytest.approx(rate / 3.5068, rel=1e-10)
    still = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    made = step(lambda t, z: still, number(0.0), z, h, TSIT5)
    found = stiffness(made, TSIT5)
    found.backward()
    assert found.item() == pytest.approx(0.0, abs=1e-12) and still.grad is not None and still.grad.isfinite().all()


def test_the_first_length_where_nothing_moves() -> None:
    z = torch.zeros(3, dtype=torch.float64)
    found = first_length(lambda t, z: torch.zeros_like(z), number(0.0), z, z, TSIT5, 1e-4, 1e-4)
    assert 0 < float(found) <= 1e-4
