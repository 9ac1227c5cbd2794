"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.optim.optimizer import ParamsT

from engine.fields import Betas, NonNegative, Rate
from engine.kit.optimizing import Bundle, ForeachOptimizer, descend, listed
from engine.parts import optimizer


@optimizer(
    paper="Symbolic Discovery of Optimization Algorithms",
    arxiv="2302.06675",
    name="Lion",
    recommends={"schedule": {"use": "cosine", "warm_up": 0.05}},
)
class Lion(ForeachOptimizer):
    """Moves every weight by the same small amount, up or down, as the sign of a running mean of gradients says.

    It was found by a search over programs. It keeps half of Adam's memory and does not care how the loss is scaled.

        c = b1 m + (1 - b1) g                    the direction, from the old momentum
        w <- w - lr (sign(c) + weight_decay w)
        m <- b2 m + (1 - b2) g                   the memory, afterwards

    Helps: Large batches, vision transformers and language models; where Adam's memory is too much.

    Hurts: Small batches, whose gradient signs are mostly noise; and any rate meant for Adam: it is far too high here.

    Cost: One buffer a weight, half of Adam's. On small models its step takes half as long again as the fused AdamW's.

    Choices: Decay is multiplied by the rate. No bias correction. The buffer has 32 bits beside 16-bit weights.

    Args:
        params: the parameters or groups to optimize
        lr: how far every weight moves in a step; take a third to a tenth of Adam's
        betas: the decay inside the direction, and the decay of the memory; 0.95 and 0.98 where training is unstable
        weight_decay: the share of each weight that is taken away in a step, times lr; take 3 to 10 times AdamW's
        maximize: climb instead of descend
    """

    buffers: ClassVar[tuple[str, ...]] = ("momentum",)

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 1e-4,
        betas: Betas = (0.9, 0.99),
        weight_decay: NonNegative = 0.0,
        maximize: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(listed(params), defaults)

    def update(self, bundle: Bundle) -> None:
        group, momentum = bundle.group, bundle.buffers("momentum")
        lr, (beta1, beta2) = group["lr"], group["betas"]
        direction = torch._foreach_lerp(momentum, bundle.gradients, 1 - beta1)
        torch._foreach_sign_(direction)
        if group["weight_decay"]:
            torch._foreach_mul_(bundle.values, 1 - lr * group["weight_decay"])
        descend(bundle.values, list(direction), lr)
        torch._foreach_lerp_(momentum, bundle.gradients, 1 - beta2)
