"""Plain convolutional networks that answer a field."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from engine.fields import Count, Whole
from engine.kit.anatomy import Anatomy, example_input
from engine.kit.gridded import InUnits, check_fields
from engine.parts import Model, Offer, model

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}


@model(
    id="field-cnn",
    name="Convolutional network for fields",
    example={"task": {"use": "darcy-flow", "size": 8, "samples": 16, "held_out": 4}, "model": {"width": 4, "depth": 1}},
)
class FieldCNN(Model):
    """Slides small filters over a field, layer by layer, at its full resolution, and answers a field of the same size.

        h_0 = f(conv x);   h_i = f(conv h_(i-1));   answer = W h_n at each place

    Helps: maps that act nearby: filters, corrections, a step in time. The baseline for everything else on grids.
    Hurts: what acts far away: each layer sees (kernel - 1) / 2 cells farther, and a picture is wider than that.
    Cost: Every layer costs width^2 kernel^2 a cell.

    Args:
        width: Channels of each layer.
        depth: Layers after the first.
        kernel: Cells on a side of a filter, an odd number.
        padding: What lies outside: zeros (a fixed border), the other side (periodic), or a mirror (no flow).
        activation: The nonlinearity.

    Raises:
        ValueError: For a task that is not from fields to fields on one grid, and an even kernel.
    """

    def __init__(
        self,
        offer: Offer,
        width: Count = 24,
        depth: Whole = 5,
        kernel: Count = 3,
        padding: Literal["zeros", "circular", "reflect"] = "zeros",
        activation: Literal["gelu", "relu", "tanh", "silu"] = "gelu",
    ):
        super().__init__()
        check_fields(offer)
        if kernel % 2 == 0:
            raise ValueError(f"kernel = {kernel} has no middle; write an odd number.")
        self._offer = offer

        def layer(inputs: int) -> nn.Sequential:
            conv = nn.Conv2d(inputs, width, kernel, padding=kernel // 2, padding_mode=padding)
            return nn.Sequential(conv, ACTIVATIONS[activation]())

        self.stem = layer(offer.shape[0])
        self.blocks = nn.Sequential(*(layer(width) for _ in range(depth)))
        self.head = nn.Conv2d(width, offer.answer[0], 1)
        self.units = InUnits(offer)

    def forward(self, x: Tensor) -> Tensor:
        return self.units(self.head(self.blocks(self.stem(x))))

    def anatomy(self) -> Anatomy:
        return Anatomy(
            self,
            stem=self.stem,
            blocks=list(self.blocks),
            features=self.blocks[-1] if len(self.blocks) else self.stem,
            head=self.head,
            example=example_input(self._offer),
        )
