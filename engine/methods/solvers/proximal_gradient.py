"""ISTA and FISTA: the classic ways to minimize a smooth function plus absolute values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from engine.fields import Count
from engine.kit.learned import fista, stated
from engine.kit.problems import Solver
from engine.parts import Batch, Task, procedure

if TYPE_CHECKING:
    from engine.training.run import Run


@procedure(
    id="proximal-gradient",
    name="ISTA and FISTA",
    example={
        "task": {"use": "sparse-problems", "rows": 4, "columns": 6, "nonzero": 2, "instances": 3},
        "procedure": {"horizon": 5},
        "budget": {"steps": 0},
    },
)
class ProximalGradient(Solver):
    """Minimizes each problem by gradient steps of fixed length, each followed by pulling every number towards zero.
    Momentum makes it far faster. It learns nothing.

        z_k = soft threshold(x_(k-1) - f'(x_(k-1)) / L, penalty / L);   L: the largest eigenvalue of f's Hessian
        ISTA: x_k = z_k;   FISTA: x_k = z_k + (k-1) / (k+2) (z_k - z_(k-1))

    Helps: A baseline for learned optimizers, on the same problems.
    Hurts: Badly conditioned problems take thousands of iterations.
    Cost: One gradient an iteration.

    Args:
        momentum: With momentum (FISTA) or without (ISTA).
        horizon: Iterations.
    """

    offers = ("output",)
    inputs = ("problems",)
    outputs = ()
    trains = False
    seeded = False

    def __init__(self, momentum: bool = True, horizon: Count = 100):
        self.momentum, self.horizon = momentum, horizon

    def make_model(self, task: Task) -> nn.Module:
        return nn.Module()  # nothing is learned

    def act(self, run: Run) -> None:
        """Nothing is trained or changed."""

    def predict(self, run: Run, batch: Batch) -> Tensor:
        return torch.stack(list(fista(stated(run.task, batch), self.horizon, self.momentum)), 1)
