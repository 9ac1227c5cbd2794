"""Water in the ground: a field of pressures from a field of permeabilities, solved anew for every sample."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from engine.fields import Count, Positive, Whole
from engine.figures import image, image_grid, panel
from engine.kit.gridded import gradient_norm, relative
from engine.kit.supervised import seeded
from engine.parts import Answering, Batch, Figure, Offer, Task, Terms, task

PERMEABLE, TIGHT = 12.0, 3.0
SMOOTHNESS, INVERSE_LENGTH = 2.0, 3.0  # of the random field: its spectrum falls as (k^2 + tau^2)^-alpha
SHOWN = 3


@task(
    id="darcy-flow",
    name="Darcy flow",
    example={"task": {"size": 8, "samples": 16, "held_out": 4}, "model": {"use": "field-cnn", "width": 4, "depth": 1}},
)
class DarcyFlow(Task):
    """Learns the map from a material to what the material does: given where the ground lets water through, answers the
    pressure everywhere. The samples are solved by a direct solver, so that a model learns to take its place.

        -div(a grad u) = 1 on the unit square,  u = 0 on its border;   loss = |f(a) - u| / |u| for each sample
        a = 12 where a random field is above 0, else 3

    `relative-l2` is the metric; `relative-h1` compares the fields' slopes as well.

    Helps: models that must carry information across the whole picture: a change of a in one corner moves u everywhere.
    Hurts: the truth is that of this grid: 1 percent away from a grid four times as fine.
    Cost: Less than a second to make the data by default, every time; it grows with the fourth power of the size.

    Choices: Finite volumes on a grid of cells, with the harmonic mean of a between neighbours and the border half a
    cell away. The random field has cosines for its basis and a spectrum of (pi^2 k^2 + 9)^-2. Inputs are standardized
    by one mean and deviation. A model is told mean and deviation of u at each cell (of the training samples) and may
    answer in units of them; what it answers is u itself.

    Args:
        size: Cells on a side.
        samples: Training samples.
        held_out: Samples of validation and of the test, each.
        contrast: How much more is let through above 0 than below; 4 is 12 against 3.
        data_seed: Seed of the random fields.
    """

    metric = ("relative-l2", "min")

    def __init__(
        self,
        size: Annotated[int, Field(ge=4)] = 32,
        samples: Count = 400,
        held_out: Count = 50,
        contrast: Positive = PERMEABLE / TIGHT,
        data_seed: Whole = 0,
    ):
        self.cells, self.samples, self.held_out = size, samples, held_out
        self.contrast, self.data_seed = contrast, data_seed
        self.scale: dict[str, Tensor] = {}  # filled when the data are made
        shape = (1, size, size)
        self.offer = Offer("image", shape, "field", size * size, answer=shape, about={"scale": self.scale})

    def load(self) -> None:
        sizes = {"train": self.samples, "val": self.held_out, "test": self.held_out}
        noise = torch.randn(sum(sizes.values()), self.cells, self.cells, generator=seeded(self.data_seed)).double()
        a = np.where(random_fields(noise.numpy()) > 0, TIGHT * self.contrast, TIGHT)
        u = torch.from_numpy(np.stack([pressure(each) for each in a])).float().unsqueeze(1)
        x = torch.from_numpy(a).float().unsqueeze(1)
        std, mean = torch.std_mean(x[: self.samples], correction=0)
        x = (x - mean) / (std + (std == 0))
        self.splits, start = {}, 0
        for name, count in sizes.items():
            self.splits[name] = {"x": x[start : start + count], "target": u[start : start + count]}
            start += count
        std, mean = torch.std_mean(self.splits["train"]["target"], 0, correction=0)
        self.scale |= {"mean": mean, "std": torch.where(std > 0, std, mean.abs().max())}

    def columns(self, split: str) -> dict[str, Tensor]:
        return self.splits.get(split, {})

    def objective(self, output: Any, batch: Batch) -> Terms:
        return {"task": relative(output, batch.target)}

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        return {
            "relative-l2": relative(output, batch.target),
            "relative-h1": relative(output, batch.target, gradient_norm),
        }

    def figure(self) -> dict[str, Any]:
        columns = self.splits["train"]
        images = [each for pair in zip(columns["x"][:8, 0], columns["target"][:8, 0], strict=True) for each in pair]
        captions = [each for i in range(len(images) // 2) for each in (f"{i + 1}: a", "u")]
        return image_grid("Training samples", images, captions)

    def figures(self, answer: Answering, rng: torch.Generator) -> dict[str, Figure]:
        columns = {name: tensor[:SHOWN].to(rng.device) for name, tensor in self.splits["val"].items()}
        batch = Batch({"x": columns["x"]}, columns["target"], torch.arange(len(columns["x"]), device=rng.device), "val")
        found = {}
        for i, u in enumerate(answer(batch)):
            a, truth = columns["x"][i, 0], columns["target"][i]
            panels = [panel("permeability", a), panel("answer", u[0]), panel("truth", truth[0])]
            error = panel("error", u[0] - truth[0], diverging=True)
            share = float(relative(u[None], truth[None]))
            found[f"sample {i + 1}"] = image(f"Pressure, {share:.1%} off", *panels, error, extent=(0, 1, 0, 1))
        return found


def random_fields(noise: np.ndarray) -> np.ndarray:
    """Gaussian fields with no slope at the border, from standard normal numbers [n, size, size]: coefficients of
    cosines, each scaled by the root of its variance. The constant is left out: as much is above 0 as below."""
    from scipy.fft import idctn

    k = np.arange(noise.shape[-1])
    variance = (np.pi**2 * (k[:, None] ** 2 + k**2) + INVERSE_LENGTH**2) ** -SMOOTHNESS
    variance[0, 0] = 0
    return idctn(noise * np.sqrt(variance), axes=(1, 2), norm="ortho")


def pressure(a: np.ndarray) -> np.ndarray:
    """u at the middle of each cell, for the permeability a of the cells of a square grid.

    The equations are symmetric and reach one row of cells far: a Cholesky factor of their band solves them.
    """
    from scipy.linalg import solveh_banded

    n = len(a)
    out, right, down = flows(a)
    band = np.zeros((n + 1, n * n))
    band[0], band[1], band[n] = out.ravel(), -right.ravel(), -down.ravel()
    return solveh_banded(band, np.full(n * n, 1 / a.size), lower=True).reshape(a.shape)


def flows(a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For a difference in pressure of 1, what flows out of each cell, and of that to the right and down; the border,
    half a cell away, is at 0."""
    right, down = np.zeros_like(a), np.zeros_like(a)
    right[:, :-1] = harmonic(a[:, :-1], a[:, 1:])
    down[:-1] = harmonic(a[:-1], a[1:])
    out = right + down
    out[:, 1:] += right[:, :-1]
    out[1:] += down[:-1]
    for border in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        out[border] += 2 * a[border]
    return out, right, down


def harmonic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return 2 * a * b / (a + b)
