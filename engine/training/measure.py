"""What every run logs of its model by default: sparsity, layer by layer, and sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights as the forward pass uses them (masked, quantized), by the path of their module."""
    found = {}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if (
            isinstance(weight, Tensor)
            and weight.dim() >= 2
            and not isinstance(module, nn.utils.parametrize.ParametrizationList)
        ):
            found[path or "model"] = weight.detach()
    return found


@torch.no_grad()
def sparsity(model: nn.Module) -> dict[str, Tensor]:
    """The share of zeros in each weight, and over all of them under the name ""."""
    by_layer = weights(model)
    zeros = {path: (weight == 0).sum() for path, weight in by_layer.items()}
    shares = {path: count / by_layer[path].numel() for path, count in zeros.items()}
    total = sum(weight.numel() for weight in by_layer.values())
    if total:
        shares[""] = torch.stack(list(zeros.values())).sum() / total
    return shares


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
