"""The best of many tours that a policy draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.fields import Count, Positive
from engine.kit.routing import best_answers, builds_tours, sampler
from engine.parts import Batch, Decoder, Task, decoder

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run


@decoder(
    name="Best of sampled tours",
    paper="Attention, Learn to Solve Routing Problems!",
    arxiv="1803.08475",
    example={
        "task": {"use": "tsp", "points": 5, "instances": 48},
        "model": {"use": "attention-model", "width": 8, "heads": 2, "layers": 1, "hidden": 16},
        "procedure": {"use": "rl4co-attention-model"},
        "training": {"batch_size": 4},
        "budget": {"steps": 4},
        "decoder": {"samples": 3},
    },
)
class TourSampling(Decoder):
    """Draws many tours from a policy, each choice as likely as the policy says, and answers with the shortest.

        answer = the shortest of K tours ~ p(tour | points)^(1 / temperature)

    Helps: where there is time for more than one look; the more tours, the shorter the best.
    Hurts: a policy that is still undecided: its draws are far from its best.
    Cost: K tours, eight times as many with the symmetries.
    Choices: tour k begins at point k (mod n), which is given and not drawn. The draws are the same at each evaluation
        of a step.

    Args:
        samples: Tours of each instance.
        temperature: Below 1 the policy's favourites are drawn more often than it says.
        augment: Draw that many in each of the square's eight symmetric pictures.
    """

    inputs = ("points",)
    outputs = ("tour",)

    def __init__(self, samples: Count = 100, temperature: Positive = 1.0, augment: bool = False):
        self.samples, self.temperature, self.augment = samples, temperature, augment

    @property
    def cost(self) -> float:
        return float(self.samples * (8 if self.augment else 1))

    def predict(self, run: Run, batch: Batch, rng: torch.Generator) -> Tensor:
        starts = torch.arange(self.samples, device=batch.x.device) % batch.x.shape[1]
        choose = sampler(rng, self.temperature)
        return best_answers(run, batch, choose, starts.expand(len(batch), -1), self.augment)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if not builds_tours(anatomy.module):
            return "It draws tours from a policy, and this model builds none."
        return None
