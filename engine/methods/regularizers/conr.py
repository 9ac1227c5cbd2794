"""A contrastive regularizer for regression on unbalanced targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from engine.fields import Count, NonNegative, NonNegativeOverTime, Positive, Whole
from engine.kit.views import views
from engine.parts import Batch, Task, Technique, Terms, Value, technique

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "conr"


def distances(values: Tensor) -> Tensor:
    """How far the rows of [B] or [B, D] are apart, [B, B]."""
    rows = values.reshape(len(values), -1)
    return torch.linalg.vector_norm(rows.unsqueeze(1) - rows, dim=-1)


def pairs(target: Tensor, answer: Tensor, window: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which samples are positives of which anchor (a row each), which are negatives, and the distances of the labels.

    Positives have a label within the window. Negatives have one beyond it, but an answer within it.
    """
    apart = distances(target)
    near = apart <= window
    alone = torch.eye(len(target), dtype=torch.bool, device=target.device)
    return near & ~alone, ~near & (distances(answer.detach()) <= window), apart


def contrast(
    similarity: Tensor, positive: Tensor, negative: Tensor, log_push: Tensor, reference_sum: bool = False
) -> Tensor:
    """The loss of each anchor [B]; 0 for one that has no positive or no negative."""
    counted = positive.any(1) & negative.any(1)
    nothing = float("-inf")
    pull = torch.where(positive, similarity, 0.0 if reference_sum else nothing)
    push = torch.where(negative, similarity + log_push, nothing)
    logits = torch.where(counted.unsqueeze(1), torch.cat([pull, push], 1), 0.0)
    each = torch.where(positive, logits.logsumexp(1, keepdim=True) - similarity, 0.0).sum(1)
    return torch.where(counted, each / positive.sum(1).clamp_min(1), 0.0)


def rarity(target: Tensor, width: float, power: float) -> Tensor:
    """A weight for each sample: (samples whose label is in the same bin of that width)^-power, with mean 1."""
    rows = target.reshape(len(target), -1)
    bins = ((rows - rows.amin(0)) / width).floor().long()
    _, inverse, count = bins.unique(dim=0, return_inverse=True, return_counts=True)
    weight = count[inverse].to(target.dtype) ** -power
    return weight / weight.mean()


@technique(
    id=ID,
    name="ConR",
    paper="ConR: Contrastive Regularizer for Deep Imbalanced Regression",
    arxiv="2309.06651",
    example={"task": {"use": "imbalanced-regression", "samples": 200}},
)
class ConR(Technique):
    """Pulls samples with similar labels together in feature space and pushes apart those that the model takes for
    similar although their labels differ. So rare labels are not drowned by the frequent ones near them.

        positives of i: |y_i - y_j| <= w;   negatives: |y_i - y_j| > w and |a_i - a_j| <= w,  a: the model's answers
        s_ij = <f_i, f_j> / tau, features at unit length;   S_ij = rho_i exp(push |y_i - y_j| / range)
        L_i = -mean_p log( exp(s_ip) / (sum_p exp(s_ip) + sum_n S_in exp(s_in)) ),  0 where i has no negative
        loss + beta mean_i rho_i L_i

    rho is larger for rare labels: one over the (root of the) number of training samples whose label is in the same bin
    of width w, with mean 1. Each sample is in the batch in several views, each with its own random change.

    Helps: regression whose targets have a long tail, in the tail.
    Hurts: where targets are even it has little to do. With too large a beta every error grows: its weight goes with
        the size of the task's own loss. 4 is published for ages of 0 to 100; for labels of 0 to 1 take 0.03 to 0.1.
    Cost: the batch is `views` times as large, and every pair of its samples is compared.
    Choices: no gradient flows through the answers that choose the pairs. w and push are in shares of the range of the
        training labels: push = 1 is the published 0.01 for ages of 0 to 100. The published code adds 1 to the first sum
        for every sample that is no positive of i, itself included; `reference_sum` does so too.

    Args:
        beta: Weight of the regularizer.
        window: w, as a share of the range of the training labels.
        tau: Temperature of the similarities.
        push: How much harder samples are pushed apart the more their labels differ.
        weight: What rare labels count: one over the number, over its root, or all the same.
        views: Copies of each sample in a batch.
        jitter: Standard deviation of the normal noise on each view's input.
        shift: For images: pixels by which a view is moved at most, each way.
        reference_sum: Whether the sum over positives counts the published code's further ones.
    """

    reads = ("output", "features")
    additive = False

    def __init__(
        self,
        beta: NonNegativeOverTime = 4.0,
        window: Annotated[float, Field(gt=0, lt=1)] = 0.05,
        tau: Positive = 0.07,
        push: NonNegative = 1.0,
        weight: Literal["inverse_sqrt", "inverse", "none"] = "inverse_sqrt",
        views: Count = 2,
        jitter: NonNegative = 0.1,
        shift: Whole = 0,
        reference_sum: bool = False,
    ):
        self.beta = Value.of(beta)
        self.window, self.tau, self.push, self.weight = window, tau, push, weight
        self.views, self.jitter, self.shift, self.reference_sum = views, jitter, shift, reference_sum

    def setup(self, run: Run) -> None:
        target = run.columns("train")["target"]
        rows = target.reshape(len(target), -1)
        self._range = float(torch.linalg.vector_norm(rows.amax(0) - rows.amin(0)))
        power = {"inverse_sqrt": 0.5, "inverse": 1.0, "none": 0.0}[self.weight]
        self._rho = rarity(target, self.window * self._range, power)

    def on_batch(self, run: Run, batch: Batch) -> Batch:
        return views(batch, self.views, run.rng(ID), self.jitter, self.shift)

    def on_terms(self, run: Run, terms: Terms, output: Any, batch: Batch) -> Terms:
        rho = self._rho[batch.index]
        positive, negative, apart = pairs(batch.target, output, self.window * self._range)
        unit = F.normalize(run.features.flatten(1), dim=1)
        log_push = rho.log().unsqueeze(1) + self.push / self._range * apart
        each = contrast(unit @ unit.T / self.tau, positive, negative, log_push, self.reference_sum)
        return {**terms, "penalty:conr": self.beta.at(run.progress) * rho * each}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if task.offer.output != "values":
            return f"It compares numbers that are predicted; choose a task with values, not {task.offer.output}."
        if task.offer.input == "tokens":
            return "It makes views by noise on the inputs, and this task's inputs are tokens."
        if settings["shift"] and task.offer.input != "image":
            return "Only images can be shifted; write shift = 0."
        return None
