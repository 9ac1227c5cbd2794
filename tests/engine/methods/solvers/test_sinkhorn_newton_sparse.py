"""Sinkhorn-Newton-Sparse and Sinkhorn: the plan of a library, Newton's own direction, and how fast."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from engine.kit.transport import Transport
from engine.methods.solvers.sinkhorn_newton_sparse import sparse_newton
from engine.training.loop import Trainer
from tests.engine.methods.short import ready, train

SOLVERS: dict[str, dict[str, Any]] = {
    "sinkhorn": {"use": "sinkhorn"},
    "sparse": {"use": "sinkhorn-newton-sparse", "n_sinkhorn": 5, "per_row": 4.0},
    "whole": {"use": "sinkhorn-newton-sparse", "n_sinkhorn": 5, "per_row": 1000.0},
}


def solved(task: dict[str, Any], procedure: dict[str, Any], steps: int = 3000) -> tuple[Any, Any, dict[str, float]]:
    sections = {"training": {"evaluate_every": 0}, "budget": {"steps": steps}}
    run, memory, outcome = train(task={"use": "optimal-transport", **task}, procedure=procedure, **sections)
    assert outcome.state == "done"
    return run, memory, outcome.metrics


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("problem", ["random-cost", "clouds", "digits"])
def test_the_plan_is_that_of_a_library(solver: str, problem: str) -> None:
    run, _, metrics = solved({"problem": problem, "points": 25, "eta": 40.0}, SOLVERS[solver])
    at: Transport = run.task.transport
    cost, rows, columns = (each.numpy() for each in (at.cost, at.rows, at.columns))
    theirs = ot.sinkhorn(rows, columns, cost, 1 / at.eta, "sinkhorn_log", numItermax=20000, stopThr=1e-13)
    np.testing.assert_allclose(run.model().numpy(), theirs, rtol=0, atol=1e-8)
    assert metrics["test/marginal_error"] < 1e-10 and metrics["test/distance"] < 1e-8
    assert metrics["test/cost"] == pytest.approx(float((theirs * cost).sum()), abs=1e-8)
    assert "marginals are met" in run.finished


def plan_and_gradient(n: int = 9, m: int = 7) -> tuple[Transport, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    uniform = [torch.full((k,), 1 / k, dtype=torch.float64) for k in (n, m)]
    problem = Transport(torch.rand(n, m, generator=rng, dtype=torch.float64), *uniform, 15.0)
    x, y = problem.sinkhorn(*(torch.zeros_like(each) for each in uniform))
    y = y + 0.01 * torch.randn(m, generator=rng, dtype=torch.float64)
    plan = problem.plan(x, y)
    plan = plan / plan.sum()  # both sides lack the same
    return problem, plan, *problem.gradient(plan)


def test_with_all_entries_it_is_newtons_direction() -> None:
    _, plan, above, below = plan_and_gradient()
    found, share = sparse_newton(plan, above, below, plan.numel(), 1e-13)
    whole = torch.cat([torch.cat([plan.sum(1).diag(), plan], 1), torch.cat([plan.T, plan.sum(0).diag()], 1)])
    exact = torch.linalg.lstsq(whole, torch.cat([above, below])[:, None], driver="gelsd").solution[:, 0]
    free = torch.cat([torch.ones(9), -torch.ones(7)]).double() / 4
    difference = found - exact
    difference -= (difference @ free) * free  # along (1, -1) the plan does not change
    assert float(difference.abs().max()) < 1e-10
    assert share == pytest.approx(1.0)


def test_only_the_largest_entries_are_kept_and_the_diagonals_stay_exact() -> None:
    _, plan, above, below = plan_and_gradient()
    found, share = sparse_newton(plan, above, below, 12, 1e-13)
    kept = torch.where(plan >= plan.flatten().sort(descending=True).values[11], plan, 0.0)
    assert int((kept != 0).sum()) == 12
    matrix = torch.cat([torch.cat([plan.sum(1).diag(), kept], 1), torch.cat([kept.T, plan.sum(0).diag()], 1)])
    torch.testing.assert_close(matrix @ found, torch.cat([above, below]), rtol=0, atol=1e-12)
    assert share == pytest.approx(float(kept.sum() / plan.sum()))


def test_the_dual_never_falls_and_half_of_the_hessian_is_enough() -> None:
    _, memory, metrics = solved({"points": 60, "eta": 300.0}, {"use": "sinkhorn-newton-sparse", "per_row": 5.0}, 200)
    values = memory.points["train/loss"][1]
    assert len(values) == metrics["result/iterations"]
    assert all(after <= before + 1e-15 for before, after in pairwise(values))
    assert metrics["count/evaluations"] >= metrics["result/iterations"]


def test_where_a_newton_step_fails_sinkhorn_takes_its_place() -> None:
    run, _ = ready(
        task={"use": "optimal-transport", "points": 12, "eta": 30.0},
        procedure={"use": "sinkhorn-newton-sparse", "n_sinkhorn": 0, "n_newton": 4, "cg_tol": 1e-300},
        budget={"steps": 10},
    )
    Trainer(run).train()  # no conjugate gradient comes to such a tolerance
    at: Transport = run.task.transport  # type: ignore[attr-defined]
    x, y = torch.zeros(12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)
    for _ in range(4):
        x, y = at.sinkhorn(x, y)
    torch.testing.assert_close(run.model(), at.plan(x, y), rtol=0, atol=0)
    assert run.procedure.result(run) == {"iterations": 4.0, "replaced": 4.0}
    assert "still" in run.finished and run.step == 4


def rates(points: list[float]) -> list[float]:
    return [after / before for before, after in pairwise(points)]


@pytest.mark.parametrize(("per_row", "most"), [(2.0, 120), (10.0, 40)])
def test_few_iterations_where_sinkhorn_needs_thousands(per_row: float, most: int) -> None:
    procedure = {"use": "sinkhorn-newton-sparse", "per_row": per_row}
    _, memory, metrics = solved({}, procedure, 150)
    assert metrics["result/iterations"] <= most and metrics["result/replaced"] == 0
    assert metrics["test/marginal_error"] < 1e-10
    assert metrics["test/distance"] < 1e-8
    tail = [error for error in memory.points["marginal-error"][1] if error > 1e-14]
    if per_row == 2.0:  # a straight line on a log scale
        assert all(0.4 < rate < 0.8 for rate in rates(tail)[-20:])
        assert memory.points["kept-mass"][1][-1] > 0.95
    else:  # it bends down
        assert rates(tail)[-1] < 0.02


def test_sinkhorn_is_far_from_there_after_a_thousand_iterations() -> None:
    _, _, metrics = solved({"points": 100, "eta": 1200.0}, {"use": "sinkhorn"}, 1000)
    assert metrics["test/marginal_error"] > 1e-8
