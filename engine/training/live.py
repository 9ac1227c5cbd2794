"""The settings of a recipe that a part of it learns while it trains: found by path, checked, shared as one value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from engine import registry
from engine.errors import Problem
from engine.kit.live import bounds
from engine.parts import Value
from engine.settings import did_you_mean, unwrapped

Uses = Sequence[tuple[str, Mapping[str, Any]]]  # the parts of a recipe with their paths


def available(uses: Uses) -> dict[str, Any]:
    """The settings that can be learned, by path: those that their parts name in `live`, with what they are set to."""
    return {
        f"{path}.{name}": use[name]
        for path, use in uses
        for name in getattr(registry.classes()[use["use"]], "live", ())
        if name in use
    }


def _claims(uses: Uses) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What the parts of a recipe want to learn: the path of the field that says so, and what it holds."""
    for path, use in uses:
        for name, field in registry.schema_of(registry.classes()[use["use"]])["properties"].items():
            if unwrapped(field).get("x-live") and use.get(name):
                yield f"{path}.{name}", use[name]


def problems(uses: Uses) -> list[Problem]:
    """What is wrong with what is to be learned: no such value, one that cannot be learned, two owners."""
    there, found = available(uses), []
    owners: dict[str, str] = {}
    for where, live in _claims(uses):
        try:
            ranges = bounds(live)
        except ValueError as error:
            found.append(Problem(where, dict(live), str(error)))
            continue
        for path, bound in ranges.items():
            reason = ""
            if path not in there:
                known = f" There are {', '.join(there)}." if there else " No part of this recipe has one."
                hint = did_you_mean(path, there) or known
                reason = f"{path!r} is no value that can be learned while it trains.{hint}"
            elif path in owners:
                reason = f"{path!r} is learned by {owners[path]} already; a value has one owner, so leave it to one."
            elif isinstance(there[path], Mapping) and there[path].get("schedule"):
                reason = f"{path!r} follows a schedule, so it cannot be learned too; write a number there."
            elif start(there[path]) not in bound:
                ends = f"{bound.low:g} to {bound.high:g}"
                reason = f"{path!r} starts at {start(there[path]):g}, which is not in its range from {ends}."
            if reason:
                found.append(Problem(where, path, reason))
            owners.setdefault(path, where)
    return found


def start(value: Any) -> float:
    """The number that a value over time begins with."""
    return float(value["value"] if isinstance(value, Mapping) else value)


def values(uses: Uses, device: torch.device) -> dict[str, Value]:
    """The learned values of a recipe by path, at their start."""
    there, found = available(uses), {}
    for path in dict.fromkeys(path for _, live in _claims(uses) for path in live):
        found[path] = Value(start(there[path]))
        found[path].tensor = torch.tensor(found[path].value, device=device)
    return found


def placed(document: Mapping[str, Any], values: Mapping[str, Value]) -> dict[str, Any]:
    """A copy of the recipe in which the learned settings are the values themselves, for the parts to be built from."""
    return {name: _placed(part, name, values) for name, part in document.items()}


def _placed(part: Any, path: str, values: Mapping[str, Value]) -> Any:
    if path in values:
        return values[path]
    if isinstance(part, Mapping):
        return {name: _placed(inner, f"{path}.{name}", values) for name, inner in part.items()}
    if isinstance(part, list):
        return [_placed(inner, f"{path}.{i}", values) for i, inner in enumerate(part)]
    return part
