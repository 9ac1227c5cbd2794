"""An ensemble of one model: its dropout stays on while it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from engine.fields import Count
from engine.kit.supervised import mean_answer
from engine.parts import Batch, Decoder, Task, decoder

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run


def dropouts(model: nn.Module) -> list[_DropoutNd]:
    """The dropout layers that silence anything."""
    return [m for m in model.modules() if isinstance(m, _DropoutNd) and m.p > 0]


@contextmanager
def dropping(model: nn.Module) -> Iterator[None]:
    """Within the context dropout acts, whatever mode the model is in."""
    layers = dropouts(model)
    before = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.training = training


@decoder(
    id="mc-dropout",
    name="Monte Carlo dropout",
    paper="Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning",
    arxiv="1506.02142",
    example={"model": {"dropout": 0.2}, "decoder": {"samples": 3}},
)
class MCDropout(Decoder):
    """Answers with the mean of several passes, each with other units silenced at random, as in training. The passes
    are samples of what the model might have learned; where they disagree, the mean is less sure.

        p(y | x) = mean over n masks of softmax f(x; mask)        (numbers: the mean of f)

    Helps: probabilities that are nearer to how often the model is right, mostly on inputs unlike the training data.
    Hurts: accuracy, a little, with few masks; a model whose dropout is small changes hardly at all.
    Cost: one pass for each mask.
    Choices: the answer keeps the form of logits: log-probabilities, so that every metric and loss works on it.

    Args:
        samples: Masks that are averaged over.
    """

    def __init__(self, samples: Count = 20):
        self.samples = samples

    @property
    def cost(self) -> float:
        return float(self.samples)

    def predict(self, run: Run, batch: Batch, rng: torch.Generator) -> Tensor:
        with dropping(run.model):
            return mean_answer((run.answer(batch) for _ in range(self.samples)), run.offer.output)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if not dropouts(anatomy.module):
            return "It samples dropout masks, and the model silences nothing; set a dropout above 0."
        return None
