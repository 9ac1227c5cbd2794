"""A rise, then half a cosine wave down."""

from __future__ import annotations

import math

from engine.fields import Fraction
from engine.parts import Progress, Schedule, schedule


@schedule()
class Cosine(Schedule):
    """Lets a value rise from near zero, then fall along half a cosine wave: slowly, fast, slowly.

    The high rate at first covers ground, the low rate at the end settles; the rise protects the first, noisy steps.

        W = round(warm_up T)
        factor(t) = (t + 1) / (W + 1)                                               for t < W
        factor(t) = floor + (1 - floor) (1 + cos(pi (t - W) / (T - W))) / 2         from there on
        t: steps done; T: steps of the whole run

    Helps: Nearly every run whose length is known: it ends lower than a constant rate with no further tuning.

    Hurts: Runs that are stopped early or go on longer than planned: the low end is what it is for.

    Cost: Nothing.

    Choices: The wave would reach its floor one step after the last (as in torch), so that no step is spent at rate 0.

    Args:
        warm_up: the share of the run in which the value rises
        floor: what is left at the end, as a share of the full value

    Raises:
        ValueError: when the length of the run is not known
    """

    def __init__(self, warm_up: Fraction = 0.0, floor: Fraction = 0.0) -> None:
        self.warm_up = warm_up
        self.floor = floor

    def factor(self, at: Progress) -> float:
        if at.steps is None:
            raise ValueError("A cosine needs to know where the run ends. Give the run a budget of steps or epochs.")
        rise = round(self.warm_up * at.steps)
        if at.step < rise:
            return (at.step + 1) / (rise + 1)
        share = min((at.step - rise) / max(at.steps - rise, 1), 1.0)
        return self.floor + (1.0 - self.floor) * (1.0 + math.cos(math.pi * share)) / 2.0
