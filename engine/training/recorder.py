"""What a run says: points, events and figures, gathered without stopping the device.

Scalars that live on the device are kept as tensors and fetched many at a time, in one transfer.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor


class Sink(Protocol):
    """Where points go: `engine.log.SeriesWriter`, or `Memory`."""

    requested: str

    def series(self, name: str) -> int: ...
    def add(self, handle: int, step: int, value: float) -> None: ...
    def extend(self, handle: int, steps: Any, values: Any) -> None: ...
    def run(self, **columns: Any) -> None: ...
    def event(self, text: str, *, level: str = "info", kind: str = "", step: int | None = None) -> None: ...
    def figure(self, probe: str, name: str, data: dict[str, Any], step: int | None = None) -> None: ...
    def answered(self, verb: str) -> None: ...
    def flush(self, wait: bool = True) -> None: ...
    def close(self) -> None: ...


class Memory:
    """A sink that keeps everything in lists: for notebooks, ablations and tests."""

    def __init__(self) -> None:
        self.requested = ""
        self.names: list[str] = []
        self.points: dict[str, tuple[list[int], list[float]]] = {}
        self.columns: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self.figures: list[dict[str, Any]] = []

    def series(self, name: str) -> int:
        if name not in self.points:
            self.points[name] = ([], [])
            self.names.append(name)
        return self.names.index(name)

    def add(self, handle: int, step: int, value: float) -> None:
        self.extend(handle, [step], [value])

    def extend(self, handle: int, steps: Any, values: Any) -> None:
        kept_steps, kept_values = self.points[self.names[handle]]
        kept_steps.extend(steps)
        kept_values.extend(values)

    def run(self, **columns: Any) -> None:
        self.columns.update(columns)

    def event(self, text: str, *, level: str = "info", kind: str = "", step: int | None = None) -> None:
        self.events.append({"text": text, "level": level, "kind": kind, "step": step})

    def figure(self, probe: str, name: str, data: dict[str, Any], step: int | None = None) -> None:
        self.figures.append({"probe": probe, "name": name, "data": data, "step": step})

    def answered(self, verb: str) -> None:
        if self.requested == verb:
            self.requested = ""

    def flush(self, wait: bool = True) -> None:
        """Nothing to do: what is kept in memory is kept at once."""

    def close(self) -> None:
        """Nothing to release."""


class Recorder:
    """Collects a run's scalars by name; `flush` hands them to the sink and looks for what is not finite."""

    def __init__(self, sink: Sink):
        self.sink = sink
        self._handles: dict[str, int] = {}
        self._tensors: dict[str, tuple[list[int], list[Tensor]]] = {}
        self._watched: tuple[list[int], list[Tensor]] = ([], [])
        self.last: dict[str, float] = {}

    def handle(self, name: str) -> int:
        handle = self._handles.get(name)
        if handle is None:
            handle = self._handles[name] = self.sink.series(name)
        return handle

    def add(self, name: str, step: int, value: float | Tensor) -> None:
        """One point. A tensor stays on its device until the next flush."""
        if isinstance(value, Tensor):
            pending = self._tensors.get(name)
            if pending is None:
                pending = self._tensors[name] = ([], [])
            pending[0].append(step)
            pending[1].append(value.detach())
        else:
            self.sink.add(self.handle(name), step, value)
            self.last[name] = value

    def watch(self, name: str, step: int, value: Tensor) -> None:
        """One point of a series whose first value that is not finite ends the run."""
        if not self._watched[0]:
            self._tensors[name] = self._watched
        self._watched[0].append(step)
        self._watched[1].append(value)

    def flush(self, wait: bool = False) -> int | None:
        """Fetches what is on the device; returns the first step at which a watched value was not finite."""
        bad = None
        pending = {name: pair for name, pair in self._tensors.items() if pair[0]}
        if pending:
            flat = torch.cat([torch.stack(values).double() for _, values in pending.values()]).tolist()
            start = 0
            for name, (steps, _) in pending.items():
                values = flat[start : start + len(steps)]
                start += len(steps)
                self.sink.extend(self.handle(name), steps, values)
                self.last[name] = values[-1]
                if pending[name] is self._watched:
                    bad = next((s for s, v in zip(steps, values, strict=True) if not math.isfinite(v)), None)
            self._tensors = {}
            self._watched = ([], [])
        if wait:
            self.sink.flush(wait=True)
        return bad
