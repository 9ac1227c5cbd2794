"""Handwritten digits that arrive class by class."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engine.fields import Whole
from engine.kit.supervised import Supervised, seeded, split_indices
from engine.methods.tasks.digits import CLASSES, images_and_labels
from engine.parts import Offer, task


@task(name="Digit stream", example={"sampler": {"use": "experiences"}})
class DigitStream(Supervised):
    """Learns the ten digits a few classes at a time, in order, and is asked for all of them. It shows what a network
    forgets of what came first, and what helps against it.

        experience of a sample = class // classes_each;   loss = -log softmax(f(x))_y over all ten classes

    Helps: Seeing forgetting, with the sampler that brings experiences in order.
    Hurts: With shuffled batches it is plain digits, and nothing is forgotten.
    Cost: None to speak of: the data stay on the device.

    Choices: Validation and test hold every class at every time. The metrics are told for each experience too.

    Args:
        classes_each: Classes in one experience.
        split_seed: Seed of the splits.
    """

    def __init__(self, classes_each: Annotated[int, Field(ge=1, le=5)] = 2, split_seed: Whole = 0):
        self.classes_each, self.split_seed = classes_each, split_seed
        firsts = range(0, CLASSES, classes_each)
        self.groups = tuple(f"{first}-{min(first + classes_each, CLASSES) - 1}" for first in firsts)
        self.offer = Offer("image", (1, 8, 8), "classes", CLASSES, span=(0.0, 1.0))

    def load(self) -> None:
        x, target = images_and_labels()
        parts = split_indices(len(x), target, {"test": 0.2, "val": 0.1}, seeded(self.split_seed))
        experience = target // self.classes_each
        self.splits = {
            name: {
                "x": x[index],
                "target": target[index],
                "meta.experience": experience[index],
                "meta.group": experience[index],
            }
            for name, index in parts.items()
        }
