"""Normalization over the units of a layer, sample by sample."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import NonNegative
from engine.kit.anatomy import Site
from engine.parts import Layer, layer


@layer(
    id="layer-norm",
    paper="Layer Normalization",
    arxiv="1607.06450",
    name="Layer normalization",
    example={"model": {"norm": "batch"}},
)
class LayerNorm(Layer):
    """Gives the summed inputs of a layer mean 0 and deviation 1 within each sample. No sample sees
    another, so training and evaluation are the same.

        mu = mean(a);  sigma = sqrt(mean((a - mu)^2) + eps);  out = g (a - mu) / sigma + b

    Mean over the units of a layer; for images over channels and pixels, with one g and b a channel.

    Helps: Small batches, sequences, recurrent nets; deep nets whose scale drifts.
    Hurts: Convolutions at usual batch sizes, where normalizing over the batch is often better.
    Cost: A pass over the layer's outputs, two numbers a unit.

    Choices: At a norm it takes the norm's place; at an activation it goes before it (or after, as placed); at a linear
    or convolutional module it follows. The recurrent form, which normalizes anew at each time step, is the choice
    norm = "layer" of the recurrent model.

    Args:
        site: Where it goes.
        eps: What is added to the variance.
        affine: Whether units get a gain and a shift of their own.
        placement: Before or after the nonlinearity, at an activation.
    """

    role = "norm"

    def __init__(
        self,
        site: Site,
        eps: NonNegative = 1e-5,
        affine: bool = True,
        placement: Literal["before", "after"] = "before",
    ):
        super().__init__()
        if site.features < 1:
            raise ValueError("layer normalization needs to know how many units are there, and this place does not say.")
        self.features, self.eps = site.features, eps
        self.channels_first = _channels_first(site)
        self.weight = nn.Parameter(torch.ones(site.features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(site.features)) if affine else None

    @classmethod
    def for_site(cls, site: Site, **settings: Any) -> nn.Module:
        made = cls(site, **settings)
        if site.role == "norm":
            return made
        if site.role == "activation":
            pair = [("norm", made), ("activation", site.module)]
            return nn.Sequential(OrderedDict(pair if settings.get("placement", "before") == "before" else pair[::-1]))
        if site.role in ("linear", "conv"):
            return nn.Sequential(OrderedDict([(site.role, site.module), ("norm", made)]))
        raise ValueError(
            f"layer normalization goes to norms, activations, linear and convolutional modules, not to "
            f"a {type(site.module).__name__}. Select other sites."
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_first:
            return F.group_norm(x, 1, self.weight, self.bias, self.eps)
        return F.layer_norm(x, (self.features,), self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.features}, eps={self.eps}"


def _channels_first(site: Site) -> bool:
    """Whether a sample's first axis holds the channels: in images always, else where a norm over channels stood."""
    if site.shape is not None and len(site.shape) != 2:
        return len(site.shape) > 2
    over_channels = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.modules.conv._ConvNd)
    if site.shape is None:
        return isinstance(site.module, nn.BatchNorm2d | nn.BatchNorm3d | nn.modules.conv._ConvNd | nn.GroupNorm)
    return isinstance(site.module, over_channels)
