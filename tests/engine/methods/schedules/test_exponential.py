"""Exponential decay: by hand, down to its floor, in a run that does not know its length."""

from __future__ import annotations

import pytest

from engine.methods.schedules.exponential import Exponential
from engine.parts import Progress
from tests.engine.methods.short import train


def test_by_hand() -> None:
    curve = Exponential(0.5, every=2, floor=0.1)
    at = {0.0: 1.0, 2.0: 0.5, 3.0: 0.5**1.5, 4.0: 0.25, 6.0: 0.125, 7.0: 0.1, 100.0: 0.1}
    for epoch, factor in at.items():
        assert curve.factor(Progress(0, None, epoch)) == pytest.approx(factor, rel=1e-12)


def test_in_a_run() -> None:
    _, memory, _ = train(schedule={"use": "exponential", "decay": 0.5, "floor": 0.3}, budget={"steps": 16})
    rates = memory.points["lr"][1]
    per_epoch = next(step for step, rate in enumerate(rates) if rate <= 0.05)
    assert rates[0] == pytest.approx(0.1) and rates[per_epoch] == pytest.approx(0.05)
    assert rates[-1] == pytest.approx(0.03) and rates == sorted(rates, reverse=True)
