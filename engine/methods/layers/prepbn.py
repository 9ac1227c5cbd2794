"""A norm that begins as layer normalization and ends as one that folds away, and attention of linear cost."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Count, Fraction, Whole
from engine.kit.anatomy import Site
from engine.kit.folding import Affine, scale_and_shift
from engine.parts import Layer, Progress, layer

PAPER = (
    "SLAB: Efficient Transformers with Simplified Linear Attention and Progressive Re-parameterized Batch Normalization"
)
ARXIV = "2405.11582"
TINY = 1e-6


class RepBN(nn.Module):
    """BN(x) + eta x, the statistics over all samples and positions; eta is learned. Channels stand last."""

    def __init__(self, features: int, eta: float = 1.0):
        super().__init__()
        self.eta = nn.Parameter(torch.tensor(eta))
        self.bn = nn.BatchNorm1d(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x.reshape(-1, x.shape[-1])).view_as(x) + self.eta * x

    @torch.no_grad()
    def as_affine(self) -> Affine:
        """gamma' = gamma + eta sqrt(var + eps), beta' = beta + eta mean: as a scale and a shift, eta + gamma / sqrt."""
        found = scale_and_shift(self.bn)
        assert found is not None
        scale, shift = found
        kind = self.eta.dtype
        return Affine((scale + self.eta.double()).to(kind), shift.to(kind), axis=-1)


@layer(
    id="prepbn",
    paper=PAPER,
    arxiv=ARXIV,
    name="Progressive re-parameterized batch norm (PRepBN)",
    example={
        "task": {"use": "digits"},
        "model": {"use": "transformer", "width": 16, "depth": 1, "heads": 2},
    },
)
class PRepBN(Layer):
    """Trains with layer normalization at first and moves step by step to a batch norm that stands still in evaluation,
    so that the trained model needs no norm at all: it folds into the next matrix.

        training:    out = r LN(x) + (1 - r) (BN(x) + eta x),   r = r0 (T - t) / T, falling from r0 to 0 over T steps
        evaluation:  out = BN(x) + eta x,   with running statistics
        fold:        out = (gamma / sqrt(var + eps) + eta) x + beta - gamma mean / sqrt(var + eps)

    The statistics are over all samples and positions.

    Helps: Transformers that must be fast where they are used: no pass over each position for its mean and deviation.
    Hurts: Small batches, and padded sequences, whose padding counts in the statistics; and accuracy a little, since
    batch norm suits transformers less: in a short run less so when it has moved by the middle. Evaluations before that
    look bad, as they see the batch norm alone.
    Cost: In training both norms; after folding none, or a scale and a shift where no matrix follows.

    Choices: The paper counts passes; here steps count, so that split batches and repeated passes do not hurry it. In
    warm_steps layer normalization is alone, and the running statistics begin after them.

    Args:
        site: The layer normalization that it takes the place of.
        total_steps: Steps over which it moves; 0 takes what the run has after the warm steps.
        warm_steps: Steps with layer normalization alone, before.
        r0: The share of layer normalization at first.
        eta: Where the learned factor of the input starts.

    Raises:
        ValueError: For a module that is no layer normalization over the last axis.
    """

    role = "norm"
    needs_total = True

    def __init__(
        self,
        site: Site | nn.Module,
        total_steps: Whole = 0,
        warm_steps: Whole = 0,
        r0: Fraction = 1.0,
        eta: float = 1.0,
    ):
        super().__init__()
        norm = site.module if isinstance(site, Site) else site
        if not isinstance(norm, nn.LayerNorm) or len(norm.normalized_shape) != 1 or norm.weight is None:
            raise ValueError(
                "progressive batch norm takes the place of a layer normalization with gains over the last axis, and "
                f"this is a {type(norm).__name__}. Choose a model with layer norms, such as a transformer."
            )
        self.total_steps, self.warm_steps, self.r0 = total_steps, warm_steps, r0
        self.features = norm.normalized_shape[0]
        self.ln, self.rep = norm, RepBN(self.features, eta)
        self.share: Tensor
        self.register_buffer("share", torch.tensor(float(r0)))
        self._warm = warm_steps > 0

    def tick(self, at: Progress) -> None:
        self._warm = at.step < self.warm_steps
        self.share.fill_(self.share_at(at))

    def share_at(self, at: Progress) -> float:
        """r, the share of layer normalization, at a moment after the warm steps; exactly 0 from their end + T on."""
        total = self.total_steps or max((at.steps or 1) - self.warm_steps, 1)
        gone = min(max(at.step - self.warm_steps, 0), total)
        return self.r0 * (total - gone) / total

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.rep(x)
        if self._warm:
            return self.ln(x)
        return self.share * self.ln(x) + (1 - self.share) * self.rep(x)

    def measures(self) -> dict[str, Tensor]:
        return {"share": self.share, "eta": self.rep.eta}

    def fold(self) -> nn.Module:
        return self.rep.as_affine()


# -- attention ---------------------------------------------------------------------------------------------------------


def linear_attention(q: Tensor, k: Tensor, v: Tensor, order: Literal["auto", "kv", "qk"] = "auto") -> Tensor:
    """sum_j (q_i . k_j) v_j / (sum_j q_i . k_j + 1e-6) for q, k >= 0 of shape [..., positions, numbers].

    `order`: which product comes first; both give the same, and auto takes the one with fewer multiplications.
    """
    places, size = q.shape[-2:]
    scale = 1 / ((q @ k.sum(-2).unsqueeze(-1)) + TINY)
    if order == "kv" or (order == "auto" and places > size):
        return q @ (k.transpose(-2, -1) @ v) * scale
    return (q @ k.transpose(-2, -1)) @ v * scale


class LinearMix(nn.Module):
    """The attention itself, without parameters, in float32 whatever the rest of the model computes in."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            return linear_attention(F.relu(q.float()), F.relu(k.float()), v.float())


@layer(
    id="simplified-linear-attention",
    paper=PAPER,
    arxiv=ARXIV,
    name="Simplified linear attention (SLA)",
    example={
        "task": {"use": "digits"},
        "model": {"use": "transformer", "width": 16, "depth": 1, "heads": 2},
    },
)
class SimplifiedLinearAttention(Layer):
    """Attention whose cost grows with the length, not with its square: queries and keys lose their negative parts, and
    no exponential stands between them, so that keys and values can be multiplied first.

        q' = relu(q),  k' = relu(k + p);   out_i = q'_i sum_j k'_j^T v_j / (q'_i . sum_j k'_j + 1e-6) + conv(v)_i

    p is a learned vector a position; conv is a small depthwise convolution along the positions, or over their grid,
    with the same kernels for each head. By head, in float32.

    Helps: Long sequences and large images.
    Hurts: Short sequences, where softmax attention is as fast and sharper.
    Cost: N d^2 a head instead of N^2 d.

    Choices: A grid is used where the positions are the square of a number and grid is "auto". The convolution starts as
    PyTorch starts it, and p at zero. Causal attention is refused: it would need running sums.

    Args:
        site: The attention that it takes the place of; its matrices are kept.
        kernel: Side of the depthwise convolution; an odd number.
        grid: Whether positions stand in a line or in a square; auto takes the square where there is one.

    Raises:
        ValueError: For a module that is no self-attention, or a causal one, and for an even kernel.
    """

    role = "attention"

    def __init__(self, site: Site | nn.Module, kernel: Count = 5, grid: Literal["auto", "line", "square"] = "auto"):
        super().__init__()
        old: Any = site.module if isinstance(site, Site) else site
        if not all(hasattr(old, name) for name in ("qkv", "out", "heads", "features")):
            raise ValueError(
                f"linear attention takes the place of self-attention with one matrix for queries, keys and values, and "
                f"this is a {type(old).__name__}. Choose a transformer and its attention as the sites."
            )
        if old.causal:
            raise ValueError(
                "linear attention sees all positions, and this model may only see those before each one. Choose a "
                "task that is no next-token prediction."
            )
        if kernel % 2 == 0:
            raise ValueError(f"A kernel of {kernel} has no middle. Write an odd number.")
        shape = site.shape if isinstance(site, Site) else None
        if shape is None:
            raise ValueError(
                "linear attention needs to know how many positions there are, and this place does not say."
            )
        self.features, self.heads, self.length = old.features, old.heads, shape[0]
        side = round(self.length**0.5)
        if grid == "square" and side * side != self.length:
            raise ValueError(f'{self.length} positions make no square. Write grid = "line".')
        self.side = side if grid != "line" and side * side == self.length else 0
        self.qkv, self.out = old.qkv, old.out
        self.mix = LinearMix()
        self.positions = nn.Parameter(torch.zeros(self.length, self.features))
        size, conv = self.features // self.heads, nn.Conv2d if self.side else nn.Conv1d
        self.conv = conv(size, size, kernel, padding=kernel // 2, groups=size)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, self.features // self.heads)).permute(2, 0, 3, 1, 4)
        positions = self.positions.unflatten(-1, (self.heads, self.features // self.heads)).transpose(0, 1)
        mixed = self.mix(qkv[0], qkv[1] + positions, qkv[2]) + self._local(qkv[2])
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _local(self, v: Tensor) -> Tensor:
        """The depthwise convolution of the values, the same for each head."""
        columns = v.flatten(0, 1).transpose(1, 2)
        if self.side:
            columns = columns.unflatten(-1, (self.side, self.side))
        out = self.conv(columns)
        if self.side:
            out = out.flatten(2)
        return out.transpose(1, 2).unflatten(0, (-1, self.heads))
