"""Tasks that ask for some nodes of one graph: all nodes are one batch, and each split asks for its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.figures import graph as graph_figure
from engine.figures import layout, nodes_of
from engine.kit.graphs import Graph
from engine.kit.supervised import Supervised, seeded, split_indices
from engine.parts import Offer

HIDDEN = -100  # the label of a node that a split does not ask for; cross-entropy passes over it


class NodeClassification(Supervised):
    """Classes of nodes, of which a part is known. The model sees the features of all nodes and the graph.

    A subclass makes a graph in `load` and hands it to `divide`. Every split holds all nodes, a mask of those that it
    asks for, and no label of any other, so that nothing that is computed from a batch can leak into another split.
    Models find the graph in ``offer.about["graph"]``. Metadata "motif", where a graph has it, numbers the part of the
    graph that decides a node's class, from 1; 0 where nothing in particular does. The constructor raises ValueError
    where the shares leave nothing for the test.
    """

    stream = "whole"
    graph: Graph

    def __init__(
        self, features: int, classes: int, labelled: float, val: float = 0.2, outer: float = 0.0, split_seed: int = 0
    ):
        if 1 - labelled - val - outer < 1e-9:
            raise ValueError(
                f"{labelled:g} for training, {val:g} for validation and {outer:g} for tuning leave no node for the "
                "test. Lower one of these shares."
            )
        self.labelled, self.val, self.outer, self.split_seed = labelled, val, outer, split_seed
        self._about: dict[str, Any] = {}
        self.offer = Offer("nodes", (features,), "classes", classes, about=self._about)

    def divide(self, graph: Graph, x: Tensor, target: Tensor, meta: Mapping[str, Tensor] | None = None) -> None:
        """Keeps the graph and shares its nodes out, class by class: what is left is the test's."""
        self.graph = self._about["graph"] = graph
        self.target = target
        shares = {"val": self.val, "test": 1 - self.labelled - self.val - self.outer, "outer": self.outer}
        parts = split_indices(len(x), target, shares, seeded(self.split_seed))
        columns = {"x": x, **{f"meta.{name}": column for name, column in (meta or {}).items()}}
        self.splits = {}
        for name, index in parts.items():
            asked = torch.zeros(len(x), dtype=torch.bool).index_fill(0, index, True)
            self.splits[name] = {**columns, "target": torch.where(asked, target, HIDDEN), "mask": asked}

    def size(self, split: str) -> int:
        """Nodes that a split asks for."""
        columns = self.columns(split)
        return int(columns["mask"].sum()) if columns else 0

    def figure(self) -> dict[str, Any]:
        """The graph with its classes; the nodes whose labels are trained on are ringed."""
        pairs = self.graph.edges[:, self.graph.pairs()].T.tolist()
        places = layout(self.graph.nodes, pairs)
        known = self.splits["train"]["mask"].nonzero().flatten().tolist()
        return graph_figure("Graph", nodes_of(places, groups=self.target), pairs, marked=known)
