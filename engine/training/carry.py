"""Weights from one model to another, by name and shape: from a source to a run, from a phase to the next."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


@dataclass
class Carried:
    """What of the new model's tensors came from the old one, and what did not."""

    same: set[str] = field(default_factory=set)  # under the same name, in the same shape
    mapped: set[str] = field(default_factory=set)  # a weight under a map on one side alone: what is computed with
    reshaped: list[str] = field(default_factory=list)  # there, in another shape: these start afresh
    fresh: list[str] = field(default_factory=list)  # not there: these start afresh
    unused: list[str] = field(default_factory=list)  # of the old model

    @property
    def count(self) -> int:
        return len(self.same) + len(self.mapped)

    def sentence(self, label: str) -> str:
        """What a person reads of it."""
        total = self.count + len(self.reshaped) + len(self.fresh)
        words = f"The model starts from {label}: {self.count} of its {total} tensors are taken."
        for names, what in (
            (self.reshaped, "have another shape there and start afresh"),
            (self.fresh, "are not there and start afresh"),
            (self.unused, "are there and not used"),
        ):
            if names:
                words += f" {_some(names)} {what}."
        return words


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@torch.no_grad()
def carry(old: nn.Module, new: nn.Module) -> Carried:
    """Writes the old model's tensors into the new one, in place.

    A weight that is mapped (masked, reparametrized) in one of the two alone passes as what the old model computes with.
    """
    theirs, mine = old.state_dict(), new.state_dict()
    report = Carried()
    used: set[str] = set()
    for name, tensor in mine.items():
        if name in theirs and isinstance(tensor, Tensor) and theirs[name].shape == tensor.shape:
            tensor.copy_(theirs[name])
            report.same.add(name)
            used.add(name)
    _carry_mapped(old, new, report, used)
    for name in mine:
        if name not in report.same and name not in report.mapped:
            (report.reshaped if name in theirs else report.fresh).append(name)
    report.unused = [name for name in theirs if name not in used and name not in report.reshaped]
    return report


def _carry_mapped(old: nn.Module, new: nn.Module, report: Carried, used: set[str]) -> None:
    before = dict(old.named_modules())
    for path, module in new.named_modules():
        other = before.get(path, nn.Module())
        for name in _weights(module):
            dot = f"{path}." if path else ""
            mapped, was = parametrize.is_parametrized(module, name), parametrize.is_parametrized(other, name)
            if mapped == was or not isinstance(value := getattr(other, name, None), Tensor):
                continue
            if value.shape != getattr(module, name).shape:
                continue
            _write(module, name, value)
            inner = f"{dot}parametrizations.{name}."
            names = {n for n in new.state_dict() if n.startswith(inner)} if mapped else {f"{dot}{name}"}
            report.mapped |= names
            used |= {n for n in old.state_dict() if n.startswith(inner)} if was else {f"{dot}{name}"}


def _weights(module: nn.Module) -> list[str]:
    maps = list(module.parametrizations) if parametrize.is_parametrized(module) else []  # type: ignore[arg-type]
    return maps + [name for name, value in module._parameters.items() if value is not None]


def _write(module: nn.Module, name: str, value: Tensor) -> None:
    if not parametrize.is_parametrized(module, name):
        getattr(module, name).copy_(value)
        return
    stack = module.parametrizations[name]  # type: ignore[index]
    if all(hasattr(each, "right_inverse") for each in stack):
        setattr(module, name, value.detach())
    else:
        stack.original.copy_(value)  # type: ignore[union-attr]
