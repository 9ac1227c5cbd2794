"""Two levels: an outer loss of hyperparameters x, and of weights y that an inner loss teaches.

    min_x F(x, y*(x)),   y*(x) = argmin_y G(x, y)
    dF/dx = F_x - G_xy z,   z = [G_yy]^-1 F_y                   at y = y*(x)

`TwoLevel` gives the pieces, on whatever batches it is asked for; nothing in it holds a matrix:

    problem = TwoLevel(x, y, inner=lambda batch: ..., outer=lambda batch: ...)
    z, _ = conjugate_gradient(problem.curvature(batch), problem.outer_slopes(other)[1], steps=20)
    step = problem.hypergradient(z, batch, other)

What x is, is an `Upper`: one weight for each training sample, or the numbers of a recipe that are learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.kit.curvature import Direction, Product, backproduct, gradient, hessian, plus
from engine.kit.live import Bound
from engine.parts import Batch, Terms, Value

LossOf = Callable[[Batch], Tensor]


@dataclass
class TwoLevel:
    """Two losses as functions of a batch, differentiable in `upper` (x) and in `lower` (y), which are leaves."""

    upper: Sequence[Tensor]
    lower: Sequence[Tensor]
    inner: LossOf
    outer: LossOf

    def outer_slopes(self, batch: Batch) -> tuple[Direction, Direction]:
        """F_x and F_y, from one pass; zeros for what F does not depend on."""
        with torch.enable_grad():
            both = gradient(self.outer(batch), [*self.upper, *self.lower])
        return both[: len(self.upper)], both[len(self.upper) :]

    def curvature(self, batch: Batch) -> Product:
        """G_yy as a product: one pass builds the graph."""
        with torch.enable_grad():
            return hessian(self.inner(batch), self.lower)

    def mixed(self, batch: Batch, z: Sequence[Tensor]) -> Direction:
        """G_xy z: how the inner slope along z changes with x."""
        with torch.enable_grad():
            slopes = gradient(self.inner(batch), self.lower, create_graph=True)
        return backproduct(slopes, self.upper, z)

    def residual(self, z: Sequence[Tensor], inner_batch: Batch, outer_batch: Batch) -> Direction:
        """G_yy z - F_y: zero where z is what the hypergradient needs; a step against it brings z there."""
        return plus(self.curvature(inner_batch)(z), self.outer_slopes(outer_batch)[1], -1.0)

    def hypergradient(self, z: Sequence[Tensor], inner_batch: Batch, outer_batch: Batch) -> tuple[Direction, Tensor]:
        """F_x - G_xy z, and the outer loss, detached."""
        with torch.enable_grad():
            outer = self.outer(outer_batch)
            direct = gradient(outer, self.upper)
        return plus(direct, self.mixed(inner_batch, z), -1.0), outer.detach()


def with_slopes(value: Tensor, variables: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """A number whose gradient is what it is told: how a slope that was found otherwise passes through `run.update`."""
    linear = torch.stack([(slope.detach() * x).sum() for slope, x in zip(slopes, variables, strict=True)]).sum()
    return value.detach() + linear - linear.detach()


@contextmanager
def resting(module: nn.Module) -> Iterator[None]:
    """The module as it answers in evaluation (nothing drops, statistics stand still), with gradients."""
    training = [m for m in module.modules() if m.training]
    for each in training:
        each.training = False
    try:
        yield
    finally:
        for each in training:
            each.training = True


# -- what the outer level moves ----------------------------------------------------------------------------------------


class Upper(nn.Module):
    """The outer level's variables, as parameters, and how they enter the inner loss."""

    def enter(self) -> None:
        """Lets what they stand for carry a graph, before a pass that is to be differentiated in them."""

    def leave(self) -> None:
        """Ends that: what they stand for is numbers again, those of the moment."""

    def weigh(self, terms: Terms, batch: Batch) -> Terms:
        """The terms of the inner loss as these variables change them."""
        return terms


class SampleWeights(Upper):
    """One weight for each training sample, the sigmoid of a logit found by the sample's stable index."""

    def __init__(self, samples: int, start: float = 0.0):
        super().__init__()
        self.logits = nn.Parameter(torch.full((samples,), start))

    def weights(self) -> Tensor:
        return torch.sigmoid(self.logits)

    def weigh(self, terms: Terms, batch: Batch) -> Terms:
        """Terms with a value for each sample are multiplied by its weight; others (penalties) stay."""
        weight = torch.sigmoid(self.logits[batch.index])
        return {name: term * weight if term.shape == weight.shape else term for name, term in terms.items()}


class LearnedValues(Upper):
    """The numbers of a recipe that are learned, each by a free number without limits."""

    def __init__(self, values: Mapping[str, Value], bounds: Mapping[str, Bound]):
        super().__init__()
        self.paths = list(bounds)
        self._values = [values[path] for path in self.paths]
        self._bounds = [bounds[path] for path in self.paths]
        starts = [bound.free(value.value) for bound, value in zip(self._bounds, self._values, strict=True)]
        self.free = nn.Parameter(torch.tensor(starts))

    def write(self, free: Tensor) -> None:
        """Sets the values to what free numbers stand for: [h], or one row for each sample [B, h]."""
        for column, value, bound in zip(free.unbind(-1), self._values, self._bounds, strict=True):
            value.tensor = bound.value(column)

    def numbers(self) -> dict[str, float]:
        """The values of the moment, by path. Waits for the device."""
        free = self.free.detach().unbind()
        return {p: float(b.value(f)) for p, b, f in zip(self.paths, self._bounds, free, strict=True)}

    def enter(self) -> None:
        self.write(self.free)

    def leave(self) -> None:
        self.write(self.free.detach())


def area_under_curve(scores: Tensor, positive: Tensor) -> Tensor:
    """The chance that a positive sample scores above another one; ties count half."""
    ordered, counts = scores.unique(return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts - 1) / 2)[torch.searchsorted(ordered, scores)]
    ones = positive.sum().double()
    zeros = len(scores) - ones
    return (ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros)
