"""Hyperband."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from engine.fields import Count, Space
from engine.kit.densities import rank_correlation
from engine.kit.spaces import axes, draw
from engine.parts import Ask, Finding, Report, Search, search

Eta = Annotated[int, Field(ge=2)]
Rounding = Literal["ceil", "floor"]


@search(
    id="hyperband",
    name="Hyperband",
    paper="Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization",
    arxiv="1603.06560",
    example={
        "search": {
            "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
            "eta": 2,
            "budgets": 3,
            "brackets": 3,
        },
    },
)
class Hyperband(Search):
    """Starts many runs with a small share of the budget and gives more to the best of them, again and again.
    Its brackets differ in how boldly they sort out, so that a slow starter gets its chance too.

        bracket s = S, ..., 1, 0, S, ...  with S = budgets - 1
        first rung: n = ceil((S + 1) / (s + 1) eta^s) configurations, each with the share eta^-s of the budget
        next rung: the best floor(n / eta) of them, with eta times the share, up to the whole budget

    Helps: where short runs say something about long ones: it sees many times more configurations than whole runs would.
    Hurts: where the ranking turns over late in training: what would have won is sorted out early.
    Cost: each bracket costs about (S + 1) whole runs or fewer.
    Choices: the first rung is rounded up as in the papers; "floor" takes floor((S + 1) / (s + 1)) eta^s, as the
        released code does. A run that fails counts as infinitely bad. A promoted configuration starts anew, its
        schedule spanning its new share, unless `go_on` is set.

    Args:
        space: What to vary: recipe path -> list of values, or a range {low, high, log, whole}; either may hold only
            when other paths have certain values.
        eta: A rung keeps one in eta, and multiplies the budget by it.
        budgets: How many budgets there are; the largest is the recipe's own, each other one eta times smaller.
        brackets: How many brackets to go through; after the last kind the first comes again.
        bracket_rounding: How the size of a bracket's first rung is rounded.
        go_on: Promoted runs go on from their checkpoint, and schedules span the whole budget from the start.

    Raises:
        ValueError: Where the space is empty, or a path has neither a list of distinct values nor a valid range.
    """

    ahead = 4

    def __init__(
        self,
        space: Space,
        eta: Eta = 3,
        budgets: Count = 4,
        brackets: Count = 4,
        bracket_rounding: Rounding = "ceil",
        go_on: bool = False,
    ):
        self.space = dict(space)
        self.eta, self.budgets, self.brackets = eta, budgets, brackets
        self.bracket_rounding, self.go_on = bracket_rounding, go_on
        self.spans = "whole" if go_on else "share"
        self._axes = axes(space)
        self.rng = torch.Generator()
        self.bracket = 0
        self.rung = 0
        self.rungs: list[list[str]] = [[]]  # of the current bracket: the asks of each rung so far
        self.asked: dict[str, dict[str, Any]] = {}  # ask -> the configuration
        self.level: dict[str, int] = {}  # ask -> which budget, 0 being the smallest
        self.origin: dict[str, str] = {}  # ask -> the first ask of the same configuration
        self.values: dict[str, float] = {}  # ask -> what came out

    def start(self, rng: torch.Generator) -> None:
        self.rng = rng

    # -- brackets --------------------------------------------------------------------------------------------------

    def sizes(self, bracket: int) -> list[int]:
        """How many configurations each rung of a bracket has."""
        top = self.budgets - 1
        s = top - bracket % self.budgets
        if self.bracket_rounding == "ceil":
            first = -(-(top + 1) * self.eta**s // (s + 1))
        else:
            first = (top + 1) // (s + 1) * self.eta**s
        return [first // self.eta**rung for rung in range(s + 1)]

    def total(self) -> int:
        return sum(sum(self.sizes(bracket)) for bracket in range(self.brackets))

    def ask(self, n: int) -> list[Ask]:
        asks: list[Ask] = []
        while len(asks) < n and self.bracket < self.brackets:
            sizes = self.sizes(self.bracket)
            if len(self.rungs[self.rung]) < sizes[self.rung]:
                asks.append(self._next(sizes))
            elif any(id not in self.values for id in self.rungs[self.rung]):
                break  # whom to promote is known when all of the rung have ended
            elif self.rung + 1 < len(sizes):
                self.rung += 1
                self.rungs.append([])
            else:
                self.bracket, self.rung, self.rungs = self.bracket + 1, 0, [[]]
        return asks

    def _next(self, sizes: list[int]) -> Ask:
        id, level = str(len(self.asked)), self.budgets - len(sizes) + self.rung
        before = self._promoted() if self.rung else None
        changes = self.asked[before] if before is not None else self.propose()
        self.rungs[self.rung].append(id)
        self.asked[id], self.level[id] = changes, level
        self.origin[id] = self.origin[before] if before is not None else id
        share = float(self.eta) ** (level - self.budgets + 1)
        return Ask(id, dict(changes), share, before if self.go_on else None)

    def _promoted(self) -> str:
        """The best of the rung before that is not yet in this one; of equals the one that was asked first."""
        ranked = sorted(self.rungs[self.rung - 1], key=lambda id: (self.values[id], int(id)))
        return ranked[len(self.rungs[self.rung])]

    def tell(self, report: Report) -> None:
        self.values[report.ask] = math.inf if math.isnan(report.objective) else report.objective

    # -- what it draws and shows -------------------------------------------------------------------------------------

    def propose(self) -> dict[str, Any]:
        """A new configuration for the first rung of a bracket."""
        return draw(self._axes, self.rng)

    def result(self) -> Finding:
        """How alike the budgets rank the same configurations: what sorting out early stands on."""
        seen: list[dict[str, float]] = [{} for _ in range(self.budgets)]
        for id, value in self.values.items():
            if math.isfinite(value):
                seen[self.level[id]][self.origin[id]] = value
        shares = [float(self.eta) ** (level - self.budgets + 1) for level in range(self.budgets)]
        z, scalars = [], {}
        for i, one in enumerate(seen):
            row = []
            for j, other in enumerate(seen):
                both = [key for key in one if key in other]
                found = rank_correlation([one[key] for key in both], [other[key] for key in both])
                row.append(0.0 if math.isnan(found) else found)
                if i < j and not math.isnan(found):
                    scalars[f"rank correlation/{shares[i]:.3g} and {shares[j]:.3g}"] = found
            z.append(row)
        axis = {"label": "share of the budget", "values": shares}
        figure = {"kind": "heatmap", "title": "Rank correlation between budgets", "x": axis, "y": axis, "z": z}
        return Finding(scalars, {"rank-correlation": {**figure, "diverging": True}})
