"""A curve over one input, from noisy samples of a part of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from engine import figures
from engine.fields import NonNegative, Positive, Whole
from engine.kit.supervised import Supervised, seeded
from engine.parts import Figure, Offer, task

HELD_OUT = 200
CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "cubic": lambda x: x**3,
    "hill": lambda x: 1 - (x - 0.3).square(),
    "sine": lambda x: torch.sin(3 * x),
}


@task(name="One input")
class OneInput(Supervised):
    """Learns a curve over one input from noisy samples. The smallest regression, and one in which an answer can be
    looked at, with how sure it is, also where there are no samples.

        cubic: y = x^3,   hill: y = 1 - (x - 0.3)^2,   sine: y = sin 3x;   x even in [-1, 1], y + N(0, noise^2)

    Helps: Seeing what a model believes between its samples and beyond them.
    Hurts: Nothing that needs many inputs shows here.
    Cost: None to speak of.

    Choices: x is multiplied by `reach` after the curve was taken, so that inputs may have another scale than 1.

    Args:
        curve: Which curve.
        samples: Training samples; there are 200 for validation and 200 for test.
        noise: Standard deviation of the noise on y.
        reach: The inputs lie between minus this and this.
        gap: Samples whose x is nearer to 0 than this share of the reach are left out of training.
        split_seed: Seed of the samples and the noise.
    """

    def __init__(
        self,
        curve: Literal["cubic", "hill", "sine"] = "cubic",
        samples: Annotated[int, Field(ge=2)] = 100,
        noise: NonNegative = 0.05,
        reach: Positive = 1.0,
        gap: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        split_seed: Whole = 0,
    ):
        self.curve, self.samples, self.noise, self.reach, self.gap = curve, samples, noise, reach, gap
        self.split_seed = split_seed
        self.offer = Offer("vector", (1,), "values", 1)

    def load(self) -> None:
        rng = seeded(self.split_seed)
        self.splits = {}
        for name, count in (("train", self.samples), ("val", HELD_OUT), ("test", HELD_OUT)):
            gap = self.gap if name == "train" else 0.0
            side = 2 * torch.randint(2, (count, 1), generator=rng) - 1
            x = side * (gap + (1 - gap) * torch.rand(count, 1, generator=rng))
            y = CURVES[self.curve](x) + self.noise * torch.randn(count, 1, generator=rng)
            self.splits[name] = {"x": x * self.reach, "target": y}

    def figure(self) -> Figure:
        train = self.splits["train"]
        return figures.scatter(
            "Training samples", figures.dots("data", train["x"][:, 0], train["target"][:, 0]), x="x", y="y"
        )
