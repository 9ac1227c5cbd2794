"""The neural ODE: against a closed form, another solver and its own adjoint; what it counts and what it lets see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor

from engine.errors import RecipeError
from engine.methods.models.neural_ode import Field, NeuralODE, ODEBlock
from engine.parts import Offer
from tests.engine.methods.short import train

OFFER = Offer("vector", (3,), "classes", 4)
RECIPE: dict[str, Any] = {
    "task": {"use": "digits", "train_limit": 100},
    "model": {"use": "neural-ode", "width": 6, "hidden": 12},
    "optimizer": {"use": "adamw", "lr": 0.01},
    "training": {"batch_size": 50},
    "budget": {"steps": 12},
}


def block_of(adjoint: bool = False, tolerance: float = 1e-9) -> ODEBlock:
    torch.manual_seed(0)
    field = Field(4, 16, torch.nn.Tanh)
    return ODEBlock(field, (0.0, 1.0), "dopri5", tolerance, tolerance, adjoint).double()


def state() -> Tensor:
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_it_arrives_where_another_solver_does() -> None:
    block, z = block_of(), state()

    def slope(t: float, flat: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            at = torch.from_numpy(flat).view(5, 4)
            return block.velocity(torch.tensor(t, dtype=torch.float64), at).flatten().numpy()

    found = scipy.integrate.solve_ivp(slope, (0, 1), z.flatten().numpy(), method="DOP853", rtol=1e-11, atol=1e-11)
    assert np.allclose(block(z).detach().flatten().numpy(), found.y[:, -1], atol=1e-8)


def test_a_linear_equation_has_a_closed_form() -> None:
    block, z = block_of(), state()
    matrix = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    block.field.forward = lambda t, z: z @ matrix.T  # type: ignore[method-assign]
    assert torch.allclose(block(z), z @ torch.linalg.matrix_exp(matrix).T, atol=1e-7)


def test_the_adjoint_has_the_same_gradients() -> None:
    grads = []
    for adjoint in (False, True):
        block, z = block_of(adjoint), state().requires_grad_()
        block(z).square().sum().backward()
        grads.append([z.grad, *(p.grad for p in block.parameters())])
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("adjoint", [False, True])
def test_looking_changes_neither_steps_nor_output(adjoint: bool) -> None:
    block, z = block_of(adjoint, 1e-6), state()
    expected, calls = block(z).detach(), block.evaluations
    assert block.looked == []
    for look in (torch.tensor(0.37, dtype=torch.float64), "steps"):
        block.look_at = look  # type: ignore[assignment]
        assert torch.equal(block(z).detach(), expected) and block.evaluations == calls
        times, states = zip(*block.looked, strict=True)
        assert not any(each.requires_grad for each in states)
        for t, there in zip(times, states, strict=True):
            if float(t) == 0:
                assert torch.equal(there, z)
                continue
            part = ODEBlock(block.field, (0.0, float(t)), "dopri5", 1e-10, 1e-10)
            assert torch.allclose(part(z), there, atol=1e-4)
    assert len(times) > 1 and all(0 <= float(t) < 1 for t in times) and list(times) == sorted(times)
    block.eval()
    block(z)
    assert block.looked == [], "nobody looks in evaluation"


def test_calls_are_counted_shown_and_measured() -> None:
    _, memory, outcome = train(**RECIPE)
    block = "layer/blocks.0/nfe"
    assert all(value >= 8 for value in memory.points[block][1])
    assert outcome.metrics["test/nfe"] >= 8 and outcome.metrics["val/nfe"] >= 8
    nfe = []
    for tolerance in (1e-2, 1e-6):
        model = {**RECIPE["model"], "rtol": tolerance, "atol": tolerance}
        nfe.append(train(**{**RECIPE, "model": model})[2].metrics["test/nfe"])
    assert nfe[0] < nfe[1], "a tighter tolerance costs more"


def test_it_refuses_tokens_and_half_precision() -> None:
    with pytest.raises(RecipeError, match="full precision"):
        train(**{**RECIPE, "training": {"batch_size": 50, "precision": "bf16"}})
    with pytest.raises(ValueError, match="tokens in"):
        NeuralODE(Offer("tokens", (8,), "next-token", 4, 4))
    assert NeuralODE(OFFER, 5, 7)(torch.randn(2, 3)).shape == (2, 4)
