"""Step decay: flat, then halved at every stretch."""

from __future__ import annotations

import pytest

from engine.methods.schedules.step_decay import StepDecay
from engine.parts import Progress


def test_five_epochs_then_halved_every_half_epoch() -> None:
    schedule = StepDecay()
    factors = [schedule.factor(Progress(step, 750, step / 100)) for step in range(750)]
    assert factors[:500] == [1.0] * 500
    expected = [0.5 ** (1 + (step - 500) // 50) for step in range(500, 750)]
    assert factors[500:] == expected and factors[-1] == 0.5**5


@pytest.mark.parametrize("per_epoch", [3, 7, 13, 100, 117])
def test_a_stretch_ends_at_its_step_whatever_an_epoch_is(per_epoch: int) -> None:
    schedule = StepDecay(after=1, every=1, decay=0.1)
    for step in range(5 * per_epoch):
        at = Progress(step, None, step / per_epoch)
        assert schedule.factor(at) == pytest.approx(0.1 ** (step // per_epoch), rel=1e-12)
