"""The charts under the table: an overlay of any series, the trade-off of two numbers, one metric as bars."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QFrame, QHBoxLayout, QVBoxLayout, QWidget

from app import words
from app.charts import Chart, Curve
from app.choice import Choice, offer_axes
from app.comparing.listing import Listing, Row, ranked, summary_text, title
from app.comparing.plots import Axis, Bar, Bars, Point, Scatter, axis_of_metric, read_band
from app.curves import read_along
from app.places import Context, label
from app.theme import SPACE_S, SPACE_XS
from engine import axes, comparison

MOST_CURVES = 24
MOST_BARS = 60
HEAD_HEIGHT = 28


def panel(*head: QWidget, body: QWidget) -> QWidget:
    """A chart with its choices above it."""
    widget = QFrame()
    widget.setProperty("role", "panel")
    column = QVBoxLayout(widget)
    column.setContentsMargins(SPACE_S, SPACE_XS, SPACE_XS, SPACE_XS)
    column.setSpacing(SPACE_XS)
    row = QHBoxLayout()
    row.setSpacing(SPACE_XS)
    row.addStrut(HEAD_HEIGHT)
    for each in head:
        row.addWidget(each)
    row.addStretch()
    column.addLayout(row)
    column.addWidget(body, 1)
    body.setProperty("role", "")  # one frame is enough
    return widget


class Overlay(QWidget):
    """One series of several runs in one chart; of groups, the mean and a band of one standard deviation over seeds."""

    def __init__(self, context: Context):
        super().__init__()
        self.context = context
        self.series = Choice("Series of the overlay", "Which series of the selected rows to draw.")
        self.clock = Choice("What runs along x")
        offer_axes(self.clock, ())
        self.chart = Chart(context, "Overlay")
        context.theme.changed.connect(self._restyle)
        self._restyle()
        self.chart.show_title(False)  # the choice above says which series it is
        self.rows: list[Row] = []
        self._by_group = False
        self._metric = ""
        body = QVBoxLayout(self)
        body.setContentsMargins(0, 0, 0, 0)
        body.addWidget(panel(label("Overlay", "section"), self.series, self.clock, body=self.chart))
        self.series.chosen.connect(lambda _: self._draw())
        self.clock.chosen.connect(lambda _: self._draw())

    def _restyle(self) -> None:
        self.chart.canvas.setBackground(self.context.theme.colour("surface"))

    def show_rows(self, rows: Sequence[Row], by_group: bool, metric: str = "") -> None:
        """Draws the chosen series of these rows, of the first ones where there are many.

        As long as nobody has chosen one, it is the metric's own curve, or the training loss.
        """
        self.rows, self._by_group, self._metric = list(rows[:MOST_CURVES]), by_group, metric
        runs = [run for row in self.rows for run in row.runs[:1]]

        def read(log: Any) -> dict[str, int]:
            counts: dict[str, int] = {}
            for info in (info for run in runs for info in log.series(run)):
                counts[info.name] = max(counts.get(info.name, 0), info.count)
            return counts

        self.context.reader.ask(read, self._offer, key="compare-series", owner=self)

    def _offer(self, counts: dict[str, int]) -> None:
        offer_axes(self.clock, counts)
        drawn = [name for name in ranked(counts) if not axes.measures_progress(name)]
        self.series.offer(((name, name) for name in drawn), curve_of(self._metric, counts))
        self._draw()

    def _draw(self) -> None:
        series = self.series.key
        colours = self.context.colours.together(min(row.runs) for row in self.rows)
        self.chart.set_clock(self.clock.key)
        self.chart.set_title(series or "Overlay")
        if not series:
            self.chart.set_curves([])
            return
        curves = [
            Curve(
                key=row.key,
                name=name,
                colour=colour,
                run="" if self._by_group else row.runs[0],
                series=series,
            )
            for row, name, colour in zip(self.rows, told_apart(self.rows), colours, strict=True)
        ]
        self.chart.set_curves(curves)
        self.refresh()

    def refresh(self) -> None:
        """Reads what is new."""
        if not self._by_group:
            self.chart.refresh()
            return
        cache, series, clock = self.context.reader.cache, self.series.key, self.clock.key
        rows = [(row.key, row.runs) for row in self.rows]

        def read(log: Any) -> dict[str, Any]:
            found = {}
            for key, runs in rows:
                lines = [read_along(log, cache, run, series, clock) for run in runs]
                band = read_band([line for line in lines if line is not None])
                if band is not None:
                    found[key] = (*band, len(runs))
            return found

        self.context.reader.ask(read, self._show_bands, key="compare-bands", owner=self)

    def _show_bands(self, bands: Mapping[str, Any]) -> None:
        named = {curve.key for curve in self.chart.curves}
        for key, (x, mean, low, high, count) in bands.items():
            if key in named:
                edges = (low, high) if count > 1 else (None, None)
                self.chart.feed(key, x, mean, *edges)


def curve_of(metric: str, counts: Mapping[str, int]) -> str:
    """The series that shows how a metric came about: its validation, else the training loss, else any with a curve."""
    curves = [name for name in ranked(counts) if counts[name] > 1]
    liked = [f"val/{metric.split('/', 1)[-1]}", "train/loss", *curves]
    return next((name for name in liked if name in curves), "")


def told_apart(rows: Sequence[Row]) -> list[str]:
    """The rows' names; those that are alike also say their seed, where that differs."""
    counts = Counter(row.name for row in rows)
    seeds: dict[str, set[Any]] = {}
    for row in rows:
        seeds.setdefault(row.name, set()).add(row.settings.get("seed"))
    return [
        f"{row.name}, seed {row.settings['seed']}"
        if counts[row.name] > 1 and len(seeds[row.name]) > 1 and row.settings.get("seed") is not None
        else row.name
        for row in rows
    ]


class TradeOff(QWidget):
    """Any number of the rows against a metric."""

    clicked = Signal(str)
    changed = Signal()

    def __init__(self, context: Context, name: str = "Trade-off"):
        super().__init__()
        self.context = context
        self.across = Choice("Across", "What runs along x.")
        self.plot = Scatter(context, name)
        body = QVBoxLayout(self)
        body.setContentsMargins(0, 0, 0, 0)
        body.addWidget(panel(label(name, "section"), label("against", "small"), self.across, body=self.plot))
        self.across.chosen.connect(lambda _: self.changed.emit())
        self.plot.clicked.connect(self.clicked)

    def show_rows(self, listing: Listing, rows: Sequence[Row], metric: str, selected: Iterable[str] = ()) -> None:
        """Draws the rows; the selected ones stand out."""
        self.across.offer(choices(listing, metric))
        picked, key = set(selected), self.across.key
        values = [value_of(listing, row, key) for row in rows]
        axis, numbers = axis_of(key, values)
        colours = self.context.colours.together(min(row.runs) for row in rows)
        points = [
            Point(row.key, name, x, cell_mean(row, metric), colour, row.key in picked)
            for row, name, x, colour in zip(rows, told_apart(rows), numbers, colours, strict=True)
        ]
        self.plot.show_points(points, axis, axis_of_metric(metric))


def choices(listing: Listing, metric: str) -> list[tuple[str, str]]:
    """What can run along x: cost, what differs, other metrics."""
    found = [("time", "training time"), ("size", "size of checkpoints"), ("begun", "time of begin")]
    found += [(f"setting:{path}", title(path)) for path in listing.paths]
    return found + [(f"metric:{name}", name) for name in listing.metrics if name != metric]


def value_of(listing: Listing, row: Row, key: str) -> Any:
    """The value of a row for one of the choices."""
    kind, _, path = key.partition(":")
    runs = [listing.runs[run] for run in row.runs if run in listing.runs]
    if kind == "setting":
        return row.settings.get(path)
    if kind == "metric":
        return cell_mean(row, path)
    if kind == "size":
        return sum(comparison.size(run) for run in runs) / max(1, len(runs))
    column = "seconds" if kind == "time" else "created"
    return sum(float(run.get(column) or 0.0) for run in runs) / max(1, len(runs))


def axis_of(key: str, values: Sequence[Any]) -> tuple[Axis, list[float]]:
    """An axis for these values and where they stand on it; what are no numbers become words at whole places."""
    kind, _, path = key.partition(":")
    if kind == "metric":
        return axis_of_metric(path), [comparison.number(value) for value in values]
    if kind == "time":
        return Axis("training time in s", higher=False), [float(value) for value in values]
    if kind == "size":
        return Axis("size in bytes", higher=False), [float(value) for value in values]
    if kind == "begun":
        newest = max((float(value) for value in values), default=0.0)
        return Axis("hours before the last one"), [(newest - float(value)) / 3600 for value in values]
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        numbers = [comparison.number(value) for value in values]
        positive = [value for value in numbers if math.isfinite(value)]
        wide = min(positive) > 0 and max(positive) / min(positive) > 30
        return Axis(title(path), logarithmic=wide), numbers
    texts = sorted({comparison.text(value) for value in known})
    places = {text: float(i) for i, text in enumerate(texts)}
    return Axis(title(path), ticks=tuple(texts)), [places.get(comparison.text(value), math.nan) for value in values]


def cell_mean(row: Row, metric: str) -> float:
    cell = row.metrics.get(metric)
    return float(cell["mean"]) if cell else math.nan


class MetricBars(QWidget):
    """One metric of the rows, the best on top."""

    clicked = Signal(str)

    def __init__(self, context: Context):
        super().__init__()
        self.context = context
        self.plot = Bars(context)
        self.name = label("", "section")
        body = QVBoxLayout(self)
        body.setContentsMargins(0, 0, 0, 0)
        body.addWidget(panel(self.name, body=self.plot))
        self.plot.clicked.connect(self.clicked)

    def show_rows(self, listing: Listing, rows: Sequence[Row], metric: str) -> None:
        lower = comparison.lower_is_better(metric)
        known = [row for row in rows if math.isfinite(cell_mean(row, metric))]
        known.sort(key=lambda row: cell_mean(row, metric), reverse=not lower)
        bars = [
            Bar(
                row.key,
                name,
                cell_mean(row, metric),
                row.metrics[metric]["std"],
                row.metrics[metric]["n"],
                self.context.colours.index(min(row.runs)),
                tuple(
                    comparison.number((listing.runs[run].get("metrics") or {}).get(metric))
                    for run in row.runs
                    if run in listing.runs and listing.runs[run]["state"] == "done"
                ),
                summary_text(row.metrics[metric]) if len(row.runs) > 1 else words.number(cell_mean(row, metric)),
            )
            for row, name in zip(known[:MOST_BARS], told_apart(known[:MOST_BARS]), strict=True)
        ]
        self.name.setText(metric)
        note = f"{'lower' if lower else 'higher'} is better"
        if any(bar.spread for bar in bars):
            note += "; whiskers: one standard deviation over seeds"
        if len(known) > MOST_BARS:
            note += f"; the best {MOST_BARS} of {len(known)}"
        if len(known) < len(rows):
            note += f"; {len(rows) - len(known)} without a value"
        self.plot.show_bars(bars, note if rows else "Nothing to draw.")
