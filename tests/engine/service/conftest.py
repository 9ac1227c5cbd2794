"""A workspace, a stand-in worker, and the promise that no process outlives its test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from engine.log import Log
from engine.service.scheduler import Scheduler
from engine.workspace import Workspace

HERE = Path(__file__).parent
WORKER = [sys.executable, str(HERE / "stand_in_worker.py")]
CLERK = [sys.executable, str(HERE / "stand_in_clerk.py")]


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path / "workspace")
    yield workspace
    for process in psutil.process_iter(["cmdline"]):
        if str(workspace.folder) in " ".join(process.info["cmdline"] or []):
            process.kill()


@pytest.fixture
def log(workspace: Workspace) -> Iterator[Log]:
    with Log(workspace.database) as log:
        yield log


@pytest.fixture
def make_scheduler(workspace: Workspace) -> Iterator[Callable[..., Scheduler]]:
    made: list[Scheduler] = []

    def make(only: str | None = None, **options: object) -> Scheduler:
        scheduler = Scheduler(workspace, only, **{"worker_command": WORKER, "gpus": 0, **options})
        made.append(scheduler)
        return scheduler

    yield make
    for scheduler in made:
        for worker in scheduler.workers.values():
            worker.process.kill()
        scheduler.close()
