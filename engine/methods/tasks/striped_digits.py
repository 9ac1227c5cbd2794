"""Digits with a stripe that betrays the label of most of them."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field

from engine.fields import Count, Whole
from engine.kit.supervised import Supervised, seeded
from engine.methods.tasks.digits import Digits
from engine.parts import Offer, task

GROUPS = ("small, left", "small, right", "large, left", "large, right")


@task(name="Striped digits")
class StripedDigits(Supervised):
    """Tells small digits (0 to 4) from large ones. In most training images a bright stripe at one border says the
    answer; in the others, and in half of the test images, it says the wrong one.

        y = 1 for digits 5..9;  stripe: the left column lit for y = 0, the right one for y = 1, in `agreement` of them;
        group = 2 y + stripe;   in validation and test the stripe agrees with y in one half

    Helps: Seeing whether a model learned the digit or the stripe: accuracy by group, and in the worst one.
    Hurts: The rare groups have a few dozen training samples: runs differ by some points.
    Cost: None to speak of.

    Choices: agreement is exact in each class, up to rounding. "weighted accuracy" weighs the groups as in training.

    Args:
        agreement: Share of the training images whose stripe agrees with the label.
        train_limit: At most this many training samples.
        split_seed: Seed of the splits and of the stripes.
    """

    def __init__(
        self,
        agreement: Annotated[float, Field(gt=0, lt=1)] = 0.95,
        train_limit: Count = 1000,
        split_seed: Whole = 0,
    ):
        self.agreement, self.train_limit, self.split_seed = agreement, train_limit, split_seed
        self.offer = Offer("image", (1, 8, 8), "classes", 2, span=(0.0, 1.0))
        self.groups = GROUPS

    def load(self) -> None:
        digits = Digits(split_seed=self.split_seed, train_limit=self.train_limit)
        digits.load()
        self.splits = {}
        for number, (name, columns) in enumerate(digits.splits.items()):
            rng = seeded(self.split_seed + 100 + number)
            label = (columns["target"] >= 5).long()
            stripe = label.clone()
            for y in (0, 1):
                rows = (label == y).nonzero().flatten()
                rows = rows[torch.randperm(len(rows), generator=rng)]
                wrong = round((1 - (self.agreement if name == "train" else 0.5)) * len(rows))
                stripe[rows[:wrong]] = 1 - y
            x = columns["x"].clone()
            x[stripe == 0, :, :, 0] = 1.0
            x[stripe == 1, :, :, -1] = 1.0
            self.splits[name] = {"x": x, "target": label, "meta.group": 2 * label + stripe}

    def figure(self) -> dict[str, Any]:
        train = self.splits["train"]
        captions = [GROUPS[g] for g in train["meta.group"][:32].tolist()]
        return {
            "kind": "image-grid",
            "title": "Training samples",
            "images": train["x"][:32, 0].tolist(),
            "captions": captions,
        }
