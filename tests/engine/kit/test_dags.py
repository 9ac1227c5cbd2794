"""Graphs without cycles: the repair, the distance, and random graphs."""

from __future__ import annotations

import networkx as nx
import pytest
import torch

from engine.figures import problems
from engine.kit.dags import acyclic, drawn, erdos_renyi, hamming, is_acyclic


def test_weak_edges_go_and_then_the_weakest_until_there_is_no_cycle() -> None:
    weights = torch.zeros(4, 4)
    weights[0, 1], weights[1, 2], weights[2, 0], weights[2, 3], weights[3, 0] = 1.0, -0.5, 0.8, 0.29, 0.9
    found = acyclic(weights, 0.3)
    expected = weights.clone()
    expected[1, 2] = expected[2, 3] = 0.0
    assert torch.equal(found, expected) and is_acyclic(found) and not is_acyclic(weights)
    assert torch.equal(acyclic(expected, 0.3), expected)


def test_a_turned_edge_counts_once() -> None:
    true, found = torch.zeros(4, 4), torch.zeros(4, 4)
    true[0, 1], true[1, 2], true[2, 3] = 1.0, 1.0, 1.0
    found[1, 0], found[1, 2], found[0, 3] = 2.0, -1.0, 1.0
    assert hamming(found, true) == 3  # one turned, one missing, one too many
    assert hamming(true, true) == 0


@pytest.mark.parametrize("seed", range(5))
def test_random_graphs_have_no_cycle_and_the_wanted_weights(seed: int) -> None:
    weights = erdos_renyi(20, 2.0, 0.5, 2.0, torch.Generator().manual_seed(seed))
    there = weights[weights != 0].abs()
    assert is_acyclic(weights) and float(there.min()) >= 0.5 and float(there.max()) <= 2.0
    assert not torch.equal(weights.triu(), weights), "the order of causes is not that of the nodes"


def test_random_graphs_have_the_wanted_number_of_edges() -> None:
    rng = torch.Generator().manual_seed(0)
    counts = [int((erdos_renyi(20, 2.0, 0.5, 2.0, rng) != 0).sum()) for _ in range(200)]
    assert sum(counts) / 200 == pytest.approx(40, abs=1.2)  # the mean's deviation is 0.4


def test_a_figure_puts_causes_before_effects() -> None:
    weights = erdos_renyi(12, 2.0, 0.5, 2.0, torch.Generator().manual_seed(0))
    figure = drawn(weights, weights, "graph")
    assert problems(figure) == []
    assert all(figure["nodes"][i]["x"] < figure["nodes"][j]["x"] for i, j, _ in figure["edges"])
    assert nx.DiGraph([edge[:2] for edge in figure["edges"]]).number_of_edges() == int((weights != 0).sum())
