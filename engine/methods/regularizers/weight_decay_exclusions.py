"""Which parameters weight decay leaves alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from engine.kit.anatomy import role_of
from engine.parts import Technique, technique

if TYPE_CHECKING:
    from engine.training.run import Run


@technique(example={"optimizer": {"weight_decay": 0.01}})
class WeightDecayExclusions(Technique):
    """Lets weight decay act on weight matrices alone, and spares biases, normalizations and embeddings.

    Those parameters shift, scale or name things; pulling them to zero regularizes nothing and can hurt.

        weight_decay <- 0 for the parameters of the chosen kinds

    Helps: Transformers and networks with normalization, with any noticeable weight decay.

    Hurts: Hardly ever; it changes nothing where weight decay is 0.

    Cost: One more parameter group.

    Choices: A bias is a parameter of that name. Weights that an embedding shares with the head count as an embedding.

    Args:
        biases: spare the biases of all layers
        norms: spare all parameters of normalization layers
        embeddings: spare embedding tables
    """

    any_role = True

    def __init__(self, biases: bool = True, norms: bool = True, embeddings: bool = True) -> None:
        self.biases = biases
        self.norms = norms
        self.embeddings = embeddings

    def group_options(self, run: Run, model: nn.Module) -> dict[str, dict[str, Any]]:
        roles = [role for role, chosen in (("norm", self.norms), ("embedding", self.embeddings)) if chosen]
        spared = {
            id(p) for module in model.modules() if role_of(module) in roles for p in module.parameters(recurse=True)
        }
        return {
            name: {"weight_decay": 0.0}
            for name, parameter in model.named_parameters()
            if id(parameter) in spared or (self.biases and _is_bias(name))
        }


def _is_bias(name: str) -> bool:
    """Whether a parameter's name ends in bias; what a weight map adds behind it does not count."""
    return name.split(".parametrizations.")[-1].split(".original")[0].rpartition(".")[2] == "bias"
