"""Runs written into a workspace as a worker writes them: recipes, curves, metrics and checkpoints."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.log import Log, SeriesWriter
from engine.workspace import Workspace

RECIPE = """name = "{name}"
seed = {seed}

[task]
use = "digits"

[model]
use = "{model}"
hidden = {hidden}

[optimizer]
use = "{optimizer}"
lr = {lr}
{techniques}
[budget]
epochs = {epochs}
"""


def recipe(**changes: Any) -> str:
    """A recipe with these values."""
    values = {
        "name": "",
        "seed": 0,
        "model": "mlp",
        "hidden": [128, 64],
        "optimizer": "adamw",
        "lr": 1e-3,
        "epochs": 30,
    }
    techniques = "".join(f'\n[[techniques]]\nuse = "{use}"\n' for use in changes.pop("techniques", ()))
    return RECIPE.format(**{**values, **changes}, techniques=techniques)


def saved_run(workspace: Workspace, *, state: str = "done", sweep: str | None = None, points: int = 400,
              level: float = 0.96, metrics: Mapping[str, float] | None = None, **changes: Any) -> str:  # fmt: skip
    """One run with its curves in the log; `level` is the accuracy that it ends near. Returns its id."""
    text = recipe(**changes)
    random = np.random.default_rng(zlib.crc32(text.encode()))
    with Log(workspace.database) as log:
        run = log.create_run(text, name=changes.get("name", ""), seed=changes.get("seed", 0), sweep=sweep)
    steps = np.arange(1, points + 1)
    fall = np.exp(-steps / (points / 6))
    with SeriesWriter(workspace.database, run) as writer:
        loss = 0.05 + (1 - level) * 2 + 2.2 * fall + random.normal(0, 0.06, points) * (0.3 + fall)
        writer.extend(writer.series("train/loss"), steps, np.abs(loss))
        writer.extend(
            writer.series("lr"), steps, float(changes.get("lr", 1e-3)) * (1 + np.cos(np.pi * steps / points)) / 2
        )
        at = steps[:: max(1, points // 30)]
        accuracy = np.minimum(1.0, level - 0.8 * np.exp(-at / (points / 8)) + random.normal(0, 0.004, len(at)))
        writer.extend(writer.series("val/accuracy"), at, accuracy)
        final = level + float(random.normal(0, 0.0025))
        told = {"test/accuracy": final, "val/accuracy": float(accuracy[-1]), "test/loss": 0.05 + 2 * (1 - final)}
        told["train/loss"] = float(abs(loss[-1]))
        writer.run(
            state=state,
            metrics=dict(told if metrics is None else metrics),
            seconds=float(20 + 25 * random.random() + len(changes.get("techniques", ())) * 8),
            step=points,
            steps=points,
            checkpoints=[{"name": "last", "step": points, "bytes": int(2e6 * (1 + random.random()))}],
        )
    return run
