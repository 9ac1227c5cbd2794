"""Early-learning regularization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from engine.fields import Fraction, NonNegativeOverTime
from engine.parts import Batch, Task, Technique, Terms, Value, technique

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run


@torch.no_grad()
def remember(table: Tensor, index: Tensor, p: Tensor, beta: float) -> Tensor:
    """Moves the samples' rows of the table towards what the model answers now; returns them."""
    share = p / p.sum(-1, keepdim=True)
    rows = table[index].mul_(beta).add_(share.to(table.dtype), alpha=1 - beta)
    table[index] = rows
    return rows


def penalty(p: Tensor, target: Tensor) -> Tensor:
    """log(1 - <p, t>) for each sample: lowest where the answer agrees with the sample's own running target."""
    return torch.log1p(-(p * target).sum(-1))


@technique(
    id="elr",
    name="ELR",
    paper="Early-Learning Regularization Prevents Memorization of Noisy Labels",
    arxiv="2007.00151",
)
class ELR(Technique):
    """Remembers what the model believed about each sample early on, and keeps it from changing its mind later.
    A model learns the clean majority first; holding on to that keeps it from learning wrong labels by heart.

        p = clip(softmax(logits), clamp, 1 - clamp)
        t_i <- beta t_i + (1 - beta) p / sum(p)            in training only, before it is used
        L = task + lam mean_i log(1 - <p_i, t_i>)

    t has a row for each training sample, at first zero; no gradient flows into it.

    Helps: wrong labels, 20 to 80 % of them, with a model large enough to learn them by heart.
    Hurts: clean data, where the model has nothing to ignore; very short runs, before the rows mean anything.
    Cost: a table of training samples times classes, and a softmax a step.
    Choices: ELR+ (two networks that teach each other on mixed inputs) is not part of it. The total loss may be
        negative. A ramp, as ELR+ has, is a schedule on `lam`. Where a step mixes samples, the rows remember the mix.

    Args:
        lam: Weight of the penalty.
        beta: How slowly a sample's running target moves.
        clamp: Probabilities are kept this far from 0 and 1.
    """

    reads = ("output",)

    def __init__(
        self,
        lam: NonNegativeOverTime = 3.0,
        beta: Fraction = 0.7,
        clamp: Annotated[float, Field(gt=0, lt=0.5, json_schema_extra={"x-log": True})] = 1e-4,
    ):
        self.lam = Value.of(lam)
        self.beta = beta
        self.clamp = clamp
        self.table = torch.zeros(0, 0)

    def setup(self, run: Run) -> None:
        self.table = torch.zeros(run.samples, run.offer.size, device=run.device)

    def on_terms(self, run: Run, terms: Terms, output: Any, batch: Batch) -> Terms:
        p = output.softmax(-1).clamp(self.clamp, 1 - self.clamp)
        target = remember(self.table, batch.index, p.detach(), self.beta)
        return {**terms, "penalty:elr": self.lam.at(run.progress) * penalty(p, target)}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if task.offer.output != "classes":
            return f"It needs a task that offers classes, one target a sample; this one offers {task.offer.output}."
        return None
