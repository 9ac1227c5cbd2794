"""A residual multilayer perceptron whose dependence on its width is explicit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Count
from engine.parts import Model, Offer, model

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


@model(
    id="scaled-residual-mlp",
    name="Residual MLP in muP or NTP",
    paper="Why do Learning Rates Transfer? Reconciling Optimization and Scaling Limits for Deep Learning",
    arxiv="2402.17457",
    recommends={
        "optimizer": {"use": "sgd", "lr": 2.0, "momentum": 0.0, "weight_decay": 0.0},
        "schedule": {"use": "constant"},
    },
    example={"model": {"width": 16, "depth": 2}},
)
class ScaledResidualMlp(Model):
    """A residual network for vectors in which the powers of the width N stand in front of the weights.
    In muP its hidden features learn as fast at any width, so that the best learning rate stays the same.

        h_0 = W_0 x / sqrt(D);   h_(l+1) = h_l + L^-1/2 N^-1/2 W_l phi(h_l);   f = v h_L / (gamma sqrt(N))
        every weight ~ N(0, 1);   NTP: gamma = 1,  muP: gamma = sqrt(N);   rate of SGD: eta = eta_0 gamma^2

    Helps: finding a learning rate at a small width and training at a large one; studying how width matters.
    Hurts: with NTP wide networks hardly change their features; muP's rate holds for SGD as it is written here.
    Cost: that of a residual network with L + 2 matrices.
    Choices: each weight is gamma times a parameter with deviation 1 / gamma. A step of size eta_0 in the parameters is
        then a step of size eta_0 gamma^2 in the weights: the recipe's rate is eta_0, for every width, also with
        momentum. For the sharpness the same holds: the rate times the largest eigenvalue does not depend on which of
        the two one looks at. There are no biases, as in the paper. phi is ReLU where nothing else is chosen.

    Args:
        width: Units N of every hidden layer.
        depth: Residual blocks L.
        parametrization: How weights scale with the width: muP learns features at any width, NTP ever less.
        depth_scale: Whether each block counts 1 / sqrt(L), so that depth matters less.
        activation: What stands before each block's matrix.

    Raises:
        ValueError: For a task whose inputs are tokens, or that wants an answer at each position.
    """

    inputs = ("vector", "image")
    outputs = ("classes", "values", "embedding")

    def __init__(
        self,
        offer: Offer,
        width: Count = 128,
        depth: Count = 3,
        parametrization: Literal["mup", "ntp"] = "mup",
        depth_scale: bool = True,
        activation: Literal["relu", "gelu", "tanh", "identity"] = "relu",
    ):
        super().__init__()
        if offer.input == "tokens" or offer.output == "next-token":
            raise ValueError(f"it takes numbers, but the task offers {offer.input}.")
        gamma = math.sqrt(width) if parametrization == "mup" else 1.0
        branch = math.sqrt(depth) if depth_scale else 1.0
        self.stem = Scaled(offer.features, width, gamma / math.sqrt(offer.features), 1 / gamma)
        self.blocks = nn.ModuleList(
            ResidualBlock(Scaled(width, width, gamma / (math.sqrt(width) * branch), 1 / gamma), activation)
            for _ in range(depth)
        )
        self.head = Scaled(width, offer.size, 1 / math.sqrt(width), 1 / gamma)

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees."""
        h = self.stem(x.flatten(1))
        for block in self.blocks:
            h = block(h)
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Scaled(nn.Linear):
    """A linear map without bias: a multiplier times a matrix that starts with independent normal entries."""

    def __init__(self, inputs: int, outputs: int, multiplier: float, std: float):
        super().__init__(inputs, outputs, bias=False)
        self.multiplier = multiplier
        nn.init.normal_(self.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) * self.multiplier


class ResidualBlock(nn.Module):
    """``h + multiplier W phi(h)``."""

    def __init__(self, linear: Scaled, activation: str):
        super().__init__()
        self.linear = linear
        self.activation = activation

    def forward(self, h: Tensor) -> Tensor:
        return h + self.linear(ACTIVATIONS[self.activation](h))
