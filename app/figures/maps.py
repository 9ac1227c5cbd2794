"""Figures over a plane: heat maps, surfaces with isolines, arrows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QImage, QPainter, QPen

from app import words
from app.charts import log_ticks, nice_ticks
from app.figures.axes import Side
from app.figures.colours import Scale, turned
from app.figures.isolines import isolines
from app.figures.series import Plot
from app.figures.view import (
    TICK,
    axis_label,
    axis_of,
    csv_of,
    draw_halo,
    draw_lines,
    draw_tip,
    draws,
    many,
    mean_said,
    short,
    span_said,
)
from app.theme import Theme
from engine.figures import array

ISOLINES = 9
FEW = 12  # places: of so many each is named
WRITTEN = 400  # cells: in more of them no values are written
ARROW_LEVELS = 32


def even(values: np.ndarray) -> bool:
    """Whether places follow each other at the same distance."""
    if len(values) < 2 or not np.isfinite(values).all():
        return len(values) == 1
    steps = np.diff(values)
    return bool(steps[0] != 0 and np.allclose(steps, steps[0], rtol=1e-3, atol=0))


class GridSide(Side):
    """An axis of a map: the edges of its cells, and how its places are told."""

    places: np.ndarray | None = None
    edges: tuple[float, float] = (0.0, 1.0)  # scaled: of the first cell's outer edge and the last one's

    @classmethod
    def over(cls, axis: Any, count: int, smooth: bool) -> GridSide:
        """Many numbers in even steps (or in even steps of their exponents) are places on an axis; few numbers, uneven
        ones and words are told one by one, at 0, 1, 2 ..."""
        side = cls(str(axis.get("label") or ""), bool(axis.get("log")))
        given = axis.get("values")
        numeric = given is not None and len(given) and not any(isinstance(each, str) for each in given)
        values = array(given) if numeric else np.empty(0)
        if numeric and not even(side.scaled(values)) and (values > 0).all() and even(np.log10(values)):
            side.log = True
        scaled = side.scaled(values)
        side.places = values if numeric else None
        if numeric and even(scaled) and (smooth or count > FEW):
            half = (scaled[-1] - scaled[0]) / (2 * (len(scaled) - 1)) if len(scaled) > 1 else 0.5
            side.edges = (float(scaled[0] - half), float(scaled[-1] + half))
            side.whole = (min(side.edges), max(side.edges))
            if smooth and len(scaled) > 1:
                side.whole = (float(scaled.min()), float(scaled.max()))
            return side
        side.log = False
        if given is not None:
            side.words = [each if isinstance(each, str) else short(each) for each in given]
        side.edges = side.whole = (-0.5, count - 0.5)
        return side

    def cell(self, scaled: float, count: int) -> int | None:
        """The number of the cell at a scaled place."""
        first, last = self.edges
        at = math.floor((scaled - first) / (last - first) * count)
        return at if 0 <= at < count else None

    def said_cell(self, number: int) -> str:
        if self.words is not None:
            return self.words[number]
        return words.number(float(self.places[number])) if self.places is not None else str(number)


@draws("heatmap", "surface")
class MapView(Plot):
    """A matrix in colours, or a function of two numbers with isolines; the cell under the mouse tells its value."""

    def __init__(self, theme: Theme):
        super().__init__(theme)
        self.z = np.empty((0, 0))
        self.levels: list[tuple[float, np.ndarray]] = []
        self._image = QImage()

    def read(self) -> None:
        figure, plane = self.figure, self.plane
        self.z = array(figure["z"])
        self.smooth = figure["kind"] == "surface" and min(self.z.shape) > 1
        rows, columns = self.z.shape
        self.across: GridSide = GridSide.over(axis_of(figure, "x"), columns, self.smooth)
        self.upward: GridSide = GridSide.over(axis_of(figure, "y"), rows, self.smooth)
        plane.x, plane.y, plane.grid = self.across, self.upward, False
        # Rows of numbers grow upward, as on any axis; rows of words are read from the top.
        plane.down = self.upward.places is None and not self.smooth
        self.scale = Scale.of([self.z], diverging=bool(figure.get("diverging")), axis=axis_of(figure, "colour"))
        self._image = self.scale.image(self.z)
        self.levels = self._isolines() if self.smooth else []

    def _isolines(self) -> list[tuple[float, np.ndarray]]:
        assert self.scale is not None
        low, high = self.scale.low, self.scale.high
        if self.scale.log:
            at = [10.0**v for v in log_ticks(low, high, 0.0, ISOLINES)]
        else:
            at = nice_ticks(low, high, 0.0, ISOLINES)[1]
        return list(zip(at, isolines(self.z, at), strict=True))

    def _rect(self) -> QRectF:
        """Where the whole matrix lies, with its outer cells."""
        (x0, x1), (y0, y1) = self.across.edges, self.upward.edges
        plane = self.plane
        left, right = (self._pixel(v, plane.x.seen, plane.rect.left(), plane.rect.width()) for v in (x0, x1))
        first, last = (self._pixel(v, plane.y.seen, 0.0, plane.rect.height()) for v in (y0, y1))
        if not plane.down:
            first, last = plane.rect.height() - first, plane.rect.height() - last
        top = plane.rect.top()
        return QRectF(QPointF(left, top + first), QPointF(right, top + last))

    @staticmethod
    def _pixel(value: float, seen: tuple[float, float], start: float, size: float) -> float:
        return start + (value - seen[0]) / (seen[1] - seen[0]) * size

    def paint(self, painter: QPainter) -> None:
        rect = self._rect()
        image = turned(self._image, rect)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform, self.smooth)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)
        self._draw_seen(painter, rect.normalized(), image)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if self.levels:
            self._paint_isolines(painter, rect)
        elif self.z.size <= WRITTEN:
            self._write_values(painter)

    def _draw_seen(self, painter: QPainter, rect: QRectF, image: QImage) -> None:
        """Only the part of the picture that is on screen: a deep zoom would else scale all of it."""
        seen = self.plane.rect.intersected(rect)
        if seen.isEmpty():
            return
        fx, fy = image.width() / rect.width(), image.height() / rect.height()
        x0, x1 = math.floor((seen.left() - rect.left()) * fx), math.ceil((seen.right() - rect.left()) * fx)
        y0, y1 = math.floor((seen.top() - rect.top()) * fy), math.ceil((seen.bottom() - rect.top()) * fy)
        source = QRectF(x0, y0, max(x1 - x0, 1), max(y1 - y0, 1))
        target = QRectF(rect.left() + x0 / fx, rect.top() + y0 / fy, source.width() / fx, source.height() / fy)
        painter.drawImage(target, image, source)

    def _paint_isolines(self, painter: QPainter, rect: QRectF) -> None:
        rows, columns = self.z.shape
        assert self.scale is not None
        painter.setFont(self.theme.font(TICK))
        metrics = QFontMetricsF(painter.font())
        written: list[QRectF] = []
        for level, segments in self.levels:
            if not len(segments):
                continue
            x = rect.left() + (segments[:, ::2] + 0.5) / columns * rect.width()
            y = rect.top() + (segments[:, 1::2] + 0.5) / rows * rect.height()
            ink = self.scale.ink(level)
            faint = QColor(ink)
            faint.setAlphaF(0.55)
            painter.setPen(QPen(faint, 1.0))
            draw_lines(painter, x[:, 0], y[:, 0], x[:, 1], y[:, 1])
            self._name_level(painter, metrics, level, x, y, written)

    def _name_level(
        self,
        painter: QPainter,
        metrics: QFontMetricsF,
        level: float,
        x: np.ndarray,
        y: np.ndarray,
        written: list[QRectF],
    ) -> None:
        """Writes a level's value where its line is flat, inside, and far from other values."""
        text = words.number(level, 3)
        wide, high = metrics.horizontalAdvance(text), metrics.height()
        inside = self.plane.rect.adjusted(wide, high, -wide, -high)
        flat = np.abs(np.diff(y, axis=1)[:, 0]) / (np.hypot(np.diff(x, axis=1), np.diff(y, axis=1))[:, 0] + 1e-9)
        for i in np.argsort(flat, kind="stable")[:: max(1, len(flat) // 40)]:
            at = QPointF(float(x[i].mean()), float(y[i].mean()))
            box = QRectF(at.x() - wide / 2, at.y() - high / 2, wide, high)
            if inside.contains(at) and not any(box.adjusted(-12, -8, 12, 8).intersects(other) for other in written):
                written.append(box)
                draw_halo(painter, self.theme, QPointF(box.left(), box.top() + metrics.ascent() - 1), text)
                return

    def _write_values(self, painter: QPainter) -> None:
        """In large cells stands the value."""
        rows, columns = self.z.shape
        rect = self._rect().normalized()
        wide, high = rect.width() / columns, rect.height() / rows
        painter.setFont(self.theme.font(TICK))
        metrics = QFontMetricsF(painter.font())
        assert self.scale is not None
        texts = [[words.number(float(v), 3) if np.isfinite(v) else "" for v in row] for row in self.z]
        widest = max(metrics.horizontalAdvance(text) for row in texts for text in row)
        if widest > wide - 4 or metrics.height() > high:
            return
        whole = self._rect()
        for r in range(rows):
            for c in range(columns):
                if texts[r][c]:
                    painter.setPen(self.scale.ink(float(self.z[r, c])))
                    x = whole.left() + (c + 0.5) / columns * whole.width()
                    y = whole.top() + (r + 0.5) / rows * whole.height()
                    cell = QRectF(x - wide / 2, y - high / 2, wide, high)
                    painter.drawText(cell, int(Qt.AlignmentFlag.AlignCenter), texts[r][c])

    def cell_at(self, place: QPointF) -> tuple[int, int] | None:
        """Row and column under a place."""
        if not self.plane.rect.contains(place):
            return None
        x, y = self.plane.at(place)
        column = self.across.cell(x, self.z.shape[1])
        row = self.upward.cell(y, self.z.shape[0])
        return None if row is None or column is None else (row, column)

    def over(self, painter: QPainter) -> None:
        cell = self.cell_at(self.spot) if self.spot is not None else None
        if cell is None or self.spot is None:
            return
        row, column = cell
        whole = self._rect()
        wide, high = whole.width() / self.z.shape[1], whole.height() / self.z.shape[0]
        box = QRectF(whole.left() + column * wide, whole.top() + row * high, wide, high).normalized()
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setPen(QPen(self.theme.colour("accent"), 1.5))
        painter.drawRect(
            box if min(box.width(), box.height()) > 4 else QRectF(box.center(), box.center()).adjusted(-3, -3, 3, 3)
        )
        said = [
            f"{axis_label(self.figure, 'x', 'column')}  {self.across.said_cell(column)}",
            f"{axis_label(self.figure, 'y', 'row')}  {self.upward.said_cell(row)}",
            f"{axis_label(self.figure, 'colour', 'value')}  {words.number(float(self.z[row, column]))}",
        ]
        draw_tip(painter, self.theme, self.spot, self.plane.rect, said)

    def text(self) -> str:
        rows, columns = self.z.shape
        what = "Surface" if self.figure["kind"] == "surface" else "Map"
        said = f"{what} of {rows} rows and {columns} columns, {span_said(self.z)}"
        if np.isfinite(self.z).any():
            for word, pick in (("lowest", np.nanargmin), ("highest", np.nanargmax)):
                filled = np.where(np.isfinite(self.z), self.z, np.nan)
                row, column = np.unravel_index(int(pick(filled)), self.z.shape)
                said += (
                    f"; {word} at {axis_label(self.figure, 'x', 'column')} {self.across.said_cell(int(column))}, "
                    f"{axis_label(self.figure, 'y', 'row')} {self.upward.said_cell(int(row))}"
                )
        return said + "."

    def csv(self) -> str | None:
        heads = [self.across.said_cell(c) if self.across.places is None else float(self.across.places[c])
                 for c in range(self.z.shape[1])]  # fmt: skip
        sides = [self.upward.said_cell(r) if self.upward.places is None else float(self.upward.places[r])
                 for r in range(self.z.shape[0])]  # fmt: skip
        return csv_of(["", *heads], ([side, *row] for side, row in zip(sides, self.z.tolist(), strict=True)))


@draws("quiver")
class QuiverView(Plot):
    """Arrows at places, as long as fits, in the colour of their length."""

    def sides(self) -> tuple[Side, Side]:
        axes = self.figure.get("axes") or {}
        return Side.of(axes.get("x")), Side.of(axes.get("y"))

    def read(self) -> None:
        figure, plane = self.figure, self.plane
        axes = figure.get("axes") or {}
        plane.equal = True
        self.at_x, self.at_y, self.u, self.v = (array(figure[name]) for name in ("x", "y", "u", "v"))
        plane.x.fit([self.at_x], room=0.08)
        plane.y.fit([self.at_y], room=0.08)
        self.length = np.hypot(self.u, self.v)
        self.scale = Scale.of([self.length], axis={"label": "length", **(axes.get("colour") or {})})

    def _arrows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Starts and ends in pixels: the longest arrow is as long as its neighbours are apart."""
        x, y = self.plane.across(self.at_x), self.plane.along(self.at_y)
        spread = math.sqrt(
            max(np.ptp(x) if x.size else 1.0, 1.0) * max(np.ptp(y) if y.size else 1.0, 1.0) / max(len(x), 1)
        )
        longest = float(np.nanmax(self.length)) if np.isfinite(self.length).any() else 1.0
        factor = min(max(spread, 6.0), 60.0) * 0.95 / (longest or 1.0)
        return x, y, x + self.u * factor, y - self.v * factor

    def paint(self, painter: QPainter) -> None:
        assert self.scale is not None
        x0, y0, x1, y1 = self._arrows()
        level = self.scale.level(self.length, ARROW_LEVELS)
        angle, size = np.arctan2(y1 - y0, x1 - x0), np.hypot(x1 - x0, y1 - y0)
        head = np.minimum(size * 0.35, 6.0)
        for number, colour in enumerate(self.scale.colours(ARROW_LEVELS)):
            mine = (level == number) & (size > 0.3)
            if not mine.any():
                continue
            painter.setPen(QPen(colour, 1.5))
            draw_lines(painter, x0[mine], y0[mine], x1[mine], y1[mine])
            for turn in (math.pi - 0.45, math.pi + 0.45):
                hx = x1[mine] + head[mine] * np.cos(angle[mine] + turn)
                hy = y1[mine] + head[mine] * np.sin(angle[mine] + turn)
                draw_lines(painter, x1[mine], y1[mine], hx, hy)

    def over(self, painter: QPainter) -> None:
        if self.spot is None or not self.plane.rect.contains(self.spot) or not len(self.at_x):
            return
        x0, y0, x1, y1 = self._arrows()
        away = np.hypot((x0 + x1) / 2 - self.spot.x(), (y0 + y1) / 2 - self.spot.y())
        i = int(np.where(np.isfinite(away), away, np.inf).argmin())
        if away[i] < 20:
            said = [
                f"at  {words.number(float(self.at_x[i]))}, {words.number(float(self.at_y[i]))}",
                f"arrow  {words.number(float(self.u[i]))}, {words.number(float(self.v[i]))}",
                f"length  {words.number(float(self.length[i]))}",
            ]
            draw_tip(painter, self.theme, self.spot, self.plane.rect, said)

    def text(self) -> str:
        return (
            f"{many(len(self.at_x), 'arrow')}, their lengths {span_said(self.length)}, on average pointing to "
            f"({mean_said(self.u)}, {mean_said(self.v)})."
        )

    def csv(self) -> str | None:
        columns = (self.at_x, self.at_y, self.u, self.v)
        return csv_of(("x", "y", "u", "v"), zip(*(column.tolist() for column in columns), strict=True))
