"""Training for the group that fares worst."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.fields import NonNegative
from engine.kit.groups import group_means
from engine.parts import Batch, Technique, Terms, technique

if TYPE_CHECKING:
    from engine.training.run import Run

LOG_EVERY = 10


def raised(q: Tensor, losses: Tensor, eta: float) -> Tensor:
    """q_g exp(eta L_g), made to sum to 1; in logarithms, so that no loss is too large. A weight of 0 stays 0."""
    return (q.log() + eta * losses).softmax(0)


@technique(
    id="group-dro",
    name="Group DRO",
    paper="Distributionally Robust Neural Networks for Group Shifts: On the Importance of Regularization for "
    "Worst-Case Generalization",
    arxiv="1911.08731",
    recommends={
        "sampler": {"use": "balanced", "column": "group"},
        "optimizer": {"use": "sgd", "lr": 0.001, "momentum": 0.9, "weight_decay": 0.1},
    },
    example={"task": {"use": "striped-digits", "train_limit": 200}, "sampler": {"use": "balanced", "column": "group"}},
)
class GroupDRO(Technique):
    """Trains for the groups that the model is worst at, in place of the average sample. A weight for each group grows
    while its loss is high, and the step follows the weighted sum of the groups' losses.

        L_g = mean loss of the batch's samples of group g (0 where it has none) + adjustment / sqrt(n_g)
        q_g <- q_g exp(eta L_g) / sum_h q_h exp(eta L_h)          q starts equal
        loss = sum_g q_g L_g,  q held fixed

    n_g: the training samples of group g.

    Helps: groups that the average forgets: rare ones, and those in which what is usually true does not hold.
    Hurts: the average, by some points. Without strong weight decay or an early stop a large model fits every group,
        and nothing is left to weigh: then it does as plain training does. Balanced batches and weight decay are much of
        the gain: try them alone first. With a large eta the weight runs away with one group.
    Cost: none to speak of.
    Choices: it weighs the task's own term, whichever loss makes it; penalties stay as they are. Take batches that are
        balanced by group, or rare groups are often absent. The paper's weight decay of 0.1 goes with its small learning
        rates: with a rate of 0.05 take 0.01 to 0.02. `normalize` divides the losses by their sum in the exponent alone.
        The choice of the worst share of groups, and running means of the losses, are not part of it.

    Args:
        eta: How fast the weights follow the losses; 0 keeps the groups equal.
        adjustment: C, which makes up for the wider gap between training and test in small groups.
        normalize: Whether the losses are divided by their sum before the weights follow them.

    Raises:
        ValueError: Where the loss has no value for each sample.
    """

    reads = ("output",)
    needs = ("group",)
    additive = False

    def __init__(self, eta: NonNegative = 0.01, adjustment: NonNegative = 0.0, normalize: bool = False):
        self.eta, self.adjustment, self.normalize = eta, adjustment, normalize
        self.q = torch.zeros(0)

    def setup(self, run: Run) -> None:
        count = run.columns("train")["meta.group"].bincount(minlength=len(run.task.groups))
        there = count > 0
        self._bonus = self.adjustment / count.clamp_min(1).sqrt()
        self.q = there / there.sum()
        self._names = [*run.task.groups, *(str(g) for g in range(len(run.task.groups), len(count)))]

    def on_terms(self, run: Run, terms: Terms, output: Any, batch: Batch) -> Terms:
        each = terms.get("task")
        if each is None or each.dim() != 1:
            raise ValueError("Group DRO needs the loss of each sample, and this loss has one value for the batch.")
        losses = group_means(each, batch.meta["group"], len(self.q), batch.weight) + self._bonus
        self.q = self.follow(losses.detach())
        if run.step % LOG_EVERY == 0:
            for name, weight in zip(self._names, self.q, strict=True):
                run.log(f"group-dro/weight/{name}", weight)
        return {**terms, "task": self.q @ losses}

    def follow(self, losses: Tensor) -> Tensor:
        """The weights after a step with these losses of the groups."""
        return raised(self.q, losses / losses.sum() if self.normalize else losses, self.eta)
