"""What learned optimizers share: families of sparse problems, a network that acts on each coordinate alone, and the
stretches of a run that it is trained through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.parts import Batch, Task

Family = Literal["lasso", "logistic"]


@dataclass(frozen=True)
class Problems:
    """Some problems of one family, side by side: minimize f(x) + penalty |x|_1 over x [B, n].

    lasso:    f(x) = |A x - b|^2 / 2
    logistic: f(x) = mean_i log(1 + exp(-b_i (A x)_i)),   b_i = 1 or -1
    """

    family: Family
    a: Tensor  # [B, m, n]
    b: Tensor  # [B, m]
    penalty: float

    @property
    def size(self) -> tuple[int, int]:
        """Problems, and coordinates of each."""
        return len(self.a), self.a.shape[2]

    def _image(self, x: Tensor) -> Tensor:
        return (self.a @ x.unsqueeze(-1)).squeeze(-1)

    def smooth(self, x: Tensor) -> Tensor:
        """f, one number a problem."""
        image = self._image(x)
        if self.family == "lasso":
            return (image - self.b).square().sum(-1) / 2
        return F.softplus(-self.b * image).mean(-1)

    def value(self, x: Tensor) -> Tensor:
        """F = f + penalty |x|_1, one number a problem."""
        return self.smooth(x) + self.penalty * x.abs().sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        """Of f; differentiable."""
        image = self._image(x)
        if self.family == "lasso":
            rest = image - self.b
        else:
            rest = -self.b * torch.sigmoid(-self.b * image) / self.b.shape[-1]
        return (self.a.mT @ rest.unsqueeze(-1)).squeeze(-1)

    def smoothness(self) -> Tensor:
        """L of each problem [B, 1]: the largest eigenvalue of f's Hessian, or the bound on it."""
        largest = torch.linalg.eigvalsh(self.a @ self.a.mT)[:, -1:]
        return largest if self.family == "lasso" else largest / (4 * self.b.shape[-1])

    def prox(self, u: Tensor, step: Tensor) -> Tensor:
        """The point that minimizes penalty |x|_1 + (x - u)^2 / (2 step), each coordinate with a step of its own."""
        return soft_threshold(u, self.penalty * step)


def soft_threshold(u: Tensor, level: Tensor) -> Tensor:
    """u moved towards zero by the level, and zero where it is within."""
    return u - u.clamp(-level, level)


def fista(problems: Problems, steps: int, momentum: bool = True, restart: bool = False) -> Iterator[Tensor]:
    """The iterates of FISTA from zero, without momentum of ISTA. With `restart` a problem's momentum begins anew where
    it points uphill."""
    x = z = problems.a.new_zeros(problems.size)
    step = 1 / problems.smoothness()
    count = torch.ones_like(step)
    for _ in range(steps):
        after = problems.prox(x - step * problems.gradient(x), step.expand_as(x))
        move = after - z
        if restart:
            uphill = ((x - after) * move).sum(-1, keepdim=True) > 0
            count = torch.where(uphill, torch.ones_like(count), count)
        x = after + (count - 1) / (count + 2) * move if momentum else after
        z, count = after, count + 1
        yield z


def minima(problems: Problems, steps: int = 1500) -> Tensor:
    """The lowest value of each problem, in float64."""
    exact = Problems(problems.family, problems.a.double(), problems.b.double(), problems.penalty)
    (last,) = deque(fista(exact, steps, restart=True), maxlen=1)
    return exact.value(last)


def structured_step(
    problems: Problems,
    x: Tensor,
    z: Tensor,
    step: Tensor,
    p: Tensor | float = 1.0,
    a: Tensor | float = 0.0,
    b: Tensor | float | None = None,
    b1: Tensor | float = 0.0,
    b2: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The next x and z: a proximal step in a diagonal metric from between x and z, then momentum.

    u = b (x - p step f'(x)) + (1 - b) (z - p step f'(z)) + b1;   z+ = prox(u);   x+ = z+ + a (z+ - z) + b2
    """
    rate = p * step.expand_as(x)
    u = x - rate * problems.gradient(x)
    if b is not None:
        u = b * u + (1 - b) * (z - rate * problems.gradient(z))
    after = problems.prox(u + b1, rate)
    return after + a * (after - z) + b2, after


State = list[tuple[Tensor, Tensor]]


class CoordinateLSTM(nn.Module):
    """A small recurrent network that is shared by all coordinates: each has its own state, and none sees another.

    `outputs` numbers for each coordinate come from a linear head each, over one more layer.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int = 20, layers: int = 2):
        super().__init__()
        self.hidden = hidden
        self.cells = nn.ModuleList(nn.LSTMCell(inputs if i == 0 else hidden, hidden) for i in range(layers))
        self.linear = nn.Linear(hidden, hidden)
        self.heads = nn.Linear(hidden, outputs)

    def start(self, coordinates: int, rng: torch.Generator) -> State:
        """Hidden and cell states, drawn from N(0, 1)."""
        shape, like = (coordinates, self.hidden), self.heads.weight
        draw = lambda: torch.randn(shape, generator=rng, dtype=like.dtype, device=rng.device).to(like.device)  # noqa: E731
        return [(draw(), draw()) for _ in self.cells]

    def forward(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """From [coordinates, inputs] to [coordinates, outputs] and the next state."""
        following: State = []
        for cell, before in zip(self.cells, state, strict=True):
            following.append(cell(features, before))
            features = following[-1][0]
        return self.heads(self.linear(features).relu()), following


def detached(state: State) -> State:
    return [(h.detach(), c.detach()) for h, c in state]


def segments(horizon: int, length: int) -> Sequence[int]:
    """The stretches in which a run of `horizon` iterations is trained through."""
    return [min(length, horizon - start) for start in range(0, horizon, length)]


def stated(task: Task, batch: Batch) -> Problems:
    """The problems of a batch, as their task has them."""
    about = task.offer.about
    return Problems(about["family"], batch.inputs["a"], batch.inputs["b"], about["penalty"])
