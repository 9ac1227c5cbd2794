"""Batches that hold more samples than are asked for: no weight in a loss, no count in a metric."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine import registry
from engine.kit.supervised import Supervised
from engine.parts import Batch, Offer, task
from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.data import batch_of
from engine.training.recorder import Memory, Recorder
from tests.engine.training.own import offer


@task(id="half-asked")
class HalfAsked(Supervised):
    """Asks for some rows of a table, and for one number that is no mean over rows."""

    offer = Offer("vector", (2,), "classes", 2)

    def load(self) -> None:
        x = torch.randn((40, 2), generator=torch.Generator().manual_seed(0))
        target, number = (x[:, 0] > 0).long(), torch.arange(40)
        self.splits = {
            split: {"x": x, "target": torch.where(number % 3 == k, target, -100), "mask": number % 3 == k}
            for k, split in enumerate(("train", "val", "test"))
        }

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        spoilt = torch.where(batch.target == -100, torch.nan, output[:, 0])
        return {**super().metrics(output, batch), "logit": spoilt, "one": torch.tensor(3.0)}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, HalfAsked)


def run_of(**training: Any) -> Any:
    recipe = {
        "task": {"use": "half-asked"},
        "model": {"use": "mlp", "hidden": [4]},
        "optimizer": {"use": "sgd", "lr": 0.1},
        "training": training,
        "budget": {"steps": 1},
    }
    return assemble(filled(Recipe.of(recipe), registry.catalog()), Recorder(Memory()))


@pytest.mark.parametrize("size", [7, 64])
def test_metrics_are_means_over_those_that_are_asked_for(size: int) -> None:
    run = run_of(evaluation_batch=size)
    found = run.evaluate("val")
    columns = run.columns("val")
    asked = columns["mask"]
    with torch.no_grad():
        output, target = run.model(columns["x"])[asked], columns["target"][asked]
    assert found["accuracy"] == pytest.approx(float((output.argmax(1) == target).double().mean()), abs=1e-12)
    assert found["loss"] == pytest.approx(float(F.cross_entropy(output, target)), abs=1e-6)
    assert found["logit"] == pytest.approx(float(output[:, 0].double().mean()), abs=1e-6)
    assert found["one"] == pytest.approx(3.0)


def test_a_step_is_one_on_those_that_are_asked_for() -> None:
    run = run_of(batch_size=40)
    batch = next(run.batches("train"))
    output = run.forward(batch)
    grads = torch.autograd.grad(run.total(run.terms(output, batch), batch), list(run.model.parameters()))
    asked = run.columns("train")["mask"]
    loss = F.cross_entropy(run.model(batch.x[asked]), batch.target[asked])
    expected = torch.autograd.grad(loss, list(run.model.parameters()))
    for one, other in zip(grads, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_weights_and_what_is_asked_come_together() -> None:
    asked = torch.tensor([True, False, True])
    columns = {"x": torch.zeros(3, 1), "weight": torch.tensor([2.0, 5.0, 1.0]), "mask": asked}
    batch = batch_of({**columns, "index": torch.arange(3)}, "train")
    assert batch.weight is not None and batch.weight.tolist() == [2, 0, 1]
    positions = batch_of({"x": torch.zeros(3, 1), "mask": torch.ones(3, 4), "index": torch.arange(3)}, "train")
    assert positions.weight is None and positions.asked is None, "a mask of positions asks for every sample"
