"""The learned optimizer: its step by hand, what it takes over from its training, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.kit.learned import Problems, structured_step
from engine.methods.optimizers.learned_optimizer import LearnedOptimizer
from engine.methods.solvers.l2o_pa import StructuredRule


class Held:
    """A source that is at hand."""

    label = "run:here"

    def __init__(self, module: nn.Module):
        self.module = module

    def model(self) -> nn.Module:
        return self.module.requires_grad_(False).eval()


def made(parameters: list[Tensor], lr: float = 0.1, **settings: Any) -> tuple[LearnedOptimizer, StructuredRule]:
    torch.manual_seed(0)
    rule = StructuredRule(hidden=5, **settings).double()
    optimizer = LearnedOptimizer(parameters, Held(rule), lr=lr)
    optimizer.attach(nn.Identity(), None)
    return optimizer, rule


def test_it_is_the_rule_of_its_training_without_a_penalty() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 9, *shape, generator=rng, dtype=torch.float64) for shape in ((6,), ()))
    problem = Problems("lasso", a, b, 0.0)
    rate = float(0.9999 / problem.smoothness())
    weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    optimizer, rule = made([weight], lr=rate)
    state = rule.lstm.start(6, torch.Generator().manual_seed(0))
    x = z = torch.zeros(1, 6, dtype=torch.float64)
    for _ in range(12):
        weight.grad = problem.gradient(weight.detach().view(1, 6)).view(2, 3)
        optimizer.step()
        factors, state = rule.factors(problem.gradient(x), x, state)
        x, z = structured_step(problem, x, z, torch.full((1, 1), rate, dtype=torch.float64), **factors)
        torch.testing.assert_close(weight.detach(), x.view(2, 3), rtol=0, atol=1e-12)
    assert float(x.abs().max()) > 0.01


def test_parameters_together_move_as_each_alone_and_a_loaded_state_goes_on() -> None:
    start = [torch.randn(3, 2), torch.randn(4)]

    def trained(steps: int, after: dict[str, Any] | None, at: list[Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
        parameters = [nn.Parameter(each.clone()) for each in at]
        optimizer, _ = made(list(parameters))
        if after is not None:
            optimizer.load_state_dict(after)
        for _ in range(steps):
            for parameter in parameters:
                parameter.grad = 0.5 * parameter.detach()
            optimizer.step()
        return [p.detach() for p in parameters], optimizer.state_dict()

    whole, _ = trained(6, None, start)
    half, state = trained(3, None, start)
    again, _ = trained(3, state, half)
    alone, _ = trained(6, None, start[:1])
    for one, other in zip(again, whole, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(alone[0], whole[0])
    assert whole[0].dtype == torch.float32 and not torch.equal(whole[0], start[0])


def test_it_minimizes_a_quadratic() -> None:
    weight = nn.Parameter(torch.ones(20))
    curvature = torch.linspace(0.1, 1.0, 20)
    optimizer, _ = made([weight], lr=0.5, use_a=False)
    for _ in range(200):
        weight.grad = curvature * weight.detach()
        optimizer.step()
    assert float(weight.detach().abs().max()) < 1e-3


def test_it_refuses_what_is_no_such_optimizer() -> None:
    weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="no learned optimizer"):
        LearnedOptimizer([weight], Held(nn.Linear(2, 2))).attach(nn.Identity(), None)
    with pytest.raises(ValueError, match="two places"):
        made([weight], use_b=True)
    weight.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="attach"):
        LearnedOptimizer([weight], Held(nn.Identity())).step()
