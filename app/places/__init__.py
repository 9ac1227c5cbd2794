"""The six places of the window, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PySide6.QtCore import QObject, QSettings, Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QSplitter, QVBoxLayout, QWidget

from app.actions import Actions
from app.frames import Frames
from app.reader import EngineDesk, Reader, Worker
from app.states import RunColours
from app.theme import SPACE_M, SPACE_S, Theme

ORDER = ("library", "recipe", "runs", "compare", "sweep", "machine")
TITLES = {
    "library": "Library",
    "recipe": "Recipe",
    "runs": "Runs",
    "compare": "Compare",
    "sweep": "Sweep",
    "machine": "Machine",
}


class Context(QObject):
    """What every place is given: the workspace, the engine, the catalog, reading, actions, theme, and each other.

    reader.ask(lambda log: log.runs(), done)         reads on the reader's thread, answers on the GUI thread
    engine.ask(lambda engine: engine.pause(run))     talks to the engine service on its own thread
    worker.ask(lambda _: slow(), done)               other slow work
    message(text, undo=None, level="info")           the status line
    frames.draw(widget, work)                        draws in a frame to come, one widget a frame
    go("runs", run=id)                               opens a place; its `opened(**what)` gets the rest
    catalog                                          None until `catalog_ready` was sent
    catalog_error                                    why the catalog could not be read; '' while it may come
    """

    catalog_ready = Signal(object)
    catalog_failed = Signal(str)  # with the reason; '' when it is read again
    said = Signal(str, object, str)  # text, undo or None, level
    went = Signal(str, dict)

    def __init__(self, workspace: Any, settings: QSettings, theme: Theme, parent: QObject | None = None):
        super().__init__(parent)
        self.workspace = workspace
        self.settings = settings
        self.theme = theme
        self.colours = RunColours(settings)
        self.reader = Reader(workspace.database, self)
        self.engine = EngineDesk(workspace, self)
        self.worker = Worker(self)
        self.frames = Frames(self)
        self.actions = Actions(self)
        self.catalog: Any = None
        self.catalog_error = ""
        for desk in (self.reader, self.engine, self.worker):
            desk.problem.connect(lambda text: self.message(text, level="error"))

    def message(self, text: str, undo: Callable[[], None] | None = None, level: str = "info") -> None:
        """Shows a sentence in the status line, with an undo button when there is an undo; levels as in the log."""
        self.said.emit(text, undo, level)

    def go(self, place: str, **what: Any) -> None:
        """Opens a place; what is given is handed to its `opened`."""
        self.went.emit(place, what)

    def load_catalog(self) -> None:
        """Loads the catalog off the GUI thread (again: after a person's own parts have changed)."""

        def load(_: Any) -> Any:
            from engine.catalog import Catalog

            return Catalog.load()

        self._say_catalog("")
        self.worker.ask(load, self._set_catalog, key="catalog", failed=self._catalog_failed)

    def close(self) -> None:
        for desk in (self.reader, self.engine, self.worker):
            desk.close()

    def _catalog_failed(self, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        self._say_catalog(reason)
        self.message(reason, level="error")

    def _say_catalog(self, reason: str) -> None:
        if reason != self.catalog_error:
            self.catalog_error = reason
            self.catalog_failed.emit(reason)

    def _set_catalog(self, catalog: Any) -> None:
        self.catalog = catalog
        self.catalog_ready.emit(catalog)


class Place(QWidget):
    """One place of the window. Built when first visited; asks for data only while it is visible.

    A place binds the actions that it can carry out: `self.bind("run.stop", self.stop, enabled=self.can_stop)`.
    """

    id = ""
    title = ""
    icon = ""

    def __init__(self, context: Context, parent: QWidget | None = None):
        super().__init__(parent)
        self.context = context
        self.on_screen = False
        self.setObjectName(f"place-{self.id}")
        self.setAccessibleName(self.title)
        self._splitters: list[tuple[str, QSplitter]] = []

    # -- called by the window ----------------------------------------------------------------------------------------

    def shown(self) -> None:
        """The place came on screen."""

    def hidden(self) -> None:
        """The place left the screen."""

    def opened(self, **what: Any) -> None:
        """Somebody came here with something: a run, a part, a recipe."""

    def refresh(self) -> None:
        """The log has changed, or a quarter of a second has passed with live data; only while on screen."""

    def focus_search(self) -> None:
        """`/` was pressed."""

    def save(self) -> None:
        """The window closes: keep what must survive a restart. Splitters are kept already."""

    # -- help for places ---------------------------------------------------------------------------------------------

    def bind(self, action: str, run: Callable[[], Any], enabled: Callable[[], bool] | None = None) -> None:
        """Carries out an action of app/actions.py (or one that was added) while this place is the current one."""
        self.context.actions.bind(action, run, enabled)

    def splitter(
        self, name: str, *widgets: QWidget, vertical: bool = False, sizes: list[int] | None = None
    ) -> QSplitter:
        """A splitter whose sizes survive a restart."""
        splitter = QSplitter(Qt.Orientation.Vertical if vertical else Qt.Orientation.Horizontal, self)
        splitter.setChildrenCollapsible(False)
        splitter.setHandleWidth(1)
        for widget in widgets:
            splitter.addWidget(widget)
        if sizes:
            splitter.setSizes(sizes)
        stored = self.context.settings.value(f"splitters/{self.id}/{name}")
        if stored is not None:
            splitter.restoreState(stored)
        self._splitters.append((name, splitter))
        return splitter

    def keep_splitters(self) -> None:
        for name, splitter in self._splitters:
            self.context.settings.setValue(f"splitters/{self.id}/{name}", splitter.saveState())


def label(text: str, role: str = "", wrap: bool = False, selectable: bool = False) -> QLabel:
    """A label in one of the sheet's roles: title, head, section, small, muted, chip, good, warning, bad."""
    widget = QLabel(text)
    widget.setTextFormat(Qt.TextFormat.PlainText)
    if role:
        widget.setProperty("role", role)
    widget.setWordWrap(wrap)
    if selectable:
        widget.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return widget


def button(text: str, run: Callable[[], Any], role: str = "", tip: str = "") -> QPushButton:
    """A push button with an accessible name; roles: primary, danger, link."""
    widget = QPushButton(text)
    widget.setAccessibleName(text)
    if role:
        widget.setProperty("role", role)
    if tip:
        widget.setToolTip(tip)
        widget.setAccessibleDescription(tip)
    widget.clicked.connect(lambda _checked=False: run())
    return widget


class CatalogState(QWidget):
    """Says that the catalog is being read; or why that failed, with a button that tries again."""

    def __init__(self, context: Context):
        super().__init__()
        self.context = context
        self.sentence = label("", "muted", wrap=True, selectable=True)
        self.again = button("Try again", context.load_catalog, "primary", "Reads the catalog of parts again.")
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(SPACE_M)
        column.addWidget(self.sentence)
        column.addWidget(self.again, 0, Qt.AlignmentFlag.AlignLeft)
        context.catalog_failed.connect(self._show)
        context.catalog_ready.connect(lambda _catalog: self.hide())
        self._show(context.catalog_error)
        self.setVisible(context.catalog is None)

    def _show(self, reason: str) -> None:
        said = reason if reason.startswith("The catalog") else f"The catalog of parts could not be read. {reason}"
        self.sentence.setText(said if reason else "The catalog of parts is being read …")
        self.again.setVisible(bool(reason))


class Empty(QWidget):
    """An empty place: one sentence on what belongs here, and the one action that fills it."""

    def __init__(self, sentence: str, action: str = "", run: Callable[[], Any] | None = None):
        super().__init__()
        self.sentence = label(sentence, "muted", wrap=True)
        self.sentence.setAlignment(Qt.AlignmentFlag.AlignCenter)
        column = QVBoxLayout(self)
        column.setSpacing(SPACE_M)
        column.addStretch(2)
        column.addWidget(self.sentence)
        if action and run is not None:
            row = QHBoxLayout()
            row.setSpacing(SPACE_S)
            row.addStretch()
            row.addWidget(button(action, run, "primary"))
            row.addStretch()
            column.addLayout(row)
        column.addStretch(3)
