"""The details of one run: its recipe against its parent's, metrics, figures, events, checkpoints and notes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import (
    QHeaderView,
    QPlainTextEdit,
    QTableWidget,
    QTableWidgetItem,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from app import words
from app.icons import icon
from app.places import Context, button, label
from app.places.figures import FiguresPage
from app.theme import SIZE_SMALL, SPACE_S

LEVELS = {"info": ("info", "muted"), "warning": ("warning", "warning"), "error": ("state-failed", "bad")}
EVENTS = 500


def read_details(log: Any, run: str) -> dict[str, Any]:
    """What the details show. Runs on the reader's thread."""
    row = log.run(run)
    if row is None:
        return {}
    found = {"run": row, "events": log.events(run, limit=EVENTS), "differences": [], "parent": None}
    if row["parent"] and (parent := log.run(row["parent"])):
        from engine.recipe import Recipe

        found["parent"] = parent["name"] or parent["id"]
        found["differences"] = [
            (item.path, item.theirs, item.mine)
            for item in Recipe.parse(row["recipe"]).difference(Recipe.parse(parent["recipe"]))
        ]
    return found


def table(name: str, headers: list[str]) -> QTableWidget:
    """A table that is read, row by row, with no grid."""
    widget = QTableWidget(0, len(headers))
    widget.setAccessibleName(name)
    widget.setHorizontalHeaderLabels(headers)
    widget.verticalHeader().setVisible(False)
    widget.verticalHeader().setDefaultSectionSize(26)
    widget.setShowGrid(False)
    widget.setEditTriggers(QTableWidget.EditTrigger.NoEditTriggers)
    widget.setSelectionBehavior(QTableWidget.SelectionBehavior.SelectRows)
    widget.setWordWrap(False)
    widget.setTabKeyNavigation(False)
    return widget


def fill(widget: QTableWidget, rows: list[list[Any]]) -> None:
    """Puts texts (or ready items) into a table."""
    widget.setRowCount(len(rows))
    for at, row in enumerate(rows):
        for column, value in enumerate(row):
            item = value if isinstance(value, QTableWidgetItem) else QTableWidgetItem(str(value))
            item.setToolTip(item.toolTip() or item.text())
            widget.setItem(at, column, item)


class Details(QWidget):
    """Six tabs about the run that is shown."""

    branched = Signal(str, object)  # run, step

    def __init__(self, context: Context):
        super().__init__()
        self.context = context
        self.run: str | None = None
        self._shown: dict[str, Any] = {}
        self._shown_stamps: dict[int, Any] = {}
        self._notes_of: tuple[str, str] = ("", "")
        self.tabs = QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.setAccessibleName("Details of the run")
        self.tabs.setUsesScrollButtons(True)
        self.tabs.tabBar().setProperty("role", "small")
        self._pages: tuple[tuple[str, Callable[[], QWidget], Callable[[dict[str, Any]], None]], ...] = (
            ("Recipe", self._recipe_page, self._show_recipe),
            ("Metrics", self._metrics_page, self._show_metrics),
            ("Figures", self._figures_page, self._show_figures),
            ("Events", self._events_page, self._show_events),
            ("Checkpoints", self._checkpoints_page, self._show_checkpoints),
            ("Notes", self._notes_page, self._show_notes),
        )
        self._built: set[int] = set()
        self._places: list[QVBoxLayout] = []
        for title, _, _ in self._pages:
            page = QWidget()
            inner = QVBoxLayout(page)
            inner.setContentsMargins(0, 0, 0, 0)
            self._places.append(inner)
            self.tabs.addTab(page, title)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.tabs)
        self.tabs.setCurrentIndex(int(str(context.settings.value("runs/details", 0))))
        self.tabs.currentChanged.connect(self._turn)

    def _turn(self, index: int) -> None:
        self.context.settings.setValue("runs/details", index)
        self._shown_stamps.clear()
        if self._shown:
            self._show(self._shown)

    # -- pages -------------------------------------------------------------------------------------------------------

    def _page(self, *widgets: QWidget) -> QWidget:
        page = QWidget()
        column = QVBoxLayout(page)
        column.setContentsMargins(SPACE_S, SPACE_S, SPACE_S, SPACE_S)
        column.setSpacing(SPACE_S)
        for widget in widgets:
            column.addWidget(widget)
        return page

    def _recipe_page(self) -> QWidget:
        self.parent_line = label("", "section", wrap=True)
        self.differences = table("Difference to the parent's recipe", ["field", "parent", "here"])
        self.differences.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.differences.setMaximumHeight(150)
        self.recipe = QPlainTextEdit()
        self.recipe.setReadOnly(True)
        self.recipe.setAccessibleName("The run's recipe as TOML")
        self.recipe.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.recipe.setFont(self.context.theme.font(SIZE_SMALL + 1, fixed=True))
        again = button("Open a copy in the builder", lambda: self.context.actions.start("run.duplicate"))
        return self._page(self.parent_line, self.differences, self.recipe, again)

    def _metrics_page(self) -> QWidget:
        self.metrics = table("Metrics of the run", ["metric", "last value"])
        self.metrics.horizontalHeader().setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.facts = label("", "small", wrap=True, selectable=True)
        copy = button("Copy as text", self._copy_metrics)
        return self._page(self.metrics, self.facts, copy)

    def _figures_page(self) -> QWidget:
        self.figures = FiguresPage(self.context)
        return self.figures

    def _events_page(self) -> QWidget:
        self.events = table("Events of the run", ["time", "what happened"])
        self.events.horizontalHeader().setSectionResizeMode(1, QHeaderView.ResizeMode.Stretch)
        self.events.horizontalHeader().setSectionResizeMode(0, QHeaderView.ResizeMode.ResizeToContents)
        self.events.verticalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.events.setWordWrap(True)
        self.no_events = label("Nothing out of the ordinary has happened in this run.", "muted", wrap=True)
        return self._page(self.no_events, self.events)

    def _checkpoints_page(self) -> QWidget:
        self.checkpoints = table("Checkpoints of the run", ["step", "kept at", "size"])
        self.checkpoints.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.Stretch)
        self.checkpoints.itemSelectionChanged.connect(self._enable_branch)
        self.no_checkpoints = label("Checkpoints are kept while the run trains.", "muted", wrap=True)
        self.branch = button("Branch from this checkpoint", self._branch, tip="A new run goes on from here")
        return self._page(self.no_checkpoints, self.checkpoints, self.branch)

    def _notes_page(self) -> QWidget:
        self.notes = QPlainTextEdit()
        self.notes.setAccessibleName("Notes on the run")
        self.notes.setPlaceholderText("What you want to remember of this run")
        return self._page(self.notes)

    # -- what is shown -----------------------------------------------------------------------------------------------

    def show_run(self, run: dict[str, Any] | None) -> None:
        """Reads the details when the run, or something about it, is another."""
        if run is None:
            self.setVisible(False)
            self.run = None
            return
        self.setVisible(True)
        if run["id"] != self.run:
            self.save_notes()
        self.run = run["id"]
        id = self.run
        self.context.reader.ask(lambda log: read_details(log, id), self._show, key="details", owner=self)

    def _show(self, found: dict[str, Any]) -> None:
        """Fills the tab that is open; a tab's page is made when it is first opened."""
        if not found or found["run"]["id"] != self.run:
            return
        self._shown = found
        index = self.tabs.currentIndex()
        _, make, show = self._pages[index]
        if index not in self._built:
            self._built.add(index)
            self._places[index].addWidget(make())
        run = found["run"]
        stamps: list[Any] = [
            (run["recipe"], run["parent"]),
            (run["metrics"], run["state"], run["started"], run["weights"]),
            (run["metrics"], run["state"], run["checkpoints"]),
            found["events"],
            run["checkpoints"],
            (),
        ]
        stamp = (run["id"], stamps[index])
        if self._shown_stamps.get(index) != stamp:
            self._shown_stamps[index] = stamp
            show(found)

    def _show_notes(self, found: dict[str, Any]) -> None:
        run = found["run"]
        if self._notes_of[0] != run["id"]:
            self._notes_of = (run["id"], run["notes"] or "")
            self.notes.setPlainText(run["notes"] or "")

    def _show_recipe(self, found: dict[str, Any]) -> None:
        run = found["run"]
        self.recipe.setPlainText(run["recipe"])
        parent = found["parent"]
        step = f" at step {run['parent_step']:,}" if run["parent_step"] is not None else ""
        self.parent_line.setText(f"Branched from {parent}{step}" if parent else "")
        self.parent_line.setVisible(parent is not None)
        self.differences.setVisible(bool(found["differences"]))
        fill(self.differences, [[path, _shown(theirs), _shown(mine)] for path, theirs, mine in found["differences"]])

    def _show_metrics(self, found: dict[str, Any]) -> None:
        run = found["run"]
        right = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        rows: list[list[Any]] = []
        for name, value in run["metrics"].items():
            item = QTableWidgetItem(words.number(value))
            item.setTextAlignment(right)
            item.setToolTip(repr(value))
            rows.append([name, item])
        fill(self.metrics, rows)
        facts = [
            f"id {run['id']}",
            f"seed {run['seed']}",
            f"started {words.moment(run['started'])}" if run["started"] else "",
            f"ended {words.moment(run['ended'])}" if run["ended"] else "",
            f"trained for {words.duration(run['seconds'])}" if run["seconds"] else "",
            f"device {run['device']}",
            f"weights {run['weights'][:12]}…" if run["weights"] else "",
        ]
        self.facts.setText("\n".join(fact for fact in facts if fact))

    def _show_figures(self, found: dict[str, Any]) -> None:
        self.figures.show_run(found["run"])

    def _show_events(self, found: dict[str, Any]) -> None:
        events = found["events"]
        self.no_events.setVisible(not events)
        self.events.setVisible(bool(events))
        rows: list[list[Any]] = []
        for event in reversed(events):
            name, token = LEVELS.get(event["level"], LEVELS["info"])
            text = QTableWidgetItem(icon(self.context.theme, name, token, token, 14), event["text"])
            text.setData(Qt.ItemDataRole.AccessibleTextRole, f"{event['level']}: {event['text']}")
            rows.append([words.moment(event["time"]), text])
        fill(self.events, rows)

    def _show_checkpoints(self, found: dict[str, Any]) -> None:
        checkpoints = found["run"]["checkpoints"]
        self.no_checkpoints.setVisible(not checkpoints)
        self.checkpoints.setVisible(bool(checkpoints))
        rows: list[list[Any]] = []
        for entry in sorted(checkpoints, key=lambda entry: -(entry["step"] or 0)):
            name, at = entry["name"], entry["step"]
            numbered = at is not None and not name.startswith("best")
            step = QTableWidgetItem(f"{at:,}" if numbered else "best" if at is None else f"{at:,} best")
            step.setData(Qt.ItemDataRole.UserRole, at if numbered else name)
            rows.append([step, words.moment(entry.get("time")), words.size(entry.get("bytes"))])
        fill(self.checkpoints, rows)
        self._enable_branch()

    # -- what a person does ------------------------------------------------------------------------------------------

    def save_notes(self) -> None:
        """Keeps what was written about the run that was shown."""
        run, before = self._notes_of
        if not run:
            return
        text = self.notes.toPlainText()
        if text != before:
            self._notes_of = (run, text)
            self.context.engine.ask(lambda engine: engine.log.update_run(run, notes=text))

    def _enable_branch(self) -> None:
        self.branch.setEnabled(bool(self.checkpoints.selectedItems()))

    def _branch(self) -> None:
        row = self.checkpoints.currentRow()
        item = self.checkpoints.item(row, 0)
        if item is not None and self.run is not None:
            self.branched.emit(self.run, item.data(Qt.ItemDataRole.UserRole))

    def _copy_metrics(self) -> None:
        run = self._shown.get("run") or {"metrics": {}}
        text = "\n".join(f"{name}\t{value!r}" for name, value in run["metrics"].items())
        QGuiApplication.clipboard().setText(text)
        self.context.message("The metrics are on the clipboard.")


def _shown(value: Any) -> str:
    return "–" if value is None else str(value)
