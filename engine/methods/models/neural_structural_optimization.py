"""A design written down as the image that an untrained convolutional network makes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Count, NonNegative, Widths
from engine.parts import Model, Offer, model

KERNEL = 5
TRUNCATED = 0.8796256610342398  # the deviation of a standard normal number that is cut off at 2


class Stage(nn.Module):
    """tanh, enlarge, normalize the whole, convolve, and add an offset that each pixel and channel has of its own."""

    def __init__(self, inputs: int, outputs: int, resize: int, size: tuple[int, int], scale: float):
        super().__init__()
        self.resize, self.scale = resize, scale
        self.conv = nn.Conv2d(inputs, outputs, KERNEL, padding="same")
        whole = 1 / math.sqrt(inputs * KERNEL**2) / TRUNCATED  # cut off at two deviations, this leaves 1 / inputs
        nn.init.trunc_normal_(self.conv.weight, 0.0, whole, -2 * whole, 2 * whole)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.offset = nn.Parameter(torch.zeros(1, outputs, *size))

    def forward(self, x: Tensor) -> Tensor:
        x = x.tanh()
        if self.resize > 1:
            x = F.interpolate(x, scale_factor=self.resize, mode="bilinear", align_corners=False)
        x = (x - x.mean()) * (x.var(correction=0) + 1e-6).rsqrt()
        return self.conv(x) + self.scale * self.offset


@model(
    id="neural-structural-optimization",
    name="Design by a convolutional network",
    paper="Neural reparameterization improves structural optimization",
    arxiv="1909.04240",
    recommends={
        "task": {"use": "structural-design", "rows": 24, "columns": 80, "volume": 0.4},
        "optimizer": {"use": "lbfgs", "max_iter": 20, "tolerance_grad": 0.0, "tolerance_change": 0.0},
        "training": {"evaluate_every": 0.1},
        "budget": {"count": "gradient-passes", "amount": 200},
    },
    example={
        "task": {"use": "structural-design", "rows": 8, "columns": 16},
        "model": {"filters": [4, 4, 3, 2, 1], "latent": 6, "dense_channels": 3},
        "optimizer": {"use": "lbfgs", "max_iter": 2},
        "budget": {"steps": 4},
    },
)
class NeuralStructuralOptimization(Model):
    """Writes a design down as the image that a convolutional network makes of a vector; both are trained, on this one
    design. What the network makes easily, coarse shapes with sharp edges, is also what a good structure looks like.

        z ~ N(0, 1), trained;   h = W z, as an image of 1/8 of the grid's size
        five times:  h <- conv(normalize(enlarge(tanh h))) + offset_scale * offset
        enlarge: by 1, 2, 2, 2, 1;   normalize: the whole tensor by its mean and deviation
        offset: one for each pixel and channel, zero at the start
        answer = the one channel of the last stage: logits [rows, columns]

    Helps: It finds simpler and less grey structures than free pixels do. On 16 x 48 squares, after 100 gradients from
        the same start, five of seven problems came out as stiff or stiffer, beams by a sixth.
    Hurts: A tower under many loads, whose best design is grey and fine: 7 % softer than by free pixels. The result
        depends on the draw of the start: one of an L-shaped bracket was 14 % softer.
    Cost: 5 x 5 convolutions at the grid's full size; the physics is the larger part on small grids.
    Choices: meant for L-BFGS over all weights, whose moves are those of float32 weights; the weights of a convolution
        are drawn from a normal distribution that is cut off at two deviations, with variance 1 / inputs.

    Args:
        latent: Numbers in the vector.
        dense_channels: Channels of the small image that it is turned into.
        filters: Channels after each of the five convolutions; the last must be 1.
        offset_scale: What the offsets are multiplied by.

    Raises:
        ValueError: For a task that does not ask for a design, a grid whose sides are not multiples of 8, or filters
            that are not five or do not end with 1.
    """

    resizes = (1, 2, 2, 2, 1)

    def __init__(
        self,
        offer: Offer,
        latent: Count = 128,
        dense_channels: Count = 32,
        filters: Widths = [128, 64, 32, 16, 1],  # noqa: B006 - the default is shown in the form; it is never changed
        offset_scale: NonNegative = 10.0,
    ):
        super().__init__()
        if offer.output != "design" or len(offer.answer) != 2:
            raise ValueError("It makes one design on a grid, and the task asks for something else.")
        rows, columns = offer.answer
        if rows % 8 or columns % 8:
            raise ValueError(f"It enlarges an image three times by 2: {rows} x {columns} are not multiples of 8.")
        if len(filters) != len(self.resizes) or filters[-1] != 1:
            raise ValueError(f"filters must be five numbers that end with 1, not {filters}.")
        self.small = (dense_channels, rows // 8, columns // 8)
        units = math.prod(self.small)
        self.z = nn.Parameter(torch.randn(1, latent))
        self.dense = nn.Linear(latent, units)
        nn.init.orthogonal_(self.dense.weight, math.sqrt(max(units / latent, 1.0)))
        nn.init.zeros_(self.dense.bias)
        self.stages = nn.Sequential()
        inputs, size = dense_channels, (rows // 8, columns // 8)
        for outputs, resize in zip(filters, self.resizes, strict=True):
            size = (size[0] * resize, size[1] * resize)
            self.stages.append(Stage(inputs, outputs, resize, size, offset_scale))
            inputs = outputs

    def forward(self) -> Tensor:
        return self.stages(self.dense(self.z).view(1, *self.small))[0, 0]
