"""How much room a graph network has: the rank of its features under powers of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.fields import Count, Positive, Whole
from engine.figures import axis, curve, line
from engine.kit.graphs import Basis, Graph, Propagation, blocks, directions, unit_columns, unit_rows
from engine.parts import Finding, Probe, Task, probe

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run


def spectrum(space: Tensor) -> Tensor:
    """The singular values of a feature space [N, D], as shares of the largest."""
    values = torch.linalg.svdvals(space.double())
    return values / values[0].clamp_min(torch.finfo(values.dtype).tiny)


def numerical_rank(space: Tensor, tolerance: float) -> int:
    """How many singular values are above a share of the largest."""
    return int((spectrum(space) > tolerance).sum())


def cosine(space: Tensor) -> float:
    """The mean |cosine| between two different columns; columns that are zero have none."""
    columns = unit_columns(space.double())
    columns = columns[:, columns.any(0)]
    d = columns.shape[1]
    if d < 2:
        return 0.0
    gram = (columns.T @ columns).abs()
    return float((gram.sum() - gram.trace()) / (d * (d - 1)))


@probe(
    id="feature-space",
    name="Feature space of a graph",
    paper="Feature Expansion for Graph Neural Networks",
    arxiv="2305.06142",
    example={
        "task": {"use": "karate-club"},
        "model": {"use": "gcn", "hidden": [4]},
        "probes": [{"use": "feature-space", "order": 2, "structure_rank": 4}],
    },
)
class FeatureSpace(Probe):
    """Measures how many directions the features of a graph span under powers of the graph, and how alike they become.
    The powers draw all features towards one direction, so that further ones soon add nothing.

        space_k = [X, P X, ..., P^k X];   expanded_k = [blocks with columns of length 1, S],  S = Q_r Sigma_r
        rank = number of singular values above tolerance * the largest;   cosine = mean |cos| of two columns

    Helps: Seeing whether more layers or powers can still add something, before any is trained.
    Hurts: Says nothing of the labels: a space of more directions is not a better one.
    Cost: A singular value decomposition of nodes by features for each power, and one of the graph.
    Choices: The plain space uses P = D^-1/2 A D^-1/2 and the features with rows of length 1; the expansion uses the
        chosen basis. The structure's columns count once, at every power.

    Args:
        order: The largest power.
        basis: The polynomials of the expanded space.
        structure_rank: Main directions of the graph in the expanded space; 0 leaves them out.
        tolerance: Singular values below this share of the largest count as zero.
    """

    when = "end"

    def __init__(self, order: Count = 8, basis: Basis = "gpr", structure_rank: Whole = 50, tolerance: Positive = 1e-3):
        self.order, self.basis, self.structure_rank, self.tolerance = order, basis, structure_rank, tolerance

    def look(self, run: Run) -> Finding:
        graph: Graph = run.offer.about["graph"]
        x = unit_rows(next(run.batches("train")).x)
        plain = self._blocks(graph, x, "gpr")
        expanded = [unit_columns(block) for block in self._blocks(graph, x, self.basis)]
        extra = [directions(graph, self.structure_rank).to(x)] if self.structure_rank else []
        orders = list(range(self.order + 1))
        spaces = {
            "plain": [torch.cat(plain[: k + 1], 1) for k in orders],
            "expanded": [torch.cat([*expanded[: k + 1], *extra], 1) for k in orders],
        }
        ranks = {name: [numerical_rank(s, self.tolerance) for s in each] for name, each in spaces.items()}
        cosines = {name: [cosine(s) for s in each] for name, each in spaces.items()}
        scalars = {f"rank/{name}": float(each[-1]) for name, each in ranks.items()}
        scalars |= {f"cosine/{name}": each[-1] for name, each in cosines.items()}
        decay = {name: spectrum(each[-1]).clamp_min(1e-17).tolist() for name, each in spaces.items()}
        figures = {
            "rank": curve("Numerical rank", *(line(n, orders, r) for n, r in ranks.items()), x="power", y="rank"),
            "cosine": curve(
                "Mean |cosine| of two columns", *(line(n, orders, c) for n, c in cosines.items()), x="power"
            ),
            "decay": curve(
                f"Singular values up to power {self.order}",
                *(line(name, list(range(1, len(values) + 1)), values) for name, values in decay.items()),
                x="number",
                y=axis("share of the largest", log=True),
            ),
        }
        return Finding(scalars, figures)

    def _blocks(self, graph: Graph, x: Tensor, basis: Basis) -> list[Tensor]:
        return blocks(Propagation(graph, "symmetric", basis == "self-loops").to(x.device), x, self.order, basis)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if task.offer.input != "nodes":
            return f"It looks at features under powers of a graph, and the task offers {task.offer.input} inputs."
        return None
