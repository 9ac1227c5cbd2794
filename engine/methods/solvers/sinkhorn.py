"""Sinkhorn's iteration for entropic optimal transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from engine.fields import Count, NonNegative
from engine.kit.transport import Transport, TransportSolver
from engine.parts import procedure

if TYPE_CHECKING:
    from engine.training.run import Run


@procedure(
    id="sinkhorn",
    name="Sinkhorn",
    paper="Sinkhorn Distances: Lightspeed Computation of Optimal Transport",
    arxiv="1306.0895",
    recommends={"budget": {"steps": 5000}},
    example={
        "task": {"use": "optimal-transport", "points": 12, "eta": 20.0},
        "procedure": {"tolerance": 1e-6, "check_every": 2},
        "budget": {"steps": 12},
    },
)
class Sinkhorn(TransportSolver):
    """Finds an entropic transport plan by meeting the row sums exactly, then the column sums, in turn until both hold.

        x <- x + (log r - log P 1) / eta;   y <- y + (log c - log P^T 1) / eta
        P_ij = exp(eta (x_i + y_j - C_ij) - 1);   stop when |P 1 - r|_1 + |P^T 1 - c|_1 < tolerance

    Sums of exponentials are computed by their logarithms, so that no eta overflows. One step is one iteration.

    Helps: small and moderate eta, where some dozen iterations do; the plain way that others are measured against.
    Hurts: a large eta (a nearly unpooled plan): thousands of iterations, each of which gains next to nothing.
    Cost: two passes over the n x m costs an iteration, and a third where the error is looked at.
    Choices: the error is looked at every check_every iterations, because looking costs half as much as an iteration.

    Args:
        tolerance: The summed error of the marginals at which it stops.
        check_every: Iterations between two looks at the error.
    """

    def __init__(self, tolerance: NonNegative = 1e-10, check_every: Count = 10):
        super().__init__()
        self.tolerance, self.check_every = tolerance, check_every

    def advance(self, run: Run, problem: Transport, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        run.count("evaluations")
        return problem.sinkhorn(x, y)
