"""An answer from several copies of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from engine.fields import Count
from engine.kit.supervised import mean_answer
from engine.parts import Batch, Decoder, decoder

if TYPE_CHECKING:
    from engine.training.run import Run


def shifts(reach: int, copies: str = "cross") -> list[tuple[int, int]]:
    """Rows and columns by which the copies are moved; the image itself is the first."""
    span = range(-reach, reach + 1)
    every = [(i, j) for i in span for j in span if copies == "square" or i == 0 or j == 0]
    return sorted(every, key=lambda shift: abs(shift[0]) + abs(shift[1]))


def moved(x: Tensor, rows: int, columns: int) -> Tensor:
    """Images [..., H, W] moved down and to the right; the pixels at the edge fill what becomes free."""
    height, width = x.shape[-2:]
    at = torch.arange(height, device=x.device).sub(rows).clamp(0, height - 1)
    x = x.index_select(-2, at)
    return x.index_select(-1, torch.arange(width, device=x.device).sub(columns).clamp(0, width - 1))


@decoder(id="shifted-copies", name="Shifted copies", example={"task": {"use": "digits"}, "model": {"use": "cnn"}})
class ShiftedCopies(Decoder):
    """Answers with the mean over an image and copies of it that are moved by some pixels. A model that was never
    taught that a moved digit is the same digit is helped most.

        p(y | x) = mean over shifts of softmax f(x moved by the shift)        (numbers: the mean of f)

    Helps: small images, and models without pooling.
    Hurts: where the place of a thing is what it means.
    Cost: one pass for each copy: 4 reach + 1 of them in a cross, (2 reach + 1)^2 in a square.
    Choices: pixels at the edge fill what a shift leaves free. The answer is the log of a mean of probabilities.

    Args:
        reach: Pixels of the farthest shift.
        copies: Shifts along one axis at a time, or along both together.
    """

    inputs = ("image",)

    def __init__(self, reach: Count = 1, copies: Literal["cross", "square"] = "cross"):
        self.reach, self.copies = reach, copies

    @property
    def cost(self) -> float:
        return float(len(shifts(self.reach, self.copies)))

    def predict(self, run: Run, batch: Batch, rng: torch.Generator) -> Tensor:
        copies = (batch.with_x(moved(batch.x, *shift)) for shift in shifts(self.reach, self.copies))
        return mean_answer((run.answer(copy) for copy in copies), run.offer.output)
