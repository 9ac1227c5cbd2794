"""A rate that falls by the same share each epoch, down to a floor."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engine.fields import Fraction, Positive
from engine.parts import Progress, Schedule, schedule


@schedule(id="exponential", name="Exponential decay")
class Exponential(Schedule):
    """Multiplies the rate by the same factor after each stretch of epochs, until it reaches a floor and stays there.

        factor = max(decay^(epoch / every), floor)

    Helps: long trainings whose length is not known beforehand; a floor keeps slow learners learning to the end.
    Hurts: with a wrong decay the rate is gone too early, or never falls.
    Cost: none.

    Args:
        decay: What the rate is multiplied by in each stretch.
        every: Epochs in a stretch.
        floor: Share of the base rate below which it does not fall.
    """

    needs_total = False

    def __init__(self, decay: Annotated[float, Field(gt=0, le=1)] = 0.97, every: Positive = 1.0, floor: Fraction = 0.0):
        self.decay, self.every, self.floor = decay, every, floor

    def factor(self, at: Progress) -> float:
        return max(self.decay ** (at.epoch / self.every), self.floor)
