"""Families of problems, their minima against a library, the structured step against ISTA and FISTA, the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, LogisticRegression
from torch import Tensor

from engine.kit.learned import CoordinateLSTM, Problems, fista, minima, segments, soft_threshold, structured_step


def problems(family: Any = "lasso", count: int = 3, m: int = 8, n: int = 12, seed: int = 0) -> Problems:
    rng = torch.Generator().manual_seed(seed)
    a = torch.randn(count, m, n, generator=rng, dtype=torch.float64)
    b = torch.randn(count, m, generator=rng, dtype=torch.float64)
    return Problems(family, a, b if family == "lasso" else b.sign(), 0.3 if family == "lasso" else 0.05)


def places(of: Problems, seed: int = 1) -> Tensor:
    return torch.randn(of.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("family", ["lasso", "logistic"])
def test_gradient_and_smoothness_are_those_of_autograd(family: str) -> None:
    of = problems(family)
    x = places(of).requires_grad_()
    (slope,) = torch.autograd.grad(of.smooth(x).sum(), x)
    torch.testing.assert_close(of.gradient(x), slope, rtol=1e-12, atol=1e-14)
    for i, bound in enumerate(of.smoothness()):
        one = Problems(of.family, of.a[i : i + 1], of.b[i : i + 1], of.penalty)
        hessian = torch.autograd.functional.hessian(lambda v, one=one: one.smooth(v[None]).sum(), x[i].detach())
        largest = float(torch.linalg.eigvalsh(hessian)[-1])
        assert largest <= float(bound) * (1 + 1e-9)
        if family == "lasso":
            assert largest == pytest.approx(float(bound))
        else:
            flat = torch.autograd.functional.hessian(lambda v, one=one: one.smooth(v[None]).sum(), 0 * x[i].detach())
            assert float(torch.linalg.eigvalsh(flat)[-1]) == pytest.approx(float(bound))  # reached at zero


def test_the_minima_are_those_of_a_library() -> None:
    of = problems(m=30, n=12)
    for i, found in enumerate(minima(of)):
        model = Lasso(of.penalty / 30, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(of.a[i], of.b[i])
        theirs = of.value(torch.from_numpy(np.tile(model.coef_, (3, 1))))[i]
        assert float(found) == pytest.approx(float(theirs), abs=1e-10)


def test_the_minima_of_logistic_problems_are_those_of_a_library() -> None:
    of = problems("logistic", m=30, n=5)
    for i, found in enumerate(minima(of)):
        fit = LogisticRegression(
            l1_ratio=1.0, C=1 / (30 * of.penalty), solver="saga", fit_intercept=False, tol=1e-12, max_iter=50_000
        ).fit(of.a[i], of.b[i])
        theirs = of.value(torch.from_numpy(np.tile(fit.coef_[0], (3, 1))))[i]
        assert float(found) == pytest.approx(float(theirs), abs=1e-9)


def test_the_soft_threshold_is_its_closed_form_and_minimizes() -> None:
    u = torch.linspace(-2, 2, 41, dtype=torch.float64)
    level = torch.linspace(0.1, 1.1, 41, dtype=torch.float64)
    found = soft_threshold(u, level)
    torch.testing.assert_close(found, u.sign() * (u.abs() - level).clamp_min(0), rtol=0, atol=1e-15)
    cost = lambda x: (x - u) ** 2 / 2 + level * x.abs()  # noqa: E731
    for shift in (-1e-3, 1e-3):
        assert bool((cost(found + shift) >= cost(found)).all())


def by_structure(of: Problems, steps: int, momentum: bool) -> Tensor:
    x = z = torch.zeros(of.size, dtype=torch.float64)
    for k in range(1, steps + 1):
        a = (k - 1) / (k + 2) if momentum else 0.0
        x, z = structured_step(of, x, z, 1 / of.smoothness(), a=a, b=1.0)
    return z


@pytest.mark.parametrize("family", ["lasso", "logistic"])
@pytest.mark.parametrize("momentum", [False, True])
def test_the_structured_step_contains_ista_and_fista(family: str, momentum: bool) -> None:
    of = problems(family)
    x = y = np.zeros(of.size)
    a, b, rate = of.a.numpy(), of.b.numpy(), 1 / of.smoothness().numpy()
    for k in range(1, 31):  # written anew, problem by problem
        for i in range(len(a)):
            rest = a[i] @ y[i] - b[i] if family == "lasso" else -b[i] / (1 + np.exp(b[i] * (a[i] @ y[i]))) / len(b[i])
            u = y[i] - rate[i] * (a[i].T @ rest)
            after = np.sign(u) * np.maximum(np.abs(u) - rate[i] * of.penalty, 0)
            y, x = y.copy(), x.copy()
            y[i] = after + ((k - 1) / (k + 2) if momentum else 0.0) * (after - x[i])
            x[i] = after
    torch.testing.assert_close(by_structure(of, 30, momentum), torch.from_numpy(x), rtol=0, atol=1e-10)
    *_, last = fista(of, 30, momentum)
    torch.testing.assert_close(last, torch.from_numpy(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ["lasso", "logistic"])
def test_a_minimum_stays_where_it_is(family: str) -> None:
    of = problems(family)
    *_, best = fista(of, 3000, restart=True)
    rng = torch.Generator().manual_seed(2)
    p, a, b = (2 * torch.rand(of.size, generator=rng, dtype=torch.float64) for _ in range(3))
    x, z = structured_step(of, best, best, 1 / of.smoothness(), p, a, b)
    torch.testing.assert_close(x, best, rtol=0, atol=1e-9)
    torch.testing.assert_close(z, best, rtol=0, atol=1e-9)
    moved, _ = structured_step(of, best, best, 1 / of.smoothness(), p, a, b, b1=0.1)
    assert not torch.allclose(moved, best, atol=1e-3)


def test_the_network_is_that_of_torch_and_sees_each_coordinate_alone() -> None:
    torch.manual_seed(0)
    net = CoordinateLSTM(2, 3, hidden=5)
    whole = torch.nn.LSTM(2, 5, 2)
    for i, cell in enumerate(net.cells):
        for name, value in cell.named_parameters():
            getattr(whole, f"{name}_l{i}").data.copy_(value)
    state = net.start(7, torch.Generator().manual_seed(1))
    features = torch.randn(4, 7, 2)
    theirs, _ = whole(features, (torch.stack([h for h, _ in state]), torch.stack([c for _, c in state])))
    order = torch.tensor([3, 1, 0, 6, 5, 2, 4])
    shuffled = [(h[order], c[order]) for h, c in state]
    for step in range(4):
        out, state = net(features[step], state)
        torch.testing.assert_close(out, net.heads(net.linear(theirs[step]).relu()))
        permuted, shuffled = net(features[step][order], shuffled)
        torch.testing.assert_close(permuted, out[order])


def test_the_states_are_normal_numbers_of_the_generator() -> None:
    net = CoordinateLSTM(2, 1)
    (h, c), second = net.start(2000, torch.Generator().manual_seed(0))
    for each in (h, c, *second):
        assert float(each.mean()) == pytest.approx(0, abs=0.02) and float(each.std()) == pytest.approx(1, abs=0.02)
    again = net.start(2000, torch.Generator().manual_seed(0))
    assert torch.equal(again[0][0], h) and not torch.equal(h, c)


def test_a_run_is_cut_into_stretches() -> None:
    assert list(segments(100, 20)) == [20] * 5 and list(segments(7, 3)) == [3, 3, 1]
