"""Compare: the saved runs as a table of what differs, and charts and a verdict of those that are selected."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from PySide6.QtCore import QPoint, Qt, QTimer
from PySide6.QtGui import QGuiApplication, QKeySequence, QShortcut, QUndoCommand, QUndoStack
from PySide6.QtWidgets import (
    QHBoxLayout,
    QLineEdit,
    QMenu,
    QMessageBox,
    QSizePolicy,
    QStackedWidget,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from app import words
from app.actions import Action
from app.choice import Choice
from app.comparing.bar import GroupBar
from app.comparing.listing import ALL_BUT_SEED, SHOWN_METRICS, Listing, Row, View, as_csv, as_text, build
from app.comparing.panels import MOST_CURVES, MetricBars, Overlay, TradeOff
from app.comparing.table import RunTable
from app.exports import save_text
from app.icons import icon
from app.places import Context, Empty, Place, label
from app.theme import SPACE_M, SPACE_S
from engine import axes, comparison

SHELVES = (("0", "Saved runs"), ("1", "Archived"), ("2", "Bin"))
ACTIVE, ARCHIVED, BINNED = 0, 1, 2
SLOWEST = 1.0  # seconds between two readings of a long list, while runs are training
MOST_JUDGED = 600
END = "end"  # compared as they ended, whatever that cost
ACTIONS = (
    Action("compare.copy", "Copy the selected rows", "compare", "Ctrl+C", "copy", "clipboard table", keyed=False),
    Action("compare.export", "Save the table as CSV", "compare", "Ctrl+S", "download", "export file"),
    Action("compare.group", "Seeds together", "compare", "Ctrl+G", "compare", "group mean band"),
    Action("compare.show", "Show the run", "compare", "Ctrl+Shift+R", "runs", "dashboard open"),
    Action("compare.recipe", "Open the run's recipe", "compare", "Ctrl+D", "recipe", "copy duplicate"),
    Action("compare.archive", "Archive or bring back the selected runs", "compare", "Del", "archive", keyed=False),
    Action("compare.bin", "Put the selected runs into the bin", "compare", "Shift+Del", "trash", "delete", keyed=False),
    Action("compare.empty", "Delete what is in the bin", "compare", icon="trash", words="clean remove checkpoints"),
    Action("compare.undo", "Undo", "compare", "Ctrl+Z", "undo"),
    Action("compare.redo", "Redo", "compare", "Ctrl+Shift+Z", "redo"),
)


class ComparePlace(Place):
    """The table above; what the selected rows say, below."""

    id = "compare"
    title = "Compare"
    icon = "compare"

    def __init__(self, context: Context, parent: QWidget | None = None):
        super().__init__(context, parent)
        self.runs: list[dict[str, Any]] = []
        self.listing: Listing | None = None
        self.view = self._stored_view()
        self.undo = QUndoStack(self)
        self._verdicts: list[dict[str, Any]] = []
        self._read_at, self._read_took = 0.0, 0.0
        self._later = self._timer(self.refresh)
        self._chart_timer = self._timer(self._draw)
        self._scatter_timer = self._timer(self._draw_scatter)
        self._typing = self._timer(lambda: self._look(text=self.search.text().strip()))
        self._build()
        self._bind()
        context.catalog_ready.connect(lambda _catalog: self._rebuild())
        context.theme.changed.connect(self._restyle)

    # -- what the window calls ---------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Reads the runs again; a long list at most once a second."""
        since = time.monotonic() - self._read_at
        if self._read_took > 0.05 and since < SLOWEST:
            self._later.start(round((SLOWEST - since) * 1000) + 1)
            return
        self._read_at = time.monotonic()
        shelf, view, catalog = int(self.shelf.key or 0), self.view, self.context.catalog

        def read(log: Any) -> tuple[list[dict[str, Any]], Listing, float]:
            begin = time.perf_counter()
            runs = [run for run in log.runs(kind="run", archived=None) if int(run["archived"] or 0) == shelf]
            return runs, build(runs, view, catalog), time.perf_counter() - begin

        self.context.reader.ask(read, self._show, key="compare", owner=self)

    def opened(self, runs: Iterable[str] = (), run: str = "", **_: Any) -> None:
        """Selects the runs that somebody wants compared."""
        wanted = [*runs, *([run] if run else [])]
        if wanted:
            self.search.clear()
            self.shelf.choose(str(ACTIVE))
            self._take(replace(self.view, text="", grouping=()))
            self.table.select(wanted)

    def focus_search(self) -> None:
        self.search.setFocus()
        self.search.selectAll()

    def save(self) -> None:
        kept = {
            "grouping": list(self.view.grouping),
            "metrics": None if self.view.metrics is None else list(self.view.metrics),
            "hidden": sorted(self.view.hidden),
            "text": self.view.text,
            "sort": [self.table.runs.sorted_by, self.table.runs.descending],
            "widths": self.table.widths,
            "selected": self.table.selected()[:200],
            "metric": self.metric_box.wanted,
            "series": self.overlay.series.wanted,
            "clock": self.overlay.clock.wanted,
            "equal": self.equal.wanted,
            "across": self.trade_off.across.wanted,
        }
        self.context.settings.setValue("compare/state", json.dumps(kept))

    # -- building ----------------------------------------------------------------------------------------------------

    def _timer(self, run: Callable[[], None]) -> QTimer:
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.timeout.connect(run)
        return timer

    def _build(self) -> None:
        self.table = RunTable(self.context, "Runs to compare")
        self.metric_box = Choice(
            "Metric of the verdict and the charts", "Which metric the verdict and the charts are about."
        )
        self.equal = Choice("At equal cost", "Compare the runs at their ends, or when each had used up equally much.")
        self.equal.offer(((END, "at the end"),))
        self.verdict = label("", wrap=True, selectable=True)
        self.verdict.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Preferred)
        self.verdict.setAccessibleName("Verdict")
        self.about = label("", "small")
        self.overlay, self.trade_off, self.bars = (
            Overlay(self.context), TradeOff(self.context), MetricBars(self.context)
        )  # fmt: skip
        charts = self.splitter("charts", self.overlay, self.trade_off, self.bars, sizes=[420, 360, 360])
        for i in range(3):
            charts.setStretchFactor(i, 1)
        self.everything = self.splitter("all", self._above(), self._below(charts), vertical=True, sizes=[380, 340])
        self.everything.setStretchFactor(0, 3)
        self.everything.setStretchFactor(1, 2)
        self.empty = Empty("Saved runs stand here side by side. Train a recipe to have the first one.", "Open recipe",
                           lambda: self.context.go("recipe"))  # fmt: skip
        self.setFocusProxy(self.table)
        self.stack = QStackedWidget()
        self.stack.addWidget(self.everything)
        self.stack.addWidget(self.empty)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.stack)
        self._restore()

    def _above(self) -> QWidget:
        """The tools and the table."""
        self.search = QLineEdit()
        self.search.setPlaceholderText("Filter: words, lr<0.01, state=done")
        self.search.setAccessibleName("Filter the runs")
        self.search.setToolTip(
            "Words that a run's name, state, parts, tags or notes have, and conditions on its numbers."
        )
        self.search.setClearButtonEnabled(True)
        self.search.setMinimumWidth(180)
        self.search.setMaximumWidth(300)
        self.search.textChanged.connect(lambda: self._typing.start(120))
        self.groups = GroupBar(self.context)
        self.groups.changed.connect(lambda grouping: self._look("Group the rows", grouping=grouping))
        self.shelf = Choice("Which runs", "Saved, archived, or in the bin.")
        self.shelf.offer(SHELVES)
        self.shelf.chosen.connect(lambda _: self.refresh_now())
        self.tools = {
            "columns": self._tool("settings", "Columns and metrics", self._column_menu),
            "compare.copy": self._tool("copy", "Copy the rows", lambda: self._start("compare.copy")),
            "compare.export": self._tool("download", "Save the table as CSV", lambda: self._start("compare.export")),
            "compare.archive": self._tool("archive", "Archive (Del)", lambda: self._start("compare.archive")),
            "compare.bin": self._tool("trash", "Into the bin (Shift+Del)", lambda: self._start("compare.bin")),
        }
        row = QHBoxLayout()
        row.setContentsMargins(SPACE_M, SPACE_S, SPACE_M, SPACE_S)
        row.setSpacing(SPACE_S)
        row.addWidget(self.search, 1)
        row.addWidget(self.groups, 1)
        row.addWidget(self.about)
        row.addWidget(self.shelf)
        for tool in self.tools.values():
            row.addWidget(tool)
        self._restyle()
        widget = QWidget()
        column = QVBoxLayout(widget)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addLayout(row)
        column.addWidget(self.table, 1)
        self.table.picked.connect(lambda: self._chart_timer.start(30))
        self.table.opened.connect(self._open_row)
        self.table.sorted_anew.connect(lambda: self._chart_timer.start(30))
        self.table.runs.renamed.connect(self._rename)
        self.table.customContextMenuRequested.connect(self._row_menu)
        self.table.horizontalHeader().customContextMenuRequested.connect(self._head_menu)
        return widget

    def _below(self, charts: QWidget) -> QWidget:
        """The verdict and the charts."""
        line = QHBoxLayout()
        line.setContentsMargins(SPACE_M, SPACE_S, SPACE_M, SPACE_S)
        line.setSpacing(SPACE_M)
        line.addWidget(self.metric_box)
        line.addWidget(self.equal)
        line.addWidget(self.verdict, 1)
        self.metric_box.chosen.connect(lambda _: self._draw())
        self.equal.chosen.connect(lambda _: self._draw())
        widget = QWidget()
        column = QVBoxLayout(widget)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addLayout(line)
        column.addWidget(charts, 1)
        self.trade_off.clicked.connect(self._pick)
        self.trade_off.changed.connect(self._draw)
        self.bars.clicked.connect(self._pick)
        return widget

    def _tool(self, name: str, tip: str, run: Callable[[], Any]) -> QToolButton:
        button = QToolButton()
        button.setProperty("icon", name)
        button.setToolTip(tip)
        button.setAccessibleName(tip)
        button.clicked.connect(lambda _checked=False: run())
        return button

    def _restyle(self) -> None:
        for name, tool in self.tools.items():
            tool.setIcon(icon(self.context.theme, {"columns": "settings", **ICONS}[name], "muted"))

    def _start(self, action: str) -> None:
        self.context.actions.carry_out(action)

    def _bind(self) -> None:
        does: dict[str, tuple[Callable[[], Any], Callable[[], bool] | None]] = {
            "compare.copy": (self.copy, None),
            "compare.export": (self.export, None),
            "compare.group": (self._toggle_seeds, None),
            "compare.show": (lambda: self._open_row(self.table.selected()[0]), self._any),
            "compare.recipe": (self._open_recipe, self._any),
            "compare.archive": (self._archive, self._any),
            "compare.bin": (lambda: self._put(BINNED), self._any),
            "compare.empty": (self._empty_bin, None),
            "compare.undo": (self.undo.undo, self.undo.canUndo),
            "compare.redo": (self.undo.redo, self.undo.canRedo),
        }
        for action in ACTIONS:
            if action.id not in self.context.actions.known:
                self.context.actions.add(action)
            self.bind(action.id, *does[action.id])
            if not action.keyed:
                key = QShortcut(QKeySequence(action.key), self.table)
                key.setContext(Qt.ShortcutContext.WidgetShortcut)
                key.activated.connect(partial(self._start, action.id))

    def _any(self) -> bool:
        return bool(self.table.selected())

    def _stored(self) -> dict[str, Any]:
        try:
            kept = json.loads(str(self.context.settings.value("compare/state", "{}")))
        except ValueError:
            return {}
        return kept if isinstance(kept, dict) else {}

    def _stored_view(self) -> View:
        kept = self._stored()
        metrics = kept.get("metrics")
        return View(
            text=str(kept.get("text") or ""),
            grouping=tuple(kept.get("grouping") or ()),
            metrics=None if metrics is None else tuple(metrics),
            hidden=frozenset(kept.get("hidden") or ()),
        )

    def _restore(self) -> None:
        kept = self._stored()
        key, descending = kept.get("sort") or ("begun", True)
        self.table.sort_by(str(key), bool(descending))
        self.table.set_widths({str(name): int(width) for name, width in (kept.get("widths") or {}).items()})
        self.table.select(kept.get("selected") or ())
        self.search.setText(self.view.text)
        self._typing.stop()
        self.groups.show_grouping(self.view.grouping)
        boxes: dict[str, Choice] = {
            "metric": self.metric_box, "series": self.overlay.series, "clock": self.overlay.clock,
            "across": self.trade_off.across, "equal": self.equal,
        }  # fmt: skip
        for name, box in boxes.items():
            box.choose(str(kept.get(name) or ""))

    # -- data --------------------------------------------------------------------------------------------------------

    def refresh_now(self) -> None:
        """Reads without waiting: a person has asked."""
        self._read_took = 0.0
        self.refresh()

    def _rebuild(self) -> None:
        """The same runs seen another way."""
        if self.listing is None:
            return
        runs, view, catalog = self.runs, self.view, self.context.catalog
        self.context.worker.ask(
            lambda _: (runs, build(runs, view, catalog), 0.0), self._show, key="compare-view", owner=self
        )

    def _show(self, answer: tuple[list[dict[str, Any]], Listing, float]) -> None:
        runs, listing, took = answer
        if listing.view != self.view:  # asked before the person changed the view
            self.runs = runs
            self._rebuild()
            return
        self.runs, self.listing = runs, listing
        self._read_took = max(took, self._read_took * 0.5)
        self.context.colours.assign(listing.runs)
        self.metric_box.offer((name, name) for name in listing.metrics)
        self.table.show_listing(listing)
        bare = not runs and self.shelf.key == str(ACTIVE) and not self.view.text
        self.stack.setCurrentWidget(self.empty if bare else self.everything)
        self._say_what_is_shown(listing)
        self._chart_timer.start(0)

    def _say_what_is_shown(self, listing: Listing) -> None:
        shown, total = len(listing.runs), listing.total
        text = f"{shown} of {total} runs" if shown != total else f"{total} run{'' if total == 1 else 's'}"
        if self.view.grouping:
            text = f"{len(listing.rows)} group{'' if len(listing.rows) == 1 else 's'}, {text}"
        self.about.setText(text)

    def _look(self, text_: str = "", **changes: Any) -> None:
        """Changes the view; what is not typed can be undone."""
        view = replace(self.view, **changes)
        if view == self.view:
            return
        if text_:
            before = self.view
            self.undo.push(Step(text_, lambda: self._take(view), lambda: self._take(before)))
        else:
            self._take(view)

    def _take(self, view: View) -> None:
        self.view = view
        self.groups.show_grouping(view.grouping)
        self._rebuild()

    # -- charts and verdict ------------------------------------------------------------------------------------------

    def shown_rows(self) -> list[Row]:
        """What the charts show: the selected rows, or all where none is selected."""
        return self.table.selected_rows() or list(self.table.runs.rows)

    def _draw(self) -> None:
        listing = self.listing
        if listing is None or not self.on_screen:
            return
        rows, metric = self.shown_rows(), self.metric_box.key
        self.overlay.show_rows(rows, bool(self.view.grouping), metric)
        if self.equal.wanted in ("", END):
            self.bars.show_rows(listing, rows, metric)
            self._judge(listing, rows, metric)
        self._weigh(listing, rows, metric)
        self._scatter_timer.start(0)  # in an event of its own, so that neither takes long

    def _weigh(self, listing: Listing, rows: Sequence[Row], metric: str) -> None:
        """Reads by what the runs can be compared at equal cost, and, where that is wanted, how they stood there."""
        wanted = self.equal.wanted
        most = MOST_JUDGED if wanted not in ("", END) else MOST_CURVES  # a few tell what there is
        ids = [run for row in rows for run in row.runs][:most]
        runs, cache = [listing.runs[run] for run in ids if run in listing.runs], self.context.reader.cache

        def read(log: Any) -> tuple[list[str], comparison.AtCost | None]:
            series = {run["id"]: [info.name for info in log.series(run["id"])] for run in runs}
            known = axes.axes_of(name for names in series.values() for name in names)
            if wanted not in known:
                return known, None
            points = partial(cache.points, log)
            return known, comparison.at_equal(wanted, runs, lambda run: series[run], points)

        def show(answer: tuple[list[str], comparison.AtCost | None]) -> None:
            known, equal = answer
            self.equal.offer([(END, "at the end"), *((axis, f"at equal {axes.words(axis)}") for axis in known)])
            if equal is not None:
                self._show_equal(listing, rows, metric, equal)
            elif wanted not in ("", END):
                self.bars.show_rows(listing, rows, metric)
                self._judge(listing, rows, metric)

        self.context.reader.ask(read, show, key="compare-cost", owner=self)

    def _show_equal(self, listing: Listing, rows: Sequence[Row], metric: str, equal: comparison.AtCost) -> None:
        """Bars and verdict of the runs as they stood when each had used up equally much."""
        found = {run["id"]: run for run in equal.runs}
        there = replace(listing, runs={**listing.runs, **found})
        weighed = [
            replace(row, metrics=comparison.summary([found[run]["metrics"] for run in row.runs if run in found]))
            for row in rows
        ]
        self.bars.show_rows(there, weighed, metric)
        left = [replace(row, runs=tuple(run for run in row.runs if run in found)) for row in weighed]
        self._judge(there, [row for row in left if row.runs], metric, equal.sentence)

    def _draw_scatter(self) -> None:
        if self.listing is not None:
            rows, picked = list(self.table.runs.rows), self.table.selected()
            self.trade_off.show_rows(self.listing, rows, self.metric_box.key, picked)

    def shown(self) -> None:
        self._chart_timer.start(0)

    def _judge(self, listing: Listing, rows: Sequence[Row], metric: str, before: str = "") -> None:
        """Works the verdict out, off the GUI thread; `before` says on what terms."""
        ids = [run for row in rows for run in row.runs]
        if len(ids) > MOST_JUDGED:
            self._say([], f"Select up to {MOST_JUDGED} runs for a verdict.")
            return
        runs = [listing.runs[run] for run in ids if run in listing.runs]
        by = None if not self.view.grouping or ALL_BUT_SEED in self.view.grouping else self.view.grouping
        catalog = self.context.catalog

        def work(_: Any) -> tuple[list[dict[str, Any]], str]:
            groups = comparison.group(runs, comparison.differences(runs, catalog), by)
            told = [each for each in comparison.verdicts(groups) if each["metric"] == metric]
            return told, _why_none(groups, metric)

        self.context.worker.ask(
            work, lambda found: self._say(found[0], found[1], before), key="compare-verdict", owner=self
        )

    def _say(self, verdicts: list[dict[str, Any]], otherwise: str, before: str = "") -> None:
        self._verdicts = verdicts
        told = next((each for each in verdicts if each["p"] is not None), verdicts[0] if verdicts else None)
        sentence = (told["sentence"] if told else otherwise).removeprefix(f"{self.metric_box.key}: ")
        if told and told is not verdicts[0]:
            few = [name for name, n in zip(verdicts[0]["names"], verdicts[0]["n"], strict=True) if n < 2]
            sentence += f" Not enough runs of {' and '.join(few)} to tell." if few else ""
        sentence = sentence[:1].upper() + sentence[1:] if sentence.startswith(("no ", "not ")) else sentence
        self.verdict.setText(f"{before} {sentence}".strip())
        clear = told is not None and told["clear"]
        weight = self.context.theme.font(bold=clear)
        self.verdict.setFont(weight)
        explained = "Welch's test; ± is the standard error of the difference; p is corrected for all pairs of groups."
        self.verdict.setToolTip("\n".join([*(each["sentence"] for each in verdicts), explained] if verdicts else []))

    def _pick(self, key: str) -> None:
        """A point or bar was clicked: its row is selected, or with Ctrl added."""
        adds = QGuiApplication.keyboardModifiers() & Qt.KeyboardModifier.ControlModifier
        self.table.select([*self.table.selected(), key] if adds else [key], key)
        place = self.table.runs.places.get(key)
        if place is not None:
            self.table.scrollTo(self.table.runs.index(place, 0))

    # -- what a person does ------------------------------------------------------------------------------------------

    def copy(self) -> None:
        """The selected rows (or all) as text with tabs, for a spreadsheet or a message."""
        rows = self.shown_rows()
        QGuiApplication.clipboard().setText(as_text(self.table.runs.columns, rows))
        self.context.message(f"Copied {len(rows)} row{'' if len(rows) == 1 else 's'}.")

    def export(self) -> None:
        text = as_csv(self.table.runs.columns, self.shown_rows())
        save_text(self, self.context, "Save the table", "runs.csv", text)

    def _toggle_seeds(self) -> None:
        on = ALL_BUT_SEED in self.view.grouping
        self._look("Group the rows", grouping=() if on else (ALL_BUT_SEED,))

    def _open_row(self, key: str) -> None:
        place = self.table.runs.places.get(key)
        if place is not None:
            self.context.go("runs", run=self.table.runs.rows[place].runs[0])

    def _open_recipe(self) -> None:
        run = self._selected_runs()[0]
        self.context.go("recipe", text=run["recipe"], name=run["name"])

    def _selected_runs(self) -> list[Mapping[str, Any]]:
        runs = self.listing.runs if self.listing is not None else {}
        return [runs[run] for row in self.table.selected_rows() for run in row.runs if run in runs]

    def _archive(self) -> None:
        self._put(ARCHIVED if self.shelf.key == str(ACTIVE) else ACTIVE)

    def _put(self, shelf: int) -> None:
        """Moves the selected runs to a shelf; undo brings them back."""
        runs = self._selected_runs()
        busy = [run for run in runs if run["state"] not in KEPT_STATES]
        if busy and shelf != ACTIVE:
            self.context.message(f"{_count(busy)} not finished. Stop first, then put away.", level="warning")
            runs = [run for run in runs if run not in busy]
        before = {run["id"]: int(run["archived"] or 0) for run in runs if int(run["archived"] or 0) != shelf}
        if not before:
            return
        verb = {ACTIVE: "Brought back", ARCHIVED: "Archived", BINNED: "Put into the bin"}[shelf]
        step = Step(verb, lambda: self._set_shelf(dict.fromkeys(before, shelf)), lambda: self._set_shelf(before))
        self.undo.push(step)
        plural = "" if len(before) == 1 else "s"
        self.context.message(f"{verb}: {len(before)} run{plural}.", undo=self.undo.undo)

    def _set_shelf(self, shelves: Mapping[str, int]) -> None:
        def write(engine: Any) -> None:
            with engine.log.transaction():
                for run, shelf in shelves.items():
                    engine.log.update_run(run, archived=shelf)

        self.context.engine.ask(write, lambda _: self.refresh_now(), owner=self)

    def _rename(self, run: str, name: str) -> None:
        before = next((each["name"] for each in self.runs if each["id"] == run), "")

        def write(text: str) -> None:
            self.context.engine.ask(
                lambda engine: engine.log.update_run(run, name=text), lambda _: self.refresh_now(), owner=self
            )

        self.undo.push(Step("Rename", lambda: write(name), lambda: write(before)))

    def _empty_bin(self) -> None:
        """Deletes for good what lies in the bin, after saying what is lost."""

        def ask_person(runs: list[dict[str, Any]]) -> None:
            if not runs:
                self.context.message("The bin is empty.")
                return
            size = words.size(sum(comparison.size(run) for run in runs))
            box = QMessageBox(self)
            box.setIcon(QMessageBox.Icon.Warning)
            box.setText(f"Delete {_count(runs)} for good?")
            box.setInformativeText(f"Their curves, figures and {size} of checkpoints are lost. This cannot be undone.")
            delete = box.addButton("Delete for good", QMessageBox.ButtonRole.DestructiveRole)
            box.addButton("Keep them", QMessageBox.ButtonRole.RejectRole)
            box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
            box.buttonClicked.connect(lambda clicked: self._delete(runs) if clicked is delete else None)
            box.open()

        def binned(log: Any) -> list[dict[str, Any]]:
            return [run for run in log.runs(kind="run", archived=True) if int(run["archived"] or 0) == BINNED]

        self.context.reader.ask(binned, ask_person, owner=self)

    def _delete(self, runs: Sequence[Mapping[str, Any]]) -> None:
        ids = [run["id"] for run in runs]
        self.context.engine.ask(
            lambda engine: [engine.delete(run) for run in ids],
            lambda _: self.context.message(f"Deleting {_count(runs)}."),
            owner=self,
        )

    # -- menus -------------------------------------------------------------------------------------------------------

    def _menu(self) -> QMenu:
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        return menu

    def _row_menu(self, at: QPoint) -> None:
        if not self._any():
            return
        menu = self._menu()
        for id in ("compare.show", "compare.recipe", "", "compare.copy", "compare.export", "", "compare.archive",
                   "compare.bin"):  # fmt: skip
            if not id:
                menu.addSeparator()
                continue
            menu.addAction(self.context.actions.known[id].text, partial(self._start, id))
        menu.popup(self.table.viewport().mapToGlobal(at))

    def _head_menu(self, at: QPoint) -> None:
        section = self.table.horizontalHeader().logicalIndexAt(at)
        if not 0 <= section < len(self.table.runs.columns):
            return
        column = self.table.runs.columns[section]
        menu = self._menu()
        if column.kind == "setting":
            menu.addAction(f"Group by {column.title}", lambda: self.groups.add(column.path))
        if column.kind != "name":
            menu.addAction(f"Hide {column.title}", lambda: self._hide(column.key, True))
        menu.popup(self.table.horizontalHeader().mapToGlobal(at))

    def _hide(self, key: str, hide: bool) -> None:
        hidden = self.view.hidden | {key} if hide else self.view.hidden - {key}
        self._look("Hide or show a column", hidden=frozenset(hidden))

    def _reveal(self, key: str, show: bool) -> None:
        self._hide(key, not show)

    def _column_menu(self) -> None:
        """Which metrics and which settings are columns, and by what to group."""
        menu, listing = self._menu(), self.listing
        if listing is None:
            return
        chosen = self.view.metrics if self.view.metrics is not None else listing.metrics[:SHOWN_METRICS]
        metrics = menu.addMenu("Metrics")
        for name in listing.metrics:
            self._check(metrics, name, name in chosen, partial(self._choose_metric, name))
        settings, grouping = menu.addMenu("Settings that differ"), menu.addMenu("Group by")
        for path in listing.paths:
            key = f"setting:{path}"
            self._check(settings, path, key not in self.view.hidden, partial(self._reveal, key))
            grouping.addAction(path, partial(self.groups.add, path))
        menu.addSeparator()
        for key, text in (("state", "State"), ("time", "Time"), ("size", "Size"), ("begun", "Begun")):
            self._check(menu, text, key not in self.view.hidden, partial(self._reveal, key))
        menu.addSeparator()
        menu.addAction(self.context.actions.known["compare.empty"].text + "…", lambda: self._start("compare.empty"))
        button = self.tools["columns"]
        menu.popup(button.mapToGlobal(QPoint(0, button.height())))

    def _check(self, menu: QMenu, text: str, on: bool, change: Callable[[bool], None]) -> None:
        entry = menu.addAction(text)
        entry.setCheckable(True)
        entry.setChecked(on)
        entry.toggled.connect(change)

    def _choose_metric(self, name: str, on: bool) -> None:
        assert self.listing is not None
        chosen = self.view.metrics if self.view.metrics is not None else self.listing.metrics[:SHOWN_METRICS]
        kept = [each for each in self.listing.metrics if (each in chosen and each != name) or (each == name and on)]
        self._look("Choose metrics", metrics=tuple(kept))


ICONS = {action.id: action.icon for action in ACTIONS}
KEPT_STATES = ("done", "stopped", "diverged", "failed", "interrupted")


class Step(QUndoCommand):
    """A step of undo made of two functions."""

    def __init__(self, text: str, redo: Callable[[], None], undo: Callable[[], None]):
        super().__init__(text)
        self._redo, self._undo = redo, undo

    def redo(self) -> None:
        self._redo()

    def undo(self) -> None:
        self._undo()


def _count(runs: Sequence[Any]) -> str:
    return "1 run" if len(runs) == 1 else f"{len(runs)} runs"


def _why_none(groups: Sequence[Mapping[str, Any]], metric: str) -> str:
    """What to do where there is nothing to compare."""
    if not groups:
        return "Nothing to compare yet."
    if not metric or not any(each["metrics"] for each in groups):
        return "No finished run to compare yet: a verdict needs runs that are done."
    if len(groups) == 1:
        cell = groups[0]["metrics"].get(metric)
        told = (
            f" {groups[0]['name']} has {comparison.plus_minus(cell['mean'], cell['std'])} (n = {cell['n']})."
            if cell
            else ""
        )
        return f"All of these runs share every setting but the seed.{told} Select runs that differ to compare them."
    return f"Fewer than two of the groups have {metric}."
