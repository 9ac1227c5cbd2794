"""Finding digits of the same class by nearest neighbours."""

from __future__ import annotations

from engine.fields import Count, Whole
from engine.methods.tasks.digits import Digits
from engine.parts import Offer, task


@task(name="Digit retrieval", example={"loss": {"use": "hard-negative-isometric"}})
class DigitRetrieval(Digits):
    """Places handwritten digits in a space in which neighbours are of the same class. What is asked is not the class
    but the place.

        f(x) in R^dimensions;   recall@1: the share of samples whose nearest other sample has the same class

    Helps: Losses that compare samples, and seeing what they do to distances.
    Hurts: Ten classes of which all are in training: recall is above 90 % for most recipes.
    Cost: Each evaluation compares all pairs of a split.

    Choices: It has no objective of its own, so a recipe names a loss. Queries and the samples found are of one split.

    Args:
        dimensions: Numbers that place a sample.
        train_limit: At most this many training samples.
        split_seed: Seed of the splits.
    """

    def __init__(self, dimensions: Count = 16, train_limit: Count | None = None, split_seed: Whole = 0):
        super().__init__(split_seed=split_seed, train_limit=train_limit)
        self.dimensions = dimensions
        self.offer = Offer("image", (1, 8, 8), "embedding", dimensions, span=(0.0, 1.0))
