"""Linear structural equations: which variable drives which."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from engine.fields import Positive, Whole
from engine.kit.dags import drawn, erdos_renyi, hamming, is_acyclic
from engine.kit.problems import solution
from engine.kit.supervised import seeded
from engine.parts import Answering, Figure, Offer, Task, task


@task(
    id="linear-sem",
    name="Linear structural equations",
    packages=("networkx",),
    example={
        "task": {"nodes": 4, "samples": 40},
        "procedure": {"use": "colide", "warm_iter": 10, "max_iter": 20, "check": 5, "stages": 2},
        "budget": {"steps": 8},
    },
)
class LinearSEM(Task):
    """Finds a graph of causes from samples: each variable is a weighted sum of its causes plus noise of its own.

        x = W^T x + z;   W_ij is the edge from i to j, without cycles;   z_i ~ N(0, variance_i)

    The graph is random: each pair of nodes is joined with the same chance, in a random order of causes. Measured are
    the structural Hamming distance (edges that must be added, removed or turned around), the share of the true edges
    that were found, and by how much the noise of each variable was misjudged.

    Helps: Comparing what finds graphs; the truth is known.
    Hurts: The variances of such data give the order of causes away in part; real data may not be so kind.
    Cost: None to speak of.

    Args:
        nodes: Variables.
        samples: Samples of all of them.
        edges: Edges for each node on average.
        lowest_weight: The smallest size of a true weight.
        highest_weight: The largest size of a true weight.
        noise: Whether all variables have the same noise, or each has a variance of its own.
        variance: The noise's variance, or the mean of the variances where they differ.
        spread: Where they differ, they are uniform in variance (1 - spread) to variance (1 + spread).
        instance: Which of the random graphs and samples: what they are drawn from.
    """

    stream = "none"
    judges = ("val", "test")
    has_objective = False
    metric = ("shd", "min")

    def __init__(
        self,
        nodes: Annotated[int, Field(ge=2)] = 20,
        samples: Annotated[int, Field(ge=2)] = 1000,
        edges: Positive = 2.0,
        lowest_weight: Positive = 0.5,
        highest_weight: Positive = 2.0,
        noise: Literal["equal", "different"] = "equal",
        variance: Positive = 1.0,
        spread: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        instance: Whole = 0,
    ):
        if lowest_weight > highest_weight:
            raise ValueError(f"lowest_weight = {lowest_weight:g} is above highest_weight = {highest_weight:g}.")
        self.nodes, self.samples_, self.edges, self.instance = nodes, samples, edges, instance
        self.weights_between = lowest_weight, highest_weight
        self.noise, self.variance, self.spread = noise, variance, spread

    def load(self) -> None:
        rng = seeded(self.instance)
        self.graph = erdos_renyi(self.nodes, self.edges, *self.weights_between, rng)
        self.deviation = torch.full((self.nodes,), self.variance, dtype=torch.float64).sqrt()
        if self.noise == "different":
            at = 2 * torch.rand(self.nodes, generator=rng, dtype=torch.float64) - 1
            self.deviation = (self.variance * (1 + self.spread * at)).sqrt()
        z = self.deviation * torch.randn(self.samples_, self.nodes, generator=rng, dtype=torch.float64)
        self.samples = z @ torch.linalg.inv(torch.eye(self.nodes, dtype=torch.float64) - self.graph)

    @property
    def offer(self) -> Offer:  # type: ignore[override]
        shape = (self.nodes, self.nodes)
        return Offer("none", (), "solution", self.nodes**2, answer=shape, about={"samples": self.samples})

    def judge(self, split: str, answer: Answering, rng: torch.Generator) -> dict[str, float]:
        """Of an answer with "weights" [d, d], and "noise", the deviations, one for all or one each."""
        found = solution(answer, rng)
        weights, noise = found["weights"].cpu(), found["noise"].cpu()
        right = ((weights != 0) & (self.graph != 0)).sum() / max(int((self.graph != 0).sum()), 1)
        error = ((noise.expand(self.nodes) - self.deviation) / self.deviation).abs().median()
        return {
            "shd": float(hamming(weights, self.graph)),
            "found_edges": float(right),
            "edges": float((weights != 0).sum()),
            "noise_error": float(error),
            "acyclic": float(is_acyclic(weights)),
        }

    def figures(self, answer: Answering, rng: torch.Generator) -> dict[str, Figure]:
        found = solution(answer, rng)["weights"].cpu()
        return {
            "true": drawn(self.graph, self.graph, "The true graph"),
            "found": drawn(found, self.graph, "The graph that was found, each node where the true order puts it"),
        }

    def figure(self) -> Figure:
        return drawn(self.graph, self.graph, "The true graph")
