"""Handwritten digits, 8 x 8 pixels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from engine.fields import Count, Fraction, Positive, Whole
from engine.kit.supervised import Supervised, bundled, long_tail, seeded, split_indices, symmetric_noise
from engine.parts import Batch, Offer, task

CLASSES = 10


def images_and_labels() -> tuple[Tensor, Tensor]:
    """All images [N, 1, 8, 8] with values in [0, 1], and their classes."""
    table = torch.from_numpy(np.loadtxt(bundled("digits.csv.gz"), delimiter=",", dtype=np.float32))
    return table[:, :-1].view(-1, 1, 8, 8) / 16, table[:, -1].long()


@task(name="Digits")
class Digits(Supervised):
    """Reads handwritten digits from small grey images. There are 1797 of them, 8 x 8 pixels each, in ten classes.

        x in [0, gain]^(1 x 8 x 8);  y in 0..9;  loss = -log softmax(f(x))_y
        one-hot: y in {0, 1}^10;  loss = mean_k (f_k(x) - y_k)^2

    Helps: Seeing within seconds whether a recipe learns, generalizes, resists wrong labels or rare classes.
    Hurts: Most reasonable recipes reach 95 to 99 %: differences above that are small.
    Cost: None to speak of: the data stay on the device.

    Choices: 20 % of each class are for test and 10 % for validation. Wrong labels and missing samples are in the
    training split only; the true labels stay beside them. With one-hot targets the class of an answer is its largest
    value. Standardized pixels have mean 0 and deviation 1 over the training samples; those that never change stay 0.

    Args:
        split_seed: Seed of the splits, the wrong labels and the missing samples.
        label_noise: Share of the training labels that are changed to another class at random.
        imbalance: Class k keeps the share imbalance^k of its training samples; 1 keeps all.
        train_limit: At most this many training samples.
        gain: Every input is multiplied by this.
        target: Whether to answer with a class, or to regress on ten values that are 0 but for a 1 at the class.
        standardize: Whether every pixel is standardized, before the gain.
        outer: Share of the samples kept apart for tuning hyperparameters inside a run.
    """

    def __init__(
        self,
        split_seed: Whole = 0,
        label_noise: Fraction = 0.0,
        imbalance: Annotated[float, Field(gt=0, le=1)] = 1.0,
        train_limit: Count | None = None,
        gain: Positive = 1.0,
        target: Literal["classes", "one-hot"] = "classes",
        standardize: bool = False,
        outer: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
    ):
        self.split_seed, self.label_noise, self.imbalance = split_seed, label_noise, imbalance
        self.train_limit, self.gain, self.outer = train_limit, gain, outer
        self.target, self.standardize = target, standardize
        output = "classes" if target == "classes" else "values"
        span = None if standardize else (0.0, float(gain))
        self.offer = Offer("image", (1, 8, 8), output, CLASSES, span=span)

    def load(self) -> None:
        x, target = images_and_labels()
        rng = seeded(self.split_seed)
        parts = split_indices(len(x), target, {"test": 0.2, "val": 0.1, "outer": self.outer}, rng)
        # Each change draws from a stream of its own, so that one does not move the other's samples.
        train = parts["train"][long_tail(target[parts["train"]], self.imbalance, seeded(self.split_seed + 1))]
        parts["train"] = train[: self.train_limit]
        if self.standardize:
            std, mean = torch.std_mean(x[parts["train"]], 0, correction=0)
            x = (x - mean) / torch.where(std > 0, std, 1.0)
        x = x * self.gain
        self.splits = {name: {"x": x[index], "target": target[index]} for name, index in parts.items()}
        clean = target[parts["train"]]
        noisy = symmetric_noise(clean, self.label_noise, CLASSES, seeded(self.split_seed + 2))
        self.splits["train"] |= {"target": noisy, "meta.clean": clean}
        if self.target == "one-hot":
            for split in self.splits.values():
                split["target"] = torch.nn.functional.one_hot(split["target"], CLASSES).float()

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        found = super().metrics(output, batch)
        if self.target == "one-hot":
            found["accuracy"] = (output.argmax(-1) == batch.target.argmax(-1)).float()
        return found

    def figure(self) -> dict[str, Any]:
        train = self.splits["train"]
        images = (train["x"][:32, 0] / self.gain).tolist()
        labels = train["target"] if self.target == "classes" else train["target"].argmax(1)
        captions = [str(label) for label in labels[:32].tolist()]
        return {"kind": "image-grid", "title": "Training samples", "images": images, "captions": captions}
