"""Directed graphs without cycles, as matrices of weights: W_ij is the edge from i to j."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine import figures
from engine.parts import Figure

if TYPE_CHECKING:
    import networkx


def is_acyclic(weights: Tensor) -> bool:
    import networkx

    return networkx.is_directed_acyclic_graph(_graph(weights))


def _graph(weights: Tensor) -> networkx.DiGraph:
    import networkx

    graph = networkx.DiGraph()
    graph.add_nodes_from(range(len(weights)))
    graph.add_edges_from(weights.nonzero().tolist())
    return graph


def acyclic(weights: Tensor, threshold: float) -> Tensor:
    """Only the weights that are not below the threshold; where they have a cycle, the smallest of them go, one after
    the other, until none has."""
    kept = torch.where(weights.abs() < threshold, 0.0, weights)
    order = kept.abs().flatten().argsort()
    for place in order[kept.flatten()[order] != 0].tolist():
        if is_acyclic(kept):
            break
        kept.view(-1)[place] = 0.0
    return kept


def hamming(found: Tensor, true: Tensor) -> int:
    """The edges that must be added, removed or turned around to come from one graph to the other."""
    a, b = found != 0, true != 0
    either = (a != b) | (a != b).T
    return int(either.triu().sum())


def erdos_renyi(nodes: int, edges: float, low: float, high: float, rng: torch.Generator) -> Tensor:
    """A random graph with that many edges a node on average, in a random order of the nodes, its weights uniform in
    [low, high] with random signs."""
    share = min(2 * edges / max(nodes - 1, 1), 1.0)
    there = (torch.rand(nodes, nodes, generator=rng, dtype=torch.float64) < share).triu(1)
    size = low + (high - low) * torch.rand(nodes, nodes, generator=rng, dtype=torch.float64)
    sign = torch.randint(0, 2, (nodes, nodes), generator=rng) * 2 - 1
    order = torch.randperm(nodes, generator=rng)
    return (there * size * sign)[order][:, order]


def drawn(weights: Tensor, like: Tensor, title: str) -> Figure:
    """The graph as a figure; nodes stand where the other graph's order of causes puts them, from left to right."""
    import networkx

    generations = list(networkx.topological_generations(_graph(like)))
    places = {node: (x, y - (len(row) - 1) / 2) for x, row in enumerate(generations) for y, node in enumerate(row)}
    at = [places[i] for i in range(len(weights))]
    nodes = figures.nodes_of([[x, y + 0.15 * (x % 2)] for x, y in at], labels=[str(i) for i in range(len(at))])
    edges = [[i, j, float(weights[i, j])] for i, j in weights.nonzero().tolist()]
    return figures.graph(title, nodes, edges, directed=True, equal=False)
