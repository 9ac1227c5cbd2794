"""Graph convolutional networks."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from engine.fields import Decay, Widths
from engine.kit.anatomy import Anatomy, example_input
from engine.kit.graphs import Propagation, graph_of, unit_rows
from engine.parts import Model, Offer, model


class GraphConvolution(nn.Module):
    """One layer: what the neighbours hold, summed, then a linear layer, and if wanted a length of 1 for each node."""

    def __init__(self, propagate: Propagation, inputs: int, outputs: int, unit: bool, dropout: float):
        super().__init__()
        self.propagate, self.unit = propagate, unit
        self.dropout = nn.Dropout(dropout)
        self.linear, self.activation = nn.Linear(inputs, outputs), nn.ReLU()

    def forward(self, h: Tensor) -> Tensor:
        h = self.linear(self.propagate(self.dropout(h)))
        return self.activation(unit_rows(h) if self.unit else h)


@model(
    id="gcn",
    name="Graph convolutional network",
    paper="Semi-Supervised Classification with Graph Convolutional Networks",
    arxiv="1609.02907",
    recommends={
        "optimizer": {"use": "adamw", "lr": 0.01, "weight_decay": 5e-4},
        "budget": {"epochs": 200},
    },
    example={"task": {"use": "karate-club"}},
)
class GCN(Model):
    """Mixes the features of each node with those of its neighbours, layer after layer, and answers for every node. The
    plainest network for graphs, and what others are measured against.

        h_0 = x;   h_k = relu(P h_(k-1) W_k + b_k);   answer = P h_n W + b
        P = D^-1/2 (A + I) D^-1/2;   concatenated: answer = [h_1, ..., h_n] W + b

    Helps: Graphs whose neighbours are mostly of one class, with few labels.
    Hurts: Where neighbours are mostly of other classes it blurs what tells them apart; so do many layers.
    Cost: A product with the graph's matrix for each layer.
    Choices: The graph acts before the weights of a layer, which is the same as after them but for the cost. Messages go
        through the shared operator, so that an edge mask can multiply them; loops are left out of the mask.

    Args:
        hidden: Width of each hidden layer.
        adjacency: How neighbours are summed: divided by the roots of both degrees, their mean, or their plain sum.
        self_loops: Whether a node counts among its own neighbours.
        unit: Whether what each layer holds of a node is scaled to length 1, before its nonlinearity.
        answer: Whether the answer is one more convolution, or reads all layers at once.
        dropout: Share of what enters each layer that is silenced at random in training.

    Raises:
        ValueError: For a task that is no graph, or no hidden layer to read the answer from.
    """

    inputs = ("nodes",)
    outputs = ("classes", "values")

    def __init__(
        self,
        offer: Offer,
        hidden: Widths = [64],  # noqa: B006 - the default is shown in the form; it is never changed
        adjacency: Literal["symmetric", "mean", "sum"] = "symmetric",
        self_loops: bool = True,
        unit: bool = False,
        answer: Literal["convolution", "concatenated"] = "convolution",
        dropout: Decay = 0.0,
    ):
        super().__init__()
        if not hidden and answer == "concatenated":
            raise ValueError("There is no hidden layer to read the answer from; write a width, such as hidden = [64].")
        self._offer, self._concatenated = offer, answer == "concatenated"
        self.propagate = Propagation(graph_of(offer), adjacency, self_loops)
        widths = [offer.features, *hidden]
        self.blocks = nn.ModuleList(GraphConvolution(self.propagate, i, o, unit, dropout) for i, o in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(sum(hidden) if self._concatenated else widths[-1], offer.size)

    def forward(self, x: Tensor) -> Tensor:
        held = [x]
        for block in self.blocks:
            held.append(block(held[-1]))
        read = torch.cat(held[1:], 1) if self._concatenated else self.propagate(held[-1])
        return self.head(self.dropout(read))

    def anatomy(self) -> Anatomy:
        example = example_input(self._offer)
        return Anatomy(
            self, stem=None, blocks=list(self.blocks), features=self.dropout, head=self.head, example=example
        )
