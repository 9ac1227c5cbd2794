"""Numbers that are learned inside a run: their ranges, and the free numbers that stand for them.

A learned value lies in a range, and what is learned is a number u without limits that a smooth rising map takes there:

    low and high:            low + (high - low) sigmoid(u)
    low and high, log:       low (high / low)^sigmoid(u)
    low alone:               low + log(1 + exp(u))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

KEYS = {"low", "high", "log"}
EDGE = 1e-4  # a start at the very end of a range is moved in by this share: from there the gradient would be zero


@dataclass(frozen=True)
class Bound:
    """The range of one learned value; without `high` it has no upper end."""

    low: float
    high: float = math.inf
    log: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def value(self, free: Tensor) -> Tensor:
        """The value that a free number stands for, differentiable."""
        if self.high == math.inf:
            return self.low + F.softplus(free)
        share = torch.sigmoid(free)
        return self.low * (self.high / self.low) ** share if self.log else self.low + (self.high - self.low) * share

    def free(self, value: float) -> float:
        """The free number that stands for a value, the inverse of `value`."""
        if self.high == math.inf:
            above = max(value - self.low, EDGE)
            return above + math.log(-math.expm1(-above))
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        share = min(max(share, EDGE), 1 - EDGE)
        return math.log(share / (1 - share))


def bounds(live: Mapping[str, Any]) -> dict[str, Bound]:
    """The ranges of a field `engine.fields.Live`, by path. Raises ValueError with a sentence for what is none."""
    return {path: _bound(path, entry) for path, entry in live.items()}


def _bound(path: str, entry: Any) -> Bound:
    if not isinstance(entry, Mapping) or set(entry) - KEYS or "low" not in entry:
        raise ValueError(
            f"{path!r} is {entry!r}; give its range, such as {{ low = 0, high = 0.9 }} or {{ low = 1e-4, high = 10, "
            "log = true }, or { low = 0 } where it has no upper end."
        )
    low, high, log = entry["low"], entry.get("high", math.inf), entry.get("log", False)
    for end, number in (("low", low), ("high", high)):
        if isinstance(number, bool) or not isinstance(number, int | float) or math.isnan(number):
            raise ValueError(f"{path!r} has {end} = {number!r}; it must be a number.")
    if not isinstance(log, bool):
        raise ValueError(f"{path!r} has log = {log!r}; it must be true or false.")
    if low >= high:
        raise ValueError(f"{path!r} goes from {low!r} to {high!r}; low must be below high.")
    if log and (low <= 0 or high == math.inf):
        raise ValueError(f"{path!r} is on a log scale from {low!r} to {high!r}; it needs two ends greater than 0.")
    return Bound(float(low), float(high), log)


def along(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A value ready to be multiplied with a batch: one for each sample is shaped to act on that sample's row."""
    if isinstance(value, Tensor) and value.dim() == 1:
        return value.view(-1, *[1] * (like.dim() - 1))
    return value
