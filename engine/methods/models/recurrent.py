"""Recurrent networks, plain and with normalization at each time step."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from engine.fields import Count, Decay
from engine.kit.anatomy import Anatomy, staged
from engine.kit.recurrent import NormalizedGRU, NormalizedLSTM, NormalizedRNN
from engine.parts import Model, Offer, model

PLAIN = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
NORMALIZED = {"lstm": NormalizedLSTM, "gru": NormalizedGRU, "rnn": NormalizedRNN}


@model(name="Recurrent network", example={"task": {"use": "python-text", "characters": 20000, "length": 16}})
class Recurrent(Model):
    """Reads a sequence from left to right and keeps what matters in a state. It needs little memory at any length.

        state_t = cell(x_t, state_(t-1));  answer_t = W h_t + b

    For next-token tasks it answers at each position, otherwise after the last one; the rows of an image or the
    features of a vector are its steps.

    Helps: Streams and sequences in which order matters more than distance.
    Hurts: Long gaps between what belongs together; steps cannot run at the same time.
    Cost: Time grows with the length. With norm = "layer" the steps run one by one in Python, several times slower.

    Args:
        width: Numbers in the state.
        depth: Layers, each reading the states of the one before.
        cell: How the state is updated: with gates (lstm, gru) or without (rnn).
        norm: Whether the sums in the cell are normalized over its units at each step.
        dropout: Share of each layer's outputs that are silenced at random in training.

    Raises:
        ValueError: For a task whose answer is a sequence of its own.
    """

    inputs = ("vector", "image", "tokens")
    outputs = ("classes", "values", "next-token", "embedding")

    def __init__(
        self,
        offer: Offer,
        width: Count = 64,
        depth: Count = 1,
        cell: Literal["lstm", "gru", "rnn"] = "lstm",
        norm: Literal["none", "layer"] = "none",
        dropout: Decay = 0.0,
    ):
        super().__init__()
        if offer.output == "sequence":
            raise ValueError("It reads one sequence and answers along it; this task wants another one written.")
        self._offer = offer
        self.stem = Steps(offer, width)
        self.blocks = nn.Sequential()
        for i in range(depth):
            inputs = width if i else self.stem.features
            layer = NORMALIZED[cell](inputs, width) if norm == "layer" else OutputsOnly(PLAIN[cell], inputs, width)
            self.blocks.append(nn.Sequential(layer, nn.Dropout(dropout)) if dropout else layer)
        self.pool = nn.Identity() if offer.output == "next-token" else LastStep()
        self.head = nn.Linear(width, offer.size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))))

    def anatomy(self) -> Anatomy:
        return staged(self, self._offer)


class Steps(nn.Module):
    """The input as one vector a step: an embedding of tokens, the rows of an image, the features of a vector."""

    def __init__(self, offer: Offer, width: int):
        super().__init__()
        self.input = offer.input
        self.embed = nn.Embedding(offer.vocabulary, width) if offer.input == "tokens" else nn.Identity()
        sizes = {"tokens": width, "vector": 1}
        self.features = sizes[offer.input] if offer.input in sizes else offer.shape[0] * offer.shape[2]

    def forward(self, x: Tensor) -> Tensor:
        if self.input == "image":
            x = x.transpose(1, 2).flatten(2)
        elif self.input == "vector":
            x = x.flatten(1).unsqueeze(-1)
        return self.embed(x)


class OutputsOnly(nn.Module):
    """A recurrent layer of PyTorch, without the states that it also returns."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU] | type[nn.RNN], inputs: int, width: int):
        super().__init__()
        self.layer = kind(inputs, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class LastStep(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]
