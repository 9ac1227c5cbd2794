"""Backpropagation, the step that a recipe gets where it names no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.parts import Batch, Procedure, procedure

if TYPE_CHECKING:
    from engine.training.run import Run


@procedure(default=True, id="backprop", name="Backpropagation")
class Backprop(Procedure):
    """Runs the model forward, compares its answer with the target and sends the error back through every layer.
    Each weight then moves by what the chain rule says it contributed to the error.

        g = d mean(loss(model(x), y)) / d w;   the optimizer turns g into a step

    Helps: always the first thing to try; every technique works with it.
    Hurts: where layers must learn without an error from above, or where nothing is differentiable.
    Cost: the baseline: one pass forward and one back, with every layer's activations kept in between.
    """

    def step(self, run: Run, batch: Batch) -> Any:
        output = run.forward(batch)
        run.update("main", run.terms(output, batch))
        return output
