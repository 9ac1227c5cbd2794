"""Sweep: a search or a study: its plan, its runs as they come, and what they tell so far."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PySide6.QtCore import Qt, QTimer
from PySide6.QtWidgets import QHBoxLayout, QProgressBar, QScrollArea, QStackedWidget, QVBoxLayout, QWidget

from app import words
from app.charts import Chart
from app.choice import Choice
from app.comparing.listing import Listing, Row, View, build, ranked, title
from app.comparing.panels import TradeOff, cell_mean, panel
from app.comparing.plan import Plan, settings_text
from app.comparing.plots import Bar, Bars
from app.comparing.table import RunTable
from app.consent import ask_first
from app.curves import Curve
from app.places import Context, Empty, Place, button, label
from app.places.figures import FigureCards, Kept, open_changed, read_figures
from app.states import ACTIVE, RESUMABLE, state
from app.theme import SPACE_M, SPACE_S
from engine import comparison
from engine.endpoints import Contact
from engine.statistics import explained

BEST, TRIED = "best", "tried"
LEAST_FOR_IMPORTANCE = 8


class SweepPlace(Place):
    """Plan on the left, runs in the middle, insight on the right."""

    id = "sweep"
    title = "Sweep"
    icon = "sweep"

    def __init__(self, context: Context, parent: QWidget | None = None):
        super().__init__(context, parent)
        self.listing: Listing | None = None
        self.best: Row | None = None
        self.sweeps: dict[str, dict[str, Any]] = {}
        self._draw_timer = QTimer(self)
        self._draw_timer.setSingleShot(True)
        self._draw_timer.timeout.connect(self._draw)
        self._build()
        self._restore()
        context.catalog_ready.connect(lambda _catalog: self.refresh())

    # -- what the window calls ---------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Reads the sweeps and the runs of the one that is shown."""
        wanted, catalog, drawn = self.which.wanted or self.which.key, self.context.catalog, self.figures.known

        def read(log: Any) -> tuple[list[dict[str, Any]], str, Listing, list[Kept]]:
            sweeps = log.runs(kind="sweep")
            known = [sweep["id"] for sweep in sweeps]
            chosen = wanted if wanted in known else (known[0] if known else "")
            runs = log.runs(sweep=chosen, archived=None) if chosen else []
            figures = read_figures(log, chosen, drawn) if chosen else []
            return sweeps, chosen, build(runs, View(), catalog), figures[::-1]

        self.context.reader.ask(read, self._show, key="sweep", owner=self)

    def shown(self) -> None:
        self.plan.previewer.set_active(True)
        if self.plan.base.key == "builder":
            self.plan.read_base()

    def hidden(self) -> None:
        self.plan.previewer.set_active(False)

    def opened(self, recipe: str = "", text: str = "", name: str = "", run: str = "", **_: Any) -> None:
        """Comes with a recipe to vary, or with a sweep to show."""
        if recipe or text:
            self.plan.take(recipe or text, name)
        if run:
            self.which.choose(run)
            self.refresh()

    def focus_search(self) -> None:
        self.plan.pane.chooser_button.setFocus()

    def save(self) -> None:
        kept = {
            "metric": self.measure.wanted,
            "across": self.scatter.across.wanted,
            "sort": [self.table.runs.sorted_by, self.table.runs.descending],
        }
        self.context.settings.setValue("sweep/state", json.dumps(kept))

    # -- building ----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.plan = Plan(self.context)
        self.plan.started.connect(self._start)
        middle, self.insight = self._middle(), self._insight()
        self.insight.hide()  # until there is a sweep
        whole = self.splitter("columns", self.plan, middle, self.insight, sizes=[340, 560, 310])
        for i, factor in enumerate((0, 1, 0)):
            whole.setStretchFactor(i, factor)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(whole)

    def _middle(self) -> QWidget:
        self.which = Choice("Which sweep")
        self.which.setMinimumContentsLength(18)
        self.which.chosen.connect(lambda _: self.refresh())
        self.state = label("", "muted")
        self.stop = button("Stop", lambda: self._ask("stop"), tip="Stops the sweep; its runs keep their checkpoints.")
        self.resume = button("Resume", lambda: self._ask("resume"), tip="Goes on where the sweep stood.")
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setAccessibleName("Runs of the sweep that have ended")
        head = QHBoxLayout()
        head.setContentsMargins(SPACE_M, SPACE_S, SPACE_M, SPACE_S)
        head.setSpacing(SPACE_S)
        head.addWidget(self.which)
        head.addWidget(self.state, 1)
        head.addWidget(self.stop)
        head.addWidget(self.resume)
        self.table = RunTable(self.context, "Runs of the sweep")
        self.scatter = TradeOff(self.context, "Runs")
        self.table.picked.connect(lambda: self._draw_timer.start(30))
        self.table.opened.connect(lambda key: self.context.go("runs", run=key))
        self.scatter.clicked.connect(lambda key: self.table.select([key], key))
        self.scatter.changed.connect(self._draw)
        both = self.splitter("middle", self.table, self.scatter, vertical=True, sizes=[300, 300])
        shown = QWidget()
        column = QVBoxLayout(shown)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addLayout(head)
        column.addWidget(self.progress)
        column.addWidget(both, 1)
        self.middle = QStackedWidget()
        self.middle.addWidget(
            Empty(
                "A sweep trains one recipe with many settings: a search for the best, or a study that answers a "
                "question. Plan it on the left; its runs stand here."
            )
        )
        self.middle.addWidget(shown)
        return self.middle

    def _insight(self) -> QWidget:
        self.measure = Choice("Metric", "Which metric the insight is about.")
        self.measure.chosen.connect(lambda _: self._draw())
        self.best_value = label("", "title", selectable=True)
        self.best_name = label("", wrap=True, selectable=True)
        self.best_settings = label("", "muted", wrap=True, selectable=True)
        self.open_best = button("Open best as recipe", self._open_best, "primary")
        self.show_best = button("Show its run", self._show_best)
        self.compare_all = button("Compare the runs", self._compare)
        self.importance = Bars(self.context, "Importance")
        self.history = Chart(self.context, "Best so far")
        self.history.set_clock("number")
        self.history.set_curves([Curve(BEST, "best", 0, smooth=False), Curve(TRIED, "each run", 7, smooth=False)])
        self.context.theme.changed.connect(self._restyle)
        self._restyle()
        inside = QWidget()
        column = QVBoxLayout(inside)
        column.setContentsMargins(SPACE_M, SPACE_M, SPACE_M, SPACE_M)
        column.setSpacing(SPACE_S)
        column.addWidget(label("BEST SO FAR", "section"))
        for widget in (self.measure, self.best_value, self.best_name, self.best_settings):
            column.addWidget(widget)
        for buttons in ((self.open_best,), (self.show_best, self.compare_all)):
            row = QHBoxLayout()
            for each in buttons:
                row.addWidget(each)
            row.addStretch()
            column.addLayout(row)
        self.verdict = label("", wrap=True, selectable=True)
        self.verdict.setAccessibleName("Verdict of the sweep")
        self.findings = label("", "small", wrap=True, selectable=True)
        inside_answer = QWidget()
        self.drawn = QVBoxLayout(inside_answer)
        self.drawn.setContentsMargins(SPACE_M, 0, SPACE_M, SPACE_S)
        self.drawn.setSpacing(SPACE_S)
        self.drawn.addWidget(self.verdict)
        self.drawn.addWidget(self.findings)
        self.figures = FigureCards(self.context, self.drawn, self.drawn.count())
        self.figures.opened.connect(self._open_point)
        self.answer = panel(label("Result", "section"), body=inside_answer)
        column.insertWidget(0, self.answer)
        self.matters = panel(label("Importance", "section"), body=self.importance)
        column.addWidget(self.matters)
        column.addWidget(self.history, 1)
        column.addStretch()
        self.history.setMinimumHeight(150)
        self.history.setMaximumHeight(320)
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(inside)
        area.setMinimumWidth(280)
        return area

    def _restyle(self) -> None:
        self.history.canvas.setBackground(self.context.theme.colour("surface"))

    def _restore(self) -> None:
        try:
            kept = json.loads(str(self.context.settings.value("sweep/state", "{}")))
        except ValueError:
            kept = {}
        self.measure.choose(str(kept.get("metric") or ""))
        self.scatter.across.choose(str(kept.get("across") or ""))
        key, descending = kept.get("sort") or ("begun", True)
        self.table.sort_by(str(key), bool(descending))

    # -- data --------------------------------------------------------------------------------------------------------

    def _show(self, answer: tuple[list[dict[str, Any]], str, Listing, list[Kept]]) -> None:
        sweeps, chosen, listing, figures = answer
        self.sweeps = {sweep["id"]: sweep for sweep in sweeps}
        self.which.offer((sweep["id"], _title(sweep)) for sweep in sweeps)
        self.which.setCurrentIndex(max(0, self.which.findData(chosen)))
        self.middle.setCurrentIndex(1 if sweeps else 0)
        self.insight.setVisible(bool(sweeps))
        self.listing = listing
        self.context.colours.assign(listing.runs)
        sweep = self.sweeps.get(chosen)
        goal = next((name.removeprefix("best ") for name in (sweep or {}).get("metrics") or {}), "")
        names = ranked(listing.metrics)
        self.measure.offer((name, name) for name in sorted(names, key=lambda name: name != goal))
        if not self.scatter.across.wanted and listing.paths:
            self.scatter.across.wanted = f"setting:{most_varied(listing)}"
        self.table.show_listing(listing)
        self._show_state(sweep, listing)
        self._show_findings(sweep, figures)
        self._draw_timer.start(0)

    def _show_state(self, sweep: Mapping[str, Any] | None, listing: Listing) -> None:
        ended = sum(run["state"] not in (*ACTIVE, "queued") for run in listing.runs.values())
        total = int((sweep or {}).get("steps") or 0)
        text = f"{state(str(sweep['state'])).word}, {ended} of {total or len(listing.runs)} runs ended" if sweep else ""
        if sweep and sweep.get("message") and sweep["state"] in ("failed", "stopped", "interrupted"):
            text += f". {sweep['message']}"
        self.state.setText(text)
        self.state.setToolTip(text)
        self.progress.setRange(0, max(1, total or len(listing.runs)))
        self.progress.setValue(ended)
        self.stop.setVisible(bool(sweep) and str((sweep or {}).get("state")) in (*ACTIVE, "queued"))
        self.resume.setVisible(bool(sweep) and str((sweep or {}).get("state")) in RESUMABLE)

    def _show_findings(self, sweep: Mapping[str, Any] | None, figures: Sequence[Kept]) -> None:
        """What the search or the study itself says at its end: a sentence, its numbers, its figures."""
        done = sweep is not None and sweep["state"] == "done"
        self.verdict.setText(str(sweep["message"]) if sweep is not None and done else "")
        numbers = ((sweep or {}).get("metrics") or {}).items() if done else ()
        self.findings.setText("\n".join(f"{name}: {words.number(value)}" for name, value in numbers))
        self.figures.show(figures, lambda _: "")
        for widget in (self.verdict, self.findings):
            widget.setVisible(bool(widget.text()))
        self.answer.setVisible(bool(self.verdict.text() or figures))

    def _draw(self) -> None:
        listing, metric = self.listing, self.measure.key
        if listing is None:
            return
        rows = list(self.table.runs.rows)
        self.scatter.show_rows(listing, rows, metric, self.table.selected())
        self._show_best_so_far(best_of(rows, metric), metric)
        self._show_importance(listing, rows, metric)
        ordered = sorted(rows, key=lambda row: listing.runs[row.runs[0]]["created"])
        self._show_history([cell_mean(row, metric) for row in ordered], metric)

    def _show_best_so_far(self, best: Row | None, metric: str) -> None:
        self.best = best
        self.best_value.setText(words.number(cell_mean(best, metric)) if best else "–")
        self.best_name.setText(best.name if best else "No run has ended yet.")
        self.best_settings.setText(settings_text(best.settings) if best else "")
        for widget in (self.open_best, self.show_best):
            widget.setEnabled(best is not None)
        self.compare_all.setEnabled(bool(self.listing and self.listing.runs))

    def _show_importance(self, listing: Listing, rows: Sequence[Row], metric: str) -> None:
        shares = importance(listing, rows, metric)
        bars = [
            Bar(path, title(path), share, n=len(rows), colour=0, text=words.percent(share))
            for path, share in shares.items()
        ]
        ended = sum(math.isfinite(cell_mean(row, metric)) for row in rows)
        note = f"share of the variance of {metric} that each setting explains by itself, over {ended} runs"
        if ended < LEAST_FOR_IMPORTANCE or not shares:
            bars, note = [], f"{LEAST_FOR_IMPORTANCE} ended runs or more tell what matters; there are {ended}."
        self.importance.show_bars(bars, note)
        self.matters.setFixedHeight(90 + min(8, len(bars)) * self.importance.canvas.HEIGHT)

    def _show_history(self, values: Sequence[float], metric: str) -> None:
        array = np.array(values, dtype=float)
        there = np.isfinite(array)
        at = np.flatnonzero(there) + 1.0
        array = array[there]
        lower = comparison.lower_is_better(metric)
        best = np.minimum.accumulate(array) if lower else np.maximum.accumulate(array)
        self.history.feed(TRIED, at, array)
        self.history.feed(BEST, at, best)

    # -- what a person does ------------------------------------------------------------------------------------------

    def _start(self, text: str) -> None:
        self.plan.start.setEnabled(False)

        def queued(run: str) -> None:
            self.plan.start.setEnabled(True)
            self.which.wanted = run
            self.context.message("The sweep is queued.", undo=partial(self._take_back, run))
            self.refresh()

        def failed(error: Exception | None) -> None:
            self.plan.start.setEnabled(True)
            if error is not None:
                self.context.message(str(error), level="error")

        def queue(allow: Sequence[Contact]) -> None:
            self.context.engine.ask(lambda engine: engine.queue(text, allow=allow), queued, failed=failed, owner=self)

        ask_first(self.context, self, text, None, queue, failed)

    def _take_back(self, run: str) -> None:
        self.context.engine.ask(lambda engine: engine.stop(run), lambda _: self.refresh(), owner=self)

    def _ask(self, verb: str) -> None:
        run = self.which.key
        verbs: dict[str, Callable[[Any], Any]] = {
            "stop": lambda engine: engine.stop(run),
            "resume": lambda engine: engine.resume(run),
        }
        if run:
            self.context.engine.ask(verbs[verb], lambda _: self.refresh(), owner=self)

    def _best_run(self) -> Mapping[str, Any] | None:
        if self.best is None or self.listing is None:
            return None
        return self.listing.runs.get(self.best.runs[0])

    def _open_best(self) -> None:
        if (run := self._best_run()) is not None:
            self.context.go("recipe", text=run["recipe"], name=run["name"])

    def _open_point(self, changes: dict[str, Any]) -> None:
        """A point of the sweep's own figures: its recipe with the point's changes."""
        if (sweep := self.sweeps.get(self.which.key)) is not None:
            open_changed(self.context, sweep, changes, self)

    def _show_best(self) -> None:
        if (run := self._best_run()) is not None:
            self.context.go("runs", run=run["id"])

    def _compare(self) -> None:
        chosen = self.table.selected() or [row.key for row in self.table.runs.rows]
        self.context.go("compare", runs=chosen)


def _title(sweep: Mapping[str, Any]) -> str:
    return f"{sweep['name'] or 'sweep'}, {words.moment(sweep['created'])}"


def most_varied(listing: Listing) -> str:
    """The setting that took the most values."""
    return max(listing.paths, key=lambda path: len({comparison.text(row.settings.get(path)) for row in listing.rows}))


def best_of(rows: Sequence[Row], metric: str) -> Row | None:
    """The finished run that is best in a metric."""
    known = [row for row in rows if row.state == "done" and math.isfinite(cell_mean(row, metric))]
    sign = 1.0 if comparison.lower_is_better(metric) else -1.0
    return min(known, key=lambda row: sign * cell_mean(row, metric), default=None)


def importance(listing: Listing, rows: Sequence[Row], metric: str) -> dict[str, float]:
    """The share of a metric's variance that each varied setting explains by itself, the largest first."""
    outcome = [cell_mean(row, metric) if row.state == "done" else math.nan for row in rows]
    shares = {}
    for path in listing.paths:
        values = [_plain(row.settings.get(path)) for row in rows]
        share = explained(values, outcome)
        if share is not None:
            shares[path] = share
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))


def _plain(value: Any) -> Any:
    """A value that can be sorted among others of its kind."""
    return value if value is None or isinstance(value, int | float | str) else comparison.text(value)
