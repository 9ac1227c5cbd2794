"""Reconstruction: the target is the input, in every split, whatever task it is made of."""

from __future__ import annotations

import pytest
import torch

from engine.methods.tasks.digits import Digits
from engine.methods.tasks.python_text import PythonText
from engine.methods.tasks.reconstruction import Reconstruction
from engine.methods.tasks.two_moons import TwoMoons
from engine.parts import Batch, Task


@pytest.mark.parametrize("of", [Digits(), TwoMoons(60)])
def test_the_target_is_the_input_and_nothing_else_changes(of: Task) -> None:
    task = Reconstruction(of)
    task.load()
    assert (task.offer.output, task.offer.size) == ("values", of.offer.features)
    assert (task.offer.input, task.offer.shape, task.offer.span) == (of.offer.input, of.offer.shape, of.offer.span)
    for split in ("train", "val", "test"):
        columns, before = task.columns(split), of.columns(split)
        assert torch.equal(columns["x"], before["x"]) and torch.equal(columns["target"], before["x"].flatten(1))
        assert set(columns) == set(before)
    assert task.columns("outer") == {}


def test_its_loss_and_metrics_are_those_of_all_values() -> None:
    task = Reconstruction(Digits())
    task.load()
    columns = task.columns("val")
    x, target = columns["x"], columns["target"]
    batch = Batch({"x": x}, target, torch.arange(len(x)))
    output = x + 0.25
    loss = task.objective(output, batch)["task"]
    torch.testing.assert_close(loss, torch.full((len(x),), 0.0625))
    means = {name: value.double().mean().item() for name, value in task.metrics(output, batch).items()}
    found = task.summary(means)
    variance = target.double().var(0, correction=0).mean().item()
    assert found["mse"] == pytest.approx(0.0625) and found["mae"] == pytest.approx(0.25)
    assert found["r2"] == pytest.approx(1 - 0.0625 / variance, abs=1e-5)


def test_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="Tokens are no numbers"):
        Reconstruction(PythonText()).load()
