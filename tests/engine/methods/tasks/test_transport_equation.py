"""Equations on a circle: residuals against closed forms, references against exact solutions, and what is measured."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ive
from torch import Tensor

from engine.errors import RecipeError
from engine.figures import problems
from engine.methods.models.mlp import MLP
from engine.methods.tasks.transport_equation import (
    LENGTH,
    MODES,
    TransportEquation,
    at_places,
    derivatives,
    inputs_of,
    place_of,
    spectral_solution,
)
from engine.parts import Batch
from engine.recipe import Recipe
from engine.training.assemble import filled
from engine.training.loop import train


def grid(places: int = 9, times: int = 5, duration: float = 1.0) -> Tensor:
    x = torch.arange(places, dtype=torch.float64) * LENGTH / places
    return inputs_of(x, torch.linspace(0, duration, times, dtype=torch.float64)).requires_grad_()


def batch_of(x: Tensor) -> Batch:
    return Batch({"x": x}, None, torch.arange(len(x)))


def test_derivatives_go_around_the_circle() -> None:
    x = grid()
    place, t = torch.atan2(x[:, 1:2], x[:, 0:1]), x[:, 2:3]
    value = (2 * place).sin() * t.exp()
    by_place, by_time = derivatives(value, x)
    torch.testing.assert_close(by_place, 2 * (2 * place).cos() * t.exp())
    torch.testing.assert_close(by_time, value)
    torch.testing.assert_close(derivatives(by_place, x)[0], -4 * value)
    torch.testing.assert_close(derivatives(place_of(x), x)[0], torch.ones_like(t))


@pytest.mark.parametrize(("viscosity", "reaction"), [(0.0, 0.0), (0.3, -0.5)])
def test_the_exact_wave_has_no_residual_and_is_the_reference(viscosity: float, reaction: float) -> None:
    task = TransportEquation(speed=7.0, viscosity=viscosity, reaction=reaction, places=9, times=5)
    x = grid()
    t = x[:, 2:3]
    turned = x[:, 1:2] * (7 * t).cos() - x[:, 0:1] * (7 * t).sin()  # sin(place - 7 t)
    wave = turned * ((reaction - viscosity) * t).exp()
    assert task.residual(wave, x).abs().max() < 1e-12
    assert task.residual(2 * turned, x).abs().max() > 1e-12 or not viscosity
    terms = task.objective(wave, batch_of(x))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx({"state": 0, "initial": 0}, abs=1e-11)
    task.load()
    torch.testing.assert_close(task.columns("train")["target"], wave.detach().float(), atol=1e-6, rtol=0)


def test_burgers_reference_is_the_closed_form() -> None:
    """Cole and Hopf: u = -2 v (log p)_x, p the solution of the heat equation that starts at exp(cos(x) / (2 v))."""
    viscosity, times = 0.1, np.array([0.0, 0.4, 1.0])
    start = np.sin(np.arange(MODES) * LENGTH / MODES)
    places = np.linspace(0.1, 6, 23)
    found = at_places(spectral_solution(start, times, None, viscosity, 0.0), places)
    k = np.arange(1, 60)
    for t, row in zip(times, found, strict=True):
        weight = 2 * ive(k, 1 / (2 * viscosity)) * np.exp(-viscosity * k**2 * t)
        p = ive(0, 1 / (2 * viscosity)) + np.cos(np.outer(places, k)) @ weight
        slope = -np.sin(np.outer(places, k)) @ (k * weight)
        np.testing.assert_allclose(row, -2 * viscosity * slope / p, atol=1e-10, rtol=0)


def test_the_smallest_viscosity_is_resolved() -> None:
    with pytest.raises(ValueError, match="too steep for the reference"):
        TransportEquation("burgers")
    found = spectral_solution(np.sin(np.arange(MODES) * LENGTH / MODES), np.array([0.0, 1.0]), None, 0.005, 0.0)[1]
    assert np.abs(found[MODES // 3 - 3 :]).max() < 1e-3 * np.abs(found).max()


@pytest.mark.parametrize("speed", [1.0, 30.0, 50.0])
def test_what_only_moves_has_no_residual_along_its_curves(speed: float) -> None:
    task = TransportEquation(speed=speed)
    x = grid()
    answer = {"place": place_of(x) + speed * x[:, 2:3], "state": x[:, 1:2] + 0 * x[:, 2:3]}
    terms = task.objective(answer, batch_of(x))
    assert list(terms) == ["place", "state", "initial"]
    assert all(term.item() == pytest.approx(0, abs=1e-12 * speed) for term in terms.values())
    slower = {**answer, "place": place_of(x) + (speed - 1) * x[:, 2:3]}
    assert task.objective(slower, batch_of(x))["place"].item() == pytest.approx(math.sqrt(len(x)))


def test_burgers_without_viscosity_moves_at_its_own_speed() -> None:
    task = TransportEquation("burgers", viscosity=0.01)
    x = grid()
    answer = {"place": place_of(x) + x[:, 1:2] * x[:, 2:3], "state": x[:, 1:2] + 0 * x[:, 2:3]}
    moves, _ = task.carried_residual(answer["place"], answer["state"], x)
    assert moves.abs().max() < 1e-14


def test_the_second_derivative_is_that_of_space_and_not_of_the_label() -> None:
    """On curves with dX/dx0 != 1, u = sin X: then U_xx = -sin X, whatever the curves are."""
    task = TransportEquation(viscosity=0.7)
    x = grid()
    t = x[:, 2:3]
    place = place_of(x) + 0.4 * t * x[:, 1:2]
    state = place.sin()
    _, changes = task.carried_residual(place, state, x)
    exact = derivatives(state, x)[1] + 0.7 * place.sin()
    torch.testing.assert_close(changes, exact, rtol=0, atol=1e-12)
    by_label = derivatives(derivatives(state, x)[0], x)[0]
    assert (by_label + place.sin()).abs().max() > 0.3


def test_terms_are_roots_of_sums_or_squares_with_their_weights() -> None:
    x = grid()
    answer = {"place": place_of(x) + 2 * x[:, 2:3] + 0.5, "state": 1.5 * x[:, 1:2] + 3 * x[:, 2:3]}
    first = math.sqrt(0.5**2 * 9) + (0.5 * x[:9, 1]).norm().item()
    weights: dict[str, Any] = {"place_weight": 2.0, "state_weight": 3.0, "initial_weight": 4.0}
    terms = TransportEquation(speed=5.0, **weights).objective(answer, batch_of(x))
    expected = {"place": 2 * math.sqrt(45) * 3, "state": 3 * math.sqrt(45) * 3, "initial": 4 * first}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected)
    terms = TransportEquation(speed=5.0, norm="squared", **weights).objective(answer, batch_of(x))
    squares = 0.25 + (0.5 * x[:9, 1]).square().mean().item()
    expected = {"place": 2 * 9.0, "state": 3 * 9.0, "initial": 4 * squares}
    assert all(term.shape == (45,) for term in terms.values()), "a value a point"
    assert {name: term.mean().item() for name, term in terms.items()} == pytest.approx(expected)


def test_what_is_carried_is_measured_on_the_fixed_grid() -> None:
    task = TransportEquation(speed=30.0)
    task.load()
    columns = task.columns("test")
    x = columns["x"].requires_grad_()
    batch = Batch({"x": x}, columns["target"], torch.arange(len(x)), "test")
    exact = {"place": place_of(x) + 30 * x[:, 2:3], "state": x[:, 1:2]}
    assert task.overall(columns["target"], batch)["relative-l2"].item() < 1e-7
    assert task.overall(0 * columns["target"], batch)["relative-l2"].item() == pytest.approx(1)
    assert task.overall(exact, batch)["relative-l2"].item() < 5e-4, "straight lines between the carried points"
    late = {**exact, "place": exact["place"] + 0.1}
    assert task.overall(late, batch)["relative-l2"].item() == pytest.approx(2 * math.sin(0.05), rel=1e-2)
    assert task.metrics(exact, batch)["crossed"].sum() == 0
    folded = {**exact, "place": place_of(x) + 2 * x[:, 1:2]}
    expected = (1 + 2 * x[:, 0] <= 0).float()
    assert torch.equal(task.metrics(folded, batch)["crossed"], expected) and 0.3 < expected.mean() < 0.4


@pytest.mark.parametrize("carried", [False, True])
def test_what_it_draws_can_be_drawn(carried: bool) -> None:
    task = TransportEquation()
    task.load()

    def answer(batch: Batch) -> Any:
        return {"place": place_of(batch.x), "state": batch.x[:, 1:2]} if carried else batch.x[:, 1:2]

    drawn = task.figures(answer, torch.Generator())
    assert set(drawn) == ({"field", "curves"} if carried else {"field"})
    for figure in (*drawn.values(), task.figure()):
        assert problems(figure) == []
    answered, truth, error = (np.array(panel["z"]) for panel in drawn["field"]["panels"])
    np.testing.assert_allclose(answered - truth, error)
    assert truth.shape == (21, 64) and np.abs(error[0]).max() < 1e-6 < 0.5 < np.abs(error).max()


def test_a_plain_network_learns_slow_convection() -> None:
    document = {
        "task": {"use": "transport-equation", "speed": 1.0, "places": 16, "times": 8},
        "model": {"use": "mlp", "hidden": [20, 20], "activation": "tanh"},
        "optimizer": {"use": "adamw", "lr": 5e-3, "weight_decay": 0.0},
        "training": {"evaluate_every": 0},
        "budget": {"steps": 150},
    }
    outcome = train(filled(Recipe.of(document)))
    assert outcome.metrics["test/relative-l2"] < 0.3
    with pytest.raises(RecipeError, match="handed out whole"):
        train(filled(Recipe.of({**document, "training": {"accumulate": 2}})))


def test_the_inputs_make_every_answer_periodic() -> None:
    model = MLP(TransportEquation().offer)
    x = torch.tensor([0.3, 0.3 + LENGTH], dtype=torch.float64)
    one, two = model(inputs_of(x, torch.tensor([0.5], dtype=torch.float64)).float())
    torch.testing.assert_close(one, two)
