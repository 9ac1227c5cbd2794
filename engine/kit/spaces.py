"""The space that a search varies: recipe paths, each with a list of values or a range of numbers.

An axis may hold only where another one has certain values: ``when = {path: [values]}``. A value may be a whole part
table, ``{use = ...}``; a condition may look into it (``"optimizer.use"``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

RANGE = {"low", "high", "log", "whole"}
LIST = {"values"}


@dataclass(frozen=True)
class Axis:
    """What one path of the recipe may be: one of `values`, or, without them, a number from `low` to `high`.

    `when` holds, for other paths, the values with which this axis counts; where one of them is not met, the path is
    left as the recipe has it.
    """

    path: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

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

    def at(self, share: float) -> Any:
        """The value at a share of the axis, 0 being its lower end; a whole number, or a value of a list, owns an
        interval of its own."""
        if self.values:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        low, high = self.low, self.high + 1 if self.whole else self.high
        number = low * (high / low) ** share if self.log else low + (high - low) * share
        if self.whole:
            return min(int(number), int(self.high))
        return min(max(number, self.low), self.high)

    def share(self, value: Any) -> float:
        """Where a value lies from 0 to 1: `at` undone; what owns an interval lies in its middle."""
        if self.values:
            place = next(i for i, each in enumerate(self.values) if _same(each, value))
            return (place + 0.5) / len(self.values)
        if not self.whole:
            return self._share(value, self.high)
        return (self._share(value, self.high + 1) + self._share(value + 1, self.high + 1)) / 2

    def _share(self, number: float, high: float) -> float:
        if self.log:
            return math.log(number / self.low) / math.log(high / self.low)
        return (number - self.low) / (high - self.low)

    def holds(self, changes: Mapping[str, Any]) -> bool:
        """Whether the axis counts beside these values of the others."""
        return all(any(_same(look(changes, path), value) for value in values) for path, values in self.when)


def look(changes: Mapping[str, Any], path: str) -> Any:
    """The value of a path among changes, also inside one that is a table; None where there is none."""
    if path in changes:
        return changes[path]
    head, dot, rest = path.rpartition(".")
    if not dot:
        return None
    table = look(changes, head)
    return table.get(rest) if isinstance(table, Mapping) else None


# -- configurations ----------------------------------------------------------------------------------------------------


def draw(axes: Sequence[Axis], rng: torch.Generator) -> dict[str, Any]:
    """One configuration by chance: a value for every axis that counts beside those before it."""
    changes: dict[str, Any] = {}
    for axis in axes:
        if axis.holds(changes):
            changes[axis.path] = axis.draw(rng)
    return changes


def combinations(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    """Every configuration of axes that have lists, the last axis changing fastest."""

    def rest(number: int, changes: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if number == len(axes):
            yield changes
        elif not axes[number].holds(changes):
            yield from rest(number + 1, changes)
        else:
            for value in axes[number].values:
                yield from rest(number + 1, {**changes, axes[number].path: value})

    return rest(0, {})


def count(axes: Sequence[Axis]) -> float:
    """How many configurations there are; infinity with a range of real numbers."""
    if any(not axis.values and not axis.whole for axis in axes):
        return math.inf
    if not any(axis.when for axis in axes):
        return math.prod(axis.size for axis in axes)
    deciding = {_owner(path, [a.path for a in axes]) for axis in axes for path, _ in axis.when}
    # What no condition asks for needs no enumeration: its size is enough.
    known = [axis for axis in axes if axis.path in deciding]
    if any(not axis.values for axis in known):
        return math.prod(axis.size for axis in axes)  # an upper bound: a condition on a number
    free = [axis for axis in axes if axis.path not in deciding]
    return sum(math.prod(a.size for a in free if a.holds(changes)) for changes in combinations(known))


def to_unit(axes: Sequence[Axis], changes: Mapping[str, Any]) -> list[float]:
    """A configuration as a point of the unit cube; NaN for the axes that do not count in it."""
    return [axis.share(changes[axis.path]) if axis.path in changes else math.nan for axis in axes]


def from_unit(axes: Sequence[Axis], point: Sequence[float]) -> dict[str, Any]:
    """The configuration at a point of the unit cube; coordinates of axes that do not count are passed over."""
    changes: dict[str, Any] = {}
    for axis, share in zip(axes, point, strict=True):
        if axis.holds(changes):
            changes[axis.path] = axis.at(share)
    return changes


# -- reading -----------------------------------------------------------------------------------------------------------


def axes(space: Mapping[str, Any], *, ranges: bool = True) -> list[Axis]:
    """The space's axes in its order, each after those that it depends on. Raises ValueError with a sentence for
    whatever cannot be searched."""
    if not space:
        raise ValueError('The space is empty; name what to vary, such as "optimizer.lr" = [0.001, 0.01].')
    paths = list(space)
    for path in paths:
        if not path or not all(path.split(".")):
            raise ValueError(f"{path!r} is not a path of the recipe; write one such as 'optimizer.lr'.")
    made = [_axis(path, choice, ranges) for path, choice in space.items()]
    parents = {axis.path: _parents(axis, paths) for axis in made}
    for path in paths:
        for inner in (other for other in paths if other.startswith(f"{path}.") and path not in parents[other]):
            raise ValueError(
                f"{path!r} and {inner!r} are both varied, but the first holds the second; keep one, or say with which "
                f"values of the first the second counts: when = {{ {path!r} = [...] }}."
            )
    for axis in made:
        _reachable(axis, {other.path: other for other in made})
    return _ordered(made, parents)


def _reachable(axis: Axis, made: Mapping[str, Axis]) -> None:
    """Every value that a condition names must be one that the other axis can have."""
    for path, values in axis.when:
        owner = made[str(_owner(path, list(made)))]
        there = [look({owner.path: value}, path) for value in owner.values]
        wrong = [value for value in values if not any(_same(value, each) for each in there)]
        if owner.values and wrong:
            known = ", ".join(repr(each) for each in there if each is not None) or "nothing"
            raise ValueError(f"{axis.path!r} counts when {path!r} is {wrong[0]!r}, which it never is: it is {known}.")


def _parents(axis: Axis, paths: Sequence[str]) -> set[str]:
    found = set()
    for path, _ in axis.when:
        owner = _owner(path, paths)
        if owner is None:
            raise ValueError(f"{axis.path!r} counts when {path!r} has certain values, but {path!r} is not varied.")
        if owner == axis.path:
            raise ValueError(f"{axis.path!r} cannot depend on itself; name another path under when.")
        found.add(owner)
    return found


def _owner(path: str, paths: Sequence[str]) -> str | None:
    """The varied path that decides the value at a path: itself, or the one that holds it."""
    while path:
        if path in paths:
            return path
        path = path.rpartition(".")[0]
    return None


def _ordered(made: list[Axis], parents: Mapping[str, set[str]]) -> list[Axis]:
    done: list[Axis] = []
    waiting = list(made)
    while waiting:
        known = {axis.path for axis in done}
        following = next((axis for axis in waiting if parents[axis.path] <= known), None)
        if following is None:
            circle = ", ".join(repr(axis.path) for axis in waiting)
            raise ValueError(f"{circle} depend on each other in a circle; let one of them always count.")
        waiting.remove(following)
        done.append(following)
    return done


def _axis(path: str, choice: Any, ranges: bool) -> Axis:
    if isinstance(choice, Mapping) and "values" in choice:
        extra = sorted(set(choice) - LIST - {"when"})
        if extra:
            raise ValueError(f"{path!r} has a list of values, beside which {', '.join(extra)} means nothing.")
        return Axis(path, _values(path, choice["values"], ranges), when=_when(path, choice))
    if isinstance(choice, Mapping):
        if not ranges:
            raise ValueError(f"{path!r} is a range; this search needs a list of values, such as [0.001, 0.01].")
        return _range(path, choice)
    return Axis(path, _values(path, choice, ranges))


def _values(path: str, choice: Any, ranges: bool) -> tuple[Any, ...]:
    if not isinstance(choice, Sequence) or isinstance(choice, str | bytes):
        raise ValueError(
            f"{path!r} is {choice!r}; give a list of values" + " or a range." * ranges + "." * (not ranges)
        )
    values = tuple(choice)
    if not values:
        raise ValueError(f"{path!r} has an empty list; give at least one value.")
    twice = next((v for i, v in enumerate(values) if any(_same(v, w) for w in values[:i])), None)
    if twice is not None:
        raise ValueError(f"{path!r} lists {twice!r} twice; list each value once.")
    return values


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and type(one) is type(other)


def _when(path: str, choice: Mapping[str, Any]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    when = choice.get("when", {})
    if not isinstance(when, Mapping) or not all(
        isinstance(values, list | tuple) and values for values in when.values()
    ):
        raise ValueError(
            f"{path!r} has when = {when!r}; write the values of other paths with which it counts, such as "
            'when = { "optimizer.use" = ["a", "b"] }.'
        )
    return tuple((str(other), tuple(values)) for other, values in when.items())


def _range(path: str, choice: Mapping[str, Any]) -> Axis:
    extra = sorted(set(choice) - RANGE - {"when"})
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
    return Axis(path, (), low, high, log, whole, _when(path, choice))
