"""The outline of a recipe: a line a section with its part, marks for what is changed or wrong, techniques in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QAbstractListModel, QEvent, QMimeData, QObject, QPoint, QRect, QSize, Qt, Signal
from PySide6.QtGui import QColor, QFont, QKeyEvent, QMouseEvent, QPainter, QPalette
from PySide6.QtWidgets import QAbstractItemView, QListView, QStyledItemDelegate, QStyleOptionViewItem, QWidget

from app.forms.chooser import Index, draw_background, draw_text
from app.forms.fields import list_text
from app.recipes import RecipeDocument
from app.theme import SPACE_L, SPACE_S, Theme
from engine.recipe import PHASES, SECTIONS, Section
from engine.settings import a_kind

LINE = Qt.ItemDataRole.UserRole
MIME = "application/x-athanor-part"
HEIGHT = 28
TITLE_WIDTH = 82
SWITCH = QSize(26, 14)
MOVED = ("item", "phase")  # lines that can be dragged and taken out


@dataclass(frozen=True)
class Line:
    """One line of the outline. `what` is recipe, section, list (the heading of a list), item, phase or add."""

    what: str
    path: str
    title: str
    part: str = ""
    chosen: bool = True  # the recipe names it, rather than a default
    on: bool = True
    mark: str = ""  # "", "changed" or "problem"
    words: str = ""


class OutlineModel(QAbstractListModel):
    """The lines of a document's outline. Items can be switched and dragged."""

    moved = Signal(str)  # the new path of an item that was dragged

    def __init__(self, document: RecipeDocument, parent: QObject | None = None):
        super().__init__(parent)
        self.document = document
        self.lines: list[Line] = []
        document.checked.connect(self.rebuild)
        self.rebuild()

    def rebuild(self) -> None:
        """Brings the lines in line with the document; the selection is kept where the lines stay the same."""
        lines = outline(self.document)
        if [(line.what, line.path) for line in lines] != [(line.what, line.path) for line in self.lines]:
            self.beginResetModel()
            self.lines = lines
            self.endResetModel()
        elif lines != self.lines:
            self.lines = lines
            self.dataChanged.emit(self.index(0), self.index(len(lines) - 1))

    def row_of(self, path: str) -> int:
        return next((row for row, line in enumerate(self.lines) if line.path == path and line.what != "add"), -1)

    def rowCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self.lines)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid() or index.row() >= len(self.lines):
            return None
        line = self.lines[index.row()]
        if role == LINE:
            return line
        if role == Qt.ItemDataRole.DisplayRole:
            return line.title
        if role == Qt.ItemDataRole.ToolTipRole:
            return line.words
        if role == Qt.ItemDataRole.CheckStateRole and line.what == "item":
            return Qt.CheckState.Checked if line.on else Qt.CheckState.Unchecked
        if role == Qt.ItemDataRole.AccessibleTextRole:
            marks = {"problem": "has a problem", "changed": "changed", "": ""}
            state = "" if line.what != "item" else "on" if line.on else "off"
            return ", ".join(word for word in (line.title, line.part, state, marks[line.mark]) if word)
        return None

    def setData(self, index: Index, value: Any, role: int = Qt.ItemDataRole.EditRole) -> bool:
        line = self.lines[index.row()]
        if role != Qt.ItemDataRole.CheckStateRole or line.what != "item":
            return False
        self.document.enable(line.path, Qt.CheckState(value) == Qt.CheckState.Checked)
        return True

    def flags(self, index: Index) -> Qt.ItemFlag:
        if not index.isValid():
            return Qt.ItemFlag.ItemIsDropEnabled
        usual = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable
        line = self.lines[index.row()]
        if line.what == "list":
            return Qt.ItemFlag.ItemIsEnabled
        if line.what == "item":
            return usual | Qt.ItemFlag.ItemIsDragEnabled | Qt.ItemFlag.ItemIsUserCheckable
        return usual | Qt.ItemFlag.ItemIsDragEnabled if line.what == "phase" else usual

    # -- dragging --------------------------------------------------------------------------------------------------

    def supportedDropActions(self) -> Qt.DropAction:
        return Qt.DropAction.MoveAction

    def mimeTypes(self) -> list[str]:
        return [MIME]

    def mimeData(self, indexes: Sequence[Index]) -> QMimeData:
        data = QMimeData()
        data.setData(MIME, self.lines[indexes[0].row()].path.encode())
        return data

    def canDropMimeData(self, data: QMimeData, action: Qt.DropAction, row: int, column: int, parent: Index) -> bool:
        return self._target(data, row) is not None

    def dropMimeData(self, data: QMimeData, action: Qt.DropAction, row: int, column: int, parent: Index) -> bool:
        target = self._target(data, row)
        if target is None:
            return False
        section, index, to = target
        self.document.move(section, index, to)
        self.moved.emit(f"{section}.{to}")
        return True

    def _target(self, data: QMimeData, row: int) -> tuple[str, int, int] | None:
        """Section, old index and new index of a drop before a row; None where it cannot go there."""
        if not data.hasFormat(MIME) or row < 0:
            return None
        section, number = bytes(data.data(MIME).data()).decode().split(".")
        rows = [r for r, line in enumerate(self.lines) if line.what in MOVED and line.path.startswith(f"{section}.")]
        if not rows or not rows[0] <= row <= rows[-1] + 1:
            return None
        index, before = int(number), row - rows[0]
        return section, index, before - 1 if before > index else before


def outline(document: RecipeDocument) -> list[Line]:
    """The lines of a document."""
    changed = {difference.path for difference in document.differences()}
    lines = [Line("recipe", "", "Recipe", document.recipe.name or "untitled", mark=_own_mark(document))]
    unused = document.recipe.unused(document.catalog) if document.catalog is not None and not document.broken else []
    for section in SECTIONS:
        mark = _mark(document, section.name, changed)
        if section.name in unused:
            lines.append(_without(document, section, mark))
            continue
        if section.many:
            items = document.get(section.name, [])
            own = mark if document.problems and any(p.path == section.name for p in document.problems) else ""
            lines.append(Line("list", section.name, section.title, mark=own, words=section.words))
            for index in range(len(items) if isinstance(items, list) else 0):
                lines.append(_item(document, section, index, changed))
            lines.append(Line("add", section.name, f"Add {a_kind(section.kind)}", words=section.words))
        else:
            lines.append(_section(document, section, mark))
    return [*lines, *_phases(document, changed)]


def _phases(document: RecipeDocument, changed: set[str]) -> list[Line]:
    """The stretches that the run is carried out in, each with what it says of itself."""
    words = "Stretches of the run with parts and budgets of their own, one after the other."
    own = "problem" if any(p.path == PHASES for p in document.problems) else ""
    lines = [Line("list", PHASES, "Phases", mark=own, words=words)]
    found = document.get(PHASES, [])
    for index, phase in enumerate(found if isinstance(found, list) else []):
        path = f"{PHASES}.{index}"
        says = phase if isinstance(phase, Mapping) else {}
        parts = [f"{says['repeat']} times"] if says.get("repeat", 1) != 1 else []
        budget = says.get("budget")
        parts += [f"{list_text(value)} {name}" for name, value in budget.items()] if isinstance(budget, Mapping) else []
        mark = _mark(document, path, changed)
        lines.append(Line("phase", path, str(says.get("name", "no name")), ", ".join(parts), mark=mark, words=words))
    return [*lines, Line("add", PHASES, "Add a phase", words=words)]


def _without(document: RecipeDocument, section: Section, mark: str) -> Line:
    """A section that the procedure needs nothing of; what stands there is kept for another one."""
    entry = document.entry("procedure")
    words = f"{entry.name if entry else 'The procedure'} needs none. What stands here is kept, and takes no part."
    return Line("section", section.name, section.title, "not used", False, mark=mark, words=words)


def _section(document: RecipeDocument, section: Section, mark: str) -> Line:
    chosen = document.get(section.name) is not None
    if not section.kind:
        said = document.get(section.name)
        settings = said.items() if isinstance(said, Mapping) else ()
        part = ", ".join(f"{name.replace('_', ' ')} {list_text(value)}" for name, value in settings) or "defaults"
        return Line("section", section.name, section.title, part, chosen, mark=mark, words=section.words)
    entry, use = document.entry(section.name), document.use(section.name)
    part = entry.name if entry else use or "none"
    return Line("section", section.name, section.title, part, chosen, mark=mark, words=section.words)


def _item(document: RecipeDocument, section: Section, index: int, changed: set[str]) -> Line:
    path = f"{section.name}.{index}"
    entry = document.entry(path)
    name = entry.name if entry else str(document.get(f"{path}.use", "no part"))
    on = document.get(f"{path}.enabled", True) is not False
    words = entry.summary if entry else ""
    return Line("item", path, name, on=on, mark=_mark(document, path, changed), words=words)


def _mark(document: RecipeDocument, path: str, changed: set[str]) -> str:
    if document.problems_at(path):
        return "problem"
    return "changed" if any(p == path or p.startswith(f"{path}.") for p in changed) else ""


def _own_mark(document: RecipeDocument) -> str:
    own = ("", "schema", "name", "notes", "seed")
    return "problem" if any(p.path in own for p in document.problems) else ""


class OutlineDelegate(QStyledItemDelegate):
    """Draws the lines; the switch of an item is a switch."""

    def __init__(self, theme: Theme, parent: QObject | None = None):
        super().__init__(parent)
        self.theme = theme

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        line: Line | None = index.data(LINE)
        return QSize(120, HEIGHT + (6 if line is not None and line.what == "list" else 0))

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        line: Line | None = index.data(LINE)
        if line is None:
            return
        palette: QPalette = option.palette
        rect: QRect = option.rect
        if line.what != "list":
            draw_background(painter, option)
        text, muted = palette.color(QPalette.ColorRole.Text), palette.color(QPalette.ColorRole.PlaceholderText)
        inner = rect.adjusted(SPACE_L + 4, 0, -SPACE_S, 0)
        self._dot(painter, QPoint(rect.left() + 12, rect.center().y() + 1), line.mark)
        painter.setFont(option.font)
        if line.what == "item":
            self._item(painter, inner, line, text if line.on else muted)
        elif line.what == "add":
            painter.setPen(palette.color(QPalette.ColorRole.Accent))
            draw_text(painter, inner.adjusted(SPACE_S + SWITCH.width(), 0, 0, 0), f"+  {line.title}")
        elif line.what == "list":
            font = QFont(option.font)
            font.setPixelSize(11)
            font.setWeight(QFont.Weight.DemiBold)
            painter.setFont(font)
            painter.setPen(muted)
            draw_text(painter, inner.adjusted(0, 8, 0, 0), line.title)
        else:
            painter.setPen(muted)
            draw_text(painter, QRect(inner.left(), inner.top(), TITLE_WIDTH, inner.height()), line.title)
            painter.setPen(text if line.chosen else muted)
            draw_text(painter, inner.adjusted(TITLE_WIDTH + SPACE_S, 0, 0, 0), line.part)

    def editorEvent(self, event: QEvent, model: Any, option: QStyleOptionViewItem, index: Index) -> bool:
        line: Line | None = index.data(LINE)
        if line is None or line.what != "item":
            return False
        hit = False
        if event.type() == QEvent.Type.MouseButtonRelease and isinstance(event, QMouseEvent):
            hit = switch_rect(option.rect).adjusted(-4, -6, 4, 6).contains(event.position().toPoint())
        elif event.type() == QEvent.Type.KeyPress and isinstance(event, QKeyEvent):
            hit = event.key() == Qt.Key.Key_Space
        if hit:
            state = Qt.CheckState.Unchecked if line.on else Qt.CheckState.Checked
            model.setData(index, state, Qt.ItemDataRole.CheckStateRole)
        return hit

    def _item(self, painter: QPainter, inner: QRect, line: Line, colour: QColor) -> None:
        tokens = self.theme.tokens
        switch = switch_rect(inner.adjusted(-SPACE_L - 4, 0, SPACE_S, 0))
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QColor(tokens.accent if line.on else tokens.muted))
        painter.setBrush(QColor(tokens.accent) if line.on else Qt.BrushStyle.NoBrush)
        painter.drawRoundedRect(switch, 7, 7)
        knob = QPoint(switch.right() - 6 if line.on else switch.left() + 7, switch.center().y() + 1)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(tokens.accent_text if line.on else tokens.muted))
        painter.drawEllipse(knob, 4, 4)
        painter.restore()
        painter.setPen(colour)
        draw_text(painter, inner.adjusted(SPACE_S + SWITCH.width(), 0, 0, 0), line.title)

    def _dot(self, painter: QPainter, at: QPoint, mark: str) -> None:
        if mark:
            painter.save()
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(self.theme.tokens.bad if mark == "problem" else self.theme.tokens.accent))
            size = 4 if mark == "problem" else 3
            painter.drawEllipse(at, size, size)
            painter.restore()


def switch_rect(rect: QRect) -> QRect:
    """Where an item's switch lies in its line."""
    return QRect(QPoint(rect.left() + SPACE_L + 4, rect.center().y() - SWITCH.height() // 2), SWITCH)


class Outline(QListView):
    """The outline's list. Enter opens the chooser, Space switches, Alt with the arrows moves, Delete takes out."""

    selected = Signal(str)  # the path of the line that was selected
    asked = Signal(str, str)  # what a key or a click asks for ("choose", "add"), and of which path

    def __init__(self, document: RecipeDocument, theme: Theme, parent: QWidget | None = None):
        super().__init__(parent)
        self.document = document
        self.lines = OutlineModel(document, self)
        self.path = ""
        self.setModel(self.lines)
        self.setItemDelegate(OutlineDelegate(theme, self))
        self.setMouseTracking(True)
        self.setAccessibleName("Outline of the recipe")
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setDragDropMode(QAbstractItemView.DragDropMode.InternalMove)
        self.setDragDropOverwriteMode(False)
        self.setDefaultDropAction(Qt.DropAction.MoveAction)
        self.setDropIndicatorShown(True)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.lines.modelReset.connect(self._restore)
        self.lines.moved.connect(self.select)
        self.selectionModel().currentChanged.connect(self._current_changed)
        self.clicked.connect(self._clicked)
        self._restore()

    def select(self, path: str) -> None:
        """Goes to a line."""
        row = self.lines.row_of(path)
        if row >= 0:
            self.setCurrentIndex(self.lines.index(row))

    def keyPressEvent(self, event: QKeyEvent) -> None:
        line: Line | None = self.currentIndex().data(LINE)
        key = Qt.Key(event.key())
        if line is not None and key in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            if event.modifiers() & Qt.KeyboardModifier.ControlModifier:
                event.ignore()  # the window trains
            else:
                self.asked.emit("add" if line.what == "add" else "choose", line.path)
            return
        if line is not None and line.what in MOVED:
            if key == Qt.Key.Key_Delete:
                self.document.take(line.path)
                return
            if event.modifiers() & Qt.KeyboardModifier.AltModifier and key in (Qt.Key.Key_Up, Qt.Key.Key_Down):
                self.move_item(line.path, -1 if key == Qt.Key.Key_Up else 1)
                return
        super().keyPressEvent(event)

    def move_item(self, path: str, by: int) -> None:
        """Moves an item of a list up or down."""
        section, number = path.split(".")
        to = int(number) + by
        if 0 <= to < len(self.document.get(section, [])):
            self.path = f"{section}.{to}"
            self.document.move(section, int(number), to)
            self.select(self.path)

    def _clicked(self, index: Index) -> None:
        line: Line | None = index.data(LINE)
        if line is not None and line.what == "add":
            self.asked.emit("add", line.path)

    def _current_changed(self, index: Index, _before: Index) -> None:
        line: Line | None = index.data(LINE)
        if line is not None and line.what not in ("add", "list"):
            self.path = line.path
            self.selected.emit(line.path)

    def _restore(self) -> None:
        """After a reset: back to the same path, or to the nearest line that is left of its section."""
        path = self.path
        if self.lines.row_of(path) < 0 and "." in path:
            section, number = path.split(".")
            left = len(self.document.get(section, []))
            path = f"{section}.{min(int(number), left - 1)}" if left else "optimizer"
        self.select(path if self.lines.row_of(path) >= 0 else "")

    def line_rect(self, path: str) -> QRect:
        """Where a line is drawn, in the view's coordinates."""
        return self.visualRect(self.lines.index(self.lines.row_of(path)))
