"""Signals as functions of where one looks: a chirp on a line, the colours of a photograph."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from engine.fields import Positive
from engine.figures import curve, image, line, panel
from engine.kit.supervised import Supervised
from engine.parts import Answering, Batch, Figure, Offer, task

HALVES = ("flat", "oscillating")
CROP = (90, 270, 64)  # top, left and side of what is cut out of the photograph
DENSE = 512  # places at which a figure shows the answer


@task(
    id="signal-at-coordinates",
    name="Signal at coordinates",
    example={"task": {"samples": 32}, "training": {"batch_size": 8}},
)
class SignalAtCoordinates(Supervised):
    """Learns a signal as a function of the place: given coordinates, answers the value there. Every second sample is
    trained on; what lies between is tested.

        chirp:  x in [-1, 1];  0 on the left half, sin(2 pi (x + (highest - 1) x^2 / 2)) on the right
        china:  (x, y) in [-1, 1]^2;  the three colours of 64 x 64 pixels of a photograph;   loss = mean (f(x) - y)^2

    The chirp's error is told for the flat and the oscillating half as well; that of the photograph also in decibels
    (`psnr`).

    Helps: seeing what a model does between its samples: too slow to oscillate, or wild where nothing happens.
    Hurts: there is no noise, and only one signal: it says nothing of data of another kind.
    Cost: None to speak of.

    Choices: Training samples lie on a regular grid, of which models are told: every second sample of the chirp, every
    second pixel of every second row. A quarter of the others is for validation. In the photograph are flat sky and
    the edge of a roof.

    Args:
        signal: The chirp on a line, or the photograph.
        samples: Samples of the chirp, those between the training samples among them.
        highest: Waves of the chirp in a unit of x at its end; they begin with 1.
    """

    metric = ("mse", "min")

    def __init__(
        self,
        signal: Literal["chirp", "china"] = "chirp",
        samples: Annotated[int, Field(ge=16, multiple_of=2)] = 128,
        highest: Positive = 10.0,
    ):
        self.signal, self.samples, self.highest = signal, samples, highest
        self.sides = (samples,) if signal == "chirp" else (CROP[2], CROP[2])
        self.groups = HALVES if signal == "chirp" else ()
        grid = {
            "shape": [side // 2 for side in self.sides],
            "low": [-1.0 for _ in self.sides],
            "high": [1.0 - 2 / (side - 1) for side in self.sides],
        }
        channels = 1 if signal == "chirp" else 3
        offer = Offer("vector", (len(self.sides),), "values", channels, span=(-1.0, 1.0), about={"grid": grid})
        self.offer = offer

    def load(self) -> None:
        x = places(self.sides)
        target = self.chirp(x) if self.signal == "chirp" else photograph().permute(1, 2, 0).reshape(-1, 3)
        at = torch.stack(torch.meshgrid(*(torch.arange(side) for side in self.sides), indexing="ij"), -1)
        trained = (at % 2 == 0).all(-1).flatten()
        between = (~trained).nonzero().flatten()
        validation = torch.zeros(len(between), dtype=torch.bool)
        validation[1::4] = True
        rows = {"train": trained.nonzero().flatten(), "val": between[validation], "test": between[~validation]}
        self.splits = {name: {"x": x[index], "target": target[index]} for name, index in rows.items()}
        if self.groups:
            for split in self.splits.values():
                split["meta.group"] = (split["x"][:, 0] > 0).long()

    def chirp(self, x: Tensor) -> Tensor:
        phase = 2 * math.pi * (x + (self.highest - 1) * x.square() / 2)
        return torch.where(x > 0, phase.sin(), 0.0)

    def summary(self, totals: dict[str, float]) -> dict[str, float]:
        found = super().summary(totals)
        if self.signal == "china" and found.get("mse", 0) > 0:
            found["psnr"] = -10 * math.log10(found["mse"])
        return found

    def figure(self) -> dict[str, Any]:
        train = self.splits["train"]
        if self.signal == "china":
            return image("Photograph", panel("truth", photograph()), panel("trained on", _pixels(train["target"], 32)))
        return curve("Chirp", line("training samples", train["x"][:, 0], train["target"][:, 0]), x="x", y="value")

    def figures(self, answer: Answering, rng: torch.Generator) -> dict[str, Figure]:
        x = places((DENSE,) if self.signal == "chirp" else self.sides).to(rng.device)
        output = answer(Batch({"x": x}, None, torch.arange(len(x), device=rng.device), "val"))
        if self.signal == "chirp":
            x = x.cpu()
            lines = line("answer", x[:, 0], output[:, 0]), line("truth", x[:, 0], self.chirp(x)[:, 0])
            return {"signal": curve("Signal", *lines, x="x", y="value")}
        truth, found = photograph(), _pixels(output.cpu(), self.sides[0])
        panels = [panel("answer", found.clamp(0, 1)), panel("truth", truth)]
        return {"signal": image("Photograph", *panels, panel("error", (found - truth).abs().mean(0)))}


def places(sides: tuple[int, ...]) -> Tensor:
    """The coordinates of a grid over [-1, 1] in each direction, row after row."""
    lines = [torch.linspace(-1, 1, side) for side in sides]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).reshape(-1, len(sides))


def photograph() -> Tensor:
    """A part of the picture of China that scikit-learn carries, as [3, 64, 64] between 0 and 1."""
    from PIL import Image

    found = importlib.util.find_spec("sklearn")
    path = Path(found.origin).parent / "datasets" / "images" / "china.jpg" if found and found.origin else None
    if path is None or not path.exists():
        raise FileNotFoundError("The picture china.jpg is missing: it comes with scikit-learn. Install scikit-learn.")
    top, left, side = CROP
    with Image.open(path) as opened:
        pixels = np.asarray(opened.crop((left, top, left + side, top + side)), dtype=np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)


def _pixels(colours: Tensor, side: int) -> Tensor:
    return colours.view(side, side, 3).permute(2, 0, 1)
