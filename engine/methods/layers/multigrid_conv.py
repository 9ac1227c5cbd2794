"""A learned multigrid cycle in the place of a convolution."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from engine.fields import Count
from engine.kit.anatomy import Site
from engine.methods.models.mgno import VCycle
from engine.parts import Layer, layer


@layer(
    id="multigrid-conv",
    name="Multigrid convolution",
    paper="MgNO: Efficient Parameterization of Linear Operators via Multigrid",
    arxiv="2310.19809",
    example={"task": {"use": "digits"}, "model": {"use": "cnn", "widths": [4], "norm": "none"}},
)
class MultigridConv(Layer):
    """Takes the place of a convolution that keeps the size of its picture, and sees the whole picture where that one
    sees a few cells: the layer of MgNO, for any network on a grid.

        out = W x + B x + b,   W one cycle over grids, each half as fine as the one before,  B a 1 x 1 convolution

    Helps: networks on fields that act far away, such as solutions of equations; a few layers then suffice.
    Hurts: pictures in which only neighbours matter; small ones, which cannot be halved.
    Cost: About five times the weights and four times the work of a 3 x 3 convolution.
    Choices: one smoothing step a level on the way down and none on the way up, the reference's setting. What lies
        outside is what it was for the convolution. Weights start anew.

    Args:
        site: Where it goes.
        levels: Grids of a cycle, the picture's own among them.
        use_residual: Whether a coarser grid gets what is left of the input, as in a solver, instead of all of it.

    Raises:
        ValueError: For what is no such convolution, and a picture that cannot be halved so often.
    """

    role = "conv"

    def __init__(self, site: Site, levels: Count = 3, use_residual: bool = False):
        super().__init__()
        conv = _convolution(site)
        sides = site.shape[1:] if site.shape is not None else ()
        if any(side % 2 ** (levels - 1) for side in sides):
            size = " x ".join(map(str, sides))
            raise ValueError(
                f"at {site.path} a picture of {size} cannot be halved {levels - 1} times; write fewer levels."
            )
        padding: Any = conv.padding_mode
        self.cycle = VCycle(conv.in_channels, conv.out_channels, [1] * levels, [0] * levels, padding, use_residual)
        self.local = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        return self.cycle(x) + self.local(x)


def _convolution(site: Site) -> nn.Conv2d:
    """The convolution at a site, which must keep the picture's size and mix all channels."""
    conv = site.module
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"{site.path} is a {type(conv).__name__}, and only convolutions of pictures can be replaced.")
    kept = all(s == 1 and 2 * p == d * (k - 1) for s, p, d, k in zip(*_sizes(conv), strict=True))
    if not kept or conv.groups != 1 or max(conv.kernel_size) == 1 or conv.padding_mode == "replicate":
        raise ValueError(
            f"{site.path} is no convolution over neighbours that keeps the size of its picture and mixes all channels. "
            "Select other sites."
        )
    return conv


def _sizes(conv: nn.Conv2d) -> tuple[Any, ...]:
    same = tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    padding = conv.padding if not isinstance(conv.padding, str) else same if conv.padding == "same" else (0, 0)
    return conv.stride, padding, conv.dilation, conv.kernel_size
