"""Structures of the least compliance: where to put a given amount of material."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from engine import figures
from engine.fields import NonNegative, Positive
from engine.kit.problems import solution
from engine.kit.structures import Array, Structure, cone, with_volume
from engine.parts import Answering, Batch, Figure, Offer, Task, Terms, task

RIGHT, DOWN = 0, 1
PROBLEMS = Literal["mbb-beam", "cantilever", "two-loads", "bridge", "multistorey", "l-bracket", "arch"]


@task(
    id="structural-design",
    name="Structural design",
    example={
        "task": {"rows": 8, "columns": 16},
        "model": {
            "use": "pixel-design",
            "start": {"use": "neural-structural-optimization", "filters": [3, 3, 2, 2, 1], "latent": 4},
        },
        "optimizer": {"use": "lbfgs", "max_iter": 2},
        "budget": {"steps": 4},
    },
)
class StructuralDesign(Task):
    """Puts a given amount of material where it makes a structure stiffest under its loads. A model answers with a
    number for each square of a grid; the more, the more material.

        x = cone filter of sigmoid(logits + b),   b such that the mean of the sigmoid is the volume
        E = 1e-9 + x^penalty (1 - 1e-9);   K(E) u = f;   loss = compliance = f . u

    The volume is kept exactly at every moment, before the filter. Beside the compliance it is told how many squares are
    neither full nor empty: grey, the mean of 4 x (1 - x).

    Helps: Seeing what a way of writing down a design does to the design that is found.
    Hurts: There is one design and no data: nothing generalizes. Compliances of different grids do not compare.
    Cost: One factorization for each look at the loss: 2 ms for 16 x 48 squares, 6 ms for 32 x 64.

    Choices: the stiffness is factored by a banded Cholesky, whose bands run along the shorter side: on grids of this
    size three to six times as fast as a general sparse factorization. Forces add up to 1, whatever the grid.

    Args:
        problem: Half a beam on two supports (mbb-beam); a beam held on the left with a load in the middle of its right
            end (cantilever), or half of it at both corners (two-loads); half a bridge under a load on its deck
            (bridge); half a tower with loads on its storeys (multistorey); an angle that hangs from its top
            (l-bracket); half an arch with a load below its middle (arch).
        rows: Squares from top to bottom.
        columns: Squares from left to right.
        volume: Share of the space that is filled.
        penalty: The power by which half-filled squares lose stiffness.
        filter_width: Reach of the cone filter, in squares; 1 switches it off.
        weight: Weight of all material, beside the loads.
    """

    stream = "none"
    epoch_steps = 10
    judges = ("val", "test")
    metric = ("compliance", "min")

    def __init__(
        self,
        problem: PROBLEMS = "mbb-beam",
        rows: Annotated[int, Field(ge=4)] = 16,
        columns: Annotated[int, Field(ge=4)] = 48,
        volume: Annotated[float, Field(gt=0, lt=1)] = 0.4,
        penalty: Annotated[float, Field(ge=1)] = 3.0,
        filter_width: Positive = 2.0,
        weight: NonNegative = 0.0,
    ):
        self.problem, self.rows, self.columns_, self.volume = problem, rows, columns, volume
        self.penalty, self.filter_width, self.weight = penalty, filter_width, weight

    def load(self) -> None:
        held, loads, inside = stated(self.problem, self.rows, self.columns_)
        weight = self.weight / (self.volume * inside.sum())
        self.structure = Structure(held, loads / np.abs(loads).sum(), inside, weight, self.penalty)
        self.inside = torch.from_numpy(inside)

    @property
    def offer(self) -> Offer:  # type: ignore[override]
        shape = (self.rows, self.columns_)
        about = {"structure": self.structure, "volume": self.volume, "filter_width": self.filter_width}
        return Offer("none", (), "design", self.rows * self.columns_, answer=shape, about=about)

    def density(self, logits: Tensor) -> Tensor:
        """The design that a model's numbers mean."""
        inside = self.inside.to(logits.device)
        return cone(with_volume(logits, self.volume, inside), self.filter_width, inside)

    def objective(self, output: Tensor, batch: Batch) -> Terms:
        return {"task": self.structure.compliance(self.density(output))}

    def judge(self, split: str, answer: Answering, rng: torch.Generator) -> dict[str, float]:
        density = self.density(solution(answer, rng))
        inside = density[self.inside.to(density.device)]
        return {
            "compliance": float(self.structure.compliance(density)),
            "grey": float((4 * inside * (1 - inside)).mean()),
            "volume": float(inside.mean()),
        }

    def figures(self, answer: Answering, rng: torch.Generator) -> dict[str, Figure]:
        z = self.density(solution(answer, rng)).cpu().numpy().round(4)
        return {"design": figures.image("The design", figures.panel("density", z))}

    def figure(self) -> Figure:
        nodes: list[dict[str, float]] = []
        marked = []
        for row, column in np.argwhere(self.structure.held.any(-1) | self.structure.loads.any(-1)):
            pull = bool(self.structure.loads[row, column].any())
            marked += [len(nodes)] if pull else []
            nodes.append(figures.node(column, -row, group=int(pull)))
        return figures.graph("Supports, and the loads, ringed", nodes, marked=marked)


def stated(problem: str, rows: int, columns: int) -> tuple[Array, Array, Array]:
    """What is held, the loads, and where material may be."""
    held = np.zeros((rows + 1, columns + 1, 2), dtype=bool)
    loads = np.zeros((rows + 1, columns + 1, 2))
    inside = np.ones((rows, columns), dtype=bool)
    if problem == "mbb-beam":
        held[:, 0, RIGHT] = held[-1, -1, DOWN] = True
        loads[0, 0, DOWN] = 1
    elif problem == "cantilever":
        held[:, 0] = True
        loads[rows // 2, -1, DOWN] = 1
    elif problem == "two-loads":
        held[:, 0] = True
        loads[0, -1, DOWN] = loads[-1, -1, DOWN] = 1
    elif problem == "bridge":
        held[:, 0, RIGHT] = held[-1, -1] = True
        loads[0, :, DOWN] = 1
    elif problem == "multistorey":
        held[-1, :] = held[:, -1, RIGHT] = True
        loads[0 : rows : max(rows // 4, 1), :, DOWN] = 1
    elif problem == "l-bracket":
        inside[: rows // 2, columns // 2 :] = False
        held[0, : columns // 2 + 1] = True
        loads[rows // 2, -1, DOWN] = 1
    else:
        held[:, 0, RIGHT] = held[-1, -1] = True
        loads[-1, 0, DOWN] = 1
    return held, loads, inside
