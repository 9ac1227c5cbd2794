"""Sinkhorn-Newton-Sparse: entropic transport by Newton steps on a Hessian of which hardly anything is kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from engine.fields import NonNegative, Positive, Whole
from engine.kit.transport import Transport, TransportSolver
from engine.parts import procedure

if TYPE_CHECKING:
    from engine.training.run import Run

LEAST = 1e-6  # a line search that would go on below this length has failed
ROUNDING = 1e-15  # of the dual: no gain can be told from a loss of this size


def sparse_newton(plan: Tensor, rows: Tensor, columns: Tensor, keep: int, tolerance: float) -> tuple[Tensor, float]:
    """The solution d of M d = (rows, columns), and the share of the plan's mass that M holds. Where conjugate gradients
    do not come to the tolerance, d is nan.

    M = [diag(P 1), S; S^T, diag(P^T 1)], S being the `keep` largest entries of the plan P, the diagonals those of all.
    """
    n, m = plan.shape
    flat = plan.flatten()
    kept = torch.topk(flat, keep).indices
    values, index = flat[kept].cpu().numpy(), kept.cpu().numpy()
    block = sparse.csr_array((values, (index // m, index % m)), shape=(n, m))
    diagonal = torch.cat([plan.sum(1), plan.sum(0)]).cpu().numpy()
    matrix = (sparse.block_array([[None, block], [block.T, None]]) + sparse.diags_array(diagonal)).tocsr()
    whole = keep >= n * m
    free = np.concatenate([np.ones(n), -np.ones(m)]) / math.sqrt(n + m)

    def precondition(residual: np.ndarray) -> np.ndarray:
        if not whole:
            return residual / diagonal
        residual = (residual - (free @ residual) * free) / diagonal  # M of the whole plan is singular along (1, -1)
        return residual - (free @ residual) * free

    right = torch.cat([rows, columns]).cpu().numpy()
    right = right - (free @ right) * free  # nothing but rounding lies there
    jacobi = LinearOperator(matrix.shape, matvec=precondition, dtype=matrix.dtype)
    solution, failed = cg(matrix, right, rtol=tolerance, atol=0.0, M=jacobi)
    solved = torch.from_numpy(solution).to(plan)
    return (solved * math.nan if failed else solved), float(values.sum() / diagonal[:n].sum())


@procedure(
    id="sinkhorn-newton-sparse",
    name="Sinkhorn-Newton-Sparse",
    paper="Accelerating Sinkhorn Algorithm with Sparse Newton Iterations",
    arxiv="2401.12253",
    recommends={"budget": {"steps": 120}},
    example={
        "task": {"use": "optimal-transport", "points": 12, "eta": 40.0},
        "procedure": {"n_sinkhorn": 3, "per_row": 4.0},
        "budget": {"steps": 10},
    },
)
class SinkhornNewtonSparse(TransportSolver):
    """Finds an entropic transport plan by a few Sinkhorn iterations and then by Newton steps, whose Hessian is nearly
    all zeros: only the largest entries of the plan are kept in it, so that a step costs hardly more than Sinkhorn's.

        f(x, y) = <r, x> + <c, y> - (1/eta) sum_ij P_ij,   P_ij = exp(eta (x_i + y_j - C_ij) - 1)
        grad = (r - P 1, c - P^T 1);   S = the ceil(per_row n) largest entries of P, the others zero
        eta [diag(P 1), S; S^T, diag(P^T 1)] d = grad         by conjugate gradients
        (x, y) <- (x, y) + alpha d,   alpha = 1, 1/2, 1/4 ... until f grows by armijo alpha <grad, d>

    One step is one iteration of either kind.

    Helps: a large eta, where the plan is nearly a matching and Sinkhorn needs thousands of iterations.
    Hurts: a small eta: the plan's mass is spread over many entries, and what is dropped slows each step down. Plain
        Sinkhorn is done by then.
    Cost: a pass over the n x m costs an iteration and one for each length that is tried; a sparse system of n + m.
    Choices: the error falls by about the dropped share of the mass in each step, and quadratically only where next to
        nothing is dropped. Two entries a row are the paper's and right for a nearly unique matching; ten cost the same
        order. Where conjugate gradients fail or alpha falls under 1e-6, a Sinkhorn iteration takes the step's place;
        these are counted. Lengths are accepted within 1e-15 of f, below which doubles show no gain.

    Args:
        n_sinkhorn: Sinkhorn iterations at the beginning.
        n_newton: The most iterations after these.
        per_row: Entries of the plan that the Hessian keeps, for each row on average (rho = per_row / n).
        cg_tol: The relative residual at which conjugate gradients stop.
        armijo: The share of the promised gain that a step must bring.
        tolerance: The summed error of the marginals at which it stops.
    """

    def __init__(
        self,
        n_sinkhorn: Whole = 20,
        n_newton: Whole = 100,
        per_row: Positive = 2.0,
        cg_tol: Positive = 1e-10,
        armijo: Positive = 1e-4,
        tolerance: NonNegative = 1e-10,
    ):
        super().__init__()
        self.n_sinkhorn, self.n_newton, self.per_row = n_sinkhorn, n_newton, per_row
        self.cg_tol, self.armijo, self.tolerance = cg_tol, armijo, tolerance
        self.replaced = 0  # Newton steps whose place Sinkhorn took

    @property
    def most(self) -> int:
        return self.n_sinkhorn + self.n_newton

    def advance(self, run: Run, problem: Transport, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self.iterations >= self.n_sinkhorn:
            found = self._newton(run, problem, x, y)
            if found is not None:
                return found
            self.replaced += 1
        run.count("evaluations")
        return problem.sinkhorn(x, y)

    def _newton(self, run: Run, problem: Transport, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        plan = problem.plan(x, y)
        run.count("evaluations")
        above, below = problem.gradient(plan)
        keep = min(math.ceil(self.per_row * len(x)), plan.numel())
        direction, share = sparse_newton(plan, above, below, keep, self.cg_tol)
        run.log("kept-mass", share)
        dx, dy = (direction / problem.eta).split([len(x), len(y)])
        slope, before = float(above @ dx + below @ dy), float(problem.dual(x, y, plan.sum()))
        alpha = 1.0
        while alpha >= LEAST and math.isfinite(slope):
            after = float(problem.dual(x + alpha * dx, y + alpha * dy))
            run.count("evaluations")
            if after >= before + self.armijo * alpha * slope - ROUNDING:  # not true of nan and minus infinity
                return x + alpha * dx, y + alpha * dy
            alpha /= 2
        return None

    def result(self, run: Run) -> dict[str, float]:
        return {**super().result(run), "replaced": float(self.replaced)}
