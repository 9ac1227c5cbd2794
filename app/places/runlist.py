"""The list of runs: a model that keeps the selection while rows come and go, and a delegate that paints a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PySide6.QtCore import (
    QAbstractListModel,
    QMimeData,
    QModelIndex,
    QObject,
    QPersistentModelIndex,
    QPointF,
    QRect,
    QRectF,
    QSize,
    Qt,
    Signal,
)
from PySide6.QtGui import QPainter, QPen, QPolygonF
from PySide6.QtWidgets import QStyledItemDelegate, QStyleOptionViewItem, QWidget

from app import words
from app.icons import pixmap
from app.states import ACTIVE, state
from app.theme import SIZE_SMALL, SIZE_TEXT

Index = QModelIndex | QPersistentModelIndex
MIME = "application/x-athanor-run"
SPARK_WIDTH = 32
ROW_HEIGHT = 50


def main_metric(metrics: dict[str, Any]) -> str | None:
    """The series that a run is judged by at a glance: the first validation metric that is not the loss."""
    names = [name for name in metrics if name.startswith("val/")]
    better = [name for name in names if not name.endswith("/loss")]
    for name in (*better, *names, *(name for name in metrics if name == "train/loss")):
        return name
    return None


def progress(run: dict[str, Any]) -> float | None:
    """The share that is done, of a run that has begun and has an end."""
    if run["state"] not in (*ACTIVE, "stopped", "interrupted", "failed", "diverged"):
        return None
    if run["steps"]:
        return min(1.0, (run["step"] or 0) / run["steps"])
    if run["epochs"]:
        return min(1.0, (run["epoch"] or 0) / run["epochs"])
    return None


def time_left(run: dict[str, Any]) -> float | None:
    """Seconds that a live run still needs, at its mean speed so far."""
    share = progress(run)
    if run["state"] not in ("training", "paused") or not share or not run["seconds"]:
        return None
    return run["seconds"] * (1 - share) / share


def order(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Live ones first, then the queue in its order, then what has ended, newest first."""

    def place(run: dict[str, Any]) -> tuple[float, ...]:
        if run["state"] in ACTIVE:
            return (0, -(run["created"] or 0))
        if run["state"] == "queued":
            return (1, -(run["priority"] or 0), run["position"] or 0)
        return (2, -(run["created"] or 0))

    return sorted(runs, key=place)


class SparkCache:
    """Spark lines, read again only while their run goes on. Used on the reader's thread."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[tuple[Any, ...], list[float]]] = {}

    def read(self, log: Any, run: dict[str, Any]) -> list[float]:
        name = main_metric(run["metrics"]) or "train/loss"
        stamp = (name, run["step"], run["metrics"].get(name))
        kept = self._kept.get(run["id"])
        if kept is None or kept[0] != stamp:
            values = np.asarray(log.points(run["id"], name, width=SPARK_WIDTH).values)
            kept = (stamp, values[np.isfinite(values)].tolist())
            self._kept[run["id"]] = kept
        return kept[1]


SPARKS = SparkCache()


def read_runs(log: Any, archived: bool | None, limit: int, sparks: Sequence[str]) -> dict[str, Any]:
    """The runs in their order, and the spark lines of those on screen. Runs on the reader's thread."""
    runs = order(log.runs(archived=archived, kind="run", limit=limit))
    wanted = set(sparks)
    return {"runs": runs, "sparks": {run["id"]: SPARKS.read(log, run) for run in runs if run["id"] in wanted}}


class RunList(QAbstractListModel):
    """Runs that fit the filter. Rows move without losing what is selected."""

    moved = Signal(str, float)  # a queued run was dragged to this position of the queue

    def __init__(self, context: Any, parent: QObject):
        super().__init__(parent)
        self._context = context
        self._text = ""
        self._states: tuple[str, ...] = ()
        self.runs: list[dict[str, Any]] = []
        self.shown: list[dict[str, Any]] = []
        self.sparks: dict[str, list[float]] = {}
        self.complete = False

    def show_runs(self, runs: list[dict[str, Any]], sparks: dict[str, list[float]]) -> None:
        """Takes newly read runs; only rows that changed are painted again."""
        self.runs = runs
        self.complete = True
        changed = {run for run, line in sparks.items() if self.sparks.get(run) != line}
        self.sparks.update(sparks)
        self._update(changed)

    def filter(self, text: str, states: Sequence[str]) -> None:
        self._text, self._states = text.lower(), tuple(states)
        self._update(set())

    def row(self, run: str) -> int | None:
        return next((row for row, entry in enumerate(self.shown) if entry["id"] == run), None)

    def _fits(self, run: dict[str, Any]) -> bool:
        if self._states and run["state"] not in self._states:
            return False
        text = f"{run['name']} {run['state']} {' '.join(run['tags'] or [])}".lower()
        return all(part in text or (len(part) > 2 and part in run["id"]) for part in self._text.split())

    def _update(self, changed: set[str]) -> None:
        after = [run for run in self.runs if self._fits(run)]
        kept = {run["id"] for run in after}
        for row in range(len(self.shown) - 1, -1, -1):
            if self.shown[row]["id"] not in kept:
                self.beginRemoveRows(QModelIndex(), row, row)
                del self.shown[row]
                self.endRemoveRows()
        before = {run["id"]: run for run in self.shown}
        new = [run for run in after if run["id"] not in before]
        if new:
            self.beginInsertRows(QModelIndex(), len(self.shown), len(self.shown) + len(new) - 1)
            self.shown += new
            self.endInsertRows()
        if [run["id"] for run in self.shown] != [run["id"] for run in after]:
            self._reorder(after)
        self.shown = after
        rows = [row for row, run in enumerate(after) if run["id"] in changed or before.get(run["id"]) != run]
        if rows:
            self.dataChanged.emit(self.index(rows[0]), self.index(rows[-1]))

    def _reorder(self, after: list[dict[str, Any]]) -> None:
        self.layoutAboutToBeChanged.emit()
        places = {run["id"]: row for row, run in enumerate(after)}
        old = self.persistentIndexList()
        new = [self.index(places[self.shown[index.row()]["id"]]) for index in old]
        self.shown = after
        self.changePersistentIndexList(old, new)
        self.layoutChanged.emit()

    # -- Qt's questions ----------------------------------------------------------------------------------------------

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: B008
        return 0 if parent.isValid() else len(self.shown)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid() or index.row() >= len(self.shown):
            return None
        run = self.shown[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            return run["name"] or run["id"]
        if role in (Qt.ItemDataRole.ToolTipRole, Qt.ItemDataRole.AccessibleTextRole):
            said = [run["name"] or run["id"], state(run["state"]).word, row_text(run)]
            return ", ".join(text for text in [*said, run["message"] or ""] if text)
        return None

    def flags(self, index: Index) -> Qt.ItemFlag:
        flags = super().flags(index)
        if not index.isValid():
            return flags | Qt.ItemFlag.ItemIsDropEnabled
        queued = self.shown[index.row()]["state"] == "queued"
        return flags | Qt.ItemFlag.ItemIsDragEnabled if queued else flags

    def supportedDropActions(self) -> Qt.DropAction:
        return Qt.DropAction.MoveAction

    def mimeTypes(self) -> list[str]:
        return [MIME]

    def mimeData(self, indexes: Sequence[QModelIndex]) -> QMimeData:
        data = QMimeData()
        data.setData(MIME, self.shown[indexes[0].row()]["id"].encode())
        return data

    def dropMimeData(self, data: QMimeData, action: Qt.DropAction, row: int, column: int, parent: Index) -> bool:
        """Says where in the queue the run belongs now. The rows move when the engine has said so."""
        run = bytes(data.data(MIME).data()).decode()
        position = self.position(run, row if row >= 0 else parent.row() if parent.isValid() else len(self.shown))
        if position is not None:
            self.moved.emit(run, position)
        return False  # the view must not remove the row

    def position(self, run: str, row: int) -> float | None:
        """A place in the queue between the neighbours of a row."""
        queue = [
            (at, entry) for at, entry in enumerate(self.shown) if entry["state"] == "queued" and entry["id"] != run
        ]
        before = [entry["position"] for at, entry in queue if at < row]
        behind = [entry["position"] for at, entry in queue if at >= row]
        if before and behind:
            return (before[-1] + behind[0]) / 2
        return before[-1] + 1 if before else behind[0] - 1 if behind else None


def row_text(run: dict[str, Any]) -> str:
    """The second line of a row: how far, how long still, or when it ended."""
    if run["state"] == "queued":
        return "waits" if not run["priority"] else f"waits, priority {run['priority']}"
    share, left = progress(run), time_left(run)
    if run["state"] in ACTIVE:
        said = [state(run["state"]).word.lower()] if run["state"] != "training" else []
        if share is not None:
            said.append(f"{100 * share:.0f} %")
        if left is not None:
            said.append(f"{words.duration(left)} left")
        return " · ".join(said)
    return f"{state(run['state']).word.lower()} · {words.moment(run['ended'] or run['created'])}"


class RunDelegate(QStyledItemDelegate):
    """Paints state, name, main metric, progress with time left, and the spark line in the run's colour."""

    def __init__(self, context: Any, parent: QWidget):
        super().__init__(parent)
        self._context = context

    def sizeHint(self, option: QStyleOptionViewItem, index: Index) -> QSize:
        return QSize(200, ROW_HEIGHT)

    def paint(self, painter: QPainter, option: QStyleOptionViewItem, index: Index) -> None:
        model: RunList = index.model()  # type: ignore[assignment]
        run, theme = model.shown[index.row()], self._context.theme
        painter.save()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        style = option.widget.style()
        style.drawPrimitive(style.PrimitiveElement.PE_PanelItemViewItem, option, painter, option.widget)
        area: QRect = option.rect.adjusted(8, 6, -10, -6)
        look = state(run["state"])
        image = pixmap(look.icon, getattr(theme.tokens, look.token), 18, option.widget.devicePixelRatioF())
        painter.drawPixmap(area.left(), area.top() + 1, image)
        text = area.adjusted(26, 0, 0, 0)
        value = self._value(run)
        painter.setFont(theme.font(SIZE_TEXT))
        painter.setPen(theme.colour("text"))
        metrics = painter.fontMetrics()
        wide = metrics.horizontalAdvance(value)
        first = QRect(text.left(), text.top(), text.width(), 18)
        painter.drawText(first, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter, value)
        name = metrics.elidedText(run["name"] or run["id"], Qt.TextElideMode.ElideMiddle, text.width() - wide - 8)
        painter.drawText(first, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter, name)
        self._second_line(painter, run, QRect(text.left(), text.top() + 20, text.width(), 18), model)
        painter.restore()

    def _value(self, run: dict[str, Any]) -> str:
        name = main_metric(run["metrics"])
        return words.number(run["metrics"][name]) if name else ""

    def _second_line(self, painter: QPainter, run: dict[str, Any], area: QRect, model: RunList) -> None:
        theme = self._context.theme
        spark = model.sparks.get(run["id"], [])
        room = area.width() - (72 if len(spark) > 1 else 0)
        painter.setFont(theme.font(SIZE_SMALL))
        painter.setPen(theme.colour("muted"))
        text = painter.fontMetrics().elidedText(row_text(run), Qt.TextElideMode.ElideRight, room)
        where = Qt.AlignmentFlag.AlignLeft | (
            Qt.AlignmentFlag.AlignTop if run["state"] in ACTIVE else Qt.AlignmentFlag.AlignVCenter
        )
        painter.drawText(QRect(area.left(), area.top(), room, area.height()), where, text)
        share = progress(run)
        if share is not None and run["state"] in ACTIVE:
            painter.setPen(Qt.PenStyle.NoPen)
            track = QRectF(area.left(), area.bottom() - 2, room - 4, 3)
            painter.setBrush(theme.colour("line"))
            painter.drawRoundedRect(track, 1.5, 1.5)
            painter.setBrush(theme.colour(state(run["state"]).token))
            painter.drawRoundedRect(QRectF(track.left(), track.top(), track.width() * share, 3), 1.5, 1.5)
        if len(spark) > 1:
            box = QRectF(area.right() - 64, area.top() + 1, 64, area.height() - 3)
            draw_spark(painter, box, spark, theme.pen(self._context.colours.together([run["id"]])[0], 1.3))


def draw_spark(painter: QPainter, box: QRectF, values: Sequence[float], pen: QPen) -> None:
    """A small line over its box, lowest to highest."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = box.width() / (len(values) - 1)
    points = [
        QPointF(box.left() + step * number, box.bottom() - (value - low) / span * box.height())
        for number, value in enumerate(values)
    ]
    painter.setBrush(Qt.BrushStyle.NoBrush)
    painter.setPen(pen)
    painter.drawPolyline(QPolygonF(points))
