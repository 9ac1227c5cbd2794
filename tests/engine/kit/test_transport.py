"""Entropic transport: the dual, Sinkhorn's iteration, and the converged plan against a library."""

from __future__ import annotations

import ot
import pytest
import torch
from torch import Tensor

from engine.kit.transport import Transport, converged, dense_newton, marginal_error


def drawn(n: int, m: int, eta: float, seed: int = 0) -> Transport:
    rng = torch.Generator().manual_seed(seed)
    cost = torch.rand(n, m, generator=rng, dtype=torch.float64)
    rows, columns = (torch.rand(k, generator=rng, dtype=torch.float64) + 0.2 for k in (n, m))
    return Transport(cost, rows / rows.sum(), columns / columns.sum(), eta)


def potentials(problem: Transport, seed: int = 1) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    n, m = problem.cost.shape
    return tuple(0.1 * torch.randn(k, generator=rng, dtype=torch.float64) for k in (n, m))  # type: ignore[return-value]


def test_the_gradient_is_that_of_the_dual() -> None:
    problem = drawn(7, 5, 20.0)
    x, y = (each.requires_grad_() for each in potentials(problem))
    expected = torch.autograd.grad(problem.dual(x, y), (x, y))
    found = problem.gradient(problem.plan(x, y).detach())
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)


def test_a_constant_may_be_moved_from_one_side_to_the_other() -> None:
    problem = drawn(7, 5, 20.0)
    x, y = potentials(problem)
    torch.testing.assert_close(problem.plan(x + 0.7, y - 0.7), problem.plan(x, y), rtol=1e-12, atol=0)
    torch.testing.assert_close(problem.dual(x + 0.7, y - 0.7), problem.dual(x, y), rtol=1e-12, atol=0)


def test_sinkhorn_meets_the_columns_exactly_and_never_loses() -> None:
    problem = drawn(9, 6, 300.0)
    x, y = torch.zeros(9, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    last = -float("inf")
    for _ in range(30):
        x, y = problem.sinkhorn(x, y)
        torch.testing.assert_close(problem.plan(x, y).sum(0), problem.columns, rtol=1e-12, atol=0)
        value = float(problem.dual(x, y))
        assert value >= last - 1e-15
        last = value


@pytest.mark.parametrize(("n", "m", "eta"), [(12, 9, 5.0), (20, 20, 60.0), (30, 25, 250.0)])
def test_the_converged_plan_is_that_of_a_library(n: int, m: int, eta: float) -> None:
    problem = drawn(n, m, eta)
    plan = converged(problem)
    assert float(marginal_error(problem.gradient(plan))) < 1e-12
    cost, rows, columns = (each.numpy() for each in (problem.cost, problem.rows, problem.columns))
    theirs = ot.sinkhorn(rows, columns, cost, 1 / eta, "sinkhorn_log", numItermax=20000, stopThr=1e-13)
    torch.testing.assert_close(plan, torch.from_numpy(theirs), rtol=0, atol=1e-10)


def test_a_plan_that_cannot_converge_is_told() -> None:
    with pytest.raises(ArithmeticError, match="off"):
        converged(drawn(12, 9, 200.0), most=1)


def test_newtons_direction_solves_its_equations() -> None:
    problem = drawn(8, 6, 30.0)
    x, y = problem.sinkhorn(*potentials(problem))
    plan = problem.plan(x, y)
    above, below = problem.gradient(plan)
    dx, dy = dense_newton(problem, plan)
    torch.testing.assert_close(problem.eta * (plan.sum(1) * dx + plan @ dy), above, rtol=0, atol=1e-13)
    torch.testing.assert_close(problem.eta * (plan.T @ dx + plan.sum(0) * dy), below, rtol=0, atol=1e-13)


def test_a_rounded_plan_can_be_paid_and_one_that_fits_stays() -> None:
    problem = drawn(10, 7, 50.0)
    x, y = problem.sinkhorn(*potentials(problem))
    plan = problem.plan(x, y)
    rounded = problem.rounded(plan)
    assert float(rounded.min()) >= 0
    assert float(marginal_error(problem.gradient(rounded))) < 1e-14
    assert float((rounded - plan).abs().sum()) <= 2 * float(marginal_error(problem.gradient(plan)))
    exact = converged(problem)
    torch.testing.assert_close(problem.rounded(exact), exact, rtol=0, atol=1e-12)
