"""Gaussian networks: moments against draws and closed forms, inference against Bayes' rule."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.kit.gaussian import (
    NONLINEAR,
    Gaussian,
    backward,
    belief,
    cap_of,
    capped,
    chain_of,
    derivative,
    forward,
    give_variances,
    infer_input,
    learn,
    linear_moments,
    observed,
)


def network(*widths: int, activation: Any = nn.Tanh, gain: float = 0.5, seed: int = 0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [activation()] if i else []
        layers.append(nn.Linear(inputs, outputs))
    made = nn.Sequential(*layers).double()
    give_variances(made, gain, torch.Generator().manual_seed(seed))
    return made


def spread(n: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(x: Tensor) -> Gaussian:
    return Gaussian(x, torch.zeros_like(x))


def observe(model: nn.Module, x: Gaussian, y: Tensor, noise: float, cap: float | None = None) -> None:
    chain = chain_of(model)
    seen = forward(chain, x)
    deltas, _ = backward(chain, seen, observed(seen.answer, y, noise))
    learn(chain, deltas, cap)


def test_the_prior() -> None:
    model = network(400, 300, gain=0.5)
    weight, bias = (belief(model[0], name) for name in ("weight", "bias"))  # type: ignore[arg-type]
    assert weight is not None and bias is not None
    assert torch.allclose(weight.var, torch.tensor(0.25 / 400, dtype=torch.float64)) and bias.var.shape == (300,)
    assert float(weight.mean.var()) == pytest.approx(1 / 400, rel=0.02)
    assert float(bias.mean.var()) == pytest.approx(1 / 400, rel=0.2)


def test_moments_of_a_linear_layer_are_those_of_its_draws() -> None:
    n = 1_000_000
    rng = torch.Generator().manual_seed(0)
    a = Gaussian(torch.tensor([[0.7, -1.2, 0.4]]), torch.tensor([[0.3, 0.1, 0.5]]))
    w = Gaussian(torch.randn(2, 3, generator=rng), torch.rand(2, 3, generator=rng))
    b = Gaussian(torch.tensor([0.5, -0.5]), torch.tensor([0.2, 0.4]))
    z = linear_moments(a, w, b)
    drawn = torch.zeros(n, 2)
    for i in range(2):
        drawn[:, i] = b.mean[i] + b.var[i].sqrt() * torch.randn(n, generator=rng)
    for j in range(3):
        unit = a.mean[0, j] + a.var[0, j].sqrt() * torch.randn(n, generator=rng)
        for i in range(2):
            drawn[:, i] += unit * (w.mean[i, j] + w.var[i, j].sqrt() * torch.randn(n, generator=rng))
    assert torch.allclose(z.mean[0], drawn.mean(0), rtol=0.01, atol=0.005)
    assert torch.allclose(z.var[0], drawn.var(0), rtol=0.01)


@pytest.mark.parametrize("kind", list(NONLINEAR))
def test_slopes_and_bends_are_derivatives(kind: Any) -> None:
    z = torch.linspace(-3, 3, 61, dtype=torch.float64).add(0.01).requires_grad_(True)
    function = NONLINEAR[kind]
    value = kind()(z)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    assert torch.allclose(function.value(z), value, atol=1e-12)
    assert torch.allclose(function.slope(z), slope, atol=1e-9)
    if slope.requires_grad and kind is not nn.ReLU:
        (bend,) = torch.autograd.grad(slope.sum(), z)
        assert torch.allclose(function.bend(z), bend, atol=1e-9)
    else:
        assert not function.bend(z).any()


def posterior(x: Tensor, y: Tensor, mean: Tensor, cov: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Bayesian linear regression in closed form."""
    precision = cov.inverse() + x.T @ x / noise
    after = precision.inverse()
    return after @ (cov.inverse() @ mean + x.T @ y / noise), after


def test_one_observation_of_a_linear_layer_is_bayes_rule() -> None:
    model, noise = network(4, 1), 0.3
    x, y = spread(2, 4), spread(2, 1, seed=2)
    design = torch.cat([x, torch.ones(2, 1, dtype=torch.float64)], 1)
    linear: Any = model[0]
    mean = torch.cat([linear.weight.detach()[0], linear.bias.detach()])
    cov = torch.cat([linear.weight_variance[0], linear.bias_variance]).diag()
    for i in range(2):
        mean, cov = posterior(design[i : i + 1], y[i], mean, cov, noise)
        observe(model, exact(x[i : i + 1]), y[i : i + 1], noise)
        found = torch.cat([linear.weight.detach()[0], linear.bias.detach()])
        var = torch.cat([linear.weight_variance[0], linear.bias_variance])
        same = torch.allclose(found, mean, atol=1e-10) and torch.allclose(var, cov.diag(), atol=1e-10)
        assert same == (i == 0), "after the second one the covariances that were dropped are missed"


def test_what_an_input_must_have_been_is_bayes_rule_too() -> None:
    model = network(3, 1)
    linear: Any = model[0]
    for buffer in model.buffers():
        buffer.zero_()
    x, var, noise = spread(1, 3), torch.tensor([[0.2, 0.5, 1.0]], dtype=torch.float64), 0.1
    y = torch.tensor([[2.0]], dtype=torch.float64)
    mean, cov = posterior(linear.weight.detach(), (y - linear.bias.detach())[0], x[0], var[0].diag(), noise)
    found = infer_input(chain_of(model), Gaussian(x, var), y, noise)
    assert torch.allclose(found.mean[0], mean, atol=1e-10) and torch.allclose(found.var[0], cov.diag(), atol=1e-10)


def test_the_way_back_is_a_smoother_unit_by_unit() -> None:
    """Two layers, slowly: the hidden units' posterior by their covariance with the answer, then what is below them."""
    model, noise = network(3, 4, 2), 0.2
    chain, x, y = chain_of(model), spread(1, 3), spread(1, 2, seed=5)
    first, second = model[0], model[2]
    seen = forward(chain, exact(x))
    deltas, of_input = backward(chain, seen, observed(seen.answer, y, noise))
    z1 = seen.entered[1]
    a1 = torch.tanh(z1.mean)
    slope = 1 - a1**2
    d_mean, d_var = (y - seen.answer.mean) / (seen.answer.var + noise), -1 / (seen.answer.var + noise)
    w2: Any = second.weight.detach()
    for i in range(2):
        for j in range(4):
            var = second.weight_variance[i, j]  # type: ignore[index]
            c = a1[0, j] * var
            delta = deltas[1][0]
            assert float(var * delta.mean[i, j]) == pytest.approx(float(c * d_mean[0, i]), rel=1e-10)
            assert float(var**2 * delta.var[i, j]) == pytest.approx(float(c**2 * d_var[0, i]), rel=1e-10)
    for j in range(4):
        c = slope[0, j] * w2[:, j] * z1.var[0, j]  # with each answer
        moved, shrunk = (c * d_mean[0]).sum(), (c**2 * d_var[0]).sum()
        own_mean, own_var = moved / z1.var[0, j], shrunk / z1.var[0, j] ** 2
        for k in range(3):
            var = first.weight_variance[j, k]  # type: ignore[index]
            assert float(var * deltas[0][0].mean[j, k]) == pytest.approx(float(x[0, k] * var * own_mean), rel=1e-9)
            expected = float((x[0, k] * var) ** 2 * own_var)
            assert float(var**2 * deltas[0][0].var[j, k]) == pytest.approx(expected, rel=1e-9)
        assert float(deltas[0][1].mean[j]) == pytest.approx(float(own_mean), rel=1e-9)
    assert torch.allclose(of_input.mean[0], sum(deltas[0][1].mean[j] * first.weight[j] for j in range(4)).detach())  # type: ignore[union-attr, index]


def test_deltas_are_summed_over_a_batch_with_the_weights_from_before() -> None:
    model = network(3, 5, 2)
    chain, x, y = chain_of(model), spread(6, 3), spread(6, 2, seed=3)
    seen = forward(chain, exact(x))
    whole, _ = backward(chain, seen, observed(seen.answer, y, 0.1))
    totals = None
    for i in range(6):
        one = forward(chain, exact(x[i : i + 1]))
        each, _ = backward(chain, one, observed(one.answer, y[i : i + 1], 0.1))
        flat = torch.cat([t.flatten() for pair in each for delta in pair for t in delta])
        totals = flat if totals is None else totals + flat
    assert totals is not None
    assert torch.allclose(torch.cat([t.flatten() for pair in whole for delta in pair for t in delta]), totals)


def test_single_samples_never_make_a_weight_less_sure() -> None:
    model = network(3, 6, 1)
    before = [b.clone() for b in model.buffers()]
    for i in range(30):
        observe(model, exact(spread(1, 3, seed=i)), spread(1, 1, seed=100 + i), 0.05)
        after = [b.clone() for b in model.buffers()]
        assert all(bool((a <= b).all() and (a >= 0).all()) for a, b in zip(after, before, strict=True))
        before = after


def test_large_batches_count_too_often_without_the_cap_and_not_with_it() -> None:
    x, y = spread(200, 3), spread(200, 1, seed=2)
    free, bounded = network(3, 6, 1), network(3, 6, 1)
    observe(free, exact(x), y, 0.01)
    assert min(float(b.min()) for b in free.buffers()) < 0
    start = [t.clone() for t in (*bounded.parameters(), *bounded.buffers())]
    observe(bounded, exact(x), y, 0.01, cap_of(200))
    variances = [b.clone() for b in start[4:]]
    assert all(bool((b > 0).all()) for b in bounded.buffers())
    for old, new, var in zip(start[:4], bounded.parameters(), variances, strict=True):
        assert bool(((new.detach() - old).abs() <= var.sqrt() / 2 + 1e-12).all())


def test_the_cap() -> None:
    assert [cap_of(n) for n in (1, 2, 255, 256)] == [0.1, 2.0, 2.0, 3.0]
    var = torch.tensor([4.0, 4.0, 4.0])
    assert capped(torch.tensor([0.5, -9.0, 9.0]), var, 2.0).tolist() == [0.5, -1.0, 1.0]
    model = network(2, 1)
    linear: Any = model[0]
    linear.weight_variance.fill_(1e-8)  # the cap lets an update take all of it
    observe(model, exact(1e5 * spread(40, 2)), spread(40, 1), 1e-6, 2.0)
    assert torch.equal(linear.weight_variance, torch.full((1, 2), 1e-5, dtype=torch.float64))


def test_noise_without_end_teaches_nothing() -> None:
    model = network(3, 4, 2)
    before = [t.clone() for t in (*model.parameters(), *model.buffers())]
    observe(model, exact(spread(5, 3)), spread(5, 2), 1e30)
    assert all(torch.equal(a, b) for a, b in zip((*model.parameters(), *model.buffers()), before, strict=True))


def test_a_derivative_has_the_mean_of_autograd_and_the_curvature_as_covariance() -> None:
    model = network(2, 7, 5, 1)
    for buffer in model.buffers():
        buffer.zero_()
    x, var = spread(4, 2), torch.full((4, 2), 0.01, dtype=torch.float64)
    found = derivative(chain_of(model), Gaussian(x, var))
    z = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(model(z).sum(), z, create_graph=True)
    curvature = torch.stack([torch.autograd.grad(slope[:, j].sum(), z, retain_graph=True)[0][:, j] for j in (0, 1)], 1)
    assert torch.allclose(found.mean, slope, atol=1e-10)
    assert torch.allclose(found.covariance, 0.01 * curvature, atol=1e-10)
    assert bool((found.var * var >= found.covariance**2 - 1e-15).all()), "no correlation is larger than 1"


def test_a_derivatives_variance_without_nonlinearities_is_that_of_products() -> None:
    model = nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1)).double()
    give_variances(model, 0.7)
    found = derivative(chain_of(model), exact(torch.zeros(1, 1, dtype=torch.float64)))
    rng, n = torch.Generator().manual_seed(0), 400_000
    total = torch.zeros(n, dtype=torch.float64)
    first, second = (belief(layer, "weight") for layer in model)  # type: ignore[arg-type]
    assert first is not None and second is not None
    for j in range(3):
        one = first.mean[j, 0] + first.var[j, 0].sqrt() * torch.randn(n, generator=rng)
        total += one * (second.mean[0, j] + second.var[0, j].sqrt() * torch.randn(n, generator=rng))
    assert float(found.mean[0, 0]) == pytest.approx(float(total.mean()), abs=0.01)
    assert float(found.var[0, 0]) == pytest.approx(float(total.var()), rel=0.01)
    assert float(found.covariance.abs().max()) == 0


class Residual(nn.Module):
    """Layers that do not simply follow each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.one(x)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), "1 is a BatchNorm1d"),
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 1)), "1 is a Dropout"),
        (nn.Sequential(nn.Linear(3, 3), nn.GELU(approximate="tanh")), "approximate GELU"),
        (Residual(), "do not simply follow"),
        (nn.Sequential(nn.ReLU()), "no linear layer"),
    ],
)
def test_what_is_no_chain_is_refused(model: nn.Module, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        chain_of(model)
