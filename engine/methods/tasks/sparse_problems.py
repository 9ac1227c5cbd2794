"""Families of sparse problems: each sample is an optimization problem of its own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from engine import figures
from engine.fields import Count, Positive, Whole
from engine.kit.learned import Problems, fista, minima
from engine.kit.supervised import bundled, seeded
from engine.parts import Answering, Batch, Figure, Offer, Task, task

SHOWN = 32  # problems of the curve


@task(
    id="sparse-problems",
    name="Sparse problems",
    example={
        "task": {"rows": 4, "columns": 6, "nonzero": 2, "instances": 3, "early": 2},
        "procedure": {"use": "l2o-pa", "horizon": 4, "unroll": 2, "lstm_hidden": 3},
        "training": {"batch_size": 3},
        "budget": {"steps": 3},
    },
)
class SparseProblems(Task):
    """Minimizes one random problem after the other, as fast as it can: what is learned is how to optimize.

        F(x) = f(x) + penalty |x|_1
        lasso:    f(x) = |A x - b|^2 / 2,  A with unit columns times scale,  b = A x' for a sparse x'
        logistic: f(x) = mean_i log(1 + exp(-b_i a_i x)),  rows drawn from the breast cancer table, standardized
        gap = F(x_k) - min F

    Training problems are drawn fresh, without end; those for validation and test are fixed. An answer is all iterates
    from the first on, [B, K, n]. Gaps are measured in float64 after `early` iterations, after the last, and as a mean.

    Helps: Training learned optimizers, and comparing them with the classic ones.
    Hurts: What is learned on one family holds for problems like it.
    Cost: Each fixed problem is solved once, to the last digit: a second for 300 of the default size.

    Args:
        family: Least squares with a sparse answer (lasso), or sparse logistic regression (logistic).
        rows: Equations, or samples, of a problem.
        columns: Unknowns of a lasso problem; the table has 30.
        nonzero: Entries of the true answer of a lasso problem that are not zero.
        penalty: Weight of the absolute values.
        scale: What A is multiplied by; 1 is what the default optimizers are trained on.
        early: The iteration at which the early gap is measured.
        instances: Fixed problems each for validation and for test.
        instance: What the fixed problems are drawn from.
    """

    stream = "drawn"
    epoch_steps = 50
    has_objective = False
    metric = ("mean_gap", "min")

    def __init__(
        self,
        family: Literal["lasso", "logistic"] = "lasso",
        rows: Annotated[int, Field(ge=2)] = 20,
        columns: Annotated[int, Field(ge=2)] = 40,
        nonzero: Count = 5,
        penalty: Positive = 0.1,
        scale: Positive = 1.0,
        early: Count = 20,
        instances: Count = 128,
        instance: Whole = 0,
    ):
        if nonzero > columns:
            raise ValueError(f"nonzero = {nonzero} is more than the {columns} columns.")
        self.family, self.rows, self.columns_, self.nonzero = family, rows, columns, nonzero
        self.penalty, self.scale, self.early = penalty, scale, early
        self.instances, self.instance = instances, instance

    def load(self) -> None:
        self.table = breast_cancer() if self.family == "logistic" else None
        rng = seeded(self.instance)
        self.splits = {split: self.draw(self.instances, rng) for split in ("val", "test")}
        self._minima: dict[str, Tensor] = {}

    @property
    def offer(self) -> Offer:  # type: ignore[override]
        n = self.columns_ if self.table is None else self.table[0].shape[1]
        about = {"family": self.family, "penalty": self.penalty}
        return Offer("problems", (self.rows, n), "solution", n, about=about)

    def draw(self, size: int, rng: torch.Generator) -> dict[str, Tensor]:
        at: dict[str, Any] = {"generator": rng, "device": rng.device, "dtype": torch.float64}
        if self.table is not None:
            x, label = (column.to(rng.device) for column in self.table)
            picked = torch.rand(size, len(x), generator=rng, device=rng.device).topk(min(self.rows, len(x))).indices
            return {"a": self.scale * x[picked], "b": label[picked]}
        a = torch.randn(size, self.rows, self.columns_, **at)
        a = self.scale * a / torch.linalg.vector_norm(a, dim=1, keepdim=True)
        order = torch.rand(size, self.columns_, **at).argsort(1)
        truth = torch.randn(size, self.columns_, **at) * (order < self.nonzero)
        return {"a": a, "b": (a @ truth.unsqueeze(-1)).squeeze(-1)}

    def columns(self, split: str) -> dict[str, Tensor]:
        return self.splits.get(split, {})

    def problems(self, batch: Batch) -> Problems:
        return Problems(self.family, batch.inputs["a"], batch.inputs["b"], self.penalty)

    def gaps(self, output: Tensor, batch: Batch) -> Tensor:
        """F - min F of all iterates [B, K]."""
        problems = self.problems(batch)
        values = torch.stack([problems.value(x.double()) for x in output.unbind(1)], 1)
        if batch.split not in self._minima:
            stored = self.splits[batch.split]
            self._minima[batch.split] = minima(Problems(self.family, stored["a"], stored["b"], self.penalty))
        least = self._minima[batch.split].to(values.device)[batch.index]
        return values - least[:, None]

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        gaps = self.gaps(output, batch)
        early = gaps[:, min(self.early, gaps.shape[1]) - 1]
        return {"mean_gap": gaps.mean(1), "early_gap": early, "gap": gaps[:, -1]}

    def figures(self, answer: Answering, rng: torch.Generator) -> dict[str, Figure]:
        stored = {name: column[:SHOWN].to(rng.device) for name, column in self.splits["val"].items()}
        count = len(stored["a"])
        batch = Batch(stored, None, torch.arange(count, device=rng.device), "val")
        found = self.gaps(answer(batch), batch).mean(0)
        lines = [("this optimizer", found)]
        for name, momentum in (("ISTA", False), ("FISTA", True)):
            iterates = torch.stack(list(fista(self.problems(batch), len(found), momentum)), 1)
            lines.append((name, self.gaps(iterates, batch).mean(0)))
        steps = np.arange(1, len(found) + 1)
        series = [figures.line(name, steps, gap.clamp_min(1e-16).cpu()) for name, gap in lines]
        title = f"Mean gap to the minimum of {count} problems"
        return {"gap": figures.curve(title, *series, x="iteration", y=figures.axis("F - min F", log=True))}


def breast_cancer() -> tuple[Tensor, Tensor]:
    """The standardized table [569, 30], and labels 1 and -1."""
    whole = torch.from_numpy(np.loadtxt(bundled("breast_cancer.csv"), delimiter=",", skiprows=1))
    x = whole[:, :-1]
    return (x - x.mean(0)) / x.std(0, correction=0), 2 * whole[:, -1] - 1
