"""Recurrent layers that normalize anew at each time step, which `torch.nn.LSTM` and its kin cannot."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Norm(nn.Module):
    """Layer normalization over the last axis."""

    def __init__(self, features: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class NormalizedRecurrent(nn.Module):
    """The frame of a normalized recurrent layer: [B, L, inputs] to [B, L, width].

    The input's sums W_x x are made for all steps at once; `step` takes one of them and the state to the next state. The
    first element of the state is the output.
    """

    gates = 1
    states = 1

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.width = width
        bound = width**-0.5
        self.weight_x = nn.Parameter(torch.empty(self.gates * width, inputs).uniform_(-bound, bound))
        self.weight_h = nn.Parameter(torch.empty(self.gates * width, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(self.gates * width))

    def from_input(self, x: Tensor) -> Tensor:
        """What the inputs [B, L, inputs] contribute to the gates, for all steps."""
        return F.linear(x, self.weight_x)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        contributions = self.from_input(x)
        state = (contributions.new_zeros(len(x), self.width),) * self.states
        outputs = []
        for contribution in contributions.unbind(1):
            state = self.step(contribution, state)
            outputs.append(state[0])
        return torch.stack(outputs, 1)


class NormalizedRNN(NormalizedRecurrent):
    """h <- tanh(LN(W_h h + W_x x)); the norm's shift is the bias."""

    def __init__(self, inputs: int, width: int):
        super().__init__(inputs, width)
        self.norm = Norm(width)
        self.bias = None  # type: ignore[assignment]

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.tanh(self.norm(F.linear(state[0], self.weight_h) + x)),)


class NormalizedLSTM(NormalizedRecurrent):
    """(f, i, o, g) = LN(W_h h) + LN(W_x x) + b;  c <- s(f) c + s(i) tanh(g);  h <- s(o) tanh(LN(c))."""

    gates = 4
    states = 2

    def __init__(self, inputs: int, width: int):
        super().__init__(inputs, width)
        self.norm_h, self.norm_x, self.norm_c = Norm(4 * width), Norm(4 * width), Norm(width)

    def from_input(self, x: Tensor) -> Tensor:
        return self.norm_x(super().from_input(x)) + self.bias

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = state
        f, i, o, g = (self.norm_h(F.linear(h, self.weight_h)) + x).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * self.norm_c(c).tanh(), c


class NormalizedGRU(NormalizedRecurrent):
    """(r, z) = s(LN(W_h h) + LN(W_x x) + b);  n = tanh(LN(U_x x) + b + r LN(U_h h));  h <- (1 - z) n + z h."""

    gates = 3

    def __init__(self, inputs: int, width: int):
        super().__init__(inputs, width)
        self.norm_h, self.norm_x = Norm(2 * width), Norm(2 * width)
        self.candidate_h, self.candidate_x = Norm(width), Norm(width)

    def from_input(self, x: Tensor) -> Tensor:
        gates, candidate = super().from_input(x).split([2 * self.width, self.width], -1)
        return torch.cat([self.norm_x(gates), self.candidate_x(candidate)], -1) + self.bias

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h = state[0]
        gates, candidate = F.linear(h, self.weight_h).split([2 * self.width, self.width], -1)
        from_gates, from_candidate = x.split([2 * self.width, self.width], -1)
        r, z = (self.norm_h(gates) + from_gates).sigmoid().chunk(2, -1)
        n = torch.tanh(from_candidate + r * self.candidate_h(candidate))
        return ((1 - z) * n + z * h,)
