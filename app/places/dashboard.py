"""The dashboard: one chart for each thing that the selected runs measure, on one x axis."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PySide6.QtCore import QEvent, QMimeData, QPoint, Qt, QTimer
from PySide6.QtGui import QDrag, QDragEnterEvent, QDropEvent, QMouseEvent, QResizeEvent
from PySide6.QtWidgets import (
    QGridLayout,
    QHBoxLayout,
    QScrollArea,
    QStackedWidget,
    QVBoxLayout,
    QWidget,
)

from app.charts import SMOOTHING, SMOOTHING_WORDS, Chart
from app.choice import Choice, offer_axes
from app.curves import Curve, Drawn, utilization
from app.places import Context, Empty, button
from app.states import SERIES
from app.theme import SPACE_M, SPACE_S
from engine import axes

COLUMN_WIDTH = 280
ROW_HEIGHT = 210
SHAPE = 1.6  # width to height
SPLITS = ("train", "val", "test")
UTILIZATION = "utilization"
LAYERS = "sparsity by layer"
FIRST = ("loss", "accuracy", "sparsity", "lr", "gradient-norm", "throughput", UTILIZATION, LAYERS)
NAMES = {"lr": "learning rate", "gradient-norm": "gradient norm"}
UNITS = {"throughput": "samples/s", UTILIZATION: "%", "seconds/evaluation": "s"}
MANY = 24
LIVE = ("starting", "training", "stopping")


@dataclass
class Plan:
    """What one chart shows, and how many points there were when it was last read."""

    name: str
    curves: list[Curve] = field(default_factory=list)
    points: int = 0
    drawn: tuple[Any, ...] = ()


def chart_of(series: str) -> tuple[str, str, str]:
    """The chart that a series belongs to, the name of its line there, and its split ('' when it has none)."""
    head, _, rest = series.partition("/")
    split, _, variant = head.partition("@")
    if split in SPLITS and rest:
        return rest, f"{split} {variant}".strip(), split
    if head == "sparsity" and rest:
        return LAYERS, rest, ""
    if rest in ("lr", "gradient-norm"):
        return rest, head, ""
    return series, "", ""


def chart_title(name: str) -> str:
    words = NAMES.get(name, name.removeprefix("probe/").replace("/", " · ").replace("-", " ").replace("_", " "))
    return words[:1].upper() + words[1:]


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts 'layer 2' before 'layer 10'."""
    return [(int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def plan_charts(
    runs: Sequence[dict[str, Any]], series: dict[str, list[Any]], colours: Any, gpus: int
) -> dict[str, Plan]:
    """The charts of these runs. One run: colours by line where a chart has many; several: a colour each run."""
    plans: dict[str, Plan] = {}
    for run, own in zip(runs, colours.together(run["id"] for run in runs), strict=True):
        several = f"{run['name'] or run['id']}" if len(runs) > 1 else ""
        for info in series.get(run["id"], []):
            chart, line, split = chart_of(info.name)
            if (split == "test" and info.count < 2) or (chart == LAYERS and len(runs) > 1):
                continue
            if axes.measures_progress(info.name):  # what the others are laid along
                continue
            plan = plans.setdefault(chart, Plan(chart))
            other = len(plan.curves) if chart == LAYERS or (len(runs) == 1 and "@" in info.name) else 0
            colour = (own + other) % SERIES + other // SERIES * SERIES if other else own  # dashed from the ninth on
            plan.curves.append(
                Curve(f"{run['id']} {info.name}", f"{several} {line}".strip(), colour, run["id"], info.name,
                      validation=split in ("val", "test"), smooth=chart not in ("lr", "sparsity", LAYERS))
            )  # fmt: skip
            plan.points += info.count
    if len(runs) == 1:
        lines = ["cpu", *(f"gpu{number}" for number in range(gpus))]
        curves = [Curve(line, line, number, smooth=False) for number, line in enumerate(lines)]
        plans[UTILIZATION] = Plan(UTILIZATION, curves)
    for plan in plans.values():
        plan.curves.sort(key=lambda curve: curve.validation)  # training first, as it is drawn first
    ranks = {name: rank for rank, name in enumerate(FIRST)}
    ordered = sorted(plans.values(), key=lambda plan: (ranks.get(plan.name, len(FIRST)), natural(plan.name)))
    return {plan.name: plan for plan in ordered}


class ChartArea(QWidget):
    """The grid. Charts can be dragged to another place of it by their title."""

    def __init__(self, dashboard: Dashboard):
        super().__init__()
        self._dashboard = dashboard
        self.setAcceptDrops(True)
        self.grid = QGridLayout(self)
        self.grid.setContentsMargins(SPACE_M, SPACE_S, SPACE_M, SPACE_M)
        self.grid.setSpacing(SPACE_S)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if event.mimeData().hasFormat("application/x-athanor-chart"):
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        name = bytes(event.mimeData().data("application/x-athanor-chart").data()).decode()
        self._dashboard.move_chart(name, event.position().toPoint())
        event.acceptProposedAction()


class Dashboard(QWidget):
    """The charts of the selected runs. Only charts on screen whose series have grown are read again."""

    def __init__(self, context: Context):
        super().__init__()
        self.context = context
        self.runs: list[dict[str, Any]] = []
        self.plans: dict[str, Plan] = {}
        self.charts: dict[str, Chart] = {}
        self.enlarged: str | None = None
        self._pressed: tuple[str, QPoint] | None = None
        self._building: list[str] = []
        self._whole: tuple[float, float] | None = None
        self._shape = 0, 0
        self._placed: dict[str, tuple[int, int]] = {}
        settings = context.settings
        self.clock = str(settings.value("runs/clock", "step"))
        self.smoothing = float(str(settings.value("runs/smoothing", SMOOTHING[1])))
        self.sequence: list[str] = [part for part in str(settings.value("runs/charts", "")).split("\n") if part]
        self.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self._build()
        context.theme.changed.connect(self._restyle)

    def _build(self) -> None:
        self._axis = Choice("What runs along x", "What runs along x, in all charts.")
        self._axis.wanted = self.clock
        offer_axes(self._axis, ())
        self._axis.chosen.connect(self.set_clock)
        bar = QHBoxLayout()
        bar.setContentsMargins(SPACE_M, 0, SPACE_M, 0)
        bar.setSpacing(SPACE_S)
        bar.addWidget(self._axis)
        self._smooth = button(self._smooth_text(), self.next_smoothing, "link", "Smooth the charts more or less (S)")
        bar.addWidget(self._smooth)
        bar.addStretch()
        self._reset = button("Show all", self.reset, "link", "Show all of the curves (Ctrl+0)")
        self._reset.setVisible(False)
        bar.addWidget(self._reset)
        self.area = ChartArea(self)
        self.scroller = QScrollArea()
        self.scroller.setWidgetResizable(True)
        self.scroller.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.scroller.setWidget(self.area)
        self.scroller.verticalScrollBar().valueChanged.connect(lambda _value: self._refresh_charts())
        self._stack = QStackedWidget()
        self._empty = Empty("Curves appear with the first step of training.")
        self._stack.addWidget(self._empty)
        self._stack.addWidget(self.scroller)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addLayout(bar)
        column.addWidget(self._stack, 1)

    # -- what is shown -----------------------------------------------------------------------------------------------

    def show_runs(self, runs: Sequence[dict[str, Any]]) -> None:
        """Reads which series the runs have; the charts follow."""
        runs = list(runs)
        if [run["id"] for run in runs] != [run["id"] for run in self.runs]:
            self._set_span(None)
            self._whole = None
        self.runs = runs
        ids = [run["id"] for run in runs]

        def read(log: Any) -> tuple[dict[str, list[Any]], int]:
            samples = log.machine(0, limit=1)
            gpus = len(samples[-1].get("gpus") or []) if samples else 0
            return {run: log.series(run) for run in ids}, gpus

        self.context.reader.ask(read, self._planned, key="dashboard", owner=self)

    def _planned(self, found: tuple[dict[str, list[Any]], int]) -> None:
        series, gpus = found
        offer_axes(self._axis, (info.name for infos in series.values() for info in infos))
        if self._axis.key != self.clock:  # these runs do not know the one that was chosen for others
            self._take_clock(self._axis.key)
        self._whole = self._extent(series)
        if set(series) != {run["id"] for run in self.runs}:
            return
        has_points = any(info.count for infos in series.values() for info in infos)
        plans = plan_charts(self.runs, series, self.context.colours, gpus) if has_points else {}
        for name, plan in plans.items():
            before = self.plans.get(name)
            if before is not None and before.curves == plan.curves:
                plan.drawn = before.drawn
        if list(plans) != list(self.plans):
            self.plans = plans
            self._lay_out()
        self.plans = plans
        self._set_curves()
        self._stack.setCurrentWidget(self.scroller if plans else self._empty)
        self._refresh_charts()

    def _extent(self, series: dict[str, list[Any]]) -> tuple[float, float] | None:
        """The x axis that all charts share: from the start to where the longest run is now."""
        if self.clock not in (axes.STEP, axes.TIME):
            told = [info.last_value or 0.0 for infos in series.values() for info in infos if info.name == self.clock]
            last, most = max(told, default=0.0), 0
        elif self.clock == axes.STEP:
            last = max((info.last_step or 0 for infos in series.values() for info in infos), default=0)
            most = max((run["steps"] or 0 for run in self.runs), default=0)
        else:
            begun = [run for run in self.runs if run["started"]]
            now = [time.time() if run["state"] in LIVE else run["ended"] or run["heartbeat"] for run in begun]
            last = max((end - run["started"] for end, run in zip(now, begun, strict=True) if end), default=0)
            most = 0
        if last <= 0:
            return None
        if not any(run["state"] in LIVE for run in self.runs):
            return (0.0, float(last))
        if self._whole is not None and 0.7 * self._whole[1] <= last <= self._whole[1]:
            return self._whole  # a live axis moves in leaps, not with every point
        return (0.0, float(min(last * 1.25, most) if most > last else last * 1.25))

    def order(self) -> list[str]:
        """The charts in the order that a person gave them, new ones behind."""
        names = list(self.plans)
        kept = [name for name in self.sequence if name in names]
        return kept + [name for name in names if name not in kept] if kept else names

    def _lay_out(self) -> None:
        """Puts charts that are there into the grid; makes missing ones in later turns of the event loop."""
        for name in [name for name in self.charts if name not in self.plans]:
            self.charts.pop(name).deleteLater()
            self._placed.pop(name, None)
        self._building = [name for name in self.order() if name not in self.charts]
        if self.enlarged not in self.plans:
            self.enlarged = None
        self._place()
        self._build_next()

    def _build_next(self) -> None:
        """Makes one chart a turn of the event loop."""
        while self._building:
            name = self._building.pop(0)
            if name in self.plans and name not in self.charts:
                self.charts[name] = self._make_chart(name)
                self._place()
                self._refresh_charts()
                break
        if self._building:
            QTimer.singleShot(15, self._build_next)

    def _make_chart(self, name: str) -> Chart:
        chart = Chart(self.context, chart_title(name), UNITS.get(name, ""))
        chart.smoothing = self.smoothing
        if name in (UTILIZATION, "sparsity", "accuracy", LAYERS):
            chart.y_floor = 0.0
        if name == UTILIZATION:
            chart.y_ceiling = 100.0
        chart.set_clock(self.clock)
        chart.spanned.connect(self._set_span)
        chart.enlarge.connect(lambda: self.toggle(name))
        chart.setProperty("chart", name)
        chart.head.installEventFilter(self)
        chart.set_curves(self.plans[name].curves[:MANY])
        return chart

    def _best_columns(self, count: int) -> int:
        """So many columns that the charts come nearest to a pleasant shape."""
        room = self.scroller.viewport().size()
        most = max(1, room.width() // COLUMN_WIDTH)

        def ugliness(columns: int) -> float:
            height = max(ROW_HEIGHT, room.height() / -(-count // columns))
            return abs(math.log(room.width() / columns / height / SHAPE))

        return min(range(1, most + 1), key=ugliness) if count else 1

    def _place(self) -> None:
        """Puts every chart into its cell; those that are there already are left alone.

        The cells of charts that are still to be made are kept free, so that no chart is resized as others come.
        """
        names = [self.enlarged] if self.enlarged else self.order()
        columns = 1 if self.enlarged else self._best_columns(len(names))
        cells = {name: (place // columns, place % columns) for place, name in enumerate(names)}
        grid = self.area.grid
        for name, chart in self.charts.items():
            if name in self._placed and self._placed[name] != cells.get(name):
                grid.removeWidget(chart)
                del self._placed[name]
                chart.setVisible(False)
            if name in cells and name not in self._placed:
                grid.addWidget(chart, *cells[name])
                chart.setVisible(True)
                self._placed[name] = cells[name]
        rows = -(-len(names) // columns)
        if (rows, columns) == self._shape:
            return
        for row in range(max(grid.rowCount(), rows)):
            grid.setRowMinimumHeight(row, ROW_HEIGHT if row < rows else 0)
            grid.setRowStretch(row, 1 if row < rows else 0)
        for column in range(max(grid.columnCount(), columns)):
            grid.setColumnStretch(column, 1 if column < columns else 0)
        self._shape = rows, columns

    def _set_curves(self) -> None:
        for name, chart in self.charts.items():
            if name in self.plans:
                chart.set_curves(self.plans[name].curves[:MANY])

    def _refresh_charts(self) -> None:
        view = self.scroller.viewport().rect()
        for name, chart in self.charts.items():
            plan = self.plans.get(name)
            if plan is None or not chart.isVisible():
                continue
            chart.whole = self._whole
            top = chart.mapTo(self.scroller.viewport(), QPoint(0, 0)).y()
            if top > view.bottom() or top + chart.height() < 0:
                continue
            stamp = (
                plan.points,
                self.clock,
                self._whole,
                self.runs[0]["step"] if name == UTILIZATION and self.runs else 0,
            )
            if plan.drawn != stamp:
                plan.drawn = stamp
                if name == UTILIZATION:
                    self._refresh_utilization(chart)
                else:
                    chart.refresh()

    def _refresh_utilization(self, chart: Chart) -> None:
        if not self.runs:
            return
        run, clock, reader = self.runs[0], self.clock, self.context.reader
        width = max(chart.canvas.width(), 64)

        def show(drawn: dict[str, Drawn]) -> None:
            if self.clock == clock and self.runs and self.runs[0]["id"] == run["id"]:
                self.context.frames.draw(chart, lambda: chart.show_drawn(drawn))

        reader.ask(
            lambda log: utilization(log, reader.cache, reader.machine, run, clock, width),
            show,
            key=UTILIZATION,
            owner=chart,
        )

    # -- what a person does ------------------------------------------------------------------------------------------

    def set_clock(self, clock: str) -> None:
        """What runs along x in every chart: an axis of `engine.axes`."""
        self._axis.choose(clock)
        if clock == self.clock:
            return
        self._take_clock(clock)
        self.show_runs(self.runs)

    def _take_clock(self, clock: str) -> None:
        self.clock = clock
        self._whole = None
        for chart in self.charts.values():
            chart.set_clock(clock)
        self._set_span(None)

    def next_smoothing(self) -> None:
        """None, a little, medium, strong, and round again."""
        place = SMOOTHING.index(self.smoothing) if self.smoothing in SMOOTHING else 0
        self.smoothing = SMOOTHING[(place + 1) % len(SMOOTHING)]
        self._smooth.setText(self._smooth_text())
        for chart in self.charts.values():
            chart.set_smoothing(self.smoothing)

    def reset(self) -> None:
        self._set_span(None)

    def toggle(self, name: str) -> None:
        """One chart fills the dashboard, or all are back."""
        self.enlarged = None if self.enlarged else name
        self._place()
        QTimer.singleShot(0, self._refresh_charts)

    def move_chart(self, name: str, at: QPoint) -> None:
        """Puts a chart before the one that lies at a point of the grid."""
        target = next(
            (key for key, chart in self.charts.items() if chart.isVisible() and chart.geometry().contains(at)), None
        )
        names = self.order()
        if name not in names or target == name:
            return
        before = list(names)
        names.remove(name)
        names.insert(before.index(target) if target in names else len(names), name)
        self._set_sequence(names)
        self.context.message("The charts have a new order.", lambda: self._set_sequence(before))

    def _set_sequence(self, names: list[str]) -> None:
        self.sequence = names
        self._place()
        QTimer.singleShot(0, self._refresh_charts)

    def _set_span(self, span: tuple[float, float] | None) -> None:
        self._reset.setVisible(span is not None)
        for chart in self.charts.values():
            chart.set_span(span)

    def _smooth_text(self) -> str:
        place = SMOOTHING.index(self.smoothing) if self.smoothing in SMOOTHING else 0
        return f"Smoothing: {SMOOTHING_WORDS[place].lower()}"

    def _restyle(self) -> None:
        for chart in self.charts.values():
            chart.restyle()

    def save(self) -> None:
        settings = self.context.settings
        settings.setValue("runs/clock", self._axis.wanted or self.clock)
        settings.setValue("runs/smoothing", self.smoothing)
        settings.setValue("runs/charts", "\n".join(self.sequence))

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._place()
        QTimer.singleShot(0, self._refresh_charts)

    def eventFilter(self, watched: Any, event: QEvent) -> bool:
        """A chart's title: a click enlarges it, a drag moves it."""
        if isinstance(event, QMouseEvent) and event.type() == QEvent.Type.MouseButtonPress:
            self._pressed = (str(watched.parentWidget().property("chart")), event.globalPosition().toPoint())
        elif isinstance(event, QMouseEvent) and self._pressed is not None:
            name, start = self._pressed
            far = (event.globalPosition().toPoint() - start).manhattanLength() > 12
            if event.type() == QEvent.Type.MouseMove and far and not self.enlarged:
                self._pressed = None
                drag, data = QDrag(self), QMimeData()
                data.setData("application/x-athanor-chart", name.encode())
                drag.setMimeData(data)
                drag.setPixmap(watched.grab())
                drag.exec(Qt.DropAction.MoveAction)
            elif event.type() == QEvent.Type.MouseButtonRelease:
                self._pressed = None
                self.toggle(name)
        return super().eventFilter(watched, event)
