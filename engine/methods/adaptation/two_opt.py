"""Tours that are put right by exchanging two edges at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from engine.fields import Count
from engine.kit.routing import closest, every_start, nearest_neighbour, two_opt
from engine.parts import Batch, Decoder, decoder

if TYPE_CHECKING:
    from engine.training.run import Run


@decoder(
    id="two-opt",
    name="Tours improved by 2-opt",
    example={
        "task": {"use": "tsp", "points": 5, "instances": 48},
        "model": {"use": "attention-model", "width": 8, "heads": 2, "layers": 1, "hidden": 16},
        "procedure": {"use": "rl4co-attention-model"},
        "training": {"batch_size": 4},
        "budget": {"steps": 4},
    },
)
class TwoOpt(Decoder):
    """Takes a tour and exchanges the two edges that shorten it most, again and again, until no exchange does. The tour
    is the policy's, or one that goes on to the nearest point, which needs no policy at all and is what one would do by
    hand.

        tour <- tour with i..j turned round, for the (i, j) that shortens it most

    Helps: tours that cross themselves; shows what a policy knows that a simple rule does not.
    Hurts: nothing but the time that it takes: n^2 pairs an exchange.
    Cost: one call of the policy, or none with the nearest point.

    Args:
        start: The tour to begin with: the policy's answer, or going on to the nearest point.
        starts: First points from which the nearest point is gone on to; the shortest tour is taken.
        improve: Exchange edges; without it the tour is answered as it is.
    """

    inputs = ("points",)
    outputs = ("tour",)

    def __init__(self, start: Literal["policy", "nearest"] = "policy", starts: Count = 1, improve: bool = True):
        self.start, self.starts, self.improve = start, starts, improve

    @property
    def cost(self) -> float:
        return 1.0 if self.start == "policy" else 0.0

    def predict(self, run: Run, batch: Batch, rng: torch.Generator) -> Tensor:
        if self.start == "policy":
            tours: Tensor = run.answer(batch)
        else:
            n = batch.x.shape[1]
            starts = every_start(len(batch), n, batch.x.device, min(self.starts, n))
            tours = closest(batch.x, nearest_neighbour(batch.x, starts))
        return two_opt(batch.x, tours) if self.improve else tours
