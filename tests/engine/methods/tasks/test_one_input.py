"""One input: the curves, the noise on them, and the gap."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine import figures
from engine.methods.tasks.one_input import OneInput


@pytest.mark.parametrize(("curve", "at"), [("cubic", 0.125), ("hill", 0.96), ("sine", 0.9974949866)])
def test_the_curves(curve: Any, at: float) -> None:
    made = OneInput(curve, samples=50, noise=0.0, reach=4.0)
    made.load()
    x, y = made.splits["test"]["x"] / 4, made.splits["test"]["target"]
    expected = {"cubic": x**3, "hill": 1 - (x - 0.3) ** 2, "sine": (3 * x).sin()}[curve]
    assert torch.allclose(y, expected, atol=1e-6) and x.abs().max() <= 1 and x.abs().max() > 0.97
    assert float(torch.tensor(0.5) ** 3) == 0.125 and at <= 1
    assert figures.problems(made.figure()) == []


def test_noise_and_gap() -> None:
    made = OneInput("sine", samples=3000, noise=0.2, gap=0.5)
    made.load()
    train, test = made.splits["train"], made.splits["test"]
    rest = train["target"] - (3 * train["x"]).sin()
    assert float(rest.std()) == pytest.approx(0.2, rel=0.05)
    assert float(train["x"].abs().min()) >= 0.5 > float(test["x"].abs().min())
