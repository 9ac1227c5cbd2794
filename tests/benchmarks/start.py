"""How soon one can work: the catalog read, the window painted, the engine ready, the first point of a run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine.catalog import Catalog
from engine.log import Log
from engine.recipe import Recipe
from engine.service.client import Engine
from engine.workspace import Workspace
from tests.benchmarks.rows import Row, median, seconds
from tests.waiting import until

WINDOW = """
import sys, time
begin = float(sys.argv[2])
from PySide6.QtWidgets import QApplication
from app.window import Window
from engine.workspace import Workspace
application = QApplication([])
window = Window(Workspace(sys.argv[1]))
window.show()
application.processEvents()
print(time.time() - begin, flush=True)
"""
QUICK = {
    "task": {"use": "two-moons"},
    "model": {"use": "mlp"},
    "optimizer": {"use": "adamw"},
    "budget": {"seconds": 5},
}


def rows() -> list[Row]:
    """The whole table."""
    Catalog.load()  # made once; what counts is reading it
    parts = len(Catalog.load().parts)
    reading = median(lambda: seconds(Catalog.load), 11)
    ready, first = engine()
    return [
        Row(f"reading the catalog of {parts} parts", reading * 1e3, "ms", 50.0),
        Row("the window is painted", median(window, 3), "s", 1.0),
        Row("the engine is ready", ready, "s", 3.0),
        Row("from the click to the first point", first, "s", 1.0),
    ]


def window() -> float:
    """Seconds from the start of the process to a painted window."""
    environment = {**os.environ, "QT_QPA_PLATFORM": os.environ.get("QT_QPA_PLATFORM", "offscreen")}
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        command = [sys.executable, "-c", WINDOW, folder, str(time.time())]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return float(done.stdout.split()[0])


def engine() -> tuple[float, float]:
    """Seconds until the service with its spare worker is ready, and from a queued run to its first point."""
    with tempfile.TemporaryDirectory(prefix="bench-start-") as folder:
        workspace = Workspace(Path(folder))
        client = Engine(workspace)
        try:
            begin = time.perf_counter()
            client.ensure()
            until(client.alive, 60)
            ready = time.perf_counter() - begin
            firsts = []
            for _ in range(3):
                until(
                    lambda: (client.service() or {}).get("spare") == "ready", 60
                )  # a person looks at the form meanwhile
                begin = time.perf_counter()
                run = client.queue(Recipe.of(QUICK).text())
                with Log(workspace.database, readonly=True) as log:
                    until(lambda: any(info.count for info in log.series(run)), 60)  # noqa: B023
                firsts.append(time.perf_counter() - begin)
                client.stop(run)
            return ready, sorted(firsts)[1]
        finally:
            client.shutdown()
            client.close()
