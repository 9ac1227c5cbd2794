"""The two-layer network that theory is written about."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from engine.fields import Count
from engine.kit.anatomy import Anatomy, example_input
from engine.parts import Model, Offer, model


@model(id="two-layer-relu", name="Two-layer ReLU network", example={"model": {"width": 32}})
class TwoLayerReLU(Model):
    """One wide hidden layer whose weights learn, and an output layer of random signs that does not. So wide a network
    hardly moves while it learns, and behaves like a kernel method: what is proven of networks is often proven of it.

        f_i(x) = 1/sqrt(m) sum_r b_ir relu(w_r . x),   w_r ~ N(0, 1),   b_ir = -1 or 1
        centred: minus the same with the w_r that it began with, so that f starts at 0

    Helps: seeing in an experiment what a theorem says, with full-batch gradient descent.
    Hurts: accuracy for its size; it learns no features where its width is large.
    Cost: width times inputs; twice that while it is centred.
    Choices: there are no biases; a constant input takes their place where one is wanted.

    Args:
        width: Hidden units (m).
        train: What learns: the hidden weights alone, or the signs too.
        centred: Whether its first answer is subtracted from all.

    Raises:
        ValueError: For a task whose inputs are tokens.
    """

    def __init__(
        self,
        offer: Offer,
        width: Count = 2048,
        train: Literal["hidden", "both"] = "hidden",
        centred: bool = True,
    ):
        super().__init__()
        if offer.input in ("tokens", "text", "none") or offer.output == "next-token":
            raise ValueError(f"It takes numbers, and the task offers {offer.input}: choose a model for that.")
        self._offer = offer
        self.stem = nn.Flatten()
        self.hidden = nn.Linear(offer.features, width, bias=False)
        self.activation = nn.ReLU()
        self.head = nn.Linear(width, offer.size, bias=False)
        with torch.no_grad():
            self.hidden.weight.normal_()
            self.head.weight.copy_(torch.randint(0, 2, self.head.weight.shape) * 2.0 - 1)
        self.head.weight.requires_grad_(train == "both")
        self.first: Tensor | None
        self.register_buffer("first", self.hidden.weight.detach().clone() if centred else None)
        self.start: Tensor | None  # the head that it began with, where it learns
        self.register_buffer("start", self.head.weight.detach().clone() if centred and train == "both" else None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        scale = 1 / math.sqrt(self.hidden.out_features)
        answer = self.head(self.activation(self.hidden(x)))
        if self.first is not None:
            signs = self.head.weight if self.start is None else self.start
            answer = answer - nn.functional.linear(nn.functional.relu(nn.functional.linear(x, self.first)), signs)
        return scale * answer

    def anatomy(self) -> Anatomy:
        example = example_input(self._offer)
        return Anatomy(
            self, stem=self.stem, blocks=[self.hidden], features=self.activation, head=self.head, example=example
        )
