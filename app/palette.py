"""The command palette (Ctrl+K): every action, place, part and run, found by a few letters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QAbstractListModel, QEvent, QModelIndex, QPersistentModelIndex, QRect, QSize, Qt
from PySide6.QtGui import QKeyEvent, QKeySequence, QPainter
from PySide6.QtWidgets import (
    QFrame,
    QLineEdit,
    QListView,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

from app.icons import pixmap
from app.states import state
from app.theme import SIZE_SMALL, SIZE_TEXT, Theme

SHOWN = 60
Index = QModelIndex | QPersistentModelIndex


@dataclass(frozen=True)
class Entry:
    """One line of the palette."""

    text: str
    kind: str
    run: Callable[[], Any]
    hint: str = ""
    icon: str = ""
    words: str = ""
    token: str = "muted"


def score(query: str, text: str, words: str = "") -> float:
    """How well the letters fit: 0 is not at all. Every word of the query must be found."""
    text, total = text.lower(), 0.0
    for part in query.lower().split():
        found = text.find(part)
        if found >= 0:
            total += 10 if found == 0 else 8 if text[found - 1] == " " else 5
            continue
        if part in words.lower():
            total += 3
            continue
        place = -1
        for letter in part:
            place = text.find(letter, place + 1)
            if place < 0:
                return 0.0
        total += 1
    return total - len(text) * 0.001 if total else 0.0


class Lines(QAbstractListModel):
    """The entries that fit what was typed, best first."""

    def __init__(self, parent: QWidget):
        super().__init__(parent)
        self.entries: list[Entry] = []

    def show_entries(self, entries: list[Entry]) -> None:
        self.beginResetModel()
        self.entries = entries
        self.endResetModel()

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(self.entries)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        entry = self.entries[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return entry.text
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return f"{entry.text}, {entry.kind} {entry.hint}"
        return None


class LineDelegate(QStyledItemDelegate):
    """Paints icon, words, and the key or the kind on the right."""

    def __init__(self, theme: Theme, parent: QWidget):
        super().__init__(parent)
        self._theme = theme

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        return QSize(200, 30)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        entry: Entry = index.model().entries[index.row()]  # type: ignore[attr-defined]
        style = option.widget.style()
        style.drawPrimitive(style.PrimitiveElement.PE_PanelItemViewItem, option, painter, option.widget)
        area: QRect = option.rect.adjusted(12, 0, -12, 0)
        if entry.icon:
            ratio = option.widget.devicePixelRatioF()
            image = pixmap(entry.icon, getattr(self._theme.tokens, entry.token), 16, ratio)
            painter.drawPixmap(area.left(), area.center().y() - 8, image)
        painter.setFont(self._theme.font(SIZE_SMALL))
        painter.setPen(self._theme.colour("muted"))
        hint = entry.hint or entry.kind
        middle = Qt.AlignmentFlag.AlignVCenter
        painter.drawText(area, middle | Qt.AlignmentFlag.AlignRight, hint)
        room = area.adjusted(28, 0, -painter.fontMetrics().horizontalAdvance(hint) - 12, 0)
        painter.setFont(self._theme.font(SIZE_TEXT))
        painter.setPen(self._theme.colour("text"))
        text = painter.fontMetrics().elidedText(entry.text, Qt.TextElideMode.ElideRight, room.width())
        painter.drawText(room, middle | Qt.AlignmentFlag.AlignLeft, text)


class Palette(QFrame):
    """A field and a list over the window; closes on Escape, on a choice, and when it loses the focus."""

    def __init__(self, context: Any, parent: QWidget):
        super().__init__(parent)
        self.context = context
        self._outer = parent
        self._entries: list[Entry] = []
        self._runs: list[dict[str, Any]] = []
        self.setObjectName("palette")
        self.setAccessibleName("Command palette")
        self.field = QLineEdit()
        self.field.setPlaceholderText("Search for a command, a part or a run")
        self.field.setAccessibleName("Search or run a command")
        self.lines = Lines(self)
        self.list = QListView()
        self.list.setAccessibleName("What was found")
        self.list.setModel(self.lines)
        self.list.setItemDelegate(LineDelegate(context.theme, self.list))
        self.list.setUniformItemSizes(True)
        self.list.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        column = QVBoxLayout(self)
        column.setContentsMargins(1, 1, 1, 1)
        column.setSpacing(0)
        column.addWidget(self.field)
        column.addWidget(self.list)
        self.field.textChanged.connect(self._search)
        self.field.installEventFilter(self)
        self.list.clicked.connect(lambda index: self._choose(index.row()))
        self.hide()

    def open(self) -> None:
        """Shows itself at the top of its window, ready to type."""
        outer = self._outer
        width = min(640, outer.width() - 48)
        self.setGeometry((outer.width() - width) // 2, 8, width, min(440, outer.height() - 48))
        self.field.clear()
        self._entries = self._collect()
        self._search("")
        self.show()
        self.raise_()
        self.field.setFocus()
        self.context.reader.ask(lambda log: log.runs(limit=500), self._take_runs, key="palette", owner=self)

    def _take_runs(self, runs: list[dict[str, Any]]) -> None:
        self._runs = runs
        if self.isVisible():
            self._entries = self._collect()
            self._search(self.field.text())

    def _collect(self) -> list[Entry]:
        actions, go = self.context.actions, self.context.go
        entries = []
        for action in actions.known.values():
            if (
                action.id != "window.palette"
                and (action.place or actions.bound(action.id))
                and actions.enabled(action.id)
            ):
                key = QKeySequence(action.key).toString(QKeySequence.SequenceFormat.NativeText)
                start = lambda id_=action.id: actions.start(id_)  # noqa: E731
                entries.append(Entry(action.text, "command", start, key, action.icon, action.words))
        for run in self._runs:
            look = state(run["state"])
            open_run = lambda id_=run["id"]: go("runs", run=id_)  # noqa: E731
            text = run["name"] or run["id"]
            entries.append(Entry(text, f"run · {look.word.lower()}", open_run, "", look.icon, run["id"], look.token))
        if self.context.catalog is not None:
            for part in self.context.catalog.parts.values():
                open_part = lambda id_=part.id: go("library", part=id_)  # noqa: E731
                entries.append(
                    Entry(part.name, f"part · {part.slot}", open_part, "", "library", f"{part.id} {part.kind}")
                )
        return entries

    def _search(self, text: str) -> None:
        if text.strip():
            scored = [(score(text, entry.text, entry.words), entry) for entry in self._entries]
            found = [entry for value, entry in sorted(scored, key=lambda pair: -pair[0]) if value > 0]
        else:
            found = self._entries
        self.lines.show_entries(found[:SHOWN])
        if found:
            self.list.setCurrentIndex(self.lines.index(0))

    def _choose(self, row: int) -> None:
        if 0 <= row < len(self.lines.entries):
            entry = self.lines.entries[row]
            self.hide()
            entry.run()

    def eventFilter(self, watched: Any, event: QEvent) -> bool:
        if event.type() == QEvent.Type.FocusOut and self.isVisible():
            self.hide()
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress:
            row, last = self.list.currentIndex().row(), len(self.lines.entries) - 1
            moves = {
                Qt.Key.Key_Down: min(row + 1, last),
                Qt.Key.Key_Up: max(row - 1, 0),
                Qt.Key.Key_PageDown: min(row + 10, last),
                Qt.Key.Key_PageUp: max(row - 10, 0),
            }
            if event.key() in moves:
                self.list.setCurrentIndex(self.lines.index(moves[Qt.Key(event.key())]))
                return True
            if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
                self._choose(row)
                return True
            if event.key() == Qt.Key.Key_Escape:
                self.hide()
                return True
        return super().eventFilter(watched, event)
