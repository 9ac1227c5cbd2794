"""What every view of a figure is: it takes figure data, draws it, says it in words, and gives its numbers.

A view class is registered for its kinds of figure (`@draws("curve")`); the frame around it (title, history, menu) is in
app/figures/frame.py. A painted view keeps what it drew as a picture and only puts over it what follows the mouse.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pyqtgraph.Qt.internals import PrimitiveArray
from PySide6.QtCore import QEvent, QLineF, QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import (
    QColor,
    QFontMetricsF,
    QKeyEvent,
    QMouseEvent,
    QPainter,
    QPaintEvent,
    QPen,
    QPixmap,
    QResizeEvent,
    QWheelEvent,
)
from PySide6.QtWidgets import QSizePolicy, QVBoxLayout, QWidget

from app import words
from app.theme import SIZE_SMALL, Theme

VIEWS: dict[str, type[View]] = {}
TICK = SIZE_SMALL - 1
NEAR = 10.0  # pixels within which the mouse is on a point


def draws(*kinds: str) -> Callable[[type[Any]], type[Any]]:
    """Registers a view for these kinds of figure."""

    def register(cls: type[Any]) -> type[Any]:
        VIEWS.update(dict.fromkeys(kinds, cls))
        return cls

    return register


class View(QWidget):
    """One figure. `take` gives it another one of the same kind: it keeps zoom, rotation or scroll position."""

    opened = Signal(dict)  # a person asks for the recipe with these changes
    failed = Signal(str)  # it could not be drawn after all
    enlarge = Signal()
    zoomable = False

    def __init__(self, theme: Theme):
        super().__init__()
        self.theme = theme
        self.figure: Mapping[str, Any] = {}
        self.roomy = False  # has a window of its own: the wheel need not be left to a page that scrolls
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        theme.changed.connect(self.restyle)

    def take(self, figure: Mapping[str, Any]) -> None:
        """Shows a figure that has no problems."""
        self.figure = figure
        self.prepare()
        self.setAccessibleName(str(figure.get("title") or figure["kind"]))
        self.setAccessibleDescription(self.text())

    def prepare(self) -> None:
        """Works out from the figure's data whatever does not depend on size and theme."""

    def text(self) -> str:
        """The figure in words, for who cannot see it."""
        return ""

    def csv(self) -> str | None:
        """Its numbers as CSV; None where there are none to speak of."""
        return None

    def has_numbers(self) -> bool:
        """Whether there are any, told without gathering them."""
        return type(self).csv is not View.csv

    def height_for(self, width: int) -> int:
        """The height that suits it at a width."""
        return 230

    def show_all(self) -> None:
        """Undoes zoom and rotation."""

    def restyle(self) -> None:
        """Takes the theme's colours."""


class Canvas(View):
    """A view that is painted: `draw` what stays (kept as a picture), `over` what follows the mouse."""

    def __init__(self, theme: Theme):
        super().__init__(theme)
        self.spot: QPointF | None = None  # where the mouse is
        self._kept: QPixmap | None = None
        self._pressed: QPointF | None = None
        self._dragged = False
        self._broken = False
        self.setMouseTracking(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setMinimumSize(120, 90)

    # -- what a view writes ------------------------------------------------------------------------------------------

    def draw(self, painter: QPainter, area: QRectF) -> None:
        """Paints what does not follow the mouse."""
        raise NotImplementedError

    def over(self, painter: QPainter) -> None:
        """Paints what follows the mouse (`self.spot`) or the keys."""

    def drag(self, by: QPointF) -> None:
        """The mouse moved with its button down."""

    def zoom(self, at: QPointF, factor: float) -> None:
        """The wheel was turned."""

    def click(self, at: QPointF) -> None:
        """The mouse was clicked, not dragged."""

    def key(self, key: int) -> bool:
        """A key was pressed; whether it meant something."""
        return False

    # -- painting ----------------------------------------------------------------------------------------------------

    def sizeHint(self) -> QSize:
        return QSize(320, self.height_for(320))

    def take(self, figure: Mapping[str, Any]) -> None:
        self._broken = False
        super().take(figure)
        self.redraw()

    def restyle(self) -> None:
        self.redraw()

    def redraw(self) -> None:
        """What is kept is no longer true."""
        self._kept = None
        self.update()

    def resizeEvent(self, event: QResizeEvent) -> None:
        self._kept = None

    def paintEvent(self, event: QPaintEvent) -> None:
        if self._broken or not self.figure:
            return
        painter = QPainter(self)
        try:
            ratio = self.devicePixelRatioF()
            if self._kept is None or self._kept.devicePixelRatio() != ratio:
                self._kept = self.drawn(ratio)
            painter.drawPixmap(0, 0, self._kept)
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            painter.setFont(self.theme.font(SIZE_SMALL))
            self.over(painter)
            if self.hasFocus():
                self._ring(painter)
        except Exception as error:  # data that nobody thought of: a sentence, never a window full of tracebacks
            self._broken = True
            self.failed.emit(f"{type(error).__name__}: {error}")
        finally:
            painter.end()

    def drawn(self, ratio: float) -> QPixmap:
        """What does not follow the mouse, as a picture on clear ground, so many times finer than its size."""
        kept = QPixmap(max(1, round(self.width() * ratio)), max(1, round(self.height() * ratio)))
        kept.setDevicePixelRatio(ratio)
        kept.fill(Qt.GlobalColor.transparent)
        painter = QPainter(kept)
        try:
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            painter.setFont(self.theme.font(SIZE_SMALL))
            self.draw(painter, QRectF(self.rect()))
        finally:
            painter.end()
        return kept

    def _ring(self, painter: QPainter) -> None:
        painter.setPen(QPen(self.theme.colour("accent"), 1.0))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawRoundedRect(QRectF(self.rect()).adjusted(0.5, 0.5, -0.5, -0.5), 4, 4)

    # -- the mouse and the keys --------------------------------------------------------------------------------------

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        at = event.position()
        if self._pressed is not None and (event.buttons() & Qt.MouseButton.LeftButton):
            by = at - self._pressed
            if self._dragged or math.hypot(by.x(), by.y()) > 4:
                self._dragged = True
                self._pressed = at
                self.spot = None
                self.drag(by)
                return
        self.spot = at
        self.update()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        self._dragged = False
        if event.button() == Qt.MouseButton.LeftButton:
            self._pressed = event.position()

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        if event.button() == Qt.MouseButton.LeftButton:
            if self._pressed is not None and not self._dragged:
                self.click(event.position())
            self._pressed = None

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        if event.button() == Qt.MouseButton.LeftButton:
            self.show_all() if self.roomy else self.enlarge.emit()

    def leaveEvent(self, event: QEvent) -> None:
        self.spot = None
        self.update()

    def wheelEvent(self, event: QWheelEvent) -> None:
        turned = event.angleDelta().y()
        wanted = self.roomy or event.modifiers() & Qt.KeyboardModifier.ControlModifier
        if not self.zoomable or not turned or not wanted:
            event.ignore()  # the page scrolls
            return
        event.accept()
        self.zoom(event.position(), 1.0015**turned)

    def keyPressEvent(self, event: QKeyEvent) -> None:
        middle = QPointF(self.width() / 2, self.height() / 2)
        if event.key() in (Qt.Key.Key_Plus, Qt.Key.Key_Equal) and self.zoomable:
            self.zoom(middle, 1.25)
        elif event.key() == Qt.Key.Key_Minus and self.zoomable:
            self.zoom(middle, 0.8)
        elif event.key() == Qt.Key.Key_0 and self.zoomable:
            self.show_all()
        elif not self.key(event.key()):
            super().keyPressEvent(event)

    def focusInEvent(self, event: Any) -> None:
        self.update()

    def focusOutEvent(self, event: Any) -> None:
        self.update()


class Holder(View):
    """A view made of ordinary widgets."""

    def __init__(self, theme: Theme):
        super().__init__(theme)
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(0, 0, 0, 0)
        self.column.setSpacing(4)


# -- painting many things at once --------------------------------------------------------------------------------------


def lines(x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray) -> PrimitiveArray:
    """Segments for `painter.drawLines(*made.drawargs())`; those with an end that is not finite are left out."""
    good = np.isfinite(x0) & np.isfinite(y0) & np.isfinite(x1) & np.isfinite(y1)
    made = PrimitiveArray(QLineF, 4)
    made.resize(int(good.sum()))
    memory = made.ndarray()
    for column, values in enumerate((x0, y0, x1, y1)):
        memory[:, column] = np.clip(values[good], -1e6, 1e6)  # far away is far away: Qt's rasterizer overflows
    return made


def draw_lines(painter: QPainter, x0: np.ndarray, y0: np.ndarray, x1: np.ndarray, y1: np.ndarray) -> None:
    made = lines(x0, y0, x1, y1)
    if made.ndarray().size:
        painter.drawLines(*made.drawargs())


def ratio_of(painter: QPainter) -> float:
    """Pixels of what is painted on for one of the widget's."""
    return painter.device().devicePixelRatioF()


class Stamps:
    """One pixmap of round dots in several colours, from which any number of points is stamped at once."""

    def __init__(self, colours: Sequence[QColor], size: float, ratio: float, rim: QColor | None = None):
        self.ratio = ratio
        self.side = math.ceil((size + 3) * ratio)
        self.pixmap = QPixmap(self.side * max(len(colours), 1), self.side)
        self.pixmap.fill(Qt.GlobalColor.transparent)
        painter = QPainter(self.pixmap)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(QPen(rim, ratio) if rim is not None else Qt.PenStyle.NoPen)
        for number, colour in enumerate(colours):
            painter.setBrush(colour)
            middle = QPointF((number + 0.5) * self.side, 0.5 * self.side)
            painter.drawEllipse(middle, size / 2 * ratio, size / 2 * ratio)
        painter.end()

    def draw(self, painter: QPainter, x: np.ndarray, y: np.ndarray, which: np.ndarray) -> None:
        """Stamps a dot at each place that is finite."""
        good = np.isfinite(x) & np.isfinite(y)
        made = PrimitiveArray(QPainter.PixmapFragment, 10)
        made.resize(int(good.sum()))
        memory = made.ndarray()
        if not memory.size:
            return
        memory[:] = 0, 0, 0, 0, self.side, self.side, 1 / self.ratio, 1 / self.ratio, 0, 1
        memory[:, 0], memory[:, 1] = x[good], y[good]
        memory[:, 2] = np.broadcast_to(which, good.shape)[good] * self.side
        first, count = made.drawargs()
        painter.drawPixmapFragments(first, count, self.pixmap)


def draw_tip(painter: QPainter, theme: Theme, at: QPointF, area: QRectF, said: Sequence[str]) -> None:
    """Lines of words in a box beside a place, inside an area."""
    painter.setFont(theme.font(SIZE_SMALL))
    metrics = QFontMetricsF(painter.font())
    wide = max(metrics.horizontalAdvance(line) for line in said) + 12
    high = metrics.height() * len(said) + 6
    left = at.x() + 12 if at.x() + 12 + wide <= area.right() else at.x() - 12 - wide
    top = min(max(at.y() - high - 6, area.top()), area.bottom() - high)
    box = QRectF(max(left, area.left()), max(top, area.top()), wide, high)
    painter.setPen(QPen(theme.colour("line"), 1))
    painter.setBrush(theme.colour("raised"))
    painter.drawRoundedRect(box, 4, 4)
    painter.setPen(theme.colour("text"))
    for number, line in enumerate(said):
        painter.drawText(QPointF(box.left() + 6, box.top() + 3 + metrics.ascent() + number * metrics.height()), line)


def draw_halo(painter: QPainter, theme: Theme, at: QPointF, text: str, ink: QColor | None = None) -> None:
    """Words that stay readable over whatever is below."""
    wide = painter.fontMetrics().horizontalAdvance(text)
    high = painter.fontMetrics().height()
    back = theme.colour("surface")
    back.setAlphaF(0.78)
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(back)
    painter.drawRoundedRect(QRectF(at.x() - 2, at.y() - painter.fontMetrics().ascent(), wide + 4, high), 3, 3)
    painter.setPen(ink or theme.colour("text"))
    painter.drawText(at, text)


def beside(x: float, y: float, away: float, wide: float, high: float) -> list[QRectF]:
    """Boxes for words of a size at the right, at the left, above and below a place."""
    return [
        QRectF(x + away, y - high / 2, wide, high),
        QRectF(x - away - wide, y - high / 2, wide, high),
        QRectF(x - wide / 2, y - away - high, wide, high),
        QRectF(x - wide / 2, y + away, wide, high),
    ]


def around(x: np.ndarray, y: np.ndarray, radius: float) -> list[QRectF]:
    """The boxes of dots, which no words should cover."""
    good = np.isfinite(x) & np.isfinite(y)
    return [QRectF(a - radius, b - radius, 2 * radius, 2 * radius) for a, b in zip(x[good], y[good], strict=True)]


# -- words and numbers -------------------------------------------------------------------------------------------------


def csv_of(heads: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(list(heads))
    writer.writerows(rows)
    return out.getvalue()


def axis_of(figure: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return figure.get(name) or {}


def axis_label(figure: Mapping[str, Any], name: str, other: str = "") -> str:
    return str(axis_of(figure, name).get("label") or other)


def span_said(values: np.ndarray) -> str:
    """'0.2 to 1.5' of those that are finite."""
    values = values[np.isfinite(values)]
    if not values.size:
        return "nothing finite"
    low, high = float(values.min()), float(values.max())
    return words.number(low) if low == high else f"{words.number(low)} to {words.number(high)}"


def mean_said(values: np.ndarray) -> str:
    """The mean of those that are finite."""
    values = values[np.isfinite(values)]
    return words.number(float(values.mean())) if values.size else "unknown"


def short(value: float, digits: int = 3) -> str:
    """A number with so many digits and no more zeros than it needs: '0.5', '2 M'."""
    if not math.isfinite(value):
        return words.number(value)
    value = float(f"{value:.{digits - 1}e}")
    text, space, prefix = words.number(value, digits).partition(" ")
    mantissa, e, exponent = text.partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return mantissa + e + exponent + space + prefix


def many(count: int, what: str, more: str = "") -> str:
    return f"{count:,} {what if count == 1 else more or what + 's'}".replace(",", "\u202f")
