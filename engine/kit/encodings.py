"""Coordinates as many waves: what a network needs to learn a function that changes fast."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

from engine.parts import Offer


class Waves(nn.Module):
    """Sines and cosines of coordinates, the slowest first: [sin f_1, cos f_1, sin f_2, cos f_2 ...].

    Random: waves of 2 pi f . x, their directions even and their numbers |f| those of |N(0, sigma^2)|. Otherwise those
    of 2^k pi x_i for each coordinate and k = 0, 1, ...: then each step of k holds one pair a coordinate.
    """

    frequencies: Tensor

    def __init__(self, dimensions: int, count: int, sigma: float, random: bool = True):
        super().__init__()
        self.each = 2 if random else 2 * dimensions  # channels of one frequency
        if random:
            length = (sigma * torch.randn(count)).abs().sort().values
            frequencies = nn.functional.normalize(torch.randn(count, dimensions), dim=1) * length[:, None]
        else:
            powers = 2.0 ** torch.arange(count) / 2
            frequencies = (powers[:, None, None] * torch.eye(dimensions)).flatten(0, 1)
        self.register_buffer("frequencies", frequencies)

    @property
    def channels(self) -> int:
        return 2 * len(self.frequencies)

    def forward(self, x: Tensor) -> Tensor:
        phase = 2 * math.pi * x @ self.frequencies.T
        return torch.stack([phase.sin(), phase.cos()], -1).flatten(1)


def check_vectors(offer: Offer) -> None:
    """Refuses what has no coordinates."""
    if offer.input != "vector" or offer.answer:
        raise ValueError(
            f"This network takes coordinates or other vectors of numbers and answers a row of numbers, and the task "
            f"maps {offer.input} to {offer.output}. Choose another model."
        )


def hidden_layers(inputs: int, hidden: list[int]) -> nn.Sequential:
    """Fully connected layers, each with a ReLU."""
    return nn.Sequential(
        *(
            nn.Sequential(OrderedDict(linear=nn.Linear(i, o), activation=nn.ReLU()))
            for i, o in pairwise([inputs, *hidden])
        )
    )
