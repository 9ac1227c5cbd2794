"""Entropic optimal transport: random assignment, clouds of points, two digits as densities."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from engine import figures
from engine.fields import Positive, Whole
from engine.kit.problems import solution
from engine.kit.supervised import seeded
from engine.kit.transport import Transport, converged, marginal_error
from engine.methods.tasks.digits import images_and_labels
from engine.parts import Answering, Figure, Offer, Task, task

SHOWN = 60  # rows and columns of a plan in a figure; more are pooled
SIDE = 8  # pixels of a digit's side


@task(
    id="optimal-transport",
    name="Optimal transport",
    example={
        "task": {"points": 10, "eta": 20.0},
        "procedure": {"use": "sinkhorn", "check_every": 2},
        "budget": {"steps": 8},
    },
)
class OptimalTransport(Task):
    """Moves mass from where it is to where it is wanted, as cheaply as possible but for a little blur. There are no
    samples to learn from: a solver works on this one problem.

        min over P >= 0 of <P, C> + (1/eta) sum_ij P_ij log P_ij,   P 1 = r,  P^T 1 = c

    Costs are divided by the largest one, so that eta means the same for all problems. Measured are the summed error of
    the marginals, what the plan costs once it is made to meet them, and its distance to a plan that has converged.

    Helps: Comparing solvers; matching points, histograms and images.
    Hurts: Nothing is learned here that another problem could use.
    Cost: The plan that others are measured against takes a quarter of a second for 300 points, and grows by n^3.

    Args:
        problem: Uniform random costs (random-cost), two clouds of points in the plane (clouds), or two handwritten
            digits as densities over their pixels (digits), where empty pixels are left out.
        points: Points on each side; digits have their own.
        eta: The inverse temperature: the larger, the closer the plan is to the unblurred one.
        moving: What moving costs, for clouds and digits: the distance, or its square.
        instance: Which of the random problems: what it is drawn from.
    """

    stream = "none"
    judges = ("val", "test")
    has_objective = False
    metric = ("marginal_error", "min")

    def __init__(
        self,
        problem: Literal["random-cost", "clouds", "digits"] = "random-cost",
        points: Annotated[int, Field(ge=2)] = 300,
        eta: Positive = 1200.0,
        moving: Literal["distance", "squared"] = "squared",
        instance: Whole = 0,
    ):
        self.problem, self.points, self.eta, self.moving, self.instance = problem, points, eta, moving, instance

    def load(self) -> None:
        rng = seeded(self.instance)
        self.places: tuple[Tensor, Tensor] | None = None  # of the points on either side
        self.densities: list[Tensor] = []
        rows = columns = torch.full((self.points,), 1 / self.points, dtype=torch.float64)
        if self.problem == "random-cost":
            cost = torch.rand(self.points, self.points, generator=rng, dtype=torch.float64)
        else:
            if self.problem == "clouds":
                self.places = clouds(self.points, rng)
            else:
                self.densities, self.places, (rows, columns) = two_digits(rng)
            cost = torch.cdist(*self.places, compute_mode="donot_use_mm_for_euclid_dist")
            cost = cost.square() if self.moving == "squared" else cost
        self.transport = Transport(cost / cost.max(), rows, columns, self.eta)
        self._reference: Tensor | None = None

    @property
    def offer(self) -> Offer:  # type: ignore[override]
        at = self.transport
        shape = tuple(at.cost.shape)
        about = {"cost": at.cost, "rows": at.rows, "columns": at.columns, "eta": at.eta}
        return Offer("none", (), "solution", at.cost.numel(), answer=shape, about=about)

    def columns(self, split: str) -> dict[str, Tensor]:
        return {}

    def judge(self, split: str, answer: Answering, rng: torch.Generator) -> dict[str, float]:
        plan = solution(answer, rng).to("cpu", torch.float64)
        at = self.transport
        error = marginal_error(at.gradient(plan))
        cost = (at.rounded(plan) * at.cost).sum()
        distance = (plan - self.reference()).abs().sum()
        return {"marginal_error": float(error), "cost": float(cost), "distance": float(distance)}

    def reference(self) -> Tensor:
        """The plan that has converged; made once."""
        if self._reference is None:
            self._reference = converged(self.transport)
        return self._reference

    def figures(self, answer: Answering, rng: torch.Generator) -> dict[str, Figure]:
        plan = solution(answer, rng).to("cpu", torch.float64)
        best = plan.argmax(1)
        if self.problem != "digits":  # points have no order of their own: partners stand on the diagonal
            plan = plan[:, torch.argsort(plan.argmax(0), stable=True)]
        plan = pooled(pooled(plan, 0), 1)
        found = {"plan": figures.heatmap("Transport plan", plan, x="to", y="from")}
        if self.problem == "clouds":
            assert self.places is not None
            found["matched"] = matched(*self.places, best)
        return found

    def figure(self) -> Figure:
        if self.densities:
            panels = [figures.panel(name, z) for name, z in zip(("from", "to"), self.densities, strict=True)]
            return figures.image("Two digits as densities", *panels, shared=True)
        if self.places is None:
            return figures.heatmap("Costs", pooled(pooled(self.transport.cost, 0), 1), x="to", y="from")
        series = [figures.dots(name, *at.T) for name, at in zip(("from", "to"), self.places, strict=True)]
        return figures.scatter("Two clouds", *series, x="x", y="y", equal=True)


def clouds(points: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """A round cloud, and a ring around it."""
    source = 0.3 * torch.randn(points, 2, generator=rng, dtype=torch.float64)
    angle = 2 * torch.pi * torch.rand(points, generator=rng, dtype=torch.float64)
    radius = 1 + 0.1 * torch.randn(points, generator=rng, dtype=torch.float64)
    return source, radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)


def two_digits(rng: torch.Generator) -> tuple[list[Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Two images that sum to 1, the places of their pixels that are not empty, and what these hold."""
    images, _ = images_and_labels()
    drawn = images[torch.randperm(len(images), generator=rng)[:2], 0].double()
    drawn = drawn / drawn.sum((1, 2), keepdim=True)
    grid = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).double()
    first, second = drawn.flatten(1)
    return list(drawn), (grid[first > 0], grid[second > 0]), (first[first > 0], second[second > 0])


def pooled(table: Tensor, along: int) -> Tensor:
    """A table of at most SHOWN entries in one direction, each the sum of its neighbours."""
    size = table.shape[along]
    if size <= SHOWN:
        return table
    place = torch.arange(size) * SHOWN // size
    shape = list(table.shape)
    shape[along] = SHOWN
    return table.new_zeros(shape).index_add_(along, place, table)


def matched(source: Tensor, target: Tensor, best: Tensor) -> Figure:
    """Both clouds, and from each point a line to where most of its mass goes."""
    nodes = figures.nodes_of(torch.cat([source, target]), groups=[0] * len(source) + [1] * len(target))
    edges = [[i, len(source) + j] for i, j in enumerate(best.tolist())]
    return figures.graph("Where most of each point's mass goes", nodes, edges)
