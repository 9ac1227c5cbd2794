"""Handwritten digits in colours that go with the label in training, and against it in the test."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.fields import Count, Fraction, Numbers, Whole
from engine.kit.supervised import Supervised, bundled, seeded
from engine.parts import Offer, task


@task(id="coloured-digits", name="Coloured digits")
class ColouredDigits(Supervised):
    """Asks whether a digit is 5 or more, and colours it by the label. The colour agrees with the label more often than
    the shape does, but in the test it mostly disagrees: who follows the colour is lost there.

        y = [digit >= 5], wrong with probability label_noise;   colour = y with the domain's probability, else 1 - y
        x in [0, 1]^(2 x 8 x 8): the digit in the channel of its colour, zeros in the other

    Each training domain has a probability of its own, so that what holds in all of them can be told from what does not.

    Helps: Methods that look for what stays the same between domains, or between groups.
    Hurts: A model that ignores the colour is right at most as often as labels are: 75 % by default.
    Cost: None to speak of: the data stay on the device.

    Choices: Every sample is in one domain; validation is a tenth of each training domain, and the test is the rest of
    the digits in the shifted domain. Labels are wrong there as often as in training. The domain is metadata, numbered
    from 0, the test's being the last; so is the colour.

    Args:
        agreement: How often the colour is the label, for each training domain.
        test_agreement: How often the colour is the label in the test.
        label_noise: Share of the labels that are wrong, in every split.
        rows: Training samples in each domain.
        split_seed: Seed of the domains, the wrong labels and the colours.

    Raises:
        ValueError: Where the digits do not suffice, or an agreement is no probability.
    """

    def __init__(
        self,
        agreement: Numbers = [0.9, 0.8],  # noqa: B006 - the default is shown in the form; it is never changed
        test_agreement: Fraction = 0.1,
        label_noise: Fraction = 0.25,
        rows: Count = 650,
        split_seed: Whole = 0,
    ):
        if not agreement or any(not 0 <= p <= 1 for p in agreement):
            raise ValueError(f"agreement = {agreement} must be probabilities from 0 to 1, one for each domain.")
        self.agreement, self.test_agreement, self.label_noise = agreement, test_agreement, label_noise
        self.rows, self.split_seed = rows, split_seed
        self.offer = Offer("image", (2, 8, 8), "classes", 2, span=(0.0, 1.0))

    def load(self) -> None:
        table = torch.from_numpy(np.loadtxt(bundled("digits.csv.gz"), delimiter=",", dtype=np.float32))
        held = max(round(self.rows / 10), 1)
        domains = len(self.agreement)
        needed = domains * (self.rows + held)
        if needed >= len(table):
            raise ValueError(
                f"{domains} domains of {self.rows} samples, and a tenth of each for validation, leave none of the "
                f"{len(table)} digits for the test; lower rows."
            )
        rng = seeded(self.split_seed)
        order = torch.randperm(len(table), generator=rng)
        pieces = order.split([self.rows, held] * domains + [len(table) - needed])
        made = [
            self._domain(table[piece], domain, share, rng)
            for piece, domain, share in zip(
                pieces,
                [d for d in range(domains) for _ in range(2)] + [domains],
                [p for p in self.agreement for _ in range(2)] + [self.test_agreement],
                strict=True,
            )
        ]
        self.splits = {"train": _joined(made[:-1:2]), "val": _joined(made[1:-1:2]), "test": made[-1]}

    def _domain(self, table: Tensor, domain: int, agreement: float, rng: torch.Generator) -> dict[str, Tensor]:
        """Some digits as one domain: their labels, partly wrong, and colours that agree as often as said."""
        grey, digit = table[:, :-1].view(-1, 1, 8, 8) / 16, table[:, -1].long()
        shape = (digit >= 5).long()
        target = shape ^ (torch.rand(len(table), generator=rng) < self.label_noise).long()
        colour = target ^ (torch.rand(len(table), generator=rng) >= agreement).long()
        channels = torch.stack([colour == 0, colour == 1], 1).to(grey)
        return {
            "x": grey * channels[:, :, None, None],
            "target": target,
            "meta.domain": torch.full_like(target, domain),
            "meta.colour": colour,
            "meta.clean": shape,
        }

    def figure(self) -> dict[str, Any]:
        train = self.splits["train"]
        images = (train["x"][:32, 1] - train["x"][:32, 0]).tolist()
        pairs = torch.stack([train["target"], train["meta.domain"]], 1)[:32].tolist()
        captions = [f"{label} in {domain}" for label, domain in pairs]
        return {"kind": "image-grid", "title": "Label in domain", "images": images, "captions": captions}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
