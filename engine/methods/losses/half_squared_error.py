"""Half the squared error, summed over the values of a sample."""

from __future__ import annotations

from typing import Any

from engine.parts import Batch, Loss, Terms, loss


@loss(
    id="half-squared-error",
    name="Half the squared error",
    example={"task": {"use": "tabular", "dataset": "diabetes"}},
)
class HalfSquaredError(Loss):
    """Sums the squared errors of a sample's values and takes half of it.
    Its curvature in the output is 1 in every direction, as theory about step sizes assumes.

        loss = 1/2 sum_k (f_k(x) - y_k)^2

    Helps: comparing a step size with 2 / sharpness, and whatever else is derived for this loss.
    Hurts: with many values the loss and its gradients grow with their number.
    Cost: none.
    """

    outputs = ("values",)

    def __call__(self, output: Any, batch: Batch) -> Terms:
        return {"task": (output - batch.target.view_as(output)).square().flatten(1).sum(1) / 2}
