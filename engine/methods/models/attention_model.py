"""A policy that builds tours: an encoder over the points, and a decoder that points at the next one."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.fields import Count, Positive
from engine.kit.anatomy import Anatomy
from engine.kit.routing import Partial, greedy, roll_out
from engine.parts import Model, Offer, model


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[B, m, d] -> [B, heads, m, d / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor, closed: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of split heads, joined again; `closed` [B, m, n] are keys that a query must not
    see."""
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    if closed is not None:
        scores = scores.masked_fill(closed.unsqueeze(1), -torch.inf)
    return (scores.softmax(-1) @ values).transpose(1, 2).flatten(-2)


class Attention(nn.Module):
    """Multi-head self-attention without biases."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.inward = nn.Linear(width, 3 * width, bias=False)
        self.outward = nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        queries, keys, values = (heads_of(part, self.heads) for part in self.inward(h).chunk(3, -1))
        return self.outward(attend(queries, keys, values))


class Norm(nn.Module):
    """Normalizes each feature of [B, n, d]: over all points of the batch, or over those of one instance."""

    def __init__(self, width: int, kind: str):
        super().__init__()
        self.norm = nn.BatchNorm1d(width) if kind == "batch" else nn.InstanceNorm1d(width, affine=True)

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(h.transpose(1, 2)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """h <- Norm(h + MHA(h)), h <- Norm(h + FF(h))."""

    def __init__(self, width: int, heads: int, hidden: int, norm: str):
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1 = Norm(width, norm)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.norm2 = Norm(width, norm)

    def forward(self, h: Tensor) -> Tensor:
        h = self.norm1(h + self.attention(h))
        return self.norm2(h + self.feed(h))


class Encoded(NamedTuple):
    """What each decoding step needs, computed once an instance."""

    graph: Tensor  # [B, 1, d]: the mean of the points' part of the context
    as_first: Tensor  # [B, n, d]: each point's part of the context where the tour began there
    as_last: Tensor  # [B, n, d]: and where it is there now
    keys: Tensor  # [B, heads, n, d / heads]
    values: Tensor
    targets: Tensor  # [B, n, d]: what the glimpse is compared with


@model(
    id="attention-model",
    name="Attention model for tours",
    paper=[
        ("Attention, Learn to Solve Routing Problems!", "1803.08475"),
        ("RL4CO: an Extensive Reinforcement Learning for Combinatorial Optimization Benchmark", "2306.17100"),
    ],
    example={
        "task": {"use": "tsp", "points": 5, "instances": 8},
        "model": {"width": 8, "heads": 2, "layers": 1, "hidden": 16},
        "procedure": {"use": "rl4co-attention-model"},
        "training": {"batch_size": 4},
    },
)
class AttentionModel(Model):
    """Builds a tour point by point. An encoder lets all points look at each other; a decoder then asks, at each step,
    with the whole picture, the first and the last point in mind, which point comes next.

        h <- Norm(h + MHA(h)),  h <- Norm(h + FF(h))              h_0 = W x + b, some layers
        c = W [mean h, h_last, h_first]                            (a learned vector before the first step)
        q = multi-head attention of c over the points not yet visited
        u_j = clip tanh(q . W_K h_j / sqrt(d)),  -inf where visited;   p(next = j) = softmax(u)_j

    Helps: tours and routes, where a policy that was trained once answers thousands of new instances in a moment.
    Hurts: instances unlike those that it was trained on: more points, or points in clusters.
    Cost: attention over all points a layer, and one light step of attention for each point of a tour.
    Choices: called by itself it answers with the greedy tour. Attention has no biases. The mask comes after the tanh.

    Args:
        width: Numbers that describe a point.
        heads: Attention heads; width is a multiple of them.
        layers: Layers of the encoder.
        hidden: Units of each feed-forward block.
        norm: Normalize over the points of the whole batch, or over those of each instance (as POMO does).
        clip: Largest size of a logit: keeps the policy from being too sure too soon.

    Raises:
        ValueError: For a task that does not offer points and ask for a tour, or a width that the heads do not divide.
    """

    inputs = ("points",)
    outputs = ("tour",)

    def __init__(
        self,
        offer: Offer,
        width: Annotated[int, Field(ge=2)] = 128,
        heads: Count = 8,
        layers: Count = 3,
        hidden: Count = 512,
        norm: Literal["batch", "instance"] = "instance",
        clip: Positive = 10.0,
    ):
        super().__init__()
        if offer.input != "points" or offer.output != "tour":
            raise ValueError(
                f"It makes a tour of points, and the task offers {offer.input} and asks for {offer.output}. "
                "Choose a task of tours, or another model."
            )
        if width % heads:
            raise ValueError(f"The width {width} cannot be shared by {heads} heads; take a multiple of {heads}.")
        self._offer, self._heads, self._clip = offer, heads, clip
        self.stem = nn.Linear(offer.shape[-1], width)
        self.blocks = nn.Sequential(*(EncoderLayer(width, heads, hidden, norm) for _ in range(layers)))
        bound = 1 / math.sqrt(3 * width)  # together they are one layer of 3 width inputs
        self.of_graph, self.of_last, self.of_first = (_linear(width, bound) for _ in range(3))
        self.before = nn.Parameter(torch.empty(2, width).uniform_(-1, 1) / math.sqrt(2 * width))
        self.glimpse = nn.Linear(width, 2 * width, bias=False)
        self.merge = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, width, bias=False)

    def forward(self, points: Tensor) -> Tensor:
        return roll_out(self, points, greedy).tours.squeeze(1)

    def encode(self, points: Tensor) -> Encoded:
        """All that does not depend on the tour so far."""
        h = self.blocks(self.stem(points))
        keys, values = (heads_of(part, self._heads) for part in self.glimpse(h).chunk(2, -1))
        graph = self.of_graph(h.mean(1, keepdim=True))
        return Encoded(graph, self.of_first(h), self.of_last(h), keys, values, self.head(h))

    def scores(self, encoded: Encoded, partial: Partial) -> Tensor:
        """The clipped logits of every next point [B, S, n]."""
        queries = encoded.graph + self._journey(encoded, partial)
        found = attend(heads_of(queries, self._heads), encoded.keys, encoded.values, partial.visited)
        scores = self.merge(found) @ encoded.targets.transpose(1, 2) / math.sqrt(encoded.targets.shape[-1])
        return (self._clip * scores.tanh()).masked_fill(partial.visited, -torch.inf)

    def _journey(self, encoded: Encoded, partial: Partial) -> Tensor:
        """The part of the context that says where the tour began and is."""
        if partial.first is None or partial.last is None:
            both = self.of_last(self.before)[0] + self.of_first(self.before)[1]
            return both.expand(*partial.visited.shape[:2], -1)
        return _rows(encoded.as_first, partial.first) + _rows(encoded.as_last, partial.last)

    def anatomy(self) -> Anatomy:
        example = torch.zeros(2, *self._offer.shape, device="meta")
        blocks: list[Any] = list(self.blocks)
        return Anatomy(self, stem=self.stem, blocks=blocks, features=blocks[-1], head=self.head, example=example)


def _linear(width: int, bound: float) -> nn.Linear:
    """A square layer without bias whose weights start within a bound."""
    made = nn.Linear(width, width, bias=False)
    nn.init.uniform_(made.weight, -bound, bound)
    return made


def _rows(of: Tensor, index: Tensor) -> Tensor:
    """The rows [B, S, d] of [B, n, d] at [B, S]."""
    return of.gather(1, index.unsqueeze(-1).expand(-1, -1, of.shape[-1]))
