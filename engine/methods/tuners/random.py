"""Random search."""

from __future__ import annotations

from typing import Any

import torch

from engine.fields import Count, Space
from engine.kit.spaces import axes, count, draw
from engine.parts import Ask, Search, search

TRIES = 1000  # draws for a configuration not drawn before; lists alone can make that rare


@search(
    id="random",
    name="Random search",
    example={"search": {"space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}, "trials": 2}},
)
class Random(Search):
    """Draws each setting by chance from its list or range, one run for each draw.
    A setting that does not matter costs nothing: every run still tries a new value of those that do.

        list: each value with the same probability;   range: u ~ U(0, 1), value = low + (high - low) u
        on a log scale: value = low (high / low)^u

    Helps: with several settings of unknown weight, and ranges that span orders of magnitude.
    Hurts: with one setting and few runs, where a grid covers the range more evenly.
    Cost: one run for each trial; a space with fewer combinations than trials is tried once through.
    Choices: a combination that was drawn before is drawn again.

    Args:
        space: What to vary: recipe path -> list of values, or a range {low, high, log, whole}; either
            may hold only when other paths have certain values.
        trials: How many configurations to try.

    Raises:
        ValueError: Where the space is empty, or a path has neither a list of distinct values nor a valid range.
    """

    def __init__(self, space: Space, trials: Count = 20):
        self.space = dict(space)
        self.trials = trials
        self._axes = axes(space)
        self.drawn: list[dict[str, Any]] = []
        self.rng = torch.Generator()

    def start(self, rng: torch.Generator) -> None:
        self.rng = rng

    def total(self) -> int:
        return int(min(self.trials, count(self._axes)))

    def ask(self, n: int) -> list[Ask]:
        first = len(self.drawn)
        for _ in range(min(n, self.total() - first)):
            self.drawn.append(self._draw())
        return [Ask(str(number), dict(self.drawn[number])) for number in range(first, len(self.drawn))]

    def _draw(self) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        for _ in range(TRIES):
            changes = draw(self._axes, self.rng)
            if changes not in self.drawn:
                break
        return changes
