"""What tasks share that are one problem instead of samples, and the procedures that solve it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from engine.parts import Batch, Procedure


def solution(answer: Callable[[Batch], Any], rng: torch.Generator) -> Any:
    """What is answered to the batch that stands for the one problem."""
    return answer(Batch({}, None, torch.zeros(1, dtype=torch.long, device=rng.device), "val"))


class Solver(Procedure):
    """A numerical method: it needs no model and no optimizer, and has no gradients for techniques to act on.

    A subclass implements `make_model`, and `step` or `act`.
    """

    uses: ClassVar[tuple[str, ...]] = ()
    offers: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[tuple[str, ...]] = ("solution",)
    divisible = False
    brings_objective = True
