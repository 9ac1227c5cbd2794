"""CoLiDE: a linear causal graph and the noise of its nodes, estimated together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from engine.fields import Count, Fraction, NonNegative, Positive, Rate
from engine.kit.dags import acyclic
from engine.kit.problems import Solver
from engine.parts import Batch, Task, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
OUTSIDE = -1e-6  # an inverse with smaller entries: outside of the domain
LEAST_RATE = 1e-12
CHANGE = 1e-6  # of the objective, relative, at which a stage is done


def barrier(weights: Tensor, s: float) -> Tensor:
    """h_s(W) = d log s - log det(s I - W * W): zero for a graph without cycles, positive for one with."""
    d = len(weights)
    inside = s * torch.eye(d).to(weights) - weights.square()
    return d * math.log(s) - torch.linalg.slogdet(inside).logabsdet


def residual(weights: Tensor, covariance: Tensor) -> Tensor:
    """The diagonal of (I - W)^T S (I - W): the variance of what each node's parents do not explain."""
    rest = torch.eye(len(weights)).to(weights) - weights
    return (rest * (covariance @ rest)).sum(0)


def score(weights: Tensor, sigma: Tensor, covariance: Tensor, lam: float) -> Tensor:
    """F, for one sigma [1] or one a node [d]."""
    d = len(weights)
    fit = (residual(weights, covariance) / sigma).sum() / 2 + sigma.expand(d).sum() / 2
    return fit + lam * weights.abs().sum()


def noise(weights: Tensor, covariance: Tensor, variant: str) -> Tensor:
    """The sigma that minimizes F for these weights."""
    found = residual(weights, covariance)
    return found.mean().sqrt()[None] if variant == "ev" else found.sqrt()


def gradient(weights: Tensor, sigma: Tensor, covariance: Tensor, inverse: Tensor, mu: float, lam: float) -> Tensor:
    """Of mu F + h_s in W at a fixed sigma; `inverse` is that of s I - W * W. Nothing points along the diagonal."""
    rest = torch.eye(len(weights)).to(weights) - weights
    found = (covariance @ rest) / sigma * -mu + mu * lam * weights.sign() + 2 * weights * inverse.T
    return found.fill_diagonal_(0.0)


class LinearModel(nn.Module):
    """The graph's weights and the noise, as they are being estimated."""

    def __init__(self, nodes: int, sigma: Tensor):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(nodes, nodes, dtype=torch.float64), requires_grad=False)
        self.sigma = nn.Parameter(sigma.clone(), requires_grad=False)

    def forward(self) -> dict[str, Tensor]:
        return {"weights": self.weights, "noise": self.sigma}


@procedure(
    id="colide",
    name="CoLiDE",
    paper="CoLiDE: Concomitant Linear DAG Estimation",
    arxiv="2310.02895",
    packages=("networkx",),
    recommends={"budget": {"steps": 200}},
    example={
        "task": {"use": "linear-sem", "nodes": 4, "samples": 40},
        "procedure": {"warm_iter": 10, "max_iter": 20, "check": 5, "stages": 2},
        "budget": {"steps": 8},
    },
)
class Colide(Solver):
    """Finds which variable drives which, and how strongly, from samples alone, and with it how noisy each variable is.
    The noise is part of the score, so that one sparsity penalty serves data of many scales.

        x = W^T x + z,   S = X^T X / n
        EV: F = tr((I-W)^T S (I-W)) / (2 sigma) + d sigma / 2 + lam |W|_1             one sigma
        NV: F = tr(diag(sigma)^-1 (I-W)^T S (I-W)) / 2 + sum_i sigma_i / 2 + lam |W|_1   one for each variable
        h_s(W) = d log s - log det(s I - W * W)      zero if and only if W has no cycle
        minimize mu F + h_s by Adam while mu falls and s falls;   after each step the sigma that is best for W

    At the end weights below the threshold are dropped, and the smallest of those in a cycle until there is none. One
    step is `check` iterations, after which the objective is looked at.

    Helps: linear data whose noise is not known, or differs between the variables; the noise is estimated as well.
    Hurts: noise that is not small: with variances of 0.5 and more, equal or not, a fixed sigma found as good a graph
        here, and what is gained is the noise itself. Variables that are rescaled can change the answer.
    Cost: d^3 an iteration, whatever the number of samples; some thousand iterations in each of the stages.
    Choices: the diagonal of W stays zero. Adam's moments and its step count start anew in each stage. Where a move
        leaves the domain of h_s it is undone and made with half the rate; where that does not help (at the first
        iteration of a stage, or s at 0.9 and below) the stage starts again with half the rate and s + 0.1. `fixed`
        holds sigma at 1: plain penalized least squares, which this is measured against.

    Args:
        variant: One noise level for all variables (ev), one for each (nv), or 1 held fixed (fixed).
        lam: Weight of the sum of absolute weights.
        stages: How often mu falls; s is 1, 0.9, 0.8 ... in turn, and stays at 0.6 from the fifth on.
        mu: Weight of the score in the first stage.
        mu_factor: What mu is multiplied by from stage to stage.
        step_size: Adam's rate.
        warm_iter: The most iterations of each stage but the last.
        max_iter: The most iterations of the last stage.
        check: Iterations between two looks at the objective; a stage ends when it changes by less than 1e-6 of itself.
        threshold: Weights below it are dropped at the end.
    """

    seeded = False
    keeps_parameters = True

    def __init__(
        self,
        variant: Literal["ev", "nv", "fixed"] = "nv",
        lam: NonNegative = 0.05,
        stages: Count = 5,
        mu: Positive = 1.0,
        mu_factor: Fraction = 0.1,
        step_size: Rate = 3e-4,
        warm_iter: Count = 30000,
        max_iter: Count = 60000,
        check: Count = 1000,
        threshold: NonNegative = 0.3,
    ):
        self.variant, self.lam, self.stages = variant, lam, stages
        self.mu, self.mu_factor, self.step_size = mu, mu_factor, step_size
        self.warm_iter, self.max_iter, self.check, self.threshold = warm_iter, max_iter, check, threshold
        self.stage = 0
        self.restarts = 0

    def make_model(self, task: Task) -> nn.Module:
        covariance = covariance_of(task)
        each = covariance.diagonal().sqrt()
        sigma = {"ev": each.min()[None], "nv": each, "fixed": torch.ones(1, dtype=torch.float64)}[self.variant]
        return LinearModel(len(covariance), sigma)

    def setup(self, run: Run) -> None:
        self._covariance = covariance_of(run.task).to(run.device)
        self._begin(run)

    def _begin(self, run: Run) -> None:
        """A stage begins where the one before has ended."""
        holder: Any = run.model
        self.start = [holder.weights.detach().clone(), holder.sigma.detach().clone()]
        self._from_start(self.step_size, max(1.0 - 0.1 * self.stage, 0.6))

    def _from_start(self, rate: float, s: float) -> None:
        self.rate, self.s = rate, s
        self.iteration = 0  # of the stage
        self.before = 1e16  # the objective when it was last looked at
        self.moments = [torch.zeros_like(self.start[0]), torch.zeros_like(self.start[0])]

    @torch.no_grad()
    def step(self, run: Run, batch: Batch) -> None:
        holder: Any = run.model
        weights, sigma = holder.weights.clone(), holder.sigma.clone()
        last = self.stage == self.stages - 1
        most = self.max_iter if last else self.warm_iter
        mu = self.mu * self.mu_factor**self.stage
        weights, sigma, alive = self._iterate(run, weights, sigma, mu, min(self.check, most - self.iteration))
        holder.weights.copy_(weights)
        holder.sigma.copy_(sigma)
        value = mu * score(weights, sigma, self._covariance, self.lam) + barrier(weights, self.s)
        run.tell(value)
        run.log("stage", float(self.stage))
        change = abs(self.before - float(value)) / abs(self.before)
        self.before = float(value)
        if alive and change > CHANGE and self.iteration < most:
            return
        if last:
            run.finish(f"The last stage is done after {self.iteration} iterations.")
            return
        self.stage += 1
        self._begin(run)

    def _iterate(self, run: Run, weights: Tensor, sigma: Tensor, mu: float, count: int) -> tuple[Tensor, Tensor, bool]:
        """Some iterations; False where no rate is small enough to go on."""
        identity = torch.eye(len(weights)).to(weights)
        move = torch.zeros_like(weights)
        for _ in range(count):
            while True:
                inverse = torch.linalg.inv_ex(self.s * identity - weights.square()).inverse
                if bool(inverse.min() >= OUTSIDE):  # not true of nan
                    break
                if self.rate < LEAST_RATE:
                    return weights, sigma, False
                if self.iteration == 0 or self.s <= 0.9:
                    weights, sigma = self.start[0].clone(), self.start[1].clone()
                    self._from_start(self.rate / 2, self.s + 0.1)
                    self.restarts += 1
                else:
                    self.rate /= 2
                    weights = weights + self.rate * move  # all of the move was taken at twice the rate
                    sigma = self._noise(weights, sigma)
            move = self._adam(gradient(weights, sigma, self._covariance, inverse, mu, self.lam))
            weights = weights - self.rate * move
            sigma = self._noise(weights, sigma)
            run.count("evaluations")
        return weights, sigma, True

    def _noise(self, weights: Tensor, sigma: Tensor) -> Tensor:
        return sigma if self.variant == "fixed" else noise(weights, self._covariance, self.variant)

    def _adam(self, slope: Tensor) -> Tensor:
        self.iteration += 1
        first, second = self.moments
        first.lerp_(slope, 1 - BETA1)
        second.mul_(BETA2).addcmul_(slope, slope, value=1 - BETA2)
        return first / (1 - BETA1**self.iteration) / ((second / (1 - BETA2**self.iteration)).sqrt() + EPS)

    def predict(self, run: Run, batch: Batch) -> dict[str, Tensor]:
        """The graph without weak edges and cycles, and the noise."""
        found = run.model()
        return {**found, "weights": acyclic(found["weights"], self.threshold)}

    def result(self, run: Run) -> dict[str, float]:
        return {"restarts": float(self.restarts)}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if "samples" not in task.offer.about:
            return "It explains samples of variables by each other; choose a task that states such samples."
        return None


def covariance_of(task: Task) -> Tensor:
    """S of the task's samples, centred."""
    samples = task.offer.about["samples"].double()
    samples = samples - samples.mean(0)
    return samples.T @ samples / len(samples)
