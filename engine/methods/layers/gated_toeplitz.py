"""A layer that mixes positions by one long convolution, gated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Count, Fraction
from engine.kit.anatomy import Site
from engine.kit.toeplitz import causal
from engine.parts import Layer, layer

NORM_EPS = 1e-6


class PositionEncoder(nn.Module):
    """What a kernel is at each distance, before it decays: a small network of the distance, [n] -> [n, channels]."""

    def __init__(self, channels: int, width: int, layers: int):
        super().__init__()
        self.first = nn.Linear(1, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1))
        self.last = nn.Linear(width, channels)

    def forward(self, distance: Tensor) -> Tensor:
        h = self.first(distance.unsqueeze(-1))
        for each in self.inner:
            h = each(F.relu(_unit(h)))
        return self.last(F.relu(_unit(h)))


def _unit(h: Tensor) -> Tensor:
    """At root mean square 1: distances of one and of a thousand come in one size."""
    return F.rms_norm(h, h.shape[-1:], eps=NORM_EPS)


@layer(
    name="Gated Toeplitz unit",
    paper="Accelerating Toeplitz Neural Network with Constant-time Inference Complexity",
    arxiv="2311.08756",
    example={
        "task": {"use": "python-text", "characters": 20000, "length": 16},
        "model": {"use": "transformer", "width": 8, "heads": 2, "depth": 1},
        "techniques": [{"use": "replace", "layer": {"use": "gated-toeplitz", "rpe_dim": 4}, "sites": "attention"}],
    },
)
class GatedToeplitz(Layer):
    """Mixes the positions of a sequence by a convolution as long as itself, which a small network makes from distances
    alone, and gates the result. It stands in the place of causal attention.

        u = act(W_v x);   t_i = decay^i MLP(i);   y_i = sum_(j <= i) t_(i-j) u_j, channel by channel
        out = W_o (act(W_u x) * y)

    Helps: long sequences: the cost grows with L log L, and after training the convolution can become a recurrence.
    Hurts: what must be found by its content and not by its distance: attention looks it up.
    Cost: two fast Fourier transforms of twice the length for each channel.
    Choices: a position sees itself and those before it, never later ones. The encoder sees the distance itself, as a
        number, and normalizes what it makes of it between its layers. The kernel decays behind the network and nothing
        is done to it afterwards, so that the decay can become part of a recurrence.

    Args:
        site: Where it goes: the place of an attention layer.
        decay: What the kernel is multiplied by for each further position.
        rpe_layers: Hidden layers of the network that makes the kernel.
        rpe_dim: Its width.
        expand: Channels of the convolution for each of the sequence's.

    Raises:
        ValueError: In the place of a module that is no attention.
    """

    role = "attention"

    def __init__(
        self,
        site: Site,
        decay: Fraction = 0.99,
        rpe_layers: Count = 3,
        rpe_dim: Count = 32,
        expand: Count = 1,
    ):
        super().__init__()
        self.features, self.decay = site.features, decay
        channels = expand * site.features
        self.gate, self.value = nn.Linear(site.features, channels), nn.Linear(site.features, channels)
        self.out = nn.Linear(channels, site.features)
        self.positions = PositionEncoder(channels, rpe_dim, rpe_layers)

    @classmethod
    def for_site(cls, site: Site, **settings: Any) -> nn.Module:
        if site.role != "attention":
            raise ValueError(f"a gated Toeplitz unit stands for attention, and here is {type(site.module).__name__}.")
        if not getattr(site.module, "causal", True):
            raise ValueError("a gated Toeplitz unit sees no later positions, and the attention here does.")
        return cls(site, **settings)

    def kernel(self, n: int, decayed: bool = True) -> Tensor:
        """t_0 .. t_(n-1) for each channel, [n, channels]; or what it is before it decays."""
        distance = torch.arange(n, dtype=self.out.weight.dtype, device=self.out.weight.device)
        made = self.positions(distance)
        return made * (self.decay**distance).unsqueeze(-1) if decayed else made

    def forward(self, x: Tensor) -> Tensor:
        u = F.silu(self.value(x)).float()
        mixed = causal(u, self.kernel(x.shape[1]).float())
        return self.out(F.silu(self.gate(x)) * mixed.to(x.dtype))

    # -- token by token ------------------------------------------------------------------------------------------------

    def start(self, rows: int) -> Tensor:
        """The state before the first token: what there was to convolve, which is nothing."""
        return self.out.weight.new_zeros(rows, 0, self.value.out_features)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token [B, features]. The state grows with it, and so does the cost."""
        state = torch.cat([state, F.silu(self.value(x)).unsqueeze(1)], 1)
        mixed = (state * self.kernel(state.shape[1]).flip(0)).sum(1)
        return self.out(F.silu(self.gate(x)) * mixed), state
