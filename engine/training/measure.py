"""What every run logs of its model by default: sparsity, layer by layer, and sizes; and which numbers are times."""

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


def byte_count(model: nn.Module) -> int:
    """Bytes of all that a model's file would hold: parameters and buffers, those in use twice counted once."""
    held = [value for value in model.state_dict(keep_vars=True).values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(t): t for t in held}.values())


def by_the_clock(name: str) -> bool:
    """Whether a series or metric measures time, which no two runs repeat."""
    return name in ("throughput", "seconds/evaluation") or name.rpartition("/")[2].startswith(("seconds_", "speedup"))
