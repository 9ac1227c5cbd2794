"""The negative log-likelihood of a sequence, by the sentence or by the token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch.nn import functional as F

from engine.parts import Batch, Loss, Task, Terms, loss

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy


@loss(
    name="Likelihood of a sequence",
    example={
        "task": {"use": "string-rewriting", "longest": 5, "alphabet": 4, "samples": 120, "held_out": 20},
        "model": {"use": "seq2seq-lstm", "layers": 1, "hidden": 8, "embed": 4},
    },
)
class SequenceLikelihood(Loss):
    """How unlikely the model holds the right answers to be: summed over the tokens of a sentence, or as a mean over all
    tokens of the batch. The two differ by the mean length, and a learning rate belongs to one of them.

        nll_i = -sum_t log p(y_it | y_i<t, x_i)
        sentence: (1 / B) sum_i nll_i;     token: sum_i nll_i / (all tokens of the batch)

    Helps: using a published learning rate and gradient limit with the scale that they were chosen for.
    Hurts: summed over long sentences, its gradients are large: plain SGD then needs a limit on their length.
    Cost: none.
    Choices: padding does not count, the end of a sentence does.

    Args:
        scale: Whether a sentence's tokens are summed, or all tokens of the batch averaged.
    """

    outputs = ("sequence", "next-token")

    def __init__(self, scale: Literal["sentence", "token"] = "sentence"):
        self.scale = scale

    def __call__(self, output: Any, batch: Batch) -> Terms:
        each = F.cross_entropy(output.flatten(0, 1), batch.target.flatten(), reduction="none").view(batch.target.shape)
        if batch.mask is not None:
            each = each * batch.mask
        nll = each.sum(1)
        if self.scale == "sentence":
            return {"task": nll}
        tokens = batch.mask.sum() if batch.mask is not None else batch.target.numel()
        return {"task": nll * len(nll) / tokens}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        training = recipe["training"]
        if settings["scale"] == "token" and (training["accumulate"] > 1 or training["workers"] > 1):
            return "A mean over the tokens of a batch cannot be split into parts; write accumulate = 1 and workers = 1."
        return None
