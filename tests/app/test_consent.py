"""The question before anything is sent: from the recipe's button to the queue, or to nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QSettings
from PySide6.QtWidgets import QMessageBox

from app.consent import ALWAYS, NO, ONCE, Consent, words_for
from app.places import Context
from app.places.recipe import DRAFT, RecipePlace
from app.reader import EngineDesk
from app.theme import Theme
from engine.catalog import Catalog, Entry
from engine.endpoints import Contact, Permissions
from engine.log import Log
from engine.service.client import Engine
from engine.workspace import Workspace
from tests.app.small_catalog import small_catalog

ORIGIN = "https://far.example"
TEXT = """name = "asking"

[task]
use = "toy"

[model]
use = "plain"

[optimizer]
use = "crawl"

[procedure]
use = "asks"
speaker = { use = "server", key = "mine" }
"""


class LoneDesk(EngineDesk):
    """A service that ends at once: what is queued stays queued, for the test to read."""

    def open(self) -> Engine:
        return Engine(self._workspace, service_command=[sys.executable, "-c", "pass"])


def asking_catalog() -> Catalog:
    catalog = small_catalog()
    fields = {
        "url": {"type": "string", "x-endpoint": True, "default": f"{ORIGIN}/v1", "description": ""},
        "key": {"type": "string", "x-secret": True, "default": "", "description": ""},
    }
    speaker = {"speaker": {"x-part": "language-model", "description": ""}}
    for id, kind, properties in (("server", "language-model", fields), ("asks", "procedure", speaker)):
        schema = {"type": "object", "properties": properties, "required": []}
        catalog.parts[id] = Entry(id, id, "own", kind, "Words.", f"own:{id}", schema)
    return catalog


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
    made.show()
    context._set_catalog(asking_catalog())
    qtbot.waitUntil(lambda: made.loaded and made.can_train())
    yield made
    context.close()


def asked(qtbot: Any, place: RecipePlace) -> Consent:
    place.train_button.click()
    qtbot.waitUntil(lambda: bool(place.findChildren(Consent)))
    (box,) = place.findChildren(Consent)
    assert isinstance(box, Consent)
    return box


def queued(place: RecipePlace) -> list[dict[str, Any]]:
    with Log(place.context.workspace.database) as log:
        return log.runs(archived=None)


def answer(qtbot: Any, place: RecipePlace, name: str) -> None:
    asked(qtbot, place).buttons_of[name].click()
    qtbot.waitUntil(lambda: not place._training)


def test_it_says_who_and_what_and_how_often(qtbot: Any, place: RecipePlace) -> None:
    place.previewer.calls = 1234
    box = asked(qtbot, place)
    said = box.text() + box.informativeText()
    assert ORIGIN in said and "'mine'" in said and "1,234 times" in said and "samples" in said
    assert box.defaultButton() is box.buttons_of[NO]
    assert queued(place) == [], "nothing starts while the question stands"
    box.buttons_of[NO].click()


def test_no_starts_nothing_and_is_asked_again(qtbot: Any, place: RecipePlace) -> None:
    said: list[tuple[Any, ...]] = []
    place.context.said.connect(lambda *words: said.append(words))
    answer(qtbot, place, NO)
    assert queued(place) == [] and Permissions().always() == {}
    assert said == [("Nothing was sent, and no run was started.", None, "info")], "a no is no error"
    qtbot.waitUntil(lambda: not place.findChildren(Consent))
    asked(qtbot, place).reject()
    qtbot.waitUntil(lambda: not place._training)
    assert queued(place) == [], "closing the question is no"


def test_once_holds_for_this_run_alone(qtbot: Any, place: RecipePlace) -> None:
    answer(qtbot, place, ONCE)
    (run,) = queued(place)
    assert Permissions().allows(ORIGIN, "mine", (run["id"],)) and Permissions().always() == {}
    qtbot.waitUntil(lambda: not place.findChildren(Consent))
    answer(qtbot, place, NO)
    assert len(queued(place)) == 1


def test_always_is_remembered(qtbot: Any, place: RecipePlace) -> None:
    answer(qtbot, place, ALWAYS)
    assert len(queued(place)) == 1 and Permissions().always() == {ORIGIN: ["mine"]}
    qtbot.waitUntil(lambda: not place.findChildren(QMessageBox))
    place.train_button.click()
    qtbot.waitUntil(lambda: len(queued(place)) == 2)
    assert not place.findChildren(QMessageBox)


def test_a_recipe_that_talks_to_nobody_starts_at_once(qtbot: Any, place: RecipePlace) -> None:
    place.document.open(TEXT.split("[procedure]")[0], None, "Open")
    qtbot.waitUntil(place.can_train)
    place.train_button.click()
    qtbot.waitUntil(lambda: len(queued(place)) == 1)
    assert not place.findChildren(QMessageBox)


def test_what_is_not_known_is_not_made_up() -> None:
    words = words_for([Contact("p", "server", ORIGIN)], None)
    assert "an unknown number of times" in words and "secret" not in words
