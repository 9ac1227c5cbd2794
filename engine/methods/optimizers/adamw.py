"""Adam with decoupled weight decay: torch's, with a form."""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT

from engine.fields import Betas, NonNegative, Rate
from engine.kit.optimizing import fused_fits, listed
from engine.parts import optimizer


@optimizer(id="adamw", name="AdamW", default=True)
class AdamW(torch.optim.AdamW):
    """Gives each weight a step of its own size, from the running mean and spread of its gradient.

    The default here: it works on most models without much tuning, and decays weights apart from the gradient.

        m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
        w <- w - lr weight_decay w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
        t: steps done, the first is 1

    Helps: Almost everywhere, most of all where layers' gradients differ in size: transformers, embeddings, deep stacks.

    Hurts: Some image models end a little better with SGD and a tuned schedule.

    Cost: Two buffers a weight; three with amsgrad.

    Args:
        params: the parameters or groups to optimize
        lr: the learning rate, about the largest change of a weight in one step
        betas: the decays of the running mean and of the running square
        eps: added to the spread, so that still weights do not jump
        weight_decay: the share of each weight that is taken away in a step, times lr
        amsgrad: divide by the largest spread seen so far
        maximize: climb instead of descend
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 0.01,
        amsgrad: bool = False,
        maximize: bool = False,
    ) -> None:
        params = listed(params)
        super().__init__(
            params,
            lr=lr,
            betas=(betas[0], betas[1]),
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            fused=fused_fits(params) or None,
        )
