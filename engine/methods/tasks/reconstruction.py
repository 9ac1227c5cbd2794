"""Tasks whose target is what was put in."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from engine.fields import TaskPart
from engine.kit.supervised import METRICS, explained, squared_error, value_metrics
from engine.parts import Batch, Offer, Task, Terms, task


@task(example={"task": {"of": {"use": "digits"}}})
class Reconstruction(Task):
    """Gives back what was put in. Makes a task for autoencoders out of any other one that takes numbers.

        target = x;   loss = mean over values of (f(x) - x)^2

    Helps: Features without labels; compressing; trying what goes into the middle of a model.
    Hurts: A model that is wide enough throughout copies its input and learns nothing.
    Cost: That of the other task.

    Args:
        of: The task whose inputs are given back; its splits stay as they are.

    Raises:
        ValueError: For a task whose inputs are not numbers, a vector or an image a sample.
    """

    metric = METRICS["values"]

    def __init__(self, of: TaskPart):
        self.of: Task = of

    @property
    def offer(self) -> Offer:  # type: ignore[override]
        inner = self.of.offer
        return Offer(inner.input, inner.shape, "values", inner.features, span=inner.span)

    def load(self) -> None:
        self.of.load()
        if self.of.offer.input == "tokens":
            raise ValueError("Tokens are no numbers to be given back by their squared error. Choose another task.")
        if self.of.offer.input not in ("vector", "image") or self.of.stream != "rows":
            raise ValueError(
                "It gives back vectors and images that are stored, one a sample, and the task has none. Choose another."
            )

    def columns(self, split: str) -> dict[str, Tensor]:
        columns = self.of.columns(split)
        if not columns:
            return {}
        first = next(name for name in columns if name not in ("target", "weight") and not name.startswith("meta."))
        return {**columns, "target": columns[first].flatten(1)}

    def objective(self, output: Any, batch: Batch) -> Terms:
        return {"task": squared_error(output, batch.target)}

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        return value_metrics(output, batch.target)

    def summary(self, totals: dict[str, float]) -> dict[str, float]:
        return explained(totals)

    def figure(self) -> dict[str, Any] | None:
        return self.of.figure()
