"""Fully connected networks."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from engine.fields import Decay, NonNegative, Widths
from engine.kit.anatomy import Anatomy, example_input
from engine.parts import Model, Offer, model

ACTIVATIONS = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


@model(default=True, name="Multilayer perceptron")
class MLP(Model):
    """Layers in which every unit sees every unit of the layer before. The plainest network.

        h_0 = x flattened;  h_i = dropout(f(norm(W_i h_(i-1) + b_i)));  answer = W h_n + b

    Helps: Small inputs and tables; a baseline for everything else.
    Hurts: Images and texts of any size, whose structure it does not use.
    Cost: Parameters grow with the product of neighbouring widths.

    Args:
        hidden: Units of each hidden layer; an empty list makes a linear model.
        activation: The nonlinearity after each hidden layer.
        norm: What normalizes before each nonlinearity: nothing, over the batch, or over the units.
        dropout: Share of the hidden units that are silenced at random in training.
        init: How weights start: PyTorch's uniform rule, normal numbers with init_std (biases zero), or all zero.
        init_std: Standard deviation of the normal numbers.

    Raises:
        ValueError: For a task whose inputs are tokens.
    """

    inputs = ("vector", "image", "nodes")
    outputs = ("classes", "values", "embedding", "actions", "samples")

    def __init__(
        self,
        offer: Offer,
        hidden: Widths = [64, 64],  # noqa: B006 - the default is shown in the form; it is never changed
        activation: Literal["relu", "gelu", "silu", "tanh", "sigmoid", "identity"] = "relu",
        norm: Literal["none", "batch", "layer"] = "none",
        dropout: Decay = 0.0,
        init: Literal["default", "normal", "zeros"] = "default",
        init_std: NonNegative = 0.05,
    ):
        super().__init__()
        if offer.input == "tokens" or offer.output == "next-token":
            raise ValueError(
                "The MLP takes numbers, and the task offers tokens: their order and meaning would be lost. "
                "Choose a model for tokens."
            )
        self._offer = offer
        widths = [offer.features, *hidden]
        self.stem = nn.Flatten()
        self.blocks = nn.Sequential(*(_block(i, o, activation, norm, dropout) for i, o in pairwise(widths)))
        self.head = nn.Linear(widths[-1], offer.size)
        if init != "default":
            self.apply(lambda m: _start(m, init_std if init == "normal" else 0.0))

    def forward(self, x: Tensor) -> Tensor:
        answer = self.head(self.blocks(self.stem(x)))
        return answer.unflatten(-1, self._offer.answer) if self._offer.answer else answer

    def anatomy(self) -> Anatomy:
        features = self.blocks[-1] if len(self.blocks) else self.stem
        example = example_input(self._offer)
        return Anatomy(
            self, stem=self.stem, blocks=list(self.blocks), features=features, head=self.head, example=example
        )


def _block(inputs: int, outputs: int, activation: str, norm: str, dropout: float) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(linear=nn.Linear(inputs, outputs))
    if norm != "none":
        layers["norm"] = nn.BatchNorm1d(outputs) if norm == "batch" else nn.LayerNorm(outputs)
    layers["activation"] = ACTIVATIONS[activation]()
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    return nn.Sequential(layers)


def _start(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=std) if std else nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
