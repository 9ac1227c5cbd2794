"""A rise, then a fall along a power of what is left of the run."""

from __future__ import annotations

from engine.fields import Fraction, Positive
from engine.parts import Progress, Schedule, schedule


@schedule()
class Polynomial(Schedule):
    """Lets a value rise from near zero, then fall: along a straight line, or bent by a power.

    The companion of large batches: the rise keeps the first big steps safe, the fall lets the run settle.

        W = round(warm_up T)
        factor(t) = (t + 1) / (W + 1)                                               for t < W
        factor(t) = floor + (1 - floor) (1 - (t - W) / (T - W))^power               from there on
        t: steps done; T: steps of the whole run

    Helps: Fine-tuning and large batches, where a rate that falls in a straight line is the usual choice.

    Hurts: Runs that are stopped early or go on longer than planned: the low end is what it is for.

    Cost: Nothing.

    Choices: The fall would reach its floor one step after the last (as in torch), so that no step is spent at rate 0.

    Args:
        warm_up: the share of the run in which the value rises
        power: 1 falls in a straight line, 2 falls fast at first
        floor: what is left at the end, as a share of the full value

    Raises:
        ValueError: when the length of the run is not known
    """

    def __init__(self, warm_up: Fraction = 0.0, power: Positive = 1.0, floor: Fraction = 0.0) -> None:
        self.warm_up = warm_up
        self.power = power
        self.floor = floor

    def factor(self, at: Progress) -> float:
        if at.steps is None:
            raise ValueError("This fall needs to know where the run ends. Give the run a budget of steps or epochs.")
        rise = round(self.warm_up * at.steps)
        if at.step < rise:
            return (at.step + 1) / (rise + 1)
        left = 1.0 - min((at.step - rise) / max(at.steps - rise, 1), 1.0)
        return self.floor + (1.0 - self.floor) * left**self.power
