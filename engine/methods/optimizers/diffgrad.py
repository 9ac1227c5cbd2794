"""diffGrad: Adam with friction where the gradient hardly changes."""

from __future__ import annotations

from math import sqrt
from typing import ClassVar

import torch
from torch.optim.optimizer import ParamsT

from engine.fields import Betas, NonNegative, Rate
from engine.kit.optimizing import Bundle, ForeachOptimizer, descend, listed
from engine.parts import optimizer


@optimizer(
    id="diffgrad",
    paper="diffGrad: An Optimization Method for Convolutional Neural Networks",
    arxiv="1909.11015",
    name="diffGrad",
    graph="never",
)
class DiffGrad(ForeachOptimizer):
    """Adam that halves the step of a weight whose gradient stays the same, and keeps it whole where it changes.

    A steady small gradient means a flat stretch, often near a minimum: there it slows down instead of running past.

        m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
        xi = sigmoid(|g_before - g|)             between 0.5 and 1; g_before is 0 at the first step
        w <- w - lr sqrt(1 - b2^t) / (1 - b1^t) xi m / (sqrt(v) + eps)

    Helps: Convolutional networks that Adam carries past their minimum at a constant rate.

    Hurts: Where gradients are small, xi is 0.5 everywhere: then it is Adam at half the rate.

    Cost: Three buffers a weight, one more than Adam, and a sigmoid.

    Choices: As in the reference code, eps is added before the bias correction, and L2 decay counts as gradient, so that
    xi sees it. xi depends on the gradient's scale: a scaled loss is unscaled first.

    Args:
        params: the parameters or groups to optimize
        lr: the learning rate, as for Adam
        betas: the decays of the running mean and of the running square
        eps: added to the spread, so that still weights do not jump
        weight_decay: pulls each weight to zero
        decoupled: decay the weights apart from the gradient, as AdamW does
        maximize: climb instead of descend
    """

    buffers: ClassVar[tuple[str, ...]] = ("mean", "square", "before")

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 0.0,
        decoupled: bool = False,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled": decoupled,
            "maximize": maximize,
        }
        super().__init__(listed(params), defaults)

    def update(self, bundle: Bundle) -> None:
        group, values, gradients, t = bundle.group, bundle.values, bundle.gradients, bundle.step
        lr, (beta1, beta2) = group["lr"], group["betas"]
        mean, square, before = (bundle.buffers(name) for name in self.buffers)
        if group["weight_decay"] and group["decoupled"]:
            torch._foreach_mul_(values, 1 - lr * group["weight_decay"])
        elif group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, values, alpha=group["weight_decay"]))

        torch._foreach_lerp_(mean, gradients, 1 - beta1)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, gradients, gradients, 1 - beta2)

        step = torch._foreach_sub(before, gradients)
        torch._foreach_abs_(step)
        torch._foreach_sigmoid_(step)
        torch._foreach_mul_(step, mean)
        spread = torch._foreach_sqrt(square)
        torch._foreach_add_(spread, group["eps"])
        torch._foreach_div_(step, spread)
        descend(values, list(step), lr * (sqrt(1 - beta2**t) / (1 - beta1**t)))
        torch._foreach_copy_(before, gradients)
