"""Plots of runs as points and bars: one against another with the Pareto front, one metric as bars, seeds as a band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QMouseEvent, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import (
    QFrame,
    QGraphicsGridLayout,
    QLabel,
    QMenu,
    QScrollArea,
    QToolTip,
    QVBoxLayout,
    QWidget,
)

from app import words
from app.charts import NumberAxis
from app.exports import add_exports
from app.places import Context
from app.theme import SIZE_SMALL, SPACE_S
from engine import comparison
from engine.statistics import pareto

SYMBOLS = ("o", "s", "t", "d", "star", "x")
CLOSE = 6.0  # pixels within which the mouse is on a point


@dataclass(frozen=True)
class Axis:
    """What runs along an axis: a word for it, whether more is better (None: neither), and words for its categories."""

    title: str
    higher: bool | None = None
    logarithmic: bool = False
    ticks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Point:
    """One run or group: where it stands, its colour's number, and whether it is selected."""

    key: str
    name: str
    x: float
    y: float
    colour: int
    selected: bool = False


def front_of(points: Sequence[Point], x: Axis, y: Axis) -> list[int]:
    """The points that no other beats in both directions, from left to right; none where an axis has no better end."""
    if x.higher is None or y.higher is None or not points:
        return []
    table = np.array([[point.x, point.y] for point in points])
    table[~np.isfinite(table).all(axis=1)] = np.nan
    kept = np.flatnonzero(pareto(table, [x.higher, y.higher]))
    return [int(i) for i in kept[np.lexsort((table[kept, 1], table[kept, 0]))]]


class WordAxis(NumberAxis):
    """An axis of numbers, or of a few words at 0, 1, 2 ..."""

    def __init__(self, side: str):
        super().__init__(side)
        self.words: tuple[str, ...] = ()

    def tickValues(self, low: float, high: float, size: float) -> list[tuple[float, list[float]]]:
        if not self.words:
            return super().tickValues(low, high, size)
        return [(1.0, [float(i) for i in range(len(self.words)) if low <= i <= high])]

    def tickStrings(self, values: list[float], scale: float, spacing: float) -> list[str]:
        if not self.words:
            return super().tickStrings(values, scale, spacing)
        return [self.words[int(value)] for value in values]


class PointView(pg.ViewBox):
    """Wheel zooms, drag pans, double click shows all, right click opens the menu."""

    reset = Signal()
    asked = Signal(QPointF)

    def __init__(self) -> None:
        super().__init__(enableMenu=False)

    def mouseDoubleClickEvent(self, event: Any) -> None:
        self.reset.emit()

    def mouseClickEvent(self, event: Any) -> None:
        if event.button() == Qt.MouseButton.RightButton:
            event.accept()
            self.asked.emit(event.screenPos())


class Plot(QFrame):
    """A panel with a head, and copying and saving of what it shows."""

    def __init__(self, context: Context, title: str):
        super().__init__()
        self.context = context
        self.title = title
        self.setProperty("role", "panel")
        self.setAccessibleName(title)
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(0, 0, 0, 0)
        self.column.setSpacing(2)
        self.note = QLabel()
        self.note.setTextFormat(Qt.TextFormat.PlainText)
        self.note.setProperty("role", "small")
        self.note.setWordWrap(True)
        context.theme.changed.connect(self.restyle)

    def restyle(self) -> None:
        """Takes the theme's colours."""

    def text(self) -> str:
        """What is drawn as CSV."""
        return ""

    def menu(self) -> QMenu:
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        add_exports(menu, self, self.context, self.title, self.text)
        return menu


class Scatter(Plot):
    """Points of two numbers; the Pareto front where both have a better end."""

    clicked = Signal(str)

    def __init__(self, context: Context, title: str = "Trade-off"):
        super().__init__(context, title)
        self.points: list[Point] = []
        self.horizontal, self.vertical = Axis(""), Axis("")
        self.front: list[int] = []
        self.canvas = pg.GraphicsView(background=None)
        self.canvas.setFrameShape(QFrame.Shape.NoFrame)
        self.canvas.setAntialiasing(True)
        self.canvas.setAccessibleName(f"{title}, plotted")
        self.canvas.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.canvas.setMinimumSize(120, 90)
        central = pg.GraphicsWidget()
        self.canvas.setCentralItem(central)
        grid = QGraphicsGridLayout()
        grid.setContentsMargins(0, 0, 6, 0)
        grid.setSpacing(0)
        central.setLayout(grid)
        self.view = PointView()
        self.left, self.bottom = WordAxis("left"), WordAxis("bottom")
        for axis in (self.left, self.bottom):
            axis.linkToView(self.view)
            axis.setZValue(-200)  # the view itself lies at -100, and points stand on the grid
            axis.setStyle(tickLength=0, tickTextOffset=4, maxTickLevel=0, autoExpandTextSpace=True)
        self.left.setWidth(48)
        self.bottom.setHeight(18)
        grid.addItem(self.left, 0, 0)
        grid.addItem(self.view, 0, 1)
        grid.addItem(self.bottom, 1, 1)
        grid.setRowStretchFactor(0, 1)
        grid.setColumnStretchFactor(1, 1)
        self._line = pg.PlotCurveItem()
        self._spots = pg.ScatterPlotItem(pxMode=True)
        self.view.addItem(self._line)
        self.view.addItem(self._spots)
        self.column.addWidget(self.canvas, 1)
        self.column.addWidget(self.note)
        for changed in (self.view.sigResized, self.view.sigYRangeChanged):
            changed.connect(lambda *_: self.left.fit(self.view.height()))
        self.view.reset.connect(self.show_all)
        self.view.asked.connect(lambda at: self.menu().popup(at.toPoint()))
        self.canvas.scene().sigMouseMoved.connect(self._hover)
        self.canvas.scene().sigMouseClicked.connect(self._click)
        self.restyle()

    def show_points(self, points: Sequence[Point], x: Axis, y: Axis) -> None:
        """Draws these points; the view fits itself when they are others than before."""
        moved = [(p.x, p.y) for p in points] != [(p.x, p.y) for p in self.points] or (x, y) != (
            self.horizontal,
            self.vertical,
        )
        self.points, self.horizontal, self.vertical = list(points), x, y
        self.front = front_of(self.points, x, y)
        self.left.words, self.bottom.words = y.ticks, x.ticks
        self.left.setLogMode(False, y.logarithmic)
        self.bottom.setLogMode(x.logarithmic, False)
        self._draw()
        if moved:
            self.show_all()
        self._describe()

    def _describe(self) -> None:
        there = sum(math.isfinite(point.x) and math.isfinite(point.y) for point in self.points)
        note = f"{self.vertical.title} against {self.horizontal.title}"
        if self.front:
            note += f"; {len(self.front)} of {there} on the Pareto front"
        elif there < len(self.points):
            note += f"; {len(self.points) - there} of {len(self.points)} have no such values"
        self.note.setText(note if self.points else "Nothing to draw.")
        self.canvas.setAccessibleDescription(note)

    def _scaled(self) -> tuple[np.ndarray, np.ndarray]:
        x = np.array([point.x for point in self.points], dtype=float)
        y = np.array([point.y for point in self.points], dtype=float)
        return (
            _logarithm(x) if self.horizontal.logarithmic else x,
            _logarithm(y) if self.vertical.logarithmic else y,
        )

    def _draw(self) -> None:
        theme = self.context.theme
        x, y = self._scaled()
        seen = np.isfinite(x) & np.isfinite(y)
        picked = any(point.selected for point in self.points)
        brushes: dict[tuple[int, bool], Any] = {}  # shared brushes and pens: each one of its own would be drawn anew
        none, edge = pg.mkPen(None), pg.mkPen(theme.colour("text"), width=1.2)
        front, there = set(self.front), np.flatnonzero(seen).tolist()
        colours = len(theme.tokens.series)
        for point in self.points:
            look = (point.colour % colours, point.selected or not picked)
            if look not in brushes:
                colour = QColor(theme.series(look[0]))
                colour.setAlphaF(1.0 if look[1] else 0.28)
                brushes[look] = pg.mkBrush(colour)
        shown = [self.points[i] for i in there]
        self._spots.setData(
            x=x[seen],
            y=y[seen],
            brush=[brushes[p.colour % colours, p.selected or not picked] for p in shown],
            pen=[edge if self.points[i].selected and i in front else none for i in there],
            size=np.array([10 if p.selected else 8 for p in shown], dtype=int),
            symbol=[SYMBOLS[(p.colour // colours) % len(SYMBOLS)] for p in shown],
            data=there,
        )
        line = [i for i in self.front if seen[i]]
        self._line.setData(x[line], y[line])
        self._line.setPen(pg.mkPen(theme.colour("muted"), width=1.2, style=Qt.PenStyle.DashLine))

    def show_all(self) -> None:
        """Brings every point into view."""
        x, y = self._scaled()
        seen = np.isfinite(x) & np.isfinite(y)
        if not seen.any():
            return
        for values, words_there, set_range in (
            (x[seen], self.horizontal.ticks, self.view.setXRange),
            (y[seen], self.vertical.ticks, self.view.setYRange),
        ):
            low, high = float(values.min()), float(values.max())
            room = 0.5 if words_there else (high - low) * 0.07 or abs(high) * 0.05 or 0.5
            set_range(low - room, high + room, padding=0)

    def restyle(self) -> None:
        theme = self.context.theme
        self.canvas.setBackground(theme.colour("surface"))
        line, muted = theme.colour("line"), theme.colour("muted")
        for axis in (self.left, self.bottom):
            axis.setPen(pg.mkPen(line))
            axis.setTextPen(pg.mkPen(muted))
            axis.setStyle(tickFont=theme.font(SIZE_SMALL - 1))
            axis.setGrid(255)
            axis.setTickPen(pg.mkPen(line))
        self._draw()

    def text(self) -> str:
        on = set(self.front)
        lines = [f"name,{_cell(self.horizontal.title)},{_cell(self.vertical.title)},on the front"]
        for i, p in enumerate(self.points):
            lines.append(f"{_cell(p.name)},{p.x!r},{p.y!r},{'yes' if i in on else 'no'}")
        return "\n".join(lines) + "\n"

    def at(self, place: QPointF) -> Point | None:
        """The point under a place of the scene."""
        if not self.points or not self.view.sceneBoundingRect().contains(place):
            return None
        x, y = self._scaled()
        origin, unit = self.view.mapViewToScene(QPointF(0, 0)), self.view.mapViewToScene(QPointF(1, 1))
        away = np.hypot(
            origin.x() + x * (unit.x() - origin.x()) - place.x(), origin.y() + y * (unit.y() - origin.y()) - place.y()
        )
        away[~np.isfinite(away)] = np.inf
        nearest = int(away.argmin())
        return self.points[nearest] if away[nearest] <= CLOSE else None

    def _hover(self, place: QPointF) -> None:
        point = self.at(place)
        self.canvas.setCursor(Qt.CursorShape.PointingHandCursor if point else Qt.CursorShape.ArrowCursor)
        if point is None:
            QToolTip.hideText()
            return
        pairs = ((point.x, self.horizontal), (point.y, self.vertical))
        lines = [point.name, *(f"{axis.title}  {_said(value, axis)}" for value, axis in pairs)]
        at = self.canvas.mapToGlobal(self.canvas.mapFromScene(place))
        QToolTip.showText(at, "\n".join(lines), self.canvas)

    def _click(self, event: Any) -> None:
        if event.button() == Qt.MouseButton.LeftButton:
            point = self.at(event.scenePos())
            if point is not None:
                self.clicked.emit(point.key)


def _said(value: float, axis: Axis) -> str:
    if axis.ticks and math.isfinite(value):
        return axis.ticks[int(value)]
    return words.number(value)


def _logarithm(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, np.log10(np.where(values > 0, values, 1.0)), np.nan)


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


@dataclass(frozen=True)
class Bar:
    """One row of the bars: a value with its spread, the single values behind it, and a colour's number."""

    key: str
    name: str
    value: float
    spread: float | None = None
    n: int = 1
    colour: int = 0
    singles: tuple[float, ...] = ()
    text: str = ""


class BarCanvas(QWidget):
    """Draws the rows. Values that are close to each other are drawn as dots, since a bar must begin at zero."""

    HEIGHT = 26
    clicked = Signal(str)

    def __init__(self, context: Context):
        super().__init__()
        self.context = context
        self.bars: list[Bar] = []
        self.setMouseTracking(True)

    def show_bars(self, bars: Sequence[Bar]) -> None:
        self.bars = list(bars)
        self.setMinimumHeight(len(self.bars) * self.HEIGHT + 4)
        self.setAccessibleDescription("; ".join(f"{bar.name} {bar.text}" for bar in self.bars))
        self.update()

    def sizeHint(self) -> QSize:
        return QSize(240, len(self.bars) * self.HEIGHT + 4)

    def span(self) -> tuple[float, float, bool]:
        """From where to where the axis goes, and whether it starts at zero (so that bars are honest)."""
        ends = [
            v for bar in self.bars for v in (bar.value - (bar.spread or 0), bar.value + (bar.spread or 0), *bar.singles)
        ]
        ends = [end for end in ends if math.isfinite(end)]
        if not ends:
            return 0.0, 1.0, True
        low, high = min(ends), max(ends)
        if low >= 0 and (high - low > 0.2 * high or high == 0 or len(self.bars) == 1):
            return 0.0, high or 1.0, True
        room = (high - low) * 0.08 or abs(high) * 0.05 or 0.5
        return low - room, high + room, False

    def paintEvent(self, event: QPaintEvent) -> None:
        if not self.bars:
            return
        theme = self.context.theme
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setFont(theme.font(SIZE_SMALL))
        metrics = painter.fontMetrics()
        name_width = min(max(metrics.horizontalAdvance(bar.name) for bar in self.bars) + 4, int(self.width() * 0.38))
        text_width = max(metrics.horizontalAdvance(bar.text) for bar in self.bars) + SPACE_S
        area = QRectF(name_width + SPACE_S, 0, max(20, self.width() - name_width - text_width - 2 * SPACE_S), 0)
        low, high, from_zero = self.span()

        def place(value: float) -> float:
            return area.left() + (value - low) / (high - low) * area.width()

        for i, bar in enumerate(self.bars):
            row = QRectF(0, i * self.HEIGHT + 2, self.width(), self.HEIGHT)
            painter.setPen(theme.colour("text"))
            name = metrics.elidedText(bar.name, Qt.TextElideMode.ElideMiddle, name_width)
            aligned = Qt.AlignmentFlag.AlignVCenter
            painter.drawText(
                QRectF(0, row.top(), name_width, row.height()), aligned | Qt.AlignmentFlag.AlignRight, name
            )
            where = QRectF(area.right() + SPACE_S, row.top(), text_width, row.height())
            painter.drawText(where, aligned | Qt.AlignmentFlag.AlignLeft, bar.text)
            self._draw_bar(painter, bar, row, area, place, from_zero)
        painter.end()

    def _draw_bar(self, painter: QPainter, bar: Bar, row: QRectF, area: QRectF, place: Any, from_zero: bool) -> None:
        theme = self.context.theme
        middle = row.center().y()
        painter.setPen(QPen(theme.colour("line"), 1))
        painter.drawLine(QPointF(area.left(), middle), QPointF(area.right(), middle))
        if not math.isfinite(bar.value):
            return
        colour = theme.series(bar.colour)
        painter.setPen(Qt.PenStyle.NoPen)
        if from_zero:
            painter.setBrush(colour)
            painter.drawRoundedRect(QRectF(area.left(), middle - 6, max(1.0, place(bar.value) - area.left()), 12), 2, 2)
        faint = QColor(theme.colour("text") if from_zero else colour)
        faint.setAlphaF(0.5)
        painter.setBrush(faint)
        if len(bar.singles) > 1:
            for value in bar.singles:
                if math.isfinite(value):
                    painter.drawEllipse(QPointF(place(value), middle), 2.0, 2.0)
        if bar.spread:
            painter.setPen(QPen(theme.colour("text"), 1.4))
            ends = (place(bar.value - bar.spread), place(bar.value + bar.spread))
            painter.drawLine(QPointF(ends[0], middle), QPointF(ends[1], middle))
            for x in ends:
                painter.drawLine(QPointF(x, middle - 4), QPointF(x, middle + 4))
        if not from_zero:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(colour)
            painter.drawEllipse(QPointF(place(bar.value), middle), 5, 5)

    def mousePressEvent(self, event: QMouseEvent) -> None:
        row = int((event.position().y() - 2) // self.HEIGHT)
        if event.button() == Qt.MouseButton.LeftButton and 0 <= row < len(self.bars):
            self.clicked.emit(self.bars[row].key)


class Bars(Plot):
    """One metric of several runs or groups, the best one on top."""

    clicked = Signal(str)

    def __init__(self, context: Context, title: str = "Bars"):
        super().__init__(context, title)
        self.canvas = BarCanvas(context)
        self.canvas.setAccessibleName(title)
        self.canvas.clicked.connect(self.clicked)
        self.canvas.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.canvas.customContextMenuRequested.connect(lambda at: self.menu().popup(self.canvas.mapToGlobal(at)))
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setWidget(self.canvas)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.column.addWidget(scroll, 1)
        self.column.addWidget(self.note)

    def restyle(self) -> None:
        self.canvas.update()

    def show_bars(self, bars: Sequence[Bar], note: str) -> None:
        self.canvas.show_bars(bars)
        self.note.setText(note)

    @property
    def bars(self) -> list[Bar]:
        return self.canvas.bars

    def text(self) -> str:
        lines = ["name,value,spread,n"]
        for bar in self.bars:
            lines.append(f"{_cell(bar.name)},{bar.value!r},{'' if bar.spread is None else repr(bar.spread)},{bar.n}")
        return "\n".join(lines) + "\n"


def read_band(
    series: Sequence[tuple[np.ndarray, np.ndarray]], width: int = 400
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Mean and one standard deviation around it, of several curves, where at least one goes; at most `width` points.

    Curves with other steps than the rest are read between their points. None where no curve has a finite value.
    """
    curves = []
    for steps, values in series:
        good = np.isfinite(values)
        if good.any():
            curves.append((np.asarray(steps, dtype=float)[good], np.asarray(values, dtype=float)[good]))
    if not curves:
        return None
    low, high = min(steps[0] for steps, _ in curves), max(steps[-1] for steps, _ in curves)
    curves = [_bucketed(steps, values, low, high, width) for steps, values in curves]
    grid = np.unique(np.concatenate([steps for steps, _ in curves]))
    if len(grid) > width:
        grid = np.linspace(grid[0], grid[-1], width)
    table = np.array([np.interp(grid, steps, values, left=np.nan, right=np.nan) for steps, values in curves])
    count = np.isfinite(table).sum(axis=0)
    grid, table, count = grid[count > 0], table[:, count > 0], count[count > 0]
    mean = np.nansum(table, axis=0) / count
    squares = np.nansum((table - mean) ** 2, axis=0)
    std = np.sqrt(squares / np.maximum(count - 1, 1))
    return grid, mean, mean - std, mean + std


def _bucketed(steps: np.ndarray, values: np.ndarray, low: float, high: float, width: int) -> tuple[Any, Any]:
    """A long curve as the means of at most `width` stretches; a short one as it is."""
    if len(steps) <= width:
        return steps, values
    place = np.minimum(((steps - low) / (high - low) * width).astype(np.int64), width - 1)
    count = np.bincount(place, minlength=width)
    there = count > 0
    sums = (np.bincount(place, weights=each, minlength=width)[there] for each in (steps, values))
    return tuple(total / count[there] for total in sums)  # type: ignore[return-value]


def axis_of_metric(metric: str) -> Axis:
    return Axis(metric, not comparison.lower_is_better(metric))
