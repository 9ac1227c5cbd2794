"""RMSprop: torch's, with a form."""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT

from engine.fields import Decay, NonNegative, Positive, Rate
from engine.kit.optimizing import listed
from engine.parts import optimizer


@optimizer(id="rmsprop", name="RMSprop")
class RMSprop(torch.optim.RMSprop):
    """Divides each weight's gradient by the running size of that weight's gradients, so that all weights move at a
    like speed. It has no momentum unless it is asked for one.

        v <- alpha v + (1 - alpha) g^2
        w <- w - lr g / (sqrt(v) + eps)                     (centered: v minus the squared running mean of g)

    Helps: Losses that change under the weights while they learn: critics, recurrent networks, games.

    Hurts: Where a plain problem wants momentum, Adam and SGD get there sooner.

    Cost: One buffer a weight, one more with momentum and one more centered.

    Args:
        params: the parameters or groups to optimize
        lr: the learning rate
        alpha: how much of the running square is kept in a step
        eps: added to the root, so that it is never zero
        weight_decay: pulls each weight to zero through its gradient (L2)
        momentum: how much of the last step is kept; 0 turns the memory off
        centered: divide by the deviation of the gradients instead of their size
        maximize: climb instead of descend
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 1e-3,
        alpha: Decay = 0.99,
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.0,
        momentum: Decay = 0.0,
        centered: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            listed(params),
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            maximize=maximize,
        )
