"""A weight, a gradient or the loss that is lost is seen within one look, and what can be told of where is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import registry
from engine.recipe import Recipe, merge
from engine.training import checkpoint, divergence, loop
from engine.training.assemble import assemble, filled
from engine.training.loop import Outcome, Trainer
from engine.training.recorder import Memory, Recorder
from tests.end_to_end.steps import SMALL

STEP = 30


def trained(folder: Path, spoil: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Outcome, Trainer]:
    """A run of three layers, looked at every step, in which something is spoiled after a step."""
    monkeypatch.setattr(loop, "LOOK_SECONDS", 0.0)
    document = merge(
        SMALL, {"model": {"hidden": [8, 8]}, "training": {"evaluate_every": 1000, "checkpoint_every": 0.001}}
    )
    trainer = Trainer(assemble(filled(Recipe.of(document), registry.catalog()), Recorder(Memory())), folder)
    look = trainer._look_up

    def spoiled() -> None:
        if trainer.run.step == STEP:
            with torch.no_grad():
                spoil(dict(trainer.run.model.named_parameters()))
        look()

    monkeypatch.setattr(trainer, "_look_up", spoiled)
    return trainer.train(), trainer


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("number", [0, 2])
def test_a_lost_weight_is_seen_at_once_and_its_layer_named(
    value: float, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def spoil(parameters: dict[str, torch.Tensor]) -> None:
        names.extend(name for name in parameters if name.endswith("weight"))
        parameters[names[number]].view(-1)[3] = value

    outcome, trainer = trained(tmp_path, spoil, monkeypatch)
    layer = names[number].removesuffix(".weight")
    assert outcome.state == "diverged" and trainer.run.step == STEP
    said = f"A weight was not a finite number at step {STEP} and all were at step {STEP - 1}"
    assert outcome.message.startswith(f"{said}, with the weights of {layer} lost, of 3 layers. ")
    kept = checkpoint.newest(tmp_path)
    assert kept is not None and STEP - 5 <= kept["step"] < STEP
    assert all(torch.isfinite(weight).all() for weight in kept["model"].values())


def test_a_weight_that_the_loss_does_not_show_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit that is never active hides what is behind it: the loss stays a number."""

    def spoil(parameters: dict[str, torch.Tensor]) -> None:
        name = next(name for name in parameters if name.endswith("bias"))
        parameters[name][0] = float("-inf")  # before a ReLU: its output is 0, for ever

    outcome, trainer = trained(tmp_path, spoil, monkeypatch)
    assert outcome.state == "diverged" and trainer.run.step == STEP
    losses = trainer.sink.points["train/loss"][1]  # type: ignore[attr-defined]
    assert all(loss == loss for loss in losses)


def test_where_all_is_lost_no_layer_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(parameters: dict[str, torch.Tensor]) -> None:
        for parameter in parameters.values():
            parameter.fill_(float("nan"))

    outcome, _ = trained(tmp_path, spoil, monkeypatch)
    assert outcome.state == "diverged" and "lost" not in outcome.message


def test_a_lost_gradient_is_named_where_the_weights_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer = trained(tmp_path, lambda parameters: None, monkeypatch)
    named = dict(trainer.run.model.named_parameters())
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)
    assert divergence.layers(trainer.run) == ""
    name = next(iter(named))
    named[name].grad = torch.full_like(named[name], float("inf"))
    layer = name.rpartition(".")[0]
    assert divergence.layers(trainer.run) == f", with the gradients of {layer} lost, of 3 layers"


def test_numbers_that_are_only_large_are_finite() -> None:
    from engine.training import divergence

    fine = [torch.full((4,), 3e38), torch.full((4,), 6e4, dtype=torch.float16), torch.zeros(0)]
    lost = [torch.tensor([1.0, math.nan]), torch.tensor([math.inf]), torch.tensor([1.0, -math.inf, math.nan])]
    assert divergence._finite([*fine, *lost]) == [True] * 3 + [False] * 3
    assert divergence._finite([torch.zeros(0)]) == [True] and divergence._finite([]) == []
    assert divergence._finite([torch.full((2,), 1e300, dtype=torch.float64)]) == [True]
