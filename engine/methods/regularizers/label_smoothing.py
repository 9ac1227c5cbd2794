"""Targets that leave a little probability for every class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.fields import FractionOverTime
from engine.kit.supervised import cross_entropy
from engine.parts import Batch, Task, Technique, Terms, Value, technique

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run


@technique()
class LabelSmoothing(Technique):
    """Asks the model to be nearly sure of the right class instead of entirely sure.

    A part of each target is spread evenly over all classes, so that no answer can be pushed to infinity.

        loss <- (1 - amount) (-log p_y) + amount (-mean_k log p_k)
        p: the model's probabilities; y: the right class; k: every class

    Helps: Classifiers that are too sure of themselves, and wrong labels; accuracy often rises a little.

    Hurts: The training loss no longer goes to zero, and a model that is to teach another one teaches it less.

    Cost: One more pass over the answers, not over the model.

    Args:
        amount: the share of the target that is spread over all classes
    """

    def __init__(self, amount: FractionOverTime = 0.1) -> None:
        self.amount = Value.of(amount)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if task.offer.output not in ("classes", "next-token"):
            return "It smooths classes or tokens, and the task asks for numbers. Leave it out."
        if recipe.get("loss"):
            return "It smooths the task's own loss, and the recipe has another one. Leave out one of the two."
        return None

    def on_terms(self, run: Run, terms: Terms, output: Tensor, batch: Batch) -> Terms:
        amount = self.amount.at(run.progress)
        if amount == 0.0 or "task" not in terms:
            return terms
        even = torch.full_like(output, 1.0 / output.shape[-1])
        return {**terms, "task": torch.lerp(terms["task"], cross_entropy(output, even, batch.mask), amount)}
