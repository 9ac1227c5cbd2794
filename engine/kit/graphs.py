"""Graphs as tensors, and the one operator by which models send messages along their edges.

    out_i = loop_i h_i + sum over edges j -> i of mask_ji weight_ji h_j

A model of the input "nodes" passes all that goes from node to node through `Propagation`. Then whoever wants to know
what an edge contributes can multiply its messages, in every layer at once and without changing the model (`masked`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.parts import Offer

Normalization = Literal["symmetric", "mean", "sum"]
Basis = Literal["gpr", "self-loops", "chebyshev", "bernstein"]
DENSE = 2048  # nodes up to which an operator is kept as a full matrix, which is faster and the same at every pass


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected graph: every edge stands in `edges` [2, E] twice, from source to target and back, none from a node
    to itself, in the order of their targets."""

    nodes: int
    edges: Tensor

    @classmethod
    def of(cls, nodes: int, pairs: Tensor) -> Graph:
        """The graph of these pairs [2, E]; directions, repetitions and loops do not count."""
        pairs = pairs[:, pairs[0] != pairs[1]]
        both = torch.cat([pairs, pairs.flip(0)], 1)
        keys = (both[1] * nodes + both[0]).unique()
        return cls(nodes, torch.stack([keys % nodes, keys.div(nodes, rounding_mode="floor")]))

    @cached_property
    def reverse(self) -> Tensor:
        """For each edge the place of the one that goes back."""
        there = self.edges[1] * self.nodes + self.edges[0]
        return torch.searchsorted(there, self.edges[0] * self.nodes + self.edges[1])

    @cached_property
    def degrees(self) -> Tensor:
        return self.edges[1].bincount(minlength=self.nodes)

    def pairs(self) -> Tensor:
        """The places [E / 2] of the edges that go from the smaller number to the larger: each edge once."""
        return (self.edges[0] < self.edges[1]).nonzero().flatten()

    def adjacency(self, values: Tensor | None = None) -> Tensor:
        """The full matrix A[target, source]: ones, or these values of the edges."""
        values = torch.ones(self.edges.shape[1]) if values is None else values
        empty = torch.zeros((self.nodes, self.nodes), dtype=values.dtype, device=values.device)
        edges = self.edges.to(values.device)
        return empty.index_put((edges[1], edges[0]), values)

    def within(self, node: int, hops: int) -> tuple[Tensor, Tensor]:
        """The nodes at most so many edges away from one, and the places of the edges between them."""
        near = torch.zeros(self.nodes, dtype=torch.bool)
        near[node] = True
        source, target = self.edges
        for _ in range(hops):
            near = near.index_fill(0, target[near[source]], True)
        return near.nonzero().flatten(), (near[source] & near[target]).nonzero().flatten()


def graph_of(offer: Offer) -> Graph:
    """The graph of a task. Raises ValueError, by which a model for graphs refuses any other."""
    if offer.input != "nodes":
        raise ValueError(
            f"It sends messages along the edges of a graph, and the task offers {offer.input} inputs. Choose a task "
            "whose samples are the nodes of a graph, or another model."
        )
    graph: Graph = offer.about["graph"]
    return graph


def edge_weights(graph: Graph, normalization: Normalization, self_loops: bool) -> tuple[Tensor, Tensor]:
    """The weight of each edge [E] and of each node's message to itself [N].

    symmetric: 1 / sqrt(d_i d_j), mean: 1 / d_i, sum: 1; d counts the loop where there is one. A node without
    neighbours gets nothing but its own loop.
    """
    degrees = graph.degrees.to(torch.float64) + self_loops
    if normalization == "sum":
        into = out = torch.ones(graph.nodes, dtype=torch.float64)
    elif normalization == "mean":
        into, out = degrees.reciprocal(), torch.ones(graph.nodes, dtype=torch.float64)
    else:
        into = out = degrees.rsqrt()
    into, out = (torch.where(degrees > 0, each, 0.0) for each in (into, out))
    source, target = graph.edges
    loop = into * out * self_loops
    kind = torch.get_default_dtype()
    return (into[target] * out[source]).to(kind), loop.to(kind)


class Propagation(nn.Module):
    """Sums what the neighbours of each node hold [N, F], weighted by the graph.

    `edge_mask` [E], where it is set, multiplies the messages: after the weights, whose degrees stay as they are, and
    without touching loops. What it learned from a graph is no state: whoever loads a checkpoint builds it again.
    """

    def __init__(self, graph: Graph, normalization: Normalization = "symmetric", self_loops: bool = False):
        super().__init__()
        self.graph = graph
        self.edge_mask: Tensor | None = None
        weight, loop = edge_weights(graph, normalization, self_loops)
        matrix = graph.adjacency(weight) + torch.diag(loop) if graph.nodes <= DENSE else None
        device = torch.get_default_device()  # where the rest of a model is made: also the one that holds no numbers
        for name, made in {"edges": graph.edges, "weight_of_edge": weight, "loop": loop, "matrix": matrix}.items():
            self.register_buffer(name, None if made is None else made.to(device), persistent=False)

    edges: Tensor
    weight_of_edge: Tensor
    loop: Tensor
    matrix: Tensor | None

    def _matrix(self, values: Tensor) -> Tensor:
        return self.graph.adjacency(values) + torch.diag(self.loop)

    def forward(self, h: Tensor) -> Tensor:
        if self.edge_mask is None and self.matrix is not None:
            return self.matrix.to(h.dtype) @ h
        values = self.weight_of_edge if self.edge_mask is None else self.weight_of_edge * self.edge_mask
        if self.matrix is not None:
            return self._matrix(values).to(h.dtype) @ h
        messages = values.to(h.dtype).unsqueeze(1) * h[self.edges[0]]
        return (self.loop.to(h.dtype).unsqueeze(1) * h).index_add(0, self.edges[1], messages)


def propagations(model: nn.Module) -> list[Propagation]:
    """The operators through which a model sends its messages."""
    return [module for module in model.modules() if isinstance(module, Propagation)]


@contextmanager
def masked(model: nn.Module, mask: Tensor) -> Iterator[None]:
    """Within the context every message of the model is multiplied by its edge's entry of the mask [E]."""
    operators = propagations(model)
    before = [operator.edge_mask for operator in operators]
    try:
        for operator in operators:
            operator.edge_mask = mask
        yield
    finally:
        for operator, kept in zip(operators, before, strict=True):
            operator.edge_mask = kept


def depth(model: nn.Module, call: Callable[[], object]) -> int:
    """How often a pass sends messages: no more edges than this lie between a node and what its answer depends on."""
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    hooks = [operator.register_forward_hook(count) for operator in propagations(model)]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return passes


# -- feature spaces ----------------------------------------------------------------------------------------------------


def blocks(propagate: nn.Module, x: Tensor, order: int, basis: Basis) -> list[Tensor]:
    """The features under polynomials of the graph, order + 1 blocks [N, F].

    gpr, self-loops: x, P x, ..., P^K x;   chebyshev: T_k of L - I = -P;   bernstein: C(K, k) 2^-K (2 - L)^(K - k) L^k x
    """
    if basis == "chebyshev":
        return _chebyshev(propagate, x, order)
    if basis == "bernstein":
        return _bernstein(propagate, x, order)
    found = [x]
    for _ in range(order):
        found.append(propagate(found[-1]))
    return found


def _chebyshev(propagate: nn.Module, x: Tensor, order: int) -> list[Tensor]:
    found = [x]
    for k in range(order):
        following = -propagate(found[-1])
        found.append(following if k == 0 else 2 * following - found[-2])
    return found


def _bernstein(propagate: nn.Module, x: Tensor, order: int) -> list[Tensor]:
    powers = [x]
    for _ in range(order):
        powers.append(powers[-1] - propagate(powers[-1]))  # L = 1 - P
    found = []
    for k, h in enumerate(powers):
        for _ in range(order - k):
            h = h + propagate(h)  # 2 - L = 1 + P
        found.append(h * (math.comb(order, k) / 2**order))
    return found


def structure(graph: Graph, rank: int) -> tuple[Tensor, Tensor]:
    """The first left singular vectors [N, r] and values [r] of the row-normalized normalized Laplacian, in float64.

    Each vector's largest entry is positive: a decomposition alone leaves the signs open. Values that are zero but for
    rounding are zero.
    """
    weight, _ = edge_weights(graph, "symmetric", self_loops=False)
    laplacian = torch.eye(graph.nodes, dtype=torch.float64) - graph.adjacency(weight.double())
    u, s, _ = torch.linalg.svd(F.normalize(laplacian, dim=1))
    u, s = u[:, :rank], s[:rank]
    largest = u.gather(0, u.abs().argmax(0, keepdim=True))
    return u * largest.sign(), torch.where(s > s[0] * graph.nodes * torch.finfo(s.dtype).eps, s, 0.0)


def directions(graph: Graph, rank: int) -> Tensor:
    """The structure of a graph as features [N, r]: its singular vectors, those with the value zero as zeros."""
    u, s = structure(graph, rank)
    return unit_columns(u * s).to(torch.get_default_dtype())


def unit_columns(x: Tensor) -> Tensor:
    """Columns of length 1; those that are zero stay zero."""
    return F.normalize(x, dim=0)


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length 1; those that are zero stay zero."""
    return F.normalize(x, dim=-1)


# -- graphs that are made ----------------------------------------------------------------------------------------------


def block_model(sizes: Iterable[int], inside: float, outside: float, rng: torch.Generator) -> tuple[Graph, Tensor]:
    """A random graph of groups, and each node's group: two nodes are joined with one probability inside a group and
    with another between two of them."""
    group = torch.cat([torch.full((size,), k) for k, size in enumerate(sizes)])
    n = len(group)
    chance = torch.where(group[:, None] == group[None, :], inside, outside)
    drawn = torch.rand((n, n), generator=rng) < chance
    return Graph.of(n, drawn.triu(1).nonzero().T), group


def preferential_attachment(nodes: int, links: int, rng: torch.Generator) -> Tensor:
    """The pairs [2, E] of a Barabasi-Albert graph: every new node is joined to some that are there, with a probability
    that grows with their degree. The first `links` nodes begin without edges, the next one is joined to all of them."""
    pairs: list[tuple[int, int]] = []
    ends: list[int] = []  # every node as often as it has edges
    targets = list(range(links))
    for node in range(links, nodes):
        pairs += [(node, target) for target in targets]
        ends += targets + [node] * links
        chosen: set[int] = set()
        while len(chosen) < links:
            chosen.add(ends[int(torch.randint(len(ends), (1,), generator=rng))])
        targets = sorted(chosen)
    return torch.tensor(pairs).T
