"""Graphs: nodes and edges, which may be weighted, directed and marked. A tour is one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QPainter, QPen

from app import words
from app.figures.axes import Plane, Side
from app.figures.colours import Scale
from app.figures.series import Plot
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
from app.theme import Theme
from engine.figures import array

STRENGTHS = 6  # steps of width and strength that weights are drawn in
NAMED = 60
VALUE_LEVELS = 64


@draws("graph")
class GraphView(Plot):
    """Nodes coloured by value or group; edges as wide and strong as their weight."""

    def __init__(self, theme: Theme):
        super().__init__(theme)
        self.chosen: int | None = None

    def read(self) -> None:
        figure = self.figure
        nodes = figure["nodes"]
        self.plane = Plane(Side(), Side(), equal=bool(figure.get("equal", True)), bare=True)
        self.at_x, self.at_y = (array([node[name] for node in nodes]) for name in ("x", "y"))
        self.plane.x.fit([self.at_x], room=0.06)
        self.plane.y.fit([self.at_y], room=0.06)
        self.labels = [str(node["label"]) if node.get("label") not in (None, "") else "" for node in nodes]
        self.values = array([node.get("value") for node in nodes])
        self.groups = [node.get("group") for node in nodes]
        self.names = sorted({g for g in self.groups if g is not None}, key=lambda g: (isinstance(g, str), g))
        valued = bool(np.isfinite(self.values).any())
        self.scale = Scale.of([self.values], axis=axis_of(figure, "colour")) if valued else None
        edges = [list(edge) for edge in figure.get("edges") or []]
        self.ends = np.array([edge[:2] for edge in edges], dtype=np.int64).reshape(-1, 2)
        self.weights = array([edge[2] if len(edge) > 2 else 1.0 for edge in edges])
        self.weighted = any(len(edge) > 2 for edge in edges)
        self.directed = bool(figure.get("directed"))
        self.marked = [int(i) for i in figure.get("marked") or []]
        self.chosen = None

    # -- sizes and colours -------------------------------------------------------------------------------------------

    def _radius(self) -> float:
        count = len(self.at_x)
        return 8.0 if count <= 12 else 6.0 if count <= 40 else 4.5 if count <= 150 else 3.0 if count <= 600 else 2.0

    def _strength(self) -> np.ndarray:
        """How strong each edge is: 0 to 1."""
        size = np.abs(np.where(np.isfinite(self.weights), self.weights, 0.0))
        top = float(size.max()) if size.size else 0.0
        return size / top if self.weighted and top else np.full(len(size), 0.55)

    def _edge_colour(self, negative: bool) -> QColor:
        return QColor(self.theme.series(3)) if negative else QColor(self.theme.colour("text"))

    def legend(self) -> list[tuple[int, str]]:
        return [] if self.scale is not None else [(i, str(name)) for i, name in enumerate(self.names)]

    def _legend(self, painter: QPainter, area: QRectF) -> float:
        if len(self.legend()) < 2 or all(isinstance(name, int) for name in self.names):
            return 0.0  # numbers of groups say nothing beside the colours
        self.many = self.names
        return super()._legend(painter, area)

    def swatch(self, painter: QPainter, number: int, at: QPointF) -> None:
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self.theme.series(number))
        painter.drawEllipse(at, 4.5, 4.5)

    # -- painting ----------------------------------------------------------------------------------------------------

    def paint(self, painter: QPainter) -> None:
        x, y = self.plane.across(self.at_x), self.plane.along(self.at_y)
        self._paint_edges(painter, x, y, np.arange(len(self.ends)))
        self._paint_nodes(painter, x, y)
        self._paint_names(painter, x, y)
        if self.directed and not len(self.ends):
            painter.setFont(self.theme.font(TICK))
            painter.setPen(self.theme.colour("muted"))
            painter.drawText(self.plane.rect.adjusted(4, 0, 0, -2), int(Qt.AlignmentFlag.AlignBottom), "no edges")

    def _lines(self, x: np.ndarray, y: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, ...]:
        """Starts and ends of edges in pixels, cut at the nodes' rims; the two ways between a pair lie side by side."""
        start, end = self.ends[which, 0], self.ends[which, 1]
        x0, y0, x1, y1 = x[start], y[start], x[end], y[end]
        dx, dy = x1 - x0, y1 - y0
        length = np.maximum(np.hypot(dx, dy), 1e-9)
        ux, uy = dx / length, dy / length
        gap = self._radius() + 1
        cut = np.minimum(gap, length * 0.3)
        if self.directed:
            there = {(int(a), int(b)) for a, b in self.ends}
            both = np.array(
                [(int(b), int(a)) in there and a != b for a, b in zip(start, end, strict=True)], dtype=float
            )
            aside = 2.5 * both
            x0, x1, y0, y1 = x0 - uy * aside, x1 - uy * aside, y0 + ux * aside, y1 + ux * aside
        return x0 + ux * cut, y0 + uy * cut, x1 - ux * cut, y1 - uy * cut, ux, uy

    def _paint_edges(
        self, painter: QPainter, x: np.ndarray, y: np.ndarray, which: np.ndarray, bold: bool = False
    ) -> None:
        if not which.size:
            return
        loops = self.ends[which, 0] == self.ends[which, 1]
        for edge in which[loops]:
            self._paint_loop(painter, x, y, int(edge))
        which = which[~loops]
        x0, y0, x1, y1, ux, uy = self._lines(x, y, which)
        step = np.minimum((self._strength()[which] * STRENGTHS).astype(int), STRENGTHS - 1)
        crowd = min(1.0, 300.0 / max(len(self.ends), 1)) ** 0.6  # many edges let the nodes be seen
        for negative in (False, True):
            for strength in range(STRENGTHS):
                mine = (step == strength) & ((self.weights[which] < 0) == negative)
                if not mine.any():
                    continue
                share = (strength + 1) / STRENGTHS
                colour = self.theme.colour("accent") if bold else self._edge_colour(negative)
                if not bold:
                    colour.setAlphaF(min(0.14 + 0.6 * share, 0.85) * crowd)
                wide = (0.6 + 2.6 * share if self.weighted else 1.3) * (1.0 if crowd > 0.7 else 0.75)
                pen = QPen(colour, wide + (0.8 if bold else 0.0))
                pen.setCapStyle(Qt.PenCapStyle.FlatCap)
                painter.setPen(pen)
                back = 0.7 * self._head(wide) if self.directed else 0.0
                draw_lines(painter, x0[mine], y0[mine], (x1 - ux * back)[mine], (y1 - uy * back)[mine])
                if self.directed:
                    self._heads(painter, colour, self._head(wide), x1[mine], y1[mine], ux[mine], uy[mine])

    def _head(self, wide: float) -> float:
        return min(4.5 + 1.5 * wide, 2.2 * self._radius() + 2)

    @staticmethod
    def _heads(
        painter: QPainter, colour: QColor, size: float, x: np.ndarray, y: np.ndarray, ux: np.ndarray, uy: np.ndarray
    ) -> None:
        """All arrow heads in one path."""
        solid = QColor(colour)
        solid.setAlphaF(min(1.0, colour.alphaF() + 0.2))
        half = size * 0.42
        corners_x = np.stack([x, x - ux * size - uy * half, x - ux * size + uy * half], 1)
        corners_y = np.stack([y, y - uy * size + ux * half, y - uy * size - ux * half], 1)
        good = np.isfinite(corners_x).all(1) & np.isfinite(corners_y).all(1)
        connect = np.tile([1, 1, 0], int(good.sum())).astype(np.int32)
        path = pg.arrayToQPath(corners_x[good].ravel(), corners_y[good].ravel(), connect)
        painter.fillPath(path, solid)

    def _paint_loop(self, painter: QPainter, x: np.ndarray, y: np.ndarray, edge: int) -> None:
        at = int(self.ends[edge, 0])
        if math.isfinite(x[at]) and math.isfinite(y[at]):
            colour = self._edge_colour(bool(self.weights[edge] < 0))
            colour.setAlphaF(0.5)
            painter.setPen(QPen(colour, 0.6 + 2.0 * float(self._strength()[edge])))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            radius = self._radius()
            painter.drawEllipse(QPointF(float(x[at]), float(y[at]) - radius * 1.6), radius, radius)

    def _paint_nodes(self, painter: QPainter, x: np.ndarray, y: np.ndarray) -> None:
        radius, ratio = self._radius(), ratio_of(painter)
        if self.scale is not None:
            colours = [*self.scale.colours(VALUE_LEVELS), self.theme.colour("line")]
            known = np.isfinite(self.scale.share(self.values))
            which = np.where(known, self.scale.level(self.values, VALUE_LEVELS), VALUE_LEVELS)
        elif self.names:
            colours = [self.theme.series(i) for i in range(len(self.names))] + [self.theme.colour("muted")]
            number = {name: i for i, name in enumerate(self.names)}
            which = np.array([number.get(group, len(self.names)) for group in self.groups])
        else:
            colours, which = [self.theme.series(0)], np.zeros(len(x), dtype=int)
        rim = self.theme.colour("muted" if self.scale is not None else "surface") if radius >= 3 else None
        Stamps(colours, 2 * radius, ratio, rim).draw(painter, x, y, which)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        ring = radius + (3 if radius > 3 else 2)
        painter.setPen(QPen(self.theme.colour("accent"), 2 if radius > 3 else 1.2))
        for i in self.marked:
            if math.isfinite(x[i]) and math.isfinite(y[i]):
                painter.drawEllipse(QPointF(float(x[i]), float(y[i])), ring, ring)

    def _paint_names(self, painter: QPainter, x: np.ndarray, y: np.ndarray) -> None:
        """Labels beside the nodes, where there are few and they have room."""
        if not 0 < sum(map(bool, self.labels)) <= NAMED:
            return
        painter.setFont(self.theme.font(TICK))
        metrics, radius = QFontMetricsF(painter.font()), self._radius()
        taken = around(x, y, radius)
        for i, text in enumerate(self.labels):
            if not text or not (math.isfinite(x[i]) and math.isfinite(y[i])):
                continue
            wide, high = metrics.horizontalAdvance(text), metrics.height() - 2
            sides = beside(float(x[i]), float(y[i]), radius + 3, wide, high)
            inside = self.plane.rect.adjusted(-2, -2, 2, 2)
            free = [box for box in sides if inside.contains(box) and not any(box.intersects(t) for t in taken)]
            covered = [self._covered(i, box, x, y) for box in free]
            box = free[covered.index(min(covered))] if free else None
            if box is not None:
                taken.append(box)
                draw_halo(painter, self.theme, QPointF(box.left(), box.top() + metrics.ascent() - 1), text)

    def _covered(self, node: int, box: QRectF, x: np.ndarray, y: np.ndarray) -> int:
        """How many of a node's edges run below a box beside it."""
        others = np.concatenate([self.ends[self.ends[:, 0] == node, 1], self.ends[self.ends[:, 1] == node, 0]])
        length = np.maximum(np.hypot(x[others] - x[node], y[others] - y[node]), 1e-9)
        away = np.minimum(np.linspace(0, box.width() + 30, 24)[:, None], length)  # pixels along each edge
        at_x = x[node] + (x[others] - x[node]) * away / length
        at_y = y[node] + (y[others] - y[node]) * away / length
        inside = (at_x > box.left()) & (at_x < box.right()) & (at_y > box.top()) & (at_y < box.bottom())
        return int(inside.any(0).sum())

    # -- the mouse and the keys --------------------------------------------------------------------------------------

    def node_at(self, place: QPointF) -> int | None:
        away = np.hypot(self.plane.across(self.at_x) - place.x(), self.plane.along(self.at_y) - place.y())
        away = np.where(np.isfinite(away), away, np.inf)
        nearest = int(away.argmin())
        return nearest if away[nearest] < max(NEAR, self._radius() + 3) else None

    def over(self, painter: QPainter) -> None:
        node = self.node_at(self.spot) if self.spot is not None else self.chosen
        if node is None:
            return
        x, y = self.plane.across(self.at_x), self.plane.along(self.at_y)
        touching = np.flatnonzero((self.ends == node).any(1)) if len(self.ends) else np.empty(0, dtype=int)
        painter.save()
        painter.setClipRect(self.plane.rect)
        self._paint_edges(painter, x, y, touching, bold=True)
        painter.setPen(QPen(self.theme.colour("accent"), 2))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        place = QPointF(float(x[node]), float(y[node]))
        painter.drawEllipse(place, self._radius() + 2, self._radius() + 2)
        painter.restore()
        draw_tip(painter, self.theme, place, QRectF(self.rect()), self.said(node))

    def said(self, node: int) -> list[str]:
        """A node in words, a line each."""
        lines = [self.labels[node] or f"node {node}"]
        if math.isfinite(self.values[node]):
            lines.append(f"{axis_label(self.figure, 'colour', 'value')}  {words.number(float(self.values[node]))}")
        if self.groups[node] is not None:
            lines.append(f"group  {self.groups[node]}")
        into, out = (int((self.ends[:, side] == node).sum()) for side in (1, 0))
        lines.append(f"{into} in, {out} out" if self.directed else many(into + out, "edge"))
        if node in self.marked:
            lines.append("marked")
        return lines

    def key(self, key: int) -> bool:
        """Left and right go from node to node in their order."""
        if key not in (Qt.Key.Key_Left, Qt.Key.Key_Right):
            return False
        step = 1 if key == Qt.Key.Key_Right else -1
        self.chosen = (self.chosen + step) % len(self.at_x) if self.chosen is not None else 0
        self.spot = None
        self.setAccessibleDescription(", ".join(self.said(self.chosen)))
        self.update()
        return True

    def text(self) -> str:
        count = f"{many(len(self.at_x), 'node')} and {many(len(self.ends), 'edge')}"
        said = [f"Graph of {count}{', directed' if self.directed else ''}."]
        if self.weighted:
            said.append(f"Weights {span_said(self.weights)}.")
        if self.scale is not None:
            said.append(f"Nodes coloured by {axis_label(self.figure, 'colour', 'value')}, {span_said(self.values)}.")
        if self.names:
            sizes = ", ".join(f"{name}: {sum(g == name for g in self.groups)}" for name in self.names[:12])
            said.append(f"Groups {sizes}.")
        if self.marked:
            said.append("Marked: " + ", ".join(self.labels[i] or str(i) for i in self.marked[:20]) + ".")
        order = self._way()
        if order:
            said.append(
                "The way: " + ", ".join(self.labels[i] or str(i) for i in order[:40]) + ("…" if len(order) > 40 else "")
            )
        return " ".join(said)

    def _way(self) -> list[int]:
        """The nodes in their order where the edges are one way through all of them."""
        if not self.directed or not len(self.ends) or len(self.ends) > len(self.at_x):
            return []
        if (self.ends[1:, 0] != self.ends[:-1, 1]).any():
            return []
        return [int(i) for i in self.ends[:, 0]]

    def csv(self) -> str | None:
        if not len(self.ends):
            columns: Any = zip(
                self.at_x.tolist(), self.at_y.tolist(), self.labels, self.values.tolist(), self.groups, strict=True
            )
            return csv_of(("x", "y", "label", "value", "group"), columns)
        names = [label or str(i) for i, label in enumerate(self.labels)]
        rows = ([names[a], names[b], w] for (a, b), w in zip(self.ends.tolist(), self.weights.tolist(), strict=True))
        return csv_of(("from", "to", "weight"), rows)
