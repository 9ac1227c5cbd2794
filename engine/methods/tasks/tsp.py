"""The travelling salesman: the shortest round trip through random points."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from engine.fields import Count, Whole
from engine.figures import graph, nodes_of
from engine.kit.routing import every_start, nearest_neighbour, reference_tours, tour_length
from engine.kit.supervised import seeded
from engine.parts import Answering, Batch, Figure, Offer, Task, task

CLUSTERS = 3
SPREAD = 0.07
SHOWN = 2  # instances that are drawn


def instances(count: int, points: int, kind: str, rng: torch.Generator) -> Tensor:
    """Points in the unit square [count, points, 2]: spread evenly, or around a few centres."""
    if kind == "uniform":
        return torch.rand(count, points, 2, generator=rng, device=rng.device)
    centres = torch.rand(count, CLUSTERS, 2, generator=rng, device=rng.device)
    member = torch.randint(CLUSTERS, (count, points), generator=rng, device=rng.device)
    noise = torch.randn(count, points, 2, generator=rng, device=rng.device)
    return (centres.gather(1, member.unsqueeze(-1).expand(-1, -1, 2)) + SPREAD * noise).clamp(0, 1)


@task(
    name="Travelling salesman",
    example={
        "task": {"points": 5, "instances": 8},
        "model": {"use": "attention-model", "width": 8, "heads": 2, "layers": 1, "hidden": 16},
        "procedure": {"use": "rl4co-attention-model"},
        "training": {"batch_size": 4},
    },
)
class Tsp(Task):
    """Finds the shortest round trip through points in a square. Training draws new points at every step; validation
    and test have fixed ones, whose best tours are known.

        gap = length of the tour / length of the best one - 1;    nearest-gap: that of going on to the nearest point

    Helps: learning to solve problems of combination, where the answer to every instance can be checked.
    Hurts: beyond 12 points the tours that it is measured against are good, not proven best: a gap may be below 0.
    Cost: none in training; the best tours of up to 12 points take less than a second.

    Args:
        points: Points of an instance. Up to 12 the best tour is found by dynamic programming, beyond by nearest
            neighbour from every start and 2-opt.
        instances: Fixed instances for validation, and as many for test.
        distribution: Points spread evenly over the square, or around three centres.
        test_points: Points of a test instance, from 3; 0 takes as many as in training. More of them, or points spread
            in another way, show what a policy carries over to problems that it was not trained on.
        test_distribution: How the points of the test instances are spread.
        split_seed: Seed of the fixed instances.

    Raises:
        ValueError: For test instances of one or two points.
    """

    metric = ("gap", "min")
    has_objective = False
    stream = "drawn"

    def __init__(
        self,
        points: Annotated[int, Field(ge=3, le=200)] = 10,
        instances: Count = 100,
        distribution: Literal["uniform", "clusters"] = "uniform",
        test_points: Annotated[int, Field(ge=0, le=200)] = 0,
        test_distribution: Literal["same", "uniform", "clusters"] = "same",
        split_seed: Whole = 0,
    ):
        self.points, self.instances, self.split_seed = points, instances, split_seed
        self.distribution, self.test_distribution = distribution, test_distribution
        self.test_points = test_points
        if 0 < test_points < 3:
            raise ValueError(f"A round trip has 3 points or more; test_points is {test_points}.")
        self.offer = Offer("points", (points, 2), "tour", points, span=(0.0, 1.0))
        self.fixed: dict[str, dict[str, Tensor]] = {}

    def load(self) -> None:
        rng = seeded(self.split_seed)
        kind = self.distribution if self.test_distribution == "same" else self.test_distribution
        self.fixed = {
            "val": self._measured(self.points, self.distribution, rng),
            "test": self._measured(self.test_points or self.points, kind, rng),
        }

    def _measured(self, count: int, kind: str, rng: torch.Generator) -> dict[str, Tensor]:
        points = instances(self.instances, count, kind, rng)
        best = reference_tours(points)
        near = nearest_neighbour(points, every_start(len(points), count, points.device, 1))
        return {
            "points": points,
            "target": best,
            "meta.best": tour_length(points, best),
            "meta.nearest": tour_length(points, near).squeeze(1),
        }

    def columns(self, split: str) -> dict[str, Tensor]:
        return self.fixed.get(split, {})

    def draw(self, size: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {"points": instances(size, self.points, self.distribution, rng)}

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Of tours [B, n]."""
        length, best = tour_length(batch.x, output), batch.meta["best"]
        return {"gap": length / best - 1, "length": length, "nearest-gap": batch.meta["nearest"] / best - 1}

    def figure(self) -> Figure:
        columns = self.fixed["val"]
        return drawn([columns["points"][0]], [columns["target"][0]], "A validation instance and its best tour")

    def figures(self, answer: Answering, rng: torch.Generator) -> dict[str, Figure]:
        """Tours of some test instances beside the best ones."""
        columns = {name: column[:SHOWN].to(rng.device) for name, column in self.fixed["test"].items()}
        points, best = columns["points"], columns["target"]
        meta = {name.removeprefix("meta."): column for name, column in columns.items() if name.startswith("meta.")}
        tours = answer(Batch({"points": points}, best, torch.arange(len(points), device=rng.device), "test", meta=meta))
        lengths = torch.stack([tour_length(points, tours), meta["best"]], 1).tolist()
        return {
            f"tour {i}": drawn(
                [points[i], points[i]],
                [tours[i], best[i]],
                f"Left: the answer, {own:.3f} long. Right: the best tour known, {least:.3f}.",
            )
            for i, (own, least) in enumerate(lengths)
        }


def drawn(points: list[Tensor], tours: list[Tensor], title: str) -> Figure:
    """Tours side by side, as one graph; the point that a tour begins at is marked."""
    nodes: list[dict[str, Any]] = []
    edges: list[list[int]] = []
    marked: list[int] = []
    for side, (places, way) in enumerate(zip(points, tours, strict=True)):
        first, order = len(nodes), way.tolist()
        nodes += nodes_of(places + torch.tensor([1.2 * side, 0.0], device=places.device), groups=[side] * len(order))
        edges += [[first + a, first + b] for a, b in zip(order, order[1:] + order[:1], strict=True)]
        marked.append(first + order[0])
    return graph(title, nodes, edges, marked=marked)
