"""How a metric changes along the stream of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from engine.fields import Count
from engine.parts import Finding, Probe, Task, probe

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run


def windows(values: Tensor, points: int) -> tuple[list[float], list[float]]:
    """The means of `points` stretches (fewer where there are fewer values), each with the place where it ends."""
    parts = values.double().tensor_split(min(points, len(values)))
    ends = torch.tensor([len(part) for part in parts]).cumsum(0)
    return ends.tolist(), [float(part.mean()) for part in parts]


@probe(
    id="stream-trace",
    name="Trace along a stream",
    example={"probes": [{"use": "stream-trace", "points": 4}]},
)
class StreamTrace(Probe):
    """Shows how the task's metric changes along the samples of a split, in the order in which they are answered. A
    decoder that adapts while it is tested gets better along the stream, or loses its way; any other stays level.

        point k = mean of the metric over the k-th stretch of the stream

    Helps: seeing how long an adaptation takes, and whether it lasts.
    Hurts: short splits: a stretch of few samples jumps about.
    Cost: one evaluation of the split.

    Args:
        split: Which samples.
        points: Stretches that the stream is cut into.
    """

    def __init__(self, split: Literal["test", "val", "train"] = "test", points: Count = 40):
        self.split, self.points = split, points

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        split = settings.get("split", "test")
        if not task.columns(split) or not task.by_row:
            return f"It walks along the samples of a stored split, and the task answers no {split} samples row by row."
        return None

    def look(self, run: Run) -> Finding:
        name, _ = run.task.metric
        found: list[Tensor] = []
        with run.answering() as answer:
            for batch in run.batches(self.split):
                measured = run.measured(answer(batch), batch)
                value = measured[name] if name in measured else measured["loss"]
                found.append(value if value.dim() else value.expand(len(batch)))
        values = torch.cat(found)
        label = name if name in measured else "loss"
        at, means = windows(values, self.points)
        figure: dict[str, Any] = {
            "kind": "curve",
            "title": f"{label} along the {self.split} stream",
            "x": {"label": "samples answered"},
            "y": {"label": label},
            "series": [{"name": label, "x": at, "y": means}],
        }
        return Finding({f"{label}-begin": means[0], f"{label}-end": means[-1]}, {"trace": figure})
