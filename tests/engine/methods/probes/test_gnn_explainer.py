"""GNNExplainer: what a mask of ones, distant edges and small steps must do; its loss against one with full matrices."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import RecipeError
from engine.figures import problems
from engine.kit.graphs import Graph, block_model, masked
from engine.methods.models.gcn import GCN
from engine.methods.probes.gnn_explainer import Explanation, GNNExplainer, auc, choose, entropy, saliency, strongest
from engine.parts import Offer
from engine.training.checkpoint import fingerprint
from tests.engine.methods.short import ready, train

HOUSES = {"use": "house-graph", "base": 15, "links": 2, "houses": 3, "labelled": 0.5}
REFERENCE = {"hidden": [6, 6], "adjacency": "sum", "self_loops": False, "unit": True, "answer": "concatenated"}
PLAIN = {"edge_size": 0.0, "edge_ent": 0.0, "feat_size": 0.0, "feat_ent": 0.0}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(**settings: Any) -> tuple[Graph, GCN, Tensor]:
    graph, _ = block_model([10, 10, 10], 0.25, 0.02, rng())
    torch.manual_seed(0)
    model = GCN(Offer("nodes", (4,), "classes", 3, about={"graph": graph}), **{**REFERENCE, **settings}).double()
    return graph, model, torch.randn((30, 4), generator=rng(1), dtype=torch.float64)


def parts(graph: Graph, node: int, hops: int) -> tuple[tuple[int, Tensor, Tensor], int]:
    near, edges = graph.within(node, hops)
    return (len(near), edges, torch.searchsorted(edges, graph.reverse[edges])), len(edges)


@pytest.mark.parametrize("form", [{}, {"adjacency": "symmetric", "self_loops": True, "answer": "convolution"}])
def test_masks_of_one_are_the_model_itself(form: Any) -> None:
    graph, model, x = made(**form)
    with masked(model, torch.ones(graph.edges.shape[1]).double()):
        assert torch.allclose(model(x * torch.ones(4)), model(x), atol=1e-12)
    open_ = torch.full((graph.edges.shape[1],), 40.0).double().sigmoid()
    with masked(model, open_):
        assert torch.allclose(model(x * torch.full((4,), 40.0).double().sigmoid()), model(x), atol=1e-6)


def test_the_loss_is_that_of_full_matrices() -> None:
    """Written with a dense mask over all pairs of nodes around: entries of pairs without an edge add a constant."""
    graph, model, x = made()
    part = GNNExplainer(edge_size=0.03, edge_ent=0.7, feat_size=0.4, feat_ent=0.2, smoothness=0.5)
    (size, edges, back), count = parts(graph, 4, 2)
    m = torch.randn(count, generator=rng(2), dtype=torch.float64)
    f = torch.randn(4, generator=rng(3), dtype=torch.float64)
    found = part._loss(model, model, graph, x, 4, 1, (size, edges, back), m, f, rng())

    dense = graph.adjacency().double()
    logits = torch.zeros(30, 30).double()
    logits[graph.edges[1, edges], graph.edges[0, edges]] = m
    on = torch.zeros(30, 30).double()
    on[graph.edges[1, edges], graph.edges[0, edges]] = 1.0
    mask = (logits.sigmoid() + logits.sigmoid().T) / 2
    a = torch.where(on > 0, dense * mask, dense)
    h, held = x * f.sigmoid(), []
    for block in model.blocks:
        z = a @ h @ block.linear.weight.T + block.linear.bias  # type: ignore[union-attr, operator]
        h = F.relu(z / z.norm(dim=1, keepdim=True))
        held.append(h)
    output = model.head(torch.cat(held, 1))
    p = logits.sigmoid()
    h_of = -(p * p.log() + (1 - p) * (1 - p).log()) * on
    share = f.sigmoid()
    likely = output.softmax(1)
    laplacian = torch.diag((on * mask).sum(1)) - on * mask
    expected = (
        F.cross_entropy(output[4:5], torch.tensor([1]))
        + 0.03 * (p * on).sum()
        + 0.7 * h_of.sum() / size**2
        + 0.4 * share.mean()
        - 0.2 * (share * share.log() + (1 - share) * (1 - share).log()).mean()
        + 0.5 * 2 * (likely.T @ laplacian @ likely).trace() / size**2
    )
    assert torch.allclose(found, expected, atol=1e-12)
    assert torch.allclose(entropy(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.0, math.log(2), 0.0]))


def test_edges_out_of_reach_have_no_gradient_at_all() -> None:
    graph, model, x = made()
    node = 4
    mask = torch.rand(graph.edges.shape[1], generator=rng(5)).double().requires_grad_()
    with masked(model, mask):
        loss = -model(x)[node].log_softmax(-1)[0]
    (grad,) = torch.autograd.grad(loss, mask)
    _, near = graph.within(node, 2)
    far = torch.ones(len(grad), dtype=torch.bool).index_fill(0, near, False)
    assert bool(far.any()) and bool((grad[far] == 0).all()) and bool((grad[near] != 0).any())
    part = GNNExplainer(**PLAIN, epochs=1)
    found = part.explain(model, model, graph, x, node, rng())
    assert torch.equal(found.edges, near), "it looks as far as the model's messages go"


def test_weights_stay_and_the_mask_is_symmetric() -> None:
    graph, model, x = made()
    before = fingerprint(model.state_dict())
    seen = []
    model.propagate.register_forward_pre_hook(lambda module, _: seen.append(module.edge_mask))
    found = GNNExplainer(epochs=5).explain(model.eval(), model, graph, x, 4, rng())
    assert fingerprint(model.state_dict()) == before and all(p.grad is None for p in model.parameters())
    used = [mask for mask in seen if mask is not None]
    assert len(used) == 5 * 2
    for mask in used:
        assert torch.equal(mask, mask[graph.reverse])
    place = torch.searchsorted(found.edges, graph.reverse[found.edges])
    assert torch.equal(found.weights, found.weights[place]) and len(found.losses) == 5


def test_without_penalties_small_steps_only_go_down() -> None:
    """Plain gradient descent on the loss as it is: never below zero, never up."""
    graph, model, x = made()
    part = GNNExplainer(**PLAIN)
    near, count = parts(graph, 7, 2)
    target = int(model(x)[7].argmax())
    m = torch.randn(count, generator=rng(2), dtype=torch.float64).requires_grad_()
    f = torch.zeros(4, dtype=torch.float64).requires_grad_()
    losses = []
    for _ in range(60):
        loss = part._loss(model, model, graph, x, 7, target, near, m, f, rng())
        grads = torch.autograd.grad(loss, (m, f))
        with torch.no_grad():
            m -= 0.05 * grads[0]
            f -= 0.05 * grads[1]
        losses.append(float(loss))
    assert min(losses) >= 0 and all(b <= a for a, b in pairwise(losses)) and losses[-1] < losses[0] - 1e-3


def test_it_begins_and_moves_as_adam_does() -> None:
    graph, model, x = made()
    drawn = GNNExplainer(epochs=0).explain(model, model, graph, x, 4, rng(9))
    size = len(graph.within(4, 2)[0])
    m = 1 + math.sqrt(2) * math.sqrt(1 / size) * torch.randn(len(drawn.edges), generator=rng(9))
    place = torch.searchsorted(drawn.edges, graph.reverse[drawn.edges])
    expected = (m.sigmoid() + m.sigmoid()[place]) / 2
    assert torch.allclose(drawn.weights, expected.double()) and torch.equal(drawn.features, torch.full((4,), 0.5))
    one = GNNExplainer(epochs=1, lr=0.3, feature_mask=False, edge_ent=0.0, edge_size=100.0)
    moved = one.explain(model, model, graph, x, 4, rng(9))
    m = m - 0.3  # the size term decides every sign, and the first step of Adam is one of lr
    assert torch.allclose(moved.weights, ((m.sigmoid() + m.sigmoid()[place]) / 2).double(), atol=1e-5)


def test_masked_features_come_from_other_nodes() -> None:
    x = torch.arange(12.0).view(4, 3)
    part = GNNExplainer(marginalize=True)
    z = part._masked_features(x, torch.zeros(3), rng())
    assert all(bool((z[:, k, None] == x[None, :, k]).any(1).all()) for k in range(3)) and not torch.equal(z, x)
    assert torch.equal(part._masked_features(x, torch.ones(3), rng()), x)
    assert not torch.equal(part._masked_features(x, torch.zeros(3), rng(1)), z), "drawn anew"
    assert not GNNExplainer()._masked_features(x, torch.zeros(3), rng()).any()


def test_saliency_is_the_derivative_by_both_directions() -> None:
    graph, model, x = made()
    found = GNNExplainer(epochs=0).explain(model, model, graph, x, 4, rng())
    score = saliency(model, model, graph, x, found)
    near = (graph.edges[1, found.edges] == 4).nonzero().flatten()[0]
    edge, step = found.edges[near], 1e-6

    def loss(value: float) -> float:
        both = torch.stack([edge, graph.reverse[edge]])
        mask = torch.ones(graph.edges.shape[1]).double().index_fill(0, both, value)
        with masked(model, mask), torch.no_grad():
            return float(-model(x)[4].log_softmax(-1)[found.target])

    assert float(score[near]) == pytest.approx(abs(loss(1 + step) - loss(1 - step)) / (2 * step), rel=1e-5)


def test_ranks_and_choices() -> None:
    from sklearn.metrics import roc_auc_score

    scores = torch.tensor([0.1, 0.4, 0.4, 0.8, 0.4, 0.0])
    right = torch.tensor([False, True, False, True, True, False])
    assert auc(scores, right) == pytest.approx(roc_auc_score(right.numpy(), scores.numpy()))
    assert math.isnan(auc(scores, torch.ones(6, dtype=torch.bool)))
    known, given = torch.tensor([0, 1, 1, 2, 0, 1]), torch.tensor([0, 1, 0, 2, 0, 1])
    assert choose(known, given, None, 10) == [0, 1, 3, 4, 5] and choose(known, given, None, 2) == [0, 3]
    assert choose(known, given, torch.tensor([0, 0, 1, 1, 1, 0]), 5) == [3, 4]
    graph = Graph.of(4, torch.tensor([[0, 1, 2], [1, 2, 3]]))
    weights = torch.tensor([{1: 0.2, 3: 0.9, 5: 0.5}[int(a + b)] for a, b in graph.edges.T])
    found = Explanation(0, 0, torch.arange(6), weights, torch.ones(1), [])
    assert graph.edges[:, strongest(graph, found, 2)].T.tolist() == [[1, 2], [2, 3]], "each edge once"


def test_a_look_leaves_the_run_as_it_was_and_draws_graphs() -> None:
    run, _, _ = train(
        task=HOUSES,
        model={"use": "gcn", **REFERENCE, "hidden": [16, 16], "dropout": 0.1},
        optimizer={"use": "adamw", "lr": 0.02},
        budget={"epochs": 80},
        training={"evaluate_every": 0},
    )
    run.model.train()
    state, streams = fingerprint(run.model.state_dict()), {k: v.clone() for k, v in run.streams.state().items()}
    drawn = torch.get_rng_state()
    part = GNNExplainer(count=3, epochs=4, top_k=3)
    finding = part.look(run)
    assert fingerprint(run.model.state_dict()) == state and run.model.training
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(streams[k], v) for k, v in run.streams.state().items())
    assert finding.scalars == part.look(run).scalars and finding.scalars["nodes"] == 3
    for name in ("auc/pooled", "saliency-auc/mean", "kept"):
        assert 0 <= finding.scalars[name] <= 1
    graphs = {name: f for name, f in finding.figures.items() if f["kind"] == "graph"}
    assert len(graphs) == 3 and not any(problems(f) for f in finding.figures.values())
    for name, figure in graphs.items():
        (ringed,) = figure["marked"]
        assert name == f"node{figure['nodes'][ringed]['label']}"
        assert all(0 <= w <= 1 for _, _, w in figure["edges"])


def test_the_right_edges_are_found_where_a_rule_says_which() -> None:
    """A model that reads one neighbour's feature alone: the mask must keep that edge and let the others go."""
    graph = Graph.of(8, torch.tensor([[0] * 7, [1, 2, 3, 4, 5, 6, 7]]))
    model = GCN(
        Offer("nodes", (1,), "classes", 2, about={"graph": graph}), hidden=[], adjacency="sum", self_loops=False
    )
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model.head.bias.zero_()
    x = torch.zeros(8, 1)
    x[3] = 1.0
    found = GNNExplainer(feature_mask=False, edge_size=0.02, edge_ent=0.0).explain(
        model.eval(), model, graph, x, 0, rng()
    )
    weight = {int(a): float(w) for a, b, w in zip(*graph.edges[:, found.edges], found.weights, strict=True) if b == 0}
    assert weight[3] > 0.9 and max(w for j, w in weight.items() if j != 3) < 0.1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": {"use": "mlp", "hidden": [4]}}, "Choose a model for graphs"),
        ({"probes": [{"use": "gnn-explainer", "nodes": [99]}]}, "There is no node 99: the graph has 30"),
        ({"probes": [{"use": "gnn-explainer", "target_class": 4}]}, "There is no class 4"),
        ({"task": {"use": "two-moons"}, "model": {"use": "mlp"}}, "Choose a task on a graph"),
    ],
)
def test_what_cannot_be_explained_is_refused(changes: Any, sentence: str) -> None:
    recipe = {"task": HOUSES, "model": {"use": "gcn"}, "probes": [{"use": "gnn-explainer"}], **changes}
    with pytest.raises(RecipeError, match=sentence):
        ready(**recipe)
