"""Charts of series: raw line faint behind a smoothed one, crosshair with all values, zoom and pan along x.

A chart asks the reader for what its pixels need (about two points a pixel), draws what came, and redraws only when
something has changed. It can also be fed with ready numbers (`feed`), for figures that were worked out elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QFont, QFontMetrics, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import (
    QFrame,
    QGraphicsGridLayout,
    QGraphicsScene,
    QHBoxLayout,
    QLabel,
    QMenu,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from app import words
from app.curves import Curve, Drawn, read_curves
from app.exports import add_exports
from app.strokes import Band, Dots, Line, Strokes
from app.theme import SIZE_SMALL, SPACE_S, Theme
from engine import axes

SMOOTHING = (0.0, 0.01, 0.03, 0.1)  # of the length of the x axis
LEFT_WIDTH = 44
UPRIGHT_PIXELS, LEVEL_PIXELS = 34.0, 90.0  # between two labels of an axis
ROUND_TIMES = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
SMOOTHING_WORDS = ("None", "A little", "Medium", "Strong")


class NumberAxis(pg.AxisItem):
    """Ticks as short numbers with SI prefixes, or as times."""

    def __init__(self, side: str):
        super().__init__(side)
        self.clock = "number"  # or "step" (whole numbers), or "time"
        self.enableAutoSIPrefix(False)

    def tickValues(self, low: float, high: float, size: float) -> list[tuple[float, list[float]]]:
        """One level of ticks, so near to each other that at least two labels are seen."""
        if not (math.isfinite(low) and math.isfinite(high) and high > low and size > 0):
            return []
        upright = self.orientation in ("left", "right")
        per, edge = (UPRIGHT_PIXELS, 7.0) if upright else (LEVEL_PIXELS, 14.0)
        margin = min(edge / size, 0.2) * (high - low)  # a label that would be cut at the edge is not drawn
        count = max(size / per, 2.0)
        if self.logMode:
            return [(0.0, log_ticks(low, high, margin, count))]
        spacing, values = nice_ticks(low, high, margin, count, self.clock == "time")
        if self.clock == "step" and spacing < 1:
            spacing, values = 1.0, [float(at) for at in range(math.ceil(low), math.floor(high) + 1)]
        return [(spacing, values)]

    def fit(self, size: float) -> None:
        """Makes an upright axis as wide as its widest label: pyqtgraph leaves out those that do not fit."""
        texts = [text for spacing, values in self.tickValues(self.range[0], self.range[1], size)
                 for text in self.tickStrings(values, 1.0, spacing)]  # fmt: skip
        metrics = QFontMetrics(self.style["tickFont"] or QFont())
        widest = max((metrics.horizontalAdvance(text) for text in texts), default=0)
        wanted = max(LEFT_WIDTH, math.ceil((widest + 10) / 4) * 4)
        if wanted != self.width():
            self.setWidth(wanted)

    def tickStrings(self, values: list[float], scale: float, spacing: float) -> list[str]:
        if self.logMode:
            plain = [10.0**value for value in values]
            if len(plain) > 1 and plain[-1] < 2 * plain[0]:
                return [tick_text(value, (plain[1] - plain[0]) * 1.000001) for value in plain]
            tries = ([_short(value, digits) for value in plain] for digits in range(1, 7))
            return next((texts for texts in tries if len(set(texts)) == len(texts)), [_short(v, 6) for v in plain])
        if self.clock == "time":
            return [clock_text(value, spacing) for value in values]
        return [tick_text(value, spacing) for value in values]


def nice_ticks(
    low: float, high: float, margin: float, count: float, seconds: bool = False
) -> tuple[float, list[float]]:
    """Spacing (1, 2 or 5 of a power of ten, or a round time) and places of about `count` ticks.

    At least two of them lie further than `margin` from both ends, where a label would be cut.
    """
    wanted = (high - low) / count
    power = math.floor(math.log10(wanted))
    steps = [digit * 10.0**at for at in range(power - 2, power + 2) for digit in (1, 2, 5)]
    if seconds and 5 <= wanted <= ROUND_TIMES[-1]:
        steps = list(ROUND_TIMES)
    start = next(number for number, step in enumerate(steps) if step >= 0.9 * wanted)
    for spacing in reversed(steps[: start + 1]):
        values = [at * spacing for at in range(math.ceil(low / spacing), math.floor(high / spacing) + 1)]
        if sum(low + margin <= value <= high - margin for value in values) >= 2:
            break
    return float(spacing), values


def log_ticks(low: float, high: float, margin: float, count: float) -> list[float]:
    """Exponents of ten for ticks: whole powers, or 1, 2 and 5 of each, or even steps where little is seen."""
    first, last = math.ceil(low + margin), math.floor(high - margin)
    if last - first + 1 >= max(2.0, count / 2):
        every = math.ceil((last - first + 1) / max(count, 2.0))
        return [float(at) for at in range(first, last + 1, every)]
    fine = [at + math.log10(digit) for at in range(first - 1, last + 2) for digit in (1, 2, 5)]
    seen = [at for at in fine if low + margin <= at <= high - margin]
    if len(seen) >= 2:
        return seen
    ends = 10.0 ** (low + margin), 10.0 ** (high - margin)
    return [math.log10(value) for value in nice_ticks(*ends, 0.0, count)[1] if value > 0]


def _short(value: float, digits: int) -> str:
    """A number with so many digits and no more zeros than it needs."""
    return words.number(float(f"{value:.{digits - 1}e}"), digits + (2 if value < 1e-3 and digits > 1 else 1))


def tick_text(value: float, spacing: float) -> str:
    """A tick's number with as many digits as its neighbours need."""
    if abs(value) < spacing * 1e-6:
        return "0"
    if abs(value) >= 1e15 or 0 < spacing < 1e-4:
        digits = max(0, math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(spacing) + 1e-9))
        mantissa, _, exponent = f"{value:.{min(digits, 6)}e}".partition("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            digits = max(0, min(6, -math.floor(math.log10(spacing / scale) + 1e-9)))
            text = f"{value / scale:.{digits}f}"
            return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−") + prefix
    digits = max(0, min(6, -math.floor(math.log10(spacing) + 1e-9)))
    return f"{value:.{digits}f}".replace("-", "−")


def clock_text(value: float, spacing: float) -> str:
    """Seconds on an axis: '12 s', '1:20', '2:05:00'."""
    sign, whole = ("−" if value < 0 else ""), abs(value)
    if spacing < 1:
        return f"{sign}{whole:.1f} s"
    whole = round(whole)
    if whole < 60:
        return f"{sign}{whole} s"
    if whole < 3600:
        return f"{sign}{whole // 60}:{whole % 60:02d}"
    return f"{sign}{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class ChartView(pg.ViewBox):
    """The plotted area: wheel zooms x, drag pans x, double click resets, right click opens the chart's menu."""

    reset_wanted = Signal()
    menu_wanted = Signal(QPointF)
    moved = Signal()  # by a person

    def __init__(self) -> None:
        super().__init__(enableMenu=False)
        self.setMouseEnabled(x=True, y=False)

    def wheelEvent(self, event: Any, axis: int | None = None) -> None:
        super().wheelEvent(event, axis=0)
        self.moved.emit()

    def mouseDragEvent(self, event: Any, axis: int | None = None) -> None:
        if event.button() == Qt.MouseButton.RightButton:
            event.ignore()
            return
        super().mouseDragEvent(event, axis=0)
        self.moved.emit()

    def mouseDoubleClickEvent(self, event: Any) -> None:
        self.reset_wanted.emit()

    def mouseClickEvent(self, event: Any) -> None:
        if event.button() == Qt.MouseButton.RightButton:
            event.accept()
            self.menu_wanted.emit(event.screenPos())


class Legend(QWidget):
    """Stroke, name and value of every curve in one line; what does not fit is counted."""

    def __init__(self, theme: Theme):
        super().__init__()
        self._theme = theme
        self._entries: list[tuple[QPen, str, str]] = []
        self.setMinimumWidth(40)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def show_entries(self, entries: list[tuple[QPen, str, str]]) -> None:
        if entries != self._entries:
            self._entries = entries
            self.setToolTip("\n".join(f"{name}  {value}" for _, name, value in entries))
            self.setAccessibleName(", ".join(f"{name} {value}" for _, name, value in entries))
            self.update()

    def sizeHint(self) -> QSize:
        return QSize(120, 16)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setFont(self._theme.font(SIZE_SMALL))
        metrics = painter.fontMetrics()
        entries, widths = self._fitting(metrics)
        room = 0 if len(entries) == len(self._entries) else 30
        x = max(self.width() - sum(widths) - room, 0)
        middle = self.height() / 2
        baseline = round(middle + metrics.ascent() / 2 - 1)
        for (pen, name, value), wide in zip(entries, widths, strict=True):
            painter.setPen(pen)
            painter.drawLine(QPointF(x + 4, middle), QPointF(x + 20, middle))
            painter.setPen(self._theme.colour("muted"))
            painter.drawText(x + 24, baseline, name)
            painter.setPen(self._theme.colour("text"))
            painter.drawText(x + 24 + metrics.horizontalAdvance(f"{name} " if name else ""), baseline, value)
            x += wide
        if room:
            painter.setPen(self._theme.colour("muted"))
            painter.drawText(x + 4, baseline, f"+{len(self._entries) - len(entries)}")
        painter.end()

    def _fitting(self, metrics: QFontMetrics) -> tuple[list[tuple[QPen, str, str]], list[int]]:
        """All with their names; where that is too long all without names; or as many as there is room for."""
        entries = self._entries
        for named in (True, False):
            entries = [(pen, name if named else "", value) for pen, name, value in self._entries]
            widths = [metrics.horizontalAdvance(f"{name} {value}".strip()) + 32 for _, name, value in entries]
            if sum(widths) <= self.width():
                return entries, widths
        while len(widths) > 1 and sum(widths) + 30 > self.width():
            widths.pop()
        return entries[: len(widths)], widths


class Chart(QFrame):
    """One chart. `set_curves` says what to draw, `refresh` reads it, `feed` draws ready numbers."""

    spanned = Signal(object)  # a person zoomed or panned: (from, to), or None for all
    enlarge = Signal()

    def __init__(self, context: Any, title: str, unit: str = "", parent: QWidget | None = None):
        super().__init__(parent)
        self.context = context
        self.theme: Theme = context.theme
        self.title = title
        self.unit = unit
        self.curves: list[Curve] = []
        self.drawn: dict[str, Drawn] = {}
        self.clock = "step"
        self.smoothing = SMOOTHING[1]
        self.logarithmic = False
        self.span: tuple[float, float] | None = None
        self.whole: tuple[float, float] | None = (
            None  # all of x, where charts share one axis; drawn with what comes next
        )
        self.y_floor: float | None = None  # the axis starts here when the data lie above
        self.y_ceiling: float | None = None
        self._range: tuple[float, float, float, float] | None = None
        self.setProperty("role", "panel")
        self.setAccessibleName(f"Chart: {title}")
        self.setMinimumSize(160, 120)
        self._build()
        self.theme.changed.connect(self.restyle)
        self.restyle()

    # -- what others call --------------------------------------------------------------------------------------------

    def set_curves(self, curves: Sequence[Curve]) -> None:
        """Says which lines there are; lines that stay keep what they show."""
        curves = list(curves)
        if curves == self.curves:
            return
        self.curves = curves
        keys = {curve.key for curve in curves}
        self.drawn = {key: drawn for key, drawn in self.drawn.items() if key in keys}
        self._update_legend()
        self.context.frames.draw(self, lambda: self.show_drawn({}))

    def feed(self, key: str, x: Any, y: Any, low: Any = None, high: Any = None, last: float | None = None) -> None:
        """Draws ready numbers as a curve that `set_curves` has named; with low and high, a band behind it."""
        x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        drawn = Drawn(x, y, last=last if last is not None else (float(y[-1]) if len(y) else None))
        if low is not None and high is not None:
            drawn.low, drawn.high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        if len(x):
            drawn.first_x, drawn.last_x = float(np.nanmin(x)), float(np.nanmax(x))
        self.show_drawn({key: drawn})

    def refresh(self) -> None:
        """Reads what its pixels need from the log, on the reader's thread, and draws it when it comes."""
        curves = [curve for curve in self.curves if curve.run]
        if not curves:
            return
        cache = self.context.reader.cache
        clock, span, smoothing = self.clock, self.span, self.smoothing
        width = max(int(self.view.width()), 64)

        def read(log: Any) -> dict[str, Drawn]:
            return read_curves(log, cache, curves, clock=clock, span=span, width=width, smoothing=smoothing)

        self.context.reader.ask(read, self._answered, key=("chart", id(self)), owner=self)

    def _answered(self, drawn: dict[str, Drawn]) -> None:
        self.context.frames.draw(self, lambda: self.show_drawn(drawn))

    def set_clock(self, clock: str) -> None:
        """What runs along x: an axis of `engine.axes`, or 'number'."""
        if clock != self.clock:
            self.clock = clock
            self.bottom.clock = clock
            self.set_span(None)

    def set_smoothing(self, share: float) -> None:
        if share != self.smoothing:
            self.smoothing = share
            self.refresh()

    def set_logarithmic(self, on: bool) -> None:
        if on != self.logarithmic:
            self.logarithmic = on
            self.left.setLogMode(False, on)
            self.show_drawn(self.drawn)

    def set_span(self, span: tuple[float, float] | None) -> None:
        """Shows this stretch of x; None shows all."""
        if span != self.span:
            self.span = span
            self._set_ranges()
            self.refresh()

    def set_title(self, title: str) -> None:
        self.title = title
        self._title.setText(title)

    def show_title(self, on: bool) -> None:
        """Where the title is said elsewhere, the legend has the whole line."""
        self._title.setVisible(on)

    def text(self) -> str:
        """What is drawn as CSV."""
        lines = ["curve,x,y"]
        for curve in self.curves:
            drawn = self.drawn.get(curve.key)
            if drawn is not None:
                lines += [f"{curve.name},{x:g},{y:.9g}" for x, y in zip(drawn.x, drawn.y, strict=True)]
        return "\n".join(lines) + "\n"

    # -- building ----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        # A ViewBox with two axes, without PlotItem: its menus alone cost more than the rest of a chart.
        self.canvas = pg.GraphicsView(background=None)
        self.canvas.setFrameShape(QFrame.Shape.NoFrame)
        self.canvas.setAntialiasing(True)
        # A few items whose places change all the time: an index would be out of date and hide them.
        self.canvas.scene().setItemIndexMethod(QGraphicsScene.ItemIndexMethod.NoIndex)
        self.canvas.setAccessibleName(f"{self.title}, plotted")
        self.canvas.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        central = pg.GraphicsWidget()
        self.canvas.setCentralItem(central)
        grid = QGraphicsGridLayout()
        grid.setContentsMargins(0, 0, 4, 0)
        grid.setSpacing(0)
        central.setLayout(grid)
        self.view = ChartView()
        self.left, self.bottom = NumberAxis("left"), NumberAxis("bottom")
        for axis in (self.left, self.bottom):
            axis.linkToView(self.view)
            axis.setZValue(-1000)  # the grid lies behind the curves; a ViewBox is at -100
            axis.setStyle(tickLength=0, tickTextOffset=4, maxTickLevel=0, autoExpandTextSpace=True)
        self.left.setWidth(LEFT_WIDTH)
        self.bottom.clock = self.clock
        self.bottom.setHeight(18)
        grid.addItem(self.left, 0, 0)
        grid.addItem(self.view, 0, 1)
        grid.addItem(self.bottom, 1, 1)
        grid.setRowStretchFactor(0, 1)
        grid.setColumnStretchFactor(1, 1)
        self.strokes = Strokes()
        self.view.addItem(self.strokes, ignoreBounds=True)
        self._cross = pg.InfiniteLine(angle=90, movable=False)
        self._cross.setVisible(False)
        self.view.addItem(self._cross, ignoreBounds=True)
        self._title = QLabel(self.title)
        self._legend = Legend(self.theme)
        self._values = QLabel(self.canvas)
        self._values.setVisible(False)
        self._values.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.head = QWidget()  # its owner may make it a handle
        self._nothing = QLabel("nothing measured yet", self.canvas)
        self._nothing.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self._nothing.setProperty("role", "small")
        self._nothing.move(56, 8)
        head = QHBoxLayout(self.head)
        head.setContentsMargins(SPACE_S, 2, SPACE_S, 0)
        head.addWidget(self._title)
        head.addWidget(self._legend, 1)
        column = QVBoxLayout(self)
        column.setContentsMargins(2, 4, 2, 2)
        column.setSpacing(0)
        column.addWidget(self.head)
        column.addWidget(self.canvas, 1)
        self.view.moved.connect(self._moved)
        self.view.reset_wanted.connect(self._reset)
        self.view.menu_wanted.connect(self._open_menu)
        self.view.sigResized.connect(self._resized)
        self.canvas.scene().sigMouseMoved.connect(self._hover)
        self.canvas.viewport().installEventFilter(self)

    def restyle(self) -> None:
        """Takes the theme's colours."""
        theme = self.theme
        self._title.setFont(theme.font(SIZE_SMALL, bold=True))
        self.canvas.setBackground(theme.colour("surface"))
        line, muted = theme.colour("line"), theme.colour("muted")
        for axis in (self.left, self.bottom):
            axis.setPen(pg.mkPen(line))
            axis.setTextPen(pg.mkPen(muted))
            axis.setStyle(tickFont=theme.font(SIZE_SMALL - 1))
            axis.setGrid(255)
            axis.setTickPen(pg.mkPen(line))
        self._cross.setPen(pg.mkPen(muted, width=1))
        self._values.setStyleSheet(
            f"background: {theme.tokens.raised}; border: 1px solid {theme.tokens.line};"
            "border-radius: 4px; padding: 3px 6px;"
        )
        self._values.setFont(theme.font(SIZE_SMALL))
        self._style_curves()
        self._update_legend()

    def _style_curves(self) -> None:
        for curve in self.curves:
            if curve.key in self.drawn:
                self._draw(curve, self.drawn[curve.key])

    def _faint(self, curve: Curve) -> QPen:
        pen = self.theme.pen(curve.colour, 1.0)
        colour = QColor(pen.color())
        colour.setAlphaF(0.32)
        pen.setColor(colour)
        return pen

    def _band_colour(self, curve: Curve) -> QColor:
        colour = QColor(self.theme.series(curve.colour))
        colour.setAlphaF(0.18)
        return colour

    # -- drawing -----------------------------------------------------------------------------------------------------

    def show_drawn(self, drawn: dict[str, Drawn]) -> None:
        """Draws what was read or worked out for the curves of these keys."""
        named = {curve.key: curve for curve in self.curves}
        fresh = {key: data for key, data in drawn.items() if key in named}
        self.drawn.update(fresh)
        self._set_ranges()
        for key in [key for key in self.strokes.layers if key not in named]:
            self.strokes.remove(key)
        for key, data in fresh.items():
            self._draw(named[key], data)
        self._update_legend()

    def _draw(self, curve: Curve, data: Drawn) -> None:
        pen = self.theme.pen(curve.colour, 1.5, curve.validation)
        (left, right), (bottom, top) = self.view.viewRange()
        pixel = (right - left) / max(self.view.width(), 1), (top - bottom) / max(self.view.height(), 1)
        layers: list[Line | Band | Dots] = []
        if data.low is not None and data.high is not None:
            layers.append(Band(data.x, self._scaled(data.low), self._scaled(data.high), self._band_colour(curve)))
        if len(data.smooth_x):
            layers.append(Line(data.x, self._scaled(data.y), self._faint(curve), pixel))
            layers.append(Line(data.smooth_x, self._scaled(data.smooth_y), pen, pixel))
        else:
            layers.append(Line(data.x, self._scaled(data.y), pen, pixel))
            if (dots := Dots(data.x, self._scaled(data.y), pen)).points is not None:
                layers.append(dots)
        self.strokes.set_layers(curve.key, layers)

    def _scaled(self, y: np.ndarray) -> np.ndarray:
        if not self.logarithmic:
            return y
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(y > 0, np.log10(np.where(y > 0, y, 1.0)), np.nan)

    def _set_ranges(self) -> None:
        all_drawn = [self.drawn[curve.key] for curve in self.curves if curve.key in self.drawn]
        firsts = [drawn.first_x for drawn in all_drawn if math.isfinite(drawn.first_x)]
        lasts = [drawn.last_x for drawn in all_drawn if math.isfinite(drawn.last_x)]
        if self.span is not None:
            low, high = self.span
        elif self.whole is not None:
            low, high = self.whole
        elif firsts:
            low, high = min(firsts), max(lasts)
        else:
            return
        if high <= low:
            low, high = low - 0.5, high + 0.5
        extent = self._extent(all_drawn, low, high)
        bottom, top = extent if extent is not None else (0.0, 1.0)
        wanted = (low, high, *self._steady(bottom, top))
        if wanted != self._range:
            self._range = wanted
            self.view.setRange(QRectF(wanted[0], wanted[2], wanted[1] - wanted[0], wanted[3] - wanted[2]), padding=0)
            self.left.fit(self.view.height())

    def _steady(self, bottom: float, top: float) -> tuple[float, float]:
        """The y axis stays while the data fill most of it: live axes that jump cannot be read, and cost time."""
        if self._range is not None:
            _, _, low, high = self._range
            if low <= bottom and top <= high and top - bottom >= 0.8 * (high - low):
                return low, high
        return bottom, top

    def _extent(self, all_drawn: list[Drawn], low: float, high: float) -> tuple[float, float] | None:
        bottom, top = math.inf, -math.inf
        for drawn in all_drawn:
            for x, y in ((drawn.x, drawn.y), (drawn.x, drawn.low), (drawn.x, drawn.high)):
                if y is None or not len(y):
                    continue
                seen = self._scaled(y[(x >= low) & (x <= high)])
                seen = seen[np.isfinite(seen)]
                if len(seen):
                    bottom, top = min(bottom, float(seen.min())), max(top, float(seen.max()))
        if bottom > top:
            return None
        if not self.logarithmic:
            if self.y_floor is not None:
                bottom = min(bottom, self.y_floor)
            if self.y_ceiling is not None:
                top = max(top, self.y_ceiling)
        room = (top - bottom) * 0.05 or abs(top) * 0.05 or 0.5
        on_floor = not self.logarithmic and self.y_floor is not None and bottom == self.y_floor
        return bottom - ((top + room - bottom) * 0.025 if on_floor else room), top + room

    def _update_legend(self) -> None:
        self._nothing.setVisible(not self.drawn)
        entries = []
        for curve in self.curves:
            drawn = self.drawn.get(curve.key)
            value = words.number(drawn.last) if drawn is not None and drawn.last is not None else ""
            entries.append(
                (self.theme.pen(curve.colour, 1.5, curve.validation), curve.name, f"{value} {self.unit}".strip())
            )
        self._legend.show_entries(entries)

    # -- the mouse ---------------------------------------------------------------------------------------------------

    def _resized(self, _view: Any) -> None:
        self.left.fit(self.view.height())
        self.refresh()

    def _moved(self) -> None:
        low, high = self.view.viewRange()[0]
        self.span = (float(low), float(high))
        self._set_ranges()
        self.refresh()
        self.spanned.emit(self.span)

    def _reset(self) -> None:
        self.set_span(None)
        self.spanned.emit(None)

    def values_at(self, x: float) -> list[tuple[str, float, float]]:
        """Name, x and value of every curve at its point nearest to x."""
        found = []
        for curve in self.curves:
            drawn = self.drawn.get(curve.key)
            if drawn is None or not len(drawn.x):
                continue
            xs, ys = (drawn.smooth_x, drawn.smooth_y) if len(drawn.smooth_x) else (drawn.x, drawn.y)
            index = int(np.searchsorted(xs, x))
            if index > 0 and (index == len(xs) or x - xs[index - 1] <= xs[index] - x):
                index -= 1
            found.append((curve.name, float(xs[index]), float(ys[index])))
        return found

    def _hover(self, position: QPointF) -> None:
        area: QRectF = self.view.sceneBoundingRect()
        if not area.contains(position) or not self.drawn:
            self._leave()
            return
        x = self.view.mapSceneToView(position).x()
        self._cross.setPos(x)
        self._cross.setVisible(True)
        whole = self.clock == "step" or self.clock.startswith(axes.COUNTED)
        at = clock_text(x, 1) if self.clock == "time" else words.number(round(x) if whole else x)
        lines = [f"{'at' if self.clock in ('time', 'number') else axes.words(self.clock, many=False)} {at}"]
        lines += [f"{name}  {words.number(value)} {self.unit}".rstrip() for name, _, value in self.values_at(x)]
        self._values.setText("\n".join(lines))
        self._values.adjustSize()
        left = position.x() + 12
        if left + self._values.width() > area.right():
            left = position.x() - 12 - self._values.width()
        self._values.move(round(max(left, area.left())), round(area.top() + 4))
        self._values.setVisible(True)

    def _leave(self) -> None:
        if self._cross.isVisible():
            self._cross.setVisible(False)
            self._values.setVisible(False)

    def eventFilter(self, watched: Any, event: QEvent) -> bool:
        if event.type() == QEvent.Type.Leave:
            self._leave()
        return super().eventFilter(watched, event)

    # -- the menu ----------------------------------------------------------------------------------------------------

    def _open_menu(self, at: QPointF) -> None:
        self.menu().popup(at.toPoint())

    def menu(self) -> QMenu:
        """Smoothing, log axis, copy and export."""
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        smoothing = menu.addMenu("Smoothing")
        for share, word in zip(SMOOTHING, SMOOTHING_WORDS, strict=True):
            entry = smoothing.addAction(word, partial(self.set_smoothing, share))
            entry.setCheckable(True)
            entry.setChecked(share == self.smoothing)
        entry = menu.addAction("Logarithmic axis", lambda: self.set_logarithmic(not self.logarithmic))
        entry.setCheckable(True)
        entry.setChecked(self.logarithmic)
        menu.addAction("Show all", self._reset)
        menu.addAction("Enlarge or shrink", self.enlarge.emit)
        menu.addSeparator()
        add_exports(menu, self, self.context, self.title, self.text)
        return menu
