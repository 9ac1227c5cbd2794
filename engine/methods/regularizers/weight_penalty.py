"""A price on the size of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from engine.fields import NonNegativeOverTime, Sites
from engine.kit.weight_maps import effective
from engine.parts import Batch, Task, Technique, Terms, Value, technique

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

TERM = "penalty:weight-penalty"


@technique(id="weight-penalty", name="Weight penalty")
class WeightPenalty(Technique):
    """Adds the squared length of the weights, or the sum of their sizes, to the loss, so that large ones must pay.

        loss <- loss + strength sum_w w^2      (l1: strength sum_w |w|)

    Helps: Few samples for many weights. As a term of the loss it has a gradient in its strength, so that the strength
        can be learned while the model trains.
    Hurts: With optimizers that scale each gradient, where it is weaker on weights with large gradients: use the
        optimizer's own weight decay there.
    Cost: One pass over the weights a step.
    Choices: Biases and normalizations pay nothing. Where weights are mapped (masked, quantized) the mapped ones pay;
        a layer that has other weights for each sample pays for each sample's.

    Args:
        strength: What a unit costs; twice its l2 value is what optimizers call weight decay.
        kind: Whether squares or sizes are summed.
        sites: The layers whose weights pay.
    """

    live = ("strength",)

    def __init__(
        self, strength: NonNegativeOverTime = 1e-4, kind: Literal["l2", "l1"] = "l2", sites: Sites = "weight"
    ) -> None:
        self.strength = Value.of(strength)
        self.kind, self.sites = kind, sites
        self._modules: list[nn.Module] = []

    def setup(self, run: Run) -> None:
        self._modules = [site.module for site in run.anatomy.select(self.sites)]

    def on_terms(self, run: Run, terms: Terms, output: Tensor, batch: Batch) -> Terms:
        size = torch.stack([self._size(module) for module in self._modules]).sum(0)
        paid = self.strength.now(run.progress) * size
        return {**terms, TERM: terms[TERM] + paid if TERM in terms else paid}

    def _size(self, module: nn.Module) -> Tensor:
        """What one layer's weights sum to: a number, or one for each sample."""
        if self.kind == "l2" and hasattr(module, "weight_square"):
            return module.weight_square()  # type: ignore[operator]
        weight = effective(module)
        return weight.square().sum() if self.kind == "l2" else weight.abs().sum()

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        try:
            sites = anatomy.select(settings["sites"])
        except ValueError as error:
            return str(error)
        bare = [site.path for site in sites if not isinstance(getattr(site.module, "weight", None), Tensor)]
        if bare:
            return f"{', '.join(bare)} has no weights to pay for; select layers that have some."
        return None if sites else f'The model has nothing that "{settings["sites"]}" selects, so no weight would pay.'
