"""Joint search over architecture and training settings with BOHB."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from engine.fields import Count, Fraction, Positive, Space
from engine.kit.densities import ProductKernel, filled_in
from engine.kit.spaces import draw, from_unit, to_unit
from engine.methods.tuners.hyperband import Eta, Hyperband, Rounding
from engine.parts import search

TINY = 1e-32  # densities below this count as this: their ratio stays a number
OWN = 0x1807_06906  # sets the stream of the model's draws apart from that of the random configurations


@search(
    id="bohb-joint-nas",
    name="BOHB joint architecture and hyperparameter search",
    paper=[
        (
            "Towards Automated Deep Learning: Efficient Joint Neural Architecture and Hyperparameter Search",
            "1807.06906",
        ),
        ("BOHB: Robust and Efficient Hyperparameter Optimization at Scale", "1807.01774"),
    ],
    recommends={"schedule": {"use": "cosine"}},
    example={
        "optimizer": {"use": "adamw"},
        "search": {
            "space": {
                "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
                "model.hidden": [[8], [8, 8]],
                "model.activation": {"values": ["relu", "gelu"], "when": {"model.hidden": [[8, 8]]}},
            },
            "eta": 2,
            "budgets": 3,
            "brackets": 4,
        },
    },
)
class BohbJointNas(Hyperband):
    """Hyperband whose new configurations come from a model of the good and the bad ones seen so far.
    Architecture and training settings stand in one space, so that each is chosen to suit the other.

        model: the largest budget with 2 (d + 1) runs;  l, g = kernel densities of its good and its bad configurations
        good: the best max(d + 1, 15 %);  bad: the next max(d + 1, 85 %)
        propose argmax l(x) / g(x) over 64 x, each a random good point moved by 3 bandwidths;  1 in 3 is pure chance

    Helps: in spaces of five to a dozen settings with budgets of a few dozen whole runs, where Hyperband alone would
        go on drawing blindly.
    Hurts: with fewer runs than a model needs it is Hyperband; where short runs mislead, so does a model of them.
    Cost: that of Hyperband; a proposal takes a few milliseconds.
    Choices: a list is a set of categories, a range a number on its own scale from 0 to 1. A category's bandwidth is the
        normal reference rule over its places in the list, at most (k - 1) / k. Settings that do not count in a run are
        filled in from a random run that has them. A budget whose runs mostly failed gives no model. The schedule spans
        each run's own share, as the paper's cosine does. The importance of each setting is shown with the sweep.

    Args:
        space: What to vary, architecture and training settings alike: recipe path -> list of values, or a range
            {low, high, log, whole}; either may hold only when other paths have certain values.
        eta: A rung keeps one in eta, and multiplies the budget by it.
        budgets: How many budgets there are; the largest is the recipe's own, each other one eta times smaller.
        brackets: How many brackets to go through; after the last kind the first comes again.
        bracket_rounding: How the size of a bracket's first rung is rounded.
        go_on: Promoted runs go on from their checkpoint, and schedules span the whole budget from the start.
        top_fraction: The share of the runs that counts as good.
        random_fraction: The share of the proposals that are drawn by chance; 1 makes it Hyperband.
        samples: Candidates for each proposal.
        bandwidth_factor: How many bandwidths wide candidates are drawn around good configurations.
        min_bandwidth: The least bandwidth, of a range of length 1.

    Raises:
        ValueError: Where the space is empty, or a path has neither a list of distinct values nor a valid range.
    """

    def __init__(
        self,
        space: Space,
        eta: Eta = 3,
        budgets: Count = 4,
        brackets: Count = 4,
        bracket_rounding: Rounding = "ceil",
        go_on: bool = False,
        top_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15,
        random_fraction: Fraction = 1 / 3,
        samples: Count = 64,
        bandwidth_factor: Positive = 3.0,
        min_bandwidth: Positive = 1e-3,
    ):
        super().__init__(space, eta, budgets, brackets, bracket_rounding, go_on)
        self.top_fraction, self.random_fraction, self.samples = top_fraction, random_fraction, samples
        self.bandwidth_factor, self.min_bandwidth = bandwidth_factor, min_bandwidth
        self._levels = [len(axis.values) for axis in self._axes]
        self.own = torch.Generator()

    def start(self, rng: torch.Generator) -> None:
        super().start(rng)
        self.own = torch.Generator().manual_seed(rng.initial_seed() ^ OWN)

    def propose(self) -> dict[str, Any]:
        coin = float(torch.rand((), dtype=torch.float64, generator=self.own))
        model = self.model() if coin >= self.random_fraction else None
        if model is None:
            return draw(self._axes, self.rng)
        good, bad = model
        centres = good.points[torch.randint(len(good.points), (self.samples,), generator=self.own)]
        drawn = good.near(centres, self.bandwidth_factor, self.own)
        ratio = good.density(drawn).clamp_min(TINY) / bad.density(drawn).clamp_min(TINY)
        return self._changes(drawn[int(ratio.argmax())])

    def model(self) -> tuple[ProductKernel, ProductKernel] | None:
        """The densities of the good and the bad configurations of the largest budget that has enough runs."""
        least = len(self._axes) + 1
        for level in reversed(range(self.budgets)):
            ranked = sorted((id for id in self.values if self.level[id] == level), key=lambda id: self.values[id])
            if len(ranked) < 2 * least or math.isinf(self.values[ranked[least - 1]]):
                continue
            goods = max(least, int(self.top_fraction * len(ranked)))
            bads = max(least, int((1 - self.top_fraction) * len(ranked)))
            sides = (ranked[:goods], ranked[goods : goods + bads])
            good, bad = (self._density([self.asked[id] for id in side]) for side in sides)
            return good, bad
        return None

    def _density(self, configurations: list[dict[str, Any]]) -> ProductKernel:
        points = torch.tensor([self._point(changes) for changes in configurations], dtype=torch.float64)
        return ProductKernel(filled_in(points, self._levels, self.own), self._levels, self.min_bandwidth)

    def _point(self, changes: dict[str, Any]) -> list[float]:
        """Numbers as shares of their range, categories as their places in the list, NaN for what does not count."""
        shares = to_unit(self._axes, changes)
        return [share * k - 0.5 if k else share for share, k in zip(shares, self._levels, strict=True)]

    def _changes(self, point: Tensor) -> dict[str, Any]:
        shares = [(x + 0.5) / k if k else x for x, k in zip(point.tolist(), self._levels, strict=True)]
        return from_unit(self._axes, shares)
