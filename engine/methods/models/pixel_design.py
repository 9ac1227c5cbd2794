"""A design written down as it is: a number for each square."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.fields import ModelPart
from engine.parts import Model, Offer, model


@model(
    id="pixel-design",
    name="Design by pixels",
    example={
        "task": {"use": "structural-design", "rows": 8, "columns": 16},
        "model": {"start": {"use": "neural-structural-optimization", "filters": [3, 3, 2, 2, 1], "latent": 4}},
        "optimizer": {"use": "lbfgs", "max_iter": 2},
        "budget": {"steps": 4},
    },
    recommends={"optimizer": {"use": "lbfgs", "max_iter": 20, "tolerance_grad": 0.0, "tolerance_change": 0.0}},
)
class PixelDesign(Model):
    """Holds a design as one free number for each square of the grid: the plainest way to write one down.

        answer = logits [rows, columns], the same for all squares at the start

    Helps: A baseline for networks that make designs.
    Hurts: Each number learns alone, from what its own square does; the designs tend to be grey and fine.
    Cost: As many parameters as squares, in float64.

    Args:
        start: A model whose first design this one starts from, for a fair comparison with it.

    Raises:
        ValueError: For a task that does not ask for a design.
    """

    def __init__(self, offer: Offer, start: ModelPart | None = None):
        super().__init__()
        if offer.output != "design" or len(offer.answer) != 2:
            raise ValueError("It is one design on a grid, and the task asks for something else. Choose another model.")
        logits = torch.zeros(offer.answer, dtype=torch.float64)
        if start is not None:
            with torch.no_grad():
                logits = start(offer)().double()
        self.logits = nn.Parameter(logits)

    def forward(self) -> Tensor:
        return self.logits
