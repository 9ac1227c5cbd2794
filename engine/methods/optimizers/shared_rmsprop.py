"""RMSProp as asynchronous workers share it: the small constant is inside the root."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.optim.optimizer import ParamsT

from engine.fields import Decay, Positive, Rate
from engine.kit.optimizing import Bundle, ForeachOptimizer, listed
from engine.parts import optimizer


@optimizer(
    id="shared-rmsprop",
    paper="Asynchronous Methods for Deep Reinforcement Learning",
    arxiv="1602.01783",
    name="Shared RMSProp",
    recommends={"schedule": {"use": "polynomial"}},
)
class SharedRMSProp(ForeachOptimizer):
    """Divides each weight's gradient by its usual size. There is one memory of that size for all workers, whichever of
    them a gradient comes from, and no momentum.

        g <- alpha g + (1 - alpha) d^2               g_0 = 0
        w <- w - lr d / sqrt(g + eps)                eps inside the root

    Helps: gradients from several workers in turn, as in A3C: what one has seen steadies the steps of the others.
    Hurts: gradients much smaller than sqrt(eps): the step is then a plain one of length lr d / sqrt(eps).
    Cost: one buffer a weight.
    Choices: with eps = 0.1 the size of the gradient matters, so a loss that is summed over a rollout wants another rate
        than one that is averaged. There is no correction for the memory's start at 0.

    Args:
        params: the parameters or groups to optimize
        lr: the rate; 7e-4 was found for games, small problems with few frames want 3e-3 or more
        alpha: how much of the memory stays in a step
        eps: the constant inside the root
        maximize: climb instead of descend
    """

    buffers: ClassVar[tuple[str, ...]] = ("square",)

    def __init__(
        self, params: ParamsT, lr: Rate = 7e-4, alpha: Decay = 0.99, eps: Positive = 0.1, maximize: bool = False
    ) -> None:
        super().__init__(listed(params), {"lr": lr, "alpha": alpha, "eps": eps, "maximize": maximize})

    def update(self, bundle: Bundle) -> None:
        group, square = bundle.group, bundle.buffers("square")
        torch._foreach_mul_(square, group["alpha"])
        torch._foreach_addcmul_(square, bundle.gradients, bundle.gradients, value=1 - group["alpha"])
        size = torch._foreach_add(square, group["eps"])
        torch._foreach_sqrt_(size)
        torch._foreach_addcdiv_(bundle.values, bundle.gradients, size, value=-group["lr"])
