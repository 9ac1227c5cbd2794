"""Points and meshes in space, turned by dragging: an own projection, painted from back to front."""

from __future__ import annotations

import math

import numpy as np
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QFontMetricsF, QMouseEvent, QPainter, QPen

from app import words
from app.figures.colours import Scale
from app.figures.view import (
    NEAR,
    TICK,
    Canvas,
    Stamps,
    axis_label,
    axis_of,
    csv_of,
    draw_tip,
    draws,
    many,
    ratio_of,
    short,
    span_said,
)
from app.theme import Theme
from engine.figures import array

VALUE_LEVELS = 48
SHADES = 8
START = (-0.65, 0.42)  # turned to the side, and seen from above
WHILE_TURNING = 1500  # faces: of more only some are drawn while a person turns


@draws("points")
class SpaceView(Canvas):
    """A cloud of points or a mesh in a box; drag turns it, the wheel brings it nearer, a double click turns it back."""

    zoomable = True

    def __init__(self, theme: Theme):
        super().__init__(theme)
        self.turn, self.tilt = START
        self.near = 1.0
        self.scale: Scale | None = None

    def prepare(self) -> None:
        figure = self.figure
        self.vertices = array(figure["vertices"]).reshape(-1, 3)
        faces = figure.get("faces")
        self.faces = np.array(faces, dtype=np.int64).reshape(-1, 3) if faces else np.empty((0, 3), dtype=np.int64)
        values = figure.get("values")
        self.values = array(values) if values else None
        self.scale = Scale.of([self.values], axis=axis_of(figure, "colour")) if self.values is not None else None
        good = np.where(np.isfinite(self.vertices), self.vertices, np.nan)
        there = np.isfinite(good).any()
        self.low = np.nanmin(good, 0) if there else np.zeros(3)
        self.high = np.nanmax(good, 0) if there else np.ones(3)
        reach = float(np.nanmax(self.high - self.low)) or 1.0
        self.unit = (good - (self.low + self.high) / 2) / reach  # within a box of side 1 around 0
        self.half = np.maximum((self.high - self.low) / (2 * reach), 1e-6)

    # -- projection --------------------------------------------------------------------------------------------------

    def rotation(self) -> np.ndarray:
        """Rows: right, up and toward the eye on the screen, in the coordinates of the data (z is up)."""
        ct, st, cu, su = math.cos(self.turn), math.sin(self.turn), math.cos(self.tilt), math.sin(self.tilt)
        return np.array([[ct, st, 0.0], [-st * su, ct * su, cu], [st * cu, -ct * cu, su]])

    def project(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y in pixels and depth (larger is nearer) of places in the unit box."""
        seen = places @ self.rotation().T
        size = 0.54 * min(self._room.width(), self._room.height() * 1.15) * self.near
        middle = self._room.center()
        return middle.x() + seen[:, 0] * size, middle.y() - seen[:, 1] * size, seen[:, 2]

    def draw(self, painter: QPainter, area: QRectF) -> None:
        right = self.scale.bar_width(self.theme, area.height() - 40) if self.scale else 0.0
        self._room = area.adjusted(4, 4, -4 - right, -4)
        painter.save()
        painter.setClipRect(self._room)
        self._draw_box(painter)
        if len(self.faces):
            self._draw_faces(painter)
        else:
            self._draw_points(painter)
        painter.restore()
        if self.scale:
            self.scale.draw_bar(painter, self.theme, self._room.adjusted(0, 12, 0, -12))

    def _draw_box(self, painter: QPainter) -> None:
        """The three far sides of the box, and the ends of the axes in numbers."""
        view = self.rotation()[2]
        corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * self.half * 1.04
        x, y, _ = self.project(corners)
        far = np.where(view > 0, -1, 1)
        painter.setPen(QPen(self.theme.colour("line"), 1))
        sign = np.sign(corners)
        for a in range(8):
            for b in range(a + 1, 8):
                along = np.flatnonzero(sign[a] != sign[b])
                if len(along) != 1:
                    continue
                others = [axis for axis in range(3) if axis != along[0]]
                if any(sign[a][axis] == far[axis] for axis in others):  # on a side that faces away
                    painter.drawLine(QPointF(x[a], y[a]), QPointF(x[b], y[b]))
        self._draw_ends(painter, far)

    def _draw_ends(self, painter: QPainter, far: np.ndarray) -> None:
        """Beside one edge of the box for each axis its name, and where it begins and ends."""
        painter.setFont(self.theme.font(TICK))
        metrics = QFontMetricsF(painter.font())
        painter.setPen(self.theme.colour("muted"))
        taken: list[QRectF] = []
        middle_x, middle_y, _ = self.project(np.zeros((1, 3)))
        edge = self.half * 1.04
        for axis, name in enumerate("xyz"):
            # The two flat axes run along the lower front edges, the upright one along the edge at the side.
            start = np.array([-far[0], -far[1], -1.0 if self.tilt >= 0 else 1.0]) * edge
            if axis == 2:
                start[0] *= -1.0
            places = np.repeat(start[None], 3, 0)
            places[:, axis] = np.array([0, -1, 1]) * self.half[axis]
            x, y, _ = self.project(places)
            ends = (short(float(self.low[axis])), short(float(self.high[axis])))
            for row, text in enumerate((name, *ends)):
                away = np.array([x[row] - middle_x[0], y[row] - middle_y[0]])
                away = away / (np.hypot(*away) or 1.0) * 12
                wide = metrics.horizontalAdvance(text)
                box = QRectF(0, 0, wide, metrics.height())
                box.moveCenter(QPointF(x[row] + away[0], y[row] + away[1]))
                box.moveRight(min(box.right(), self._room.right()))
                box.moveLeft(max(box.left(), self._room.left()))
                if not any(box.intersects(other) for other in taken):
                    taken.append(box)
                    painter.drawText(QPointF(box.left(), box.top() + metrics.ascent()), text)

    def _draw_points(self, painter: QPainter) -> None:
        x, y, depth = self.project(self.unit)
        order = np.argsort(depth)
        count = len(x)
        size = 7.0 if count <= 300 else 5.0 if count <= 3000 else 3.0
        if self.scale is not None and self.values is not None:
            colours, which = self.scale.colours(VALUE_LEVELS), self.scale.level(self.values, VALUE_LEVELS)
        else:
            # Without values the colour tells the depth: far points fade into the ground.
            colours = [
                _mixed(self.theme.series(0), self.theme.colour("surface"), 0.6 * (1 - i / 15)) for i in range(16)
            ]
            share = (depth - np.nanmin(depth)) / (np.ptp(depth[np.isfinite(depth)]) or 1.0) if count else depth
            which = np.nan_to_num(share * 15).astype(int)
        rim = self.theme.colour("surface") if size >= 5 else None
        Stamps(colours, size, ratio_of(painter), rim).draw(painter, x[order], y[order], which[order])

    def _draw_faces(self, painter: QPainter) -> None:
        x, y, depth = self.project(self.unit)
        faces = self.faces
        if self._dragged and self._pressed is not None and len(faces) > WHILE_TURNING:
            faces = faces[:: math.ceil(len(faces) / WHILE_TURNING)]
        corners = self.unit[faces]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        length = np.linalg.norm(normal, axis=1)
        facing = np.abs(normal @ (self.rotation()[2] * 0.8 + self.rotation()[1] * 0.6)) / np.where(
            length > 0, length, 1.0
        )
        shade = np.clip((np.nan_to_num(facing) * SHADES).astype(int), 0, SHADES - 1)
        if self.scale is not None and self.values is not None:
            base = self.scale.colours(VALUE_LEVELS)
            level = self.scale.level(self.values[faces].mean(1), VALUE_LEVELS)
        else:
            base, level = [self.theme.series(0)], np.zeros(len(faces), dtype=int)
        dark = QColor("#000000")
        colours = [[_mixed(colour, dark, 0.5 * (1 - (s + 1) / SHADES)) for s in range(SHADES)] for colour in base]
        mean = depth[faces].mean(1)
        order = np.argsort(mean)
        order = order[np.isfinite(mean[order])]
        self._fill(painter, np.stack([x[faces], y[faces]], 2)[order], level[order], shade[order], colours)

    def _fill(
        self, painter: QPainter, corners: np.ndarray, level: np.ndarray, shade: np.ndarray, colours: list[list[QColor]]
    ) -> None:
        """Triangles in the order given; neighbours of one colour in one call."""
        fine = len(corners) < 1500
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, fine)
        edge = QColor(self.theme.colour("surface"))
        edge.setAlphaF(0.35)
        key = level * SHADES + shade
        painter.setPen(QPen(edge, 0.6))
        before = -1
        for (a, b, c), now in zip(corners.tolist(), key.tolist(), strict=True):
            if now != before:
                colour = colours[now // SHADES][now % SHADES]
                painter.setBrush(colour)
                if not fine:
                    painter.setPen(colour)
                before = now
            painter.drawConvexPolygon((QPointF(*a), QPointF(*b), QPointF(*c)))
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)

    # -- the mouse and the keys --------------------------------------------------------------------------------------

    def drag(self, by: QPointF) -> None:
        self.turn_by(by.x() * 0.01, by.y() * 0.01)

    def turn_by(self, sideways: float, upward: float) -> None:
        """Turns the box as the mouse would."""
        self.turn -= sideways
        self.tilt = min(max(self.tilt + upward, -math.pi / 2), math.pi / 2)
        self.redraw()

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        turned = self._dragged
        super().mouseReleaseEvent(event)
        if turned:
            self.redraw()  # all of it again

    def zoom(self, at: QPointF, factor: float) -> None:
        self.near = min(max(self.near * factor, 0.2), 20.0)
        self.redraw()

    def key(self, key: int) -> bool:
        steps = {Qt.Key.Key_Left: (-0.1, 0.0), Qt.Key.Key_Right: (0.1, 0.0), Qt.Key.Key_Up: (0.0, 0.1),
                 Qt.Key.Key_Down: (0.0, -0.1)}  # fmt: skip
        if key not in steps:
            return False
        self.turn_by(*steps[Qt.Key(key)])
        return True

    def show_all(self) -> None:
        self.turn, self.tilt = START
        self.near = 1.0
        self.redraw()

    def vertex_at(self, place: QPointF) -> int | None:
        """The vertex under a place, of several the nearest to the eye."""
        x, y, depth = self.project(self.unit)
        close = np.hypot(x - place.x(), y - place.y()) < NEAR
        close &= np.isfinite(depth)
        return int(np.where(close, depth, -np.inf).argmax()) if close.any() else None

    def over(self, painter: QPainter) -> None:
        if self.spot is None or not self._room.contains(self.spot):
            return
        i = self.vertex_at(self.spot)
        if i is None:
            return
        said = [
            "  ".join(f"{name} {words.number(float(v), 3)}" for name, v in zip("xyz", self.vertices[i], strict=True))
        ]
        if self.values is not None:
            said.append(f"{axis_label(self.figure, 'colour', 'value')}  {words.number(float(self.values[i]))}")
        x, y, _ = self.project(self.unit[i : i + 1])
        painter.setPen(QPen(self.theme.colour("accent"), 2))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawEllipse(QPointF(float(x[0]), float(y[0])), 5, 5)
        draw_tip(painter, self.theme, self.spot, QRectF(self.rect()), said)

    def text(self) -> str:
        what = f"Mesh of {many(len(self.faces), 'face')}" if len(self.faces) else many(len(self.vertices), "point")
        spans = ", ".join(f"{name} {span_said(self.vertices[:, i])}" for i, name in enumerate("xyz"))
        values = f", values {span_said(self.values)}" if self.values is not None else ""
        return f"{what} in space: {spans}{values}. Drag, or the arrow keys, turn it."

    def csv(self) -> str | None:
        rows: list[list[float]] = self.vertices.tolist()
        if self.values is None:
            return csv_of("xyz", rows)
        values: list[float] = self.values.tolist()
        return csv_of((*"xyz", "value"), ([*row, value] for row, value in zip(rows, values, strict=True)))


def _mixed(colour: QColor, other: QColor, share: float) -> QColor:
    """A colour with a share of another."""
    parts = ((a * (1 - share) + b * share) for a, b in zip(_rgb(colour), _rgb(other), strict=True))
    return QColor(*(round(part) for part in parts))


def _rgb(colour: QColor) -> tuple[int, int, int]:
    return colour.red(), colour.green(), colour.blue()
