"""A process that turns data into noise, and the way back from noise to data.

    dX = -g(t)/2 X dt + sqrt(g(t)) dB,   g(t) = low + (high - low) t,   t in [first, last]
    X_t = a X_0 + sqrt(h) Z,   a = exp(-1/2 int_0^t g),   h = 1 - a^2
    score(t, x) = (a E[X_0 | X_t = x] - x) / h                                    (Tweedie)

Whoever can guess X_0 from X_t therefore has the score, and can go back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

# guesses X_0 from x [B, ...] and times [B]
Denoise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Process:
    """The process, from `first` (above 0, where the score is still finite) to `last`."""

    low: float = 0.1
    high: float = 20.0
    first: float = 0.01
    last: float = 1.0

    def rate(self, t: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * t

    def integral(self, t: Tensor) -> Tensor:
        """Of the rate, from 0."""
        return self.low * t + (self.high - self.low) * t.square() / 2

    def kept(self, t: Tensor) -> Tensor:
        """What is left of the data: a."""
        return (-self.integral(t) / 2).exp()

    def spread(self, t: Tensor) -> Tensor:
        """The variance of the noise: h."""
        return -torch.expm1(-self.integral(t))

    def noised(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Data [B, ...] at the times [B]."""
        return _along(self.kept(t), x) * x + _along(self.spread(t).sqrt(), x) * noise

    def score(self, guess: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The score that a guess of the data stands for."""
        return (_along(self.kept(t), x) * guess - x) / _along(self.spread(t), x)

    def weight(self, t: Tensor) -> Tensor:
        """What a squared error of the guess counts as a squared error of the score: a^2 / h^2."""
        return (self.kept(t) / self.spread(t)).square()

    def times(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Times drawn evenly."""
        return self.first + (self.last - self.first) * torch.rand(shape, generator=rng, device=rng.device)

    def back(
        self, denoise: Denoise, x: Tensor, steps: int, rng: torch.Generator, noisy: bool = True, power: float = 1.0
    ) -> Tensor:
        """From noise x at `last` to the guess at `first`, in that many steps of Euler and Maruyama.

        With noise, the reversed process dY = (g/2 Y + g score) ds + sqrt(g) dB; without, the flow that has the same
        distributions, dY = (g/2 Y + g/2 score) ds. A `power` above 1 makes the steps near the data smaller.
        """
        grid = torch.linspace(1, 0, steps + 1, device=x.device, dtype=x.dtype) ** power
        grid = self.first + (self.last - self.first) * grid
        for now, then in pairwise(grid):
            t, length, g = now.expand(len(x)), now - then, self.rate(now)
            score = self.score(denoise(x, t), x, t)
            x = x + length * g * (x / 2 + (score if noisy else score / 2))
            if noisy:
                x = x + (length * g).sqrt() * torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
        return denoise(x, grid[-1].expand(len(x)))


def _along(values: Tensor, x: Tensor) -> Tensor:
    """One number a sample, to multiply the samples with."""
    return values.view(-1, *[1] * (x.dim() - 1))
