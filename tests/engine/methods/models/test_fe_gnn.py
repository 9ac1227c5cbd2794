"""FE-GNN against linear GPR-GNN and the formula of its blocks; what is kept between passes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from engine.kit.graphs import Graph, block_model, directions, masked, unit_columns, unit_rows
from engine.methods.models.fe_gnn import FEGNN
from engine.parts import Offer
from tests.engine.methods.short import ready, train

GRAPH = Graph.of(31, block_model([15, 15], 0.3, 0.1, torch.Generator().manual_seed(0))[0].edges)
OFFER = Offer("nodes", (5,), "classes", 3, about={"graph": GRAPH})
X = torch.randn((31, 5), generator=torch.Generator().manual_seed(1))
P = torch.linalg.matrix_power


def matrix() -> torch.Tensor:
    root = GRAPH.degrees.double().rsqrt().nan_to_num(posinf=0.0)
    return root[:, None] * GRAPH.adjacency().double() * root[None, :]


@torch.no_grad()
def plain(normalize: bool = False) -> tuple[FEGNN, torch.Tensor]:
    """A network whose blocks are theta_k W, and what linear GPR-GNN answers with the same theta and W."""
    model: Any = FEGNN(OFFER, structure_rank=0, raw_block=False, normalize=normalize, hidden=7).double()
    theta = [0.5, -1.0, 2.0, 0.3]
    w = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for factor, block in zip(theta, model.blocks, strict=True):
        block.weight.copy_(factor * w)
        block.bias.zero_()
    mixed = sum(factor * P(matrix(), k) for k, factor in enumerate(theta)) @ X.double() @ w.T
    return model, mixed @ model.head.weight.T + model.head.bias


def test_with_one_matrix_for_all_it_is_linear_gpr_gnn() -> None:
    model, expected = plain()
    assert torch.allclose(model(X.double()), expected, atol=1e-6)
    scaled, _ = plain(normalize=True)
    scaled.load_state_dict(model.state_dict())
    assert not torch.allclose(scaled(X.double()), expected, atol=1e-2), "scaled columns are another space"


def test_shared_weights_are_the_same_network_with_fewer_numbers() -> None:
    model, expected = plain()
    shared: Any = FEGNN(OFFER, structure_rank=0, raw_block=False, normalize=False, hidden=7, share_weights=True)
    shared = shared.double()
    with torch.no_grad():
        shared.theta.copy_(torch.tensor([0.5, -1.0, 2.0, 0.3]))
        shared.blocks[0].weight.copy_(model.blocks[0].weight / 0.5)  # type: ignore[union-attr, operator]
        shared.blocks[0].bias.zero_()
        shared.head.load_state_dict(model.head.state_dict())
    assert torch.allclose(shared(X.double()), expected, atol=1e-6)
    assert len(shared.blocks) == 1


@pytest.mark.parametrize("basis", ["gpr", "self-loops", "chebyshev", "bernstein"])
def test_columns_have_length_one(basis: Any) -> None:
    model = FEGNN(OFFER, order=3, basis=basis, structure_rank=6)
    x = torch.cat([X[:, :4], torch.zeros(31, 1)], 1)
    spaces = model.spaces(x)
    assert len(spaces) == 4
    expected = torch.tensor([1.0] * 4 + [0.0])
    for space in spaces:
        assert torch.allclose(space.norm(dim=0), expected, atol=1e-5), "and a column of zeros stays one"
    assert torch.allclose(model.directions.norm(dim=0), torch.ones(6), atol=1e-5)


def test_the_answer_is_the_sum_of_its_blocks() -> None:
    model: Any = FEGNN(OFFER, order=2, structure_rank=6)
    x = unit_rows(X).double()
    h = model.raw(unit_columns(x).float()) + model.structure(directions(GRAPH, 6))
    for k, block in enumerate(model.blocks):
        h = h + block(unit_columns(P(matrix(), k) @ x).float())
    assert torch.allclose(model(X), model.head(h), atol=1e-5)


def test_another_order_of_the_nodes_is_another_order_of_the_answers() -> None:
    order = torch.randperm(31, generator=torch.Generator().manual_seed(2))
    turned = Graph.of(31, order.argsort()[GRAPH.edges])
    for rank in (0, 8):
        model = FEGNN(OFFER, structure_rank=rank)
        other = FEGNN(Offer("nodes", (5,), "classes", 3, about={"graph": turned}), structure_rank=rank)
        state = dict(model.state_dict())
        if rank:  # the same directions, in the new order of the nodes
            state["directions"] = state["directions"][order]
        other.load_state_dict(state)
        assert torch.allclose(other(X[order]), model(X)[order], atol=1e-5)


def test_blocks_are_computed_once_and_never_stale() -> None:
    model = FEGNN(OFFER, structure_rank=0)
    x = X.clone()
    first = model.spaces(x)
    for one, other in pairwise([first, model.spaces(x), model.spaces(x[:])]):
        assert all(a is b for a, b in zip(one, other, strict=True)), "a view of the same memory is the same"
    x.mul_(torch.arange(31.0).unsqueeze(1))
    fresh = FEGNN(OFFER, structure_rank=0)
    for one, other in zip(model.spaces(x), fresh.spaces(x), strict=True):
        assert torch.equal(one, other), "what was written into is computed again"
    with masked(model, torch.zeros(GRAPH.edges.shape[1])):
        assert not model.spaces(x)[1].any(), "and so is what a mask changes"
    assert model.spaces(x)[1].any()
    leaf = X.clone().requires_grad_()
    assert torch.autograd.grad(model(leaf).sum(), leaf)[0].any(), "features may be differentiated by"


def test_a_loaded_network_keeps_the_directions_that_it_learned_with() -> None:
    run, _, _ = train(
        task={"use": "block-graph", "nodes": 60},
        model={"use": "fe-gnn", "structure_rank": 10, "hidden": 8},
        budget={"steps": 3},
    )
    state = run.model.state_dict()
    assert "directions" in state and not any("matrix" in name for name in state)


def test_unshared_weights_are_better_where_neighbours_are_of_other_classes() -> None:
    accuracy = {}
    for shared in (False, True):
        _, _, outcome = train(
            task={"use": "block-graph", "inside": 0.02, "outside": 0.08, "graph_seed": 21, "split_seed": 21},
            model={"use": "fe-gnn", "structure_rank": 0, "share_weights": shared},
            optimizer={"use": "adamw", "lr": 0.01, "weight_decay": 5e-4},
            budget={"epochs": 100},
            training={"evaluate_every": 0},
        )
        accuracy[shared] = outcome.metrics["test/accuracy"]
    assert accuracy[False] > accuracy[True] + 0.03


def test_other_tasks_are_refused() -> None:
    from engine.errors import RecipeError

    with pytest.raises(RecipeError, match="offers vector"):
        ready(model={"use": "fe-gnn"})
