"""The loss around a trained model, along random directions at the scale of its filters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from engine.fields import Count, Positive, Whole
from engine.parts import Figure, Finding, Probe, probe

if TYPE_CHECKING:
    from engine.training.run import Run

TINY = 1e-10


def direction(weights: Sequence[Tensor], rng: torch.Generator, norm: str = "filter") -> list[Tensor]:
    """A Gaussian direction in the space of the weights, scaled to them; zero for biases and norms' parameters.

    A filter is a row of a matrix or an output channel of a kernel. Drawn on the CPU: the same on every device.
    """
    found = []
    for weight in weights:
        drawn = torch.randn(weight.shape, generator=rng, dtype=torch.float64).to(weight)
        found.append(_scaled(drawn, weight, norm) if weight.dim() > 1 else torch.zeros_like(weight))
    return found


def _scaled(drawn: Tensor, weight: Tensor, norm: str) -> Tensor:
    if norm == "none":
        return drawn
    if norm == "layer":
        return drawn * (weight.norm() / drawn.norm().clamp_min(TINY))
    shape = (-1, *[1] * (weight.dim() - 1))
    lengths = [torch.linalg.vector_norm(t.flatten(1), dim=1) for t in (weight, drawn)]
    return drawn * (lengths[0] / lengths[1].clamp_min(TINY)).view(shape)


def scan(
    loss: Callable[[list[Tensor]], Tensor],
    weights: Sequence[Tensor],
    directions: Sequence[Sequence[Tensor]],
    grid: Sequence[float],
) -> Tensor:
    """The loss at the weights plus every combination of the grid's multiples of the directions.

    Shape: one dimension of the grid's length for each direction. The weights themselves are never written.
    """
    losses = [loss(point) for point in _points(list(weights), directions, grid)]
    return torch.stack(losses).view([len(grid)] * len(directions))


def _points(
    point: list[Tensor], directions: Sequence[Sequence[Tensor]], grid: Sequence[float]
) -> Iterator[list[Tensor]]:
    """Every point, the last direction's multiples fastest; one copy of the weights for each direction at a time."""
    if not directions:
        yield point
        return
    for a in grid:
        moved = list(torch._foreach_add(point, list(directions[0]), alpha=a)) if a else point
        yield from _points(moved, directions[1:], grid)


def negative_curvature(surface: Tensor) -> float:
    """The share of a surface's inner points at which it bends down in some direction (by finite differences)."""
    z = surface.double()
    center = z[1:-1, 1:-1]
    xx = z[2:, 1:-1] - 2 * center + z[:-2, 1:-1]
    yy = z[1:-1, 2:] - 2 * center + z[1:-1, :-2]
    xy = (z[2:, 2:] - z[2:, :-2] - z[:-2, 2:] + z[:-2, :-2]) / 4
    lowest = (xx + yy) / 2 - (((xx - yy) / 2).square() + xy.square()).sqrt()
    # Rounding in the losses is no curvature: what is smaller counts as flat.
    noise = 16 * torch.finfo(surface.dtype).eps * z.abs().max()
    return float((lowest < -noise).double().mean())


@probe(
    id="filter-normalized-landscape",
    name="Filter-normalized loss landscape",
    paper="Visualizing the Loss Landscape of Neural Nets",
    arxiv="1712.09913",
)
class FilterNormalizedLandscape(Probe):
    """Shows how the loss rises around the trained weights, along random directions, as a curve and as a surface.
    Each direction has, filter by filter, the length of the weights, so that the pictures of two models compare.

        d_ij <- d_ij |w_ij| / |d_ij|,   d ~ N(0, 1), filter j of layer i;   0 for biases and norms
        curve f(a) = L(w + a d),   surface f(a, b) = L(w + a d + b e),   a, b in [-span, span]

    L is the mean training loss over the same samples at every point, in evaluation mode.

    Helps: comparing architectures, batch sizes and regularizers by how wide and how smooth the valley is.
    Hurts: as a proof: two random directions of thousands see little, and never a narrow way out.
    Cost: one forward pass over the samples for each point: grid^2 of them for the surface.
    Choices: the weights that are trained are moved, before any map such as a mask. Running statistics stay. Curvature
        is counted on the surface itself. Paths between checkpoints and between two models are not part of it.

    Args:
        show: What to compute.
        grid: Points along each direction; odd, so that the trained weights are one of them.
        span: How far to go, as a multiple of each filter's length.
        norm: What the direction is scaled to: each filter, each layer as a whole, or nothing.
        samples: Training samples that the loss is a mean of.
        seed: Seed of the directions.

    Raises:
        ValueError: For an even grid.
    """

    when = "end"
    reads = ("output",)

    def __init__(
        self,
        show: Literal["both", "curve", "surface"] = "both",
        grid: Annotated[int, Field(ge=3, le=101)] = 25,
        span: Positive = 1.0,
        norm: Literal["filter", "layer", "none"] = "filter",
        samples: Count = 512,
        seed: Whole = 0,
    ):
        if grid % 2 == 0:
            raise ValueError(f"grid = {grid} is even, so the trained weights would not be on it; write {grid + 1}.")
        self.show, self.grid, self.span, self.norm = show, grid, span, norm
        self.samples, self.seed = samples, seed

    def look(self, run: Run) -> Finding:
        named = {name: p.detach() for name, p in run.model.named_parameters() if p.requires_grad}
        weights = list(named.values())
        rng = torch.Generator().manual_seed(self.seed)
        d, e = (direction(weights, rng, self.norm) for _ in range(2))
        half = self.grid // 2
        grid = [self.span * (i - half) / half for i in range(self.grid)]
        batch = run.training_sample(self.samples)
        with run.evaluating():
            oracle = run.oracle(batch)

            def loss(point: list[Tensor]) -> Tensor:
                return oracle.value(dict(zip(named, point, strict=True)))

            finding = Finding()
            if self.show != "surface":
                self._curve(finding, grid, scan(loss, weights, [d], grid))
            if self.show != "curve":
                self._surface(finding, grid, scan(loss, weights, [d, e], grid))
        return finding

    def _curve(self, finding: Finding, grid: list[float], losses: Tensor) -> None:
        values: Any = losses.double().tolist()
        finding.scalars |= {"loss": values[self.grid // 2], "edge": (values[0] + values[-1]) / 2}
        finding.figures["curve"] = {
            "kind": "curve",
            "title": "Loss along a random direction",
            "x": {"label": f"distance ({self._unit()})"},
            "y": {"label": "loss"},
            "series": [{"name": "loss", "x": grid, "y": values}],
        }

    def _surface(self, finding: Finding, grid: list[float], losses: Tensor) -> None:
        low = losses.min()
        finding.scalars |= {
            "loss": float(losses[self.grid // 2, self.grid // 2]),
            "valley": float((losses < 2 * low).double().mean()),
            "negative-curvature": negative_curvature(losses),
        }
        axis = {"values": grid}
        figure: Figure = {
            "kind": "surface",
            "title": "Loss along two random directions",
            "x": {"label": f"first direction ({self._unit()})", **axis},
            "y": {"label": f"second direction ({self._unit()})", **axis},
            "z": losses.double().tolist(),
        }
        finding.figures["surface"] = figure

    def _unit(self) -> str:
        return {"filter": "filter lengths", "layer": "layer lengths", "none": "raw"}[self.norm]
