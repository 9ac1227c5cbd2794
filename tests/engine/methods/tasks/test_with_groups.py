"""Striped digits, imbalanced regression, digit retrieval: data and metrics are what the cards say."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from engine.methods.tasks.digit_retrieval import DigitRetrieval
from engine.methods.tasks.digits import Digits
from engine.methods.tasks.imbalanced_regression import ImbalancedRegression
from engine.methods.tasks.striped_digits import StripedDigits
from engine.parts import Batch


def loaded(task):
    task.load()
    return task


def test_stripes_agree_with_the_label_as_often_as_said() -> None:
    task, digits = loaded(StripedDigits()), loaded(Digits(train_limit=1000))
    for split, agreement in (("train", 0.95), ("val", 0.5), ("test", 0.5)):
        columns, plain = task.columns(split), digits.columns(split)
        left, right = ((columns["x"][:, 0, :, edge] == 1).all(1) for edge in (0, -1))
        stripe = columns["meta.group"] % 2
        assert torch.equal(columns["target"], (plain["target"] >= 5).long())
        assert torch.equal(columns["meta.group"] // 2, columns["target"])
        assert left[stripe == 0].all() and right[stripe == 1].all()
        assert torch.equal(columns["x"][..., 1:-1], plain["x"][..., 1:-1]), "nothing but the border is changed"
        for y in (0, 1):
            agrees = (stripe == y)[columns["target"] == y].double()
            assert float(agrees.mean()) == pytest.approx(agreement, abs=0.51 / len(agrees)), "exact, up to rounding"
    assert task.size("train") == 1000


def test_the_worst_group_is_the_stripe_that_lies() -> None:
    task = loaded(StripedDigits())
    columns = task.columns("test")
    answer = F.one_hot(columns["meta.group"] % 2, 2).float()  # a model that sees the stripe alone
    batch = Batch(
        {"x": columns["x"]}, columns["target"], torch.arange(len(answer)), meta={"group": columns["meta.group"]}
    )
    totals = {name: float(value.double().mean()) for name, value in task.metrics(answer, batch).items()}
    found = task.summary(totals)
    assert found["worst-group accuracy"] == 0 and found["accuracy/small, left"] == 1
    assert found["accuracy"] == pytest.approx(0.5, abs=0.01)
    assert found["weighted accuracy"] == pytest.approx(0.95, abs=0.003)
    assert not any(name.startswith("_") for name in found)


def test_training_labels_are_exponential_and_the_others_even() -> None:
    task = loaded(ImbalancedRegression(samples=20000, tail=4.0))
    y = task.columns("train")["target"].flatten().double()
    for at in (0.1, 0.3, 0.7):
        expected = math.expm1(-4 * at) / math.expm1(-4)
        assert float((y <= at).double().mean()) == pytest.approx(expected, abs=4 * 0.5 / 20000**0.5)
    for split in ("val", "test"):
        even = task.columns(split)["target"].flatten()
        assert float(even.mean()) == pytest.approx(0.5, abs=0.05) and float(even.std()) == pytest.approx(
            12**-0.5, abs=0.03
        )
    group = task.columns("train")["meta.group"]
    assert torch.equal(group, (y * 3).floor().long().clamp(max=2)) and (group.bincount().diff() < 0).all()


def harmonics(y: torch.Tensor) -> torch.Tensor:
    angle = 2 * math.pi * y.double() * torch.arange(1, 4)
    return torch.cat([torch.ones_like(angle[:, :1]), angle.sin(), angle.cos()], 1)


def test_the_inputs_are_a_smooth_curve_and_noise() -> None:
    clean, noisy = loaded(ImbalancedRegression(noise=0.0)), loaded(ImbalancedRegression(noise=0.3))
    columns = clean.columns("test")
    order = columns["target"].flatten().argsort()
    steps = columns["x"][order].diff(dim=0).norm(dim=1) / columns["target"][order].flatten().diff().clamp_min(1e-4)
    assert float(steps.max()) < 80, "a bounded speed along the curve"
    waves = harmonics(columns["target"])
    left = torch.linalg.lstsq(waves, columns["x"].double()).solution
    torch.testing.assert_close(waves @ left, columns["x"].double(), rtol=0, atol=1e-4)
    again = noisy.columns("train")["x"]
    assert torch.equal(loaded(ImbalancedRegression(noise=0.3)).columns("train")["x"], again)
    rough = noisy.columns("test")
    waves = harmonics(rough["target"])
    residual = rough["x"].double() - waves @ torch.linalg.lstsq(waves, rough["x"].double()).solution
    assert float(residual.std()) == pytest.approx(0.3, rel=0.05)


def test_error_weights_and_groups_of_the_regression() -> None:
    task = loaded(ImbalancedRegression(reweight=True))
    columns = task.columns("train")
    y, weight = columns["target"].flatten(), columns["weight"]
    torch.testing.assert_close((weight / weight[0]).log(), 2.5 * (y - y[0]), rtol=1e-3, atol=1e-4)
    assert float(weight.mean()) == pytest.approx(1, rel=1e-5) and "weight" not in task.columns("test")
    test = task.columns("test")
    batch = Batch({"x": test["x"]}, test["target"], torch.arange(600), meta={"group": test["meta.group"]})
    output = torch.zeros(600, 1)
    torch.testing.assert_close(task.objective(output, batch)["task"], test["target"].flatten())
    squared = loaded(ImbalancedRegression(error="squared"))
    torch.testing.assert_close(squared.objective(output, batch)["task"], test["target"].flatten().square())
    found = task.summary({n: float(v.double().mean()) for n, v in task.metrics(output, batch).items()})
    few = test["target"].flatten()[test["target"].flatten() >= 2 / 3]
    assert found["mae/few"] == found["worst-group mae"] == pytest.approx(float(few.mean()), rel=1e-5)
    assert found["mae"] == pytest.approx(float(test["target"].mean()), rel=1e-5) and "r2" in found
    assert task.metric == ("mae", "min")


def test_retrieval_has_the_digits_and_asks_for_places() -> None:
    task, digits = loaded(DigitRetrieval(dimensions=7)), loaded(Digits())
    assert task.offer.output == "embedding" and task.offer.size == 7 and task.needs_loss and task.collects
    for split in ("train", "test"):
        assert torch.equal(task.columns(split)["x"], digits.columns(split)["x"])
    columns = task.columns("test")
    batch = Batch({"x": columns["x"]}, columns["target"], torch.arange(len(columns["x"])))
    places = columns["x"].flatten(1)
    assert task.objective(places, batch) == {} and task.metrics(places, batch) == {}
    assert float(task.overall(places, batch)["recall@1"]) > 0.9, "pixels alone find most"
    assert float(task.overall(torch.rand(len(places), 7), batch)["recall@1"]) < 0.3
    assert not digits.needs_loss and not digits.collects
