"""Graph operators against sums written out edge by edge, bases against polynomials of matrices."""

from __future__ import annotations

import math
from typing import Any

import networkx
import numpy as np
import pytest
import torch
from torch import Tensor

from engine.kit import graphs
from engine.kit.graphs import (
    Graph,
    Propagation,
    block_model,
    blocks,
    depth,
    directions,
    edge_weights,
    masked,
    preferential_attachment,
    structure,
    unit_columns,
    unit_rows,
)


def drawn(nodes: int = 12, seed: int = 0) -> Graph:
    """A random graph whose last node has no neighbours."""
    graph, _ = block_model([nodes - 1], 0.3, 0.0, torch.Generator().manual_seed(seed))
    return Graph.of(nodes, graph.edges)


def features(graph: Graph, width: int = 3) -> Tensor:
    return torch.randn((graph.nodes, width), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_graph_has_every_edge_twice_and_none_to_itself() -> None:
    graph = Graph.of(4, torch.tensor([[0, 1, 1, 2, 3], [1, 0, 2, 1, 3]]))
    assert set(map(tuple, graph.edges.T.tolist())) == {(0, 1), (1, 0), (1, 2), (2, 1)}
    assert torch.equal(graph.edges[:, graph.reverse], graph.edges.flip(0))
    assert graph.degrees.tolist() == [1, 2, 1, 0] and len(graph.pairs()) == 2
    assert torch.equal(graph.adjacency(), graph.adjacency().T) and graph.adjacency().sum() == 4


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("normalization", ["symmetric", "mean", "sum"])
@pytest.mark.parametrize("limit", [0, 2048])
def test_messages_are_sums_over_neighbours(normalization: Any, loops: bool, limit: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(graphs, "DENSE", limit)
    graph = drawn()
    x = features(graph)
    operator = Propagation(graph, normalization, loops)
    assert (operator.matrix is None) == (limit == 0)
    a = graph.adjacency().double() + loops * torch.eye(graph.nodes)
    mask = torch.rand(graph.edges.shape[1], generator=torch.Generator().manual_seed(3))
    for given in (None, mask):
        expected = torch.zeros_like(x)
        for i in range(graph.nodes):
            for j in range(graph.nodes):
                if a[i, j]:
                    di, dj = a[i].sum(), a[j].sum()
                    weight = {"symmetric": (di * dj) ** -0.5, "mean": 1 / di, "sum": torch.tensor(1.0)}[normalization]
                    if given is not None and i != j:
                        place = ((graph.edges[0] == j) & (graph.edges[1] == i)).nonzero().item()
                        weight = weight * given[int(place)]
                    expected[i] += weight * x[j]
        operator.edge_mask = given
        assert torch.allclose(operator(x), expected, atol=1e-6)
        assert loops or not expected[-1].any()


def test_the_symmetric_operator_is_that_of_networkx() -> None:
    club = networkx.karate_club_graph()
    graph = Graph.of(34, torch.tensor(list(club.edges)).T)
    operator = Propagation(graph)
    laplacian = networkx.normalized_laplacian_matrix(club, weight=None).toarray()
    assert operator.matrix is not None
    assert np.allclose(np.eye(34) - operator.matrix.numpy(), laplacian, atol=1e-6)


def test_a_mask_holds_within_its_context_and_for_every_operator() -> None:
    graph = drawn()
    x = features(graph).float()
    model = torch.nn.Sequential(Propagation(graph), torch.nn.Sequential(Propagation(graph, "sum")))
    before = model(x)
    ones, none = torch.ones(graph.edges.shape[1]), torch.zeros(graph.edges.shape[1])
    with masked(model, ones):
        assert torch.allclose(model(x), before, atol=1e-6)
        with masked(model, none):
            assert not model(x).any()
        assert torch.allclose(model(x), before, atol=1e-6)
    assert all(operator.edge_mask is None for operator in graphs.propagations(model))
    assert torch.equal(model(x), before) and depth(model, lambda: model(x)) == 2


def test_an_operator_is_no_state() -> None:
    operator = Propagation(drawn())
    assert not operator.state_dict() and not list(operator.parameters())


def test_a_sketch_without_numbers_has_the_right_shapes() -> None:
    graph = drawn()
    with torch.device("meta"):
        operator = Propagation(graph)
        assert operator(torch.zeros(12, 3)).shape == (12, 3)
    assert all(buffer.is_meta for buffer in operator.buffers())


def test_what_lies_within_some_hops() -> None:
    line = Graph.of(6, torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]))
    nodes, edges = line.within(1, 2)
    assert nodes.tolist() == [0, 1, 2, 3]
    assert {tuple(e) for e in line.edges[:, edges].T.tolist()} == {(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)}
    assert line.within(0, 0)[0].tolist() == [0]


def test_bases_are_polynomials_of_the_graph() -> None:
    graph = drawn()
    x = features(graph)
    operator = Propagation(graph)
    p = operator.matrix.double()  # type: ignore[union-attr]
    eye = torch.eye(graph.nodes, dtype=torch.float64)
    order = 4
    for k, block in enumerate(blocks(operator, x, order, "gpr")):
        assert torch.allclose(block, torch.linalg.matrix_power(p, k) @ x, atol=1e-9)
    values, vectors = torch.linalg.eigh(-p)
    for k, block in enumerate(blocks(operator, x, order, "chebyshev")):
        polynomial = vectors @ torch.diag(torch.cos(k * torch.arccos(values.clamp(-1, 1)))) @ vectors.T
        assert torch.allclose(block, polynomial @ x, atol=1e-6), k
    laplacian = eye - p
    found = blocks(operator, x, order, "bernstein")
    for k, block in enumerate(found):
        power = torch.linalg.matrix_power
        expected = math.comb(order, k) / 2**order * power(2 * eye - laplacian, order - k) @ power(laplacian, k) @ x
        assert torch.allclose(block, expected, atol=1e-9)
    assert torch.allclose(torch.stack(found).sum(0), x), "Bernstein polynomials sum to one"


def test_bases_of_one_order_span_one_space() -> None:
    graph = drawn(30)
    x = features(graph, 4)
    operator = Propagation(graph)
    operator.matrix = graph.adjacency(edge_weights(graph, "symmetric", False)[0].double())
    spaces = {basis: torch.cat(blocks(operator, x, 3, basis), 1) for basis in ("gpr", "chebyshev", "bernstein")}  # type: ignore[arg-type]
    ranks = {basis: int(torch.linalg.matrix_rank(space, rtol=1e-9)) for basis, space in spaces.items()}
    assert set(ranks.values()) == {16}
    both = torch.cat(list(spaces.values()), 1)
    assert int(torch.linalg.matrix_rank(both, rtol=1e-9)) == 16
    scaled = torch.cat([spaces["gpr"], *(unit_rows(b) for b in blocks(operator, x, 3, "chebyshev"))], 1)
    assert int(torch.linalg.matrix_rank(scaled, rtol=1e-9)) > 16, "rows that are scaled leave the space"


def test_the_structure_is_an_exact_decomposition_with_fixed_signs() -> None:
    graph = drawn()
    weight, _ = edge_weights(graph, "symmetric", False)
    laplacian = unit_rows(torch.eye(graph.nodes).double() - graph.adjacency(weight.double()))
    u, s = structure(graph, 5)
    assert torch.allclose(u.T @ u, torch.eye(5).double(), atol=1e-12)
    assert torch.allclose(laplacian @ laplacian.T @ u, u * s.square(), atol=1e-9)
    assert bool((u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all())
    assert torch.allclose(directions(graph, 5).norm(dim=0), torch.ones(5))


def test_directions_without_weight_stay_zero() -> None:
    """Two triangles: the Laplacian has rank 4, so two of its six directions mean nothing."""
    graph = Graph.of(6, torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 0, 4, 5, 3]]))
    assert directions(graph, 6).any(0).tolist() == [True] * 4 + [False] * 2
    assert not unit_columns(torch.zeros(3, 2)).any()


def test_groups_are_joined_as_often_as_asked() -> None:
    graph, group = block_model([100, 100], 0.3, 0.1, torch.Generator().manual_seed(0))
    inside = group[graph.edges[0]] == group[graph.edges[1]]
    assert float(inside.sum() / (2 * 2 * math.comb(100, 2))) == pytest.approx(0.3, abs=0.02)
    assert float((~inside).sum() / (2 * 100 * 100)) == pytest.approx(0.1, abs=0.01)


def test_attachment_gives_every_new_node_its_links_and_prefers_hubs() -> None:
    pairs = preferential_attachment(200, 3, torch.Generator().manual_seed(0))
    assert pairs.shape == (2, (200 - 3) * 3)
    new, counts = pairs[0].unique(return_counts=True)
    assert new.tolist() == list(range(3, 200)) and bool((counts == 3).all())
    assert bool((pairs[0] > pairs[1]).all()), "only nodes that are there are joined"
    degrees = Graph.of(200, pairs).degrees.float()
    assert degrees[:20].mean() > 3 * degrees[100:].mean()
