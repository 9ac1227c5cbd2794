"""Products and diagonals against the dense Hessian of the head; the penalty against a slow version; what it leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import RecipeError
from engine.methods.regularizers import hessian_alignment as ha
from tests.engine.methods.short import ready, train

torch.manual_seed(0)
H, Y = torch.randn(12, 4, dtype=torch.float64), torch.randint(0, 3, (12,))
DOMAIN = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])


def head() -> tuple[nn.Linear, list[Tensor]]:
    torch.manual_seed(1)
    made = nn.Linear(4, 3).double()
    return made, list(made.parameters())


def each(made: nn.Linear, features: Tensor = H) -> Tensor:
    return F.cross_entropy(made(features), Y, reduction="none")


def dense(made: nn.Linear, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The exact gradient and Hessian of the mean loss of some rows."""

    def loss(flat: Tensor) -> Tensor:
        return F.cross_entropy(H[rows] @ flat[:12].view(3, 4).T + flat[12:], Y[rows])

    at = torch.cat([p.detach().flatten() for p in made.parameters()])
    return torch.autograd.functional.jacobian(loss, at), torch.autograd.functional.hessian(loss, at)


def test_the_product_with_the_gradient_is_the_dense_hessians() -> None:
    made, over = head()
    gradient, hessian = dense(made, torch.arange(12))
    grad = ha.derivative(each(made).mean(), over)
    torch.testing.assert_close(grad, gradient, rtol=0, atol=1e-12)
    torch.testing.assert_close(ha.hessian_gradient(grad, over), hessian @ gradient, rtol=0, atol=1e-10)


def test_the_diagonal_comes_closer_with_the_root_of_the_samples() -> None:
    made, over = head()
    _, hessian = dense(made, torch.arange(12))
    grad = ha.derivative(each(made).mean(), over)

    def error(samples: int) -> float:
        found = []
        for seed in range(8):
            rng = torch.Generator().manual_seed(seed)
            signs = 2.0 * torch.randint(0, 2, (samples, 15), generator=rng).double() - 1
            found.append(ha.hessian_diagonal(grad, over, signs).detach() - hessian.diagonal())
        return float(torch.stack(found).square().mean().sqrt())

    assert 2.5 < error(4) / error(64) < 6.5
    assert error(64) < 0.3 * float(hessian.diagonal().abs().max())


@pytest.mark.parametrize("method", ["hgp", "hutchinson"])
def test_distances_against_a_slow_version(method: str) -> None:
    made, over = head()
    signs = None if method == "hgp" else 2.0 * torch.randint(0, 2, (400, 15)).double() - 1
    losses, there = ha.domain_losses(each(made), DOMAIN, 4)  # the fourth domain is not in the batch
    assert there.tolist() == [1, 1, 1, 0]
    first, second = ha.distances(losses, there, over, signs)
    exact = [dense(made, (d == DOMAIN).nonzero().flatten()) for d in range(3)]
    g = torch.stack([gradient for gradient, _ in exact]).mean(0)
    torch.testing.assert_close(first, sum((a - g).square().sum() for a, _ in exact) / 3, rtol=1e-9, atol=0)
    h = torch.stack([hessian for _, hessian in exact]).mean(0)
    if signs is None:
        torch.testing.assert_close(second, sum((b @ a - h @ g).square().sum() for a, b in exact) / 3, rtol=1e-8, atol=0)
    else:
        spread = sum((b - h).diagonal().square().sum() for _, b in exact) / 3
        torch.testing.assert_close(second, spread, rtol=0.5, atol=0)


def test_domains_that_are_alike_cost_nothing_and_others_something() -> None:
    made, over = head()
    twice = torch.cat([each(made), each(made)])
    losses, there = ha.domain_losses(twice, torch.arange(24) // 12, 2)
    assert [float(d.detach()) for d in ha.distances(losses, there, over, None)] == pytest.approx([0, 0], abs=1e-25)
    losses, there = ha.domain_losses(each(made), DOMAIN, 3)
    assert all(float(d.detach()) > 1e-4 for d in ha.distances(losses, there, over, None))


def test_the_penalty_reaches_below_the_head() -> None:
    made, over = head()
    features = H.clone().requires_grad_()
    losses, there = ha.domain_losses(each(made, features), DOMAIN, 3)
    for distance in ha.distances(losses, there, over, None):
        (found,) = torch.autograd.grad(distance, features, retain_graph=True)
        assert float(found.abs().max()) > 1e-5


COLOURED: dict[str, Any] = {
    "task": {"use": "coloured-digits", "rows": 60},
    "training": {"batch_size": 40},
    "budget": {"steps": 6},
}


def test_without_factors_it_is_the_plain_run_bit_for_bit() -> None:
    _, _, plain = train(**COLOURED)
    run, log, same = train(**COLOURED, techniques=[{"use": "hessian-alignment", "alpha": 0.0, "beta": 0.0}])
    assert plain.weights == same.weights
    assert log.points["hessian-alignment/gradient-distance"][1][0] > 0 and run.step == 6


@pytest.mark.parametrize("method", ["hgp", "hutchinson"])
def test_in_a_run_the_term_begins_after_the_warm_up_and_the_loss_is_rescaled(method: str) -> None:
    settings = {"use": "hessian-alignment", "method": method, "alpha": 50.0, "beta": 100.0, "warmup_steps": 2}
    run, _ = ready(**COLOURED, techniques=[settings])
    technique = run.techniques[0]
    assert run.stream is not None
    batch = run.stream.next()
    output = run.model(batch.x)
    plain = run.objective(output, batch)
    assert run.terms(output, batch).keys() == {"task"}
    run.step = 2
    found = run.terms(output, batch)
    torch.testing.assert_close(found["task"], plain["task"] / 100)
    losses, there = ha.domain_losses(plain["task"], batch.meta["domain"], 2)
    over = list(run.model.head.parameters())  # type: ignore[union-attr, operator]
    if method == "hgp":
        first, second = ha.distances(losses, there, over, None)
        torch.testing.assert_close(found["hessian-alignment"], (50 * second + 100 * first) / 100)
    technique.rescale_after_warmup = False  # type: ignore[attr-defined]
    torch.testing.assert_close(run.terms(output, batch)["task"], plain["task"])


def test_the_domains_come_together() -> None:
    """Minimizing the penalty makes the distances fall several times."""
    changes = {**COLOURED, "budget": {"steps": 120}, "optimizer": {"use": "adamw", "lr": 0.003}}
    heavy = {"use": "hessian-alignment", "alpha": 1e3, "beta": 1e3, "rescale_after_warmup": True}
    _, log, _ = train(**changes, techniques=[heavy])
    for name in ("gradient-distance", "hessian-distance"):
        values = log.points[f"hessian-alignment/{name}"][1]
        assert values[-1] < values[0] / 5


def test_it_is_refused_where_there_are_no_domains_or_the_step_is_split() -> None:
    part = [{"use": "hessian-alignment"}]
    with pytest.raises(RecipeError, match="domain"):
        ready(techniques=part)
    with pytest.raises(RecipeError, match="couples the samples"):
        ready(**{**COLOURED, "training": {"batch_size": 40, "accumulate": 2}}, techniques=part)
    with pytest.raises(RecipeError, match="full precision"):
        ready(**{**COLOURED, "training": {"precision": "bf16"}}, techniques=part)


def test_another_head_is_looked_at_after_surgery() -> None:
    run, _ = ready(**COLOURED, techniques=[{"use": "hessian-alignment"}])
    technique: Any = run.techniques[0]
    run.model.head = nn.Linear(64, 2)
    technique.on_surgery(run, {})
    assert [id(p) for p in technique._over] == [id(p) for p in run.model.head.parameters()]
