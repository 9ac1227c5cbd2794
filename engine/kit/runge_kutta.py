"""One step of an explicit Runge-Kutta pair: the new state, an estimate of its error, and how stiff the equation is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]  # dz/dt at (t, z)
TINY = 1e-30  # under a root: its slope at zero is not finite


class Pair(NamedTuple):
    """Two methods on the same stages: `a` and `c` make the stages, `b` the step, `error` is b minus the other's b.

    The last stage is at the new state (its row of `a` is b). `stability` is how far the region of stability reaches
    along the negative axis.
    """

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...]
    stability: float


DOPRI5 = Pair(
    order=5,
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    # against Shampine's companion, as torchdiffeq measures its steps
    error=(
        35 / 384 - 1951 / 21600,
        0.0,
        500 / 1113 - 22642 / 50085,
        125 / 192 - 451 / 720,
        -2187 / 6784 + 12231 / 42400,
        11 / 84 - 649 / 6300,
        -1 / 60,
    ),
    stability=3.3066,
)
TSIT5 = Pair(
    order=5,
    c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
    ),
    b=(0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774, 0.0),
    error=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        0.015151515151515152,
    ),
    stability=3.5068,
)
PAIRS = {"tsit5": TSIT5, "dopri5": DOPRI5}


class Step(NamedTuple):
    """A step of length h from z: `new` is where it leads, `error` what the pair's methods differ by; the stages' slopes
    and the states at which they were taken."""

    z: Tensor
    h: Tensor
    new: Tensor
    error: Tensor
    slopes: list[Tensor]
    states: list[Tensor]


def step(velocity: Velocity, t: Tensor, z: Tensor, h: Tensor, pair: Pair, first: Tensor | None = None) -> Step:
    """One step from (t, z). `first` is the slope there, where it is known already."""
    slopes, states = [velocity(t, z) if first is None else first], [z]
    for c, row in zip(pair.c[1:], pair.a[1:], strict=True):
        states.append(z + h * combined(slopes, row))
        slopes.append(velocity(t + c * h, states[-1]))
    return Step(z, h, states[-1], h * combined(slopes, pair.error), slopes, states)


def combined(slopes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of slopes, each by its weight; a weight of zero costs nothing."""
    terms = [weight * slope for slope, weight in zip(slopes, weights, strict=True) if weight]
    return torch.stack(terms).sum(0)


def root_mean_square(x: Tensor) -> Tensor:
    return (x.square().mean() + TINY).sqrt()


def scaled_error(made: Step, rtol: float, atol: float) -> Tensor:
    """The error in units of what is tolerated: an adaptive solver takes the step where this is at most 1."""
    allowed = atol + rtol * torch.maximum(made.z.abs(), made.new.abs())
    return root_mean_square(made.error / allowed)


def stiffness(made: Step, pair: Pair) -> Tensor:
    """How fast slopes change with the state between the last two stages, by what the pair is stable for at length 1; 0
    where the two states are the same."""
    apart = (made.states[-1] - made.states[-2]).square().mean()
    changed = root_mean_square(made.slopes[-1] - made.slopes[-2])
    there = apart > 0
    return torch.where(there, changed / torch.where(there, apart, 1.0).sqrt(), 0.0) / pair.stability


@torch.no_grad()
def first_length(
    velocity: Velocity, t: Tensor, z: Tensor, slope: Tensor, pair: Pair, rtol: float, atol: float
) -> Tensor:
    """The length with which an adaptive solver would begin at (t, z): Hairer, Norsett and Wanner's rule (II.4), which
    tries an Euler step to see how the slope changes."""
    allowed = atol + rtol * z.abs()
    state, speed = root_mean_square(z / allowed), root_mean_square(slope / allowed)
    small = (state < 1e-5) | (speed < 1e-5)
    trial = torch.where(small, torch.full_like(state, 1e-6), 0.01 * state / speed)
    bend = root_mean_square((velocity(t + trial, z + trial * slope) - slope) / allowed) / trial
    most = torch.maximum(speed, bend)
    flat = most <= 1e-15
    length = (0.01 / torch.where(flat, 1.0, most)) ** (1 / pair.order)
    return torch.minimum(100 * trial, torch.where(flat, (trial * 1e-3).clamp_min(1e-6), length))
