"""Weights as a length and a direction, started from data."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Decay, Positive
from engine.kit import weight_maps
from engine.kit.anatomy import Site
from engine.parts import Layer, layer

OWNER = "weight-norm"


@layer(
    id="weight-norm",
    paper="Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural Networks",
    arxiv="1602.07868",
    name="Weight normalization",
)
class WeightNorm(Layer):
    """Trains the length and the direction of every unit's weights apart. They start so that the first
    batch comes out of every layer with mean 0 and deviation 1.

        w = g v / |v|                        one g a unit; |v| over all of its inputs (a filter's channels and pixels)
        start:  t = v x / |v| over a batch;  g = 1 / std(t);  b = -mean(t) / std(t);  v ~ N(0, v_std^2)
        mean-only batch norm:  t = w x;  out = t - mean over the batch of t + b   (running mean in evaluation)

    The gradient of v is at right angles to v, so plain gradient steps only lengthen it: a large gradient lowers the
    rate at which the direction turns.

    Helps: Deep nets without batch statistics, and starts that are badly scaled.
    Hurts: Large inputs: the gradient of g grows with them. Standardize inputs or lower the learning rate.
    Cost: One pass over the weights a step, one number a unit.

    Choices: A unit that is constant over the first batch keeps g = 1. Weight decay acts on g; it is switched off on v,
    where it would change nothing but the step size. A layer without bias gets one. The weights have rank geometry:
    masks, quantizers and noise act on w.

    Args:
        site: The linear or convolutional module whose weights are mapped.
        init: Start from the first batch, or keep the function that the module has ("weights").
        v_std: Standard deviation of the directions' start, when started from data.
        mean_only_bn: Subtract each unit's mean over the batch.
        bn_momentum: Share of the running mean that a step keeps.
        eps: Lower limit of |v|.

    Raises:
        ValueError: For a module that is neither linear nor a plain convolution.
    """

    role = "weight"
    running_mean: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        site: Site | nn.Module,
        init: Literal["data", "weights"] = "data",
        v_std: Positive = 0.05,
        mean_only_bn: bool = False,
        bn_momentum: Decay = 0.9,
        eps: Positive = 1e-12,
    ):
        super().__init__()
        module = site.module if isinstance(site, Site) else site
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            raise ValueError(
                f"weight normalization needs a linear or convolutional module, and this is a {type(module).__name__}. "
                'Select sites with the role "weight".'
            )
        self.init, self.bn_momentum, self.eps = init, bn_momentum, eps
        if init == "data":
            nn.init.normal_(weight_maps.latent(module), std=v_std)
        weight = weight_maps.latent(module).detach()
        bias = module.bias if module.bias is not None else nn.Parameter(weight.new_zeros(len(weight)))
        module.bias = None if mean_only_bn else bias
        self.bias = bias if mean_only_bn else None  # type: ignore[assignment]
        self.register_buffer("running_mean", weight.new_zeros(len(weight)) if mean_only_bn else None)
        self.layer = module
        self.length = Length(_norms(weight, eps), eps)
        weight_maps.add_map(module, "weight", self.length, "geometry", OWNER)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        if self.bias is None:
            return out
        if self.training:
            mean = out.mean(self._others(out))
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), 1 - self.bn_momentum)
        else:
            mean = self.running_mean
        return out - self._along(mean - self.bias, out)

    def init_from(self, x: Tensor) -> None:
        """Sets lengths and biases so that these inputs come out with mean 0 and deviation 1, unit by unit."""
        if self.init != "data":
            return
        with torch.no_grad():
            v = weight_maps.latent(self.layer)
            t = self._unmapped(x, v / _shaped(_norms(v, self.eps), v))
            std, mean = torch.std_mean(t, self._others(t), correction=0)
            # Below that the deviation is rounding of a constant, and its inverse would blow up.
            constant = std <= 1e-6 * mean.abs() + self.eps
            g = torch.where(constant, 1.0, 1 / std)
            self.length.g.copy_(g)
            if self.bias is None:
                self.layer.bias.copy_(-mean * g)  # type: ignore[union-attr]
            else:
                self.bias.zero_()
                self.running_mean.copy_(mean * g)

    def param_options(self) -> dict[str, dict[str, float]]:
        return {"layer.parametrizations.weight.original": {"weight_decay": 0.0}}

    def fold(self) -> nn.Module:
        """The plain module with the same weights."""
        module = weight_maps.fold(self.layer)
        if self.bias is not None:
            module.bias = nn.Parameter((self.bias - self.running_mean).detach())
        return module

    def _unmapped(self, x: Tensor, weight: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight)
        return self.layer._conv_forward(x, weight, None)

    def _others(self, out: Tensor) -> list[int]:
        """The axes of an output but that of the units."""
        units = out.dim() - 1 if isinstance(self.layer, nn.Linear) else 1
        return [dim for dim in range(out.dim()) if dim != units]

    def _along(self, values: Tensor, out: Tensor) -> Tensor:
        return values if isinstance(self.layer, nn.Linear) else _shaped(values, out[0])


class Length(nn.Module):
    """The map from v to g v / |v|."""

    def __init__(self, g: Tensor, eps: float):
        super().__init__()
        self.g = nn.Parameter(g)
        self.eps = eps

    def forward(self, v: Tensor) -> Tensor:
        return v * _shaped(self.g / _norms(v, self.eps), v)


def _norms(v: Tensor, eps: float) -> Tensor:
    return torch.linalg.vector_norm(v.flatten(1), dim=1).clamp_min(eps)


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
