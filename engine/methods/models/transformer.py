"""Transformers: decoders of token sequences, encoders of everything else."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Count, Decay
from engine.kit.anatomy import Anatomy, staged
from engine.kit.tied import Layout, Segment, Tying
from engine.parts import Model, Offer, model

INIT_STD = 0.02


@model(name="Transformer", example={"task": {"use": "python-text", "characters": 20000, "length": 32}})
class Transformer(Model):
    """Lets every position of a sequence look at the others and take what it needs. The usual choice for text.

        x <- x + attention(norm(x));  x <- x + W_2 f(W_1 norm(x));  attention = softmax(q k^T / sqrt(d)) v by head

    For next-token tasks each position sees only itself and the ones before it. Otherwise it is an encoder, whose
    answer comes from the mean over positions: the rows of an image or the features of a vector are its tokens.

    Helps: Sequences whose distant parts belong together.
    Hurts: Few samples; it has to learn what a convolution knows.
    Cost: Time grows with the square of the length, in attention.

    Args:
        width: Numbers in each position's state.
        depth: Blocks.
        heads: Attention heads; they divide the width.
        expansion: Units of a block's feed-forward layer for each unit of width.
        activation: The nonlinearity of the feed-forward layers.
        dropout: Share of the numbers that each branch silences at random in training.

    Raises:
        ValueError: When the heads do not divide the width, or the task's answer is a sequence of its own.
    """

    inputs = ("vector", "image", "tokens")
    outputs = ("classes", "values", "next-token", "embedding")

    def __init__(
        self,
        offer: Offer,
        width: Count = 64,
        depth: Count = 2,
        heads: Count = 4,
        expansion: Count = 4,
        activation: Literal["gelu", "relu", "silu"] = "gelu",
        dropout: Decay = 0.0,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}. Write a width that is a multiple of it.")
        if offer.output == "sequence":
            raise ValueError("It reads one sequence and answers along it; this task wants another one written.")
        self._offer = offer
        causal = offer.output == "next-token"
        act = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}[activation]
        self.stem = Stem(offer, width, dropout)
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, heads, expansion * width, act, dropout, causal) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Identity() if causal else MeanOverPositions()
        self.head = nn.Linear(width, offer.size)
        self.apply(_start)
        for block in self.blocks:
            block.start_small(depth)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.norm(self.blocks(self.stem(x)))))

    def anatomy(self) -> Anatomy:
        return staged(self, self._offer)


class Stem(nn.Module):
    """What is put in, as one vector a position, with the position's own vector added."""

    def __init__(self, offer: Offer, width: int, dropout: float):
        super().__init__()
        self.input = offer.input
        self.embed: nn.Module
        if offer.input == "tokens":
            length = offer.shape[0]
            self.embed = nn.Embedding(offer.vocabulary, width)
        elif offer.input == "image":
            length = offer.shape[1]
            self.embed = nn.Linear(offer.shape[0] * offer.shape[2], width)
        else:
            length = offer.features
            self.embed = nn.Linear(1, width)
        self.positions = nn.Parameter(torch.randn(length, width) * INIT_STD)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.input == "image":
            x = x.transpose(1, 2).flatten(2)
        elif self.input == "vector":
            x = x.flatten(1).unsqueeze(-1)
        out = self.embed(x)
        return self.dropout(out + self.positions[: out.shape[1]])


class Attention(nn.Module):
    """Multi-head self-attention. `causal`: a position sees itself and those before it."""

    role = "attention"

    def __init__(self, width: int, heads: int, dropout: float, causal: bool):
        super().__init__()
        self.features, self.heads, self.dropout, self.causal = width, heads, dropout, causal
        self.scale: float | None = None  # of the scores; None is one over the root of a head's size
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # [3, batch, head, position, number]; written so that the model's graph can be followed through it
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, self.features // self.heads)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(
            qkv[0], qkv[1], qkv[2], dropout_p=dropout, is_causal=self.causal, scale=self.scale
        )
        return self.out(mixed.transpose(1, 2).flatten(2))

    def tie(self, tying: Tying, path: str, x: Layout) -> Layout:
        """A head's queries, keys, values and outputs belong together; the heads may change places."""
        width, size = self.features, self.features // self.heads
        tying.consume(f"{path}.qkv.weight", 1, x)
        heads = tying.group(self.heads)
        for start in (0, width, 2 * width):
            tying.add(heads, f"{path}.qkv.weight", 0, "output", start, size)
            tying.add(heads, f"{path}.qkv.bias", 0, "output", start, size)
        tying.keep(Layout(x.axis, (Segment(heads, self.heads, size),)), f"{path} splits its width into so many heads")
        tying.add(heads, f"{path}.out.weight", 1, "input", 0, size)
        return tying.produce([(f"{path}.out.weight", 0), (f"{path}.out.bias", 0)], width, x.axis)


class TransformerBlock(nn.Module):
    """Attention, then a feed-forward layer, each on the normalized state and added to it."""

    def __init__(self, width: int, heads: int, hidden: int, act: type[nn.Module], dropout: float, causal: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout, causal)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(width)
        self.up, self.activation, self.down = nn.Linear(width, hidden), act(), nn.Linear(hidden, width)

    def start_small(self, depth: int) -> None:
        """Branches that add up start smaller, so that depth does not change the scale."""
        for last in (self.attention.out, self.down):
            nn.init.normal_(last.weight, std=(2 * depth * last.in_features) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.down(self.activation(self.up(self.norm2(x)))))


class MeanOverPositions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
