"""Machine: one strip a device, the last ten minutes, with the runs that used it as coloured bars below."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from PySide6.QtCore import QEvent, QPointF, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QHelpEvent, QMouseEvent, QPainter, QPaintEvent, QPen, QPolygonF
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QScrollArea,
    QSizePolicy,
    QStackedWidget,
    QToolTip,
    QVBoxLayout,
    QWidget,
)

from app import words
from app.curves import MachineCache
from app.places import Context, Empty, Place, label
from app.theme import SIZE_SMALL, SPACE_L, SPACE_M, SPACE_S

WINDOW = 600.0
LABELS = 190  # pixels for the names on the left
TALL, LOW, BAR, GAP = 54, 34, 16, 6


@dataclass
class Lane:
    """One measured quantity of a device: its samples, and how it is shown."""

    name: str
    values: np.ndarray
    text: Callable[[float], str]
    ceiling: float | None = None  # the top of the lane; None: what was measured
    floor: float = 0.0
    tall: bool = False
    note: str = ""


@dataclass
class Bar:
    """When a run used a device."""

    run: str
    name: str
    start: float
    end: float
    live: bool


@dataclass
class Device:
    """What one strip shows."""

    id: str
    title: str
    lanes: list[Lane] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)


@dataclass
class Reading:
    """All strips, on one time axis."""

    times: np.ndarray
    end: float
    devices: list[Device]
    disk: str = ""


def read_machine(log: Any, cache: MachineCache, now: float) -> Reading:
    """The last ten minutes. Runs on the reader's thread."""
    samples = cache.since(log, now - WINDOW)
    times = np.array([sample["time"] for sample in samples], dtype=np.float64)
    if not samples:
        return Reading(times, now, [])
    last = samples[-1]
    bars = read_bars(log, now)
    devices = [_processor(samples, [bar for _, bar in bars])]
    for number in range(max(len(sample.get("gpus") or []) for sample in samples)):
        devices.append(_gpu(samples, number, [bar for device, bar in bars if device == number]))
    disk = ""
    if last.get("disk_free") is not None and last.get("disk_total"):
        disk = f"{words.size(last['disk_free'])} of {words.size(last['disk_total'])} free on the workspace's disk"
    return Reading(times, now, devices, disk)


def read_bars(log: Any, now: float) -> list[tuple[int | None, Bar]]:
    """The runs of the last ten minutes, each with the number of its GPU or None."""
    found = []
    for run in log.runs(archived=None, kind="run", limit=500):
        if not run["started"] or (run["ended"] and run["ended"] < now - WINDOW):
            continue
        live = run["ended"] is None and run["state"] in ("starting", "training", "paused", "stopping")
        end = run["ended"] or (now if live else run["heartbeat"] or run["started"])
        if end < now - WINDOW:
            continue
        kind, _, number = (run["device"] or "").partition(":")
        gpu = (int(number) if number.isdigit() else 0) if kind == "cuda" else None
        found.append((gpu, Bar(run["id"], run["name"] or run["id"], run["started"], end, live)))
    return found


def _column(samples: list[dict[str, Any]], name: str) -> np.ndarray:
    values = [sample.get(name) for sample in samples]
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _processor(samples: list[dict[str, Any]], bars: list[Bar]) -> Device:
    last = samples[-1]
    cores = len(last.get("cpus") or [])
    lanes = [
        Lane("Utilization", _column(samples, "cpu"), _percent, 100.0, tall=True),
        Lane("Memory", _column(samples, "memory"), words.size, last.get("memory_total"), tall=True,
             note=f"of {words.size(last.get('memory_total'))}"),
    ]  # fmt: skip
    load = _column(samples, "load")
    if np.isfinite(load).any():
        lanes.append(Lane("Load", load, lambda value: f"{value:.2f}", None, note="mean of a minute"))
    return Device("cpu", f"Processor, {cores} cores" if cores > 1 else "Processor", lanes, bars)


def _gpu(samples: list[dict[str, Any]], number: int, bars: list[Bar]) -> Device:
    rows = [(sample.get("gpus") or [])[number : number + 1] for sample in samples]
    flat = [row[0] if row else {} for row in rows]
    last: dict[str, Any] = next((row for row in reversed(flat) if row), {})
    lanes = [
        Lane("Utilization", _column(flat, "utilization"), _percent, 100.0, tall=True),
        Lane("Memory", _column(flat, "memory"), words.size, last.get("memory_total"), tall=True,
             note=f"of {words.size(last.get('memory_total'))}"),
        Lane("Power", _column(flat, "power"), lambda value: f"{value:.0f} W"),
        Lane("Temperature", _column(flat, "temperature"), lambda value: f"{value:.0f} °C", floor=20.0),
        Lane("Clock", _column(flat, "clock"), lambda value: f"{value:.0f} MHz"),
    ]  # fmt: skip
    told = [lane for lane in lanes if np.isfinite(lane.values).any()]
    return Device(f"gpu{number}", f"GPU {number}, {last.get('name') or 'unnamed'}", told, bars)


def _percent(value: float) -> str:
    return f"{value:.0f} %"


class Strip(QWidget):
    """The lanes of one device, painted on one time axis, and the bars of its runs."""

    opened = Signal(str)

    def __init__(self, context: Context):
        super().__init__()
        self.context = context
        self.device = Device("", "")
        self.times = np.empty(0)
        self.end = 0.0
        self._at: float | None = None
        self.setMouseTracking(True)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        context.theme.changed.connect(self.update)

    def show_device(self, device: Device, times: np.ndarray, end: float) -> None:
        if self.sizeHint().height() != _height(device):
            self.device = device
            self.updateGeometry()
        self.device, self.times, self.end = device, times, end
        said = [f"{lane.name} {lane.text(lane.values[-1])}" for lane in device.lanes if np.isfinite(lane.values[-1])]
        self.setAccessibleName(f"{device.title}: {', '.join(said)}")
        self.update()

    def sizeHint(self) -> QSize:
        return QSize(600, _height(self.device))

    # -- painting ----------------------------------------------------------------------------------------------------

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        top = 0.0
        for lane in self.device.lanes:
            height = TALL if lane.tall else LOW
            self._paint_lane(painter, lane, QRectF(LABELS, top, self._width(), height))
            top += height + GAP
        for bar in self.device.bars:
            self._paint_bar(painter, bar, top)
            top += BAR + 3
        self._paint_axis(painter, top)
        if self._at is not None:
            painter.setPen(QPen(self.context.theme.colour("muted"), 1))
            painter.drawLine(QPointF(self._at, 0), QPointF(self._at, top))
        painter.end()

    def _width(self) -> float:
        return max(self.width() - LABELS - 4, 10)

    def _x(self, moment: np.ndarray | float) -> Any:
        return LABELS + (moment - (self.end - WINDOW)) / WINDOW * self._width()

    def _paint_lane(self, painter: QPainter, lane: Lane, area: QRectF) -> None:
        theme = self.context.theme
        painter.setPen(QPen(theme.colour("line"), 1))
        painter.drawLine(area.bottomLeft(), area.bottomRight())
        colour = theme.series(0)
        finite = np.isfinite(lane.values)
        painter.save()
        painter.setClipRect(area.adjusted(0, -2, 0, 1))
        if finite.any():
            low, high = _range(lane, lane.values[finite])
            ys = area.bottom() - (np.clip(lane.values, low, high) - low) / (high - low) * (area.height() - 2)
            xs = self._x(self.times)
            for begin, stop in _stretches(self.times, finite):
                line = [QPointF(x, y) for x, y in zip(xs[begin:stop].tolist(), ys[begin:stop].tolist(), strict=True)]
                fill = QColor(colour)
                fill.setAlphaF(0.12)
                painter.setPen(Qt.PenStyle.NoPen)
                painter.setBrush(fill)
                edge = [QPointF(line[-1].x(), area.bottom()), QPointF(line[0].x(), area.bottom())]
                painter.drawPolygon(QPolygonF([*line, *edge]))
                painter.setBrush(Qt.BrushStyle.NoBrush)
                painter.setPen(QPen(colour, 1.3))
                painter.drawPolyline(QPolygonF(line))
        painter.restore()
        self._paint_label(painter, lane, area)

    def _paint_label(self, painter: QPainter, lane: Lane, area: QRectF) -> None:
        theme = self.context.theme
        room = QRectF(0, area.top(), LABELS - 12, area.height())
        value = self._value(lane)
        painter.setFont(theme.font(SIZE_SMALL))
        painter.setPen(theme.colour("muted"))
        painter.drawText(room, Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignTop, lane.name)
        if lane.note and lane.tall:
            painter.drawText(
                room.adjusted(0, 20, 0, 0), Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignTop, lane.note
            )
        painter.setFont(theme.font(15 if lane.tall else 13))
        painter.setPen(theme.colour("text"))
        painter.drawText(room, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignTop, value)

    def _value(self, lane: Lane) -> str:
        """The lane's last value, or the one under the mouse."""
        index = len(lane.values) - 1
        if self._at is not None and len(self.times):
            moment = self.end - WINDOW + (self._at - LABELS) / self._width() * WINDOW
            index = int(np.abs(self.times - moment).argmin())
        value = float(lane.values[index])
        return lane.text(value) if math.isfinite(value) else "–"

    def _bar_area(self, bar: Bar, top: float) -> QRectF:
        left = max(self._x(bar.start), LABELS)
        right = min(self._x(bar.end), LABELS + self._width())
        return QRectF(left, top, max(right - left, 3), BAR)

    def _paint_bar(self, painter: QPainter, bar: Bar, top: float) -> None:
        theme = self.context.theme
        area = self._bar_area(bar, top)
        colour = theme.series(self.context.colours.index(bar.run))
        fill = QColor(colour)
        fill.setAlphaF(0.85 if bar.live else 0.6)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(fill)
        painter.drawRoundedRect(area, 3, 3)
        painter.setFont(theme.font(SIZE_SMALL))
        painter.setPen(theme.colour("text"))
        metrics = painter.fontMetrics()
        name = metrics.elidedText(bar.name, Qt.TextElideMode.ElideRight, LABELS - 20)
        where = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
        painter.drawText(QRectF(0, top, LABELS - 12, BAR), where, name)

    def _paint_axis(self, painter: QPainter, top: float) -> None:
        theme = self.context.theme
        painter.setFont(theme.font(SIZE_SMALL - 1))
        painter.setPen(theme.colour("muted"))
        for minutes in (10, 8, 6, 4, 2, 0):
            x = self._x(self.end - minutes * 60)
            text = f"{minutes} min ago" if minutes else "now"
            wide = painter.fontMetrics().horizontalAdvance(text)
            left = min(max(x - wide / 2, LABELS), LABELS + self._width() - wide)
            painter.drawText(QPointF(left, top + 12), text)

    # -- the mouse ---------------------------------------------------------------------------------------------------

    def _bar_at(self, position: QPointF) -> Bar | None:
        top = sum((TALL if lane.tall else LOW) + GAP for lane in self.device.lanes)
        for bar in self.device.bars:
            if top <= position.y() <= top + BAR:
                return bar
            top += BAR + 3
        return None

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        x = event.position().x()
        at = x if LABELS <= x <= LABELS + self._width() else None
        hand = self._bar_at(event.position()) is not None
        self.setCursor(Qt.CursorShape.PointingHandCursor if hand else Qt.CursorShape.ArrowCursor)
        if at != self._at:
            self._at = at
            self.update()

    def leaveEvent(self, event: QEvent) -> None:
        self._at = None
        self.update()

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:
        bar = self._bar_at(event.position())
        if bar is not None:
            self.opened.emit(bar.run)

    def event(self, event: QEvent) -> bool:
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            bar = self._bar_at(QPointF(event.pos()))
            if bar is not None:
                took = words.duration(bar.end - bar.start)
                QToolTip.showText(event.globalPos(), f"{bar.name}: {took}. Click to open it.", self)
                return True
        return super().event(event)


def _height(device: Device) -> int:
    lanes = sum((TALL if lane.tall else LOW) + GAP for lane in device.lanes)
    return lanes + len(device.bars) * (BAR + 3) + 18


def _range(lane: Lane, finite: np.ndarray) -> tuple[float, float]:
    high = lane.ceiling or float(finite.max()) * 1.1
    return lane.floor, max(high, lane.floor + 1e-9)


def _stretches(times: np.ndarray, finite: np.ndarray) -> list[tuple[int, int]]:
    """Where samples follow each other: a line is not drawn over a time in which nothing was measured."""
    breaks = np.flatnonzero((np.diff(times) > 5) | ~finite[1:] | ~finite[:-1]) + 1
    edges = [0, *breaks.tolist(), len(times)]
    return [(begin, stop) for begin, stop in pairwise(edges) if stop - begin > 1]


class MachinePlace(Place):
    """The strips, one below the other."""

    id = "machine"
    title = "Machine"
    icon = "machine"

    def __init__(self, context: Context, parent: QWidget | None = None):
        super().__init__(context, parent)
        self.strips: dict[str, tuple[QFrame, Any, Strip]] = {}
        self.disk = label("", "muted")
        head = QHBoxLayout()
        head.addWidget(label("Machine", "title"))
        head.addSpacing(SPACE_M)
        head.addWidget(self.disk)
        head.addStretch()
        self._inside = QWidget()
        self._column = QVBoxLayout(self._inside)
        self._column.setContentsMargins(SPACE_L, SPACE_M, SPACE_L, SPACE_L)
        self._column.setSpacing(SPACE_M)
        self._column.addLayout(head)
        self._column.addStretch()
        scroller = QScrollArea()
        scroller.setWidgetResizable(True)
        scroller.setWidget(self._inside)
        self._stack = QStackedWidget()
        self._empty = Empty(
            "The engine measures the machine once a second while it runs.",
            "Start the engine",
            lambda: context.actions.start("engine.start"),
        )
        self._stack.addWidget(self._empty)
        self._stack.addWidget(scroller)
        self._scroller = scroller
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._stack)

    def refresh(self) -> None:
        reader = self.context.reader
        now = time.time()
        reader.ask(lambda log: read_machine(log, reader.machine, now), self._show, key="machine", owner=self)

    def _show(self, reading: Reading) -> None:
        self._stack.setCurrentWidget(self._scroller if reading.devices else self._empty)
        self.disk.setText(reading.disk)
        self.context.colours.assign(bar.run for device in reading.devices for bar in device.bars)
        kept = {device.id for device in reading.devices}
        for id in [id for id in self.strips if id not in kept]:
            self.strips.pop(id)[0].deleteLater()
        for device in reading.devices:
            if device.id not in self.strips:
                self._add_strip(device)
            _, title, strip = self.strips[device.id]
            title.setText(device.title)
            strip.show_device(device, reading.times, reading.end)

    def _add_strip(self, device: Device) -> None:
        frame = QFrame()
        frame.setProperty("role", "panel")
        title = label(device.title, "head")
        strip = Strip(self.context)
        strip.opened.connect(lambda run: self.context.go("runs", run=run))
        column = QVBoxLayout(frame)
        column.setContentsMargins(SPACE_M, SPACE_S, SPACE_M, SPACE_S)
        column.setSpacing(SPACE_S)
        column.addWidget(title)
        column.addWidget(strip)
        self._column.insertWidget(self._column.count() - 1, frame)
        self.strips[device.id] = (frame, title, strip)
