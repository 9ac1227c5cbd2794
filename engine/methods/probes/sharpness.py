"""The largest eigenvalue of the Hessian, and how it compares with the learning rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from engine.fields import Count, Whole
from engine.kit.curvature import extreme_eigenvalues, jacobian_gram
from engine.parts import Finding, Probe, probe

if TYPE_CHECKING:
    from engine.training.run import Run


@probe(
    id="sharpness",
    name="Sharpness against the learning rate",
    paper="Why do Learning Rates Transfer? Reconciling Optimization and Scaling Limits for Deep Learning",
    arxiv="2402.17457",
    example={"probes": [{"use": "sharpness", "iterations": 5, "samples": 32}], "training": {"evaluate_every": 1}},
)
class Sharpness(Probe):
    """Measures how sharply the loss bends in its sharpest direction, at every evaluation.
    Times the learning rate it says how close gradient descent is to the edge of stability, which is at 2.

        sharpness = lambda_max(H),  H the Hessian of the mean loss over the samples;   edge = eta lambda_max(H)
        kernel = lambda_max(J J^T) / n,  J the Jacobian of the outputs

    Helps: seeing whether a learning rate is limited by curvature, and whether it would be at another width.
    Hurts: with momentum, adaptive optimizers or small batches the edge is elsewhere; Lanczos gives a lower bound.
    Cost: each look is as much as about three times `iterations` gradients of the samples, the kernel as much again.
    Choices: the loss is the run's own, without penalties, in evaluation mode, over the first samples of the training
        split. The rate is what the optimizer's first group had in the last step. For half the squared error the kernel
        is the Gauss-Newton part of the Hessian.

    Args:
        iterations: Steps of Lanczos.
        samples: Training samples that the loss is a mean of.
        kernel: Whether to measure the tangent kernel too.
        seed: Seed of the direction that Lanczos starts from.
    """

    when = "evaluation"
    reads = ("output",)

    def __init__(self, iterations: Count = 20, samples: Count = 256, kernel: bool = True, seed: Whole = 0):
        self.iterations, self.samples, self.kernel, self.seed = iterations, samples, kernel, seed

    def look(self, run: Run) -> Finding:
        batch = run.training_sample(self.samples)
        weights = [p for p in run.model.parameters() if p.requires_grad]
        scalars = {}
        with run.evaluating(), torch.enable_grad():
            _, top = extreme_eigenvalues(run.oracle(batch).hessian(), weights, self._rng(), self.iterations)
            scalars["sharpness"] = float(top)
            if self.kernel:
                product = jacobian_gram(run.forward(run.procedure.given(run, batch)), weights)
                _, top = extreme_eigenvalues(product, weights, self._rng(), self.iterations)
                scalars["kernel"] = float(top) / len(batch)
        role = run.roles.get("main")
        if role is not None and math.isfinite(role.lr):
            scalars["edge"] = role.lr * scalars["sharpness"]
        return Finding(scalars)

    def _rng(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)
