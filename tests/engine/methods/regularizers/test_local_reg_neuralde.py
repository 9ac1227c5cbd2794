"""Local regularization: the error that a solver would find there, a closed form, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchdiffeq._impl.dopri5 import Dopri5Solver
from torchdiffeq._impl.misc import _compute_error_ratio, _rms_norm
from torchdiffeq._impl.rk_common import _runge_kutta_step

from engine.errors import RecipeError
from engine.kit.runge_kutta import PAIRS
from engine.methods.regularizers.local_reg_neuralde import ID, TERM, LocalRegNeuralDE, local_step
from engine.parts import Batch
from tests.engine.methods.models.test_neural_ode import RECIPE, block_of, state
from tests.engine.methods.short import ready, train

MOMENT = torch.tensor(0.3, dtype=torch.float64)
WITH = {**RECIPE, "techniques": [{"use": ID, "weight": 100.0}]}


def test_the_error_is_what_an_adaptive_solver_computes_for_its_first_step_there() -> None:
    block, z = block_of(tolerance=1e-4), state()
    made = local_step(block, MOMENT, z, "dopri5")
    charged = LocalRegNeuralDE(solver="dopri5").charge(block, MOMENT, z)
    func: Any = lambda t, z, perturb=None: block.velocity(t, z)  # noqa: E731
    solver = Dopri5Solver(func=func, y0=z, rtol=1e-4, atol=1e-4, norm=_rms_norm)
    solver._before_integrate(torch.stack([MOMENT, torch.tensor(1.0, dtype=torch.float64)]))
    h = solver.rk_state.dt.detach()
    assert made.h.item() == pytest.approx(float(h), rel=1e-9) and h < 0.7
    new, _, error, _ = _runge_kutta_step(func, z, block.velocity(MOMENT, z), MOMENT, h, MOMENT + h, solver.tableau)
    expected = float(_compute_error_ratio(error, 1e-4, 1e-4, z, new, _rms_norm))
    assert (charged / made.h).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("solver", PAIRS)
def test_a_linear_equation_has_a_closed_form(solver: Any) -> None:
    """Its stages are polynomials in h A, and so is the error."""
    block, z, pair = block_of(tolerance=1e-3), state(), PAIRS[solver]
    matrix = 2 * torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    block.field.forward = lambda t, z: z @ matrix.T  # type: ignore[method-assign]
    h = float(local_step(block, MOMENT, z, solver).h)
    slopes: list[np.ndarray] = []  # k_i = A p_i(h A) z, by the coefficients of p_i
    for row in pair.a:
        inner = np.zeros(8)
        inner[0] = 1.0
        for weight, slope in zip(row, slopes, strict=True):
            inner += weight * np.concatenate([[0.0], slope[:-1]])
        slopes.append(inner)
    powers = [np.linalg.matrix_power(h * matrix.numpy(), j + 1) for j in range(8)]

    def applied(weights: tuple[float, ...]) -> np.ndarray:
        total = sum(w * slope for w, slope in zip(weights, slopes, strict=True))
        return z.numpy() @ sum(c * p for c, p in zip(total, powers, strict=True)).T

    new = z.numpy() + applied(pair.b)
    allowed = 1e-3 + 1e-3 * np.maximum(abs(z.numpy()), abs(new))
    expected = h * np.sqrt(np.mean((applied(pair.error) / allowed) ** 2))
    assert LocalRegNeuralDE(solver=solver).charge(block, MOMENT, z).item() == pytest.approx(expected, rel=1e-6)


def test_the_step_ends_with_the_span() -> None:
    block = block_of(tolerance=1e-1)
    late = torch.tensor(0.999, dtype=torch.float64)
    assert local_step(block, late, state(), "tsit5").h.item() == pytest.approx(0.001, rel=1e-9)


def test_only_the_later_slopes_have_gradients() -> None:
    block, z = block_of(tolerance=1e-4), state()
    fixed, free = (LocalRegNeuralDE(grad_k1=grad).charge(block, MOMENT, z) for grad in (False, True))
    assert fixed.item() == pytest.approx(free.item(), rel=1e-12)
    grads = [torch.autograd.grad(each, list(block.parameters())) for each in (fixed, free)]
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(*grads, strict=True))
    made = local_step(block, MOMENT, z, "tsit5")
    assert not made.slopes[0].requires_grad and all(each.requires_grad for each in made.slopes[1:])
    assert not made.h.requires_grad


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("settings", [{}, {"sampling": "biased"}, {"measure": "stiffness", "solver": "dopri5"}])
def test_outputs_stay_and_nothing_before_the_equation_is_moved_by_it(settings: Any, adjoint: bool) -> None:
    recipe = {**WITH, "model": {**RECIPE["model"], "adjoint": adjoint}}
    run, _ = ready(**{**recipe, "techniques": [{"use": ID, **settings}]})
    other, _ = ready(**{**RECIPE, "model": recipe["model"]})
    batch = run.stream.next()  # type: ignore[union-attr]
    (technique,) = run.techniques
    technique.on_batch(run, batch)  # type: ignore[attr-defined]
    output = run.forward(batch)
    assert torch.equal(output, other.forward(batch))
    found = run.terms(output, batch)[TERM]
    found.backward()
    (block,) = run.model.blocks  # type: ignore[misc]
    assert found > 0 and all(p.grad is None for p in run.model.stem.parameters())  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in block.parameters())
    assert block.look_at is None and block.looked == []


def test_two_passes_see_two_moments_of_the_span() -> None:
    seen = []
    for sampling in ("unbiased", "biased"):
        run, _ = ready(**{**WITH, "techniques": [{"use": ID, "sampling": sampling}]})
        technique: Any = run.techniques[0]
        charge, times = technique.charge, []

        def noted(block: Any, t: Tensor, z: Tensor, charge: Any = charge, times: list[float] = times) -> Tensor:
            times.append(float(t))
            return charge(block, t, z)

        technique.charge = noted
        for _ in range(6):
            batch: Batch = run.stream.next()  # type: ignore[union-attr]
            technique.on_batch(run, batch)
            run.terms(run.forward(batch), batch)
        seen.append(times)
        assert all(0 <= t < 1 for t in times)
    assert len(set(seen[0])) == 6 and 0.0 not in seen[0]


def test_a_heavy_weight_makes_the_way_easier() -> None:
    recipe = {**RECIPE, "budget": {"steps": 60}, "optimizer": {"use": "adamw", "lr": 0.02}}
    _, _, plain = train(**recipe)
    _, memory, light = train(**{**recipe, "techniques": [{"use": ID, "weight": 1000.0}]})
    assert light.metrics["test/nfe"] < plain.metrics["test/nfe"]
    assert f"train/term/{TERM}" in memory.points


def test_it_wants_a_differential_equation() -> None:
    with pytest.raises(RecipeError, match="neural ODE"):
        ready(techniques=[{"use": ID}])
