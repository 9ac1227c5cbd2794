"""The window: rail, top bar, the current place, status line. One timer tells the place on screen to refresh."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PySide6.QtCore import QByteArray, QEvent, QSettings, QSize, Qt, QTimer, QUrl
from PySide6.QtGui import QAction, QCloseEvent, QDesktopServices, QKeySequence, QResizeEvent
from PySide6.QtWidgets import (
    QApplication,
    QFileDialog,
    QFrame,
    QHBoxLayout,
    QMainWindow,
    QMenu,
    QSizePolicy,
    QStackedWidget,
    QToolButton,
    QVBoxLayout,
    QWhatsThis,
    QWidget,
)

from app import words
from app.actions import Action
from app.guide import GuideWindow, Page, pages
from app.icons import icon
from app.palette import Palette
from app.places import ORDER, TITLES, Context, Empty, Place, button, label
from app.states import ACTIVE
from app.theme import SPACE_M, SPACE_S, Theme
from engine.errors import AthanorError
from engine.workspace import Workspace

REFRESH_MS = 250
SERVICE_SILENT_SECONDS = 5.0
RECENT = 8


def settings_of(workspace: Workspace) -> QSettings:
    """The window's memory: in the folder ATHANOR_CONFIG, else in the workspace."""
    folder = Path(os.environ.get("ATHANOR_CONFIG") or workspace.folder)
    folder.mkdir(parents=True, exist_ok=True)
    return QSettings(str(folder / "window.ini"), QSettings.Format.IniFormat)


class Rail(QFrame):
    """The six places as icon and word, and help."""

    def __init__(self, context: Context, help_menu: QMenu):
        super().__init__()
        self.context = context
        self.setObjectName("rail")
        self.setFixedWidth(68)
        self.buttons: dict[str, QToolButton] = {}
        column = QVBoxLayout(self)
        column.setContentsMargins(4, SPACE_S, 4, SPACE_S)
        column.setSpacing(2)
        for place in ORDER:
            entry = self._button(TITLES[place], context.actions.known[f"go.{place}"].key)
            entry.setCheckable(True)
            entry.setAutoExclusive(True)
            entry.clicked.connect(lambda _checked=False, place=place: context.go(place))
            self.buttons[place] = entry
            column.addWidget(entry)
        column.addStretch()
        self.help = self._button("Help", "F1")
        self.help.setMenu(help_menu)
        self.help.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        column.addWidget(self.help)
        self.restyle()

    def restyle(self) -> None:
        theme = self.context.theme
        for place, entry in self.buttons.items():
            entry.setIcon(icon(theme, place, "muted", "accent", 22))
        self.help.setIcon(icon(theme, "help", "muted", "accent", 22))

    def _button(self, text: str, key: str) -> QToolButton:
        entry = QToolButton()
        entry.setText(text)
        entry.setToolTip(f"{text} ({key})")
        entry.setAccessibleName(text)
        entry.setIconSize(QSize(22, 22))
        entry.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        entry.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextUnderIcon)
        entry.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        entry.setFixedHeight(52)
        return entry


class TopBar(QFrame):
    """The workspace's name, the palette's field, the engine's state."""

    def __init__(self, context: Context, workspace_menu: QMenu, engine_menu: QMenu):
        super().__init__()
        self.context = context
        self.setObjectName("topbar")
        self.setFixedHeight(42)
        self.workspace = button(context.workspace.folder.name, lambda: None, "quiet", str(context.workspace.folder))
        self.workspace.setAccessibleName(f"Workspace {context.workspace.folder.name}")
        self.workspace.setMenu(workspace_menu)
        self.workspace.setProperty("menued", True)
        self.field = button("Search or run a command", lambda: context.actions.start("window.palette"))
        self.field.setObjectName("paletteField")
        self.field.setFixedWidth(360)
        self.hint = label("Ctrl+K", "small")
        inner = QHBoxLayout(self.field)
        inner.setContentsMargins(8, 0, 8, 0)
        inner.addStretch()
        inner.addWidget(self.hint)
        self.engine = button("engine: looking", lambda: None, "quiet")
        self.engine.setMenu(engine_menu)
        self.engine.setProperty("menued", True)
        self.engine.setLayoutDirection(Qt.LayoutDirection.LeftToRight)
        row = QHBoxLayout(self)
        row.setContentsMargins(SPACE_S, 0, SPACE_S, 0)
        for widget, align in ((self.workspace, Qt.AlignmentFlag.AlignLeft), (self.field, Qt.AlignmentFlag.AlignCenter),
                              (self.engine, Qt.AlignmentFlag.AlignRight)):  # fmt: skip
            row.addWidget(widget, 1, align)

    def show_engine(self, alive: bool, counts: dict[str, int]) -> None:
        """'engine: 2 training', with a dot in the state's colour."""
        said = [f"{counts[name]} {name}" for name in ("training", "starting", "paused", "queued") if counts.get(name)]
        text = "engine: " + (", ".join(said) if said else "ready" if alive else "off")
        if said and not alive:
            text = "engine: off, " + ", ".join(said)
        token = ("accent" if counts.get("training") else "good") if alive else "muted"
        if text != self.engine.text() or self.engine.property("dot") != token:
            self.engine.setText(text)
            self.engine.setAccessibleName(text)
            self.engine.setProperty("dot", token)
            self.restyle()

    def restyle(self) -> None:
        token = str(self.engine.property("dot") or "muted")
        name = "state-training" if token == "accent" else "state-done" if token == "good" else "state-stopped"
        self.engine.setIcon(icon(self.context.theme, name, token, token, 16))


class StatusLine(QFrame):
    """The last message, with undo where there is one; the machine's figures."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("statusline")
        self.setFixedHeight(28)
        self._undo: Callable[[], None] | None = None
        self.message = label("", selectable=True)
        self.message.setObjectName("message")
        self.message.setAccessibleName("Last message")
        self.message.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.undo = button("Undo", self._run_undo, "link")
        self.undo.setVisible(False)
        self.figures = label("")
        self.figures.setAccessibleName("Load of the machine")
        row = QHBoxLayout(self)
        row.setContentsMargins(SPACE_M, 0, SPACE_M, 0)
        row.addWidget(self.message, 1)
        row.addWidget(self.undo)
        row.addSpacing(SPACE_M)
        row.addWidget(self.figures)

    def say(self, text: str, undo: Callable[[], None] | None, level: str) -> None:
        line = " ".join(text.split())
        self.message.setText(line)
        self.message.setToolTip(text)
        self.message.setProperty("level", level)
        self.message.style().unpolish(self.message)
        self.message.style().polish(self.message)
        self._undo = undo
        self.undo.setVisible(undo is not None)

    def show_figures(self, sample: dict[str, Any]) -> None:
        """'cpu 41 %  gpu0 93 %  18.2 GB'."""
        said = [f"cpu {sample['cpu']:.0f} %"] if sample.get("cpu") is not None else []
        for number, gpu in enumerate(sample.get("gpus") or []):
            if gpu.get("utilization") is not None:
                said.append(f"gpu{number} {gpu['utilization']:.0f} %")
        if sample.get("memory") is not None:
            said.append(words.size(sample["memory"]))
        self.figures.setText("   ".join(said))

    def _run_undo(self) -> None:
        undo, self._undo = self._undo, None
        self.undo.setVisible(False)
        if undo is not None:
            self.message.setText("Undone.")
            undo()


class Window(QMainWindow):
    """One workspace's window."""

    def __init__(self, workspace: Workspace, place: str | None = None):
        super().__init__()
        self.settings = settings_of(workspace)
        self.theme = Theme(self.settings, self)
        self.context = Context(workspace, self.settings, self.theme, self)
        self.places: dict[str, Place] = {}
        self.current = ""
        self._waiting: list[Callable[[Place], None]] = []
        self._wanted = ""
        self._dirty = True
        self._guide: GuideWindow | None = None
        self.setWindowTitle(f"{workspace.folder.name} – Athanor")
        self.setWindowIcon(icon(self.theme, "runs", "accent"))
        self.theme.apply()
        self._bind_actions()
        self._build()
        self._restore_geometry()
        self.theme.changed.connect(self._restyle)
        self.context.said.connect(self.status.say)
        self.context.went.connect(self.go)
        self.context.actions.wanted.connect(self._carry_out)
        self.context.actions.added.connect(self._add_key)
        self.context.reader.changed.connect(self._mark)
        self._timer = QTimer(self)
        self._timer.setInterval(REFRESH_MS)
        self._timer.timeout.connect(self._tick)
        start = place or str(self.settings.value("place", "recipe"))
        self._first = start if start in ORDER else "recipe"

    # -- building ----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.rail = Rail(self.context, self._help_menu())
        self.top = TopBar(self.context, self._workspace_menu(), self._engine_menu())
        self.stack = QStackedWidget()
        self.status = StatusLine()
        self._loading = Empty("Opening …")
        self.stack.addWidget(self._loading)
        right = QVBoxLayout()
        right.setContentsMargins(0, 0, 0, 0)
        right.setSpacing(0)
        right.addWidget(self.top)
        right.addWidget(self.stack, 1)
        right.addWidget(self.status)
        whole = QWidget()
        row = QHBoxLayout(whole)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(0)
        row.addWidget(self.rail)
        row.addLayout(right, 1)
        self.setCentralWidget(whole)
        self.palette_ = Palette(self.context, whole)
        self.setMinimumSize(960, 600)

    def _entry(self, menu: QMenu, action: str) -> None:
        known = self.context.actions.known[action]
        menu.addAction(known.text, lambda: self.context.actions.start(action)).setData(action)

    def _help_menu(self) -> QMenu:
        menu = QMenu(self)
        for action in ("window.palette", "window.help"):
            self._entry(menu, action)
        menu.addSeparator()
        for page in pages():
            guide = Action(f"guide.{page.id}", f"Guide: {page.title}", icon="help", words="documentation how to")
            self.context.actions.add(guide, partial(self._show_guide, page))
            self._entry(menu, guide.id)
        menu.addSeparator()
        self._themes: dict[str, QAction] = {}
        for choice in ("light", "dark", "system"):
            entry = menu.addAction(self.context.actions.known[f"theme.{choice}"].text)
            entry.setCheckable(True)
            entry.triggered.connect(lambda _checked=False, choice=choice: self.theme.choose(choice))
            self._themes[choice] = entry
        menu.aboutToShow.connect(self._check_theme)
        return menu

    def _check_theme(self) -> None:
        for choice, entry in self._themes.items():
            entry.setChecked(choice == self.theme.choice)

    def _workspace_menu(self) -> QMenu:
        menu = QMenu(self)

        def fill() -> None:
            menu.clear()
            here = str(self.context.workspace.folder)
            for folder in self._recent():
                if folder != here:
                    menu.addAction(folder, partial(self.open_workspace, folder))
            if not menu.isEmpty():
                menu.addSeparator()
            for action in ("window.workspace", "window.folder"):
                self._entry(menu, action)

        menu.aboutToShow.connect(fill)
        return menu

    def _engine_menu(self) -> QMenu:
        menu = QMenu(self)
        for action in ("engine.start", "engine.shutdown"):
            self._entry(menu, action)
        menu.addSeparator()
        keep = menu.addAction("Go on training when the window closes")
        keep.setCheckable(True)
        keep.setChecked(self._keeps_training())
        keep.toggled.connect(lambda on: self.settings.setValue("keep_training", on))
        return menu

    def _bind_actions(self) -> None:
        actions, context = self.context.actions, self.context
        for place in ORDER:
            actions.bind(f"go.{place}", partial(self.go, place))
        for choice in ("light", "dark", "system"):
            actions.bind(f"theme.{choice}", partial(self.theme.choose, choice))
        actions.bind("window.palette", lambda: self.palette_.open())
        actions.bind("window.search", self._search)
        actions.bind("window.workspace", self._choose_workspace)
        actions.bind("window.folder", self._show_folder)
        actions.bind("window.help", self._help)
        actions.bind("window.quit", self.close)
        actions.bind("engine.start", self._start_engine)
        actions.bind("engine.shutdown", self._shut_engine)
        actions.bind("catalog.reload", context.load_catalog)
        for action in list(actions.known.values()):
            if not action.place:
                self._add_key(action.id)

    def _add_key(self, action: str) -> None:
        """Gives an action its key: in the whole window, or inside its place once that is built."""
        known = self.context.actions.known[action]
        home: QWidget | None = self.places.get(known.place) if known.place else self
        if not known.key or not known.keyed or home is None:
            return
        entry = QAction(known.text, home)
        entry.setShortcut(QKeySequence(known.key))
        everywhere = Qt.ShortcutContext.WindowShortcut
        entry.setShortcutContext(Qt.ShortcutContext.WidgetWithChildrenShortcut if known.place else everywhere)
        entry.triggered.connect(lambda _checked=False: self.context.actions.start(action))
        home.addAction(entry)

    # -- starting ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Called when the window is on screen: everything that takes time starts now, off the GUI thread."""
        self._remember_workspace()
        self.watch()
        self.go(self._first)
        self.context.load_catalog()
        self.context.engine.ask(lambda engine: engine.ensure(), owner=self)

    def watch(self) -> None:
        """From now on the place on screen is refreshed when the log changes."""
        self._timer.start()
        self.context.reader.ask(lambda log: None)  # opens the log, and with it begins to look for changes

    # -- places ------------------------------------------------------------------------------------------------------

    def go(self, place: str, what: dict[str, Any] | None = None, then: Callable[[Place], None] | None = None) -> None:
        """Opens a place: at once when it is built, else as soon as its module was imported off the GUI thread."""

        def arrive(widget: Place) -> None:
            self._show(widget)
            if what:
                widget.opened(**what)
            if then is not None:
                then(widget)

        self._wanted = place
        self.rail.buttons[place].setChecked(True)
        if place in self.places:
            arrive(self.places[place])
            return
        self._leave()
        self.stack.setCurrentWidget(self._loading)
        module = f"app.places.{place}"

        def built(_: Any) -> None:
            if place not in self.places:
                self._construct(place)
            if self._wanted == place:
                arrive(self.places[place])

        def failed(error: Exception) -> None:
            said = f"{TITLES[place]} could not be opened: {error}. The engine and its runs go on."
            self._loading.sentence.setText(said)
            self.context.message(said, level="error")

        self._loading.sentence.setText("Opening …")
        self.context.worker.ask(lambda _: importlib.import_module(module), built, failed=failed, owner=self)

    def _construct(self, place: str) -> None:
        module = sys.modules[f"app.places.{place}"]
        widget: Place = getattr(module, f"{place.capitalize()}Place")(self.context)
        self.places[place] = widget
        self.stack.addWidget(widget)
        for action in list(self.context.actions.known.values()):
            if action.place == place:
                self._add_key(action.id)

    def _show(self, widget: Place) -> None:
        if self.current == widget.id and self.stack.currentWidget() is widget:
            return
        self._leave()
        self.current = widget.id
        self.settings.setValue("place", widget.id)
        self.stack.setCurrentWidget(widget)
        widget.setFocus()
        widget.on_screen = True
        widget.shown()
        widget.refresh()

    def _leave(self) -> None:
        before = self.places.get(self.current)
        self.current = ""
        if before is not None and before.on_screen:
            before.on_screen = False
            before.hidden()

    def _carry_out(self, action: str) -> None:
        place = self.context.actions.known[action].place
        if place == self.current:
            self.context.actions.carry_out(action)
        else:
            self.go(place, then=lambda _widget: self.context.actions.carry_out(action))

    # -- the timer ---------------------------------------------------------------------------------------------------

    def _mark(self) -> None:
        self._dirty = True

    def _tick(self) -> None:
        visible = self.isVisible() and not self.isMinimized()
        self.context.reader.watch(visible)
        if not visible or not self._dirty:
            return
        self._dirty = False
        self.context.reader.ask(summary, self._show_summary, key="summary", owner=self)
        place = self.places.get(self.current)
        if place is not None and place.on_screen:
            place.refresh()

    def _show_summary(self, found: dict[str, Any]) -> None:
        self.top.show_engine(found["alive"], found["counts"])
        self.status.show_figures(found["machine"])

    # -- actions -----------------------------------------------------------------------------------------------------

    def _search(self) -> None:
        place = self.places.get(self.current)
        if place is not None:
            place.focus_search()

    def _help(self) -> None:
        """What the focused control is for, in its own words."""
        widget = QApplication.focusWidget() or self
        text = widget.accessibleDescription() or widget.toolTip() or widget.whatsThis() or widget.accessibleName()
        if not text and (place := self.places.get(self.current)) is not None:
            text = f"{place.title}. Ctrl+K lists every command and its key."
        QWhatsThis.showText(widget.mapToGlobal(widget.rect().center()), text, widget)

    def _show_guide(self, page: Page) -> None:
        if self._guide is None:
            self._guide = GuideWindow(self.theme, self)
        self._guide.open(page)

    def _start_engine(self) -> None:
        self.context.engine.ask(
            lambda engine: engine.ensure(), lambda _: self.context.message("The engine is starting."), owner=self
        )

    def _shut_engine(self) -> None:
        """Running trainings end at their next checkpoint and can be resumed."""
        self.context.engine.ask(
            lambda engine: engine.shutdown(),
            lambda _: self.context.message(
                "The engine shuts down. Runs can be resumed later.", undo=self._start_engine
            ),
            owner=self,
        )

    def _show_folder(self) -> None:
        QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.context.workspace.folder)))

    def _choose_workspace(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Open a workspace", str(self.context.workspace.folder.parent))
        if folder:
            self.open_workspace(folder)

    def open_workspace(self, folder: str) -> None:
        """Opens another workspace in a window of its own and closes this one."""
        try:
            other = Window(Workspace(folder))
        except AthanorError as error:
            self.context.message(str(error), level="error")
            return
        KEPT.append(other)
        other.show()
        other.begin()
        self.close()

    # -- memory ------------------------------------------------------------------------------------------------------

    def _keeps_training(self) -> bool:
        return str(self.settings.value("keep_training", "true")).lower() != "false"

    def _recent(self) -> list[str]:
        stored = self.settings.value("recent", [])
        return (
            [stored]
            if isinstance(stored, str)
            else [str(entry) for entry in stored]
            if isinstance(stored, list)
            else []
        )

    def _remember_workspace(self) -> None:
        here = str(self.context.workspace.folder)
        self.settings.setValue("recent", [here, *(entry for entry in self._recent() if entry != here)][:RECENT])

    def _restore_geometry(self) -> None:
        geometry = self.settings.value("geometry")
        if not isinstance(geometry, QByteArray) or not self.restoreGeometry(geometry):
            self.resize(1280, 720)

    def _restyle(self) -> None:
        self.rail.restyle()
        self.top.restyle()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self.palette_.hide()

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() == QEvent.Type.WindowStateChange:
            self._dirty = True

    def closeEvent(self, event: QCloseEvent) -> None:
        self._timer.stop()
        self._leave()
        for place in self.places.values():
            place.save()
            place.keep_splitters()
        self.settings.setValue("geometry", self.saveGeometry())
        self.settings.sync()
        if not self._keeps_training():
            self.context.engine.finish(lambda engine: engine.shutdown())
        self.context.close()
        if self in KEPT:
            KEPT.remove(self)
        super().closeEvent(event)


KEPT: list[Window] = []


def summary(log: Any) -> dict[str, Any]:
    """What the top bar and the status line show. Runs on the reader's thread."""
    service = log.meta("service") or {}
    samples = log.machine(time.time() - 10, limit=None)
    counts: dict[str, int] = {}
    for run in log.runs(states=[*ACTIVE, "queued"]):
        counts[run["state"]] = counts.get(run["state"], 0) + 1
    alive = time.time() - float(service.get("heartbeat") or 0) < SERVICE_SILENT_SECONDS
    return {"alive": alive, "counts": counts, "machine": samples[-1] if samples else {}}
