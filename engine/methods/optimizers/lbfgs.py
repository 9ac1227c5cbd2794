"""Limited-memory BFGS: torch's, with a form."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch.optim.optimizer import ParamsT

from engine.fields import Count, NonNegative, Rate
from engine.kit.optimizing import listed
from engine.parts import Moves, optimizer

if TYPE_CHECKING:
    from engine.training.run import Run


@optimizer(id="lbfgs", name="L-BFGS", graph="never")
class LBFGS(torch.optim.LBFGS):
    """Learns the curvature of the loss from its own last steps and jumps towards the minimum that it predicts.

    A classic for smooth problems without noise; each of its steps computes loss and gradient several times.

        w <- w - lr H g           H: the inverse curvature, from the last `history` changes of w and g
        strong-wolfe: the length of each move is searched, so that loss and slope fall enough

    Helps: Small models on all data at once: regression, physics-informed networks, fitting to high precision.

    Hurts: Small batches: the curvature that it learns is then mostly noise.

    Cost: Two copies of the weights for each step of history, and up to 1.25 max_iter passes a step.

    Args:
        params: the parameters to optimize, all with the same settings
        lr: the length of a move, tried first by the line search
        max_iter: the most moves in one step
        history: how many past moves the curvature is built from
        line_search: search the length of each move (strong-wolfe), or take lr as it is (none)
        tolerance_grad: a step ends when no gradient entry is larger
        tolerance_change: a step ends when loss and weights change by less

    Raises:
        ValueError: when it is given groups with different settings
    """

    closure: ClassVar[bool] = True

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 1.0,
        max_iter: Count = 20,
        history: Count = 10,
        line_search: Literal["strong-wolfe", "none"] = "strong-wolfe",
        tolerance_grad: NonNegative = 1e-7,
        tolerance_change: NonNegative = 1e-9,
    ) -> None:
        params = listed(params)
        if len(params) > 1 and isinstance(params[0], dict):
            raise ValueError(
                f"L-BFGS learns one curvature for all weights and was given {len(params)} groups with settings of "
                "their own. Leave out the technique that makes the groups, or choose another optimizer."
            )
        super().__init__(
            params,
            lr=lr,
            max_iter=max_iter,
            history_size=history,
            line_search_fn="strong_wolfe" if line_search == "strong-wolfe" else None,
            tolerance_grad=tolerance_grad,
            tolerance_change=tolerance_change,
        )

    def on_surgery(self, run: Run, moves: Moves) -> None:
        """Starts anew: the curvature that it learned is one of all weights together."""
        self.state.clear()
        self._params = self.param_groups[0]["params"]
        self._numel_cache = None
