"""A person at the window: clicks, types and waits, on the real window and the real engine.

Used by the end-to-end tests and by `python -m tests.screenshots`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QEventLoop, Qt, QTimer
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QWidget

from app.forms.chooser import Chooser
from app.forms.outline import switch_rect
from app.window import Window


class Person:
    """Drives one window. Every wait has a deadline and ends as soon as what is waited for is there."""

    def __init__(self, window: Window):
        self.window = window

    def wait(self, what: Callable[[], Any], seconds: float = 60.0) -> float:
        """Lets the window live until `what` is true; returns how long that took."""
        started = time.perf_counter()
        loop = QEventLoop()
        timer = QTimer()
        timer.setInterval(10)
        timer.timeout.connect(lambda: what() and loop.quit())
        timer.start()
        QTimer.singleShot(int(seconds * 1000), loop.quit)
        if not what():
            loop.exec()
        timer.stop()
        assert what(), f"not within {seconds} s"
        return time.perf_counter() - started

    def rest(self, seconds: float) -> None:
        """Looks at the window for a while."""
        loop = QEventLoop()
        QTimer.singleShot(int(seconds * 1000), loop.quit)
        loop.exec()

    def click(self, widget: QWidget) -> None:
        assert widget.isVisible() and widget.isEnabled(), f"{widget} cannot be clicked"
        QTest.mouseClick(widget, Qt.MouseButton.LeftButton)

    def go(self, place: str) -> Any:
        """Clicks a place in the rail; returns it when it is on screen."""
        self.click(self.window.rail.buttons[place])
        self.wait(lambda: self.window.current == place)
        return self.window.places[place]

    def recipe(self) -> Any:
        """The recipe place, its catalog read."""
        place = self.go("recipe")
        self.wait(lambda: place.loaded, 120)
        return place

    def line(self, path: str) -> None:
        """Clicks a line of the recipe's outline."""
        outline = self.window.places["recipe"].outline
        outline.scrollTo(outline.lines.index(outline.lines.row_of(path)))
        QTest.mouseClick(outline.viewport(), Qt.MouseButton.LeftButton, pos=outline.line_rect(path).center())

    def pick(self, words: str) -> None:
        """Types into the open chooser and takes what it finds."""
        self.wait(lambda: open_chooser() is not None, 5)
        chooser = open_chooser()
        assert chooser is not None
        QTest.keyClicks(chooser.search, words)
        QTest.keyClick(chooser.search, Qt.Key.Key_Return)

    def choose(self, section: str, words: str) -> None:
        """Puts another part into a section, through the popup."""
        self.line(section)
        self.click(self.window.places["recipe"].pane.chooser_button)
        self.pick(words)

    def add(self, section: str, words: str) -> None:
        """Adds a part to a list section by its line with the plus."""
        outline = self.window.places["recipe"].outline
        row = next(r for r, li in enumerate(outline.lines.lines) if li.what == "add" and li.path == section)
        outline.scrollTo(outline.lines.index(row))
        rect = outline.visualRect(outline.lines.index(row))
        QTest.mouseClick(outline.viewport(), Qt.MouseButton.LeftButton, pos=rect.center())
        self.pick(words)

    def switch(self, path: str) -> None:
        """Clicks the switch of a technique."""
        outline = self.window.places["recipe"].outline
        at = switch_rect(outline.line_rect(path)).center()
        QTest.mouseClick(outline.viewport(), Qt.MouseButton.LeftButton, pos=at)

    def write(self, widget: QWidget, text: str) -> None:
        """Replaces what a field holds."""
        widget.setFocus()
        QTest.keySequence(widget, "Ctrl+A")
        QTest.keyClicks(widget, text)
        QTest.keyClick(widget, Qt.Key.Key_Tab)

    def train(self) -> dict[str, Any]:
        """Presses Train; returns the run's row once it is in the list of runs."""
        before = {run["id"] for run in self.runs()}
        self.click(self.window.places["recipe"].train_button)
        self.wait(lambda: [run for run in self.runs() if run["id"] not in before])
        return next(run for run in self.runs() if run["id"] not in before)

    def runs(self) -> list[dict[str, Any]]:
        """What the log knows of the runs."""
        from engine.log import Log

        with Log(self.window.context.workspace.database) as log:
            return log.runs()

    def run(self, id: str) -> dict[str, Any]:
        return next(run for run in self.runs() if run["id"] == id)


def open_chooser() -> Chooser | None:
    found = [w for w in QApplication.topLevelWidgets() if isinstance(w, Chooser) and w.isVisible()]
    return found[0] if found else None
