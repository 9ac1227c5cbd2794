"""Figures of series: lines with bands, points, bars, histograms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QPainter, QPen

from app import words
from app.curves import thin
from app.figures.axes import Planar, Plane, Side
from app.figures.colours import Scale
from app.figures.view import (
    NEAR,
    TICK,
    Stamps,
    around,
    axis_label,
    axis_of,
    beside,
    csv_of,
    draw_halo,
    draw_lines,
    draw_tip,
    draws,
    many,
    ratio_of,
    span_said,
)
from app.theme import SIZE_SMALL, Theme
from engine.figures import array

WIDEST = 72.0  # pixels of a bar
MARKED = 40  # a line of at most so many points has them marked
VALUE_LEVELS = 64
FEW = 250
NAMED = 24  # at most so many points have their names beside them


@dataclass
class One:
    """One series as arrays."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    values: np.ndarray | None = None
    labels: list[Any] = field(default_factory=list)
    opens: list[Any] = field(default_factory=list)
    line: bool = False

    @classmethod
    def of(cls, series: Mapping[str, Any]) -> One:
        optional = {name: array(series[name]) if name in series else None for name in ("low", "high", "values")}
        return cls(
            str(series.get("name", "")), array(series["x"]), array(series["y"]), **optional,
            labels=list(series.get("labels", ())), opens=list(series.get("opens", ())), line=bool(series.get("line")),
        )  # fmt: skip


class Plot(Planar):
    """What all plots have: a plane with a legend above it."""

    def __init__(self, theme: Theme):
        super().__init__(theme)
        self.many: list[One] = []
        self.scale: Scale | None = None

    def prepare(self) -> None:
        before = self.plane
        self.plane = Plane(*self.sides())
        self.plane.equal = bool(self.figure.get("equal"))
        self.read()
        self.plane.keep_zoom(before)

    def sides(self) -> tuple[Side, Side]:
        """The two axes, without their ranges."""
        return Side.of(axis_of(self.figure, "x")), Side.of(axis_of(self.figure, "y"))

    def read(self) -> None:
        """Arrays from the figure, and the ranges of the plane."""
        raise NotImplementedError

    def paint(self, painter: QPainter) -> None:
        """Paints the data; the plane has its place and the painter is clipped to it."""
        raise NotImplementedError

    def draw(self, painter: QPainter, area: QRectF) -> None:
        top = self._legend(painter, area)
        area = area.adjusted(0, top, 0, 0)
        right = self.scale.bar_width(self.theme, area.height() - 30) if self.scale else 0.0
        self.plane.place(area, self.theme, right)
        self.plane.draw(painter, self.theme)
        painter.save()
        painter.setClipRect(self.plane.rect.adjusted(-1, -1, 1, 1))
        self.paint(painter)
        painter.restore()
        if self.scale:
            self.scale.draw_bar(painter, self.theme, self.plane.rect)

    def legend(self) -> list[tuple[int, str]]:
        """Number of the colour and name of each series."""
        return [(number, one.name) for number, one in enumerate(self.many) if one.name]

    def swatch(self, painter: QPainter, number: int, at: QPointF) -> None:
        """The sign of a series in the legend, 16 pixels wide around a place."""
        painter.setPen(self.theme.pen(number, 2.0))
        painter.drawLine(at - QPointF(8, 0), at + QPointF(8, 0))

    def _legend(self, painter: QPainter, area: QRectF) -> float:
        """Names of the series in as many lines as they need, three at most; returns their height."""
        entries = self.legend()
        if len(self.many) < 2:
            return 0.0
        painter.setFont(self.theme.font(SIZE_SMALL))
        metrics = QFontMetricsF(painter.font())
        high, left = metrics.height() + 2, area.left() + 6
        x, row, right = left, 0, area.right() - 8
        for count, (number, name) in enumerate(entries):
            name = metrics.elidedText(name, Qt.TextElideMode.ElideMiddle, right - left - 30)
            wide = 22 + metrics.horizontalAdvance(name) + 14
            if x + wide > right + 14 and x > left:
                x, row = left, row + 1
            rest = f"and {len(entries) - count} more"
            if row == 3 or (row == 2 and x + wide + 70 > right and count < len(entries) - 1):
                painter.setPen(self.theme.colour("muted"))
                painter.drawText(QPointF(x, area.top() + min(row, 2) * high + metrics.ascent()), rest)
                break
            y = area.top() + row * high + metrics.height() / 2
            self.swatch(painter, number, QPointF(x + 8, y))
            painter.setPen(self.theme.colour("muted"))
            painter.drawText(QPointF(x + 22, area.top() + row * high + metrics.ascent()), name)
            x += wide
        return (min(row, 2) + 1) * high + 2

    def height_for(self, width: int) -> int:
        if not self.plane.equal:
            return super().height_for(width)
        (x0, x1), (y0, y1) = self.plane.x.whole, self.plane.y.whole
        around = (8, 8) if self.plane.bare else (50, 40)
        high = (width - around[0]) * (y1 - y0) / max(x1 - x0, 1e-12) + around[1]
        return round(min(max(high, 160), 420, 0.9 * width + around[1]))

    def csv(self) -> str | None:
        heads = ("series", axis_label(self.figure, "x", "x"), axis_label(self.figure, "y", "y"))
        columns: list[list[Any]] = []
        extra = [name for name in ("low", "high", "values") if any(getattr(one, name) is not None for one in self.many)]
        named = any(one.labels for one in self.many)
        for one in self.many:
            more = [getattr(one, name) for name in extra]
            for i, (x, y) in enumerate(zip(one.x.tolist(), one.y.tolist(), strict=True)):
                row = [one.name, x, y, *("" if each is None else each[i] for each in more)]
                columns.append(row + ([one.labels[i] if one.labels else ""] if named else []))
        return csv_of([*heads, *extra, *(["label"] if named else [])], columns)


@draws("curve")
class CurveView(Plot):
    """Lines, each perhaps with a band; a crosshair tells the values of all."""

    def read(self) -> None:
        self.many = [One.of(series) for series in self.figure["series"]]
        self.plane.x.fit([one.x for one in self.many], room=0.05 if self.plane.equal else 0.01)
        bands = [each for one in self.many for each in (one.low, one.high) if each is not None]
        self.plane.y.fit([*(one.y for one in self.many), *bands])
        self._rising = [bool((np.diff(one.x[np.isfinite(one.x)]) >= 0).all()) for one in self.many]

    def paint(self, painter: QPainter) -> None:
        plane = self.plane
        for number, one in enumerate(self.many):
            if one.low is not None and one.high is not None:
                self._band(painter, number, one)
        for number, one in enumerate(self.many):
            x, y = plane.across(one.x), plane.along(one.y)
            if self._rising[number]:
                x, y = self._thinned(x, y)
            pen = self.theme.pen(number, 1.6)
            if pen.style() == Qt.PenStyle.SolidLine:
                painter.setPen(pen)
                draw_lines(painter, x[:-1], y[:-1], x[1:], y[1:])
            else:
                self._dashed(painter, pen, x, y)
            good = np.isfinite(x) & np.isfinite(y)
            edge = np.concatenate([[False], good, [False]])
            alone = good if len(x) <= MARKED else good & ~edge[:-2] & ~edge[2:]
            if alone.any():
                stamps = Stamps([self.theme.series(number)], 4.5, ratio_of(painter))
                stamps.draw(painter, x[alone], y[alone], np.zeros(1))

    def _thinned(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is on screen, with about two points a pixel."""
        inside = np.flatnonzero((x >= self.plane.rect.left() - 2) & (x <= self.plane.rect.right() + 2))
        if inside.size and len(x) > 2 * self.plane.rect.width():
            first, last = max(inside[0] - 1, 0), min(inside[-1] + 2, len(x))
            return thin(x[first:last], y[first:last], max(int(self.plane.rect.width()), 16))
        return x, y

    def _dashed(self, painter: QPainter, pen: QPen, x: np.ndarray, y: np.ndarray) -> None:
        painter.setPen(pen)
        ends = np.flatnonzero(~(np.isfinite(x) & np.isfinite(y)))
        for part in np.split(np.arange(len(x)), ends):
            part = part[np.isfinite(x[part]) & np.isfinite(y[part])]
            if len(part) > 1:
                painter.drawPolyline(pg.functions.arrayToQPolygonF(x[part], y[part]))

    def _band(self, painter: QPainter, number: int, one: One) -> None:
        assert one.low is not None and one.high is not None
        x, low, high = self.plane.across(one.x), self.plane.along(one.low), self.plane.along(one.high)
        good = np.isfinite(x) & np.isfinite(low) & np.isfinite(high)
        if good.sum() < 2:
            return
        colour = QColor(self.theme.series(number))
        colour.setAlphaF(0.2)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(colour)
        x, low, high = x[good], low[good], high[good]
        outline = np.concatenate([x, x[::-1]]), np.concatenate([low, high[::-1]])
        painter.drawPolygon(pg.functions.arrayToQPolygonF(*outline))
        painter.setBrush(Qt.BrushStyle.NoBrush)

    def over(self, painter: QPainter) -> None:
        spot, plane = self.spot, self.plane
        if spot is None or not plane.rect.contains(spot):
            return
        if not all(self._rising):
            self._over_path(painter, spot)
            return
        at = plane.x.plain(plane.at(spot)[0])
        said, place = [], spot.x()
        for number, one in enumerate(self.many):
            found = self._nearest(one, at)
            if found is None:
                continue
            place = float(plane.across(one.x[found]))
            said.append(f"{one.name}  {words.number(float(one.y[found]))}{_band_said(one, found)}".strip())
            y = float(plane.along(one.y[found]))
            if math.isfinite(y):
                painter.setPen(QPen(self.theme.colour("surface"), 1))
                painter.setBrush(self.theme.series(number))
                painter.drawEllipse(QPointF(place, y), 3.5, 3.5)
        if said:
            painter.setPen(QPen(self.theme.colour("muted"), 1))
            painter.drawLine(QPointF(place, plane.rect.top()), QPointF(place, plane.rect.bottom()))
            x = plane.x.plain(plane.at(QPointF(place, 0))[0])
            head = f"{axis_label(self.figure, 'x', 'x')}  {words.number(x)}"
            draw_tip(painter, self.theme, QPointF(place, spot.y()), plane.rect, [head, *said])

    def _nearest(self, one: One, at: float) -> int | None:
        good = np.flatnonzero(np.isfinite(one.x))
        if not good.size:
            return None
        return int(good[np.abs(one.x[good] - at).argmin()])

    def _over_path(self, painter: QPainter, spot: QPointF) -> None:
        best = (NEAR, 0, 0)
        for number, one in enumerate(self.many):
            away = np.hypot(self.plane.across(one.x) - spot.x(), self.plane.along(one.y) - spot.y())
            away = np.where(np.isfinite(away), away, np.inf)
            if away.size and away.min() < best[0]:
                best = (float(away.min()), number, int(away.argmin()))
        if best[0] < NEAR:
            one, i = self.many[best[1]], best[2]
            said = [f"{one.name}, point {i + 1}"] + [
                f"{axis_label(self.figure, name, name)}  {words.number(float(values[i]))}"
                for name, values in (("x", one.x), ("y", one.y))
            ]
            draw_tip(painter, self.theme, spot, self.plane.rect, said)

    def text(self) -> str:
        x, y = axis_label(self.figure, "x", "x"), axis_label(self.figure, "y", "y")
        said = []
        for one in self.many:
            good = np.flatnonzero(np.isfinite(one.y) & np.isfinite(one.x))
            if not good.size:
                said.append(f"{one.name or 'it'} has no values.")
                continue
            first, last = float(one.y[good[0]]), float(one.y[good[-1]])
            said.append(
                f"{one.name or y} goes from {words.number(first)} to {words.number(last)}, "
                f"between {span_said(one.y).replace(' to ', ' and ')}, over {x} {span_said(one.x)}."
            )
        return f"{many(len(self.many), 'curve')} of {y} over {x}. " + " ".join(said)


def _band_said(one: One, i: int) -> str:
    if one.low is None or one.high is None:
        return ""
    return f"  ({words.number(float(one.low[i]))} to {words.number(float(one.high[i]))})"


@draws("scatter")
class ScatterView(Plot):
    """Points, coloured by their series or their values; some open a recipe."""

    def __init__(self, theme: Theme):
        super().__init__(theme)
        self.chosen: tuple[int, int] | None = None  # series and point that the keys have reached

    def read(self) -> None:
        self.many = [One.of(series) for series in self.figure["series"]]
        self.plane.x.fit([one.x for one in self.many])
        self.plane.y.fit([one.y for one in self.many])
        values = [one.values for one in self.many if one.values is not None]
        self.scale = Scale.of(values, axis=axis_of(self.figure, "colour")) if values else None
        self.chosen = None

    @property
    def _count(self) -> int:
        return sum(len(one.x) for one in self.many)

    def _size(self) -> float:
        count = self._count
        return 9.0 if count <= 60 else 7.0 if count <= 400 else 5.0 if count <= 3000 else 3.5

    def paint(self, painter: QPainter) -> None:
        size, ratio = self._size(), ratio_of(painter)
        alpha = 1.0 if self._count <= FEW else 0.7  # of many, those that are covered shine through
        for number, one in enumerate(self.many):
            x, y = self.plane.across(one.x), self.plane.along(one.y)
            if one.line:
                pen = self.theme.pen(number, 1.4)
                colour = QColor(self.theme.series(number) if one.values is None else self.theme.colour("muted"))
                pen.setColor(colour)
                painter.setPen(pen)
                draw_lines(painter, x[:-1], y[:-1], x[1:], y[1:])
                if len(x) > MARKED and one.values is None and not (one.labels or any(one.opens)):
                    continue  # a fitted line, not points that happen to be joined
            if one.values is None:
                colours, which = [QColor(self.theme.series(number))], np.zeros(len(x))
            else:
                assert self.scale is not None
                colours = [*self.scale.colours(VALUE_LEVELS), self.theme.colour("line")]
                which = np.where(np.isfinite(self.scale.share(one.values)),
                                 self.scale.level(one.values, VALUE_LEVELS), VALUE_LEVELS)  # fmt: skip
            for colour in colours:
                colour.setAlphaF(alpha)
            rim = self.theme.colour("text" if any(one.opens) else "surface" if one.values is None else "muted")
            Stamps(colours, size, ratio, rim if size >= 7 else None).draw(painter, x, y, which)
        self._names(painter)

    def _names(self, painter: QPainter) -> None:
        """The names of few points stand beside them, where there is room."""
        if not 0 < sum(len(one.labels) for one in self.many) <= NAMED:
            return
        painter.setFont(self.theme.font(TICK))
        metrics = QFontMetricsF(painter.font())
        places = [(self.plane.across(one.x), self.plane.along(one.y)) for one in self.many]
        size = self._size()
        taken = [box for x, y in places for box in around(x, y, size / 2)]
        for one, (xs, ys) in zip(self.many, places, strict=True):
            for x, y, name in zip(xs.tolist(), ys.tolist(), one.labels, strict=False):
                if not name or not (math.isfinite(x) and math.isfinite(y)):
                    continue
                wide, high = metrics.horizontalAdvance(str(name)), metrics.height() - 2
                free = [
                    box
                    for box in beside(x, y, size / 2 + 3, wide, high)
                    if self.plane.rect.contains(box) and not any(box.intersects(other) for other in taken)
                ]
                if free:
                    taken.append(free[0].adjusted(-4, 0, 4, 0))
                    at = QPointF(free[0].left(), free[0].top() + metrics.ascent() - 1)
                    draw_halo(painter, self.theme, at, str(name))

    def swatch(self, painter: QPainter, number: int, at: QPointF) -> None:
        painter.setPen(Qt.PenStyle.NoPen)
        coloured = self.many[number].values is not None
        painter.setBrush(self.theme.colour("muted") if coloured else self.theme.series(number))
        painter.drawEllipse(at, 4, 4)
        if self.many[number].line:
            super().swatch(painter, number, at)

    def point_at(self, place: QPointF) -> tuple[int, int] | None:
        """Series and number of the point under a place; of those that lie on each other, the one on top."""
        best, found = NEAR, None
        for number, one in enumerate(self.many):
            away = np.hypot(self.plane.across(one.x) - place.x(), self.plane.along(one.y) - place.y())
            away = np.where(np.isfinite(away), away, np.inf)
            if away.size and float(away.min()) <= best:
                best, found = float(away.min()), (number, int(away.argmin()))
        return found

    def place_of(self, series: int, point: int) -> QPointF:
        """Where a point lies on the widget."""
        one = self.many[series]
        return QPointF(float(self.plane.across(one.x[point])), float(self.plane.along(one.y[point])))

    def changes_of(self, point: tuple[int, int] | None) -> dict[str, Any] | None:
        """What a point changes in the recipe; None where it opens nothing."""
        if point is None:
            return None
        opens = self.many[point[0]].opens
        changes = opens[point[1]] if point[1] < len(opens) else None
        return None if changes is None else dict(changes)

    def over(self, painter: QPainter) -> None:
        inside = self.spot is not None and self.plane.rect.adjusted(-4, -4, 4, 4).contains(self.spot)
        found = self.point_at(self.spot) if inside and self.spot is not None else self.chosen
        opens = self.changes_of(found) is not None
        self.setCursor(Qt.CursorShape.PointingHandCursor if opens and inside else Qt.CursorShape.ArrowCursor)
        if found is None:
            return
        place = self.place_of(*found)
        painter.setPen(QPen(self.theme.colour("accent"), 2))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawEllipse(place, self._size() / 2 + 3, self._size() / 2 + 3)
        draw_tip(painter, self.theme, place, self.plane.rect, self.said(found))

    def said(self, point: tuple[int, int]) -> list[str]:
        """A point in words, a line each."""
        one, i = self.many[point[0]], point[1]
        lines = [str(one.labels[i])] if i < len(one.labels) and one.labels[i] else []
        if len(self.many) > 1 and one.name:
            lines.append(one.name)
        for name, values in (("x", one.x), ("y", one.y)):
            lines.append(f"{axis_label(self.figure, name, name)}  {words.number(float(values[i]))}")
        if one.values is not None:
            lines.append(f"{axis_label(self.figure, 'colour', 'value')}  {words.number(float(one.values[i]))}")
        changes = self.changes_of(point)
        if changes is not None:
            lines += [f"{path} = {value}"[:60] for path, value in list(changes.items())[:6]]
            lines.append("Click to open its recipe")
        return lines

    def click(self, at: QPointF) -> None:
        changes = self.changes_of(self.point_at(at))
        if changes is not None:
            self.opened.emit(changes)

    def key(self, key: int) -> bool:
        """Left and right go from point to point, from left to right; Return opens."""
        points = [(s, i) for s, one in enumerate(self.many) for i in range(len(one.x))]
        points = [
            p for p in points if math.isfinite(self.many[p[0]].x[p[1]]) and math.isfinite(self.many[p[0]].y[p[1]])
        ]
        points.sort(key=lambda p: float(self.many[p[0]].x[p[1]]))
        if key in (Qt.Key.Key_Left, Qt.Key.Key_Right) and points:
            step = 1 if key == Qt.Key.Key_Right else -1
            at = points.index(self.chosen) + step if self.chosen in points else (0 if step > 0 else -1)
            self.chosen, self.spot = points[at % len(points)], None
            self.setAccessibleDescription(", ".join(self.said(self.chosen)))
            self.update()
            return True
        if key in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and self.changes_of(self.chosen) is not None:
            self.opened.emit(self.changes_of(self.chosen))
            return True
        return False

    def text(self) -> str:
        x, y = axis_label(self.figure, "x", "x"), axis_label(self.figure, "y", "y")
        said = [
            f"{one.name or 'The points'}: {many(len(one.x), 'point')}, {x} {span_said(one.x)}, {y} {span_said(one.y)}"
            + (f", coloured by {span_said(one.values)}" if one.values is not None else "")
            + "."
            for one in self.many
        ]
        opening = sum(changes is not None for one in self.many for changes in one.opens)
        said += [
            f"{many(opening, 'point')} can be opened as a recipe: choose with left and right, open with Return."
        ] * (opening > 0)
        return f"Points of {y} against {x}. " + " ".join(said)


@draws("bars")
class BarsView(Plot):
    """Bars from zero over words: upright, or lying where the words are long."""

    zoomable = False

    def read(self) -> None:
        series = self.figure["series"]
        self.ticks: list[str] = list(dict.fromkeys(_tick(each) for one in series for each in one["x"]))
        at = {tick: number for number, tick in enumerate(self.ticks)}
        self.many = []
        for one in series:
            place = np.array([at[_tick(each)] for each in one["x"]], dtype=np.float64)
            self.many.append(One.of({**one, "x": place}))
        self.value = Side.of(axis_of(self.figure, "y"))
        self.name = Side(axis_label(self.figure, "x"), words=self.ticks)
        self.name.whole = (-0.5, len(self.ticks) - 0.5)
        every = [each for one in self.many for each in (one.y, one.low, one.high) if each is not None]
        self.value.fit(every, floor=0.0)

    def height_for(self, width: int) -> int:
        return max(230, 70 + 16 * len(self.ticks) * max(1, len(self.many))) if self._lying(width) else 230

    def _lying(self, width: float) -> bool:
        metrics = QFontMetricsF(self.theme.font(TICK))
        longest = max((metrics.horizontalAdvance(tick) for tick in self.ticks), default=0.0)
        return longest + 6 > (width - 60) / max(len(self.ticks), 1)

    def draw(self, painter: QPainter, area: QRectF) -> None:
        self.lying = self._lying(area.width())
        self.plane = Plane(self.value, self.name, down=True) if self.lying else Plane(self.name, self.value)
        super().draw(painter, area)

    def _box(self, one: One, number: int, i: int) -> QRectF:
        slot = (self.plane.rect.height() if self.lying else self.plane.rect.width()) / max(len(self.ticks), 1)
        whole = min(0.8, WIDEST * len(self.many) / max(slot, 1.0))
        wide = whole / len(self.many)
        middle = one.x[i] - whole / 2 + wide * (number + 0.5)
        base = 0.0 if not self.value.log else self.value.plain(self.value.seen[0])
        ends = (base, float(one.y[i]))
        if self.lying:
            x0, x1 = (float(self.plane.across(v)) for v in ends)
            y0, y1 = (float(self.plane.along_scaled(middle + d)) for d in (-wide / 2, wide / 2))
        else:
            y0, y1 = (float(self.plane.along(v)) for v in ends)
            x0, x1 = (float(self.plane.across_scaled(middle + d)) for d in (-wide / 2, wide / 2))
        gap = min(1.0, abs((y1 - y0) if self.lying else (x1 - x0)) * 0.1)
        box = QRectF(QPointF(min(x0, x1), min(y0, y1)), QPointF(max(x0, x1), max(y0, y1)))
        return box.adjusted(0, gap, 0, -gap) if self.lying else box.adjusted(gap, 0, -gap, 0)

    def paint(self, painter: QPainter) -> None:
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, sum(len(one.x) for one in self.many) < 400)
        for number, one in enumerate(self.many):
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(self.theme.series(number))
            for i in range(len(one.x)):
                if math.isfinite(one.y[i]):
                    painter.drawRect(self._box(one, number, i))
            self._whiskers(painter, number, one)
        painter.setPen(QPen(self.theme.colour("muted"), 1))
        rect = self.plane.rect
        if self.lying and not self.value.log:
            x = float(self.plane.across(0.0))
            painter.drawLine(QPointF(x, rect.top()), QPointF(x, rect.bottom()))
        elif not self.value.log:
            y = float(self.plane.along(0.0))
            painter.drawLine(QPointF(rect.left(), y), QPointF(rect.right(), y))

    def _whiskers(self, painter: QPainter, number: int, one: One) -> None:
        if one.low is None or one.high is None:
            return
        painter.setPen(QPen(self.theme.colour("text"), 1.2))
        for i in range(len(one.x)):
            middle = self._box(one, number, i).center()
            if self.lying:
                ends = [QPointF(float(self.plane.across(v[i])), middle.y()) for v in (one.low, one.high)]
                cap = QPointF(0, 3)
            else:
                ends = [QPointF(middle.x(), float(self.plane.along(v[i]))) for v in (one.low, one.high)]
                cap = QPointF(3, 0)
            if all(math.isfinite(end.x()) and math.isfinite(end.y()) for end in ends):
                painter.drawLine(*ends)
                for end in ends:
                    painter.drawLine(end - cap, end + cap)

    def swatch(self, painter: QPainter, number: int, at: QPointF) -> None:
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self.theme.series(number))
        painter.drawRect(QRectF(at.x() - 5, at.y() - 5, 10, 10))

    def over(self, painter: QPainter) -> None:
        if self.spot is None or not self.plane.rect.contains(self.spot):
            return
        x, y = self.plane.at(self.spot)
        slot = round(y if self.lying else x)
        if not 0 <= slot < len(self.ticks):
            return
        said = [self.ticks[slot]]
        for one in self.many:
            for i in np.flatnonzero(one.x == slot):
                said.append(f"{one.name}  {words.number(float(one.y[i]))}{_band_said(one, int(i))}".strip())
        draw_tip(painter, self.theme, self.spot, self.plane.rect, said)

    def drag(self, by: QPointF) -> None:
        """Bars always show all."""

    def text(self) -> str:
        said = []
        for one in self.many:
            pairs = [f"{self.ticks[int(x)]} {words.number(float(y))}" for x, y in zip(one.x, one.y, strict=True)]
            said.append(f"{one.name or 'The bars'}: " + ", ".join(pairs[:30]) + (" …" if len(pairs) > 30 else "") + ".")
        return f"Bars of {axis_label(self.figure, 'y', 'values')}. " + " ".join(said)

    def csv(self) -> str | None:
        rows = [
            [one.name, self.ticks[int(x)], y] for one in self.many for x, y in zip(one.x, one.y.tolist(), strict=True)
        ]
        return csv_of(("series", axis_label(self.figure, "x", "x"), axis_label(self.figure, "y", "y")), rows)


def _tick(value: Any) -> str:
    return value if isinstance(value, str) else words.number(value)


@draws("histogram")
class HistogramView(Plot):
    """Counts between edges, several over each other."""

    def read(self) -> None:
        self.many = []
        for one in self.figure["series"]:
            edges, counts = array(one["edges"]), array(one["counts"])
            self.many.append(One(str(one.get("name", "")), edges, np.append(counts, 0.0)))
        self.plane.x.fit([one.x for one in self.many], room=0.0)
        self.plane.y.fit([one.y for one in self.many], floor=0.0)

    def paint(self, painter: QPainter) -> None:
        base = self.plane.rect.bottom() if self.plane.y.log else float(self.plane.along(0.0))
        for number, one in enumerate(self.many):
            x, y = self.plane.across(one.x), np.nan_to_num(self.plane.along(one.y[:-1]), nan=base)
            steps_x, steps_y = np.repeat(x, 2), np.concatenate([[base], np.repeat(y, 2), [base]])
            good = np.isfinite(steps_x)
            outline = pg.functions.arrayToQPolygonF(steps_x[good], steps_y[good])
            colour = QColor(self.theme.series(number))
            colour.setAlphaF(0.35 if len(self.many) > 1 else 0.55)
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(colour)
            painter.drawPolygon(outline)
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(self.theme.pen(number, 1.4))
            draw_lines(painter, steps_x[:-1], steps_y[:-1], steps_x[1:], steps_y[1:])

    def swatch(self, painter: QPainter, number: int, at: QPointF) -> None:
        BarsView.swatch(self, painter, number, at)  # type: ignore[arg-type]

    def over(self, painter: QPainter) -> None:
        if self.spot is None or not self.plane.rect.contains(self.spot):
            return
        at = self.plane.x.plain(self.plane.at(self.spot)[0])
        said = []
        for one in self.many:
            i = int(np.searchsorted(one.x, at, side="right")) - 1
            if 0 <= i < len(one.x) - 1:
                span = f"{words.number(float(one.x[i]))} to {words.number(float(one.x[i + 1]))}"
                said.append(f"{one.name}  {span}:  {words.number(float(one.y[i]))}".strip())
        if said:
            draw_tip(painter, self.theme, self.spot, self.plane.rect, said)

    def text(self) -> str:
        said = []
        for one in self.many:
            total = float(np.nansum(one.y))
            middle = (one.x[:-1] + one.x[1:]) / 2
            mean = words.number(float(np.nansum(middle * one.y[:-1]) / total)) if total else "unknown"
            peak = int(np.nanargmax(one.y[:-1])) if np.isfinite(one.y[:-1]).any() else 0
            ends = f"{words.number(float(one.x[peak]))} and {words.number(float(one.x[peak + 1]))}"
            said.append(
                f"{one.name or 'It'}: {words.number(total)} in {many(len(middle), 'bin')} over {span_said(one.x)}, "
                f"most between {ends}, mean {mean}."
            )
        return f"Histogram of {axis_label(self.figure, 'x', 'values')}. " + " ".join(said)

    def csv(self) -> str | None:
        rows = [[one.name, one.x[i], one.x[i + 1], one.y[i]] for one in self.many for i in range(len(one.x) - 1)]
        return csv_of(("series", "from", "to", axis_label(self.figure, "y", "count")), rows)
