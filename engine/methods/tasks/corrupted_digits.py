"""Handwritten digits whose test images come as a stream of another kind than the model was trained on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from engine.fields import Count, NonNegative, Whole
from engine.kit.supervised import Supervised, class_metrics, seeded, split_indices
from engine.methods.tasks.digits import CLASSES, images_and_labels
from engine.parts import Batch, Offer, task


def corrupt(x: Tensor, kind: str, severity: float, rng: torch.Generator) -> Tensor:
    """Images with values in [0, 1], spoilt; severity 1 is the usual amount, 0 leaves them as they are."""
    if kind == "contrast":  # towards grey
        x = 0.5 + (x - 0.5) * (1 - 0.4 * severity)
    elif kind == "brightness":
        x = x + 0.2 * severity
    elif kind == "noise":
        x = x + 0.2 * severity * torch.randn(x.shape, generator=rng)
    elif kind == "blur" and severity > 0:
        x = blurred(x, severity)
    return x.clamp(0, 1)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Images [B, 1, H, W] under a Gaussian of that width, cut at two pixels; the edge goes on beyond the image."""
    at = torch.arange(-2, 3, dtype=x.dtype, device=x.device)
    line = torch.exp(-at.square() / (2 * sigma**2))
    line = line / line.sum()
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(x, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))


@task(name="Corrupted digits")
class CorruptedDigits(Supervised):
    """Trains on clean handwritten digits and tests on spoilt ones, which come as a stream: in random order or one class
    after the other, several times over. It shows what a model, or an adaptation while it is tested, makes of a change.

        contrast: 0.5 + (x - 0.5)(1 - 0.4 s),  brightness: x + 0.2 s,  noise: x + 0.2 s e,  blur: Gaussian of width s
        e ~ N(0, 1),  s = severity,  x kept in [0, 1];  loss = -log softmax(f(x))_y

    Helps: Seeing how a recipe stands other conditions, and whether an adaptation survives one class after the other.
    Hurts: As a measure of plain learning: only a part of the digits is left for training.
    Cost: None to speak of: the data stay on the device.

    Choices: Train and val are clean. Beside the accuracy over the whole stream there are those of its first and its
    last pass.

    Args:
        split_seed: Seed of the splits, the order and the noise.
        corruption: What is done to the test images.
        severity: How much of it; 1 is the usual amount.
        order: The order of the test images: at random, or sorted by class.
        passes: How often the stream comes.
        test_share: Share of the digits that are kept for the test.

    Raises:
        ValueError: For a share that leaves no digit for the test.
    """

    def __init__(
        self,
        split_seed: Whole = 0,
        corruption: Literal["none", "contrast", "brightness", "noise", "blur"] = "contrast",
        severity: NonNegative = 1.0,
        order: Literal["shuffled", "sorted"] = "shuffled",
        passes: Count = 1,
        test_share: Annotated[float, Field(gt=0, le=0.8)] = 0.5,
    ):
        self.split_seed, self.corruption, self.severity = split_seed, corruption, severity
        self.order, self.passes, self.test_share = order, passes, test_share
        self.offer = Offer("image", (1, 8, 8), "classes", CLASSES, span=(0.0, 1.0))

    def load(self) -> None:
        x, target = images_and_labels()
        parts = split_indices(len(x), target, {"test": self.test_share, "val": 0.1}, seeded(self.split_seed))
        self.splits = {name: {"x": x[index], "target": target[index]} for name, index in parts.items()}
        if "test" not in self.splits:
            raise ValueError(
                f"test_share = {self.test_share:g} of the {len(x)} digits is not one. Write a larger share."
            )
        self.splits["test"] = self._stream(**self.splits["test"])

    def _stream(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The test images, which are in random order already, spoilt, ordered and repeated."""
        x = corrupt(x, self.corruption, self.severity, seeded(self.split_seed + 1))
        if self.order == "sorted":
            index = target.argsort(stable=True)
            x, target = x[index], target[index]
        number = torch.arange(self.passes).repeat_interleave(len(x))
        return {"x": x.repeat(self.passes, 1, 1, 1), "target": target.repeat(self.passes), "meta.pass": number}

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        found = class_metrics(output, batch.target, batch.mask, bits=False)
        if self.passes > 1 and "pass" in batch.meta:  # a mean over the stream that counts one pass alone
            for name, number in (("first", 0), ("last", self.passes - 1)):
                found[f"accuracy-{name}"] = found["accuracy"] * (batch.meta["pass"] == number) * self.passes
        return found

    def figure(self) -> dict[str, Any]:
        test = self.splits["test"]
        captions = [str(label) for label in test["target"][:32].tolist()]
        title = "Test samples, in their order"
        return {"kind": "image-grid", "title": title, "images": test["x"][:32, 0].tolist(), "captions": captions}
