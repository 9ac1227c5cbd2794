"""Small tables: a diagnosis, the origin of wines, the course of diabetes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from engine.fields import Fraction, NonNegative, Whole
from engine.kit.supervised import Supervised, bundled, seeded, split_indices, symmetric_noise
from engine.parts import Offer, task

FEATURES = {"breast-cancer": 30, "wine": 13, "diabetes": 10}
CLASSES = {"breast-cancer": 2, "wine": 3}


@task(name="Tabular")
class Tabular(Supervised):
    """Predicts from a row of a small table. Breast cancer and wine are classes, diabetes is a number.

        x in R^30 (569 rows), R^13 (178 rows) or R^10 (442 rows);  standardized: (x - mean) / std of the training rows

    Helps: Seeing how a recipe copes with few samples, noise and features of different scale.
    Hurts: The splits are small: differences of a percent are luck.
    Cost: None to speak of.

    Choices: 20 % are for test and 10 % for validation, by class. The number that diabetes predicts is standardized by
    the training rows too; r2 is the share of its variance that is explained.

    Args:
        dataset: Which table.
        split_seed: Seed of the splits, the spread and the wrong labels.
        standardize: Whether features get mean 0 and deviation 1 over the training rows.
        spread: Each feature is then multiplied by exp(u), u drawn once between -spread and spread: badly scaled inputs.
        label_noise: Share of the training labels that are changed to another class at random.
        outer: Share of the rows kept apart for tuning hyperparameters inside a run.

    Raises:
        ValueError: For label noise where there are no classes.
    """

    def __init__(
        self,
        dataset: Literal["breast-cancer", "wine", "diabetes"] = "breast-cancer",
        split_seed: Whole = 0,
        standardize: bool = True,
        spread: NonNegative = 0.0,
        label_noise: Fraction = 0.0,
        outer: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
    ):
        self.classes = CLASSES.get(dataset, 0)
        if label_noise and not self.classes:
            raise ValueError(f"{dataset} predicts a number and has no labels to change: write label_noise = 0.")
        self.dataset, self.split_seed, self.standardize = dataset, split_seed, standardize
        self.spread, self.label_noise, self.outer = spread, label_noise, outer
        output = "classes" if self.classes else "values"
        self.offer = Offer("vector", (FEATURES[dataset],), output, self.classes or 1)

    def load(self) -> None:
        x, target = read(self.dataset)
        rng = seeded(self.split_seed)
        labels = target if self.classes else None
        parts = split_indices(len(x), labels, {"test": 0.2, "val": 0.1, "outer": self.outer}, rng)
        train = parts["train"]
        if self.standardize:
            x = _standardized(x, train)
        if self.spread:
            draw = torch.rand(x.shape[1], generator=seeded(self.split_seed + 1), dtype=x.dtype)
            x = x * torch.exp((2 * draw - 1) * self.spread)
        y = target if self.classes else _standardized(target[:, None], train).float()
        self.splits = {name: {"x": x[index].float(), "target": y[index]} for name, index in parts.items()}
        if self.classes:
            noisy = symmetric_noise(y[train], self.label_noise, self.classes, seeded(self.split_seed + 2))
            self.splits["train"] |= {"target": noisy, "meta.clean": y[train]}

    def figure(self) -> dict[str, Any]:
        """The training rows in the plane of the two features that vary most."""
        train = self.splits["train"]
        first, second = train["x"].var(0).topk(2).indices.tolist()
        target = train["target"].flatten()
        groups = [(f"class {k}", target == k) for k in range(self.classes)] or [("rows", target == target)]
        series = [
            {"name": name, "x": train["x"][rows, first].tolist(), "y": train["x"][rows, second].tolist()}
            for name, rows in groups
        ]
        x, y = {"label": f"feature {first + 1}"}, {"label": f"feature {second + 1}"}
        return {"kind": "scatter", "title": "Training samples", "x": x, "y": y, "series": series}


def read(dataset: str) -> tuple[Tensor, Tensor]:
    """Features (float64) and target (classes, or float64 numbers) of a table, in its stored order."""
    if dataset == "diabetes":
        x, target = (np.loadtxt(bundled(f"diabetes_{name}.csv.gz")) for name in ("data_raw", "target"))
        return torch.from_numpy(x), torch.from_numpy(target)
    name = {"breast-cancer": "breast_cancer.csv", "wine": "wine_data.csv"}[dataset]
    table = torch.from_numpy(np.loadtxt(bundled(name), delimiter=",", skiprows=1))
    return table[:, :-1], table[:, -1].long()


def _standardized(x: Tensor, train: Tensor) -> Tensor:
    std, mean = torch.std_mean(x[train], 0, correction=0)
    return (x - mean) / torch.where(std > 0, std, 1.0)
