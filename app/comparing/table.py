"""The table of runs: a model over a listing, sorted and selected by key so that a refresh loses nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from PySide6.QtCore import (
    QAbstractTableModel,
    QByteArray,
    QItemSelection,
    QItemSelectionModel,
    QMimeData,
    QModelIndex,
    QPersistentModelIndex,
    QPoint,
    QRectF,
    QSize,
    Qt,
    Signal,
)
from PySide6.QtGui import QColor, QDrag, QKeyEvent, QMouseEvent, QPainter
from PySide6.QtWidgets import (
    QAbstractItemView,
    QHeaderView,
    QStyle,
    QStyledItemDelegate,
    QStyleOptionViewItem,
    QTableView,
    QWidget,
)

from app.comparing.listing import Column, Listing, Row, ordered
from app.icons import pixmap
from app.places import Context
from app.states import state
from app.theme import SPACE_S

MIME = "application/x-athanor-column"
ROW_HEIGHT = 26
WIDEST = 260
SAMPLED = 60  # rows that column widths are measured from
SHEET = """
QTableView::item { padding: 0 8px; }
QHeaderView::up-arrow, QHeaderView::down-arrow { image: none; width: 0; height: 0; }
"""
Index = QModelIndex | QPersistentModelIndex


class RunModel(QAbstractTableModel):
    """The rows of a listing in the order of one column."""

    renamed = Signal(str, str)  # a run's id and the name that a person gave it

    def __init__(self, context: Context, parent: QWidget | None = None):
        super().__init__(parent)
        self.context = context
        self.columns: tuple[Column, ...] = ()
        self.rows: list[Row] = []
        self.places: dict[str, int] = {}
        self.sorted_by, self.descending = "begun", True
        self._unsorted: Sequence[Row] = ()

    def show(self, listing: Listing) -> bool:
        """Takes a listing; True when rows or columns are not the same as before (and the view must select again)."""
        rows = self._in_order(listing.columns, listing.rows)
        same = self.columns == listing.columns and [row.key for row in self.rows] == [row.key for row in rows]
        self._unsorted = listing.rows
        if same:
            self.rows = rows
            if rows:
                self.dataChanged.emit(self.index(0, 0), self.index(len(rows) - 1, len(self.columns) - 1))
            return False
        self.beginResetModel()
        self.columns, self.rows = listing.columns, rows
        self.places = {row.key: i for i, row in enumerate(rows)}
        self.endResetModel()
        return True

    def _in_order(self, columns: Sequence[Column], rows: Sequence[Row]) -> list[Row]:
        at = next((i for i, column in enumerate(columns) if column.key == self.sorted_by), None)
        return list(rows) if at is None else ordered(rows, at, self.descending)

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Sorts by a column; selection follows its rows."""
        if not 0 <= column < len(self.columns):
            return
        key, descending = self.columns[column].key, order == Qt.SortOrder.DescendingOrder
        if (key, descending) == (self.sorted_by, self.descending):
            return
        self.sorted_by, self.descending = key, descending
        self.layoutAboutToBeChanged.emit()
        before = self.persistentIndexList()
        keys = [self.rows[index.row()].key for index in before]
        self.rows = self._in_order(self.columns, self._unsorted)
        self.places = {row.key: i for i, row in enumerate(self.rows)}
        moved = [self.index(self.places[key], index.column()) for key, index in zip(keys, before, strict=True)]
        self.changePersistentIndexList(before, moved)
        self.layoutChanged.emit()

    # -- what Qt asks ------------------------------------------------------------------------------------------------

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008 - Qt's signature
        return 0 if parent.isValid() else len(self.rows)

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(self.columns)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        row, column = self.rows[index.row()], self.columns[index.column()]
        if role in (Qt.ItemDataRole.DisplayRole, Qt.ItemDataRole.EditRole, Qt.ItemDataRole.AccessibleTextRole):
            return row.texts[index.column()]
        if role == Qt.ItemDataRole.TextAlignmentRole:
            right = column.number or isinstance(row.values[index.column()], int | float)
            side = Qt.AlignmentFlag.AlignRight if right else Qt.AlignmentFlag.AlignLeft
            return side | Qt.AlignmentFlag.AlignVCenter
        if role == Qt.ItemDataRole.ForegroundRole and row.values[index.column()] is None:
            return self.context.theme.colour("muted")
        if role == Qt.ItemDataRole.ToolTipRole:
            return self._tip(row, column, row.texts[index.column()])
        return None

    def _tip(self, row: Row, column: Column, text: str) -> str:
        if column.kind == "name":
            return f"{row.name}\n{', '.join(row.runs[:8])}" + (" …" if len(row.runs) > 8 else "")
        if column.kind == "metric" and column.path in row.metrics:
            cell = row.metrics[column.path]
            if cell["std"] is not None:
                return f"{column.path}\nmean {cell['mean']:.9g}\nstandard deviation {cell['std']:.4g}\n{cell['n']} runs"
            return f"{column.path}\n{cell['mean']:.9g}"
        return f"{column.path or column.title}: {text}"

    def flags(self, index: Index) -> Qt.ItemFlag:
        flags = Qt.ItemFlag.ItemIsSelectable | Qt.ItemFlag.ItemIsEnabled
        one = index.isValid() and self.rows[index.row()].key in self.rows[index.row()].runs
        named = one and self.columns[index.column()].kind == "name"
        return flags | Qt.ItemFlag.ItemIsEditable if named else flags

    def setData(self, index: Index, value: Any, role: int = Qt.ItemDataRole.EditRole) -> bool:
        row = self.rows[index.row()]
        if role != Qt.ItemDataRole.EditRole or str(value).strip() == row.name:
            return False
        self.renamed.emit(row.key, str(value).strip())
        return True

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if orientation != Qt.Orientation.Horizontal or not 0 <= section < len(self.columns):
            return None
        column = self.columns[section]
        if role == Qt.ItemDataRole.DisplayRole:
            return f"{column.title} {'↓' if self.descending else '↑'}" if column.key == self.sorted_by else column.title
        if role == Qt.ItemDataRole.ToolTipRole:
            return column.tip or column.title
        if role == Qt.ItemDataRole.TextAlignmentRole:
            side = Qt.AlignmentFlag.AlignRight if self._mostly_numbers(section) else Qt.AlignmentFlag.AlignLeft
            return side | Qt.AlignmentFlag.AlignVCenter
        return None

    def _mostly_numbers(self, section: int) -> bool:
        if self.columns[section].number:
            return True
        value = next((row.values[section] for row in self.rows if row.values[section] is not None), None)
        return isinstance(value, int | float)


class Header(QHeaderView):
    """A head whose columns can be dragged up, to the group chips."""

    def __init__(self, parent: QWidget):
        super().__init__(Qt.Orientation.Horizontal, parent)
        self.setSectionsClickable(True)
        self.setSectionsMovable(False)
        self.setHighlightSections(False)
        self.setStretchLastSection(False)
        self.setMinimumSectionSize(40)
        self._pressed: QPoint | None = None

    def mousePressEvent(self, event: QMouseEvent) -> None:
        self._pressed = event.position().toPoint()
        super().mousePressEvent(event)

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        self._pressed = None
        super().mouseReleaseEvent(event)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        if self._pressed is not None and event.position().y() < -2:
            model = self.model()
            section = self.logicalIndexAt(self._pressed)
            self._pressed = None
            if isinstance(model, RunModel) and model.columns[section].kind == "setting":
                self._drag(model.columns[section].path)
                return
        super().mouseMoveEvent(event)

    def _drag(self, path: str) -> None:
        mime = QMimeData()
        mime.setData(MIME, QByteArray(path.encode()))
        drag = QDrag(self)
        drag.setMimeData(mime)
        drag.exec(Qt.DropAction.CopyAction)


class RunDelegate(QStyledItemDelegate):
    """Paints a state with its mark, and a name with its run's colour."""

    def __init__(self, context: Context, parent: QWidget):
        super().__init__(parent)
        self.context = context

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        model = index.model()
        assert isinstance(model, RunModel)
        row, kind = model.rows[index.row()], model.columns[index.column()].kind
        if kind not in ("state", "name"):
            super().paint(painter, option, index)
            return
        self.initStyleOption(option, index)
        text, option.text = option.text, ""
        widget = option.widget
        widget.style().drawControl(QStyle.ControlElement.CE_ItemViewItem, option, painter, widget)
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        area = option.rect
        mark = QRectF(area.left() + 8, area.center().y() - 4, 9, 9)
        if kind == "state":
            known = state(row.state) if row.state else None
            if known is not None:
                ratio = painter.device().devicePixelRatioF()
                colour = self.context.theme.colour(known.token).name()
                painter.drawPixmap(area.left() + 6, area.center().y() - 6, pixmap(known.icon, colour, 14, ratio))
        else:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(colour_of(self.context, row.runs))
            painter.drawRoundedRect(mark.adjusted(-1, 0, 1, 0), 2, 2)
        words = area.adjusted(26, 0, -4, 0)
        painter.setPen(self.context.theme.colour("text"))
        shown = option.fontMetrics.elidedText(text, Qt.TextElideMode.ElideRight, words.width())
        painter.drawText(words, Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, shown)
        painter.restore()

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        size = super().sizeHint(option, index)
        return QSize(size.width() + 2 * SPACE_S, ROW_HEIGHT)


def colour_of(context: Context, runs: Sequence[str]) -> QColor:
    """A run's colour; a group has that of its first run."""
    return context.theme.series(context.colours.index(min(runs)))


class RunTable(QTableView):
    """The table. Keys, copying and menus are the place's; it says what is selected, opened, and asked for."""

    picked = Signal()
    opened = Signal(str)  # a row's key, by double click or Return
    sorted_anew = Signal()

    def __init__(self, context: Context, name: str, parent: QWidget | None = None):
        super().__init__(parent)
        self.context = context
        self.runs = RunModel(context, self)
        self._widths: dict[str, int] = {}
        self._restoring = False
        self._wanted: set[str] = set()
        self.setHorizontalHeader(Header(self))
        self.setModel(self.runs)
        self.setItemDelegate(RunDelegate(context, self))
        self.setAccessibleName(name)
        self.setStyleSheet(SHEET)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setShowGrid(False)
        self.setWordWrap(False)
        self.setTabKeyNavigation(False)
        self.setEditTriggers(QAbstractItemView.EditTrigger.EditKeyPressed)
        self.setMouseTracking(True)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        self.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        self.horizontalHeader().sectionResized.connect(self._resized)
        self.horizontalHeader().setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.setSortingEnabled(True)
        self.horizontalHeader().sortIndicatorChanged.connect(lambda *_: self.sorted_anew.emit())
        self.selectionModel().selectionChanged.connect(self._selected)
        self.doubleClicked.connect(lambda index: self.opened.emit(self.runs.rows[index.row()].key))
        context.theme.changed.connect(self.viewport().update)

    def show_listing(self, listing: Listing) -> None:
        """Takes new data; selection, sort and widths stay."""
        wanted = self._wanted or set(self.selected())
        at = self.currentIndex().row()
        current = self.runs.rows[at].key if 0 <= at < len(self.runs.rows) else ""
        self._restoring = True
        self.horizontalHeader().blockSignals(True)
        changed = self.runs.show(listing)
        self._show_indicator()
        self.horizontalHeader().blockSignals(False)
        if changed:
            self._fit()
            self.select(wanted, current)
        self._restoring = False

    def _show_indicator(self) -> None:
        order = Qt.SortOrder.DescendingOrder if self.runs.descending else Qt.SortOrder.AscendingOrder
        at = next((i for i, column in enumerate(self.runs.columns) if column.key == self.runs.sorted_by), -1)
        self.horizontalHeader().setSortIndicator(at, order)

    def sort_by(self, key: str, descending: bool) -> None:
        """Sorts by a column's key, also one that comes with a later listing."""
        at = next((i for i, column in enumerate(self.runs.columns) if column.key == key), None)
        if at is None:
            self.runs.sorted_by, self.runs.descending = key, descending
        else:
            self.sortByColumn(at, Qt.SortOrder.DescendingOrder if descending else Qt.SortOrder.AscendingOrder)

    # -- selection ---------------------------------------------------------------------------------------------------

    def selected(self) -> list[str]:
        """The keys of the selected rows, from top to bottom."""
        return [self.runs.rows[i].key for i in sorted(index.row() for index in self.selectionModel().selectedRows())]

    def selected_rows(self) -> list[Row]:
        places = self.runs.places
        return [self.runs.rows[places[key]] for key in self.selected()]

    def select(self, keys: Iterable[str], current: str = "") -> None:
        """Selects these rows and no others; keys that are not listed yet are selected when they come."""
        keys = list(keys)
        self._wanted = set() if all(key in self.runs.places for key in keys) else set(keys)
        selection = QItemSelection()
        last = len(self.runs.columns) - 1
        for key in keys:
            place = self.runs.places.get(key)
            if place is not None:
                selection.select(self.runs.index(place, 0), self.runs.index(place, last))
        model = self.selectionModel()
        if current in self.runs.places:
            at = self.runs.index(self.runs.places[current], 0)
            model.setCurrentIndex(at, QItemSelectionModel.SelectionFlag.NoUpdate)
        before, self._restoring = self._restoring, True
        model.select(selection, QItemSelectionModel.SelectionFlag.ClearAndSelect)
        self._restoring = before
        if not before:
            self.picked.emit()

    def _selected(self) -> None:
        if not self._restoring:
            self._wanted = set()
            self.picked.emit()

    # -- widths ------------------------------------------------------------------------------------------------------

    def _fit(self) -> None:
        """Widths from the longest text of some rows; those that a person has set stay."""
        metrics = self.fontMetrics()
        self.setUpdatesEnabled(False)
        for i, column in enumerate(self.runs.columns):
            texts = [row.texts[i] for row in self.runs.rows[:SAMPLED]]
            longest = sorted(texts, key=len)[-3:]
            width = max((metrics.horizontalAdvance(text) for text in longest), default=0) + 24
            width += 18 if column.kind in ("state", "name") else 0
            width = max(width, metrics.horizontalAdvance(column.title) + 36, 56)
            self.setColumnWidth(i, self._widths.get(column.key, min(width, WIDEST)))
        self.setUpdatesEnabled(True)

    def _resized(self, section: int, _old: int, width: int) -> None:
        if not self._restoring and section < len(self.runs.columns):
            self._widths[self.runs.columns[section].key] = width

    @property
    def widths(self) -> dict[str, int]:
        """The widths that a person has set, by the column's key."""
        return dict(self._widths)

    def set_widths(self, widths: dict[str, int]) -> None:
        self._widths = dict(widths)

    # -- keys --------------------------------------------------------------------------------------------------------

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and self.currentIndex().isValid():
            self.opened.emit(self.runs.rows[self.currentIndex().row()].key)
            return
        if event.key() == Qt.Key.Key_Escape and self.selected():
            self.clearSelection()
            return
        super().keyPressEvent(event)
