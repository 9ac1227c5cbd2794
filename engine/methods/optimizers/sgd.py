"""Stochastic gradient descent with momentum: torch's, with a form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.optim.optimizer import ParamsT

from engine.fields import Decay, Fraction, NonNegative, Rate
from engine.kit.optimizing import fused_fits, listed
from engine.kit.surgery import even_momenta
from engine.parts import Moves, optimizer

if TYPE_CHECKING:
    from engine.training.run import Run


@optimizer(name="SGD")
class SGD(torch.optim.SGD):
    """Moves each weight against its gradient, with a memory of past steps that keeps it rolling.

    The oldest and plainest optimizer, and often the best one for image models when its learning rate is tuned.

        g <- g + weight_decay w
        m <- momentum m + (1 - dampening) g
        w <- w - lr m                        (nesterov: w <- w - lr (g + momentum m))

    Helps: Convolutional networks and problems whose gradients have one scale; the steps are easy to reason about.

    Hurts: Transformers and models whose layers' gradients differ by orders of magnitude: one rate fits none of them.

    Cost: One buffer a weight with momentum, none without; the cheapest step there is.

    Args:
        params: the parameters or groups to optimize
        lr: the learning rate
        momentum: how much of the last step is kept; 0 turns the memory off
        weight_decay: pulls each weight to zero through its gradient (L2)
        dampening: the share of the gradient that is kept out of the momentum
        nesterov: look ahead along the momentum before stepping
        maximize: climb instead of descend

    Raises:
        ValueError: when nesterov is asked for without momentum or with dampening
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 0.1,
        momentum: Decay = 0.9,
        weight_decay: NonNegative = 0.0,
        dampening: Fraction = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
    ) -> None:
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError(
                f"nesterov looks ahead along the momentum, which is {momentum} with dampening {dampening}. "
                "Give a momentum above 0 and a dampening of 0, or turn nesterov off."
            )
        params = listed(params)
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            dampening=dampening,
            nesterov=nesterov,
            maximize=maximize,
            fused=fused_fits(params) or None,
        )

    def on_surgery(self, run: Run, moves: Moves) -> None:
        even_momenta(self)
