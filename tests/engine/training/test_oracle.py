"""The oracle against autograd, finite differences and closed forms; nothing it touches is left changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.parts import Batch, Terms
from engine.training.oracle import Oracle, total_of
from engine.training.random import global_state

torch.manual_seed(0)
X, Y = torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 4, (6,))


def batch() -> Batch:
    return Batch({"x": X}, Y, torch.arange(6))


def terms(output: Tensor, batch: Batch) -> Terms:
    return {"task": F.cross_entropy(output, batch.target, reduction="none"), "size": 0.1 * output.pow(2).mean(1)}


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 4)]
    return nn.Sequential(*layers).double()


def test_gradients_are_autograds() -> None:
    model = network()
    oracle = Oracle(model, terms, batch())
    total_of(terms(model(X), batch())).backward()
    for mine, parameter in zip(oracle.grad(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=0, atol=1e-14)


def test_terms_add_up() -> None:
    oracle = Oracle(network(), terms, batch())
    by_term = oracle.grad(per="term")
    assert set(by_term) == {"task", "size"}
    for whole, a, b in zip(oracle.grad(), by_term["task"], by_term["size"], strict=True):
        torch.testing.assert_close(whole, a + b, rtol=0, atol=1e-14)


def test_samples_average_to_the_batch() -> None:
    oracle = Oracle(network().eval(), terms, batch())
    for whole, each in zip(oracle.grad(), oracle.grad(per="sample"), strict=True):
        assert each.shape == (6, *whole.shape)
        torch.testing.assert_close(whole, each.mean(0), rtol=0, atol=1e-14)


def test_hessian_vector_products_are_differences_of_gradients() -> None:
    model = network()
    oracle = Oracle(model, terms, batch())
    direction = [torch.randn_like(p) for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    step = 1e-5

    def gradients(sign: int) -> list[Tensor]:
        moved = {
            n: (p + sign * step * d).detach().requires_grad_()
            for n, p, d in zip(names, model.parameters(), direction, strict=True)
        }
        return oracle.grad(params=moved)

    for mine, up, down in zip(oracle.hvp(direction), gradients(1), gradients(-1), strict=True):
        torch.testing.assert_close(mine, (up - down) / (2 * step), rtol=1e-6, atol=1e-8)


def test_curvature_at_other_weights() -> None:
    """At weights twice as large: the same products as of a model that has them."""
    model, other = network(), network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    moved = {name: (2 * p).detach().requires_grad_() for name, p in model.named_parameters()}
    direction = [torch.randn_like(p) for p in model.parameters()]
    product = Oracle(model, terms, batch()).hessian(params=moved)
    for mine, theirs in zip(product(direction), Oracle(other, terms, batch()).hvp(direction), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)
    assert torch.equal(product(direction)[0], product(direction)[0]), "one graph serves many products"


def test_input_gradient_is_per_sample_and_leaves_parameters_alone() -> None:
    model = network().eval()
    oracle = Oracle(model, terms, batch())
    x = X.clone().requires_grad_()
    sum(term.sum() for term in terms(model(x), batch()).values()).backward()  # type: ignore[union-attr]
    model.zero_grad()
    torch.testing.assert_close(oracle.input_grad(X), x.grad, rtol=0, atol=1e-14)
    assert all(p.grad is None for p in model.parameters())


def test_the_jacobian_of_a_linear_map() -> None:
    model = nn.Linear(3, 2, bias=False).double()
    (jacobian,) = Oracle(model, terms, batch()).jacobian()
    assert jacobian.shape == (12, 2, 3)
    for sample in range(6):
        for unit in range(2):
            expected = torch.zeros(2, 3, dtype=torch.float64)
            expected[unit] = X[sample]
            torch.testing.assert_close(jacobian[2 * sample + unit], expected, rtol=0, atol=0)


def test_the_draw_of_the_step_is_replayed() -> None:
    model = network(dropout=0.5)
    draw = global_state(torch.device("cpu"))
    expected = total_of(terms(model(X), batch())).detach()
    after = torch.get_rng_state()
    oracle = Oracle(model, terms, batch(), draw=draw)
    assert torch.equal(oracle.value(), expected)
    assert torch.equal(oracle.value(), expected)
    assert torch.equal(torch.get_rng_state(), after)


def test_buffers_stay_and_passes_are_counted() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    oracle = Oracle(model, terms, batch())
    oracle.value()
    oracle.grad()
    oracle.hvp([torch.zeros_like(p) for p in model.parameters()])
    assert oracle.count == 4, "the product is a pass of its own"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="no batch"):
        Oracle(network(), terms).value()
    with pytest.raises(ValueError, match="one of batch, term, sample"):
        Oracle(network(), terms, batch()).grad(per="layer")
    scalar = Oracle(network(), lambda output, batch: {"all": output.mean()}, batch())
    with pytest.raises(ValueError, match="no value per sample"):
        scalar.grad(per="sample")
