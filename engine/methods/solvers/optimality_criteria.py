"""Optimality criteria: the classic rule for where a structure's material goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.fields import ModelPart, NonNegative, Positive
from engine.kit.problems import Solver
from engine.kit.structures import Structure, cone, with_volume
from engine.parts import Batch, Task, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

EDGE = 1e-12  # what a full square lacks as a sigmoid
THIN = 1e-3  # squares with less are not divided by their density


class Density(nn.Module):
    """A design by its densities, which answers with their logits."""

    def __init__(self, density: Tensor):
        super().__init__()
        self.density = nn.Parameter(density, requires_grad=False)

    def forward(self) -> Tensor:
        return self.density.clamp(EDGE, 1 - EDGE).logit()


def moved(density: Tensor, slope: Tensor, volume: float, inside: Tensor, move: float, power: float) -> Tensor:
    """The next densities: x (-slope / lambda)^power within the move, lambda such that the volume is kept."""
    low, high = (density - move).clamp_min(0.0), (density + move).clamp_max(1.0)
    pull = (-slope).clamp_min(0.0)
    below, above = torch.tensor(-60.0).to(density), torch.tensor(60.0).to(density)  # of the logarithm of lambda
    pull = pull / pull.max().clamp_min(torch.finfo(pull.dtype).tiny)
    for _ in range(80):
        middle = (below + above) / 2
        found = (density * (pull / middle.exp()) ** power).clamp(low, high)
        heavy = found[inside].mean() > volume
        below, above = torch.where(heavy, middle, below), torch.where(heavy, above, middle)
    return torch.where(inside, found, 0.0)


@procedure(
    id="optimality-criteria",
    name="Optimality criteria",
    recommends={"budget": {"steps": 100}},
    example={
        "task": {"use": "structural-design", "rows": 8, "columns": 16},
        "procedure": {"start": {"use": "neural-structural-optimization", "filters": [3, 3, 2, 2, 1], "latent": 4}},
        "budget": {"steps": 4},
    },
)
class OptimalityCriteria(Solver):
    """Moves a structure's material to where it saves the most, by a rule that holds at the optimum: every bit of
    material that is neither all nor nothing saves the same.

        x_e <- x_e (-dc/dx_e / lambda)^power, by no more than `move` and between 0 and 1
        lambda by bisection, so that the volume is kept;   stop when no square changes by more than the tolerance

    One step is one iteration.

    Helps: stiffness under one volume limit; the baseline that engineers use.
    Hurts: anything with more constraints, and objectives that can grow with material. The answer depends on the start.
    Cost: one factorization and one gradient an iteration.
    Choices: by default the densities pass the task's own filter, and the gradient with them. With sensitivity_width
        the slopes are smoothed instead, as the oldest programs do: set the task's filter_width to 1 then.

    Args:
        move: The most that a square's density changes in an iteration.
        power: The exponent of the rule.
        tolerance: It stops when no density changes by more.
        sensitivity_width: Reach of a cone filter over the slopes; 1 switches it off.
        start: A model whose first design it starts from; otherwise the volume is spread evenly.
    """

    outputs = ("design",)
    keeps_parameters = True

    def __init__(
        self,
        move: Annotated[float, Field(gt=0, le=1)] = 0.2,
        power: Positive = 0.5,
        tolerance: NonNegative = 0.01,
        sensitivity_width: Positive = 1.0,
        start: ModelPart | None = None,
    ):
        self.move, self.power, self.tolerance = move, power, tolerance
        self.sensitivity_width, self.start = sensitivity_width, start
        self.iterations = 0

    def make_model(self, task: Task) -> nn.Module:
        structure, volume = task.offer.about["structure"], task.offer.about["volume"]
        logits = torch.zeros(structure.shape)
        if self.start is not None:
            with torch.no_grad():
                logits = self.start(task.offer)()
        return Density(with_volume(logits, volume, torch.from_numpy(structure.inside)))

    def setup(self, run: Run) -> None:
        about = run.task.offer.about
        self._structure: Structure = about["structure"]
        self._volume, self._width = about["volume"], about["filter_width"]
        self._inside = torch.from_numpy(self._structure.inside).to(run.device)

    def step(self, run: Run, batch: Batch) -> None:
        holder: Any = run.model
        density = holder.density.detach().requires_grad_()
        with torch.enable_grad():
            compliance = self._structure.compliance(cone(density, self._width, self._inside))
            (slope,) = torch.autograd.grad(compliance, density)
        run.count("evaluations")
        run.count("gradient-passes")
        run.tell(compliance)
        density = density.detach()
        if self.sensitivity_width > 1:
            slope = cone(density * slope, self.sensitivity_width, self._inside) / density.clamp_min(THIN)
        found = moved(density, slope, self._volume, self._inside, self.move, self.power)
        change = float((found - density).abs().max())
        with torch.no_grad():
            holder.density.copy_(found)
        self.iterations += 1
        run.log("change", change)
        if change < self.tolerance:
            run.finish(f"No density changes by more than {change:.1e} after {self.iterations} iterations.")

    def result(self, run: Run) -> dict[str, float]:
        return {"iterations": float(self.iterations)}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if "structure" not in task.offer.about:
            return "It needs a structure with its loads; choose a task that states one."
        return None
