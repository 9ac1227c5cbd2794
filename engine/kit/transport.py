"""Entropic optimal transport in the log domain: its dual, Sinkhorn's iteration, and plans that have converged.

All of it holds for the problem

    min over P >= 0 of <P, C> + (1/eta) sum_ij P_ij log P_ij,   P 1 = r,  P^T 1 = c

with potentials x and y and the plan P_ij = exp(eta (x_i + y_j - C_ij) - 1). Only the plan has a meaning: a constant may
be added to x and subtracted from y.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.kit.problems import Solver
from engine.parts import Batch, Offer, Task

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run


@dataclass(frozen=True)
class Transport:
    """One problem: costs [n, m], positive marginals [n] and [m] of the same sum, and the inverse temperature."""

    cost: Tensor
    rows: Tensor
    columns: Tensor
    eta: float

    def log_plan(self, x: Tensor, y: Tensor) -> Tensor:
        return self.eta * (x[:, None] + y[None, :] - self.cost) - 1

    def plan(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_plan(x, y).exp_()

    def dual(self, x: Tensor, y: Tensor, mass: Tensor | None = None) -> Tensor:
        """The concave function of the potentials that the solution maximizes; `mass` is the plan's sum, if known."""
        mass = self.plan(x, y).sum() if mass is None else mass
        return self.rows @ x + self.columns @ y - mass / self.eta

    def gradient(self, plan: Tensor) -> tuple[Tensor, Tensor]:
        """Of the dual: what the plan's marginals lack."""
        return self.rows - plan.sum(1), self.columns - plan.sum(0)

    def sinkhorn(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One iteration: x so that the rows are met, then y so that the columns are, each exactly."""
        x = x + (self.rows.log() - self.log_plan(x, y).logsumexp(1)) / self.eta
        y = y + (self.columns.log() - self.log_plan(x, y).logsumexp(0)) / self.eta
        return x, y

    def rounded(self, plan: Tensor) -> Tensor:
        """The plan changed a little so that it meets both marginals: rows and columns that have too much are scaled
        down, and what is then missing is spread as a product. Its cost is one that can be paid."""
        plan = plan * (self.rows / plan.sum(1)).clamp_max(1.0)[:, None]
        plan = plan * (self.columns / plan.sum(0)).clamp_max(1.0)[None, :]
        lacks, wants = self.gradient(plan)
        total = lacks.abs().sum()
        return plan if total == 0 else plan + lacks[:, None] * wants[None, :] / total


def marginal_error(gradient: tuple[Tensor, Tensor]) -> Tensor:
    """|P 1 - r|_1 + |P^T 1 - c|_1."""
    return gradient[0].abs().sum() + gradient[1].abs().sum()


class Potentials(nn.Module):
    """The potentials of a problem as a module: called without inputs it answers with the plan.

    The problem stands in buffers that are not saved: it comes from the task.
    """

    cost: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, problem: Transport):
        super().__init__()
        self.eta = problem.eta
        for name in ("cost", "rows", "columns"):
            self.register_buffer(name, getattr(problem, name), persistent=False)
        self.x = nn.Parameter(torch.zeros_like(problem.rows), requires_grad=False)
        self.y = nn.Parameter(torch.zeros_like(problem.columns), requires_grad=False)

    @property
    def problem(self) -> Transport:
        return Transport(self.cost, self.rows, self.columns, self.eta)

    def place(self, x: Tensor, y: Tensor) -> None:
        """Takes these potentials."""
        self.x.copy_(x)
        self.y.copy_(y)

    def forward(self) -> Tensor:
        return self.problem.plan(self.x, self.y)


def dense_newton(problem: Transport, plan: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's direction by a dense factorization. The last entry of y stays: one constant is free."""
    above, below = problem.gradient(plan)
    whole = torch.cat([plan.sum(1), plan.sum(0)]).diag()
    n = len(above)
    whole[:n, n:], whole[n:, :n] = plan, plan.T
    right = torch.cat([above, below])[:-1] / problem.eta
    factor = torch.linalg.cholesky(whole[:-1, :-1])
    found = torch.cholesky_solve(right[:, None], factor)[:, 0]
    return found[:n], torch.cat([found[n:], found.new_zeros(1)])


def converged(problem: Transport, tolerance: float = 1e-12, most: int = 500) -> Tensor:
    """The solution's plan: by Sinkhorn while eta is doubled up to its value, then by Newton with dense factorizations.

    Much dearer a step than any solver (n^3), and independent of them: what they are measured against. Raises
    ArithmeticError where it does not come to the tolerance.
    """
    spread = float(problem.cost.max() - problem.cost.min()) or 1.0
    eta = min(problem.eta, 10 / spread)
    x, y = torch.zeros_like(problem.rows), torch.zeros_like(problem.columns)
    while True:
        at = Transport(problem.cost, problem.rows, problem.columns, eta)
        x, y = at.sinkhorn(x, y)
        for _ in range(most):
            plan = at.plan(x, y)
            error = float(marginal_error(at.gradient(plan)))
            if error < (tolerance if eta == problem.eta else 1e-3):
                break
            x, y = _ascend(at, x, y, plan)
        else:
            raise ArithmeticError(
                f"The plan's marginals are still {error:.1e} off; is eta = {problem.eta:g} too large?"
            )
        if eta == problem.eta:
            return plan
        eta = min(2 * eta, problem.eta)


def _ascend(at: Transport, x: Tensor, y: Tensor, plan: Tensor) -> tuple[Tensor, Tensor]:
    """A Newton step, halved until the dual grows enough; Sinkhorn's where that does not help."""
    try:
        dx, dy = dense_newton(at, plan)
    except torch.linalg.LinAlgError:
        return at.sinkhorn(x, y)
    above, below = at.gradient(plan)
    slope, before = above @ dx + below @ dy, at.dual(x, y, plan.sum())
    step = 1.0
    while step > 1e-4:
        after = at.dual(x + step * dx, y + step * dy)
        if torch.isfinite(after) and after >= before + 1e-4 * step * slope - 1e-15:
            return x + step * dx, y + step * dy
        step /= 2
    return at.sinkhorn(x, y)


def problem_of(offer: Offer) -> Transport:
    """The problem that a task states beside its offer."""
    about = offer.about
    return Transport(about["cost"], about["rows"], about["columns"], about["eta"])


class TransportSolver(Solver):
    """What solvers of entropic transport share: they hold the potentials and improve them, one iteration a step.

    A subclass implements `advance`, and has `tolerance`, and `most`, the iterations after which it gives up.
    """

    seeded = False

    tolerance: float
    check_every = 1  # iterations between two looks at the marginals, each of which forms the plan once more

    def __init__(self) -> None:
        self.iterations = 0

    @property
    def most(self) -> int | None:
        return None

    def make_model(self, task: Task) -> nn.Module:
        return Potentials(problem_of(task.offer))

    def advance(self, run: Run, problem: Transport, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The next potentials."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, run: Run, batch: Batch) -> None:
        holder: Any = run.model
        problem = holder.problem
        holder.place(*self.advance(run, problem, holder.x, holder.y))
        self.iterations += 1
        last = self.iterations == self.most
        if self.iterations % self.check_every and not last:
            return
        plan = holder()
        error = float(marginal_error(problem.gradient(plan)))
        run.tell(-problem.dual(holder.x, holder.y, plan.sum()))
        run.log("marginal-error", error)
        if error < self.tolerance:
            run.finish(f"The marginals are met to {error:.1e} after {self.iterations} iterations.")
        elif last:
            run.finish(f"The marginals are still {error:.1e} off after {self.iterations} iterations.")

    def result(self, run: Run) -> dict[str, float]:
        return {"iterations": float(self.iterations)}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if "eta" not in task.offer.about or "cost" not in task.offer.about:
            return "It solves entropic transport; choose a task that states costs, marginals and a temperature."
        return None
