"""The preview: asked of the engine through the database, shown when the answer comes, never waited for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QSettings

from app.places import Context
from app.places.recipe import DRAFT, RecipePlace
from app.reader import EngineDesk
from app.theme import Theme
from engine.log import Log
from engine.service.client import Engine
from engine.workspace import Workspace
from tests.app.small_catalog import small_catalog

TEXT = 'name = "a"\n\n[task]\nuse = "toy"\n\n[model]\nuse = "plain"\n\n[optimizer]\nuse = "crawl"\n'
ANSWER = {
    "problems": [],
    "model": {
        "parameters": 8970,
        "trainable": 8970,
        "flops": 17_800,
        "memory_bytes": 300_000,
        "layers": [{"path": "stem", "type": "Linear", "parameters": 8970, "output": [128]}],
    },
    "schedule": {"steps": [0, 50, 99], "series": {"lr": [0.1, 0.05, 0.0], "shake.amount": [1, 1, 0]}},
    "data": {
        "splits": {"test": 20, "train": 1000},
        "figure": {"kind": "image-grid", "title": "Samples", "images": [[[0, 1], [1, 0]]], "captions": ["3"]},
    },
    "order": [{"position": "backward", "parts": []}, {"position": "clip", "parts": ["prune"]}],
    "steps": 100,
    "sites": {"norm": ["blocks.0.norm"]},
}


class LoneDesk(EngineDesk):
    """The engine's desk with a service that ends at once: the test answers in its place."""

    def open(self) -> Engine:
        return Engine(self._workspace, service_command=[sys.executable, "-c", "pass"])


@pytest.fixture
def place(qtbot: Any, tmp_path: Path) -> Iterator[RecipePlace]:
    workspace = Workspace(tmp_path / "workspace")
    (workspace.folder / DRAFT).write_text(TEXT, encoding="utf-8")
    settings = QSettings(str(tmp_path / "settings.ini"), QSettings.Format.IniFormat)
    context = Context(workspace, settings, Theme(settings))
    context.engine.close()
    context.engine = LoneDesk(workspace, context)
    made = RecipePlace(context)
    qtbot.addWidget(made)
    made.resize(1200, 640)
    made.show()
    made.shown()
    context._set_catalog(small_catalog())
    qtbot.waitUntil(lambda: made.loaded)
    yield made
    context.close()


def answer(qtbot: Any, place: RecipePlace, what: dict[str, Any], failed: bool = False) -> str:
    """Waits for the question and answers it as the service does; returns the recipe that was asked about."""
    asked: list[dict[str, Any]] = []
    with Log(place.context.workspace.database) as log:

        def look() -> bool:
            asked.extend(command for command in log.take_commands() if command["verb"] == "preview")
            return bool(asked)

        qtbot.waitUntil(look, timeout=10_000)
        log.answer(asked[-1]["id"], what, failed=failed)
    return str(asked[-1]["args"]["recipe"])


def test_the_answer_fills_the_panels(qtbot: Any, place: RecipePlace) -> None:
    assert answer(qtbot, place, ANSWER) == TEXT
    qtbot.waitUntil(lambda: place.model.table.rowCount() == 1)
    assert (
        place.model.line.text()
        == "8970 parameters   ·   17.80 kFLOP a sample   ·   about 300.0 kB to train   ·   100 steps"
    )
    assert [place.model.table.item(0, c).text() for c in range(4)] == ["stem", "Linear", "128", "8\u202f970"]
    assert set(place.schedule.charts) == {"lr", "shake.amount"}
    assert place.data.line.text() == "Samples:   1\u202f000 train   ·   20 test"
    assert place.order.table.item(1, 1).text() == "Prune" and place.order.table.item(0, 1).text() == "the engine"
    assert place.previewer.sites == {"norm": ["blocks.0.norm"]} and place.previewer.state == ""
    assert place.train_button.isEnabled()


def test_what_the_engine_refuses_stops_training_until_the_recipe_changes(qtbot: Any, place: RecipePlace) -> None:
    answer(
        qtbot, place, {"problems": [{"path": "model", "value": None, "message": "the model cannot take that task."}]}
    )
    qtbot.waitUntil(lambda: not place.train_button.isEnabled())
    assert place.train_button.toolTip() == "model: the model cannot take that task."
    place.document.choose("model", "wide")
    assert place.train_button.isEnabled()
    assert 'use = "wide"' in answer(qtbot, place, ANSWER)
    qtbot.waitUntil(lambda: place.model.table.rowCount() == 1)


def test_a_failed_question_says_why_and_the_next_change_asks_again(qtbot: Any, place: RecipePlace) -> None:
    answer(qtbot, place, {"error": "the engine has no memory left."}, failed=True)
    qtbot.waitUntil(lambda: "no memory left" in place.preview_state.text())
    place.document.set("optimizer.lr", 0.5)
    assert "0.5" in answer(qtbot, place, ANSWER)
    qtbot.waitUntil(lambda: place.model.table.rowCount() == 1)


def test_nothing_is_asked_of_a_recipe_with_problems_or_off_screen(qtbot: Any, place: RecipePlace) -> None:
    answer(qtbot, place, ANSWER)
    qtbot.waitUntil(lambda: place.model.table.rowCount() == 1)
    place.document.set("optimizer.lr", -1)
    assert not place.previewer._settle.isActive() and "when the problems are gone" in place.preview_state.text()
    place.document.stack.undo()
    assert place.preview_state.text() == "", "the answer that is shown is that of this text"
    place.hidden()
    place.document.set("optimizer.lr", 0.5)
    assert not place.previewer._settle.isActive()
    place.shown()
    assert place.previewer._settle.isActive()
