"""Every action of the window, declared once: its words, its key, its icon, and where it belongs.

The menus, the palette and the keys are made from this table. A place binds what carries an action out; an action of
a place that was not visited yet opens the place first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PySide6.QtCore import QObject, Signal


@dataclass(frozen=True)
class Action:
    """One action. `place` is where it works ('' everywhere); `keyed` is False when the place sets the key itself."""

    id: str
    text: str
    place: str = ""
    key: str = ""
    icon: str = ""
    words: str = ""  # more words to find it by
    keyed: bool = True


TABLE: tuple[Action, ...] = (
    Action("go.library", "Go to Library", key="Ctrl+1", icon="library", words="parts methods papers"),
    Action("go.recipe", "Go to Recipe", key="Ctrl+2", icon="recipe", words="builder form"),
    Action("go.runs", "Go to Runs", key="Ctrl+3", icon="runs", words="dashboard queue training"),
    Action("go.compare", "Go to Compare", key="Ctrl+4", icon="compare", words="table statistics"),
    Action("go.sweep", "Go to Sweep", key="Ctrl+5", icon="sweep", words="search grid random"),
    Action("go.machine", "Go to Machine", key="Ctrl+6", icon="machine", words="gpu cpu memory utilization"),
    Action("window.palette", "Search or run a command", key="Ctrl+K", icon="search"),
    Action("window.search", "Search in this place", key="/", icon="search", words="filter find"),
    Action("window.workspace", "Open another workspace", key="Ctrl+O", icon="folder", words="folder"),
    Action("window.folder", "Show the workspace's folder", icon="folder"),
    Action("window.help", "Help on what has the focus", key="F1", icon="help"),
    Action("window.quit", "Close the window", key="Ctrl+Q", words="quit exit"),
    Action("theme.light", "Light theme", icon="sun", words="look colour"),
    Action("theme.dark", "Dark theme", icon="moon", words="look colour"),
    Action("theme.system", "Theme of the system", icon="sun", words="look colour"),
    Action("engine.start", "Start the engine", icon="play", words="service"),
    Action("engine.shutdown", "Shut the engine down", icon="stop", words="service"),
    Action("catalog.reload", "Read the catalog again", icon="refresh", words="parts own folder"),
    Action("recipe.new", "New recipe", "recipe", "Ctrl+N", "plus", "blank"),
    Action("recipe.open", "Open a recipe file", "recipe", "Ctrl+Shift+O", "folder"),
    Action("recipe.save", "Save the recipe to a file", "recipe", "Ctrl+S", "download"),
    Action("recipe.train", "Train", "recipe", "Ctrl+Return", "play", "queue start run"),
    Action("recipe.undo", "Undo", "recipe", "Ctrl+Z", "undo"),
    Action("recipe.redo", "Redo", "recipe", "Ctrl+Shift+Z", "redo"),
    Action("run.pause", "Pause or resume the run", "runs", "Space", "pause", "continue", keyed=False),
    Action("run.stop", "Stop the run", "runs", "Ctrl+.", "stop", "end"),
    Action("run.branch", "Branch the run from its last checkpoint", "runs", "Ctrl+B", "branch", "fork continue"),
    Action("run.duplicate", "Open a copy of the run's recipe", "runs", "Ctrl+D", "copy", "duplicate again"),
    Action("run.rename", "Rename the run", "runs", "F2", "edit", keyed=False),
    Action("run.archive", "Archive the run", "runs", "Del", "archive", "hide remove", keyed=False),
    Action("run.delete", "Delete the run", "runs", "Shift+Del", "trash", "remove", keyed=False),
    Action("run.compare", "Compare the selected runs", "runs", "Ctrl+Shift+C", "compare"),
    Action("run.checkpoint", "Keep a checkpoint now", "runs", icon="download", words="save"),
    Action("charts.smooth", "Smooth the charts more or less", "runs", "S", "runs", keyed=False),
    Action("charts.reset", "Show all of the curves", "runs", "Ctrl+0", "refresh", "zoom"),
)  # fmt: skip


class Actions(QObject):
    """The actions that are known, and what carries them out."""

    added = Signal(str)
    wanted = Signal(str)  # an action was started that belongs to a place

    def __init__(self, parent: QObject | None = None):
        super().__init__(parent)
        self.known: dict[str, Action] = {action.id: action for action in TABLE}
        self._runs: dict[str, Callable[[], Any]] = {}
        self._enabled: dict[str, Callable[[], bool]] = {}

    def add(self, action: Action, run: Callable[[], Any] | None = None) -> None:
        """Declares an action that is not in the table."""
        self.known[action.id] = action
        if run is not None:
            self._runs[action.id] = run
        self.added.emit(action.id)

    def bind(self, action: str, run: Callable[[], Any], enabled: Callable[[], bool] | None = None) -> None:
        """Says what carries out a known action, and when it can be."""
        if action not in self.known:
            raise KeyError(action)
        self._runs[action] = run
        if enabled is not None:
            self._enabled[action] = enabled

    def bound(self, action: str) -> bool:
        return action in self._runs

    def enabled(self, action: str) -> bool:
        """Whether it can be carried out now; one whose place was not visited yet can be tried."""
        check = self._enabled.get(action)
        return check() if check is not None else True

    def start(self, action: str) -> None:
        """Carries an action out; the window opens its place first when need be."""
        if self.known[action].place:
            self.wanted.emit(action)
        else:
            self.carry_out(action)

    def carry_out(self, action: str) -> None:
        """Runs what is bound, when it is enabled."""
        if action in self._runs and self.enabled(action):
            self._runs[action]()
