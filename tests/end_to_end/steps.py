"""What the tests of the whole engine have in common: recipes, waiting, reading curves, ending processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import psutil

from engine import registry
from engine.log import Log
from engine.recipe import Recipe, merge
from engine.service.client import Engine
from engine.service.states import TERMINAL
from engine.training import checkpoint
from engine.training.assemble import filled
from engine.training.loop import Outcome, train
from engine.training.recorder import Memory
from engine.workspace import Workspace
from tests.waiting import until

PATIENCE = 90.0
"""Seconds that a process may take on a busy machine to import torch and do what it was asked."""

SMALL: dict[str, Any] = {
    "task": {"use": "two-moons", "samples": 400},
    "model": {"use": "mlp", "hidden": [16]},
    "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9},
    "training": {"batch_size": 16, "evaluate_every": 20, "checkpoint_every": 0.1},
    "budget": {"epochs": 3},
}
ENDLESS: dict[str, Any] = {"budget": {"epochs": 0, "steps": 100_000_000}}
STATEFUL: dict[str, Any] = {
    "model": {"hidden": [32, 32], "dropout": 0.1},
    "schedule": {"use": "cosine"},
    "techniques": [
        {"use": "gradient-noise"},
        {"use": "progressive-gradient-flow-nm", "n": 2, "m": 4, "targets": "linear, not first, not last"},
        {"use": "switch-ema", "decay": 0.99},
    ],
}

STEPS = 3_000
LONG: dict[str, Any] = {"budget": {"epochs": 0, "steps": 10_000}}
"""Long enough for several checkpoints, and for whatever is done to it meanwhile."""
LONG_STATEFUL = merge(STATEFUL, {"budget": {"epochs": 0, "steps": STEPS}, "training": {"evaluate_every": 5}})

Row = dict[str, Any]
Curves = dict[str, tuple[list[int], list[float]]]


def recipe(*patches: dict[str, Any]) -> str:
    """The small recipe with changes, as a person's file would have it."""
    document = SMALL
    for patch in patches:
        document = merge(document, patch)
    return Recipe.of(document).text()


@cache
def never_interrupted(text: str) -> tuple[Outcome, Curves]:
    """The same recipe trained in one go in this process: what every detour must equal."""
    sink = Memory()
    outcome = train(filled(Recipe.parse(text), registry.catalog()), sink)
    return outcome, {name: points for name, points in sink.points.items() if not of_the_clock(name)}


def of_the_clock(name: str) -> bool:
    """Series that measure time, and so are never the same twice."""
    return name == "throughput" or name.startswith("seconds/")


def curves(log: Log, run: str) -> Curves:
    """Every point of every series that does not measure time."""
    found = {}
    for info in log.series(run):
        if not of_the_clock(info.name):
            points = log.points(run, info.name)
            found[info.name] = (points.steps.tolist(), points.values.tolist())
    return found


def assert_same_curves(found: Curves, expected: Curves) -> None:
    """The same series, each with the same steps and, bit for bit, the same values."""
    assert set(found) == set(expected)
    for name, (steps, values) in expected.items():
        assert found[name][0] == steps, f"{name}: a gap or a point too much"
        assert np.array_equal(found[name][1], values, equal_nan=True), f"{name}: other values"


def row_of(log: Log, run: str) -> Row:
    row = log.run(run)
    assert row is not None, f"there is no run {run}"
    return row


def wait_for(log: Log, run: str, *states: str, seconds: float = PATIENCE) -> Row:
    """The run once it is in one of the states; fails at once where it has ended in another."""

    def look() -> Row | None:
        row = row_of(log, run)
        if row["state"] in TERMINAL and row["state"] not in states:
            raise AssertionError(f"run {run} is {row['state']}, not {states}: {row['message']}")
        return row if row["state"] in states else None

    return until(look, seconds) or {}


def wait_for_step(log: Log, run: str, beyond: int = 0) -> Row:
    """The run once it trains and has gone beyond a step."""
    wait_for(log, run, "training")
    return until(lambda: row if (row := wait_for(log, run, "training"))["step"] > beyond else None, PATIENCE) or {}


def checkpoint_steps(row: Row) -> list[int]:
    return sorted(entry["step"] for entry in row["checkpoints"] if entry["name"].startswith("step-"))


def wait_for_checkpoint(log: Log, run: str, good: Callable[[int], bool] = lambda step: step > 0) -> Row:
    """The run once its newest checkpoint is at a step that will do."""

    def look() -> Row | None:
        row = wait_for(log, run, "training")
        return row if (steps := checkpoint_steps(row)) and good(steps[-1]) else None

    return until(look, PATIENCE) or {}


def wait_for_checkpoint_file(log: Log, run: str, good: Callable[[int], bool] = lambda step: step > 0) -> Row:
    """The run the moment its newest checkpoint is on the disk, which the database is told a little later."""
    folder = log.path.parent / "runs" / run

    def look() -> Row | None:
        row = wait_for(log, run, "training")
        steps = [step for step, _ in checkpoint.step_files(folder)]
        return row if steps and good(steps[-1]) else None

    return until(look, PATIENCE, every=0.005) or {}


def answer(engine: Engine, command: int, seconds: float = 20.0) -> dict[str, Any]:
    """What the service said to a command."""
    return until(lambda: engine.answer(command) is not None and [engine.answer(command)], seconds)[0] or {}  # type: ignore[index]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def processes_of(workspace: Workspace) -> list[psutil.Process]:
    """Every process that was started for a workspace."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if str(workspace.folder) in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def end_processes_of(workspace: Workspace) -> None:
    """Ends them all. Again until none is left: one may have started another before it ended."""

    def none_left() -> bool:
        left = processes_of(workspace)
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return not left

    until(none_left, 30)
