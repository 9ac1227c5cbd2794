"""Whether an embedding keeps its distances, or collapses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from engine.fields import Count, Positive
from engine.kit.embedding import distances, pairs_of, worst_violation
from engine.parts import Batch, Finding, Probe, Task, Terms, probe

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

STUCK = 0.05  # how near the margin, as a share of it, the loss of a stuck embedding is
COLLAPSED = 0.5  # the share of its first diameter below which a stuck embedding has collapsed


@probe(
    id="isometric-error",
    name="Isometric error and collapse",
    paper="Mathematical Justification of Hard Negative Mining via Isometric Approximation Theorem",
    arxiv="2210.11173",
    example={
        "task": {"use": "digit-retrieval", "dimensions": 4, "train_limit": 200},
        "loss": {"use": "hard-negative-isometric"},
        "sampler": {"use": "p-by-k", "each": 8},
    },
)
class IsometricError(Probe):
    """Watches the distances of an embedding in training: how wide it is, how far from one that meets every margin, and
    whether it has collapsed to a point.

        violation = max over triplets of margin + |f_a - f_p| - |f_a - f_n|
        violation / 2 <= d_iso(f, g) = sup over x, y of | |f(x) - f(y)| - |g(x) - g(y)| |,  for every g that meets the
        margins: an embedding f that violates one by that much is at least so far from all of them
        diameter = largest distance in a batch / that of the first batch

    stuck: the mean loss of the `last` steps is within 5 % of the margin. collapsed: stuck, and diameter below 0.5.

    Helps: seeing why a triplet loss stays at its margin; it does so where batches are large or dimensions few.
    Hurts: where batches differ in size, and with it their largest distance.
    Cost: a distance for each pair of a batch, in each step.
    Choices: distances are not squared. Evaluations tell the flags and the violation on the validation samples.

    Args:
        margin: The margin of the loss that is watched.
        last: Steps over which the loss is averaged.
    """

    when = "evaluation"
    reads = ("output",)

    def __init__(self, margin: Positive = 1.0, last: Count = 20):
        self.margin, self.last = margin, last
        self.seen = 0
        self.first = torch.zeros(())  # the first batch's diameter
        self.width = torch.zeros(())  # the last batch's, as a share of it
        self.losses = torch.zeros(last)

    def watch(self, run: Run, terms: Terms, output: Any, batch: Batch) -> None:
        apart = distances(output.detach())
        diameter = apart.amax()
        if not self.seen:
            self.first, self.losses = diameter, self.losses.to(diameter.device)
        self.width = diameter / self.first
        self.losses[self.seen % self.last] = terms["task"].detach().mean()
        self.seen += 1
        run.log("isometric-error/diameter", self.width)
        run.log("isometric-error/mean-distance", apart.sum() / (len(apart) * (len(apart) - 1)))
        run.log("isometric-error/violation", worst_violation(apart, *pairs_of(batch.target), self.margin))

    def look(self, run: Run) -> Finding:
        found = {}
        if self.seen:
            loss = float(self.losses.sum()) / min(self.seen, self.last)
            width = float(self.width)
            stuck = abs(loss - self.margin) <= STUCK * self.margin
            found = {"diameter": width, "stuck": float(stuck), "collapsed": float(stuck and width < COLLAPSED)}
        for batch in run.batches("val", limit=1024):
            apart = distances(run.predict(batch))
            found["violation"] = float(worst_violation(apart, *pairs_of(batch.target), self.margin))
        return Finding(found)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if task.offer.output != "embedding":
            return f"It watches the distances of an embedding, and the task offers {task.offer.output}."
        return None
