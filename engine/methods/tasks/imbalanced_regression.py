"""A curve to predict numbers from, some of which are far rarer than others."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from engine.fields import NonNegative, Positive, Whole
from engine.kit.supervised import Supervised, seeded
from engine.parts import Batch, Offer, Terms, task

FEATURES = 20
WAVES = 3
GROUPS = ("many", "median", "few")
HELD_OUT = 600


@task(name="Imbalanced regression")
class ImbalancedRegression(Supervised):
    """Predicts where on a curve in 20 dimensions a noisy point lies. In training the start of the curve is crowded and
    its end nearly empty; in the test all of it counts the same.

        y in [0, 1], density ~ exp(-tail y) in training, even in validation and test
        x_j = sum_k a_jk sin(2 pi k y + b_jk) + noise;   loss = |f(x) - y| or (f(x) - y)^2
        groups: the thirds of [0, 1], by training samples: many, median, few

    Helps: Seeing what a method does where samples are rare: errors by group, "mae/few" above all.
    Hurts: The tail has few samples: two draws of the data (split_seed) differ by a tenth there.
    Cost: None to speak of.

    Choices: y is left in [0, 1]. With `reweight`, training samples count by one over the root of the density of their
    label, with mean 1.

    Args:
        samples: Training samples.
        tail: How unbalanced they are: the first label is exp(tail) times as frequent as the last.
        noise: Standard deviation of the noise on each input.
        error: What is minimized: the absolute or the squared error.
        reweight: Whether rare labels count more in training.
        split_seed: Seed of the curve, the points and the noise.
    """

    metric = ("mae", "min")

    def __init__(
        self,
        samples: Annotated[int, Field(ge=50)] = 600,
        tail: Positive = 5.0,
        noise: NonNegative = 0.3,
        error: Literal["absolute", "squared"] = "absolute",
        reweight: bool = False,
        split_seed: Whole = 0,
    ):
        self.samples, self.tail, self.noise = samples, tail, noise
        self.error, self.reweight, self.split_seed = error, reweight, split_seed
        self.offer = Offer("vector", (FEATURES,), "values", 1)
        self.groups = GROUPS

    def load(self) -> None:
        rng = seeded(self.split_seed)
        height = torch.randn(FEATURES, WAVES, generator=rng) / WAVES**0.5
        phase = 2 * math.pi * torch.rand(FEATURES, WAVES, generator=rng)
        draw = torch.rand(self.samples, generator=rng, dtype=torch.float64)
        labels = {"train": self.quantile(draw).float()}
        for name in ("val", "test"):
            labels[name] = torch.rand(HELD_OUT, generator=rng)
        self.splits = {}
        for name, y in labels.items():
            angle = 2 * math.pi * y[:, None, None] * torch.arange(1, WAVES + 1) + phase
            x = (height * angle.sin()).sum(-1)
            x = x + self.noise * torch.randn(x.shape, generator=rng)
            group = (3 * y).long().clamp(max=2)
            self.splits[name] = {"x": x, "target": y[:, None], "meta.group": group}
        if self.reweight:
            weight = (self.tail / 2 * labels["train"]).exp()
            self.splits["train"]["weight"] = weight / weight.mean()

    def quantile(self, share: Tensor) -> Tensor:
        """The label below which that share of the training labels lies."""
        return -torch.log1p(-share * -math.expm1(-self.tail)) / self.tail

    def objective(self, output: Any, batch: Batch) -> Terms:
        if self.error == "squared":
            return super().objective(output, batch)
        return {"task": (output - batch.target.view_as(output)).abs().flatten(1).mean(1)}

    def figure(self) -> dict[str, Any]:
        """The training points in the plane of the two inputs that vary most."""
        train = self.splits["train"]
        first, second = train["x"].var(0).topk(2).indices.tolist()
        series = [
            {"name": name, "x": train["x"][rows, first].tolist(), "y": train["x"][rows, second].tolist()}
            for name, rows in ((name, train["meta.group"] == g) for g, name in enumerate(GROUPS))
        ]
        x, y = {"label": f"input {first + 1}"}, {"label": f"input {second + 1}"}
        return {"kind": "scatter", "title": "Training samples", "x": x, "y": y, "series": series}
