"""The space that a search varies: recipe paths, each with a list of values or a range of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

RANGE = {"low", "high", "log", "whole"}


@dataclass(frozen=True)
class Axis:
    """What one path of the recipe may be: one of `values`, or, without them, a number from `low` to `high`."""

    path: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def size(self) -> float:
        """How many values there are; infinity for a range of real numbers."""
        if self.values:
            return len(self.values)
        return self.high - self.low + 1 if self.whole else math.inf

    def draw(self, rng: torch.Generator) -> Any:
        """One value: each of the list, or each number (on a log scale: each ratio), as likely as the other."""
        if self.values:
            return self.values[int(torch.randint(len(self.values), (), generator=rng))]
        share = float(torch.rand((), dtype=torch.float64, generator=rng))
        return self.at(share)

    def at(self, share: float) -> float | int:
        """The number at a share of the range, 0 being its lower end; a whole number owns an interval of its own."""
        low, high = self.low, self.high + 1 if self.whole else self.high
        number = low * (high / low) ** share if self.log else low + (high - low) * share
        if self.whole:
            return min(int(number), int(self.high))
        return min(max(number, self.low), self.high)


def axes(space: Mapping[str, Any], *, ranges: bool = True) -> list[Axis]:
    """The space's axes in its order. Raises ValueError with a sentence for whatever cannot be searched."""
    if not space:
        raise ValueError('The space is empty; name what to vary, such as "optimizer.lr" = [0.001, 0.01].')
    paths = list(space)
    for path in paths:
        if not path or not all(path.split(".")):
            raise ValueError(f"{path!r} is not a path of the recipe; write one such as 'optimizer.lr'.")
        inner = next((other for other in paths if other.startswith(f"{path}.")), None)
        if inner is not None:
            raise ValueError(f"{path!r} and {inner!r} are both varied, but the first holds the second; keep one.")
    return [_axis(path, choice, ranges) for path, choice in space.items()]


def _axis(path: str, choice: Any, ranges: bool) -> Axis:
    if isinstance(choice, Mapping):
        if not ranges:
            raise ValueError(f"{path!r} is a range; this search needs a list of values, such as [0.001, 0.01].")
        return _range(path, choice)
    if not isinstance(choice, Sequence) or isinstance(choice, str | bytes):
        raise ValueError(
            f"{path!r} is {choice!r}; give a list of values" + " or a range." * ranges + "." * (not ranges)
        )
    values = tuple(choice)
    if not values:
        raise ValueError(f"{path!r} has an empty list; give at least one value.")
    twice = next((v for i, v in enumerate(values) if any(v == w and type(v) is type(w) for w in values[:i])), None)
    if twice is not None:
        raise ValueError(f"{path!r} lists {twice!r} twice; list each value once.")
    return Axis(path, values)


def _range(path: str, choice: Mapping[str, Any]) -> Axis:
    extra = sorted(set(choice) - RANGE)
    if extra or not {"low", "high"} <= set(choice):
        raise ValueError(
            f"{path!r} is not a range"
            + (f" ({', '.join(extra)} means nothing there)" if extra else "")
            + "; write { low = 1e-4, high = 1e-1, log = true }, with whole = true for whole numbers."
        )
    low, high = choice["low"], choice["high"]
    log, whole = choice.get("log", False), choice.get("whole", False)
    for end, number in (("low", low), ("high", high)):
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"{path!r} has {end} = {number!r}; it must be a number.")
        if whole and number != int(number):
            raise ValueError(f"{path!r} has {end} = {number!r} with whole = true; it must be a whole number.")
    for flag, given in (("log", log), ("whole", whole)):
        if not isinstance(given, bool):
            raise ValueError(f"{path!r} has {flag} = {given!r}; it must be true or false.")
    if low >= high:
        raise ValueError(f"{path!r} goes from {low!r} to {high!r}; low must be below high.")
    if log and low <= 0:
        raise ValueError(f"{path!r} is on a log scale from {low!r}; low must be greater than 0 there.")
    return Axis(path, (), low, high, log, whole)
