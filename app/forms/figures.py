"""Figures that come as data: curves, points, bars, heat maps, images and text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QRect, QSize, Qt
from PySide6.QtGui import QImage, QPainter, QPaintEvent, QPalette
from PySide6.QtWidgets import QPlainTextEdit, QVBoxLayout, QWidget

from app.forms.fields import fixed_font
from app.places import label
from app.theme import SIZE_SMALL, SPACE_S, Theme

DIVERGING = ((0.0, (33, 102, 172)), (0.5, (247, 247, 247)), (1.0, (227, 114, 26)))


class FigureView(QWidget):
    """Shows one figure. `text()` says it in words for who cannot see it."""

    def __init__(self, theme: Theme):
        super().__init__()
        self.theme = theme
        self.figure: Mapping[str, Any] = {}
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(0, 0, 0, 0)
        self.column.setSpacing(SPACE_S)
        self._inside: list[QWidget] = []
        theme.changed.connect(self._again)

    def show_figure(self, figure: Mapping[str, Any]) -> None:
        """Draws a figure; nothing happens when it is the one that is shown."""
        if figure != self.figure:
            self.figure = dict(figure)
            self._again()

    def _again(self) -> None:
        for widget in self._inside:
            self.column.removeWidget(widget)
            widget.hide()
            widget.deleteLater()
        self._inside = []
        if not self.figure:
            return
        if self.figure.get("title"):
            self._inside.append(label(str(self.figure["title"]), "section"))
        self._inside.append(self._drawn())
        for widget in self._inside:
            self.column.addWidget(widget, 1 if widget is self._inside[-1] else 0)
        self.setAccessibleName(str(self.figure.get("title", "Figure")))

    def _drawn(self) -> QWidget:
        kind = self.figure.get("kind")
        if kind == "image-grid":
            return ImageGrid(self.figure, self.theme)
        if kind in ("curve", "scatter", "bars"):
            return plot(self.figure, self.theme)
        if kind in ("heatmap", "surface"):
            return heat_map(self.figure, self.theme)
        text = QPlainTextEdit(str(self.figure.get("text", "")))
        text.setReadOnly(True)
        text.setFont(fixed_font(self.theme))
        return text


class ImageGrid(QWidget):
    """Small images with captions, as many to a line as fit."""

    def __init__(self, figure: Mapping[str, Any], theme: Theme):
        super().__init__()
        self.theme = theme
        self.images = [_image(np.asarray(image, dtype=np.float64)) for image in figure.get("images", [])]
        self.captions = [str(caption) for caption in figure.get("captions", [])]
        self.setMinimumHeight(80)

    def sizeHint(self) -> QSize:
        return QSize(320, 240)

    def paintEvent(self, event: QPaintEvent) -> None:
        if not self.images:
            return
        painter = QPainter(self)
        painter.setFont(self.theme.font(SIZE_SMALL))
        painter.setPen(self.palette().color(QPalette.ColorRole.PlaceholderText))
        below = 16 if self.captions else 0
        columns, side = _fit(len(self.images), self.width(), self.height(), below)
        for number, image in enumerate(self.images):
            x = (number % columns) * (side + SPACE_S)
            y = (number // columns) * (side + below + SPACE_S)
            painter.drawImage(QRect(x, y, side, side), image)
            if number < len(self.captions):
                middle = int(Qt.AlignmentFlag.AlignCenter)
                painter.drawText(QRect(x, y + side, side, below), middle, self.captions[number])


def _fit(count: int, width: int, height: int, below: int) -> tuple[int, int]:
    """Columns and side of the largest squares that all fit; at most 96 px."""
    best = (1, 8)
    for columns in range(1, count + 1):
        rows = math.ceil(count / columns)
        across = (width + SPACE_S) // columns - SPACE_S
        down = (height + SPACE_S) // rows - SPACE_S - below
        side = min(across, down, 96)
        if side > best[1]:
            best = (columns, side)
    return best


def _image(values: np.ndarray) -> QImage:
    """Grey [H, W] or coloured [3, H, W] / [H, W, 3] values, stretched to what they span."""
    if values.ndim == 3 and values.shape[0] in (1, 3):
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    data = np.nan_to_num((values - low) / (high - low or 1.0) * 255).astype(np.uint8)
    data = np.ascontiguousarray(data)
    grey = data.ndim == 2
    form = QImage.Format.Format_Grayscale8 if grey else QImage.Format.Format_RGB888
    return QImage(data.tobytes(), data.shape[1], data.shape[0], data.strides[0], form).copy()


def plot(figure: Mapping[str, Any], theme: Theme) -> pg.PlotWidget:
    """Lines, points or bars."""
    widget = _axes(figure, theme)
    series = figure.get("series", [])
    if len(series) > 1:
        legend = widget.addLegend(offset=(-8, 8), labelTextColor=theme.tokens.muted)
        legend.setPen(None)
    for number, one in enumerate(series):
        x, y = np.asarray(one["x"]), np.asarray(one["y"], dtype=np.float64)
        name = str(one.get("name", ""))
        if figure["kind"] == "bars":
            places = np.arange(len(y)) + (number - (len(series) - 1) / 2) * 0.8 / len(series)
            bars = pg.BarGraphItem(
                x=places, height=y, width=0.8 / len(series), brush=theme.series(number), pen=None, name=name
            )
            widget.addItem(bars)
            widget.getAxis("bottom").setTicks([[(i, str(tick)) for i, tick in enumerate(x)]])
        elif figure["kind"] == "scatter":
            widget.addItem(pg.ScatterPlotItem(x=x, y=y, size=5, pen=None, brush=theme.series(number), name=name))
        else:
            widget.addItem(pg.PlotDataItem(x, y, pen=theme.pen(number), name=name))
    return widget


def heat_map(figure: Mapping[str, Any], theme: Theme) -> pg.PlotWidget:
    """A matrix in viridis, or in blue - white - orange where the figure says that zero is its centre."""
    widget = _axes(figure, theme)
    z = np.asarray(figure["z"], dtype=np.float64)
    image = pg.ImageItem(z, axisOrder="row-major")
    if figure.get("diverging"):
        image.setColorMap(pg.ColorMap([p for p, _ in DIVERGING], [c for _, c in DIVERGING]))
        reach = float(np.nanmax(np.abs(z))) or 1.0
        image.setLevels((-reach, reach))
    else:
        image.setColorMap(pg.colormap.get("viridis"))
    x, y = (np.asarray(figure.get(axis, {}).get("values") or [0, 1], dtype=np.float64) for axis in "xy")
    image.setRect(float(x[0]), float(y[0]), float(x[-1] - x[0]) or 1.0, float(y[-1] - y[0]) or 1.0)
    widget.addItem(image)
    return widget


def _axes(figure: Mapping[str, Any], theme: Theme) -> pg.PlotWidget:
    widget = pg.PlotWidget(background=theme.tokens.surface)
    widget.setMenuEnabled(False)
    widget.hideButtons()
    for side, axis in (("bottom", "x"), ("left", "y")):
        item = widget.getAxis(side)
        item.setPen(theme.tokens.line)
        item.setTextPen(theme.tokens.muted)
        item.setLabel(str(figure.get(axis, {}).get("label", "")))
    return widget
