"""The rows of a benchmark table: a figure, its goal, and the same work done by others."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@dataclass
class Row:
    """One figure. `least`: whether less of it is better, which most are. `ratio` is ours by the best peer's."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    least: bool = True
    peers: dict[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value <= self.goal if self.least else self.value >= self.goal

    @property
    def ratio(self) -> float | None:
        if not self.peers:
            return None
        return self.value / (min if self.least else max)(self.peers.values())

    def plain(self) -> dict[str, Any]:
        kept = asdict(self)
        del kept["least"]
        return {**kept, "met": self.met, "ratio": self.ratio}


def median(measure: Callable[[], float], repeats: int = 5) -> float:
    """The median of what a measurement gives over some repeats."""
    return statistics.median(measure() for _ in range(repeats))


def seconds(work: Callable[[], Any]) -> float:
    """How long a piece of work takes once."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def machine() -> str:
    """Where it was measured."""
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}{gpu}"


def show(rows: list[Row], as_json: bool) -> None:
    """Prints a table, or one JSON document."""
    if as_json:
        document = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "rows": [row.plain() for row in rows]}
        print(json.dumps(document, indent=1))
        return
    print(f"{machine()}\n\n| what | here | goal | met | peers | ratio to the best |\n|{' --- |' * 6}")
    for row in rows:
        peers = ", ".join(f"{name} {value:.4g}" for name, value in row.peers.items()) or "-"
        goal = "-" if row.goal is None else f"{'<=' if row.least else '>='} {row.goal:g}"
        met = {None: "-", True: "yes", False: "**no**"}[row.met]
        ratio = "-" if row.ratio is None else f"{row.ratio:.3g}"
        print(f"| {row.name} | {row.value:.4g} {row.unit} | {goal} | {met} | {peers} | {ratio} |")
