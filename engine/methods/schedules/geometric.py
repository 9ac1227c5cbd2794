"""A value that falls by the same share at each step, to a chosen end."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engine.parts import Progress, Schedule, schedule


@schedule(name="Geometric fall")
class Geometric(Schedule):
    """Lets a value fall, or rise, by the same share at every step, so that it is at the chosen end at the last one.

        factor = end^(t / (T - 1)),   t: steps done, T: steps of the whole run

    Helps: weights of penalties and temperatures that are to go from one number to another of a known size.
    Hurts: runs that are stopped early or go on longer than planned.
    Cost: none.

    Args:
        end: The factor at the last step.

    Raises:
        ValueError: When the length of the run is not known.
    """

    def __init__(self, end: Annotated[float, Field(gt=0)] = 0.1):
        self.end = end

    def factor(self, at: Progress) -> float:
        if at.steps is None:
            raise ValueError("It needs to know where the run ends. Give the run a budget of steps or epochs.")
        return self.end**at.fraction
