"""The guide in the window's help: every page opens, in both themes, beside the window."""

from __future__ import annotations

from typing import Any

from PySide6.QtGui import QColor

from app.guide import pages
from app.window import Window
from engine.workspace import Workspace


def test_the_help_menu_and_the_palette_open_every_page(qtbot: Any, workspace: Workspace) -> None:
    window = Window(workspace, "machine")
    qtbot.addWidget(window)
    window.show()
    found = pages()
    assert {page.id for page in found} >= {"write-a-part"}
    entries = {action.data(): action for action in window.rail.help.menu().actions()}
    window.palette_.open()
    window.palette_.field.setText("guide")
    offered = [window.palette_.lines.index(row, 0).data() for row in range(len(found))]
    assert offered == [f"Guide: {page.title}" for page in found]
    for page in found:
        entries[f"guide.{page.id}"].trigger()
        shown = window._guide
        assert shown is not None and shown.isVisible() and shown.windowTitle().startswith(page.title)
        assert page.title in shown.text.toPlainText() and "```" not in shown.text.toPlainText()
    window.close()


def test_code_stands_on_a_ground_of_its_own_in_both_themes(qtbot: Any, workspace: Workspace) -> None:
    window = Window(workspace, "machine")
    qtbot.addWidget(window)
    (page,) = [page for page in pages() if page.id == "write-a-part"]
    for theme in ("light", "dark"):
        window.theme.choose(theme)
        window._show_guide(page)
        document = window._guide.text.document()  # type: ignore[union-attr]
        block = document.begin()
        grounds = set()
        while block.isValid():
            if block.text().startswith("class "):
                grounds.add(block.blockFormat().background().color().name())
            block = block.next()
        assert grounds == {QColor(window.theme.tokens.raised).name()}
    window.close()
