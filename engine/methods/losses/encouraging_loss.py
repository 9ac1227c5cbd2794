"""Encouraging loss: cross-entropy that does not forget the samples it already gets right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.fields import Fraction, Positive
from engine.parts import Batch, Loss, Terms, loss


def bonus(log_p: Tensor, log_end: float = 0.75, clamp: float = 1e-5) -> Tensor:
    """log(1 - p) up to p = log_end, its tangent line from there on; p is given by its logarithm."""
    p = log_p.exp()
    # The branch that `where` does not take is computed too: without the clamp its gradient at p = 1 would be NaN.
    curve = (-torch.expm1(log_p)).clamp_min(clamp).log()
    if log_end >= 1:
        return curve
    left = 1 - log_end
    line = torch.log(torch.full_like(p, left)) - (p - log_end) / left
    return torch.where(p > log_end, line, curve)


@loss(
    id="encouraging-loss",
    name="Encouraging loss",
    paper="Well-classified Examples are Underestimated in Classification with Deep Neural Networks",
    arxiv="2110.06537",
)
class EncouragingLoss(Loss):
    """Adds a reward for confidence to the cross-entropy, so that samples already classified well go on teaching.
    The margin between the right class and the others grows further than with cross-entropy alone.

        L = -log p + b(p),   p = softmax(logits)_y
        b(p) = log(1 - p)                              for p <= log_end
        b(p) = log(1 - e) - (p - e) / (1 - e)          for p > e = log_end

    Without the tangent (log_end = 1) dL / d logit_y is -1 for every p; cross-entropy's fades as -(1 - p).

    Helps: long-tailed data, margins and robustness, when training lasts long enough.
    Hurts: early in training, when the frequent classes are favoured first; with log_end = 1 training can get stuck.
    Cost: none to speak of.
    Choices: a soft target counts as its classes' losses weighted by their probabilities. The value may be negative;
        the validation loss stays the task's own.

    Args:
        log_end: Probability from which the reward goes on as a straight line; 0.5 is safe everywhere, 1 has no line.
        clamp: Smallest 1 - p under the logarithm.
    """

    outputs = ("classes", "next-token")

    def __init__(self, log_end: Fraction = 0.75, clamp: Positive = 1e-5):
        self.log_end = log_end
        self.clamp = clamp

    def __call__(self, output: Any, batch: Batch) -> Terms:
        log_p = output.log_softmax(-1)
        if batch.target.dim() == output.dim():
            each = (batch.target * self.per_class(log_p)).sum(-1)
        else:
            known = batch.target.clamp_min(0)  # a sample that is not asked for has no label, and no weight in the loss
            each = self.per_class(log_p.gather(-1, known.unsqueeze(-1)).squeeze(-1))
        return {"task": each if each.dim() == 1 else _over_positions(each, batch.mask)}

    def per_class(self, log_p: Tensor) -> Tensor:
        """The loss of a class being the right one, by the logarithm of its probability."""
        return bonus(log_p, self.log_end, self.clamp) - log_p


def _over_positions(each: Tensor, mask: Tensor | None) -> Tensor:
    each = each.flatten(1)
    if mask is None:
        return each.mean(1)
    kept = mask.flatten(1).to(each.dtype)
    return (each * kept).sum(1) / kept.sum(1).clamp_min(1)
