"""The main job, clicked: build a recipe, train it, watch it, pause, resume and stop it, train another, compare both.

Everything is real: the window, the engine's processes, the database. One test, because each step needs the one before.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PySide6.QtCore import Qt

from app.forms.chooser import ENTRY, REASON
from app.window import Window
from engine.log import Log
from engine.service.client import Engine
from engine.workspace import Workspace
from tests.app.person import Person, open_chooser
from tests.waiting import until


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace whose engine is ended when the test is over, however it ends."""
    made = Workspace(tmp_path / "lab")
    yield made
    end_engine(made)


def end_engine(workspace: Workspace) -> None:
    if not workspace.database.exists():
        return
    with Log(workspace.database) as log:
        service = log.meta("service") or {}
    try:
        process = psutil.Process(service["pid"])
    except (KeyError, psutil.NoSuchProcess):
        return
    for each in [process, *process.children(recursive=True)]:
        each.kill()


def opened(qtbot: Any, workspace: Workspace, place: str = "recipe") -> Person:
    window = Window(workspace, place)
    qtbot.addWidget(window)
    window.resize(1280, 720)
    window.show()
    window.begin()
    return Person(window)


def points(workspace: Workspace, run: str) -> int:
    with Log(workspace.database) as log:
        return sum(series.count for series in log.series(run))


def test_build_train_watch_compare(qtbot: Any, workspace: Workspace) -> None:
    person = opened(qtbot, workspace)
    recipe = person.recipe()
    assert recipe.document.use("task"), "it opens on the starter recipe, ready to train"
    person.wait(lambda: recipe.train_button.isEnabled())

    # Build: a model, an optimizer, two techniques.
    person.choose("model", "multilayer perceptron")
    person.choose("optimizer", "lion")
    person.add("techniques", "gradient clipping")
    person.add("techniques", "switch ema")
    uses = [part["use"] for part in recipe.document.get("techniques")]
    assert uses[-2:] == ["gradient-clipping", "switch-ema"] and recipe.document.use("model") == "mlp"
    person.line("budget")
    person.write(recipe.pane.form.rows["epochs"].field.line, "20000")
    assert recipe.document.get("budget.epochs") == 20000.0

    # Train: points come, and go on coming.
    service = Engine(workspace)
    person.wait(lambda: (service.service() or {}).get("spare") == "ready", 90)
    run = person.train()["id"]
    person.wait(lambda: points(workspace, run) > 0)
    runs = person.go("runs")
    person.wait(lambda: bool(runs.selected()) and runs.selected()[0]["id"] == run)
    person.wait(lambda: "loss" in runs.dashboard.charts and bool(runs.dashboard.charts["loss"].drawn))
    seen = points(workspace, run)
    person.wait(lambda: points(workspace, run) > seen)

    # Pause, resume, stop, by their buttons.
    person.wait(lambda: runs.header.pause.isEnabled())
    person.click(runs.header.pause)
    person.wait(lambda: person.run(run)["state"] == "paused")
    paused_at = person.run(run)["step"]
    person.wait(lambda: runs.header.pause.text() == "Resume")
    person.click(runs.header.pause)
    person.wait(lambda: person.run(run)["state"] == "training" and person.run(run)["step"] > paused_at)
    person.wait(lambda: runs.header.stop.isEnabled())
    person.click(runs.header.stop)
    person.wait(lambda: person.run(run)["state"] == "stopped")
    person.wait(lambda: bool(person.run(run)["weights"]))

    # Another optimizer, a short run, to its end.
    recipe = person.recipe()
    person.choose("optimizer", "adamw")
    person.line("budget")
    person.write(recipe.pane.form.rows["epochs"].field.line, "3")
    other = person.train()["id"]
    person.wait(lambda: person.window.current == "runs" and runs.selected()[0]["id"] == other)
    person.wait(lambda: person.run(other)["state"] == "done", 120)
    assert "test/accuracy" in person.run(other)["metrics"]

    # Compare both.
    compare = person.go("compare")
    person.wait(lambda: compare.table.runs.rowCount() == 2)
    compare.opened(runs=[run, other])
    person.wait(lambda: len(compare.table.selected()) == 2)
    model = compare.table.runs
    heads = [model.headerData(i, Qt.Orientation.Horizontal) for i in range(model.columnCount())]
    assert any("optimizer" in str(head) for head in heads), heads

    # The last places open as well.
    for place in ("library", "sweep", "machine"):
        person.go(place)
    person.window.close()


def test_the_popup_says_which_parts_do_not_fit(qtbot: Any, workspace: Workspace) -> None:
    person = opened(qtbot, workspace)
    recipe = person.recipe()
    person.choose("task", "python text")
    person.line("model")
    person.click(recipe.pane.chooser_button)
    chooser = open_chooser()
    assert chooser is not None
    person.wait(lambda: chooser.list.entries.reasons, 90)
    lines = {}
    for row in range(chooser.list.entries.rowCount()):
        index = chooser.list.entries.index(row)
        lines[index.data(ENTRY).id] = index.data(REASON)
    assert "tokens" in lines["mlp"] and lines["transformer"] == ""
    at = chooser.list.entries.index(chooser.list.entries.row_of("mlp"))
    assert "Does not fit: " in at.data(Qt.ItemDataRole.ToolTipRole)
    chooser.close()
    person.window.close()


def test_training_survives_the_window(qtbot: Any, workspace: Workspace) -> None:
    """`kill -9` of the window: training goes on, and a new window shows it."""
    import subprocess
    import sys

    recipe = "[task]\nuse = 'two-moons'\n[model]\nuse = 'mlp'\n[budget]\nepochs = 1000000\n"
    (workspace.folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    program = (
        "import sys; from PySide6.QtWidgets import QApplication; app = QApplication([]);"
        "from engine.workspace import Workspace; from app.window import Window; from tests.app.person import Person;"
        "window = Window(Workspace(sys.argv[1]), 'recipe'); window.show(); window.begin(); person = Person(window);"
        "person.recipe(); print(person.train()['id'], flush=True); person.rest(600)"
    )
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(workspace.folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        run = process.stdout.readline().strip()
        until(lambda: points(workspace, run) > 0, 60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = points(workspace, run)
    until(lambda: points(workspace, run) > before, 20)
    person = opened(qtbot, workspace, "runs")
    person.wait(lambda: person.window.current == "runs")
    runs = person.window.places["runs"]
    person.wait(lambda: bool(runs.selected()) and runs.selected()[0]["id"] == run)
    assert runs.selected()[0]["state"] == "training"
    person.wait(lambda: "loss" in runs.dashboard.charts and bool(runs.dashboard.charts["loss"].drawn))
    person.window.close()
