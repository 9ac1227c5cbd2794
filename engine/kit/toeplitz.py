"""Causal convolutions that are as long as the sequence, and the recurrence that computes the same token by token.

A kernel t_0 .. t_(n-1) is closed by one more entry, t_n = -sum t_i, so that its n + 1 entries sum to zero. Their
Fourier transform then writes t_i exactly as sum_k b_k lambda_k^i over the (n + 1)-th roots of unity but 1: n modes,
each of which is one number that turns at every token.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

CHUNK = 16  # tokens of a whole sequence that a recurrence takes at once


def causal(u: Tensor, kernel: Tensor) -> Tensor:
    """y_i = sum_(j <= i) t_(i-j) u_j by channel, of [B, L, D] with a kernel [L, D], by the fast Fourier transform."""
    length = u.shape[1]
    spectrum = torch.fft.rfft(u, 2 * length, dim=1) * torch.fft.rfft(kernel, 2 * length, dim=0)
    return torch.fft.irfft(spectrum, 2 * length, dim=1)[:, :length]


class Modes(NamedTuple):
    """t_i = Re sum_k weight_k rate_k^i by channel: rates [K], weights [K, D], complex; `closing` is what mode zero
    weighs as a share of the kernel, which is nothing but for rounding."""

    rates: Tensor
    weights: Tensor
    closing: float


def modes_of(kernel: Tensor, decay: float = 1.0, half: bool = True, dtype: torch.dtype = torch.complex128) -> Modes:
    """The modes of a kernel [n, D] that is still to be multiplied by decay^i.

    A real kernel's modes come in conjugate pairs; `half` keeps one of each pair with twice its weight. Where n is odd,
    the mode that changes its sign at each token is its own partner, and is kept once.
    """
    n = len(kernel)
    size = n + 1
    kernel = kernel.detach().double()
    weights = torch.fft.ifft(torch.cat([kernel, -kernel.sum(0, keepdim=True)]), dim=0)
    closing = float(weights[0].abs().max() / kernel.norm().clamp_min(1e-300))
    k = torch.arange(1, size, dtype=torch.float64, device=kernel.device)
    rates = torch.polar(torch.full_like(k, decay), -2 * math.pi * k / size)
    weights = weights[1:]
    if half:
        pairs = (size - 1) // 2
        twice = weights[:pairs] * 2
        weights = torch.cat([twice, weights[pairs : pairs + 1]]) if size % 2 == 0 else twice
        rates = rates[: len(weights)]
    return Modes(rates.to(dtype), weights.to(dtype), closing)


class Recurrence(nn.Module):
    """h_k <- rate_k h_k + weight_k u,  y = Re sum_k h_k: a convolution at a constant cost for each token.

    It is exact for n tokens; behind them the kernel would come back, so that longer sequences are refused.
    """

    def __init__(self, modes: Modes, n: int):
        super().__init__()
        self.n = n
        self.rates: Tensor
        self.weights: Tensor
        self.register_buffer("rates", modes.rates.unsqueeze(-1))
        self.register_buffer("weights", modes.weights)

    def start(self, rows: int) -> tuple[Tensor, int]:
        """The state before the first token: [rows, K, D], and how many tokens there were."""
        return self.weights.new_zeros(rows, *self.weights.shape), 0

    def step(self, u: Tensor, state: tuple[Tensor, int]) -> tuple[Tensor, tuple[Tensor, int]]:
        """One token's u [B, D]; gives y [B, D]."""
        h, seen = state
        self._check(seen + 1)
        h = torch.addcmul(h * self.rates, self.weights, u.unsqueeze(1).to(h.dtype))
        return h.real.sum(1).to(u.dtype), (h, seen + 1)

    def forward(self, u: Tensor) -> Tensor:
        """A whole sequence [B, L, D], some tokens at a time: what the states before a chunk bring each of its tokens,
        and what the chunk's own tokens bring each other."""
        self._check(u.shape[1])
        (h, _), found = self.start(len(u)), []
        powers = self.rates.squeeze(-1) ** torch.arange(CHUNK + 1, device=u.device).unsqueeze(-1)  # [CHUNK + 1, K]
        within = lower((powers[:-1] @ self.weights).real)
        for part in u.to(h.real.dtype).split(CHUNK, 1):
            size = part.shape[1]
            own = torch.einsum("ijd,bjd->bid", within[:size, :size], part)
            found.append((powers[1 : size + 1] @ h).real + own)
            brought = powers[:size].flip(0).T @ part.to(h.dtype)
            h = torch.addcmul(h * powers[size].unsqueeze(-1), self.weights, brought)
        return torch.cat(found, 1).to(u.dtype)

    def _check(self, length: int) -> None:
        if length > self.n:
            raise ValueError(f"The recurrence is exact for {self.n} tokens, and here are {length}: convert for more.")


def lower(kernel: Tensor) -> Tensor:
    """The matrices [n, n, D] that convolve n tokens with a kernel [n, D]: t_(i - j), and nothing where j > i."""
    n = len(kernel)
    place = torch.arange(n, device=kernel.device)
    back = place.unsqueeze(1) - place
    return torch.where((back >= 0).unsqueeze(-1), kernel[back.clamp_min(0)], 0.0)


def impulse(recurrence: Recurrence, n: int) -> Tensor:
    """The kernel [n, D] that a recurrence really has, from running it on a single one, in its own precision."""
    h = recurrence.weights.clone()
    found = [h.real.sum(0)]
    for _ in range(n - 1):
        h = h * recurrence.rates
        found.append(h.real.sum(0))
    return torch.stack(found)
