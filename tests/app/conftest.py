"""What tests of the window share. They run without a display, on real logs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import numpy as np
import pytest
from PySide6.QtCore import QSettings

from app.places import Context
from app.theme import Theme
from engine.log import Log, SeriesWriter
from engine.workspace import Workspace

TOML = """name = "plain"
seed = 0

[task]
use = "digits"

[model]
use = "mlp"

[optimizer]
use = "adamw"
lr = 1e-3

[budget]
epochs = 30
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def frame_context(qapp: Any, workspace: Workspace, tmp_path: Path) -> Iterator[Context]:
    """What a place is given, without a window around it."""
    settings = QSettings(str(tmp_path / "window.ini"), QSettings.Format.IniFormat)
    made = Context(workspace, settings, Theme(settings))
    made.theme.choose("light")
    yield made
    made.close()


@pytest.fixture
def write_run(workspace: Workspace) -> Callable[..., str]:
    """Writes one run as a worker does; returns its id."""

    def write(name: str = "a run", state: str = "done", points: int = 200, **columns: Any) -> str:
        with Log(workspace.database) as log:
            run = log.create_run(columns.pop("recipe", TOML), name=name, parent=columns.pop("parent", None))
            if state == "queued":
                return run
        steps = np.arange(1, points + 1)
        evaluated = np.arange(20, points + 1, 20)
        with SeriesWriter(workspace.database, run) as writer:
            writer.extend(writer.series("train/loss"), steps, 2.0 * np.exp(-steps / 50) + 0.1)
            writer.extend(writer.series("lr"), steps, np.full(points, 1e-3))
            writer.extend(writer.series("gradient-norm"), steps, 1 + np.sin(steps))
            writer.extend(writer.series("val/loss"), evaluated, 2.1 * np.exp(-evaluated / 50) + 0.15)
            writer.extend(writer.series("val/accuracy"), evaluated, 1 - 0.9 * np.exp(-evaluated / 50))
            writer.extend(writer.series("sparsity"), evaluated, np.linspace(0, 0.5, len(evaluated)))
            writer.extend(writer.series("sparsity/head"), evaluated, np.linspace(0, 0.4, len(evaluated)))
            writer.extend(writer.series("throughput"), evaluated, np.full(len(evaluated), 12_000.0))
            facts = {
                "state": state, "step": points, "steps": 400, "epoch": points / 40, "epochs": 10.0, "seconds": 10.0,
                "device": "cpu", "started": 1000.0, "metrics": {"val/loss": 0.2, "val/accuracy": 0.95},
                "checkpoints": [{"name": "step-00000100", "step": 100, "time": 1005.0, "bytes": 1234},
                                {"name": "best", "step": None, "time": 1006.0, "bytes": 999}],
                "ended": None if state in ("training", "paused") else 1010.0, **columns,
            }  # fmt: skip
            writer.run(**facts)
            writer.event("Began on the cpu.", kind="started")
        return run

    return write
