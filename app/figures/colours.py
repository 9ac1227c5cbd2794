"""Numbers as colours: viridis, or blue - white - orange around zero, with the bar that explains them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QImage, QPainter, QPen

from app.charts import log_ticks, nice_ticks, tick_text
from app.figures.view import TICK, short
from app.theme import SIZE_SMALL, Theme

DIVERGING = ((0.0, (33, 102, 172)), (0.5, (247, 247, 247)), (1.0, (227, 114, 26)))
LEVELS = 256
BAR = 10.0  # pixels across
GAP = 8.0


@lru_cache(maxsize=4)
def colour_table(diverging: bool) -> np.ndarray:
    """[256, 4] as Qt's ARGB32 has them in memory (blue, green, red, alpha)."""
    if diverging:
        at, rgb = [place for place, _ in DIVERGING], np.array([c for _, c in DIVERGING], dtype=float)
        grid = np.linspace(0, 1, LEVELS)
        table = np.stack([np.interp(grid, at, rgb[:, channel]) for channel in range(3)], 1)
    else:
        table = pg.colormap.get("viridis").getLookupTable(nPts=LEVELS)[:, :3].astype(float)
    whole = np.full((LEVELS, 4), 255, dtype=np.uint8)
    whole[:, :3] = np.round(table[:, ::-1])
    return whole


class Scale:
    """From values to colours. Values that are not finite (or not positive on a logarithmic scale) have none."""

    def __init__(self, low: float, high: float, *, diverging: bool = False, log: bool = False, label: str = ""):
        self.low, self.high, self.diverging, self.log, self.label = low, high, diverging, log, label

    @classmethod
    def of(cls, values: Iterable[Any], *, diverging: bool = False, axis: Any = None) -> Scale:
        """The scale that spans all of the values."""
        axis = axis or {}
        flat = np.concatenate([np.ravel(each) for each in values] or [np.empty(0)])
        log = bool(axis.get("log")) and not diverging and bool((flat > 0).any())
        flat = flat[np.isfinite(flat) & ((flat > 0) | (not log))]
        low, high = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 1.0)
        if diverging:
            reach = max(abs(low), abs(high)) or 1.0
            low, high = -reach, reach
        if log:
            low, high = math.log10(low), math.log10(high)
        if high <= low:
            room = abs(low) * 0.05 or 0.5
            low, high = low - room, high + room
        return cls(low, high, diverging=diverging, log=log, label=str(axis.get("label") or ""))

    def share(self, values: Any) -> np.ndarray:
        """Where between the lowest and the highest: 0 to 1, NaN where there is no colour."""
        values = np.asarray(values, dtype=np.float64)
        if self.log:
            values = np.where(values > 0, np.log10(np.where(values > 0, values, 1.0)), np.nan)
        share = (np.where(np.isfinite(values), values, np.nan) - self.low) / (self.high - self.low)
        return np.clip(share, 0.0, 1.0)

    def level(self, values: Any, levels: int = LEVELS) -> np.ndarray:
        """The number of the colour; 0 where there is none."""
        share = np.nan_to_num(self.share(values), nan=0.0)
        return np.minimum((share * levels).astype(np.int64), levels - 1)

    def colours(self, levels: int = LEVELS) -> list[QColor]:
        table = colour_table(self.diverging)[np.linspace(0, LEVELS - 1, levels).astype(int)]
        return [QColor(int(r), int(g), int(b)) for b, g, r, _ in table]

    def colour(self, value: float) -> QColor:
        b, g, r, _ = colour_table(self.diverging)[int(self.level(value))]
        return QColor(int(r), int(g), int(b))

    def image(self, z: np.ndarray) -> QImage:
        """A picture of one pixel a value, the first row at the top; clear where there is no colour."""
        share = self.share(z)
        gaps = np.isnan(share)
        level = np.minimum(np.nan_to_num(share) * LEVELS, LEVELS - 1).astype(np.uint8)
        pixels = colour_table(self.diverging)[level]
        pixels[gaps] = 0
        return _picture(pixels)

    def ink(self, value: float) -> QColor:
        """Black or white, whichever is read better on a value's colour."""
        return QColor("#1C1B1A") if luminance(self.colour(value)) > 0.18 else QColor("#FFFFFF")

    # -- the bar -----------------------------------------------------------------------------------------------------

    def ticks(self, size: float) -> list[tuple[float, str]]:
        """Places along the bar (0 to 1 from below) with their words."""
        count = max(size / 34.0, 2.0)
        span = self.high - self.low
        if self.log:
            at = log_ticks(self.low, self.high, 0.0, count)
            return [((v - self.low) / span, short(10.0**v)) for v in at if self.low <= v <= self.high]
        spacing, values = nice_ticks(self.low, self.high, 0.0, count)
        return [((v - self.low) / span, tick_text(v, spacing)) for v in values if self.low <= v <= self.high]

    def bar_width(self, theme: Theme, height: float) -> float:
        """How much room the bar takes with its words."""
        metrics = QFontMetricsF(theme.font(TICK))
        widest = max((metrics.horizontalAdvance(text) for _, text in self.ticks(height)), default=0.0)
        return GAP + BAR + 4 + widest + (QFontMetricsF(theme.font(SIZE_SMALL)).height() + 2 if self.label else 0)

    def draw_bar(self, painter: QPainter, theme: Theme, right_of: QRectF) -> None:
        """The bar at the right of an area, as high as that is."""
        bar = QRectF(right_of.right() + GAP, right_of.top(), BAR, right_of.height())
        ramp = _picture(np.ascontiguousarray(colour_table(self.diverging)[::-1, None]))
        painter.drawImage(bar, ramp)
        painter.setPen(QPen(theme.colour("line"), 1))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawRect(bar)
        painter.setFont(theme.font(TICK))
        metrics = QFontMetricsF(painter.font())
        painter.setPen(theme.colour("muted"))
        widest, last = 0.0, math.inf
        for at, text in self.ticks(bar.height()):
            y = bar.bottom() - at * bar.height()
            if abs(y - last) < 0.8 * metrics.height():
                continue
            last = y
            y = min(max(y + metrics.ascent() / 2 - 1, bar.top() + metrics.ascent() - 2), bar.bottom() + 2)
            painter.drawText(QPointF(bar.right() + 4, y), text)
            widest = max(widest, metrics.horizontalAdvance(text))
        if self.label:
            painter.save()
            painter.setFont(theme.font(SIZE_SMALL))
            painter.translate(bar.right() + 4 + widest + 4 + painter.fontMetrics().ascent(), bar.center().y())
            painter.rotate(-90)
            middle = int(Qt.AlignmentFlag.AlignHCenter | Qt.AlignmentFlag.AlignBottom)
            half, high = bar.height() / 2, painter.fontMetrics().height()
            text = painter.fontMetrics().elidedText(self.label, Qt.TextElideMode.ElideRight, int(bar.height()))
            painter.drawText(QRectF(-half, -high + painter.fontMetrics().descent(), 2 * half, high), middle, text)
            painter.restore()


def luminance(colour: QColor) -> float:
    """How light a colour is, as contrast is reckoned."""
    parts = []
    for value in (colour.redF(), colour.greenF(), colour.blueF()):
        parts.append(value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4)
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def is_coloured(z: np.ndarray) -> bool:
    """Whether an array is three planes (or one) rather than rows."""
    return z.ndim == 3


def picture(z: np.ndarray) -> QImage:
    """Grey [h, w] or [1, h, w], or coloured [3, h, w] or [h, w, 3] values, between 0 and 1 or stretched to that."""
    z = np.asarray(z, dtype=np.float64)
    if z.ndim == 3 and z.shape[0] in (1, 3):
        z = z.transpose(1, 2, 0)
    if z.ndim == 2:
        z = z[:, :, None]
    finite = z[np.isfinite(z)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if z.shape[2] == 3 and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    level = np.nan_to_num((z - low) / ((high - low) or 1.0) * 255, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255)
    pixels = np.full((*z.shape[:2], 4), 255, dtype=np.uint8)
    pixels[:, :, :3] = np.round(level[:, :, ::-1])
    return _picture(pixels)


def turned(image: QImage, box: QRectF) -> QImage:
    """A picture as it stands in a box whose width or height may be negative: mirrored there."""
    if box.width() < 0:
        image = image.flipped(Qt.Orientation.Horizontal)
    return image.flipped(Qt.Orientation.Vertical) if box.height() < 0 else image


def _picture(pixels: np.ndarray) -> QImage:
    """[h, w, 4] bytes as a picture of its own."""
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    return QImage(pixels.data, width, height, 4 * width, QImage.Format.Format_ARGB32_Premultiplied).copy()
