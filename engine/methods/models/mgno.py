"""Operators between fields, made of multigrid cycles that are learned."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Count, Whole
from engine.kit.anatomy import Anatomy, example_input
from engine.kit.gridded import InUnits, check_fields
from engine.parts import Model, Offer, model

Padding = Literal["zeros", "circular", "reflect"]
ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}


class Smoothing(nn.Module):
    """One step that takes from u what the grid can see of its error: u + S (f - A u)."""

    def __init__(self, u: int, f: int, padding: Padding):
        super().__init__()
        self.A, self.S = _conv(u, f, padding), _conv(f, u, padding)

    def forward(self, u: Tensor, f: Tensor) -> Tensor:
        return u + self.S(f - self.A(u))


class Prolongation(nn.Module):
    """Brings a coarse field to the grid twice as fine. On a periodic grid it sees across the border, as it must to
    treat every place alike: the transposed convolution itself knows only zeros outside."""

    def __init__(self, channels: int, padding: Padding):
        super().__init__()
        self.periodic = padding == "circular"
        self.conv = nn.ConvTranspose2d(channels, channels, 4, 2, 1, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        if not self.periodic:
            return self.conv(u)
        return self.conv(F.pad(u, (1, 1, 1, 1), mode="circular"))[..., 2:-2, 2:-2]


class VCycle(nn.Module):
    """A linear map from fields f to fields u: smoothing on ever coarser grids, and back. See `MgNO`."""

    def __init__(
        self, f: int, u: int, pre: list[int], post: list[int], padding: Padding = "zeros", use_residual: bool = False
    ):
        super().__init__()
        coarser = len(pre) - 1
        self.first = _conv(f, u, padding)  # from u = 0 the first smoothing is S f
        self.pre = nn.ModuleList(
            nn.ModuleList(Smoothing(u, f, padding) for _ in range(steps - (level == 0)))
            for level, steps in enumerate(pre)
        )
        self.post = nn.ModuleList(nn.ModuleList(Smoothing(u, f, padding) for _ in range(n)) for n in post[:coarser])
        self.R = nn.ModuleList(_conv(f, f, padding, 2) for _ in range(coarser))
        self.Pi = nn.ModuleList(_conv(u, u, padding, 2) for _ in range(coarser))
        self.P = nn.ModuleList(Prolongation(u, padding) for _ in range(coarser))
        self.A = nn.ModuleList(_conv(u, f, padding) for _ in range(coarser)) if use_residual else None

    def forward(self, f: Tensor) -> Tensor:
        u = self.first(f)
        kept = []
        for level in range(len(self.pre)):
            u = self._smooth(self.pre[level], u, f)
            if level < len(self.R):
                kept.append((u, f))
                rest = f if self.A is None else f - self.A[level](u)
                u, f = self.Pi[level](u), self.R[level](rest)
        for level in reversed(range(len(self.R))):
            fine, f = kept[level]
            u = self._smooth(self.post[level], fine + self.P[level](u), f)
        return u

    @staticmethod
    def _smooth(steps: Any, u: Tensor, f: Tensor) -> Tensor:
        for step in steps:
            u = step(u, f)
        return u


class Neuron(nn.Module):
    """A layer between functions: every output channel is a multigrid cycle of all input channels, and what a neuron of
    their values at the same place would add."""

    def __init__(self, cycle: VCycle, inputs: int, channels: int, act: type[nn.Module]):
        super().__init__()
        self.cycle = cycle
        self.local = nn.Conv2d(inputs, channels, 1)
        self.activation = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.cycle(x) + self.local(x))


@model(
    id="mgno",
    name="MgNO",
    paper="MgNO: Efficient Parameterization of Linear Operators via Multigrid",
    arxiv="2310.19809",
    recommends={
        "loss": {"use": "relative-h1"},
        "optimizer": {"use": "adamw", "lr": 5e-4, "weight_decay": 1e-4},
        "schedule": {"use": "super-convergence", "div": 2.0, "final_div": 100.0},
        "training": {"batch_size": 8},
    },
    example={
        "task": {"use": "darcy-flow", "size": 8, "samples": 16, "held_out": 4},
        "model": {"channels": 3, "layers": 2, "pre": [1, 2], "post": [1, 0]},
        "training": {"batch_size": 4},
    },
)
class MgNO(Model):
    """Maps fields to fields by layers of which each channel sees the whole picture at once: the linear part of a layer
    is one cycle of a multigrid solver, with convolutions that are learned in the place of the solver's stencils.

        layer:  u_out = act(W u + B u + b),   B a 1 x 1 convolution, W the cycle with f = u and start 0
        down:   u <- u + S (f - A u), pre[l] times;   then  f <- R f,  u <- Pi u  on the grid half as fine
        up:     u <- u + P u_coarse;   then  u <- u + S (f - A u), post[l] times
        answer = Q u_n,  Q a 1 x 1 convolution without bias

    A, S, R, Pi and P are 3 x 3 (P: 4 x 4) convolutions without bias, each of its own: W is linear.

    Helps: solutions of equations in space, where everything acts on everything: fewer weights than a plain
        convolutional network that sees as far.
    Hurts: sides that cannot be halved; inputs on no grid.
    Cost: A cycle costs four thirds of its finest level, about four 3 x 3 convolutions of it.
    Choices: there is no lifting: the first layer works on the raw input channels, as in the reference. On a periodic
        grid P sees across the border, which the reference's does not: so shifts by a coarsest cell commute with W.
        The reference used plain Adam with a one-cycle schedule (a start at half the rate, an end at a hundredth of
        that) and a decay of 1e-4. Its six levels are lists here, with as many entries as levels.

    Args:
        layers: Layers between functions.
        channels: Functions in each.
        pre: Smoothing steps on the way down on each level, the finest first; their number is that of the levels.
        post: Smoothing steps on the way up; the coarsest level's are not used.
        padding: What lies outside: zeros (a fixed border), the other side (periodic), or a mirror (no flow).
        activation: The nonlinearity.
        use_residual: Whether the coarser grid gets what is left of f, as in a solver, instead of f.

    Raises:
        ValueError: For a task that is not from fields to fields on one grid, whose sides cannot be halved that often,
            and for lists of different lengths.
    """

    def __init__(
        self,
        offer: Offer,
        layers: Count = 5,
        channels: Count = 24,
        pre: list[Count] = [1, 1, 1, 1, 1, 2],  # noqa: B006 - the default is shown in the form; it is never changed
        post: list[Whole] = [0, 0, 0, 0, 0, 0],  # noqa: B006
        padding: Padding = "zeros",
        activation: Literal["gelu", "relu", "tanh", "silu"] = "gelu",
        use_residual: bool = False,
    ):
        super().__init__()
        check_fields(offer)
        _check_levels(offer, pre, post, padding)
        self._offer = offer
        act = ACTIVATIONS[activation]
        widths = [offer.shape[0], *[channels] * layers]
        self.blocks = nn.Sequential(
            *(Neuron(VCycle(i, o, pre, post, padding, use_residual), i, o, act) for i, o in pairwise(widths))
        )
        self.head = nn.Conv2d(channels, offer.answer[0], 1, bias=False)
        self.units = InUnits(offer)

    def forward(self, x: Tensor) -> Tensor:
        return self.units(self.head(self.blocks(x)))

    def anatomy(self) -> Anatomy:
        return Anatomy(
            self,
            stem=None,
            blocks=list(self.blocks),
            features=self.blocks[-1],
            head=self.head,
            example=example_input(self._offer),
        )


def _check_levels(offer: Offer, pre: list[int], post: list[int], padding: Padding) -> None:
    if len(pre) != len(post) or not pre:
        raise ValueError(
            f"pre has {len(pre)} levels and post has {len(post)}: both say how often each level smooths, so they need "
            "as many numbers, at least one."
        )
    halvings = len(pre) - 1
    size = " x ".join(map(str, offer.shape[1:]))
    if any(side % 2**halvings for side in offer.shape[1:]):
        raise ValueError(f"A grid of {size} cannot be halved {halvings} times. Write fewer levels in pre and post.")
    if padding == "reflect" and min(offer.shape[1:]) >> halvings < 2:
        raise ValueError(f"A grid of {size}, halved {halvings} times, is too small to be mirrored. Write fewer levels.")


def _conv(inputs: int, outputs: int, padding: Padding, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False, padding_mode=padding)
