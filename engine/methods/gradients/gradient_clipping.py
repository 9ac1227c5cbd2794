"""A limit on the size of the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from engine.fields import Positive
from engine.parts import Technique, technique

if TYPE_CHECKING:
    from engine.training.run import Role, Run


@technique()
class GradientClipping(Technique):
    """Shortens a gradient that is too long, so that one bad batch cannot throw the weights away.

    By norm, all gradients together keep their direction; by value, each number is cut on its own.

        norm:  g <- g min(1, limit / (|g| + 1e-6))       |g| over all parameters at once
        value: g <- min(max(g, -limit), limit)           number by number

    The log shows how much of the length was kept, as `gradient-clipping/kept`, beside the length before the cut.

    Helps: Recurrent and attention models, high learning rates, loss spikes from rare batches.

    Hurts: A limit below the usual length turns every step into one of fixed length and hides that the rate is too high.

    Cost: One pass over the gradients a step, no memory.

    Args:
        limit: the longest gradient, or the largest number in it, that is let through
        by: cut the length of the whole gradient (norm), or each number (value)
    """

    any_role = True

    def __init__(self, limit: Positive = 1.0, by: Literal["norm", "value"] = "norm") -> None:
        self.limit = limit
        self.by = by

    def clip(self, run: Run, role: Role) -> None:
        gradients = [p.grad for p in role.parameters if p.grad is not None]
        if not gradients:
            return
        prefix = "" if role.name == "main" else f"{role.name}/"
        if self.by == "norm":
            norm = get_total_norm(gradients)
            clip_grads_with_norm_(role.parameters, self.limit, norm)
            run.log(f"{prefix}gradient-clipping/kept", (self.limit / (norm + 1e-6)).clamp_max(1.0))
        else:
            before = get_total_norm(gradients) if run.wants_gradient_norm else None
            clip_grad_value_(role.parameters, self.limit)
            if before is not None:
                run.log(f"{prefix}gradient-clipping/kept", get_total_norm(gradients) / before)
