"""How far an answered field is from the truth, measured by the size of the truth."""

from __future__ import annotations

from typing import Any

from engine.kit.gridded import gradient_norm, relative
from engine.parts import Batch, Loss, Terms, loss

EXAMPLE = {
    "task": {"use": "darcy-flow", "size": 8, "samples": 16, "held_out": 4},
    "model": {"use": "field-cnn", "width": 4, "depth": 1},
}


@loss(id="relative-l2", name="Relative L2 norm", example=EXAMPLE)
class RelativeL2(Loss):
    """The size of a field's error by the size of the field, for each sample: large and small solutions count the same.

        loss = |f(x) - u| / |u|,   |v| the root of the sum of squares over the grid

    Helps: fields whose sizes differ from sample to sample.
    Hurts: samples whose truth is nearly zero everywhere.
    Cost: none.
    """

    outputs = ("field", "values")

    def __call__(self, output: Any, batch: Batch) -> Terms:
        return {"task": relative(output, batch.target)}


@loss(id="relative-h1", name="Relative H1 norm", example=EXAMPLE)
class RelativeH1(Loss):
    """As the relative L2 norm, but the slopes of the error count as well: what is close but ripples costs more.

        loss = |f(x) - u| / |u|,   |v|^2 = sum over wave numbers k of (1 + k^2) |V_k|^2,  V the Fourier transform of v

    Helps: equations in space, whose solutions are smooth: fronts and edges come out sharper.
    Hurts: noisy targets, whose noise has the steepest slopes.
    Cost: two Fourier transforms of the batch.
    Choices: k counts whole waves over the grid. The reference leaves out slopes of more than 19 waves; here all count.
    """

    outputs = ("field",)

    def __call__(self, output: Any, batch: Batch) -> Terms:
        return {"task": relative(output, batch.target, gradient_norm)}
