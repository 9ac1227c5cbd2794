"""The recipe's text beside its forms: edited live, coloured, with the line that cannot be read marked."""

from __future__ import annotations

import re
from typing import Any

from PySide6.QtCore import QMimeData, QTimer
from PySide6.QtGui import QColor, QKeyEvent, QKeySequence, QSyntaxHighlighter, QTextCharFormat, QTextCursor, QTextFormat
from PySide6.QtWidgets import QLabel, QPlainTextEdit, QTextEdit, QVBoxLayout, QWidget

from app.forms.fields import fixed_font
from app.recipes import RecipeDocument
from app.theme import SPACE_S, Theme

TYPING_MS = 150
RULES = (
    (re.compile(r"^\s*\[{1,2}[^\]]*\]{1,2}"), "accent"),
    (re.compile(r"^\s*[\w.\"'-]+(?=\s*=)"), "info"),
    (re.compile(r"(?<==)\s*[-+\d.][\w.+-]*|\b(true|false)\b"), "series"),
    (re.compile(r"\"[^\"]*\"|'[^']*'"), "good"),
    (re.compile(r"#.*$"), "muted"),
)


class Colours(QSyntaxHighlighter):
    """Headings, names, numbers, texts and comments, each in a colour of the theme."""

    def __init__(self, document: Any, theme: Theme):
        super().__init__(document)
        self.theme = theme
        theme.changed.connect(self.rehighlight)

    def highlightBlock(self, text: str) -> None:
        tokens = self.theme.tokens
        for rule, token in RULES:
            form = QTextCharFormat()
            form.setForeground(QColor(tokens.series[4] if token == "series" else getattr(tokens, token)))
            for match in rule.finditer(text):
                # A sign inside quotes is text: only whole quotes and what stands outside of them are coloured.
                if token == "muted" and text[: match.start()].count('"') % 2:
                    continue
                self.setFormat(match.start(), match.end() - match.start(), form)


class TomlEdit(QPlainTextEdit):
    """The text. Undo is the document's own, so that forms and text share one history."""

    def __init__(self, document: RecipeDocument):
        super().__init__()
        self.recipe_document = document
        self.setUndoRedoEnabled(False)
        self.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.setAccessibleName("The recipe as TOML")
        self.setTabStopDistance(32)
        self.setTabChangesFocus(True)

    def canInsertFromMimeData(self, source: QMimeData) -> bool:
        """A dropped file is opened by the place, not written into the text."""
        return not source.hasUrls() and super().canInsertFromMimeData(source)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.matches(QKeySequence.StandardKey.Undo):
            self.recipe_document.stack.undo()
        elif event.matches(QKeySequence.StandardKey.Redo):
            self.recipe_document.stack.redo()
        else:
            super().keyPressEvent(event)


class TomlPane(QWidget):
    """The text of a document, and the sentence that says why it cannot be read."""

    def __init__(self, document: RecipeDocument, theme: Theme):
        super().__init__()
        self.document = document
        self.theme = theme
        self.edit = TomlEdit(document)
        self.edit.setObjectName("toml")
        self.edit.setFrameShape(QPlainTextEdit.Shape.NoFrame)
        self.colours = Colours(self.edit.document(), theme)
        self.sentence = QLabel()
        self.sentence.setWordWrap(True)
        self.sentence.setProperty("role", "bad")
        self.sentence.setContentsMargins(SPACE_S, SPACE_S, SPACE_S, SPACE_S)
        self.sentence.hide()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self.edit, 1)
        column.addWidget(self.sentence)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(TYPING_MS)
        self._timer.timeout.connect(self.take)
        self._showing = False
        self.edit.textChanged.connect(self._typed)
        document.changed.connect(self.show_document)
        document.checked.connect(self._show_problem)
        theme.changed.connect(self._restyle)
        self._restyle()
        self.show_document()

    def show_document(self) -> None:
        """Writes the document's text, changing only what differs, so that the cursor and the view stay."""
        if self._timer.isActive():
            return
        old, new = self.edit.toPlainText(), self.document.text
        if old != new:
            start, stop_old, stop_new = _differing(old, new)
            self._showing = True
            cursor = QTextCursor(self.edit.document())
            cursor.setPosition(start)
            cursor.setPosition(stop_old, QTextCursor.MoveMode.KeepAnchor)
            cursor.insertText(new[start:stop_new])
            self._showing = False
        self._show_problem()

    def take(self) -> None:
        """Hands what was typed to the document."""
        self._timer.stop()
        text = self.edit.toPlainText()
        if text != self.document.text:
            self.document.edit_text(text)
        self._show_problem()

    def go_to(self, path: str) -> None:
        """Puts the cursor on the line of a path, as far as it has one."""
        line = line_of(self.edit.toPlainText(), path)
        if line is not None:
            cursor = QTextCursor(self.edit.document().findBlockByNumber(line))
            self.edit.setTextCursor(cursor)
            self.edit.centerCursor()

    def _typed(self) -> None:
        if not self._showing:
            self._timer.start()

    def _show_problem(self) -> None:
        broken = self.document.broken
        self.sentence.setText(str(broken)[:1].upper() + str(broken)[1:] if broken else "")
        self.sentence.setVisible(broken is not None)
        marks = []
        for number in self._wrong_lines():
            mark = QTextEdit.ExtraSelection()
            colour = QColor(self.theme.tokens.bad)
            colour.setAlpha(40)
            mark.format.setBackground(colour)
            mark.format.setProperty(QTextFormat.Property.FullWidthSelection, True)
            mark.cursor = QTextCursor(self.edit.document().findBlockByNumber(number))
            marks.append(mark)
        self.edit.setExtraSelections(marks)

    def _wrong_lines(self) -> set[int]:
        if self.document.broken is not None:
            found = re.search(r"line (\d+)", self.document.broken.message)
            return {int(found[1]) - 1} if found else set()
        text = self.document.text
        lines = (line_of(text, problem.path) for problem in self.document.problems)
        return {line for line in lines if line is not None}

    def _restyle(self) -> None:
        self.edit.setFont(fixed_font(self.theme))
        self._show_problem()


def _differing(old: str, new: str) -> tuple[int, int, int]:
    """Where two texts begin to differ, and where each of them stops to."""
    limit = min(len(old), len(new))
    start = 0
    while start < limit and old[start] == new[start]:
        start += 1
    tail = 0
    while tail < limit - start and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    return start, len(old) - tail, len(new) - tail


def line_of(text: str, path: str) -> int | None:
    """The line (from 0) that a path stands in: its own, else that of the nearest heading above it."""
    keys = path.split(".") if path else []
    if not keys:
        return None
    best: tuple[int, int] | None = None  # how many keys match, line
    at: list[str] = []
    counts: dict[str, int] = {}
    for number, line in enumerate(text.split("\n")):
        heading = re.match(r"\s*(\[{1,2})\s*([^\]#]+?)\s*\]", line)
        name = re.match(r"\s*([\w-]+|\"[^\"]*\")\s*=", line)
        if heading and not name:
            at = _heading_path(heading[2], heading[1] == "[[", counts)
            here = at
        elif name:
            here = [*at, name[1].strip('"')]
        else:
            continue
        depth = len(here)
        if here == keys[:depth] and (best is None or depth > best[0]):
            best = (depth, number)
    return best[1] if best else None


def _heading_path(name: str, listed: bool, counts: dict[str, int]) -> list[str]:
    """A heading as a path: the second [[techniques]] is techniques.1."""
    first, *rest = name.split(".")
    if listed and not rest:
        counts[first] = counts.get(first, -1) + 1
    return [first, *([str(counts[first])] if first in counts else []), *rest]
