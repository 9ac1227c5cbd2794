"""The structure log of a run: what was done to the model since it was built, to be done again on a fresh one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine import registry
from engine.errors import CheckpointError, Problem
from engine.parts import Moves, info
from engine.training.measure import parameter_count
from engine.training.state import pack, unpack

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

Use = tuple[str, Mapping[str, Any]]  # a part of a recipe: its path and its table
Entry = dict[str, Any]  # part, operation, arguments (packed: plain data and tensors), step


class Structure:
    """The rewrites of a run's model, in their order."""

    def __init__(self) -> None:
        self.log: list[Entry] = []

    def rewrite(self, run: Run, part: str, operation: str, arguments: Mapping[str, Any], replaces: bool) -> Moves:
        """Carries out an operation and keeps it; what the person reads of it is one event."""
        before = parameter_count(run.model)
        packed = pack(dict(arguments), f"{part}.{operation}")
        moves = _apply(run, part, operation, packed)
        last = self.log[-1] if self.log else None
        if replaces and last is not None and (last["part"], last["operation"]) == (part, operation):
            self.log.pop()
        else:
            after = parameter_count(run.model)
            run.note(f"{part}: {operation}. The model had {before:,} parameters, it has {after:,} now.", kind="surgery")
        self.log.append({"part": part, "operation": operation, "arguments": packed, "step": run.step})
        return moves

    def replay(self, run: Run, saved: Sequence[Entry]) -> None:
        """Brings a freshly assembled model to a saved structure. What assembling it did is in both logs."""
        done = len(self.log)
        if len(saved) < done or any(not _same(a, b) for a, b in zip(self.log, saved, strict=False)):
            raise CheckpointError(
                "The checkpoint does not fit this recipe: its model was changed in another way from the start."
            )
        for entry in saved[done:]:
            if entry["part"] not in registry.classes():
                raise CheckpointError(
                    f"The model of this checkpoint was changed by {entry['part']}, and there is no such part here."
                )
            _apply(run, entry["part"], entry["operation"], entry["arguments"])
            self.log.append(dict(entry))


def _apply(run: Run, part: str, operation: str, packed: Any) -> Moves:
    cls: Any = registry.classes()[part]
    moves: Moves = cls.rewrite(run, operation, unpack(packed, run.device))
    run.on_surgery(moves)
    return moves


def _same(one: Any, other: Any) -> bool:
    """Whether two packed values are equal; of entries of the log, what was done and not when."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one.cpu(), other.cpu())
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one if key != "step")
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


# -- what clashes ------------------------------------------------------------------------------------------------------


def problems(uses: Sequence[Use], anatomy: Anatomy) -> list[Problem]:
    """What the parts of a recipe (with their paths) want of the model's parameters that cannot be, said beforehand."""
    return _cannot_follow(uses) + _claims(uses, anatomy)


def _cannot_follow(uses: Sequence[Use]) -> list[Problem]:
    """What holds on to parameters cannot stand beside what exchanges them while training, unless it follows."""
    classes = {path: registry.classes()[use["use"]] for path, use in uses}
    rewriting = {path: info(cls).id for path, cls in classes.items() if getattr(cls, "rewrites", False)}
    found = []
    for path, cls in classes.items():
        others = [id for where, id in rewriting.items() if where != path]
        if others and getattr(cls, "keeps_parameters", False) and not hasattr(cls, "on_surgery"):
            sentence = (
                f"{others[0]} exchanges the model's parameters while it trains, and {info(cls).id} holds on to those "
                "that it found at the start; use one without the other."
            )
            found.append(Problem(path, info(cls).id, sentence))
    return found


def _claims(uses: Sequence[Use], anatomy: Anatomy) -> list[Problem]:
    """Two parts that want the same of a weight that only one can have: its mask, or the weight itself."""
    claimed: dict[str, list[tuple[str, str]]] = {}
    found: list[Problem] = []
    for path, use in uses:
        cls = registry.classes()[use["use"]]
        claims = getattr(cls, "claims", None)
        with suppress(ValueError):  # what it cannot select, its `requires` has said
            for name, claim in (claims(registry.settings_of(use), anatomy) if claims else {}).items():
                for other, before in claimed.setdefault(name, []):
                    sentence = _clash(name, other, before, use["use"], claim)
                    if sentence and not any(p.path == path for p in found):
                        found.append(Problem(path, use["use"], sentence))
                claimed[name].append((use["use"], claim))
    return found


def _clash(name: str, other: str, before: str, id: str, claim: str) -> str:
    if "factors" in (before, claim):
        first, second = (other, id) if before == "factors" else (id, other)
        return f"{first} puts factors in the place of the weight {name}, and nothing is left for {second} to act on."
    if before == claim == "mask":
        return (
            f"{other} and {id} both want to mask the weight {name!r}. One weight has one mask: remove one of them, or "
            "select different modules."
        )
    return ""
