"""Graphs whose nodes have classes, of which some are known."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from engine.fields import Count, Fraction, NonNegative, Whole
from engine.kit.graphs import Graph, block_model, preferential_attachment
from engine.kit.nodes import NodeClassification
from engine.kit.supervised import seeded
from engine.parts import task

Share = Annotated[float, Field(gt=0, lt=1)]
Kept = Annotated[float, Field(ge=0, le=0.5)]


@task(name="Block graph", packages=("networkx",), example={"model": {"use": "gcn"}})
class BlockGraph(NodeClassification):
    """Tells the groups of a random graph apart, from noisy features and from who is joined to whom. Neighbours are
    mostly alike, or mostly different: which of the two decides what a model for graphs is worth.

        x_i = mean of its class + N(0, 1);   means ~ N(0, spread^2)
        P(i joined to j) = inside for one class, outside for two

    Helps: Seeing whether a model for graphs uses the neighbours, also where they are of other classes.
    Hurts: Real graphs have hubs, loops and edges that mean different things; this one has none of it.
    Cost: None to speak of: a pass over 300 nodes takes less than a millisecond.

    Choices: Classes are as large as each other. With inside above outside the graph is homophilous, with inside below
        it heterophilous. Every split sees all nodes and edges, and the labels of its own nodes alone.

    Args:
        nodes: Nodes in all.
        classes: Groups of nodes.
        features: Numbers that each node has.
        spread: Standard deviation of the class means; the noise around them has 1.
        inside: Probability of an edge between two nodes of one class.
        outside: Probability of an edge between two nodes of different classes.
        labelled: Share of the nodes whose labels are trained on.
        val: Share of the nodes for validation; what is left is for the test.
        graph_seed: Seed of the graph and its features.
        split_seed: Seed of the splits.
        outer: Share of the nodes kept apart for tuning hyperparameters inside a run.

    Raises:
        ValueError: Where the shares leave nothing for the test.
    """

    def __init__(
        self,
        nodes: Annotated[int, Field(ge=10)] = 300,
        classes: Annotated[int, Field(ge=2)] = 3,
        features: Count = 16,
        spread: NonNegative = 0.35,
        inside: Fraction = 0.08,
        outside: Fraction = 0.02,
        labelled: Share = 0.2,
        val: Kept = 0.2,
        graph_seed: Whole = 0,
        split_seed: Whole = 0,
        outer: Kept = 0.0,
    ):
        super().__init__(features, classes, labelled, val, outer, split_seed)
        self.nodes, self.classes, self.features, self.spread = nodes, classes, features, spread
        self.inside, self.outside, self.graph_seed = inside, outside, graph_seed

    def load(self) -> None:
        rng = seeded(self.graph_seed)
        sizes = [self.nodes // self.classes + (k < self.nodes % self.classes) for k in range(self.classes)]
        graph, group = block_model(sizes, self.inside, self.outside, rng)
        means = self.spread * torch.randn((self.classes, self.features), generator=rng)
        x = means[group] + torch.randn((self.nodes, self.features), generator=rng)
        self.divide(graph, x, group)


@task(name="Karate club", packages=("networkx",), example={"model": {"use": "gcn"}})
class KarateClub(NodeClassification):
    """Tells which side each of the 34 members of a karate club took when it split, from who was friends with whom. The
    smallest graph that everybody knows; its nodes have no features but themselves.

        x_i = the i-th unit vector;   y_i = the club that member i joined

    Helps: Looking at a graph model on a graph that fits a page.
    Hurts: As a measurement: it has a handful of test nodes.
    Cost: None to speak of.

    Choices: Every split sees all nodes and edges, and the labels of its own nodes alone.

    Args:
        labelled: Share of the members whose side is trained on.
        val: Share of the members for validation; what is left is for the test.
        split_seed: Seed of the splits.
        outer: Share of the members kept apart for tuning hyperparameters inside a run.

    Raises:
        ValueError: Where the shares leave nothing for the test.
    """

    def __init__(self, labelled: Share = 0.2, val: Kept = 0.2, split_seed: Whole = 0, outer: Kept = 0.0):
        super().__init__(34, 2, labelled, val, outer, split_seed)

    def load(self) -> None:
        import networkx

        club = networkx.karate_club_graph()
        graph = Graph.of(len(club), torch.tensor(list(club.edges)).T)
        side = torch.tensor([club.nodes[i]["club"] == "Officer" for i in range(len(club))]).long()
        self.divide(graph, torch.eye(len(club)), side)


HOUSE = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 0), (4, 1))  # four walls, and a roof over the first of them
ROLES = (1, 1, 2, 2, 3)  # under the roof, on the ground, the top; 0 is a node of no house


@task(name="House graph", packages=("networkx",), example={"model": {"use": "gcn"}})
class HouseGraph(NodeClassification):
    """Tells what part of a small house each node of a graph is, or that it is part of none. Houses of five nodes hang
    on a random graph; nodes have no features that help, so a model has to see the shape around a node.

        random graph: every new node joins `links` others, in proportion to their degrees
        houses: 5 nodes and 6 edges, each hung on the graph by one edge;  plus noise * edges that join nodes at random

    Helps: Asking a model which edges its answer stands on: here the right ones are known.
    Hurts: As a measure of accuracy: degrees alone tell most of it.
    Cost: None to speak of.

    Choices: The graph grows by preferential attachment, as of Barabasi and Albert. Houses hang on nodes of it at even
        distances in the order of their age. The metadata motif numbers the houses. All features are 1.

    Args:
        base: Nodes of the random graph.
        links: Edges of each of its new nodes.
        houses: Houses that hang on it.
        noise: Random edges, as a share of all others.
        features: Numbers that each node has, all of them 1.
        labelled: Share of the nodes whose labels are trained on.
        val: Share of the nodes for validation; what is left is for the test.
        graph_seed: Seed of the graph.
        split_seed: Seed of the splits.
        outer: Share of the nodes kept apart for tuning hyperparameters inside a run.

    Raises:
        ValueError: Where the shares leave nothing for the test, or there are not more nodes than links or houses.
    """

    def __init__(
        self,
        base: Count = 150,
        links: Count = 5,
        houses: Count = 30,
        noise: Fraction = 0.1,
        features: Count = 10,
        labelled: Share = 0.8,
        val: Kept = 0.1,
        graph_seed: Whole = 0,
        split_seed: Whole = 0,
        outer: Kept = 0.0,
    ):
        super().__init__(features, 4, labelled, val, outer, split_seed)
        if base <= links or base < houses:
            raise ValueError(
                f"{base} nodes are too few for {links} links of each and {houses} houses; write a larger base."
            )
        self.base, self.links, self.houses, self.noise, self.features = base, links, houses, noise, features
        self.graph_seed = graph_seed

    def load(self) -> None:
        rng = seeded(self.graph_seed)
        n = self.base + 5 * self.houses
        number = torch.arange(self.houses)
        first = self.base + 5 * number
        walls = (first.view(-1, 1, 1) + torch.tensor(HOUSE)).view(-1, 2).T
        hung = torch.stack([first, number * (self.base // self.houses)])
        pairs = torch.cat([preferential_attachment(self.base, self.links, rng), walls, hung], 1)
        pairs = torch.cat([pairs, self._noise(n, pairs, rng)], 1)
        target = torch.cat([torch.zeros(self.base, dtype=torch.long), torch.tensor(ROLES).repeat(self.houses)])
        motif = torch.cat([torch.zeros(self.base, dtype=torch.long), (number + 1).repeat_interleave(5)])
        x = torch.ones((n, self.features))
        self.divide(Graph.of(n, pairs), x, target, meta={"motif": motif})

    def _noise(self, nodes: int, pairs: Tensor, rng: torch.Generator) -> Tensor:
        """Pairs [2, E] that are not joined yet, drawn at random."""
        joined = Graph.of(nodes, pairs).adjacency() + torch.eye(nodes)
        free = (joined == 0).triu(1).nonzero()
        count = round(self.noise * pairs.shape[1])
        return free[torch.randperm(len(free), generator=rng)[:count]].T
