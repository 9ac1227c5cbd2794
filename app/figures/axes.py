"""A plane with two axes: ranges, ticks, what a person zooms to, and from numbers to pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QFontMetricsF, QPainter, QPen

from app import words
from app.charts import LEVEL_PIXELS, UPRIGHT_PIXELS, log_ticks, nice_ticks, tick_text
from app.figures.view import TICK, Canvas, short
from app.theme import SIZE_SMALL, Theme

FAR = 1e5  # pixels: lines that end further away are cut there


@dataclass
class Side:
    """One axis. Ranges are of scaled values: exponents of ten where it is logarithmic."""

    label: str = ""
    log: bool = False
    words: Sequence[str] | None = None  # at 0, 1, 2 ...
    whole: tuple[float, float] = (0.0, 1.0)
    shown: tuple[float, float] | None = None  # what a person zoomed to
    seen: tuple[float, float] = (0.0, 1.0)  # what is on screen, in one scale with the other where that is wanted

    @classmethod
    def of(cls, axis: Mapping[str, Any] | None) -> Side:
        axis = axis or {}
        return cls(str(axis.get("label") or ""), bool(axis.get("log")))

    def scaled(self, values: Any) -> np.ndarray:
        values = np.asarray(values, dtype=np.float64)
        if not self.log:
            return np.where(np.isfinite(values), values, np.nan)
        with np.errstate(invalid="ignore"):
            good = np.isfinite(values) & (values > 0)
        return np.where(good, np.log10(np.where(good, values, 1.0)), np.nan)

    def plain(self, scaled: float) -> float:
        return 10.0**scaled if self.log else scaled

    def fit(self, every: Iterable[np.ndarray], room: float = 0.05, floor: float | None = None) -> None:
        """Spans all of the (plain) values, with some room; `floor` is a value that is seen too."""
        values = np.concatenate([np.empty(0), *(self.scaled(each).ravel() for each in every)])
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
        if floor is not None and not self.log:
            low, high = min(low, floor), max(high, floor)
        if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
            more = 0.5 if self.log else abs(low) * 0.05 or 0.5
            low, high = low - more, high + more
        more = (high - low) * room
        at_floor = floor is not None and not self.log
        self.whole = (
            low if at_floor and low == floor else low - more,
            high if at_floor and high == floor else high + more,
        )

    def ticks(self, size: float, per: float, margin: float = 0.0) -> list[tuple[float, str]]:
        """Scaled places with their words, about one each `per` pixels."""
        low, high = min(self.seen), max(self.seen)
        if not (math.isfinite(low) and math.isfinite(high) and high > low and size > 0):
            return []
        if self.words is not None:
            inside = [i for i in range(len(self.words)) if low <= i <= high]
            every = max(1, math.ceil(len(inside) * 14.0 / size))
            return [(float(i), self.words[i]) for i in inside[::every]]
        count = max(size / per, 2.0)
        room = min(margin / size, 0.2) * (high - low)
        if self.log:
            return [(at, short(10.0**at)) for at in log_ticks(low, high, room, count) if low <= at <= high]
        spacing, values = nice_ticks(low, high, room, count)
        return [(at, tick_text(at, spacing)) for at in values if low <= at <= high]

    def said(self, value: float) -> str:
        """A plain value on this axis in words."""
        if self.words is not None and math.isfinite(value) and 0 <= round(value) < len(self.words):
            return self.words[round(value)]
        return words.number(value)


@dataclass
class Plane:
    """Two axes over an area of pixels; y grows upward, or downward where `down` says so."""

    x: Side = field(default_factory=Side)
    y: Side = field(default_factory=Side)
    equal: bool = False  # both in one scale
    down: bool = False
    bare: bool = False  # no ticks, no grid
    grid: bool = True
    area: QRectF = field(default_factory=QRectF)  # with the words around
    rect: QRectF = field(default_factory=QRectF)  # of the plot itself
    _left: float = 0.0

    @property
    def zoomed(self) -> bool:
        return self.x.shown is not None or self.y.shown is not None

    def keep_zoom(self, before: Plane) -> None:
        """Goes on showing what a person zoomed to."""
        if (self.x.log, self.y.log) == (before.x.log, before.y.log):
            self.x.shown, self.y.shown, self._left = before.x.shown, before.y.shown, before._left

    # -- room --------------------------------------------------------------------------------------------------------

    def place(self, area: QRectF, theme: Theme, right: float = 0.0) -> None:
        """Finds the area of the plot itself: what the words around it leave, and at the right something else."""
        self.area = area
        self.x.seen, self.y.seen = self.x.shown or self.x.whole, self.y.shown or self.y.whole
        if self.bare:
            self.rect = area.adjusted(4, 4, -4 - right, -4)
        else:
            small, tick = QFontMetricsF(theme.font(SIZE_SMALL)), QFontMetricsF(theme.font(TICK))
            left = 6 + (small.height() + 2 if self.y.label else 0)
            bottom = 5 + tick.height() + (small.height() + 1 if self.x.label else 0)
            rough = area.height() - bottom - 6
            widest = max((tick.horizontalAdvance(text) for _, text in self._upright(rough)), default=0.0)
            left += min(widest, area.width() * 0.35)
            self._left = left = max(left, self._left) if self.zoomed else left  # the plot does not jump while one zooms
            wide = max(area.width() - left - right - 8, 20.0)
            if self._turned(wide, tick):
                longest = max(tick.horizontalAdvance(text) for text in self.x.words or [""])
                bottom += min(longest, area.height() * 0.35) - tick.height() + 2
            self.rect = QRectF(area.left() + left, area.top() + 6, wide, max(area.height() - bottom - 6, 20.0))
        if self.equal:
            self._equalize()

    def _turned(self, wide: float, tick: QFontMetricsF) -> bool:
        """Whether words below the plot stand on their side, because they have no room to lie."""
        if not self.x.words:
            return False
        low, high = self.x.seen
        slot = wide / max(abs(high - low), 1e-9)
        return max(tick.horizontalAdvance(text) for text in self.x.words) > slot - 4

    def _upright(self, size: float) -> list[tuple[float, str]]:
        return self.y.ticks(size, UPRIGHT_PIXELS, 0 if self.y.words is not None else 7.0)

    def _equalize(self) -> None:
        (x0, x1), (y0, y1) = self.x.seen, self.y.seen
        per = max(abs(x1 - x0) / max(self.rect.width(), 1), abs(y1 - y0) / max(self.rect.height(), 1))
        wide, high = per * self.rect.width(), per * self.rect.height()
        self.x.seen = (x0 + x1 - wide) / 2, (x0 + x1 + wide) / 2
        self.y.seen = (y0 + y1 - high) / 2, (y0 + y1 + high) / 2

    # -- to pixels and back ------------------------------------------------------------------------------------------

    def across(self, values: Any) -> np.ndarray:
        return self.across_scaled(self.x.scaled(values))

    def along(self, values: Any) -> np.ndarray:
        return self.along_scaled(self.y.scaled(values))

    def across_scaled(self, values: Any) -> np.ndarray:
        low, high = self.x.seen
        at = self.rect.left() + (np.asarray(values) - low) / (high - low) * self.rect.width()
        return np.clip(at, -FAR, FAR)

    def along_scaled(self, values: Any) -> np.ndarray:
        low, high = self.y.seen
        share = (np.asarray(values) - low) / (high - low)
        at = self.rect.top() + (share if self.down else 1 - share) * self.rect.height()
        return np.clip(at, -FAR, FAR)

    def at(self, place: QPointF) -> tuple[float, float]:
        """The scaled numbers at a place of pixels."""
        (x0, x1), (y0, y1) = self.x.seen, self.y.seen
        share = (place.y() - self.rect.top()) / max(self.rect.height(), 1)
        x = x0 + (place.x() - self.rect.left()) / max(self.rect.width(), 1) * (x1 - x0)
        return x, y0 + (share if self.down else 1 - share) * (y1 - y0)

    # -- zoom --------------------------------------------------------------------------------------------------------

    def zoom(self, place: QPointF, factor: float) -> None:
        """Shows less (factor > 1) or more around a place: of both axes, or of the one whose words it is over."""
        at = self.at(place)
        over_x, over_y = place.y() > self.rect.bottom(), place.x() < self.rect.left()
        for side, middle, moved in ((self.x, at[0], not over_y), (self.y, at[1], not over_x)):
            if moved or self.equal:
                low, high = side.seen
                span = max(abs(high - low) / factor, 1e-12 * max(abs(low), abs(high), 1e-300))
                if span <= 100 * abs(side.whole[1] - side.whole[0]):
                    share = (middle - low) / (high - low)
                    side.shown = (middle - share * span, middle + (1 - share) * span)

    def pan(self, by: QPointF) -> None:
        (x0, x1), (y0, y1) = self.x.seen, self.y.seen
        dx = by.x() / max(self.rect.width(), 1) * (x1 - x0)
        dy = by.y() / max(self.rect.height(), 1) * (y1 - y0) * (-1 if self.down else 1)
        self.x.shown, self.y.shown = (x0 - dx, x1 - dx), (y0 + dy, y1 + dy)

    def show_all(self) -> None:
        self.x.shown = self.y.shown = None

    # -- painting ----------------------------------------------------------------------------------------------------

    def draw(self, painter: QPainter, theme: Theme) -> None:
        """Grid, ticks and labels; the grid lies below what is drawn next."""
        if self.bare:
            return
        tick = theme.font(TICK)
        metrics = QFontMetricsF(tick)
        painter.setFont(tick)
        line, muted = QPen(theme.colour("line"), 1), theme.colour("muted")
        rect = self.rect
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)
        painter.setPen(line)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawRect(rect)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        room = rect.left() - self.area.left() - 6 - (metrics.height() + 3 if self.y.label else 0)
        last = math.inf
        for at, text in self._upright(rect.height()):
            y = float(self.along_scaled(at))
            if abs(y - last) < 0.8 * metrics.height():
                continue
            last = y
            if self.grid and self.y.words is None:
                self._rule(painter, line, QPointF(rect.left(), y), QPointF(rect.right(), y))
            painter.setPen(muted)
            text = metrics.elidedText(text, Qt.TextElideMode.ElideMiddle, room)
            baseline = y + metrics.ascent() / 2 - 1
            painter.drawText(QPointF(rect.left() - 4 - metrics.horizontalAdvance(text), baseline), text)
        self._draw_below(painter, line, metrics, theme)
        self._draw_labels(painter, theme)

    def _rule(self, painter: QPainter, pen: QPen, start: QPointF, end: QPointF) -> None:
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)
        painter.setPen(pen)
        painter.drawLine(start, end)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)

    def _draw_below(self, painter: QPainter, line: QPen, metrics: QFontMetricsF, theme: Theme) -> None:
        rect, muted = self.rect, theme.colour("muted")
        turned = self._turned(rect.width(), metrics)
        end = -math.inf
        for at, text in self.x.ticks(rect.width(), LEVEL_PIXELS * 0.8, 0.0 if self.x.words is not None else 12.0):
            x = float(self.across_scaled(at))
            if self.grid and self.x.words is None:
                self._rule(painter, line, QPointF(x, rect.top()), QPointF(x, rect.bottom()))
            painter.setPen(muted)
            if turned:
                text = metrics.elidedText(text, Qt.TextElideMode.ElideMiddle, self.area.height() * 0.35)
                painter.save()
                painter.translate(x + metrics.ascent() / 2 - 1, rect.bottom() + 5 + metrics.horizontalAdvance(text))
                painter.rotate(-90)
                painter.drawText(QPointF(0, 0), text)
                painter.restore()
                continue
            wide = metrics.horizontalAdvance(text)
            left = x - wide / 2
            if left < end + 6:
                continue
            painter.drawText(QPointF(left, rect.bottom() + 4 + metrics.ascent()), text)
            end = left + wide

    def _draw_labels(self, painter: QPainter, theme: Theme) -> None:
        painter.setFont(theme.font(SIZE_SMALL))
        metrics = QFontMetricsF(painter.font())
        painter.setPen(theme.colour("muted"))
        rect = self.rect
        if self.x.label:
            text = metrics.elidedText(self.x.label, Qt.TextElideMode.ElideRight, rect.width())
            x = rect.center().x() - metrics.horizontalAdvance(text) / 2
            painter.drawText(QPointF(x, self.area.bottom() - metrics.descent()), text)
        if self.y.label:
            text = metrics.elidedText(self.y.label, Qt.TextElideMode.ElideRight, rect.height())
            painter.save()
            painter.translate(
                self.area.left() + metrics.ascent() + 1, rect.center().y() + metrics.horizontalAdvance(text) / 2
            )
            painter.rotate(-90)
            painter.drawText(QPointF(0, 0), text)
            painter.restore()


class Planar(Canvas):
    """A view of one plane, which a person zooms and moves."""

    zoomable = True

    def __init__(self, theme: Theme):
        super().__init__(theme)
        self.plane = Plane()

    def zoom(self, at: QPointF, factor: float) -> None:
        self.plane.zoom(at, factor)
        self.redraw()

    def drag(self, by: QPointF) -> None:
        self.plane.pan(by)
        self.redraw()

    def show_all(self) -> None:
        self.plane.show_all()
        self.redraw()
