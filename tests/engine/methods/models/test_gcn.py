"""GCN against its formula with full matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from engine.kit.graphs import Graph, block_model, propagations
from engine.methods.models.gcn import GCN
from engine.parts import Offer

GRAPH = Graph.of(21, block_model([20], 0.3, 0.0, torch.Generator().manual_seed(0))[0].edges)
OFFER = Offer("nodes", (5,), "classes", 3, about={"graph": GRAPH})
X = torch.randn((21, 5), generator=torch.Generator().manual_seed(1))
A = GRAPH.adjacency()


def weights(model: GCN) -> list[tuple[torch.Tensor, torch.Tensor]]:
    blocks: Any = model.blocks
    return [(block.linear.weight, block.linear.bias) for block in blocks]


def test_it_is_the_formula_of_two_layers() -> None:
    model = GCN(OFFER, hidden=[7])
    hat = A + torch.eye(21)
    root = hat.sum(1).rsqrt()
    p = root[:, None] * hat * root[None, :]
    ((w, b),) = weights(model)
    hidden = F.relu(p @ (X @ w.T) + b)
    expected = p @ (hidden @ model.head.weight.T) + model.head.bias
    assert torch.allclose(model(X), expected, atol=1e-5), "the graph before or after the weights is the same"


def test_the_other_form_sums_scales_and_reads_all_layers() -> None:
    model = GCN(OFFER, hidden=[4, 6], adjacency="sum", self_loops=False, unit=True, answer="concatenated")
    held, found = X, []
    for w, b in weights(model):
        z = A @ held @ w.T + b
        held = F.relu(z / z.norm(dim=1, keepdim=True))
        found.append(held)
    expected = torch.cat(found, 1) @ model.head.weight.T + model.head.bias
    assert torch.allclose(model(X), expected, atol=1e-5)


def test_one_operator_carries_every_message() -> None:
    assert len(propagations(GCN(OFFER, hidden=[4, 4, 4]))) == 1


def test_another_order_of_the_nodes_is_another_order_of_the_answers() -> None:
    order = torch.randperm(21, generator=torch.Generator().manual_seed(2))
    place = order.argsort()
    other = GCN(Offer("nodes", (5,), "classes", 3, about={"graph": Graph.of(21, place[GRAPH.edges])}), hidden=[7, 7])
    model = GCN(OFFER, hidden=[7, 7])
    other.load_state_dict(model.state_dict())
    assert torch.allclose(other(X[order]), model(X)[order], atol=1e-5)


def test_anatomy_and_refusals() -> None:
    model = GCN(OFFER, hidden=[4, 4])
    found = model.anatomy()
    assert found.head is model.head and [site.path for site in found.sites("linear")][-1] == "head"
    assert found.sites("linear")[0].shape == (4,)
    with pytest.raises(ValueError, match="offers vector inputs"):
        GCN(Offer("vector", (2,), "classes", 2))
    with pytest.raises(ValueError, match="no hidden layer"):
        GCN(OFFER, hidden=[], answer="concatenated")
