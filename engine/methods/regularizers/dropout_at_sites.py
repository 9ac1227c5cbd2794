"""Units silenced at random, at any place of a model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import FractionOverTime, Sites
from engine.kit.live import along
from engine.parts import Task, Technique, Value, technique

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

LEAST = 1e-6  # of a unit's chance to stay: below that nothing is left, and its inverse would be no number


@technique(id="dropout-at-sites", name="Dropout at sites", graph="never")
class Dropout(Technique):
    """Silences each unit of the chosen modules with some probability, anew in each training step.
    No unit can rely on another one being there, so each has to be useful by itself.

        h <- h m / (1 - rate),   m = 0 with probability rate, else 1;   nothing changes in evaluation

    Helps: Models that are large for their data. The rate may change over the run, or be learned in it.
    Hurts: Small models and short runs, which fit too little as it is; layers right before a batch normalization.
    Cost: A random number for each unit and sample.
    Choices: It acts on what the chosen modules answer and leaves the model's modules as they are. A rate that is
        learned has no gradient here (which units fall silent does not depend on it smoothly): what learns it must find
        another way.

    Args:
        rate: Probability that a unit is silenced.
        sites: The modules after which it acts; "stem" in a fully connected network are its inputs.
    """

    live = ("rate",)

    def __init__(self, rate: FractionOverTime = 0.1, sites: Sites = "activation") -> None:
        self.rate = Value.of(rate)
        self.sites = sites

    def setup(self, run: Run) -> None:
        for site in run.anatomy.select(self.sites):
            site.module.register_forward_hook(partial(self._drop, run))

    def _drop(self, run: Run, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not module.training or not isinstance(output, Tensor):
            return output
        rate = self.rate.now(run.progress)
        return dropped(output, rate) if isinstance(rate, Tensor) else F.dropout(output, rate)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        try:
            sites = anatomy.select(settings["sites"])
        except ValueError as error:
            return str(error)
        return None if sites else f'The model has nothing that "{settings["sites"]}" selects, so nothing would drop.'


def dropped(x: Tensor, rate: Tensor) -> Tensor:
    """Dropout at a rate that is a tensor: one for all samples, or one for each (shape [B])."""
    keep = 1 - along(rate.detach(), x)
    return x * (torch.rand_like(x) < keep) / torch.as_tensor(keep).clamp_min(LEAST)
