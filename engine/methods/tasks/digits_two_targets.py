"""Handwritten digits with two questions about each image: the objective has two named terms."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from engine.fields import Positive, Whole
from engine.kit.supervised import Supervised, bundled, cross_entropy, seeded, split_indices
from engine.parts import Batch, Offer, Terms, task

CLASSES = 10


@task(id="digits-two-targets", name="Digits with two targets")
class DigitsTwoTargets(Supervised):
    """Asks two things about each handwritten digit, with one network: which digit it is, and a question about it. Each
    has a loss of its own, so that the two may pull the shared weights in different directions.

        answer = [ten logits, two logits];   loss = class + scale question

    Accuracy is that of the digit, `second-accuracy` that of the question, and `both` the share of images with both
    right.

    Helps: Trying out what balances several losses: a large scale lets the question drown the digit.
    Hurts: The two questions share most of what they need, so a plain sum with a fair scale does well.
    Cost: None to speak of: the data stay on the device.

    Choices: 20 % of each class are for test and 10 % for validation.

    Args:
        second: The other question: whether the digit is odd, or whether it is 5 or more.
        scale: The factor of the question's loss.
        split_seed: Seed of the splits.
    """

    def __init__(self, second: Literal["odd", "large"] = "odd", scale: Positive = 1.0, split_seed: Whole = 0):
        self.second, self.scale, self.split_seed = second, scale, split_seed
        self.offer = Offer("image", (1, 8, 8), "classes", CLASSES + 2, span=(0.0, 1.0))

    @property
    def metric(self) -> tuple[str, str]:  # type: ignore[override]
        return "both", "max"

    def load(self) -> None:
        table = torch.from_numpy(np.loadtxt(bundled("digits.csv.gz"), delimiter=",", dtype=np.float32))
        x, target = table[:, :-1].view(-1, 1, 8, 8) / 16, table[:, -1].long()
        second = target % 2 if self.second == "odd" else (target >= 5).long()
        parts = split_indices(len(x), target, {"test": 0.2, "val": 0.1}, seeded(self.split_seed))
        self.splits = {
            name: {"x": x[index], "target": target[index], "meta.second": second[index]}
            for name, index in parts.items()
        }

    def objective(self, output: Any, batch: Batch) -> Terms:
        return {
            "class": cross_entropy(output[:, :CLASSES], batch.target),
            "second": self.scale * cross_entropy(output[:, CLASSES:], batch.meta["second"]),
        }

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        first = output[:, :CLASSES].argmax(1) == batch.target
        second = output[:, CLASSES:].argmax(1) == batch.meta["second"]
        return {"accuracy": first.float(), "second-accuracy": second.float(), "both": (first & second).float()}
