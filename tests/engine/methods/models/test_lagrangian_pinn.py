"""Lagrangian PINN: starts that are exact, the shape of the answer, and the fast wave that it solves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from engine.errors import RecipeError
from engine.methods.models.lagrangian_pinn import LagrangianPINN
from engine.methods.tasks.transport_equation import TransportEquation, place_of
from engine.parts import Offer
from engine.recipe import Recipe, merge
from engine.training.assemble import assemble, filled
from engine.training.loop import train
from engine.training.recorder import Memory, Recorder

RECIPE: dict[str, Any] = {
    "task": {"use": "transport-equation", "places": 12, "times": 6},
    "model": {"use": "lagrangian-pinn", "hidden": 16},
    "optimizer": {"use": "adamw", "lr": 3e-3, "weight_decay": 0.0},
    "training": {"evaluate_every": 0},
}


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    task = TransportEquation()
    task.load()
    x = task.columns("train")["x"]
    return x, x[:, 2] == 0


def test_the_start_is_exact_whatever_the_weights() -> None:
    torch.manual_seed(3)
    model = LagrangianPINN(TransportEquation().offer)
    x, start = inputs()
    answer = model(x)
    assert torch.equal(answer["place"][start], place_of(x)[start])
    assert torch.equal(answer["state"][start], x[start, 1:2])
    later = ~start
    assert (answer["place"] - place_of(x))[later].abs().min() > 0, "and moves on from there"


def test_without_the_hard_start_the_loss_asks_for_it() -> None:
    torch.manual_seed(3)
    task = TransportEquation()
    model = LagrangianPINN(task.offer, hard_ic=False)
    x, start = inputs()
    answer = model(x)
    assert (answer["place"] - place_of(x))[start].abs().min() > 0
    run = assemble(filled(Recipe.of(merge(RECIPE, {"model": {"hard_ic": False}}))), Recorder(Memory()))
    batch = run.differentiable(run.stream.next())  # type: ignore[union-attr]
    term = run.terms(run.forward(batch), batch)["initial"]
    assert term > 0
    term.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in run.model.parameters())


def test_displacement_and_state_close_the_circle() -> None:
    torch.manual_seed(0)
    model = LagrangianPINN(TransportEquation().offer).double()
    angle = torch.tensor([1e-9, 2 * torch.pi - 1e-9], dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin(), torch.full_like(angle, 0.7)], 1)
    answer = model(x)
    assert answer["place"].diff(dim=0).item() == pytest.approx(2 * torch.pi, abs=1e-7)
    assert answer["state"].diff(dim=0).item() == pytest.approx(0, abs=1e-7)


def test_the_networks_are_as_deep_as_they_are_said_to_be() -> None:
    model = LagrangianPINN(TransportEquation().offer, hidden=7, depth_u=5, depth_x=2)
    linear = [[m for m in net.modules() if isinstance(m, nn.Linear)] for net in (model.state, model.displacement)]
    assert [len(each) for each in linear] == [6, 3]
    assert all(m.out_features == 7 for net in linear for m in net[:-1])


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="does not say where points start"):
        LagrangianPINN(Offer("vector", (3,), "values", 1))
    with pytest.raises(RecipeError, match="only the objective of its task can take"):
        assemble(filled(Recipe.of({**RECIPE, "loss": {"use": "half-squared-error"}})), Recorder(Memory()))


def test_it_follows_a_wave_that_is_too_fast_for_a_plain_network() -> None:
    plain = {"use": "mlp", "hidden": [16, 16], "activation": "tanh"}
    errors = []
    for model in (RECIPE["model"], plain):
        faster = merge(RECIPE, {"task": {"speed": 10.0}, "optimizer": {"lr": 0.02}, "budget": {"steps": 250}})
        outcome = train(filled(Recipe.of({**faster, "model": model})))
        errors.append(outcome.metrics["test/relative-l2"])
    assert errors[0] < 0.2 < 0.9 < errors[1]
