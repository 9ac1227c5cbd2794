"""Two interleaved half circles: the smallest task."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field

from engine.fields import NonNegative, Whole
from engine.kit.supervised import Supervised, seeded, split_indices
from engine.parts import Offer, task


@task(default=True, name="Two moons")
class TwoMoons(Supervised):
    """Tells two interleaved half circles in the plane apart. It trains in a second, and a straight line cannot do it.

        class 0: (cos a, sin a);  class 1: (1 - cos a, 1/2 - sin a);  a evenly spaced in [0, pi];  plus N(0, noise^2)

    Helps: Trying a recipe out, and seeing what a method does in two dimensions.
    Hurts: Nothing that needs many inputs or many classes shows here.
    Cost: None to speak of.

    Args:
        samples: Points in all; 20 % of them are for test and 10 % for validation.
        noise: Standard deviation of the noise on each coordinate.
        split_seed: Seed of the noise and of the splits.
        outer: Share of the points kept apart for tuning hyperparameters inside a run.
    """

    offer = Offer("vector", (2,), "classes", 2)

    def __init__(
        self,
        samples: Annotated[int, Field(ge=20)] = 600,
        noise: NonNegative = 0.2,
        split_seed: Whole = 0,
        outer: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
    ):
        self.samples, self.noise, self.split_seed, self.outer = samples, noise, split_seed, outer

    def load(self) -> None:
        rng = seeded(self.split_seed)
        first = self.samples // 2
        a = torch.linspace(0, math.pi, first)
        b = torch.linspace(0, math.pi, self.samples - first)
        x = torch.cat([torch.stack([a.cos(), a.sin()], 1), torch.stack([1 - b.cos(), 0.5 - b.sin()], 1)])
        x = x + self.noise * torch.randn(x.shape, generator=rng)
        target = (torch.arange(self.samples) >= first).long()
        parts = split_indices(self.samples, target, {"test": 0.2, "val": 0.1, "outer": self.outer}, rng)
        self.splits = {name: {"x": x[index], "target": target[index]} for name, index in parts.items()}

    def figure(self) -> dict[str, Any]:
        train = self.splits["train"]
        series = []
        for k in (0, 1):
            x = train["x"][train["target"] == k]
            series.append({"name": f"class {k}", "x": x[:, 0].tolist(), "y": x[:, 1].tolist()})
        return {
            "kind": "scatter",
            "title": "Training samples",
            "x": {"label": "x"},
            "y": {"label": "y"},
            "series": series,
        }
