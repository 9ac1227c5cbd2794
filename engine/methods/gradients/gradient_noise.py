"""Noise on the gradients that fades as a run goes on."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.fields import NonNegative, NonNegativeOverTime
from engine.parts import Technique, Value, technique

if TYPE_CHECKING:
    from engine.training.run import Role, Run


@technique(
    paper="Adding Gradient Noise Improves Learning for Very Deep Networks",
    arxiv="1511.06807",
    name="Annealed gradient noise",
    recommends={"optimizer": {"use": "sgd", "lr": 0.03, "momentum": 0.0}},
)
class GradientNoise(Technique):
    """Adds a little random noise to every gradient, much at first and less with every step.

    The noise shakes a very deep network out of flat or bad starts that plain gradients never leave.

        g <- g + N(0, s^2) for each number;   s^2 = eta / (1 + t)^gamma
        t: optimizer steps done; eta is a variance

    Helps: Very deep plain networks and poor initial weights; the paper's eta are 0.01, 0.3 and 1.

    Hurts: Well initialized shallow networks, where it only slows down; the rate must fit, or the noise walks nowhere.

    Cost: One random number a weight and step.

    Choices: Added once an optimizer step, after clipping, so that clipping does not take it away again. Adaptive
    optimizers feel it in their second moments too: their first steps get shorter. Every 10th step logs the
    signal-to-noise ratio |g| / (s sqrt(number of weights)).

    Args:
        eta: the variance of the noise at the first step
        gamma: how fast the variance falls
        after_clip: add the noise after gradient clipping; off adds it before
    """

    any_role = True

    def __init__(self, eta: NonNegativeOverTime = 0.01, gamma: NonNegative = 0.55, after_clip: bool = True) -> None:
        self.eta = Value.of(eta)
        self.gamma = gamma
        self.after_clip = after_clip

    # Each position exists only where the switch puts the part, so that the order shown is the order that acts.
    @property
    def shape(self) -> Callable[[Run, Role], None]:
        if self.after_clip:
            raise AttributeError("shape")
        return self.add

    @property
    def noise(self) -> Callable[[Run, Role], None]:
        if not self.after_clip:
            raise AttributeError("noise")
        return self.add

    def deviation(self, run: Run) -> float:
        """The standard deviation of the noise at this step."""
        at = run.progress
        return sqrt(self.eta.at(at) / (1 + at.step) ** self.gamma)

    def add(self, run: Run, role: Role) -> None:
        """Adds the noise of this step to the role's gradients."""
        gradients = [p.grad for p in role.parameters if p.grad is not None]
        deviation = self.deviation(run)
        if not gradients or deviation == 0.0:
            return
        if run.wants_gradient_norm:
            self._log(run, role, gradients, deviation)
        sizes = [g.numel() for g in gradients]
        flat = torch.randn(sum(sizes), generator=run.rng("gradient-noise"), device=run.device)
        drawn = [piece.view(g.shape).to(g) for piece, g in zip(flat.split(sizes), gradients, strict=True)]
        torch._foreach_add_(gradients, drawn, alpha=deviation)

    def _log(self, run: Run, role: Role, gradients: list[Tensor], deviation: float) -> None:
        norm = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(gradients))))
        whole = deviation * sqrt(sum(g.numel() for g in gradients))
        prefix = "" if role.name == "main" else f"{role.name}/"
        run.log(f"{prefix}gradient-noise/signal-to-noise", norm / whole)
