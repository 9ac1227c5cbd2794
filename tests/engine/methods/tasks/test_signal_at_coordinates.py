"""Signals at coordinates: which samples are trained on, what they are worth, and the grid that models are told of."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from engine.figures import problems
from engine.methods.tasks.signal_at_coordinates import CROP, SignalAtCoordinates, places
from engine.parts import Batch


def made(signal: str = "chirp", **settings: float) -> SignalAtCoordinates:
    task = SignalAtCoordinates(signal, **settings)  # type: ignore[arg-type]
    task.load()
    return task


def test_the_chirp_is_flat_and_then_faster_and_faster() -> None:
    task = made(samples=512, highest=8.0)
    x = torch.linspace(0, 1, 100_001, dtype=torch.float64)[1:]
    y = task.chirp(x)
    crossings = x[:-1][y[:-1] * y[1:] < 0]
    phase = crossings + 3.5 * crossings.square()  # whole and half waves so far
    np.testing.assert_allclose(2 * phase, np.arange(1, len(phase) + 1), atol=2e-3)
    assert (task.chirp(-x) == 0).all() and 8 <= len(crossings) <= 9
    columns = task.columns("test")
    torch.testing.assert_close(columns["target"], task.chirp(columns["x"]))


@pytest.mark.parametrize("signal", ["chirp", "china"])
def test_training_samples_lie_on_the_grid_that_is_told(signal: str) -> None:
    task = made(signal)
    grid = task.offer.about["grid"]
    lines = [
        torch.linspace(low, high, n) for low, high, n in zip(grid["low"], grid["high"], grid["shape"], strict=True)
    ]
    expected = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).reshape(-1, len(lines))
    torch.testing.assert_close(task.columns("train")["x"], expected)
    everything = torch.cat([task.columns(split)["x"] for split in ("train", "val", "test")])
    assert len(everything.unique(dim=0)) == len(everything) == math.prod(task.sides)
    assert task.size("test") / task.size("val") == pytest.approx(3, rel=0.01)


def test_the_photograph() -> None:
    task = made("china")
    top, left, side = CROP
    crop = load_sample_image("china.jpg")[top : top + side, left : left + side] / 255
    order = places((64, 64))
    for split in ("train", "test"):
        columns = task.columns(split)
        rows = ((columns["x"] + 1) / 2 * 63).round().long()
        np.testing.assert_allclose(columns["target"].numpy(), crop[rows[:, 0], rows[:, 1]], atol=1e-6)
    assert len(order) == 4096 and order[1, 1] > order[0, 1], "rows first"
    assert task.summary({"mse": 0.01})["psnr"] == pytest.approx(20)


def test_errors_are_told_for_both_halves() -> None:
    task = made()
    columns = task.columns("test")
    index = torch.arange(len(columns["x"]))
    batch = Batch({"x": columns["x"]}, columns["target"], index, "test", meta={"group": columns["meta.group"]})
    wrong = columns["target"] + 0.1 * (columns["x"] < 0)
    totals = {name: value.double().mean().item() for name, value in task.metrics(wrong, batch).items()}
    found = task.summary(totals)
    assert found["mse/flat"] == pytest.approx(0.01) and found["mse/oscillating"] == 0
    assert found["mse"] == pytest.approx(0.005, rel=0.05)


@pytest.mark.parametrize("signal", ["chirp", "china"])
def test_what_it_draws_can_be_drawn(signal: str) -> None:
    task = made(signal)
    drawn = task.figures(lambda batch: torch.zeros(len(batch), task.offer.size), torch.Generator())
    assert list(drawn) == ["signal"]
    assert [problems(figure) for figure in (*drawn.values(), task.figure())] == [[], []]
