"""Figures that are pictures: fields side by side, grids of samples, boxes over a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QFontMetricsF, QImage, QPainter, QPen

from app import words
from app.figures.axes import Planar, Plane, Side
from app.figures.colours import Scale, picture, turned
from app.figures.view import (
    TICK,
    Canvas,
    axis_label,
    axis_of,
    csv_of,
    draw_halo,
    draw_tip,
    draws,
    many,
    mean_said,
    span_said,
)
from app.theme import SIZE_SMALL, SPACE_S, Theme
from engine.figures import array

FINE = 32  # samples along the shorter side
SIDE = 96  # pixels: a small picture is not drawn larger, unless it has a window of its own


@dataclass
class Panel:
    """One field or picture: its numbers, its colours, and where it lies."""

    name: str
    z: np.ndarray
    scale: Scale | None  # None: it has colours of its own
    image: QImage
    plane: Plane
    bar: bool = True


@draws("image")
class ImageView(Canvas):
    """Fields or pictures side by side; the place under the mouse is shown, and its value told, in all of them."""

    zoomable = True

    def __init__(self, theme: Theme):
        super().__init__(theme)
        self.panels: list[Panel] = []

    def prepare(self) -> None:
        before = self.panels
        figure = self.figure
        fields = [array(panel["z"]) for panel in figure["panels"]]
        colour = axis_of(figure, "colour")
        plain = [
            z for z, panel in zip(fields, figure["panels"], strict=True) if z.ndim == 2 and not panel.get("diverging")
        ]
        shared = Scale.of(plain, axis=colour) if figure.get("shared") and plain else None
        self.panels = []
        for z, panel in zip(fields, figure["panels"], strict=True):
            scale = None if z.ndim == 3 else self._scale(z, panel, shared, colour)
            image = picture(z) if scale is None else scale.image(z)
            self.panels.append(Panel(str(panel.get("name", "")), z, scale, image, self._plane(image)))
        mine = [panel for panel in self.panels if shared is not None and panel.scale is shared]
        for panel in mine[:-1]:
            panel.bar = False
        if before and self.panels:
            for panel in self.panels:
                panel.plane.keep_zoom(before[0].plane)

    @staticmethod
    def _scale(z: np.ndarray, panel: Mapping[str, Any], shared: Scale | None, colour: Mapping[str, Any]) -> Scale:
        if panel.get("diverging"):
            return Scale.of([z], diverging=True)
        return shared if shared is not None else Scale.of([z], axis=colour)

    def _plane(self, image: QImage) -> Plane:
        extent = self.figure.get("extent")
        if extent is None:
            plane = Plane(Side(), Side(), equal=True, down=True, bare=True)
            plane.x.whole, plane.y.whole = (0.0, float(image.width())), (0.0, float(image.height()))
            return plane
        x0, x1, y0, y1 = (float(v) for v in extent)
        plane = Plane(Side(axis_label(self.figure, "x")), Side(axis_label(self.figure, "y")), grid=False)
        plane.x.whole, plane.y.whole = (min(x0, x1), max(x0, x1)), (min(y0, y1), max(y0, y1))
        ratio = abs(x1 - x0) / abs(y1 - y0)
        plane.equal = 0.2 <= ratio <= 5
        return plane

    # -- where the panels lie ----------------------------------------------------------------------------------------

    def _shape(self) -> float:
        """Width over height of one panel's picture."""
        (x0, x1), (y0, y1) = self.panels[0].plane.x.whole, self.panels[0].plane.y.whole
        return (x1 - x0) / (y1 - y0) if self.panels[0].plane.equal else 1.5

    def columns(self, width: float, height: float) -> int:
        """As many beside each other as makes the pictures largest."""
        count, shape = len(self.panels), self._shape()
        around = (60, 24) if self.panels[0].plane.bare else (90, 60)

        def size(columns: int) -> float:
            wide = width / columns - around[0]
            high = height / math.ceil(count / columns) - around[1]
            return min(wide, high * shape)

        return max(range(1, count + 1), key=size)

    def height_for(self, width: int) -> int:
        columns = min(len(self.panels), max(1, width // 200))
        bare = self.panels[0].plane.bare
        high = (width / columns - (60 if bare else 90)) / self._shape() + (30 if bare else 60)
        return int(min(max(high, 150), 420) * math.ceil(len(self.panels) / columns))

    def draw(self, painter: QPainter, area: QRectF) -> None:
        columns = self.columns(area.width(), area.height())
        rows = math.ceil(len(self.panels) / columns)
        wide, high = area.width() / columns, area.height() / rows
        painter.setFont(self.theme.font(SIZE_SMALL, bold=True))
        metrics = QFontMetricsF(painter.font())
        head = metrics.height() + 2 if any(panel.name for panel in self.panels) else 0
        used = [0.0] * columns  # by each column, with its words
        bars = [
            panel.scale.bar_width(self.theme, high - 40) if panel.scale is not None and panel.bar else 0.0
            for panel in self.panels
        ]
        for number, panel in enumerate(self.panels):
            column, row = number % columns, number // columns
            cell = QRectF(area.left() + column * wide, area.top() + row * high + head, wide - 8, high - head - 2)
            panel.plane.place(cell, self.theme, max(bars))  # all of one size, with a bar or without
            self._shrink(panel.plane)
            used[column] = max(used[column], panel.plane.rect.right() + bars[number] - cell.left())
        start = area.left() + max(0.0, (area.width() - sum(used) - 20 * (columns - 1)) / 2)
        for number, panel in enumerate(self.panels):
            column = number % columns
            self._shift(panel.plane, start + sum(used[:column]) + 20 * column - panel.plane.area.left())
            panel.plane.draw(painter, self.theme)
            self._draw_panel(painter, panel)
            painter.setFont(self.theme.font(SIZE_SMALL, bold=True))
            painter.setPen(self.theme.colour("text"))
            name = metrics.elidedText(panel.name, Qt.TextElideMode.ElideRight, wide - 8)
            painter.drawText(QPointF(panel.plane.rect.left(), panel.plane.rect.top() - metrics.descent() - 1), name)

    @staticmethod
    def _shift(plane: Plane, by: float) -> None:
        plane.rect.translate(by, 0)
        plane.area.translate(by, 0)

    def _shrink(self, plane: Plane) -> None:
        """In one scale, a field fills its frame rather than swimming in it."""
        if not plane.equal or plane.zoomed:
            return
        rect = plane.rect
        (x0, x1), (y0, y1) = plane.x.whole, plane.y.whole
        per = max((x1 - x0) / max(rect.width(), 1), (y1 - y0) / max(rect.height(), 1))
        wide, high = (x1 - x0) / per, (y1 - y0) / per
        top = rect.top() if plane.bare is False else rect.top() + (rect.height() - high) / 2
        left = rect.left() if plane.bare is False else rect.left() + (rect.width() - wide) / 2
        plane.area.setBottom(plane.area.bottom() - (rect.bottom() - top - high))
        plane.rect = QRectF(left, top, wide, high)
        plane.x.seen, plane.y.seen = plane.x.whole, plane.y.whole

    def _draw_panel(self, painter: QPainter, panel: Panel) -> None:
        plane = panel.plane
        painter.save()
        painter.setClipRect(plane.rect)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform, self._smooth(panel))
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)
        painter.drawImage(self._whole(panel).normalized(), self._turned(panel))
        painter.restore()
        painter.setRenderHint(QPainter.RenderHint.Antialiasing, False)
        painter.setPen(QPen(self.theme.colour("line"), 1))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawRect(plane.rect)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if panel.scale is not None and panel.bar:
            panel.scale.draw_bar(painter, self.theme, plane.rect)

    def _smooth(self, panel: Panel) -> bool:
        """Fine fields are drawn as the functions that they sample, all else as the pixels that there are."""
        size = min(panel.image.width(), panel.image.height())
        fine = size >= FINE and "extent" in self.figure and panel.scale is not None
        return fine or panel.image.width() > panel.plane.rect.width()

    def _corners(self) -> tuple[float, float, float, float]:
        """x of the first and the last column's edge, y of the first and the last row's."""
        extent = self.figure.get("extent")
        if extent is not None:
            x0, x1, y0, y1 = (float(v) for v in extent)
            return x0, x1, y0, y1
        image = self.panels[0].image
        return 0.0, float(image.width()), 0.0, float(image.height())

    def _whole(self, panel: Panel) -> QRectF:
        x0, x1, y0, y1 = self._corners()
        x, y = panel.plane.across([x0, x1]), panel.plane.along([y0, y1])
        return QRectF(QPointF(float(x[0]), float(y[0])), QPointF(float(x[1]), float(y[1])))

    def _turned(self, panel: Panel) -> QImage:
        return turned(panel.image, self._whole(panel))

    # -- the mouse ---------------------------------------------------------------------------------------------------

    def panel_at(self, place: QPointF) -> Panel | None:
        return next((panel for panel in self.panels if panel.plane.rect.contains(place)), None)

    def over(self, painter: QPainter) -> None:
        panel = self.panel_at(self.spot) if self.spot is not None else None
        if panel is None or self.spot is None:
            return
        x, y = panel.plane.at(self.spot)
        for other in self.panels:
            at = QPointF(float(other.plane.across_scaled(x)), float(other.plane.along_scaled(y)))
            if not other.plane.rect.contains(at):
                continue
            painter.setPen(QPen(self.theme.colour("accent"), 1.5))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawEllipse(at, 4, 4)
            said = [self._value_at(other, x, y)]
            if other is panel:
                said.insert(0, f"{words.number(x, 3)}, {words.number(y, 3)}")
            draw_tip(painter, self.theme, at, QRectF(self.rect()), said)

    def _value_at(self, panel: Panel, x: float, y: float) -> str:
        x0, x1, y0, y1 = self._corners()
        column = math.floor((x - x0) / (x1 - x0) * panel.image.width())
        row = math.floor((y - y0) / (y1 - y0) * panel.image.height())
        if not (0 <= column < panel.image.width() and 0 <= row < panel.image.height()):
            return "outside"
        if panel.z.ndim == 2:
            return words.number(float(panel.z[row, column]))
        z = panel.z if panel.z.shape[0] in (1, 3) else panel.z.transpose(2, 0, 1)
        return ", ".join(words.number(float(v), 3) for v in z[:, row, column])

    def zoom(self, at: QPointF, factor: float) -> None:
        panel = self.panel_at(at) or self.panels[0]
        panel.plane.zoom(at, factor)
        self._follow(panel)

    def drag(self, by: QPointF) -> None:
        self.panels[0].plane.pan(by)
        self._follow(self.panels[0])

    def _follow(self, moved: Panel) -> None:
        for panel in self.panels:
            panel.plane.x.shown, panel.plane.y.shown = moved.plane.x.shown, moved.plane.y.shown
        self.redraw()

    def show_all(self) -> None:
        for panel in self.panels:
            panel.plane.show_all()
        self.redraw()

    def text(self) -> str:
        said = []
        for panel in self.panels:
            size = f"{panel.image.height()} x {panel.image.width()}"
            spread = span_said(panel.z) if panel.scale is not None else "in colours"
            middle = f", mean {mean_said(panel.z)}" if panel.scale is not None else ""
            said.append(f"{panel.name or 'picture'} ({size}): {spread}{middle}.")
        return f"{many(len(self.panels), 'picture')} side by side. " + " ".join(said)

    def has_numbers(self) -> bool:
        return any(panel.z.ndim == 2 for panel in self.panels)

    def csv(self) -> str | None:
        fields = [panel for panel in self.panels if panel.z.ndim == 2]
        rows = [[panel.name, r, *row] for panel in fields for r, row in enumerate(panel.z.tolist())]
        widest = max((panel.z.shape[1] for panel in fields), default=0)
        return csv_of(["panel", "row", *range(widest)], rows) if rows else None


@draws("image-grid")
class ImageGridView(Canvas):
    """Small pictures with captions, as many to a line as fit."""

    def __init__(self, theme: Theme):
        super().__init__(theme)
        self.images: list[QImage] = []
        self.captions: list[str] = []

    def prepare(self) -> None:
        self.images = [picture(array(image)) for image in self.figure["images"]]
        self.captions = [str(caption) for caption in self.figure.get("captions", [])]

    def fit(self, width: float, height: float) -> tuple[int, float]:
        """Columns and side of the largest squares that all fit."""
        count, below = len(self.images), self._below()
        most = 400.0 if self.roomy or count == 1 else float(SIDE)
        best = (1, 8.0)
        for columns in range(1, count + 1):
            across = (width + SPACE_S) / columns - SPACE_S
            down = (height + SPACE_S) / math.ceil(count / columns) - SPACE_S - below
            side = min(across, down, most)
            if side > best[1]:
                best = (columns, side)
        return best

    def _below(self) -> float:
        return QFontMetricsF(self.theme.font(TICK)).height() + 1 if any(self.captions) else 0.0

    def height_for(self, width: int) -> int:
        count, side = len(self.images), 48
        columns = max(1, (width + SPACE_S) // (side + SPACE_S))
        return int(min(math.ceil(count / columns) * (side + self._below() + SPACE_S) + 8, 420))

    def cell(self, number: int) -> QRectF:
        """Where a picture lies on the widget."""
        columns, side = self.fit(self.width() - 4, self.height() - 2)
        x, y = number % columns * (side + SPACE_S), number // columns * (side + self._below() + SPACE_S)
        return QRectF(2 + x, 1 + y, side, side)

    def draw(self, painter: QPainter, area: QRectF) -> None:
        painter.setFont(self.theme.font(TICK))
        metrics = QFontMetricsF(painter.font())
        for number, image in enumerate(self.images):
            cell = self.cell(number)
            size = image.size().scaled(cell.size().toSize(), Qt.AspectRatioMode.KeepAspectRatio)
            inside = QRectF(0, 0, size.width(), size.height())
            inside.moveCenter(cell.center())
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform, image.width() > inside.width())
            painter.drawImage(inside, image)
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QPen(self.theme.colour("line"), 1))
            painter.drawRect(inside)
            if number < len(self.captions):
                painter.setPen(self.theme.colour("muted"))
                text = metrics.elidedText(
                    self.captions[number], Qt.TextElideMode.ElideRight, cell.width() + SPACE_S - 2
                )
                below = QRectF(cell.left() - SPACE_S / 2, cell.bottom(), cell.width() + SPACE_S, self._below())
                painter.drawText(below, int(Qt.AlignmentFlag.AlignCenter), text)

    def image_at(self, place: QPointF) -> int | None:
        return next((i for i in range(len(self.images)) if self.cell(i).contains(place)), None)

    def over(self, painter: QPainter) -> None:
        number = self.image_at(self.spot) if self.spot is not None else None
        if number is None or self.spot is None:
            return
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.setPen(QPen(self.theme.colour("accent"), 1.5))
        painter.drawRect(self.cell(number))
        said = [f"{number + 1} of {len(self.images)}"]
        if number < len(self.captions) and self.captions[number]:
            said.insert(0, self.captions[number])
        draw_tip(painter, self.theme, self.spot, QRectF(self.rect()), said)

    def text(self) -> str:
        named = ": " + ", ".join(self.captions[:40]) if any(self.captions) else ""
        return f"{many(len(self.images), 'small picture')}{named}."


@draws("boxes")
class BoxesView(Planar):
    """Boxes over a picture, each label in its colour."""

    def __init__(self, theme: Theme):
        super().__init__(theme)
        self.image: QImage | None = None

    def prepare(self) -> None:
        before = self.plane
        self.boxes = [dict(box) for box in self.figure["boxes"]]
        self.labels = list(dict.fromkeys(str(box.get("label", "")) for box in self.boxes))
        self.image = picture(array(self.figure["image"])) if "image" in self.figure else None
        self.plane = Plane(Side(), Side(), equal=True, down=True, bare=True)
        ends = [(float(box["x"]) + d * float(box["w"]), float(box["y"]) + d * float(box["h"]))
                for box in self.boxes for d in (0, 1)]  # fmt: skip
        if self.image is not None:
            ends += [(0.0, 0.0), (float(self.image.width()), float(self.image.height()))]
        corners = np.array(ends or [(0.0, 0.0), (1.0, 1.0)])
        self.plane.x.fit([corners[:, 0]], room=0.0 if self.image is not None else 0.04)
        self.plane.y.fit([corners[:, 1]], room=0.0 if self.image is not None else 0.04)
        self.plane.keep_zoom(before)

    def _rect(self, box: Mapping[str, Any]) -> QRectF:
        x = self.plane.across([box["x"], box["x"] + box["w"]])
        y = self.plane.along([box["y"], box["y"] + box["h"]])
        return QRectF(QPointF(float(x[0]), float(y[0])), QPointF(float(x[1]), float(y[1])))

    def draw(self, painter: QPainter, area: QRectF) -> None:
        self.plane.place(area, self.theme)
        painter.setClipRect(self.plane.rect.adjusted(-1, -1, 1, 1))
        if self.image is not None:
            x, y = self.plane.across([0, self.image.width()]), self.plane.along([0, self.image.height()])
            whole = QRectF(QPointF(float(x[0]), float(y[0])), QPointF(float(x[1]), float(y[1])))
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform, self.image.width() > whole.width())
            painter.drawImage(whole, self.image)
        painter.setFont(self.theme.font(TICK))
        metrics = QFontMetricsF(painter.font())
        for box in self.boxes:
            rect = self._rect(box)
            colour = self.theme.series(self.labels.index(str(box.get("label", ""))))
            painter.setPen(QPen(colour, 2))
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.drawRect(rect)
            said = self._said(box)
            if said:
                inside = max(self.plane.rect.top(), rect.top() - metrics.height() - 2)
                draw_halo(painter, self.theme, QPointF(rect.left() + 2, inside + metrics.ascent()), said)

    @staticmethod
    def _said(box: Mapping[str, Any]) -> str:
        score = words.number(float(box["score"]), 2) if "score" in box else ""
        return f"{box.get('label', '')} {score}".strip()

    def box_at(self, place: QPointF) -> int | None:
        """The smallest box under a place."""
        under = [i for i, box in enumerate(self.boxes) if self._rect(box).contains(place)]
        return min(under, key=lambda i: float(self.boxes[i]["w"]) * float(self.boxes[i]["h"]), default=None)

    def over(self, painter: QPainter) -> None:
        number = self.box_at(self.spot) if self.spot is not None else None
        if number is None or self.spot is None:
            return
        box = self.boxes[number]
        painter.setPen(QPen(self.theme.colour("accent"), 3))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        painter.drawRect(self._rect(box))
        said = [self._said(box) or f"box {number + 1}"]
        said.append(f"at {words.number(box['x'], 3)}, {words.number(box['y'], 3)}, "
                    f"size {words.number(box['w'], 3)} x {words.number(box['h'], 3)}")  # fmt: skip
        draw_tip(painter, self.theme, self.spot, QRectF(self.rect()), said)

    def text(self) -> str:
        counted = [(label, sum(str(box.get("label", "")) == label for box in self.boxes)) for label in self.labels]
        said = ", ".join(f"{count} {label}".strip() for label, count in counted)
        return f"{many(len(self.boxes), 'box', 'boxes')}{' over a picture' if self.image else ''}: {said}."

    def csv(self) -> str | None:
        names = ("x", "y", "w", "h", "label", "score")
        return csv_of(names, ([box.get(name, "") for name in names] for box in self.boxes))
