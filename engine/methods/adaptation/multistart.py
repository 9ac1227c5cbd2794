"""The best of a policy's greedy tours from several first points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.fields import Whole
from engine.kit.routing import best_answers, builds_tours, every_start, greedy
from engine.parts import Batch, Decoder, Task, decoder

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run


@decoder(
    name="Greedy from several starts",
    paper="POMO: Policy Optimization with Multiple Optima for Reinforcement Learning",
    arxiv="2010.16011",
    example={
        "task": {"use": "tsp", "points": 5, "instances": 48},
        "model": {"use": "attention-model", "width": 8, "heads": 2, "layers": 1, "hidden": 16},
        "procedure": {"use": "rl4co-attention-model"},
        "training": {"batch_size": 4},
        "budget": {"steps": 4},
        "decoder": {"augment": True},
    },
)
class Multistart(Decoder):
    """Lets a policy build a tour from several first points, each time by its likeliest choices, and answers with the
    shortest. It can look at the points in the square's eight mirror images and quarter turns as well.

        answer = the shortest of greedy(g(points), first = s)    over starts s and symmetries g

    Helps: policies that were trained from every first point: the gap shrinks to a fraction.
    Hurts: nothing but the time that it takes.
    Cost: one tour for each start, eight times as many with the symmetries.
    Choices: starts are the first points of an instance, whose order means nothing.

    Args:
        starts: First points to begin at; 0 begins at every one.
        augment: Look at the eight symmetric pictures of the points too.
    """

    inputs = ("points",)
    outputs = ("tour",)

    def __init__(self, starts: Whole = 0, augment: bool = False):
        self.starts, self.augment = starts, augment

    @property
    def cost(self) -> float | None:
        return float(self.starts * (8 if self.augment else 1)) if self.starts else None

    def predict(self, run: Run, batch: Batch, rng: torch.Generator) -> Tensor:
        n = batch.x.shape[1]
        starts = every_start(len(batch), n, batch.x.device, min(self.starts, n))
        return best_answers(run, batch, greedy, starts, self.augment)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if not builds_tours(anatomy.module):
            return "It lets a policy build tours from several points, and this model builds none."
        if settings.get("starts", 0) > task.offer.size:
            return f"An instance has {task.offer.size} points to start from; write starts = 0 for all of them."
        return None
