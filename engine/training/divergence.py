"""Where a run went wrong: which layers' weights and gradients are not finite numbers any more."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from engine.training.run import Run

NAMED = 3


def all_finite(run: Run) -> bool:
    """Whether every weight is. Waits for the device once, for all of them."""
    return not (weights := [p for role in run.roles.values() for p in role.parameters]) or all(_finite(weights))


def layers(run: Run) -> str:
    """The layers that are lost, as the end of a sentence; empty where nothing or everything is lost.

    One step after the loss has gone, every weight that it depends on has too: then nothing tells where it began.
    """
    named: list[tuple[str, Tensor]] = [
        (name, p) for role in run.roles.values() for name, p in role.module.named_parameters()
    ]
    weights = _lost(named)
    if not weights:
        graded = [(name, p.grad) for name, p in named if p.grad is not None]
        found, count, what = _lost(graded), len(_layers(name for name, _ in graded)), "gradients"
    else:
        found, count, what = weights, len(_layers(name for name, _ in named)), "weights"
    if not found or len(found) == count:
        return ""
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f", with the {what} of {', '.join(found[:NAMED])}{more} lost, of {count} layers"


def _lost(named: list[tuple[str, Tensor]]) -> list[str]:
    finite = _finite([tensor for _, tensor in named]) if named else []
    return _layers(name for (name, _), fine in zip(named, finite, strict=True) if not fine)


def _layers(names: Iterable[str]) -> list[str]:
    """The modules that own these parameters, each once, in their order."""
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _finite(tensors: list[Tensor]) -> list[bool]:
    """Of each tensor whether all of it is finite: its largest number is not, where one in it is not. (A sum or a length
    may be too large for its type where every number is fine.)"""
    held = [tensor.detach() for tensor in tensors if tensor.numel()]
    if not held:
        return [True] * len(tensors)
    largest = torch.stack([norm.double() for norm in torch._foreach_norm(held, math.inf)])
    fine = iter(torch.isfinite(largest).tolist())
    return [next(fine) if tensor.numel() else True for tensor in tensors]
