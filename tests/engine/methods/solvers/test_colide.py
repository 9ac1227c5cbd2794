"""CoLiDE: its penalty, gradient and noise against closed forms and autograd; the domain's guard; what it finds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.kit.dags import erdos_renyi, hamming, is_acyclic
from engine.methods.solvers.colide import Colide, barrier, gradient, noise, residual, score
from tests.engine.methods.short import ready, train

SHORT = {"step_size": 0.003, "warm_iter": 2000, "max_iter": 5000, "check": 500}


def samples(n: int = 50, d: int = 6, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, d, generator=rng, dtype=torch.float64) @ torch.randn(d, d, generator=rng).double()
    return mixed - mixed.mean(0)


def covariance(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def weights(d: int = 6, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (0.2 * torch.randn(d, d, generator=rng, dtype=torch.float64)).fill_diagonal_(0.0)


@pytest.mark.parametrize("s", [1.0, 0.7])
def test_the_barrier_is_zero_just_for_graphs_without_cycles(s: float) -> None:
    dag = erdos_renyi(9, 2.0, 0.5, 2.0, torch.Generator().manual_seed(0))
    assert abs(float(barrier(dag, s))) < 1e-12
    cycle = torch.zeros(3, 3, dtype=torch.float64)
    cycle[0, 1] = cycle[1, 2] = cycle[2, 0] = 0.3
    expected = 3 * math.log(s) - math.log(s**3 - 0.3**6)  # a cycle of three has the determinant s^3 - product
    assert float(barrier(cycle, s)) == pytest.approx(expected, rel=1e-12)
    assert float(barrier(cycle, s)) > 1e-4


@pytest.mark.parametrize("variant", ["ev", "nv"])
def test_the_gradient_is_that_of_autograd(variant: str) -> None:
    w, s = weights().requires_grad_(), 0.8
    sigma = noise(w.detach(), covariance(samples()), variant)
    value = 0.1 * score(w, sigma, covariance(samples()), 0.05) + barrier(w, s)
    (expected,) = torch.autograd.grad(value, w)
    w = w.detach()
    inverse = torch.linalg.inv(s * torch.eye(6).double() - w.square())
    found = gradient(w, sigma, covariance(samples()), inverse, 0.1, 0.05)
    torch.testing.assert_close(found, expected.fill_diagonal_(0.0), rtol=0, atol=1e-8)


@pytest.mark.parametrize("variant", ["ev", "nv"])
def test_the_noise_minimizes_the_score(variant: str) -> None:
    w, s = weights(), covariance(samples())
    sigma = noise(w, s, variant).requires_grad_()
    (slope,) = torch.autograd.grad(score(w, sigma, s, 0.05), sigma)
    assert float(slope.abs().max()) < 1e-12
    sigma = sigma.detach()
    best = float(score(w, sigma, s, 0.05))
    for factor in (0.9, 1.1):
        assert float(score(w, sigma * factor, s, 0.05)) > best


def test_what_parents_do_not_explain_is_the_mean_square_of_the_rest() -> None:
    x, w = samples(), weights()
    torch.testing.assert_close(residual(w, covariance(x)), (x - x @ w).square().mean(0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("variant", ["ev", "nv"])
def test_scaled_samples_scale_the_noise_and_the_score(variant: str) -> None:
    w, s, a = weights(), covariance(samples()), 3.7
    sigma, scaled = noise(w, s, variant), noise(w, a * a * s, variant)
    torch.testing.assert_close(scaled, a * sigma, rtol=1e-12, atol=0)
    one = score(w, sigma, s, 0.05)
    torch.testing.assert_close(score(w, scaled, a * a * s, a * 0.05) / a, one, rtol=1e-12, atol=0)


def prepared(**settings: Any) -> tuple[Any, Any]:
    task = {"use": "linear-sem", "nodes": 5, "samples": 60}
    run, _ = ready(task=task, procedure={"use": "colide", "check": 1, **settings}, budget={"steps": 50})
    return run, run.procedure


def outside(solver: Colide, run: Any) -> None:
    """A cycle that lies outside of the domain."""
    with torch.no_grad():
        run.model.weights[0, 1] = run.model.weights[1, 0] = 1.2


def test_outside_of_the_domain_a_later_stage_starts_again_with_half_the_rate() -> None:
    run, solver = prepared(step_size=0.01)
    solver.stage = 1
    solver._begin(run)
    start = [each.clone() for each in solver.start]
    solver.step(run, None)
    outside(solver, run)
    solver.step(run, None)
    assert (solver.rate, solver.restarts, solver.iteration) == (0.005, 1, 1)
    assert solver.s == pytest.approx(1.0)
    inverse = torch.linalg.inv(torch.eye(5).double() - start[0].square())
    slope = gradient(*start, solver._covariance, inverse, 0.1, 0.05)
    torch.testing.assert_close(
        run.model.weights.detach(), -0.005 * slope.sign(), rtol=0, atol=1e-6
    )  # Adam's first move


def test_in_the_first_stage_the_last_move_is_undone_and_made_with_half_the_rate() -> None:
    run, solver = prepared(step_size=2.5, check=2)
    seen: list[Tensor] = []
    adam = solver._adam
    solver._adam = lambda slope: seen.append(adam(slope)) or seen[-1]  # type: ignore[func-returns-value]
    solver.step(run, None)
    assert solver.restarts == 0 and solver.rate < 2.5, "the first move was too long"
    expected = -solver.rate * (seen[0] + seen[1])
    torch.testing.assert_close(run.model.weights.detach(), expected, rtol=0, atol=1e-12)


def fitted(variant: str, instance: int, **task: Any) -> tuple[Any, dict[str, float]]:
    run, _, outcome = train(
        task={"use": "linear-sem", "instance": instance, **task},
        procedure={"use": "colide", "variant": variant, **SHORT},
        training={"evaluate_every": 0},
        budget={"steps": 100},
    )
    assert outcome.state == "done"
    return run, outcome.metrics


def test_it_finds_the_graph_and_the_noise() -> None:
    run, metrics = fitted("ev", 0, nodes=10)
    with torch.no_grad():
        found = run.procedure.predict(run, None)
    assert is_acyclic(found["weights"]) and metrics["test/acyclic"] == 1
    assert float(found["weights"][found["weights"] != 0].abs().min()) >= 0.3
    assert metrics["test/shd"] == hamming(found["weights"], run.task.graph) <= 1
    assert metrics["test/noise_error"] < 0.05 and "last stage" in run.finished


def test_each_variables_own_noise_is_found() -> None:
    run, metrics = fitted("nv", 0, nodes=16, noise="different", variance=5.0)
    assert run.model.sigma.shape == (16,) and metrics["test/noise_error"] < 0.05


def test_a_fixed_noise_stays() -> None:
    settings = {"variant": "fixed", "stages": 2, "warm_iter": 20, "max_iter": 20, "check": 10}
    run, _, _ = train(task={"use": "linear-sem", "nodes": 5}, procedure={"use": "colide", **settings})
    assert torch.equal(run.model.sigma, torch.ones(1, dtype=torch.float64)) and bool(run.model.weights.any())
