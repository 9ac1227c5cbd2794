"""Grid search."""

from __future__ import annotations

import itertools

from engine.fields import Space
from engine.kit.spaces import axes, combinations, count
from engine.parts import Ask, Search, search


@search(id="grid", name="Grid search", example={"search": {"space": {"optimizer.lr": [0.001, 0.01]}}})
class Grid(Search):
    """Tries every combination of the values that are listed, one run each.
    The last path of the space changes fastest.

        runs = |values of path 1| x |values of path 2| x ...

    Helps: with one or two settings, when every combination should be seen.
    Hurts: with many settings: each one multiplies the runs, and most of them vary what does not matter.
    Cost: one run for each combination.

    Args:
        space: What to vary: recipe path -> list of values, or {values, when}, which holds only when other paths have
            certain values.

    Raises:
        ValueError: Where the space is empty, or a path has no list of distinct values.
    """

    def __init__(self, space: Space):
        self.space = dict(space)
        self._axes = axes(space, ranges=False)
        self.asked = 0

    def total(self) -> int:
        return int(count(self._axes))

    def ask(self, n: int) -> list[Ask]:
        first, self.asked = self.asked, min(self.asked + n, self.total())
        following = itertools.islice(combinations(self._axes), first, self.asked)
        return [Ask(str(number), changes) for number, changes in enumerate(following, first)]
