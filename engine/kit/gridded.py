"""Fields on a grid: how far two are apart, and the units that a model answers them in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from engine.parts import Offer

Norm = Callable[[Tensor], Tensor]


def plain_norm(field: Tensor) -> Tensor:
    """The root of the sum of squares [B] of each sample."""
    return torch.linalg.vector_norm(field.flatten(1), dim=1)


def gradient_norm(field: Tensor) -> Tensor:
    """The same with the squares of the slopes added (the norm H1) [B], for fields [B, channels, height, width].

    Slopes are taken where they are a product: sum over wave numbers of (1 + k^2) |F_k|^2, F the discrete Fourier
    transform, k counted in whole waves over the grid.
    """
    height, width = field.shape[-2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=field.device).square()
    columns = torch.fft.rfftfreq(width, 1 / width, device=field.device).square()
    found = torch.fft.rfft2(field, norm="ortho")
    twice = torch.full_like(columns, 2.0)  # the half that a real transform leaves out
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    weight = (1 + rows[:, None] + columns) * twice
    return torch.linalg.vector_norm((torch.view_as_real(found) * weight.sqrt()[..., None]).flatten(1), dim=1)


def relative(output: Tensor, target: Tensor, norm: Norm = plain_norm) -> Tensor:
    """The norm of each sample's error by that of its target [B]."""
    return norm(output - target.view_as(output)) / norm(target)


class InUnits(nn.Module):
    """The last layer of a model that answers fields: brings numbers of size 1 to the mean and deviation of each place
    that the task tells in ``about["scale"]``; passes them on where it tells none."""

    mean: Tensor
    std: Tensor

    def __init__(self, offer: Offer):
        super().__init__()
        scale = offer.about.get("scale") or {}
        for name, without in (("mean", 0.0), ("std", 1.0)):
            buffer = torch.full(offer.answer, without)
            self.register_buffer(name, buffer.copy_(scale[name]) if name in scale else buffer)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.mean, x, self.std)


def check_fields(offer: Offer) -> None:
    """Refuses what is no map from fields to fields on the same grid."""
    if offer.input != "image" or offer.output != "field" or offer.shape[1:] != offer.answer[1:]:
        raise ValueError(
            f"This model maps fields to fields on the same grid, and the task maps {offer.input} to {offer.output}. "
            "Choose another model, or a task with fields such as a flow."
        )
