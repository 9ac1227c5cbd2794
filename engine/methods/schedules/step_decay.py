"""A rate that stays, then falls in steps."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from engine.fields import NonNegative, Positive
from engine.parts import Progress, Schedule, schedule

TINY = 1e-9  # epochs are fractions of steps: the end of a stretch must not be missed by a rounding error


@schedule(name="Step decay")
class StepDecay(Schedule):
    """Keeps the rate for some epochs, then multiplies it by the same factor at once, again after each stretch.

        factor = 1                                              for epoch < after
        factor = decay^(1 + floor((epoch - after) / every))     from there on

    Helps: recipes of old: a long stretch at a high rate, then a few short ones at lower rates.
    Hurts: with a wrong stretch the rate falls too early, or too late to settle.
    Cost: none.

    Choices: the first fall is at epoch `after` itself.

    Args:
        after: Epochs at the full rate.
        every: Epochs in a stretch from there on.
        decay: What the rate is multiplied by at the begin of each.
    """

    needs_total = False

    def __init__(
        self, after: NonNegative = 5.0, every: Positive = 0.5, decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    ):
        self.after, self.every, self.decay = after, every, decay

    def factor(self, at: Progress) -> float:
        falls = 1 + math.floor((at.epoch - self.after) / self.every + TINY)
        return self.decay ** max(falls, 0)
