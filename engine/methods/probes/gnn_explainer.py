"""Which edges and features an answer of a graph network stands on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.fields import Count, NonNegative, Rate, Whole
from engine.figures import axis, curve, graph, layout, line, nodes_of
from engine.kit.graphs import Graph, depth, masked, propagations
from engine.parts import Finding, Probe, Task, probe

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

MOST_FIGURES = 4  # explanations that are drawn
Answer = Callable[[Tensor], Tensor]  # features [N, F] -> logits [N, C]


@dataclass
class Explanation:
    """What was found for one node. `edges` are the places of both directions of the edges near it, `weights` [E] the
    mask of each, the same for both; `features` the mask of each feature."""

    node: int
    target: int
    edges: Tensor
    weights: Tensor
    features: Tensor
    losses: list[float]


def entropy(p: Tensor) -> Tensor:
    """Of a coin that falls on one side with probability p, in nats."""
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))


def auc(scores: Tensor, right: Tensor) -> float:
    """The probability that one of those that are right has a higher score than one that is not, ties counted half."""
    _, place, count = scores.double().unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    rank = (last - (count - 1) / 2)[place]
    n, m = int(right.sum()), int((~right).sum())
    if not n or not m:
        return math.nan
    return float((rank[right].sum() - n * (n + 1) / 2) / (n * m))


@probe(
    id="gnn-explainer",
    name="GNNExplainer",
    paper="GNNExplainer: Generating Explanations for Graph Neural Networks",
    arxiv="1903.03894",
    packages=("networkx",),
    example={
        "task": {"use": "house-graph", "base": 15, "links": 2, "houses": 3, "labelled": 0.5},
        "model": {"use": "gcn", "hidden": [4, 4]},
        "probes": [{"use": "gnn-explainer", "epochs": 5, "count": 2}],
    },
)
class GNNExplainer(Probe):
    """Finds the few edges and features that an answer of a trained graph network stands on: it learns a mask of the
    edges around a node, and one of the features, under which the network still gives the answer that it gave.

        minimize  -log P(y | A * sigmoid(M), X * sigmoid(F)) + edge_size sum sigmoid(M) + feat_size mean sigmoid(F)
                  + edge_ent mean H(sigmoid(M)) + feat_ent mean H(sigmoid(F)),   y = the network's own answer
        an edge's mask is the mean of its two directions;   H = the entropy of a coin

    Helps: Seeing whether an answer stands on the edges that it should, where a graph has parts that matter.
    Hurts: On the house graph the plain gradient of the answer by its edges ranked them better still, at a hundredth of
        the cost; it is measured beside the masks. With a learning rate of 0.01 the masks stop halfway.
    Cost: For each explained node as many passes forward and back as `epochs`.
    Choices: A mask multiplies messages, after degrees were divided by and without touching loops, and it is there for
        every model that sends its messages through the shared operator. The entropy of edges is divided by the square
        of the number of nodes around: divided by the number of edges it outweighs the rest, and edges of single nodes
        were ranked worse. The entropy of features counts, though it is left out at times. Only entries of edges are
        learned: others change nothing. With marginalize each feature takes the value of a random node where it is
        masked.

    Args:
        nodes: Numbers of the nodes to explain; empty chooses.
        count: Nodes that are chosen: answered rightly and, where the task knows parts that matter, in one of those.
        target_class: The class whose probability is explained; empty takes the network's own answer.
        epochs: Steps for each node; 0 leaves the masks as they are drawn.
        lr: Learning rate of Adam.
        edge_size: Weight of the number of edges.
        edge_ent: Weight of the edges' entropy.
        entropy_norm: What the edges' entropy is divided by: the nodes around squared, or the edges.
        feat_size: Weight of the share of features.
        feat_ent: Weight of the features' entropy.
        smoothness: Weight of the squared differences of the answers along the edges that are kept.
        feature_mask: Whether features are masked too.
        marginalize: Whether what is masked of a feature is drawn from other nodes instead of being zero.
        top_k: Edges that are kept alone, to see whether they carry the answer.
        hops: How far around a node to look; 0 asks the model how far its messages go.
        seed: Seed of the masks' beginning.
    """

    when = "end"
    reads = ("output",)

    def __init__(
        self,
        nodes: list[Whole] = [],  # noqa: B006 - the default is shown in the form; it is never changed
        count: Count = 16,
        target_class: Whole | None = None,
        epochs: Whole = 100,
        lr: Rate = 0.1,
        edge_size: NonNegative = 0.005,
        edge_ent: NonNegative = 1.0,
        entropy_norm: Literal["nodes-squared", "edges"] = "nodes-squared",
        feat_size: NonNegative = 1.0,
        feat_ent: NonNegative = 0.1,
        smoothness: NonNegative = 0.0,
        feature_mask: bool = True,
        marginalize: bool = False,
        top_k: Count = 6,
        hops: Annotated[int, Field(ge=0, le=20)] = 0,
        seed: Whole = 0,
    ):
        self.nodes, self.count, self.target_class, self.epochs, self.lr = list(nodes), count, target_class, epochs, lr
        self.edge_size, self.edge_ent, self.entropy_norm = edge_size, edge_ent, entropy_norm
        self.feat_size, self.feat_ent, self.smoothness = feat_size, feat_ent, smoothness
        self.feature_mask, self.marginalize = feature_mask, marginalize
        self.top_k, self.hops, self.seed = top_k, hops, seed

    # -- one node --------------------------------------------------------------------------------------------------

    @torch.enable_grad()
    def explain(
        self, model: nn.Module, answer: Answer, around: Graph, x: Tensor, node: int, rng: torch.Generator
    ) -> Explanation:
        """The masks for one node. `answer` is the model's, in evaluation mode; its weights stay as they are."""
        with torch.no_grad():
            given = answer(x)
        target = int(given[node].argmax()) if self.target_class is None else self.target_class
        near, edges = around.within(node, self.hops or depth(model, lambda: answer(x)))
        spread = math.sqrt(2.0) * math.sqrt(2.0 / (2 * len(near)))
        m = (1 + spread * torch.randn(len(edges), generator=rng)).to(x).requires_grad_()
        f = torch.zeros(x.shape[1]).to(x).requires_grad_()
        back = torch.searchsorted(edges, around.reverse[edges])
        optimizer = torch.optim.Adam([m, f] if self.feature_mask else [m], lr=self.lr)
        losses = []
        for _ in range(self.epochs):
            loss = self._loss(model, answer, around, x, node, target, (len(near), edges, back), m, f, rng)
            learned = [m, f] if self.feature_mask else [m]
            for each, grad in zip(learned, torch.autograd.grad(loss, learned, allow_unused=True), strict=True):
                each.grad = grad
            optimizer.step()
            losses.append(loss.detach())
        weights = m.detach().sigmoid()
        told = torch.stack(losses).tolist() if losses else []
        return Explanation(node, target, edges, (weights + weights[back]) / 2, f.detach().sigmoid(), told)

    def _loss(
        self,
        model: nn.Module,
        answer: Answer,
        around: Graph,
        x: Tensor,
        node: int,
        target: int,
        near: tuple[int, Tensor, Tensor],
        m: Tensor,
        f: Tensor,
        rng: torch.Generator,
    ) -> Tensor:
        """What the masks descend. Edges out of reach keep the mask 1."""
        size, edges, back = near
        each, share = m.sigmoid(), f.sigmoid()
        mask = (each + each[back]) / 2
        whole = torch.ones(around.edges.shape[1]).to(x).index_put((edges.to(x.device),), mask)
        with masked(model, whole):
            output = answer(self._masked_features(x, share, rng) if self.feature_mask else x)
        loss = -output[node].log_softmax(-1)[target] + self.edge_size * each.sum()
        over = size**2 if self.entropy_norm == "nodes-squared" else len(edges)
        loss = loss + self.edge_ent * entropy(each).sum() / max(over, 1)
        if self.feature_mask:
            loss = loss + self.feat_size * share.mean() + self.feat_ent * entropy(share).mean()
        if self.smoothness:
            source, end = around.edges[:, edges].to(x.device)
            likely = output.softmax(-1)
            differences = (likely[source] - likely[end]).square().sum(-1)
            loss = loss + self.smoothness * (mask * differences).sum() / size**2
        return loss

    def _masked_features(self, x: Tensor, share: Tensor, rng: torch.Generator) -> Tensor:
        if not self.marginalize:
            return x * share
        rows = torch.randint(len(x), tuple(x.shape), generator=rng).to(x.device)
        z = x.gather(0, rows)
        return z + (x - z) * share

    def kept(self, model: nn.Module, answer: Answer, around: Graph, x: Tensor, found: Explanation) -> bool:
        """Whether the strongest edges alone, with all features, carry the answer."""
        places = strongest(around, found, self.top_k)
        mask = torch.zeros(around.edges.shape[1]).index_fill(0, torch.cat([places, around.reverse[places]]), 1.0)
        with torch.no_grad(), masked(model, mask.to(x)):
            return int(answer(x)[found.node].argmax()) == found.target

    # -- the look --------------------------------------------------------------------------------------------------

    def look(self, run: Run) -> Finding:
        batch, around = next(run.batches("test")), run.offer.about["graph"]
        rng = torch.Generator().manual_seed(self.seed)

        def answer(x: Tensor) -> Tensor:
            output: Tensor = run.answer(batch.with_x(x))
            return output

        with run.evaluating():
            with torch.no_grad():
                given = answer(batch.x).argmax(-1).cpu()
            motif = batch.meta["motif"].cpu() if "motif" in batch.meta else None
            chosen = self.nodes or choose(labels(run), given, motif, self.count)
            found, kept, plain = [], [], []
            for node in chosen:
                each = self.explain(run.model, answer, around, batch.x, node, rng)
                found.append(each)
                kept.append(self.kept(run.model, answer, around, batch.x, each))
                plain.append(saliency(run.model, answer, around, batch.x, each))
        scalars = {"nodes": float(len(found)), "kept": sum(kept) / len(kept)}
        scalars["edges"] = sum(float(e.weights.sum()) / 2 for e in found) / len(found)
        if motif is not None:
            scalars |= _ranked(around, motif, found, [e.weights.cpu() for e in found], "auc")
            scalars |= _ranked(around, motif, found, plain, "saliency-auc")
        return Finding(scalars, self._figures(around, given, found))

    def _figures(self, around: Graph, given: Tensor, found: list[Explanation]) -> dict[str, Any]:
        figures = {f"node{each.node}": picture(around, given, each, 4 * self.top_k) for each in found[:MOST_FIGURES]}
        curves = [line(f"node {e.node}", list(range(self.epochs)), e.losses) for e in found[:MOST_FIGURES] if e.losses]
        if curves:
            figures["losses"] = curve("What the masks descend", *curves, x="step", y=axis("objective"))
        return figures

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if task.offer.input != "nodes" or task.offer.output != "classes":
            return "It explains the class of a node, and the task asks for something else. Choose a task on a graph."
        if not propagations(anatomy.module):
            return "It masks messages along edges, and the model sends none. Choose a model for graphs."
        outside = [n for n in settings["nodes"] if n >= task.offer.about["graph"].nodes]
        if outside:
            return f"There is no node {outside[0]}: the graph has {task.offer.about['graph'].nodes}, counted from 0."
        chosen = settings["target_class"]
        if chosen is not None and chosen >= task.offer.size:
            return f"There is no class {chosen}: the task has {task.offer.size}, counted from 0."
        return None


def labels(run: Run) -> Tensor:
    """The class of every node, as far as any split tells it."""
    found = torch.full((run.offer.about["graph"].nodes,), -1)
    for split in ("train", "val", "test"):
        columns = run.columns(split)
        if columns:
            found = torch.where(columns["mask"].cpu(), columns["target"].cpu(), found)
    return found


def choose(known: Tensor, given: Tensor, motif: Tensor | None, count: int) -> list[int]:
    """Nodes that were answered rightly, in parts that matter where there are such, evenly over their numbers."""
    right = known == given
    if motif is not None and bool((right & (motif > 0)).any()):
        right = right & (motif > 0)
    candidates = (right if bool(right.any()) else torch.ones_like(right)).nonzero().flatten().tolist()
    step = max(len(candidates) / count, 1.0)
    return [candidates[int(i * step)] for i in range(min(count, len(candidates)))]


def strongest(around: Graph, found: Explanation, k: int) -> Tensor:
    """The places of the k edges with the largest weights, each edge once."""
    once = (around.edges[0, found.edges] < around.edges[1, found.edges]).nonzero().flatten()
    order = found.weights.cpu()[once].argsort(descending=True, stable=True)
    return found.edges[once[order[:k]]]


@torch.enable_grad()
def saliency(model: nn.Module, answer: Answer, around: Graph, x: Tensor, found: Explanation) -> Tensor:
    """For the same edges how much the answer's loss changes with each, to first order: what a mask is compared with."""
    mask = torch.ones(around.edges.shape[1]).to(x).requires_grad_()
    with masked(model, mask):
        loss = -answer(x)[found.node].log_softmax(-1)[found.target]
    (grad,) = torch.autograd.grad(loss, mask)
    return (grad + grad[around.reverse.to(grad.device)]).abs().cpu()[found.edges]


def _ranked(
    around: Graph, motif: Tensor, found: list[Explanation], scores: list[Tensor], name: str
) -> dict[str, float]:
    """How well scores tell the edges inside a node's own part from the others: over all nodes, and node by node."""
    every, inside = [], []
    for each, score in zip(found, scores, strict=True):
        source, end = around.edges[:, each.edges]
        once = source < end
        own = (motif[source] == motif[each.node]) & (motif[end] == motif[each.node]) & (motif[each.node] > 0)
        every.append(score[once])
        inside.append(own[once])
    alone = [auc(s, i) for s, i in zip(every, inside, strict=True)]
    alone = [value for value in alone if not math.isnan(value)]
    if not alone:
        return {}  # none of them is in a part that matters
    return {f"{name}/pooled": auc(torch.cat(every), torch.cat(inside)), f"{name}/mean": sum(alone) / len(alone)}


def picture(around: Graph, given: Tensor, found: Explanation, most: int) -> dict[str, Any]:
    """The strongest edges that hang together with the node, as thick as their masks."""
    places = strongest(around, found, most)
    weight = dict(zip(found.edges.tolist(), found.weights.tolist(), strict=True))
    pairs = [(*around.edges[:, place].tolist(), weight[place]) for place in places.tolist()]
    near = {found.node}
    while grown := {n for a, b, _ in pairs if (a in near) != (b in near) for n in (a, b)} - near:
        near |= grown
    shown = sorted(near)
    number = {node: i for i, node in enumerate(shown)}
    edges = [[number[a], number[b], w] for a, b, w in pairs if a in near]
    nodes = nodes_of(layout(len(shown), edges), [str(n) for n in shown], groups=given[shown])
    title = f"What the answer at node {found.node} stands on: class {found.target}"
    return graph(title, nodes, edges, marked=[number[found.node]])
