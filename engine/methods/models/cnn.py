"""Residual convolutional networks."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from engine.fields import Count, Decay, Widths
from engine.kit.anatomy import Anatomy, staged
from engine.parts import Model, Offer, model


@model(name="Convolutional network", example={"task": {"use": "digits"}})
class CNN(Model):
    """Slides small filters over an image, in blocks that add to what they were given. The usual choice for images.

        block: y = f(norm(conv(f(norm(conv(x))))) + x);  answer = W mean over pixels(y) + b

    The first block of every stage but the first halves height and width; where the shape changes, x passes a 1 x 1
    convolution.

    Helps: Images, and any grid in which neighbours belong together.
    Hurts: Inputs without neighbourhoods. Without the skips, deep ones are hard to train.
    Cost: Most time goes into the first stage, where the image is large.

    Args:
        widths: Channels of each stage.
        depth: Blocks in a stage, two convolutions each.
        skip: Whether a block adds its input to its output.
        norm: What normalizes after each convolution: nothing, over the batch, or over a sample's channels and pixels.
        activation: The nonlinearity.
        dropout: Share of the features before the head that are silenced at random in training.

    Raises:
        ValueError: For a task whose inputs are not images, or are too small for the stages, or that asks for a field.
    """

    inputs = ("image",)
    outputs = ("classes", "values", "embedding")

    def __init__(
        self,
        offer: Offer,
        widths: Widths = [16, 32],  # noqa: B006 - the default is shown in the form; it is never changed
        depth: Count = 1,
        skip: bool = True,
        norm: Literal["none", "batch", "layer"] = "batch",
        activation: Literal["relu", "gelu", "silu", "tanh"] = "relu",
        dropout: Decay = 0.0,
    ):
        super().__init__()
        _check(offer, widths)
        self._offer = offer
        act = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}[activation]
        self.stem = nn.Sequential(*_conv(offer.shape[0], widths[0], 1, norm), act())
        self.blocks = nn.Sequential()
        for stage, (inputs, outputs) in enumerate(pairwise([widths[0], *widths])):
            for i in range(depth):
                stride = 2 if stage and i == 0 else 1
                self.blocks.append(ResidualBlock(outputs if i else inputs, outputs, stride, skip, norm, act))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
        self.head = nn.Linear(widths[-1], offer.size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))))

    def anatomy(self) -> Anatomy:
        return staged(self, self._offer)


class ResidualBlock(nn.Module):
    """Two convolutions, and the input added before the last nonlinearity."""

    def __init__(self, inputs: int, outputs: int, stride: int, skip: bool, norm: str, act: type[nn.Module]):
        super().__init__()
        self.skip = skip
        first, second = _conv(inputs, outputs, stride, norm), _conv(outputs, outputs, 1, norm)
        self.body = nn.Sequential(*first, act(), *second)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if skip and changes else nn.Identity()
        self.activation = act()

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        if self.skip:
            out = out + self.shortcut(x)
        return self.activation(out)


def _conv(inputs: int, outputs: int, stride: int, norm: str) -> list[nn.Module]:
    """A convolution and its norm; the norm's shift takes the place of a bias."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=norm == "none")
    if norm == "none":
        return [conv]
    return [conv, nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(1, outputs)]


def _check(offer: Offer, widths: list[int]) -> None:
    if offer.input != "image":
        raise ValueError(
            f"The convolutional network takes images, and the task offers {offer.input} inputs, which have no height "
            "and width. Choose another model."
        )
    if offer.output == "field":
        raise ValueError(
            "This convolutional network answers one row of numbers for a picture, and the task asks for a field. "
            "Choose a model that maps fields to fields."
        )
    if not widths:
        raise ValueError("A convolutional network has at least one stage: write widths = [16, 32], for example.")
    if min(offer.shape[1:]) < 2 ** (len(widths) - 1):
        raise ValueError(
            f"{len(widths)} stages halve the image {len(widths) - 1} times, and it has only {min(offer.shape[1:])} "
            "pixels on a side. Write fewer widths."
        )
