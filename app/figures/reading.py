"""Figures that are read: texts, alone or side by side with their differences marked, and tables."""

from __future__ import annotations

import difflib
import math
import re
from typing import Any

from PySide6.QtCore import QAbstractTableModel, QModelIndex, QPersistentModelIndex, Qt, QTimer
from PySide6.QtGui import QColor, QGuiApplication, QKeySequence, QShortcut, QTextCharFormat, QTextCursor
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QPlainTextEdit,
    QSplitter,
    QTableView,
    QTextEdit,
    QVBoxLayout,
    QWidget,
)

from app.figures.view import Holder, csv_of, draws, many, short
from app.places import label
from app.theme import SIZE_SMALL, Theme

WORD = re.compile(r"\s+|\w+|[^\w\s]")
LONG = 4000  # words of one changed stretch: longer ones are marked whole, since comparing them takes too long
SENTENCE = 48  # letters: a longer cell is a sentence
WRAPPED = 200  # rows
Index = QModelIndex | QPersistentModelIndex

Span = tuple[int, int]


def differences(before: str, after: str) -> tuple[list[Span], list[Span]]:
    """Where words of the first text are not in the second, and the other way round: (start, end) in characters.

    Lines are compared first, then the words inside the stretches of lines that differ.
    """
    one, two = before.splitlines(keepends=True), after.splitlines(keepends=True)
    gone: list[Span] = []
    come: list[Span] = []
    starts = _starts(one), _starts(two)
    for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(None, one, two, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        start, other = starts[0][a0], starts[1][b0]
        _words(before[start : starts[0][a1]], after[other : starts[1][b1]], start, other, gone, come)
    return gone, come


def _starts(lines: list[str]) -> list[int]:
    at, found = 0, [0]
    for line in lines:
        at += len(line)
        found.append(at)
    return found


def _words(before: str, after: str, start: int, other: int, gone: list[Span], come: list[Span]) -> None:
    one, two = WORD.findall(before), WORD.findall(after)
    at, to = _starts(one), _starts(two)
    if len(one) * len(two) > LONG * LONG:
        gone.append((start, start + at[-1]))
        come.append((other, other + to[-1]))
        return
    for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(None, one, two, autojunk=False).get_opcodes():
        if tag != "equal":
            if a1 > a0:
                gone.append((start + at[a0], start + at[a1]))
            if b1 > b0:
                come.append((other + to[b0], other + to[b1]))


@draws("text")
class TextView(Holder):
    """A text, or texts side by side that scroll together; of two, the words that differ may be marked."""

    def __init__(self, theme: Theme):
        super().__init__(theme)
        self.edits: list[QPlainTextEdit] = []
        self.spans: tuple[list[Span], list[Span]] = ([], [])
        self.row = QSplitter()
        self.row.setHandleWidth(8)
        self.row.setChildrenCollapsible(False)
        self.row.setStyleSheet("QSplitter::handle { background: transparent; }")
        self.column.addWidget(self.row)
        self._following = False

    def prepare(self) -> None:
        columns = self.figure.get("columns") or [{"title": "", "text": self.figure.get("text", "")}]
        if [edit.property("head") for edit in self.edits] != [str(column.get("title", "")) for column in columns]:
            self._build([str(column.get("title", "")) for column in columns])
        texts = [str(column["text"]) for column in columns]
        for edit, text in zip(self.edits, texts, strict=True):
            if edit.toPlainText() != text:
                at = edit.verticalScrollBar().value()
                edit.setPlainText(text)
                edit.verticalScrollBar().setValue(at)
        self.spans = differences(*texts) if self.figure.get("difference") else ([], [])
        self._mark()

    def _build(self, heads: list[str]) -> None:
        while self.row.count():
            if (widget := self.row.widget(0)) is not None:
                widget.setParent(None)
                widget.deleteLater()
        self.edits = []
        for head in heads:
            box = QWidget()
            column = QVBoxLayout(box)
            column.setContentsMargins(0, 0, 0, 0)
            column.setSpacing(2)
            if head:
                column.addWidget(label(head, "section", wrap=True))
            edit = QPlainTextEdit()
            edit.setReadOnly(True)
            edit.setProperty("head", head)
            edit.setAccessibleName(head or "Text")
            edit.setMinimumWidth(80)
            edit.verticalScrollBar().valueChanged.connect(lambda at, edit=edit: self._follow(edit, at))
            column.addWidget(edit, 1)
            self.row.addWidget(box)
            self.edits.append(edit)
        self.restyle()

    def _follow(self, moved: QPlainTextEdit, at: int) -> None:
        """The others scroll to the same share."""
        if self._following:
            return
        self._following = True
        share = at / max(moved.verticalScrollBar().maximum(), 1)
        for edit in self.edits:
            if edit is not moved:
                edit.verticalScrollBar().setValue(round(share * edit.verticalScrollBar().maximum()))
        self._following = False

    def _mark(self) -> None:
        """Words that are gone are struck through, new ones underlined: not told by colour alone."""
        for edit, spans, token in zip(self.edits, self.spans, ("bad", "good"), strict=False):
            look = QTextCharFormat()
            back = QColor(self.theme.colour(token))
            back.setAlphaF(0.22)
            look.setBackground(back)
            look.setFontStrikeOut(token == "bad")
            look.setFontUnderline(token == "good")
            marks = []
            for start, end in spans:
                mark = QTextEdit.ExtraSelection()
                mark.format = look
                cursor = QTextCursor(edit.document())
                cursor.setPosition(start)
                cursor.setPosition(end, QTextCursor.MoveMode.KeepAnchor)
                mark.cursor = cursor
                marks.append(mark)
            edit.setExtraSelections(marks)

    def restyle(self) -> None:
        for edit in self.edits:
            edit.setFont(self.theme.font(SIZE_SMALL + 1, fixed=True))
        self._mark()

    def height_for(self, width: int) -> int:
        per = max(width // max(len(self.edits), 1) // 8, 10)
        rows = max(
            (sum(1 + len(line) // per for line in edit.toPlainText().splitlines()) for edit in self.edits), default=1
        )
        return min(max(40 + 17 * rows, 90), 420)

    def text(self) -> str:
        columns = self.figure.get("columns") or [self.figure]
        said = [
            f"{column.get('title') or 'Text'}: {many(len(str(column['text']).split()), 'word')}. "
            f"{str(column['text'])[:300]}"
            for column in columns
        ]
        if self.figure.get("difference"):
            said.append(f"{many(len(self.spans[0]), 'stretch', 'stretches')} gone, {len(self.spans[1])} new.")
        return " ".join(said)

    def csv(self) -> str | None:
        columns = self.figure.get("columns") or [self.figure]
        return "\n\n".join(f"{column['title']}\n{column['text']}" if "columns" in self.figure else str(column["text"])
                           for column in columns)  # fmt: skip


class Rows(QAbstractTableModel):
    """The cells of a table; numbers are told in four digits and sorted as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: list[str] = []
        self.rows: list[list[Any]] = []
        self.wrapped = False
        self.numeric: list[bool] = []  # columns of numbers stand at the right

    def take(self, heads: list[str], rows: list[list[Any]]) -> None:
        self.beginResetModel()
        self.heads, self.rows = heads, rows
        columns = list(zip(*rows, strict=True)) or [()] * len(heads)
        self.numeric = [
            all(v is None or is_number(v) for v in column) and any(map(is_number, column)) for column in columns
        ]
        self.endResetModel()

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008 - Qt's signature
        return 0 if parent.isValid() else len(self.rows)

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(self.heads)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        value = self.rows[index.row()][index.column()]
        if role == Qt.ItemDataRole.DisplayRole:
            return cell(value)
        if role == Qt.ItemDataRole.ToolTipRole:
            return "" if value is None else str(value)
        if role == Qt.ItemDataRole.TextAlignmentRole:
            side = Qt.AlignmentFlag.AlignRight if self.numeric[index.column()] else Qt.AlignmentFlag.AlignLeft
            return side | (Qt.AlignmentFlag.AlignTop if self.wrapped else Qt.AlignmentFlag.AlignVCenter)
        return None

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if orientation != Qt.Orientation.Horizontal:
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return self.heads[section]
        if role == Qt.ItemDataRole.TextAlignmentRole and self.numeric[section]:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        return None

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        if not 0 <= column < len(self.heads):
            return
        self.layoutAboutToBeChanged.emit()
        falling = order == Qt.SortOrder.DescendingOrder
        filled = [row for row in self.rows if not _empty(row[column])]
        filled.sort(key=lambda row: _key(row[column]), reverse=falling)
        self.rows = filled + [row for row in self.rows if _empty(row[column])]  # what is missing stays at the end
        self.layoutChanged.emit()


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) < 100_000:
        return str(value).replace("-", "−")
    return short(float(value), 4) if is_number(value) else str(value)


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _key(value: Any) -> tuple[int, Any]:
    return (0, value) if is_number(value) or isinstance(value, bool) else (1, str(value).casefold())


@draws("table")
class TableView(Holder):
    """A table that can be sorted by a click on a head and copied from."""

    def __init__(self, theme: Theme):
        super().__init__(theme)
        self.model = Rows()
        self.table = QTableView()
        self.table.setModel(self.model)
        self.table.verticalHeader().hide()
        self.table.verticalHeader().setDefaultSectionSize(24)
        self.table.setShowGrid(False)
        self.table.setAlternatingRowColors(True)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setTabKeyNavigation(False)
        self.table.setWordWrap(False)
        self.table.setStyleSheet("QTableView::item { padding: 2px 6px; }")
        header = self.table.horizontalHeader()
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        header.setStretchLastSection(True)
        header.setSectionResizeMode(QHeaderView.ResizeMode.Interactive)
        self._settle = QTimer(self)  # rows follow the columns' widths when those have come to rest
        self._settle.setSingleShot(True)
        self._settle.timeout.connect(self._resize_rows)
        header.sectionResized.connect(lambda *_: self._settle.start(0))
        copy = QShortcut(QKeySequence(QKeySequence.StandardKey.Copy), self.table)
        copy.setContext(Qt.ShortcutContext.WidgetShortcut)
        copy.activated.connect(self.copy)
        self.column.addWidget(self.table)

    def prepare(self) -> None:
        fresh = self.model.heads != list(self.figure["columns"])
        header = self.table.horizontalHeader()
        by, order = header.sortIndicatorSection(), header.sortIndicatorOrder()
        self.model.take(list(self.figure["columns"]), [list(row) for row in self.figure["rows"]])
        if fresh:
            self.table.setSortingEnabled(False)
            header.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
            self.table.setSortingEnabled(True)
            self.table.resizeColumnsToContents()
            for column in range(len(self.model.heads) - 1):
                self.table.setColumnWidth(column, min(self.table.columnWidth(column) + 12, 320))
        else:
            self.model.sort(by, order)
        self._wrap()

    def _wrap(self) -> None:
        """Sentences in cells are read whole, on several lines; rows of short words stay low."""
        few = len(self.model.rows) <= WRAPPED
        long = few and any(isinstance(v, str) and len(v) > SENTENCE for row in self.model.rows for v in row)
        self.model.wrapped = long
        self.table.setWordWrap(long)
        self._resize_rows()
        self.table.setTextElideMode(Qt.TextElideMode.ElideNone if long else Qt.TextElideMode.ElideRight)

    def _resize_rows(self) -> None:
        if self.model.wrapped:
            self.table.resizeRowsToContents()

    def copy(self) -> None:
        """The selected rows (or all) with tabs between the columns, as they are sorted."""
        picked = sorted({index.row() for index in self.table.selectedIndexes()}) or range(len(self.model.rows))
        lines = ["\t".join(self.model.heads)]
        lines += ["\t".join("" if v is None else str(v) for v in self.model.rows[row]) for row in picked]
        QGuiApplication.clipboard().setText("\n".join(lines))

    def height_for(self, width: int) -> int:
        rows = sum(self.table.rowHeight(row) for row in range(len(self.model.rows)))
        return min(max(32 + rows + 6, 80), 420)

    def text(self) -> str:
        heads = ", ".join(self.model.heads)
        first = "; ".join(", ".join(cell(v) for v in row) for row in self.model.rows[:5])
        return f"Table of {many(len(self.model.rows), 'row')} with the columns {heads}. {first}"

    def csv(self) -> str | None:
        return csv_of(self.model.heads, (["" if v is None else v for v in row] for row in self.model.rows))
