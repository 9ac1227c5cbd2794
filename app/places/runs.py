"""Runs: the queue and every run on the left, the live dashboard in the middle, details on the right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QAction, QKeySequence
from PySide6.QtWidgets import (
    QAbstractItemView,
    QButtonGroup,
    QHBoxLayout,
    QInputDialog,
    QLineEdit,
    QListView,
    QMenu,
    QMessageBox,
    QProgressBar,
    QStackedWidget,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from app import words
from app.icons import icon
from app.places import Context, Empty, Place, button, label
from app.places.dashboard import Dashboard
from app.places.details import Details
from app.places.runlist import RunDelegate, RunList, progress, read_runs, time_left
from app.states import ACTIVE, RESUMABLE, TERMINAL, state
from app.theme import SPACE_M, SPACE_S

LIMIT = 2000


class Header(QWidget):
    """The run that is shown: name, state, progress with time left, and what can be done with it."""

    def __init__(self, place: RunsPlace):
        super().__init__()
        self.context = place.context
        self.run: dict[str, Any] | None = None
        self.name = label("", "head")
        self.state = label("", "muted")
        self.line = label("", "small", wrap=True)
        self.bar = QProgressBar()
        self.bar.setRange(0, 1000)
        self.bar.setTextVisible(False)
        self.bar.setAccessibleName("Progress of the run")
        self.pause = button("Pause", lambda: place.context.actions.start("run.pause"), tip="Pause or resume (Space)")
        self.stop = button(
            "Stop", lambda: place.context.actions.start("run.stop"), tip="Stop with a checkpoint (Ctrl+.)"
        )
        self.branch = button(
            "Branch", lambda: place.context.actions.start("run.branch"), tip="A new run from the last checkpoint"
        )
        self.more = QToolButton()
        self.more.setText("More")
        self.more.setAccessibleName("More to do with this run")
        self.more.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.more.setMenu(place.run_menu())
        row = QHBoxLayout()
        row.setSpacing(SPACE_S)
        row.addWidget(self.name)
        row.addWidget(self.state)
        row.addStretch()
        for widget in (self.pause, self.stop, self.branch, self.more):
            row.addWidget(widget)
        column = QVBoxLayout(self)
        column.setContentsMargins(SPACE_M, SPACE_S, SPACE_M, SPACE_S)
        column.setSpacing(6)
        column.addLayout(row)
        column.addWidget(self.bar)
        column.addWidget(self.line)

    def show_run(self, run: dict[str, Any], count: int) -> None:
        """Takes the run's newest row; `count` runs are selected."""
        self.run = run
        look = state(run["state"])
        others = f"  and {count - 1} more" if count > 1 else ""
        self.name.setText((run["name"] or run["id"]) + others)
        self.state.setText(look.word)
        colour = f"color: {getattr(self.context.theme.tokens, look.token)}"
        if colour != self.state.styleSheet():  # setting it is slow even when nothing changes
            self.state.setStyleSheet(colour)
        share = progress(run)
        self.bar.setValue(round(1000 * share) if share is not None else 0)
        self.bar.setVisible(share is not None)
        self.line.setText(headline(run))
        paused = run["state"] == "paused" or run["state"] in RESUMABLE
        self.pause.setText("Resume" if paused else "Pause")
        self.pause.setAccessibleName(self.pause.text())
        self.pause.setEnabled(run["state"] in (*RESUMABLE, "training", "starting"))
        self.stop.setEnabled(run["state"] in ("queued", "starting", "training", "paused"))
        self.branch.setEnabled(bool(run["checkpoints"]))


def headline(run: dict[str, Any]) -> str:
    """'step 1,200 of 3,000 · epoch 12 of 30 · 2 min 10 s left', or what the run says of itself."""
    said = []
    if run["step"]:
        said.append(f"step {run['step']:,}" + (f" of {run['steps']:,}" if run["steps"] else ""))
    if run["epoch"]:
        said.append(f"epoch {run['epoch']:.4g}" + (f" of {run['epochs']:.4g}" if run["epochs"] else ""))
    if run["seconds"]:
        said.append(f"trained for {words.duration(run['seconds'])}")
    left = time_left(run)
    if left is not None:
        said.append(f"{words.duration(left)} left")
    if run["device"] and run["device"] != "auto":
        said.append(f"on {run['device']}")
    text = " · ".join(said)
    return f"{text}\n{run['message']}" if run["message"] else text


class RunsPlace(Place):
    """The list, the dashboard and the details of what is selected."""

    id = "runs"
    title = "Runs"
    icon = "runs"

    def __init__(self, context: Context, parent: QWidget | None = None):
        super().__init__(context, parent)
        self._archived = False
        self._wanted: str | None = str(context.settings.value("runs/selected") or "") or None
        self._asked_details: tuple[str, ...] = ()
        self._stack = QStackedWidget()
        self._empty = Empty(
            "Runs that train, wait or have ended appear here, with their curves.",
            "Open the recipe",
            lambda: context.go("recipe"),
        )
        self._build()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        self._loading = Empty("Reading the runs …")
        for widget in (self._loading, self._empty, self._whole):
            self._stack.addWidget(widget)
        column.addWidget(self._stack)
        self._bind()
        context.theme.changed.connect(self._restyle)
        self._restyle()

    # -- building ----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.model = RunList(self.context, self)
        self.model.moved.connect(self._reorder)
        self.list = QListView()
        self.list.setAccessibleName("Runs")
        self.list.setModel(self.model)
        self.list.setItemDelegate(RunDelegate(self.context, self.list))
        self.list.setUniformItemSizes(True)
        self.list.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.list.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.list.customContextMenuRequested.connect(self._list_menu)
        self.list.setDragDropMode(QAbstractItemView.DragDropMode.InternalMove)
        self.list.setDefaultDropAction(Qt.DropAction.MoveAction)
        self.list.selectionModel().selectionChanged.connect(lambda *_: self._select())
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search runs  /")
        self.search.setAccessibleName("Search runs")
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(self._filter)
        self.filter = QToolButton()
        self.filter.setAccessibleName("Which runs are listed")
        self.filter.setToolTip("Which runs are listed")
        self.filter.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        self.filter.setMenu(self._filter_menu())
        bar = QHBoxLayout()
        bar.setContentsMargins(SPACE_S, SPACE_S, SPACE_S, SPACE_S)
        bar.addWidget(self.search, 1)
        bar.addWidget(self.filter)
        left = QWidget()
        column = QVBoxLayout(left)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addLayout(bar)
        column.addWidget(self.list, 1)
        left.setMinimumWidth(220)
        self._whole = self.splitter("whole", left, self._build_middle(), self._build_details(), sizes=[250, 617, 345])
        self._whole.setStretchFactor(0, 0)
        self._whole.setStretchFactor(1, 1)
        self._whole.setStretchFactor(2, 0)

    def _build_middle(self) -> QWidget:
        self.header = Header(self)
        self.dashboard = Dashboard(self.context)
        middle = QWidget()
        column = QVBoxLayout(middle)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self.header)
        column.addWidget(self.dashboard, 1)
        middle.setMinimumWidth(380)
        return middle

    def _build_details(self) -> QWidget:
        self.details = Details(self.context)
        self.details.branched.connect(self._branch_from)
        self.details.setMinimumWidth(220)
        return self.details

    def _filter_menu(self) -> QMenu:
        menu = QMenu(self)
        archived = menu.addAction("Show archived runs")
        archived.setCheckable(True)
        archived.toggled.connect(self._show_archived)
        menu.addSeparator()
        self._state_filter = QButtonGroup(self)
        self._states: tuple[str, ...] = ()
        choices: tuple[tuple[str, tuple[str, ...]], ...] = (
            ("All states", ()),
            ("Training or waiting", (*ACTIVE, "queued")),
            ("Ended well", ("done", "stopped")),
            ("In need of attention", ("failed", "diverged", "interrupted")),
        )
        for text, states in choices:
            menu.addAction(text, partial(self._show_states, states))
        return menu

    def run_menu(self) -> QMenu:
        """What can be done with the selected runs."""
        menu = QMenu(self)
        for action in ("run.rename", "run.duplicate", "run.compare", "run.checkpoint", "", "run.archive", "run.delete"):
            if not action:
                menu.addSeparator()
                continue
            known = self.context.actions.known[action]
            entry = menu.addAction(known.text, partial(self.context.actions.start, action))
            entry.setData(action)

        def enable() -> None:
            for entry in menu.actions():
                if entry.data():
                    entry.setEnabled(self.context.actions.enabled(entry.data()))

        menu.aboutToShow.connect(enable)
        return menu

    def _list_menu(self, at: Any) -> None:
        self._menu = self.run_menu()
        self._menu.popup(self.list.viewport().mapToGlobal(at))

    def _bind(self) -> None:
        any_run = lambda: bool(self.selected())  # noqa: E731
        one_in = lambda *states: lambda: any(run["state"] in states for run in self.selected())  # noqa: E731
        self.bind("run.pause", self.pause_or_resume, one_in("starting", "training", *RESUMABLE))
        self.bind("run.stop", self.stop, one_in("queued", "starting", "training", "paused"))
        self.bind("run.branch", self.branch, lambda: any(run["checkpoints"] for run in self.selected()[:1]))
        self.bind("run.duplicate", self.duplicate, any_run)
        self.bind("run.rename", self.rename, any_run)
        self.bind("run.archive", self.archive, one_in(*TERMINAL))
        self.bind("run.delete", self.delete, one_in("queued", *TERMINAL))
        self.bind("run.compare", self.compare, any_run)
        self.bind("run.checkpoint", self.checkpoint, one_in("training", "paused"))
        self.bind("charts.smooth", self.dashboard.next_smoothing)
        self.bind("charts.reset", self.dashboard.reset)
        for action in ("run.pause", "run.rename", "run.archive", "run.delete"):
            self._key(self.list, action)
        self._key(self.dashboard, "charts.smooth")
        self._key(self.dashboard, "run.pause")

    def _key(self, home: QWidget, action: str) -> None:
        """A key that would be in the way elsewhere (Space presses buttons, Del deletes letters) works on one widget."""
        known = self.context.actions.known[action]
        entry = QAction(known.text, home)
        entry.setShortcut(QKeySequence(known.key))
        entry.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
        entry.triggered.connect(lambda _checked=False: self.context.actions.start(action))
        home.addAction(entry)

    def _restyle(self) -> None:
        self.filter.setIcon(icon(self.context.theme, "filter", "muted"))
        if self.header.run is not None:
            self.header.show_run(self.header.run, len(self.selected()))

    # -- the window's calls ------------------------------------------------------------------------------------------

    def opened(self, run: str | None = None, **_: Any) -> None:
        """Selects a run, as soon as it is in the list."""
        if run is not None:
            self.search.clear()
            self._wanted = run
            self._select_wanted()

    def refresh(self) -> None:
        """Reads the list, and what is shown of the selected runs."""
        archived = None if self._archived else False
        sparks = self.visible_runs()
        self.context.reader.ask(
            lambda log: read_runs(log, archived, LIMIT, sparks), self._show_runs, key="runs-list", owner=self
        )
        self._refresh_selected()

    def shown(self) -> None:
        self.list.setFocus()

    def focus_search(self) -> None:
        self.search.setFocus()
        self.search.selectAll()

    def save(self) -> None:
        selected = self.selected()
        self.context.settings.setValue("runs/selected", selected[0]["id"] if selected else "")
        self.dashboard.save()
        self.details.save_notes()

    # -- the list ----------------------------------------------------------------------------------------------------

    def visible_runs(self) -> list[str]:
        """The runs whose rows are on screen: only they need a spark line."""
        first = self.list.indexAt(self.list.viewport().rect().topLeft()).row()
        last = self.list.indexAt(self.list.viewport().rect().bottomLeft()).row()
        shown = self.model.shown
        return [run["id"] for run in shown[max(first, 0) : (last if last >= 0 else len(shown)) + 1]][:60]

    def _show_runs(self, found: dict[str, Any]) -> None:
        runs = found["runs"]
        first = self._stack.currentWidget() is self._loading
        self.context.colours.assign(run["id"] for run in runs)
        self.model.show_runs(runs, found["sparks"])
        self._stack.setCurrentWidget(self._whole if runs else self._empty)
        self._select_wanted()
        if self.model.runs and self.model.complete:
            self._wanted = None  # not even in a list that was just read
        if not self.list.selectionModel().hasSelection() and self.model.shown and self._wanted is None:
            self.list.setCurrentIndex(self.model.index(0))
        selected = self.selected()
        if selected:
            self.header.show_run(selected[0], len(selected))
        if first and runs:
            QTimer.singleShot(0, self.refresh)  # now the rows on screen are known

    def _select_wanted(self) -> None:
        if self._wanted is None:
            return
        row = self.model.row(self._wanted)
        if row is not None:
            self._wanted = None
            self.list.setCurrentIndex(self.model.index(row))

    def selected(self) -> list[dict[str, Any]]:
        """The selected runs, the current one first."""
        current = self.list.currentIndex()
        rows = sorted({index.row() for index in self.list.selectionModel().selectedIndexes()})
        rows.sort(key=lambda row: row != current.row())
        return [self.model.shown[row] for row in rows if row < len(self.model.shown)]

    def _select(self) -> None:
        selected = self.selected()
        if selected:
            self.header.show_run(selected[0], len(selected))
        self._refresh_selected()

    def _refresh_selected(self) -> None:
        selected = self.selected()
        self.dashboard.show_runs(selected)
        self.details.show_run(selected[0] if selected else None)

    def _filter(self, text: str) -> None:
        self.model.filter(text, self._states)

    def _show_states(self, states: tuple[str, ...]) -> None:
        self._states = states
        self.model.filter(self.search.text(), states)

    def _show_archived(self, on: bool) -> None:
        self._archived = on
        self.refresh()

    def _reorder(self, run: str, position: float) -> None:
        self._ask(lambda engine: engine.prioritize(run, position=position), "The queue has a new order.")

    # -- what can be done --------------------------------------------------------------------------------------------

    def _ask(
        self, work: Callable[[Any], Any], said: str, undo: Callable[[], None] | None = None, done: Any = None
    ) -> None:
        def answered(answer: Any) -> None:
            self.context.message(said, undo)
            self.refresh()
            if done is not None:
                done(answer)

        self.context.engine.ask(work, answered, owner=self)

    def pause_or_resume(self) -> None:
        runs = self.selected()
        live = [run["id"] for run in runs if run["state"] in ("starting", "training")]
        idle = [run["id"] for run in runs if run["state"] in RESUMABLE]
        verb, ids = ("pause", live) if live else ("resume", idle)
        if ids:
            self._ask(
                lambda engine: [getattr(engine, verb)(run) for run in ids],
                f"{_names(runs, ids)} {'pauses at its next step' if verb == 'pause' else 'goes on'}.",
            )

    def stop(self) -> None:
        ids = [run["id"] for run in self.selected() if run["state"] in ("queued", "starting", "training", "paused")]
        if ids:
            resume = lambda: self._ask(lambda engine: [engine.resume(run) for run in ids], "Going on.")  # noqa: E731
            self._ask(
                lambda engine: [engine.stop(run) for run in ids],
                f"{_names(self.selected(), ids)} stops with a checkpoint.",
                resume,
            )

    def branch(self) -> None:
        if runs := self.selected():
            self._branch_from(runs[0]["id"], "last")

    def _branch_from(self, run: str, step: int | str) -> None:
        self._ask(
            lambda engine: engine.branch(run, {}, step),
            "A new run goes on from that checkpoint.",
            done=lambda child: self.opened(run=child),
        )

    def duplicate(self) -> None:
        if runs := self.selected():
            self.context.go("recipe", recipe=runs[0]["recipe"], name=runs[0]["name"])

    def rename(self) -> None:
        runs = self.selected()
        if not runs:
            return
        run, before = runs[0]["id"], runs[0]["name"]
        name, agreed = QInputDialog.getText(self, "Rename the run", "Name", text=before)
        if agreed and name != before:
            self._update([run], {"name": name}, "Renamed.", [{"name": before}])

    def archive(self) -> None:
        runs = [run for run in self.selected() if run["state"] in TERMINAL]
        if runs:
            back = bool(runs[0]["archived"])
            said = "Back in the list." if back else f"{_names(runs, [run['id'] for run in runs])} archived."
            self._update(
                [run["id"] for run in runs],
                {"archived": 0 if back else 1},
                said,
                [{"archived": run["archived"]} for run in runs],
            )

    def _update(self, ids: Sequence[str], columns: dict[str, Any], said: str, before: list[dict[str, Any]]) -> None:
        def undo() -> None:
            self._ask(
                lambda engine: [engine.log.update_run(run, **old) for run, old in zip(ids, before, strict=True)],
                "Undone.",
            )

        self._ask(lambda engine: [engine.log.update_run(run, **columns) for run in ids], said, undo)

    def delete(self) -> None:
        """The one thing here that cannot be undone, so it asks first and says what will be lost."""
        runs = [run for run in self.selected() if run["state"] in ("queued", *TERMINAL)]
        if not runs:
            return
        stored = sum(entry.get("bytes") or 0 for run in runs for entry in run["checkpoints"])
        ids = [run["id"] for run in runs]
        box = QMessageBox(self)
        box.setIcon(QMessageBox.Icon.Warning)
        box.setWindowTitle("Delete")
        box.setText(f"Delete {_names(runs, ids)}?")
        box.setInformativeText(
            f"Its curves, events and checkpoints ({words.size(stored)}) are lost. This cannot be undone; "
            "archiving (Del) only hides it."
        )
        delete = box.addButton("Delete", QMessageBox.ButtonRole.DestructiveRole)
        box.addButton("Keep", QMessageBox.ButtonRole.RejectRole)
        box.exec()
        if box.clickedButton() is delete:
            self._ask(lambda engine: [engine.delete(run) for run in ids], f"{_names(runs, ids)} deleted.")

    def compare(self) -> None:
        self.context.go("compare", runs=[run["id"] for run in self.selected()])

    def checkpoint(self) -> None:
        ids = [run["id"] for run in self.selected() if run["state"] in ("training", "paused")]
        self._ask(lambda engine: [engine.checkpoint(run) for run in ids], "A checkpoint is being kept.")


def _names(runs: list[dict[str, Any]], ids: Sequence[str]) -> str:
    if len(ids) == 1:
        return next((run["name"] or run["id"] for run in runs if run["id"] == ids[0]), ids[0])
    return f"{len(ids)} runs"
