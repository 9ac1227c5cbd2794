"""Several views of each sample in one batch, each changed at random in its own way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.parts import Batch


def views(batch: Batch, count: int, rng: torch.Generator, noise: float = 0.0, shift: int = 0) -> Batch:
    """The batch `count` times over, its first input changed anew each time.

    The copies stand one after the other: sample i of a batch of B is in rows i, B + i and so on. Target, index, weight,
    mask, further inputs and metadata are repeated; `meta["view"]` numbers the copies.
    """
    made = repeated(batch, count)
    number = torch.arange(count, device=batch.index.device).repeat_interleave(len(batch))
    made = replace(made, meta={**made.meta, "view": number})
    return made.with_x(jitter(made.x, rng, noise, shift))


def repeated(batch: Batch, count: int) -> Batch:
    """The batch `count` times over, copy after copy."""

    def times(value: Any) -> Any:
        return value.repeat(count, *[1] * (value.dim() - 1)) if isinstance(value, Tensor) else value

    return replace(
        batch,
        inputs={name: times(x) for name, x in batch.inputs.items()},
        target=times(batch.target),
        index=times(batch.index),
        weight=times(batch.weight),
        mask=times(batch.mask),
        meta={name: times(x) for name, x in batch.meta.items()},
    )


def jitter(x: Tensor, rng: torch.Generator, noise: float = 0.0, shift: int = 0) -> Tensor:
    """Each sample moved by up to `shift` pixels each way (images [B, C, H, W]; zeros come in), then normal noise."""
    if shift:
        x = shifted(x, torch.randint(-shift, shift + 1, (2, len(x)), generator=rng, device=x.device), shift)
    if noise:
        x = x + noise * torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
    return x


def shifted(x: Tensor, by: Tensor, most: int) -> Tensor:
    """Images moved down by by[0] and right by by[1], whole pixels of at most `most`, a pair for each."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (most, most, most, most))
    sample = torch.arange(len(x), device=x.device)
    rows = most - by[0].unsqueeze(1) + torch.arange(height, device=x.device)
    columns = most - by[1].unsqueeze(1) + torch.arange(width, device=x.device)
    # Indices around a slice put the channels last.
    return padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
