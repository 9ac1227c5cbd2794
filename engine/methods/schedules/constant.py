"""No change over a run."""

from __future__ import annotations

from typing import ClassVar

from engine.parts import Progress, Schedule, schedule


@schedule(default=True)
class Constant(Schedule):
    """Keeps a value as it is, from the first step to the last.

    The learning rate stays what the optimizer's form says, so nothing has to be known about the length of the run.

        factor(t) = 1

    Helps: Short runs, runs without a set end, and as the baseline that any other schedule is measured against.

    Hurts: Longer runs: a rate that falls towards the end nearly always ends at a lower loss.

    Cost: Nothing.
    """

    needs_total: ClassVar[bool] = False

    def factor(self, at: Progress) -> float:
        return 1.0
