"""Convolutions that are several branches in training and one convolution afterwards, and networks made of them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from engine.fields import Count, Widths
from engine.kit.anatomy import Anatomy, Site, staged
from engine.kit.folding import folded
from engine.parts import Layer, Model, Offer, layer, model

PAPER = "MobileOne: An Improved One millisecond Mobile Backbone"
ARXIV = "2206.04040"
Pair = tuple[int, int]
SQUEEZE = 16  # channels for each unit of the squeeze's bottleneck


@layer(
    id="mobileone-block",
    paper=PAPER,
    arxiv=ARXIV,
    name="MobileOne block",
    example={"task": {"use": "digits"}, "model": {"use": "cnn", "widths": [4, 8]}},
    recommends={"optimizer": {"weight_decay": 1e-4}, "techniques": [{"use": "label-smoothing", "amount": 0.1}]},
)
class MobileOneBlock(Layer):
    """Trains a convolution as the sum of several, each with a norm of its own, and folds them into one afterwards:
    the capacity to learn of a wide block, at the price of a plain one.

        training:  out = sum over j <= k of norm_j(conv_j(x)) + norm_s(conv_1x1(x)) + norm_0(x)
        fold:      W = sum of the kernels, each padded to the largest;  b = sum of the biases, of
                   W_j' = W_j gamma / sqrt(var + eps),  b_j' = beta - mean gamma / sqrt(var + eps)

    The 1 x 1 branch is there for larger kernels only, the branch without a convolution where a block keeps the number
    of channels and the size.

    Helps: Small convolutional networks that must be fast where they are used.
    Hurts: Training time and memory, which grow with the branches; batches of a few samples, whose statistics are noisy.
    Cost: In training k + 2 branches; after folding exactly one convolution, whatever k was.

    Choices: In the place of a convolution it is the sum of branches alone; what follows there stays. Kernels start as
    PyTorch starts them. The paper takes k = 4 for its smallest network and 1 for the larger ones, anneals the weight
    decay from 1e-4 to 1e-5, smooths labels by 0.1 and averages weights with 0.9995.

    Args:
        site: The convolution that it takes the place of.
        k: Branches with a full convolution.
        scale_branch: Whether there is a branch of 1 x 1 convolutions.
        skip_branch: Whether there is a branch without a convolution, where shapes allow one.

    Raises:
        ValueError: For a module that is no plain convolution with zero padding.
    """

    role = "conv"

    def __init__(self, site: Site | nn.Module, k: Count = 4, scale_branch: bool = True, skip_branch: bool = True):
        super().__init__()
        conv: Any = site.module if isinstance(site, Site) else site
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(
                f"a MobileOne block takes the place of a convolution over images that pads with zeros, and this is a "
                f'{type(conv).__name__}. Select sites with the role "conv" in a model for images.'
            )
        self.features = conv.out_channels
        self.kernels = nn.ModuleList(_branch(conv, conv.kernel_size, conv.padding) for _ in range(k))
        self.scale = self.skip = None
        centre = tuple(size // 2 for size in conv.kernel_size)
        centred = conv.padding == centre and all(size % 2 for size in conv.kernel_size) and conv.dilation == (1, 1)
        if scale_branch and max(conv.kernel_size) > 1 and centred:
            self.scale = _branch(conv, (1, 1), (0, 0))
        if skip_branch and centred and conv.in_channels == conv.out_channels and conv.stride == (1, 1):
            self.skip = nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.kernels[0](x)
        for branch in self.kernels[1:]:
            out = out + branch(x)
        if self.scale is not None:
            out = out + self.scale(x)
        return out if self.skip is None else out + self.skip(x)

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """One convolution that computes in evaluation what the branches do together."""
        branches: list[Any] = list(self.kernels)
        like: Any = branches[0][0]
        kernels = [folded(conv.weight, conv.bias, norm) for conv, norm in branches]
        if self.scale is not None:
            weight, bias = folded(self.scale[0].weight, None, self.scale[1])  # type: ignore[arg-type]
            kernels.append((_padded(weight, like.kernel_size), bias))
        if self.skip is not None:
            kernels.append(folded(identity_kernel(like), None, self.skip))
        shape = (like.kernel_size, like.stride, like.padding, like.dilation, like.groups)
        plain = nn.Conv2d(like.in_channels, like.out_channels, *shape)
        plain = plain.to(like.weight.device, like.weight.dtype).train(self.training)
        plain.weight.copy_(torch.stack([weight for weight, _ in kernels]).sum(0))
        plain.bias.copy_(torch.stack([bias for _, bias in kernels]).sum(0))  # type: ignore[union-attr]
        return plain

    def extra_repr(self) -> str:
        return f"k={len(self.kernels)}"


def identity_kernel(conv: nn.Conv2d) -> Tensor:
    """The kernel of a convolution that hands its input on: 1 in the middle, from each channel to itself."""
    inputs = conv.in_channels // conv.groups
    kernel = torch.zeros_like(conv.weight)
    rows = torch.arange(conv.out_channels, device=kernel.device)
    kernel[rows, rows % inputs, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1
    return kernel


def _padded(weight: Tensor, size: Pair) -> Tensor:
    """A 1 x 1 kernel in the middle of a larger one."""
    height, width = (each // 2 for each in size)
    return nn.functional.pad(weight, (width, width, height, height))


def _branch(conv: Any, size: Any, padding: Any) -> nn.Sequential:
    shape = (conv.in_channels, conv.out_channels)
    made = nn.Conv2d(*shape, size, conv.stride, padding, conv.dilation, conv.groups, bias=False)
    return nn.Sequential(made, nn.BatchNorm2d(conv.out_channels))


class SqueezeExcite(nn.Module):
    """Weighs each channel by what all of them say in the mean over the image."""

    def __init__(self, channels: int):
        super().__init__()
        inner = max(channels // SQUEEZE, 1)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, inner, 1), nn.ReLU())
        self.excite = nn.Sequential(nn.Conv2d(inner, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(self.squeeze(x))


@model(
    id="mobileone",
    paper=PAPER,
    arxiv=ARXIV,
    name="MobileOne",
    example={"task": {"use": "digits"}, "model": {"widths": [4, 8], "depths": [1, 1], "k": 2}},
    recommends={
        "optimizer": {"weight_decay": 1e-4},
        "techniques": [{"use": "label-smoothing", "amount": 0.1}],
        "training": {"batch_size": 256},
    },
)
class MobileOne(Model):
    """A convolutional network of depthwise and pointwise blocks, each with several branches in training that fold into
    one convolution. Made to be fast at batch 1 on small devices.

        unit(x) = relu(pointwise(relu(depthwise(x)))),   each of the two a MobileOne block
        answer = W mean over pixels(units(relu(block(x)))) + b

    There are no connections around a unit. The first unit of every stage but the first halves height and width.

    Helps: Latency: a folded block is one convolution, with nothing to add up.
    Hurts: Large networks, which do not need the branches; training time.
    Cost: In training k + 2 times that of the folded network.

    Choices: The paper's network has a stem of stride 2 and stages of 1, 2, 8, 10 and 1 units, for large images; here
    the stem keeps the size. Squeeze and excitation is for its largest variant only.

    Args:
        widths: Channels of each stage.
        depths: Units of each stage.
        k: Branches with a full convolution in each block.
        scale_branch: Whether depthwise blocks have a branch of 1 x 1 convolutions.
        skip_branch: Whether blocks that keep their shape have a branch without a convolution.
        squeeze: Where channels are weighed by their means: nowhere, or in every block before its nonlinearity.

    Raises:
        ValueError: For a task whose inputs are not images or too small for the stages, or where the numbers of widths
            and depths differ.
    """

    inputs = ("image",)
    outputs = ("classes", "values", "embedding")

    def __init__(
        self,
        offer: Offer,
        widths: Widths = [16, 32, 64],  # noqa: B006 - the default is shown in the form; it is never changed
        depths: Widths = [1, 2, 1],  # noqa: B006
        k: Count = 4,
        scale_branch: bool = True,
        skip_branch: bool = True,
        squeeze: Literal["none", "all"] = "none",
    ):
        super().__init__()
        if offer.input != "image":
            raise ValueError(
                f"MobileOne takes images, and the task offers {offer.input} inputs, which have no height and width. "
                "Choose another model."
            )
        if not widths or len(widths) != len(depths):
            raise ValueError(
                f"There are {len(widths)} widths and {len(depths)} depths: write one of each for every stage, at least "
                "one."
            )
        if min(offer.shape[1:]) < 2 ** (len(widths) - 1):
            raise ValueError(
                f"{len(widths)} stages halve the image {len(widths) - 1} times, and it has only "
                f"{min(offer.shape[1:])} pixels on a side. Write fewer stages."
            )
        self._offer = offer

        def block(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
            parts: list[nn.Module] = [MobileOneBlock(conv, k, scale_branch, skip_branch)]
            if squeeze == "all":
                parts.append(SqueezeExcite(outputs))
            return nn.Sequential(*parts, nn.ReLU())

        self.stem = block(offer.shape[0], widths[0], 3)
        self.blocks = nn.Sequential()
        before = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for i in range(depth):
                stride = 2 if stage and i == 0 else 1
                self.blocks.append(
                    nn.Sequential(block(before, before, 3, stride, groups=before), block(before, width, 1))
                )
                before = width
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(before, offer.size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))))

    def anatomy(self) -> Anatomy:
        return staged(self, self._offer)
