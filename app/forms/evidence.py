"""What was measured of a part: its numbers in words, and the dot plot of baseline and method."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QPainter, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QVBoxLayout, QWidget

from app import words
from app.places import label
from app.theme import SIZE_SMALL, SPACE_XS, Theme
from engine.statistics import student_quantile
from engine.workspace import RESOURCES

FOLDER = RESOURCES / "evidence"
ROW = 26
Measured = Mapping[str, Sequence[Mapping[str, Any]]]
NAMES = (("baseline", "Baseline"), ("method", "With it"))


def read_evidence(folder: Path = FOLDER) -> dict[str, list[dict[str, Any]]]:
    """Every recorded measurement by part, the part's main one first. A file that cannot be read is left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem) if folder.is_dir() else []:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(data, dict) and all(isinstance(data.get(arm), dict) for arm, _ in NAMES):
            found.setdefault(str(data.get("part", path.stem)), []).append(data)
    return found


def interval(arm: Mapping[str, Any]) -> tuple[float, float]:
    """The 95 % interval of an arm's mean; the mean alone for one run."""
    mean, n = float(arm["mean"]), int(arm.get("n", 1))
    if n < 2:
        return mean, mean
    half = float(student_quantile(n - 1)) * float(arm["std"]) / math.sqrt(n)
    return mean - half, mean + half


def spoken(data: Mapping[str, Any]) -> str:
    """The measurement in a sentence."""
    base, method = (_arm(data[arm]) for arm, _ in NAMES)
    verdict = "The claim held" if data.get("holds") else "The claim did not hold"
    return f"{verdict}: {data.get('metric', 'metric')} {method} with it, {base} without."


def provenance(data: Mapping[str, Any]) -> str:
    """Where, when and how long."""
    parts = [str(data[name]) for name in ("machine", "date") if data.get(name)]
    if data.get("seconds") is not None:
        parts.append(words.duration(float(data["seconds"])))
    return "   ·   ".join(parts)


def _arm(arm: Mapping[str, Any]) -> str:
    return f"{words.number(arm['mean'])} ± {words.number(arm.get('std', 0.0), 2)} (n = {arm.get('n', 1)})"


class DotPlot(QWidget):
    """Baseline and method, one row each: a dot a seed, the mean and its 95 % interval."""

    def __init__(self, theme: Theme):
        super().__init__()
        self.theme = theme
        self.data: Mapping[str, Any] = {}
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setMaximumWidth(640)

    def show_data(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.setAccessibleName(spoken(data))
        self.setToolTip(spoken(data))
        self.update()

    def sizeHint(self) -> QSize:
        return QSize(360, 2 * ROW + 20)

    def span(self) -> tuple[float, float]:
        """The stretch of values that is drawn."""
        values = [v for arm, _ in NAMES for v in (*interval(self.data[arm]), *self.data[arm].get("values", ()))]
        low, high = min(values), max(values)
        room = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
        return low - room, high + room

    def paintEvent(self, event: QPaintEvent) -> None:
        if not self.data:
            return
        tokens = self.theme.tokens
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setFont(self.theme.font(SIZE_SMALL))
        low, high = self.span()
        left, right = 76.0, self.width() - 10.0

        def x_of(value: float) -> float:
            return left + (value - low) / (high - low) * (right - left)

        for row, (arm, name) in enumerate(NAMES):
            y = ROW * row + ROW / 2
            painter.setPen(QColor(tokens.muted))
            painter.drawText(QRectF(0, y - 9, 72, 18), int(Qt.AlignmentFlag.AlignVCenter), name)
            painter.setPen(QColor(tokens.line))
            painter.drawLine(QPointF(left, y), QPointF(right, y))
            self._draw_arm(painter, self.data[arm], y, x_of, self.theme.series(row))
        painter.setPen(QColor(tokens.muted))
        for value in (low, (low + high) / 2, high):
            place = QRectF(min(max(x_of(value) - 30, left - 10), right - 54), 2 * ROW + 2, 60, 16)
            painter.drawText(place, int(Qt.AlignmentFlag.AlignCenter), words.number(value))

    def _draw_arm(self, painter: QPainter, arm: Mapping[str, Any], y: float, x_of: Any, colour: QColor) -> None:
        faint = QColor(colour)
        faint.setAlpha(110)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(faint)
        for value in arm.get("values", ()):
            painter.drawEllipse(QPointF(x_of(float(value)), y), 3, 3)
        low, high = interval(arm)
        painter.setPen(QPen(colour, 2))
        painter.drawLine(QPointF(x_of(low), y), QPointF(x_of(high), y))
        mean = x_of(float(arm["mean"]))
        painter.setPen(QPen(colour, 3))
        painter.drawLine(QPointF(mean, y - 6), QPointF(mean, y + 6))


class Measurement(QWidget):
    """One recorded ablation: its claim, the plot, the sentence, and where it was measured."""

    def __init__(self, theme: Theme):
        super().__init__()
        self.claim = label("", wrap=True, selectable=True)
        self.plot = DotPlot(theme)
        self.verdict = label("", wrap=True, selectable=True)
        self.provenance = label("", "small", wrap=True, selectable=True)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(SPACE_XS)
        for widget in (self.claim, self.plot, self.verdict, self.provenance):
            column.addWidget(widget)

    def show_data(self, data: Mapping[str, Any]) -> None:
        """Fills it with a recorded row."""
        self.claim.setText(str(data.get("claim", "")))
        self.claim.setVisible(bool(data.get("claim")))
        self.plot.show_data(data)
        self.verdict.setText(spoken(data))
        self.provenance.setText(provenance(data))
