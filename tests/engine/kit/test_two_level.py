"""Two-level machinery against a quadratic whose hypergradient is known, and what the outer level can move."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engine.kit.curvature import conjugate_gradient, flat, like
from engine.kit.live import Bound
from engine.kit.two_level import (
    LearnedValues,
    SampleWeights,
    TwoLevel,
    Upper,
    area_under_curve,
    resting,
    with_slopes,
)
from engine.parts import Batch, Value

BATCH = Batch({"x": torch.zeros(1)}, None, torch.arange(1))


class Quadratic:
    """G = y A y / 2 - y (B x),  F = |y - c|^2 / 2 + r |x|^2 / 2;  y* = A^-1 B x,  dF/dx = r x + B^T A^-1 (y* - c)."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng, dtype=torch.float64)

        half = draw(5, 5)
        self.a = half @ half.T + torch.eye(5, dtype=torch.float64)
        self.b, self.c, self.r = draw(5, 3), draw(5), 0.7
        self.x = [draw(2).requires_grad_(), draw(1).requires_grad_()]
        self.y = [draw(2, 2).requires_grad_(), draw(1).requires_grad_()]
        self.problem = TwoLevel(self.x, self.y, self.inner, self.outer)

    def inner(self, batch: Batch) -> Tensor:
        y, x = flat(self.y), flat(self.x)
        return y @ self.a @ y / 2 - y @ self.b @ x

    def outer(self, batch: Batch) -> Tensor:
        return (flat(self.y) - self.c).square().sum() / 2 + self.r * flat(self.x).square().sum() / 2

    def settle(self) -> None:
        """Puts y where the inner loss is least."""
        with torch.no_grad():
            best = torch.linalg.solve(self.a, self.b @ flat(self.x))
            torch._foreach_copy_(self.y, like(best, self.y))

    def true(self) -> Tensor:
        best = torch.linalg.solve(self.a, self.b @ flat(self.x).detach())
        return self.r * flat(self.x).detach() + self.b.T @ torch.linalg.solve(self.a, best - self.c)


def test_the_hypergradient_is_the_closed_form() -> None:
    quadratic = Quadratic()
    quadratic.settle()
    problem = quadratic.problem
    z, _, _ = conjugate_gradient(problem.curvature(BATCH), problem.outer_slopes(BATCH)[1], steps=5)
    found, outer = problem.hypergradient(z, BATCH, BATCH)
    assert torch.allclose(flat(found), quadratic.true(), atol=1e-9)
    assert float(outer) == pytest.approx(float(quadratic.outer(BATCH).detach()), rel=1e-12) and not outer.requires_grad


def test_it_is_what_moving_x_does_to_the_settled_outer_loss() -> None:
    quadratic = Quadratic()
    differences = []
    for each in quadratic.x:
        for i in range(len(each)):
            values = []
            for shift in (1e-5, -2e-5):
                with torch.no_grad():
                    each[i] += shift
                quadratic.settle()
                values.append(float(quadratic.outer(BATCH).detach()))
            with torch.no_grad():
                each[i] += 1e-5
            differences.append((values[0] - values[1]) / 2e-5)
    assert quadratic.true().tolist() == pytest.approx(differences, rel=1e-6)


def test_steps_against_the_residual_bring_z_to_the_solution() -> None:
    quadratic = Quadratic()
    quadratic.settle()
    z = [torch.zeros_like(y) for y in quadratic.y]
    for _ in range(2000):
        z = [a - 0.1 * r for a, r in zip(z, quadratic.problem.residual(z, BATCH, BATCH), strict=True)]
    exact = torch.linalg.solve(quadratic.a, flat(quadratic.y).detach() - quadratic.c)
    assert torch.allclose(flat(z), exact, atol=1e-9)


def test_what_the_outer_loss_does_not_depend_on_has_no_slope() -> None:
    quadratic = Quadratic()
    problem = TwoLevel(quadratic.x, quadratic.y, quadratic.inner, lambda batch: flat(quadratic.y).sum())
    above, below = problem.outer_slopes(BATCH)
    assert not flat(above).any() and torch.equal(flat(below), torch.ones(5, dtype=torch.float64))


def test_a_number_with_a_slope_of_its_own() -> None:
    x = [torch.ones(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
    value = with_slopes(torch.tensor(3.5), x, [torch.tensor([1.0, -2.0]), torch.tensor([4.0])])
    value.backward()
    assert float(value) == 3.5 and x[0].grad.tolist() == [1.0, -2.0] and x[1].grad.tolist() == [4.0]  # type: ignore


def test_at_rest_nothing_drops_and_modes_come_back() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    model[2].eval()
    before = {n: b.clone() for n, b in model.named_buffers()}
    with resting(model):
        out = model(torch.ones(4, 3))
        assert torch.equal(out, model(torch.ones(4, 3))) and out.requires_grad
    assert [m.training for m in model] == [True, True, False] and model.training
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_samples_are_weighed_by_their_index() -> None:
    upper = SampleWeights(6)
    with torch.no_grad():
        upper.logits.copy_(torch.arange(6.0))
    batch = Batch({"x": torch.zeros(3)}, None, torch.tensor([4, 0, 5]))
    terms = upper.weigh({"task": torch.tensor([1.0, 2.0, 3.0]), "penalty:a": torch.tensor(7.0)}, batch)
    assert torch.allclose(terms["task"], torch.sigmoid(torch.tensor([4.0, 0.0, 5.0])) * torch.tensor([1.0, 2.0, 3.0]))
    assert float(terms["penalty:a"]) == 7.0
    terms["task"].sum().backward()
    assert upper.logits.grad is not None and (upper.logits.grad != 0).tolist() == [
        True,
        False,
        False,
        False,
        True,
        True,
    ]


def test_learned_values_carry_a_graph_only_while_asked_to() -> None:
    values = {"a": Value(0.2), "b": Value(3.0), "c": Value(1.0)}
    upper = LearnedValues(values, {"b": Bound(1.0, 9.0), "a": Bound(0.0, 0.5)})
    assert upper.paths == ["b", "a"] and len(list(upper.parameters())) == 1
    upper.enter()
    assert values["a"].tensor is not None and float(values["a"].tensor.detach()) == pytest.approx(0.2, rel=1e-5)
    (values["a"].tensor * 3 + values["b"].tensor).backward()  # type: ignore[operator]
    share = torch.tensor([0.25, 0.4])
    assert torch.allclose(upper.free.grad, share * (1 - share) * torch.tensor([8.0, 1.5]), rtol=1e-4)  # type: ignore
    upper.leave()
    assert not values["a"].tensor.requires_grad and values["c"].tensor is None
    assert upper.numbers() == pytest.approx({"b": 3.0, "a": 0.2}, rel=1e-5)
    upper.write(torch.zeros(4, 2))
    assert values["b"].tensor.tolist() == [5.0] * 4  # type: ignore[union-attr]
    assert Upper().weigh({"task": torch.ones(1)}, BATCH) == {"task": torch.ones(1)}


def test_area_under_curve_counts_the_pairs() -> None:
    rng = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 8, (60,), generator=rng).float()
    positive = torch.rand(60, generator=rng) < 0.4
    pairs = scores[positive][:, None] - scores[~positive][None]
    expected = ((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean()
    assert float(area_under_curve(scores, positive)) == pytest.approx(float(expected), rel=1e-12)
