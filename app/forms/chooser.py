"""Lists of parts: their model, how a line is drawn, finding them by words, and the popup that chooses one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import (
    QAbstractListModel,
    QEvent,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    QPoint,
    QRect,
    QSize,
    Qt,
    Signal,
)
from PySide6.QtGui import QColor, QFont, QFontMetrics, QKeyEvent, QPainter, QPalette
from PySide6.QtWidgets import (
    QFrame,
    QLabel,
    QLineEdit,
    QListView,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QVBoxLayout,
    QWidget,
)

from app.forms.evidence import Measured, spoken
from app.forms.fields import entry_line
from app.theme import SIZE_SMALL, SPACE_S, SPACE_XS
from engine.catalog import Entry

Index = QModelIndex | QPersistentModelIndex
ENTRY = Qt.ItemDataRole.UserRole
EVIDENCE = Qt.ItemDataRole.UserRole + 1
REASON = Qt.ItemDataRole.UserRole + 2
LINE_HEIGHT = 44
POPUP = QSize(460, 420)


class Finder:
    """Finds parts by words: each word must occur somewhere; names count most."""

    def __init__(self, entries: Sequence[Entry]):
        self.entries = sorted(entries, key=lambda entry: entry.name.lower())
        self._texts = [_searched(entry) for entry in self.entries]

    def find(self, text: str) -> list[Entry]:
        words = text.lower().split()
        if not words:
            return list(self.entries)
        ranked = []
        for entry, (name, rest) in zip(self.entries, self._texts, strict=True):
            if all(word in name or word in rest for word in words):
                ranked.append((sum(_rank(word, name) for word in words), entry.name.lower(), entry))
        return [entry for _, _, entry in sorted(ranked, key=lambda item: item[:2])]


def _searched(entry: Entry) -> tuple[str, str]:
    papers = " ".join(f"{paper.get('title', '')} {paper.get('arxiv', '')}" for paper in entry.papers)
    rest = f"{entry.summary} {entry.slot} {entry.kind} {papers} {entry.helps}"
    return f"{entry.name} {entry.id}".lower(), rest.lower()


def _rank(word: str, name: str) -> int:
    return 0 if name.startswith(word) else 1 if word in name else 2


class EntryModel(QAbstractListModel):
    """Parts as rows."""

    def __init__(self, parent: QObject | None = None):
        super().__init__(parent)
        self.entries: list[Entry] = []
        self.evidence: Measured = {}
        self.reasons: Mapping[str, str] = {}

    def show_entries(self, entries: Sequence[Entry]) -> None:
        if [entry.id for entry in entries] != [entry.id for entry in self.entries] or entries != self.entries:
            self.beginResetModel()
            self.entries = list(entries)
            self.endResetModel()

    def show_evidence(self, evidence: Measured) -> None:
        """What was measured, by part."""
        self.evidence = evidence
        if self.entries:
            self.dataChanged.emit(self.index(0), self.index(len(self.entries) - 1), [EVIDENCE])

    def show_reasons(self, reasons: Mapping[str, str]) -> None:
        """Which parts do not fit, and why."""
        self.reasons = reasons
        if self.entries:
            self.dataChanged.emit(self.index(0), self.index(len(self.entries) - 1), [REASON])

    def row_of(self, part: str) -> int:
        return next((row for row, entry in enumerate(self.entries) if entry.id == part), -1)

    def rowCount(self, parent: Index | None = None) -> int:
        return 0 if parent is not None and parent.isValid() else len(self.entries)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid() or index.row() >= len(self.entries):
            return None
        entry = self.entries[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return entry.name
        if role == ENTRY:
            return entry
        if role == EVIDENCE:
            return next(iter(self.evidence.get(entry.id, ())), None)
        reason = self.reasons.get(entry.id, "")
        if role == REASON:
            return reason
        if role == Qt.ItemDataRole.ToolTipRole and reason:
            return f"{entry.summary}\nDoes not fit: {reason}"
        if role == Qt.ItemDataRole.ToolTipRole:
            measured = next(iter(self.evidence.get(entry.id, ())), None)
            return f"{entry.summary}\n{spoken(measured)}" if measured else entry.summary
        if role == Qt.ItemDataRole.AccessibleTextRole:
            return f"{entry.name}, {entry.slot}. {f'Does not fit: {reason}' if reason else entry_line(entry)}"
        return None


class EntryDelegate(QStyledItemDelegate):
    """A part in two lines: its name with the slot beside it, and one line of words."""

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        return QSize(120, LINE_HEIGHT)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        entry: Entry | None = index.data(ENTRY)
        if entry is None:
            return
        palette: QPalette = option.palette
        rect: QRect = option.rect
        draw_background(painter, option)
        inner = rect.adjusted(12, 4, -12, -4)
        bold, small = QFont(option.font), QFont(option.font)
        bold.setWeight(QFont.Weight.DemiBold)
        small.setPixelSize(SIZE_SMALL)
        muted = palette.color(QPalette.ColorRole.PlaceholderText)
        top = QRect(inner.left(), inner.top(), inner.width(), inner.height() // 2)
        bottom = QRect(inner.left(), top.bottom() + 1, inner.width(), inner.height() - top.height())
        right = draw_chip(painter, top, entry.slot, small, palette)
        evidence = index.data(EVIDENCE)
        if evidence:
            right = self._spark(
                painter, QRect(top.left(), top.top(), right - top.left(), top.height()), evidence, option
            )
        reason = index.data(REASON)
        painter.setFont(bold)
        painter.setPen(muted if reason else palette.color(QPalette.ColorRole.Text))
        draw_text(painter, QRect(top.left(), top.top(), right - top.left() - SPACE_S, top.height()), entry.name)
        painter.setFont(small)
        painter.setPen(muted)
        draw_text(painter, bottom, f"Does not fit: {reason}" if reason else entry_line(entry))

    def _spark(self, painter: QPainter, rect: QRect, evidence: Mapping[str, Any], option: QStyleOptionViewItem) -> int:
        """A dot that says whether the claim held here; returns the left edge of what it took."""
        accent = option.palette.color(QPalette.ColorRole.Accent)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(accent)
        painter.setBrush(accent if evidence.get("holds") else Qt.BrushStyle.NoBrush)
        painter.drawEllipse(QPoint(rect.right() - 10, rect.center().y() + 1), 3, 3)
        painter.restore()
        return rect.right() - 18


def draw_background(painter: QPainter, option: QStyleOptionViewItem) -> None:
    """Selection, hover and focus of a line."""
    palette: QPalette = option.palette
    state: QStyle.StateFlag = option.state
    rect: QRect = option.rect
    if state & QStyle.StateFlag.State_Selected:
        painter.fillRect(rect, palette.color(QPalette.ColorRole.Highlight))
        if state & QStyle.StateFlag.State_HasFocus:
            painter.fillRect(rect.left(), rect.top(), 3, rect.height(), palette.color(QPalette.ColorRole.Accent))
    elif state & QStyle.StateFlag.State_MouseOver:
        colour = QColor(palette.color(QPalette.ColorRole.Text))
        colour.setAlpha(12)
        painter.fillRect(rect, colour)


def draw_text(painter: QPainter, rect: QRect, text: str, right: bool = False) -> None:
    """One line, cut with an ellipsis."""
    cut = painter.fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, max(rect.width(), 0))
    side = Qt.AlignmentFlag.AlignRight if right else Qt.AlignmentFlag.AlignLeft
    painter.drawText(rect, int(side | Qt.AlignmentFlag.AlignVCenter), cut)


def draw_chip(painter: QPainter, rect: QRect, text: str, font: QFont, palette: QPalette) -> int:
    """A chip at the right end of a rectangle; returns its left edge."""
    width = QFontMetrics(font).horizontalAdvance(text) + 12
    chip = QRect(rect.right() - width, rect.center().y() - 7, width, 16)
    painter.save()
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setPen(palette.color(QPalette.ColorRole.Mid))
    painter.setBrush(palette.color(QPalette.ColorRole.AlternateBase))
    painter.drawRoundedRect(chip, 6, 6)
    painter.setFont(font)
    painter.setPen(palette.color(QPalette.ColorRole.PlaceholderText))
    painter.drawText(chip, int(Qt.AlignmentFlag.AlignCenter), text)
    painter.restore()
    return chip.left()


class EntryList(QListView):
    """A list of parts, quick at any length."""

    def __init__(self, name: str):
        super().__init__()
        self.setUniformItemSizes(True)
        self.setMouseTracking(True)
        self.setVerticalScrollMode(QListView.ScrollMode.ScrollPerPixel)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAccessibleName(name)
        self.entries = EntryModel(self)
        self.setModel(self.entries)
        self.setItemDelegate(EntryDelegate(self))

    @property
    def current(self) -> Entry | None:
        entry = self.currentIndex().data(ENTRY)
        return entry if isinstance(entry, Entry) else None


class Chooser(QFrame):
    """A popup with a search line over the parts of one kind. Typing filters, arrows move, Enter chooses."""

    chosen = Signal(str)

    def __init__(self, entries: Sequence[Entry], kind: str, current: str | None = None, parent: QWidget | None = None):
        super().__init__(parent, Qt.WindowType.Popup)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setObjectName("chooser")
        self.setProperty("role", "panel")
        self.setAccessibleName(f"Choose: {kind}")
        self.finder = Finder(entries)
        self.search = QLineEdit()
        self.search.setPlaceholderText(f"Search {len(entries)} of kind {kind}")
        self.search.setAccessibleName(f"Search parts of kind {kind}")
        self.search.setClearButtonEnabled(True)
        self.list = EntryList(f"Parts of kind {kind}")
        self.list.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        words = "Nothing has these words. Try fewer of them."
        self.none = QLabel(words if entries else f"The catalog has no part of kind {kind}.")
        self.none.setProperty("role", "muted")
        self.none.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.none.hide()
        column = QVBoxLayout(self)
        column.setContentsMargins(SPACE_S, SPACE_S, SPACE_S, SPACE_S)
        column.setSpacing(SPACE_XS)
        for widget in (self.search, self.list, self.none):
            column.addWidget(widget)
        self.setFocusProxy(self.search)
        self.search.textChanged.connect(self._filter)
        self.search.installEventFilter(self)
        self.list.clicked.connect(self._take)
        self._filter("")
        row = self.list.entries.row_of(current) if current else 0
        self.list.setCurrentIndex(self.list.entries.index(max(row, 0)))

    def show_reasons(self, reasons: Mapping[str, str]) -> None:
        """Which of the parts do not fit, and why: they turn grey, and can be chosen all the same."""
        self.list.entries.show_reasons(reasons)

    def open_at(self, widget: QWidget) -> None:
        """Shows it under a widget, inside the screen."""
        height = min(POPUP.height(), 60 + LINE_HEIGHT * max(len(self.finder.entries), 2))
        size = QSize(max(POPUP.width(), min(widget.width(), 640)), height)
        screen = widget.screen().availableGeometry()
        at = widget.mapToGlobal(QPoint(0, widget.height() + 2))
        x = max(screen.left(), min(at.x(), screen.right() - size.width()))
        y = at.y() if at.y() + size.height() <= screen.bottom() else max(screen.top(), screen.bottom() - size.height())
        self.setGeometry(QRect(QPoint(x, y), size))
        self.show()
        self.search.setFocus()
        self.list.scrollTo(self.list.currentIndex())

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if watched is self.search and event.type() == QEvent.Type.KeyPress and isinstance(event, QKeyEvent):
            key = Qt.Key(event.key())
            page = max(1, self.list.height() // LINE_HEIGHT - 1)
            moves = {Qt.Key.Key_Down: 1, Qt.Key.Key_Up: -1, Qt.Key.Key_PageDown: page, Qt.Key.Key_PageUp: -page}
            if key in moves:
                rows = self.list.entries.rowCount()
                row = min(max(self.list.currentIndex().row() + moves[key], 0), rows - 1)
                self.list.setCurrentIndex(self.list.entries.index(row))
                return True
            if key in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
                self._take(self.list.currentIndex())
                return True
            if key == Qt.Key.Key_Escape:
                self.close()
                return True
        return super().eventFilter(watched, event)

    def _filter(self, text: str) -> None:
        found = self.finder.find(text)
        self.list.entries.show_entries(found)
        self.none.setVisible(not found)
        self.list.setVisible(bool(found))
        if found:
            self.list.setCurrentIndex(self.list.entries.index(0))

    def _take(self, index: Index) -> None:
        entry = index.data(ENTRY)
        if isinstance(entry, Entry):
            self.close()
            self.chosen.emit(entry.id)
