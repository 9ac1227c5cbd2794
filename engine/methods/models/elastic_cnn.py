"""A residual convolutional network of many configurations."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from engine.fields import Count, Decay, Positive, Whole
from engine.kit.anatomy import Anatomy, example_input
from engine.kit.elastic import (
    Config,
    Elastic,
    ElasticBatchNorm2d,
    ElasticBlock,
    ElasticConv2d,
    ElasticLinear,
    ElasticStage,
    Resize,
)
from engine.parts import Model, Offer, model

Counts = Annotated[list[Count], Field(min_length=1)]
Shares = Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]
Factors = Annotated[list[Positive], Field(min_length=1)]


@model(id="elastic-cnn", name="Elastic convolutional network", example={"task": {"use": "digits"}})
class ElasticCNN(Model, Elastic):
    """Holds many networks in one set of weights: narrower, shallower, with smaller kernels or for smaller images. Each
    uses a part of every tensor, and any of them can be taken out as a plain network afterwards.

        channels: the first of each tensor;  kernel: its centre;  depth: the first blocks of a stage
        block: y = f(norm(conv(f(norm(conv(x))))) + x);  answer = W mean over pixels(y) + b

    Helps: one training for devices of several sizes; searching for the smallest network that is good enough.
    Hurts: as a single network it has nothing over a plain one, and its smaller selves have to be trained on purpose.
    Cost: that of the configuration in use; the memory of the largest.

    Args:
        widths: Channels of each stage at its widest; every stage after the first halves height and width.
        width_shares: Shares of the channels that a stage may use.
        depths: Numbers of blocks that a stage may use.
        kernels: Sizes of the filters that a stage may use; odd.
        expansions: Channels inside a block, as multiples of the stage's.
        resolutions: Heights and widths that the image may be resized to; empty leaves it as it comes.
        dropout: Share of the features before the head that are silenced at random in training.
        zero_gamma: Whether each block starts as its shortcut, which keeps large networks stable.
        chosen: One network of all: for each choice (the resolution, then depth, width, kernel and expansion of each
            stage) the place of its value, counted from 0. Empty leaves all open.

    Raises:
        ValueError: For a task whose inputs are not square images, even kernels, images too small for the stages, or
            places that no choice has.
    """

    inputs = ("image",)
    outputs = ("classes", "values", "embedding")

    def __init__(
        self,
        offer: Offer,
        widths: Counts = [16, 32],  # noqa: B006 - the defaults are shown in the form; they are never changed
        width_shares: Shares = [0.5, 0.75, 1.0],  # noqa: B006
        depths: Counts = [1, 2],  # noqa: B006
        kernels: Counts = [3, 5],  # noqa: B006
        expansions: Factors = [1.0],  # noqa: B006
        resolutions: list[Count] = [],  # noqa: B006
        dropout: Decay = 0.2,
        zero_gamma: bool = True,
        chosen: list[Whole] = [],  # noqa: B006
    ):
        super().__init__()
        self._offer, self._dropout = offer, dropout
        self.widths, self.width_shares, self.depths = list(widths), _ascending(width_shares), _ascending(depths)
        self.kernels, self.expansions = _ascending(kernels), _ascending(expansions)
        self.resolutions = _ascending(resolutions or [_side(offer)])
        if self.resolutions[0] < 2 ** (len(widths) - 1):
            raise ValueError(
                f"{len(widths)} stages halve the image {len(widths) - 1} times, and the smallest has only "
                f"{self.resolutions[0]} pixels on a side. Write fewer widths."
            )
        kernel, factor = self.kernels[-1], self.expansions[-1]
        self.resize = Resize(self.resolutions[-1])
        self.stem_conv = ElasticConv2d(offer.shape[0], widths[0], kernel)
        self.stem_norm, self.stem_activation = ElasticBatchNorm2d(widths[0]), nn.ReLU()
        self.stages = nn.ModuleList()
        for number, (inputs, outputs) in enumerate(pairwise([widths[0], *widths])):
            inner = _channels(outputs, factor)
            blocks = [
                ElasticBlock(outputs if i else inputs, outputs, inner, kernel, 2 if number and not i else 1, zero_gamma)
                for i in range(self.depths[-1])
            ]
            self.stages.append(ElasticStage(blocks))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout))
        self.head = ElasticLinear(widths[-1], offer.size)
        self._chosen = _checked(list(chosen), self._open())
        self.configure(self.largest())

    def choices(self) -> dict[str, list[Any]]:
        found = self._open()
        if not self._chosen:
            return found
        return {name: [values[i]] for i, (name, values) in zip(self._chosen, found.items(), strict=True)}

    def canonical(self, config: Mapping[str, Any]) -> Config:
        """Shares that round to as many channels are the same network: the smallest stands for them."""
        found, wide = dict(config), 0
        for number, width in enumerate(self.widths):
            wide = _channels(width, config[f"stage{number}.width"])
            inner = _channels(wide, config[f"stage{number}.expansion"])
            found[f"stage{number}.width"] = next(s for s in self.width_shares if _channels(width, s) == wide)
            found[f"stage{number}.expansion"] = next(s for s in self.expansions if _channels(wide, s) == inner)
        return found

    def _open(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {"resolution": self.resolutions}
        for number in range(len(self.widths)):
            found[f"stage{number}.depth"] = self.depths
            found[f"stage{number}.width"] = self.width_shares
            found[f"stage{number}.kernel"] = self.kernels
            found[f"stage{number}.expansion"] = self.expansions
        return found

    def _follow(self, config: Config) -> None:
        self.resize.size = config["resolution"]
        wide = [_channels(w, config[f"stage{i}.width"]) for i, w in enumerate(self.widths)]
        self.stem_conv.configure(None, wide[0], config["stage0.kernel"])
        self.stem_norm.configure(wide[0])
        stages: Any = self.stages
        for i, stage in enumerate(stages):
            stage.depth = config[f"stage{i}.depth"]
            inner = _channels(wide[i], config[f"stage{i}.expansion"])
            for j, block in enumerate(stage):
                block.configure(wide[i] if j or not i else wide[i - 1], wide[i], inner, config[f"stage{i}.kernel"])
        self.head.configure(wide[-1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_activation(self.stem_norm(self.stem_conv(self.resize(x))))
        for stage in self.stages:
            x = stage(x)
        return self.head(self.pool(x))

    def _extract(self) -> nn.Module:
        stages: Any = self.stages
        return nn.Sequential(
            OrderedDict(
                resize=Resize(self.resize.size),
                stem=nn.Sequential(self.stem_conv.extract(), self.stem_norm.extract(), nn.ReLU()),
                blocks=nn.Sequential(*(block for stage in stages for block in stage.extract())),
                pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(self._dropout)),
                head=self.head.extract(),
            )
        )

    def anatomy(self) -> Anatomy:
        blocks = [block for stage in self.stages for block in stage]  # type: ignore[attr-defined]
        example = example_input(self._offer)
        return Anatomy(self, stem=self.stem_conv, blocks=blocks, features=self.pool, head=self.head, example=example)


def _checked(chosen: list[int], choices: dict[str, list[Any]]) -> list[int]:
    """The chosen places, where there is one for each choice and its value is there."""
    if chosen and len(chosen) != len(choices):
        raise ValueError(
            f"chosen has {len(chosen)} places, and there are {len(choices)} choices: {', '.join(choices)}."
        )
    for place, (name, values) in zip(chosen, choices.items(), strict=False):
        if place >= len(values):
            raise ValueError(f"chosen names place {place} of {name}, which has {len(values)}, counted from 0.")
    return chosen


def _ascending(values: list[Any]) -> list[Any]:
    return sorted(set(values))


def _channels(channels: int, share: float) -> int:
    return max(round(channels * share), 1)


def _side(offer: Offer) -> int:
    if offer.input != "image" or offer.shape[1] != offer.shape[2]:
        raise ValueError(
            f"The elastic convolutional network takes square images, and the task offers {offer.input} inputs of shape "
            f"{tuple(offer.shape)}. Choose another model."
        )
    return offer.shape[1]
