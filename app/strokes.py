"""All lines of one chart as one graphics item.

A thick antialiased path of noise costs tens of milliseconds in Qt's software renderer, because the whole outline is
worked out first; the same line as separate segments costs one. So solid lines and long dashed ones are drawn as
segments, and only short dashed ones as a path.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyqtgraph as pg
from pyqtgraph.Qt.internals import PrimitiveArray
from PySide6.QtCore import QLineF, QRectF, Qt
from PySide6.QtGui import QBrush, QColor, QPainter, QPen, QPolygonF

DOT = 6.0  # pixels across
PATH_LIMIT = 160  # a dashed line of fewer points is left to Qt's own dashes


class Line:
    """One line, ready to be painted: its pen and its segments, or its pieces where Qt draws the dashes."""

    def __init__(self, x: np.ndarray, y: np.ndarray, pen: QPen, pixel: tuple[float, float]):
        self.pen = pen
        self.faint = pen.color().alpha() < 255
        self.segments: PrimitiveArray | None = None
        self.pieces: list[QPolygonF] = []
        joined = np.isfinite(y[1:]) & np.isfinite(y[:-1]) if len(y) > 1 else np.empty(0, dtype=bool)
        if pen.style() == Qt.PenStyle.SolidLine:
            self._segment(x, y, joined)
        elif len(x) > PATH_LIMIT:
            self.pen = QPen(pen)
            self.pen.setStyle(Qt.PenStyle.SolidLine)
            self._segment(x, y, joined & _dashed(x, y, pen, pixel))
        else:
            ends = np.flatnonzero(~joined) + 1
            for part in np.split(np.arange(len(x)), ends):
                if len(part) > 1:
                    self.pieces.append(pg.functions.arrayToQPolygonF(x[part], y[part]))

    def _segment(self, x: np.ndarray, y: np.ndarray, drawn: np.ndarray) -> None:
        count = int(drawn.sum())
        if not count:
            return
        self.segments = PrimitiveArray(QLineF, 4)
        self.segments.resize(count)
        memory = self.segments.ndarray()
        memory[:, 0], memory[:, 1] = x[:-1][drawn], y[:-1][drawn]
        memory[:, 2], memory[:, 3] = x[1:][drawn], y[1:][drawn]

    def paint(self, painter: QPainter) -> None:
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, not self.faint)
        painter.setPen(self.pen)
        if self.segments is not None:
            painter.drawLines(*self.segments.drawargs())
        for piece in self.pieces:
            painter.drawPolyline(piece)


def _dashed(x: np.ndarray, y: np.ndarray, pen: QPen, pixel: tuple[float, float]) -> np.ndarray:
    """Which segments lie on a stroke of the pen's pattern, by their length in pixels."""
    with np.errstate(invalid="ignore"):
        lengths = np.hypot(np.diff(x) / pixel[0], np.diff(y) / pixel[1])
    along = np.cumsum(np.where(np.isfinite(lengths), lengths, 0.0))
    pattern = np.cumsum(np.array(pen.dashPattern()) * max(pen.widthF(), 1.0))
    return np.searchsorted(pattern, along % pattern[-1], side="right") % 2 == 0


class Band:
    """The area between two lines."""

    def __init__(self, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: QColor):
        good = np.isfinite(low) & np.isfinite(high)
        x, low, high = x[good], low[good], high[good]
        self.colour = colour
        self.outline = pg.functions.arrayToQPolygonF(np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]]))

    def paint(self, painter: QPainter) -> None:
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QBrush(self.colour))
        painter.drawPolygon(self.outline)
        painter.setBrush(Qt.BrushStyle.NoBrush)


class Dots:
    """Points that no line reaches: a series of one point, or one between gaps."""

    def __init__(self, x: np.ndarray, y: np.ndarray, pen: QPen):
        good = np.concatenate([[False], np.isfinite(y), [False]])
        alone = good[1:-1] & ~good[:-2] & ~good[2:]
        self.points = pg.functions.arrayToQPolygonF(x[alone], y[alone]) if alone.any() else None
        self.pen = QPen(pen.color(), DOT, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap)
        self.pen.setCosmetic(True)

    def paint(self, painter: QPainter) -> None:
        if self.points is not None:
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            painter.setPen(self.pen)
            painter.drawPoints(self.points)


class Strokes(pg.GraphicsObject):
    """What a chart draws, in the order of `layers`: bands, faint lines, lines."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: dict[str, list[Line | Band | Dots]] = {}

    def set_layers(self, key: str, layers: list[Line | Band | Dots]) -> None:
        self.layers[key] = layers
        self.update()

    def remove(self, key: str) -> None:
        self.layers.pop(key, None)
        self.update()

    def boundingRect(self) -> QRectF:
        box = self.getViewBox()  # not viewRect(): that is kept from before the last change of the range
        return QRectF() if box is None else QRectF(box.viewRect())

    def viewTransformChanged(self) -> None:
        self.prepareGeometryChange()

    def dataBounds(self, axis: int, *_: Any, **__: Any) -> tuple[None, None]:
        return (None, None)

    def paint(self, painter: QPainter, *_: Any) -> None:
        every = [layer for layers in self.layers.values() for layer in layers]
        faint = [layer for layer in every if isinstance(layer, Line) and layer.faint]
        bands = [layer for layer in every if isinstance(layer, Band)]
        painter_order = [*bands, *faint, *(layer for layer in every if layer not in bands and layer not in faint)]
        for layer in painter_order:
            layer.paint(painter)
