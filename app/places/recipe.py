"""The builder: an outline of the recipe, the form of what is selected, and what the recipe would do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PySide6.QtCore import QSize, Qt, QTimer
from PySide6.QtGui import QDragEnterEvent, QDropEvent, QPainter, QPaintEvent, QPalette
from PySide6.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QMenu,
    QSizePolicy,
    QTabWidget,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from app.consent import ask_first
from app.forms.around import form_context
from app.forms.chooser import Chooser
from app.forms.outline import Outline
from app.forms.pane import PartPane
from app.forms.previews import (
    DataPanel,
    DifferencePanel,
    ModelPanel,
    OrderPanel,
    Previewer,
    ProblemsPanel,
    SchedulePanel,
)
from app.forms.toml import TomlPane
from app.icons import icon
from app.places import CatalogState, Context, Place, button, label
from app.questions import Question
from app.recipes import RecipeDocument, blank, section_of, trial_of
from app.theme import SPACE_M, SPACE_S
from engine.catalog import Catalog
from engine.endpoints import Contact
from engine.errors import AthanorError, RecipeError
from engine.recipe import BY_NAME, PHASES, PLANS, Recipe, flatten
from engine.settings import RESERVED
from engine.workspace import RESOURCES

DRAFT = "recipe.toml"  # in the workspace: what stands in the builder, saved as it is edited
STARTERS = RESOURCES / "recipes"
AUTOSAVE_MS = 400
MOST_SEEDS = 100
JUDGE_PATIENCE_S = 60.0


class RecipePlace(Place):
    """The recipe that is being built. Everything that changes it goes through `self.document`."""

    id = "recipe"
    title = "Recipe"
    icon = "recipe"

    def __init__(self, context: Context, parent: QWidget | None = None):
        super().__init__(context, parent)
        self.document = RecipeDocument(parent=self)
        self.loaded = False
        self._waiting: list[dict[str, Any]] = []
        self._training = False
        self._blank_start = False
        self.previewer = Previewer(context, self.document, self)
        self._build()
        self._autosave = QTimer(self)
        self._autosave.setSingleShot(True)
        self._autosave.setInterval(AUTOSAVE_MS)
        self._autosave.timeout.connect(self._write_draft)
        self.document.changed.connect(self._changed)
        self.document.checked.connect(self._show_train)
        self.document.refused.connect(self._complain)
        self._bind()
        context.catalog_ready.connect(self._catalog_ready)
        context.catalog_failed.connect(lambda _reason: self._show_train())
        context.theme.changed.connect(self._restyle)
        self._restyle()
        if context.catalog is not None:
            self._catalog_ready(context.catalog)
        self._changed()
        # On the reader's thread, because the worker's may be busy with the catalog for a while.
        context.reader.ask(self._read_start, self._start, key="recipe-start", owner=self)

    # -- called by the window ----------------------------------------------------------------------------------------

    def shown(self) -> None:
        self.previewer.set_active(True)

    def hidden(self) -> None:
        self.previewer.set_active(False)

    def opened(self, **what: Any) -> None:
        """Comes with `add` or `trial` (a part's id), `text` (a recipe, perhaps its `name`), `file` or `select`."""
        if not what:
            return
        if not self.loaded or self.context.catalog is None:
            self._waiting.append(what)
            return
        if what.get("add"):
            self.add_part(str(what["add"]))
        if what.get("trial"):
            self.try_part(str(what["trial"]))
        text = what.get("text") or what.get("recipe")
        if text:
            self.take_text(str(text), what.get("name"))
        if what.get("file"):
            self.open_file(Path(what["file"]))
        if what.get("select"):
            self.outline.select(str(what["select"]))

    def focus_search(self) -> None:
        self.pane.open_chooser()

    def save(self) -> None:
        self.toml.take()
        if self._autosave.isActive():
            self._autosave.stop()
            _write(self.context.workspace.folder / DRAFT, self.document.text)
        self._keep_path()

    # -- changes that come from elsewhere ----------------------------------------------------------------------------

    def add_part(self, part: str) -> None:
        """Puts a part into the section that takes its kind."""
        catalog: Catalog = self.context.catalog
        entry = catalog.parts.get(part)
        section = section_of(entry.kind) if entry is not None else None
        if entry is None or section is None or not self._readable():
            return
        if section.many:
            path = self.document.add(section.name, part)
        else:
            path = section.name
            self.document.choose(path, part)
        self.outline.select(path)
        self.context.message(f"{entry.name} is in the recipe.", self.document.stack.undo)

    def try_part(self, part: str) -> None:
        """Opens the smallest recipe that shows a part at work."""
        catalog: Catalog = self.context.catalog
        entry = catalog.parts.get(part)
        trial = trial_of(entry, catalog, blank(catalog)) if entry is not None else None
        if entry is None or trial is None:
            return
        self.document.open(trial.text(), None, f"Try {entry.name}")
        section = section_of(entry.kind)
        if section is not None:
            self.outline.select(f"{section.name}.0" if section.many else section.name)
        self.context.message(f"A small recipe with {entry.name}.", self.document.stack.undo)

    def take_text(self, text: str, name: Any = None) -> None:
        """Another recipe's text takes the place of this one, under the name that it is known by."""
        text = _named(text, str(name or ""))
        self.document.open(text, None, f"Open {name or 'a recipe'}")
        self.context.message(f"{name or 'The recipe'} is open.", self.document.stack.undo)

    def open_file(self, path: Path) -> None:
        """Reads a recipe file, off the GUI thread."""

        def opened(text: str) -> None:
            self.document.open(text, path, f"Open {path.name}")
            self.context.message(f"{path.name} is open.", self.document.stack.undo)

        self.context.worker.ask(
            lambda _: Recipe.load(path).text(), opened, failed=lambda e: self._complain(str(e)), owner=self
        )

    # -- building ----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        forms = form_context(self.context, paths=self._paths, sites=lambda: self.previewer.sites, judge=self._judge)
        self.outline = Outline(self.document, self.context.theme)
        self.pane = PartPane(self.document, forms, CatalogState(self.context))
        self.toml = TomlPane(self.document, self.context.theme)
        self.outline.selected.connect(self._select)
        self.outline.asked.connect(self._asked)
        self.pane.said.connect(self._complain)
        self.outline.setMinimumWidth(190)
        columns = self.splitter("columns", self.outline, self.pane, self._preview_tabs(), sizes=[230, 430, 520])
        for index, stretch in enumerate((0, 2, 3)):
            columns.setStretchFactor(index, stretch)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self._bar())
        column.addWidget(columns, 1)
        self.setAcceptDrops(True)

    def _preview_tabs(self) -> QWidget:
        self.problems = ProblemsPanel(self.document)
        self.problems.picked.connect(self._go_to_problem)
        self.model = ModelPanel()
        self.schedule = SchedulePanel(self.context)
        self.data = DataPanel(self.context)
        self.order = OrderPanel(self.document)
        self.difference = DifferencePanel(self.document)
        self.tabs = QTabWidget()
        self.tabs.setDocumentMode(True)
        self.tabs.tabBar().setDrawBase(False)
        self.tabs.tabBar().setAccessibleName("Preview of the recipe")
        self.tabs.tabBar().setExpanding(False)
        pages = {
            "TOML": self.toml, "Problems": self.problems, "Model": self.model, "Schedule": self.schedule,
            "Data": self.data, "Order": self.order, "Difference": self.difference,
        }  # fmt: skip
        for name, page in pages.items():
            self.tabs.addTab(page, name)
        for panel in (self.model, self.schedule, self.data, self.order):
            self.previewer.answered.connect(panel.show_answer)
        self.preview_state = label("", "small")
        self.preview_state.setContentsMargins(SPACE_M, 2, SPACE_M, 4)
        self.previewer.state_changed.connect(self.preview_state.setText)
        side = QWidget()
        column = QVBoxLayout(side)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self.tabs, 1)
        column.addWidget(self.preview_state)
        side.setMinimumWidth(320)
        return side

    def _bar(self) -> QWidget:
        bar = QWidget()
        bar.setProperty("role", "bar")
        row = QHBoxLayout(bar)
        row.setContentsMargins(SPACE_M, SPACE_S, SPACE_M, SPACE_S)
        row.setSpacing(SPACE_S)
        self.name = label("", "head")
        self.file = label("", "muted")
        row.addWidget(self.name)
        row.addWidget(self.file)
        row.addSpacing(SPACE_M)
        self.tools: dict[str, QToolButton] = {}
        self.new_menu = QMenu(self)
        self.new_menu.aboutToShow.connect(self._fill_new_menu)
        for name, words, run in (
            ("plus", "New recipe, or one to start from", None),
            ("folder", "Open a recipe file", self._ask_open),
            ("download", "Save the recipe to a file", self.save_file),
            ("undo", "Undo", self.document.stack.undo),
            ("redo", "Redo", self.document.stack.redo),
        ):
            row.addWidget(self._tool(name, words, run))
        self.reason = OneLine()
        self.reason.setObjectName("why-not")
        self.seeds = QLineEdit()
        self.seeds.setFixedWidth(110)
        self.seeds.setAccessibleName("Seeds")
        self.seeds.setToolTip("One run for each seed: 0, 1, 2 or 0-4. Empty: the recipe's own seed.")
        self.seeds.textChanged.connect(self._show_train)
        self.train_button = button("Train", self.train, "primary")
        row.addWidget(self.reason, 1)
        row.addWidget(label("Seeds", "muted"))
        row.addWidget(self.seeds)
        row.addWidget(self.train_button)
        return bar

    def _tool(self, name: str, words: str, run: Any) -> QToolButton:
        tool = QToolButton()
        tool.setIconSize(QSize(18, 18))
        tool.setToolTip(words)
        tool.setAccessibleName(words)
        if run is None:
            tool.setMenu(self.new_menu)
            tool.setPopupMode(QToolButton.ToolButtonPopupMode.InstantPopup)
        else:
            tool.clicked.connect(lambda _checked=False: run())
        self.tools[name] = tool
        return tool

    def _bind(self) -> None:
        stack = self.document.stack
        stack.canUndoChanged.connect(self._show_history)
        stack.canRedoChanged.connect(self._show_history)
        stack.indexChanged.connect(self._show_history)
        self.bind("recipe.new", lambda: self.new(None))
        self.bind("recipe.open", self._ask_open)
        self.bind("recipe.save", self.save_file)
        self.bind("recipe.train", self.train, self.can_train)
        self.bind("recipe.undo", stack.undo, stack.canUndo)
        self.bind("recipe.redo", stack.redo, stack.canRedo)
        self._show_history()

    def _restyle(self) -> None:
        for name, tool in self.tools.items():
            tool.setIcon(icon(self.context.theme, name))
        self.outline.viewport().update()

    # -- showing -----------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        path = self.document.path
        self.name.setText(self.document.recipe.name or "Untitled recipe")
        changed = " · changed" if self.document.modified else ""
        self.file.setText((path.name if path else "not in a file yet") + changed)
        self.file.setToolTip(str(path) if path else "")
        if self.loaded:
            self._autosave.start()
        self._show_train()

    def _show_history(self, _index: Any = None) -> None:
        stack = self.document.stack
        for name, can, text in (
            ("undo", stack.canUndo(), stack.undoText()),
            ("redo", stack.canRedo(), stack.redoText()),
        ):
            self.tools[name].setEnabled(can)
            self.tools[name].setToolTip(f"{name.capitalize()}: {text}" if text else name.capitalize())

    def _show_train(self) -> None:
        reason = self.why_not()
        sweep = any(self.document.get(name) is not None for name in PLANS)
        self.train_button.setEnabled(not reason)
        self.train_button.setText("Start the sweep" if sweep else "Train")
        self.train_button.setToolTip(reason or "Puts the recipe into the queue (Ctrl+Return).")
        self.train_button.setAccessibleDescription(reason)
        self.seeds.setPlaceholderText(str(self.document.recipe.seed))
        self.reason.setText(reason)
        self.reason.setToolTip(reason)
        count = len(self.document.problems)
        self.tabs.setTabText(1, f"Problems {count}" if count else "Problems")

    def _select(self, path: str) -> None:
        self.pane.show_path(path)
        self.toml.go_to(path)

    def _asked(self, what: str, path: str) -> None:
        if what == "choose":
            self.pane.open_chooser()
        elif path == PHASES and self._readable():
            self.outline.select(self.document.add_phase())
        elif self._readable():
            self._open_adder(path)

    def _open_adder(self, section: str) -> None:
        catalog: Catalog = self.context.catalog
        kind = BY_NAME[section].kind
        chooser = Chooser(catalog.of_kind(kind), kind, None, self.outline)
        chooser.chosen.connect(lambda use: self._add(section, use))
        self._judge(section, chooser)
        chooser.open_at(self.outline)

    def _judge(self, section: str, chooser: Chooser) -> None:
        """Has the engine say which parts the section cannot take; the popup need not wait for it."""
        question = Question(self.context, JUDGE_PATIENCE_S, chooser)
        question.answered.connect(lambda answer: chooser.show_reasons(answer.get("reasons", {})))
        text = self.document.text
        question.ask(lambda engine: engine.fits(text, section))

    def _add(self, section: str, use: str) -> None:
        path = self.document.add(section, use)
        self.outline.select(path)
        self.outline.setFocus()

    def _go_to_problem(self, path: str) -> None:
        keys = path.split(".")
        section = BY_NAME.get(keys[0])
        listed = keys[0] == PHASES or (section is not None and section.many)
        self.outline.select(".".join(keys[:2]) if listed else keys[0] if section else "")
        self.toml.go_to(path)

    def _paths(self) -> list[str]:
        """The settings that a search may vary: numbers, words and switches of the whole recipe."""
        if self.context.catalog is None:
            return []
        filled = self.document.recipe.filled(self.context.catalog)
        skipped = ("name", "notes", "seed", *PLANS, "probes")
        return [
            path
            for path, value in flatten({k: v for k, v in filled.items() if k not in skipped}).items()
            if value is not None and path.rpartition(".")[2] not in RESERVED
        ]

    # -- training ----------------------------------------------------------------------------------------------------

    def why_not(self) -> str:
        """Why it cannot be trained now; nothing where it can."""
        problems = self.document.problems
        if self.context.catalog is None and self.context.catalog_error:
            return "The catalog of parts could not be read."
        if self.context.catalog is None or not self.loaded:
            return "The catalog of parts is being read."
        if problems:
            more = f" And {len(problems) - 1} more." if len(problems) > 1 else ""
            first = str(problems[0])
            return f"{first if problems[0].path else first[:1].upper() + first[1:]}{more}"
        if self.chosen_seeds() is None:
            return "Seeds are whole numbers such as 0, 1, 2 or 0-4."
        return ""

    def can_train(self) -> bool:
        return not self.why_not()

    def chosen_seeds(self) -> list[int] | None:
        """The seeds beside the button; the recipe's own where none is written; None where they cannot be read."""
        return read_seeds(self.seeds.text(), self.document.recipe.seed)

    def train(self) -> None:
        """Puts the recipe into the queue, once for each seed, and goes to its run."""
        self.toml.take()
        seeds = self.chosen_seeds()
        if self._training or not self.can_train() or seeds is None:
            return
        self._training = True
        text, calls = self.document.recipe.text(), self.previewer.calls

        def queue(allow: Sequence[Contact]) -> None:
            self._queue(text, seeds, allow)

        ask_first(self.context, self, text, calls, queue, self._not_queued)

    def _not_queued(self, error: Exception | None) -> None:
        self._training = False
        if error is not None:
            self._complain(str(error))

    def _queue(self, text: str, seeds: list[int], allow: Sequence[Contact]) -> None:
        name = self.document.recipe.name
        sweep = any(self.document.get(name) is not None for name in PLANS)

        def queued(runs: list[str]) -> None:
            self._training = False
            what = name or "The recipe"
            self.context.message(f"{what} is in the queue" + (f", {len(runs)} runs." if len(runs) > 1 else "."))
            self.context.go("sweep" if sweep else "runs", run=runs[0])

        self.context.engine.ask(
            lambda engine: [engine.queue(text, seed=seed, allow=allow) for seed in seeds],
            queued,
            failed=self._not_queued,
            owner=self,
        )

    # -- files -------------------------------------------------------------------------------------------------------

    def new(self, starter: Path | None) -> None:
        """A blank recipe, or a copy of one to start from; undo brings the old one back."""
        if starter is None:
            text = blank(self.context.catalog).text()
            self.document.open(text, None, "New recipe")
            self.context.message("A new recipe.", self.document.stack.undo)
            return

        def opened(text: str) -> None:
            self.document.open(text, None, f"Start from {starter.stem}")
            self.context.message("A recipe to start from.", self.document.stack.undo)

        self.context.worker.ask(
            lambda _: Recipe.load(starter).text(), opened, failed=lambda e: self._complain(str(e)), owner=self
        )

    def save_file(self) -> None:
        """Writes the recipe to its file, and asks for one where it has none."""
        self.toml.take()
        if self.document.path is not None:
            self._save_to(self.document.path)
            return
        stem = re.sub(r"[^\w-]+", "-", self.document.recipe.name.lower()).strip("-") or "recipe"
        dialog = self._dialog("Save the recipe", str(self.context.workspace.folder / f"{stem}.toml"))
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setFileMode(QFileDialog.FileMode.AnyFile)
        dialog.setDefaultSuffix("toml")
        dialog.fileSelected.connect(lambda name: self._save_to(Path(name)))
        dialog.open()

    def _save_to(self, path: Path) -> None:
        text = self.document.text

        def saved(_: Any) -> None:
            if self.document.text == text:
                self.document.mark_saved(path)
            self._keep_path()
            self.context.message(f"Saved to {path}.")

        self.context.worker.ask(
            lambda _: _write(path, text), saved, failed=lambda e: self._complain(str(e)), owner=self
        )

    def _ask_open(self) -> None:
        start = self.document.path.parent if self.document.path else self.context.workspace.folder
        dialog = self._dialog("Open a recipe", str(start))
        dialog.setFileMode(QFileDialog.FileMode.ExistingFile)
        dialog.fileSelected.connect(lambda name: self.open_file(Path(name)))
        dialog.open()

    def _dialog(self, title: str, where: str) -> QFileDialog:
        dialog = QFileDialog(self, title, where, "Recipes (*.toml);;All files (*)")
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        return dialog

    def _fill_new_menu(self) -> None:
        self.new_menu.clear()
        self.new_menu.addAction("Blank recipe", lambda: self.new(None))
        starters = sorted(STARTERS.glob("*.toml")) if STARTERS.is_dir() else []
        if starters:
            self.new_menu.addSeparator()
        for path in starters:
            self.new_menu.addAction(path.stem.replace("-", " ").capitalize(), partial(self.new, path))

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if _dropped(event) is not None:
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        path = _dropped(event)
        if path is not None:
            event.acceptProposedAction()
            self.open_file(path)

    # -- start and draft ---------------------------------------------------------------------------------------------

    def _read_start(self, _: Any) -> tuple[str, Path | None, str | None] | None:
        """What the place opens with, read off the GUI thread: the draft, else the recipe to start from."""
        folder: Path = self.context.workspace.folder
        stored = str(self.context.settings.value("recipe/path") or "")
        path = Path(stored) if stored else None
        draft = folder / DRAFT
        if draft.is_file():
            saved = path.read_text(encoding="utf-8") if path is not None and path.is_file() else None
            return draft.read_text(encoding="utf-8"), path if saved is not None else None, saved
        starter = STARTERS / "start.toml"
        return (starter.read_text(encoding="utf-8"), None, None) if starter.is_file() else None

    def _start(self, found: tuple[str, Path | None, str | None] | None) -> None:
        if found is not None:
            self.document.start(*found)
            self._ready()
        elif self.context.catalog is not None:
            self.document.start(blank(self.context.catalog).text())
            self._ready()
        else:
            self._blank_start = True  # there is nothing to open with; the catalog says what a blank recipe is

    def _ready(self) -> None:
        self.loaded = True
        self._changed()
        self._show_waiting()

    def _catalog_ready(self, catalog: Catalog) -> None:
        self.pane.context.catalog = catalog
        self.document.set_catalog(catalog)
        self.pane.refresh()
        self.outline.lines.rebuild()
        if self._blank_start and not self.loaded:
            self._start(None)
        self._show_waiting()

    def _show_waiting(self) -> None:
        if self.loaded and self.context.catalog is not None:
            waiting, self._waiting = self._waiting, []
            for what in waiting:
                self.opened(**what)

    def _write_draft(self) -> None:
        text, path = self.document.text, self.context.workspace.folder / DRAFT
        self.context.worker.ask(
            lambda _: _write(path, text), key="recipe-draft", failed=lambda e: self._complain(str(e)), owner=self
        )
        self._keep_path()

    def _keep_path(self) -> None:
        self.context.settings.setValue("recipe/path", str(self.document.path or ""))

    def _readable(self) -> bool:
        if self.document.broken is None and self.context.catalog is not None:
            return True
        self._complain("The recipe's text cannot be read. Mend it first, in the tab TOML.")
        return False

    def _complain(self, sentence: str) -> None:
        self.context.message(sentence, level="error")


class OneLine(QLabel):
    """Words at the right end of one line, cut with an ellipsis where they do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setPen(self.palette().color(QPalette.ColorRole.PlaceholderText))
        cut = self.fontMetrics().elidedText(self.text(), Qt.TextElideMode.ElideRight, self.width())
        painter.drawText(self.rect(), int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter), cut)


def read_seeds(text: str, own: int) -> list[int] | None:
    """'0, 1, 2' or '0-4' as numbers; the recipe's own where nothing is written; None where it says no seeds."""
    if not text.strip():
        return [own]
    seeds: list[int] = []
    for word in re.split(r"[,\s]+", text.strip().strip(",")):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        if not found:
            return None
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or last - first >= MOST_SEEDS or last >= 2**63:
            return None
        seeds += [seed for seed in range(first, last + 1) if seed not in seeds]
    return seeds if len(seeds) <= MOST_SEEDS else None


def _named(text: str, name: str) -> str:
    """The recipe's text with this name in it; as it is where it cannot be read or no name is given."""
    try:
        recipe = Recipe.parse(text)
    except RecipeError:
        return text
    if not name or recipe.name == name:
        return text
    recipe.set("name", name)
    return recipe.text()


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise AthanorError(f"{path} could not be written: {reason}. Save it somewhere else.") from error


def _dropped(event: QDragEnterEvent | QDropEvent) -> Path | None:
    """The TOML file that is dropped, if it is one."""
    for url in event.mimeData().urls():
        if url.isLocalFile() and url.toLocalFile().endswith(".toml"):
            return Path(url.toLocalFile())
    return None
