"""Distributions to make samples of: points in the plane, and digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from engine import figures
from engine.fields import Count, NonNegative, Positive, Whole
from engine.kit.generation import shares, wasserstein1
from engine.kit.supervised import seeded, split_indices
from engine.methods.tasks.digits import images_and_labels
from engine.parts import Answering, Batch, Figure, Offer, Task, task

RING = 8
COVERED = 0.01  # the share of the samples that a mode must have
FAR = 5.0  # deviations from every centre beyond which a sample belongs to no mode
MORE = 4  # samples to count modes by, for each one that is matched

Draw = Callable[[int, torch.Generator], Tensor]


def ring_centres(size: float) -> Tensor:
    angle = 2 * math.pi * torch.arange(RING, dtype=torch.float64) / RING
    return size * torch.stack([angle.cos(), angle.sin()], 1).float()


def ring(n: int, rng: torch.Generator) -> Tensor:
    """The centre of one of eight places on the unit circle."""
    which = torch.randint(RING, (n,), generator=rng, device=rng.device)
    return ring_centres(1.0).to(rng.device)[which]


def swiss_roll(n: int, rng: torch.Generator) -> Tensor:
    """A spiral of one and a half turns, its end at length 1."""
    t = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=rng, device=rng.device))
    return torch.stack([t * t.cos(), t * t.sin()], 1) / (4.5 * math.pi)


def two_moons(n: int, rng: torch.Generator) -> Tensor:
    """Two interleaved half circles, in the square from -1 to 1."""
    a = math.pi * torch.rand(n, generator=rng, device=rng.device)
    upper = torch.rand(n, generator=rng, device=rng.device) < 0.5
    x = torch.where(upper, a.cos(), 1 - a.cos())
    y = torch.where(upper, a.sin(), 0.5 - a.sin())
    return torch.stack([(x - 0.5) / 1.5, (y - 0.25) / 0.75], 1)


def parallel_lines(n: int, rng: torch.Generator) -> Tensor:
    """Two upright lines, at x = -1 and x = 1."""
    side = torch.randint(2, (n,), generator=rng, device=rng.device) * 2 - 1
    return torch.stack([side.float(), 2 * torch.rand(n, generator=rng, device=rng.device) - 1], 1)


PLANE: dict[str, Draw] = {
    "ring": ring,
    "swiss-roll": swiss_roll,
    "two-moons": two_moons,
    "parallel-lines": parallel_lines,
}


@task(
    id="distribution",
    name="Distribution",
    example={
        "task": {"use": "distribution", "held_out": 40, "judged": 16, "epoch_steps": 4},
        "procedure": {"use": "wgan", "latent": 2, "n_critic": 1, "critic_boost": 2, "boost_first": 1},
        "model": {"use": "mlp", "hidden": [8]},
        "optimizer": {"use": "rmsprop"},
    },
)
class Distribution(Task):
    """Asks for samples of a distribution: eight points on a ring, a spiral, two half circles or two lines in the plane,
    or handwritten digits. The samples that a model makes are matched with held-out ones, and their distance is told.

        w1 = min over matchings m of mean_i |sample_i - held-out_m(i)|       (exact, Euclidean)
        modes = how many of the ring's places, or of the ten digits, at least 1 % of the samples are at

    Helps: generators, denoisers, and whatever else makes samples; in the plane the truth can be looked at.
    Hurts: the distance does not end at 0: two draws of 256 samples of the truth are apart too, by about 0.12 times the
    scale on the ring, 0.1 on the spiral, and 2.9 for digits.
    Cost: matching takes some milliseconds for 256 samples, and grows with the cube of their number.

    Choices: in the plane all is within [-scale, scale] but for the noise. A sample is at the ring's nearest place when
    it is within five deviations of it ("stray" tells the share that is at none), and at the digit of the nearest
    training image. Digits have pixels in [-scale, scale]; 20 % of each class are for test and 10 % for validation.

    Args:
        shape: Which distribution.
        samples: Training samples, drawn once; 0 draws fresh ones at every step (of digits: takes all there are).
        scale: The ring's radius, or half the width of the others.
        deviation: Standard deviation of the noise on each coordinate in the plane.
        held_out: Samples kept for validation, and as many for test, in the plane.
        judged: Samples that are matched with held-out ones.
        split_seed: Seed of what is drawn once.
        epoch_steps: Steps that count as an epoch where every step draws fresh samples.
    """

    metric = ("w1", "min")
    has_objective = False
    by_row = False
    judges = ("val", "test")

    def __init__(
        self,
        shape: Literal["ring", "swiss-roll", "two-moons", "parallel-lines", "digits"] = "ring",
        samples: Whole = 0,
        scale: Positive = 1.0,
        deviation: NonNegative = 0.05,
        held_out: Annotated[int, Field(ge=8)] = 512,
        judged: Annotated[int, Field(ge=4)] = 256,
        split_seed: Whole = 0,
        epoch_steps: Count = 100,
    ):
        self.shape, self.samples, self.scale, self.deviation = shape, samples, scale, deviation
        self.held_out, self.judged, self.split_seed, self.epoch_steps = held_out, judged, split_seed, epoch_steps
        self.image = shape == "digits"
        self.stream = "rows" if samples or self.image else "drawn"
        one = (1, 8, 8) if self.image else (2,)
        reach = scale if self.image else scale + 4 * deviation
        kind, answer = ("image", one) if self.image else ("vector", ())
        self.offer = Offer(kind, one, "samples", math.prod(one), span=(-reach, reach), answer=answer)

    # -- the data --------------------------------------------------------------------------------------------------

    def load(self) -> None:
        rng = seeded(self.split_seed)
        if self.image:
            self._load_digits(rng)
            return
        sizes = {"train": self.samples, "val": self.held_out, "test": self.held_out}
        self.splits = {name: {"x": self._points(count, rng)} for name, count in sizes.items() if count}

    def _load_digits(self, rng: torch.Generator) -> None:
        x, target = images_and_labels()
        x = (2 * x - 1) * self.scale
        parts = split_indices(len(x), target, {"test": 0.2, "val": 0.1}, rng)
        if self.samples:
            parts["train"] = parts["train"][: self.samples]
        self.splits = {name: {"x": x[index]} for name, index in parts.items()}
        self.known = (x[parts["train"]], target[parts["train"]])

    def _points(self, n: int, rng: torch.Generator) -> Tensor:
        x = self.scale * PLANE[self.shape](n, rng)
        return x + self.deviation * torch.randn(x.shape, generator=rng, device=rng.device)

    def columns(self, split: str) -> dict[str, Tensor]:
        return self.splits.get(split, {})

    def draw(self, size: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {"x": self._points(size, rng)}

    def mixture(self) -> tuple[Tensor, float] | None:
        """The centres and the deviation of the Gaussians that it is an even mixture of, where it is one."""
        return (ring_centres(self.scale), self.deviation) if self.shape == "ring" and self.deviation else None

    # -- what samples are worth ------------------------------------------------------------------------------------

    def judge(self, split: str, answer: Answering, rng: torch.Generator) -> dict[str, float]:
        truth = self.splits[split]["x"]
        count = min(self.judged, len(truth))
        samples = self.ask(answer, MORE * count, split, rng.device).cpu()
        found = {"w1": wasserstein1(samples[:count], truth[:count])}
        return found | self._modes(samples)

    def ask(self, answer: Answering, count: int, split: str, device: torch.device) -> Tensor:
        """That many samples of a model."""
        batch = Batch({}, None, torch.arange(count, device=device), split)
        found: Tensor = answer(batch)
        return found.reshape(count, *self.offer.shape).float()

    def _modes(self, samples: Tensor) -> dict[str, float]:
        if self.image:
            images, labels = self.known
            nearest = torch.cdist(samples.flatten(1), images.flatten(1)).argmin(1)
            share = torch.bincount(labels[nearest], minlength=10) / len(samples)
            return {"modes": float((share >= COVERED).sum())}
        if self.shape != "ring":
            return {}
        within = FAR * self.deviation if self.deviation else math.inf
        share, distance = shares(samples, ring_centres(self.scale), within)
        return {"modes": float((share >= COVERED).sum()), "stray": float((distance > within).float().mean())}

    # -- to look at ------------------------------------------------------------------------------------------------

    def figure(self) -> Figure:
        truth = self.splits.get("train", self.splits["val"])["x"]
        if self.image:
            return figures.image_grid("Training samples", truth[:32, 0])
        return self._scatter("Samples to learn", figures.dots("data", *truth[:1000].T))

    def figures(self, answer: Answering, rng: torch.Generator) -> dict[str, Figure]:
        if self.image:
            made = self.ask(answer, 32, "test", rng.device)
            return {"samples": figures.image_grid("Samples of the model", made[:, 0])}
        made = self.ask(answer, 512, "test", rng.device)
        series = figures.dots("data", *self.splits["test"]["x"][:512].T), figures.dots("model", *made.T)
        return {"samples": self._scatter("Samples of the model over held-out data", *series)}

    def _scatter(self, title: str, *series: dict[str, Any]) -> Figure:
        return figures.scatter(title, *series, x="x", y="y", equal=True)
