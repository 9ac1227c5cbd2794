"""A linear network on an expanded feature space of a graph."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.fields import Count, Whole
from engine.kit.anatomy import Anatomy, example_input
from engine.kit.graphs import Basis, Propagation, blocks, directions, graph_of, unit_columns, unit_rows
from engine.parts import Model, Offer, model

Order = Annotated[int, Field(ge=0, le=16)]


@model(
    id="fe-gnn",
    name="FE-GNN",
    paper="Feature Expansion for Graph Neural Networks",
    arxiv="2305.06142",
    graph="never",
    recommends={
        "optimizer": {"use": "adamw", "lr": 0.01, "weight_decay": 5e-4},
        "budget": {"epochs": 200},
    },
    example={"task": {"use": "karate-club"}, "model": {"use": "fe-gnn", "structure_rank": 8, "hidden": 8}},
)
class FEGNN(Model):
    """Answers linearly from an expanded feature space: the features under several powers of the graph, each with
    weights of its own, and the main directions of the graph itself. Nothing in it is nonlinear.

        H = sum_k Phi_k W_k + S W_s + X W_x + biases;   answer = H W + b
        Phi_k = P^k X, or another polynomial of the graph;   S = Q_r Sigma_r of the normalized Laplacian's SVD
        P = D^-1/2 A D^-1/2;   X with rows of length 1, then every block with columns of length 1

    Helps: Graphs whose neighbours are of other classes, where shared weights for all powers cannot tell them apart.
    Hurts: On a graph whose neighbours are alike it stayed about 5 points behind a graph convolutional network, and
        about 14 with the graph's directions: they give a small training set more to be misled by.
    Cost: The blocks are computed once, so a step is a few products of nodes by features.
    Choices: Chebyshev and Bernstein blocks are those of the textbook, K + 1 of each. Columns that are zero stay zero.
        Singular vectors have their largest entry positive, and are saved with the weights that belong to them. An edge
        mask acts on the blocks, not on the graph's directions.

    Args:
        order: The largest power K of the graph.
        basis: The polynomials: powers of P, powers with self-loops, Chebyshev, or Bernstein.
        structure_rank: Main directions of the graph beside the features; 0 leaves them out.
        hidden: Numbers that all blocks are mapped to.
        share_weights: Whether all blocks share one matrix, each with a factor of its own, as in ordinary networks.
        raw_block: Whether the features without the graph have a block with weights of their own.
        normalize: Whether rows of the features and columns of the blocks are scaled to length 1.

    Raises:
        ValueError: For a task that is no graph.
    """

    inputs = ("nodes",)
    outputs = ("classes", "values")

    def __init__(
        self,
        offer: Offer,
        order: Order = 3,
        basis: Basis = "gpr",
        structure_rank: Whole = 50,
        hidden: Count = 64,
        share_weights: bool = False,
        raw_block: bool = True,
        normalize: bool = True,
    ):
        super().__init__()
        graph = graph_of(offer)
        self._offer, self.order, self.basis, self.normalize = offer, order, basis, normalize
        self.propagate = Propagation(graph, "symmetric", self_loops=basis == "self-loops")
        self.blocks = nn.ModuleList(nn.Linear(offer.features, hidden) for _ in range(1 if share_weights else order + 1))
        self.theta = nn.Parameter(torch.ones(order + 1)) if share_weights else None
        self.raw = nn.Linear(offer.features, hidden) if raw_block else None
        rank = min(structure_rank, graph.nodes)
        self.structure = nn.Linear(rank, hidden) if rank else None
        self.head = nn.Linear(hidden, offer.size)
        self.mixed = nn.Identity()  # what the head takes
        if rank:
            self.register_buffer("directions", directions(graph, rank))
        self._kept: tuple[Tensor, int, list[Tensor]] | None = None

    directions: Tensor

    def forward(self, x: Tensor) -> Tensor:
        spaces = self.spaces(x)
        if self.theta is None:
            h = torch.stack([linear(space) for linear, space in zip(self.blocks, spaces, strict=True)]).sum(0)
        else:
            h = self.blocks[0](torch.einsum("k,knf->nf", self.theta, torch.stack(spaces)))
        if self.structure is not None:
            h = h + self.structure(self.directions)
        if self.raw is not None:
            h = h + self.raw(unit_columns(unit_rows(x)) if self.normalize else x)
        return self.head(self.mixed(h))

    def spaces(self, x: Tensor) -> list[Tensor]:
        """The blocks of the features under the graph [N, F], order + 1 of them; those of the same features are kept."""
        fixed = self.propagate.edge_mask is None and not x.requires_grad and not torch.compiler.is_compiling()
        if not fixed or type(x) is not Tensor or x.is_meta:
            return self._spaces(x)
        if self._kept is None or not _same(x, *self._kept[:2]):
            self._kept = x, x._version, self._spaces(x)
        return self._kept[2]

    def _spaces(self, x: Tensor) -> list[Tensor]:
        found = blocks(self.propagate, unit_rows(x) if self.normalize else x, self.order, self.basis)
        return [unit_columns(block) for block in found] if self.normalize else found

    def anatomy(self) -> Anatomy:
        return Anatomy(
            self,
            stem=None,
            blocks=list(self.blocks),
            features=self.mixed,
            head=self.head,
            example=example_input(self._offer),
        )


def _same(x: Tensor, kept: Tensor, version: int) -> bool:
    """Whether a tensor is the one that was kept, seen again: the same memory, in which nothing was written since."""
    if kept._version != version or x.shape != kept.shape or x.dtype != kept.dtype or x.device != kept.device:
        return False
    return x.data_ptr() == kept.data_ptr() and x.stride() == kept.stride()
