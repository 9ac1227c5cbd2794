"""The field for something trained elsewhere: its menu offers the runs that hold weights, and recipe files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QMenu

from app.forms.fields import UNSET, Field, FormContext, make_field
from app.forms.sources import pick_source
from app.places import Context
from tests.app.small_catalog import small_catalog

ONE = {"type": "string", "x-source": True}


@pytest.fixture
def made(qtbot: Any, frame_context: Context) -> Callable[[dict[str, Any]], Field]:
    forms = FormContext(small_catalog(), pick_source=lambda at, take: pick_source(frame_context, at, take))

    def make(schema: dict[str, Any]) -> Field:
        field = make_field("here", schema, forms)
        field.edited.connect(lambda _path, value: field.show_value(value))
        field.show_value(UNSET)
        qtbot.addWidget(field)
        field.show()
        return field

    return make


def offered(qtbot: Any, field: Any) -> dict[str, Any]:
    qtbot.mouseClick(field.choose, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: bool(field.choose.findChildren(QMenu)))
    menu = field.choose.findChildren(QMenu)[-1]
    return {entry.text(): entry for entry in menu.actions() if entry.text()}


def test_a_run_is_chosen_by_its_words(qtbot: Any, made: Any, write_run: Callable[..., str]) -> None:
    run = write_run("the teacher")
    write_run("waits", state="queued")
    field = made(ONE)
    entries = offered(qtbot, field)
    (words,) = [text for text in entries if text.startswith("the teacher")]
    assert "val/accuracy 0.95" in words and not any("waits" in text for text in entries)
    entries[words].trigger()
    assert field.value == f"run:{run}" == field.line.text()


def test_recipes_are_offered_and_added_to_a_list(qtbot: Any, made: Any) -> None:
    field = made({"type": "array", "items": ONE, "default": []})
    entries = offered(qtbot, field)
    assert "No run here has a checkpoint yet" in entries
    entries["Recipe start, trained first"].trigger()
    assert field.value == ["recipe:start.toml"]
    offered(qtbot, field)["Recipe robust, trained first"].trigger()
    assert field.value == ["recipe:start.toml", "recipe:robust.toml"]


def test_it_can_be_typed(qtbot: Any, made: Any) -> None:
    field = made(ONE)
    qtbot.keyClicks(field.line, "run:abc@best")
    assert field.value == "run:abc@best"
