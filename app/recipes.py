"""The recipe that is being edited: one document, its undo history and what is wrong with it. Knows no widget."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomlkit
from PySide6.QtCore import QObject, Signal
from PySide6.QtGui import QUndoCommand, QUndoStack

from engine.catalog import Catalog, Entry
from engine.errors import Problem, RecipeError
from engine.recipe import BY_NAME, PHASES, PLANS, SECTIONS, Difference, Recipe, Section, merge

RECIPE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "title": "name", "default": "", "description": "What runs of it are called."},
        "seed": {
            "type": "integer",
            "title": "seed",
            "default": 0,
            "minimum": 0,
            "description": "Where all of its random numbers start. The same seed gives the same run.",
        },
        "notes": {
            "type": "string",
            "title": "notes",
            "default": "",
            "x-lines": True,
            "description": "What the recipe is for, in your own words.",
        },
    },
}
INLINE_WIDTH = 72
HEADING = re.compile(r"\[{1,2}[A-Za-z]")


@dataclass(frozen=True)
class State:
    """Everything that undo brings back: the text as it stands, the file it belongs to, and what was last saved."""

    text: str
    path: Path | None = None
    saved: str = ""


class RecipeDocument(QObject):
    """The edited recipe. Every change goes through here, can be undone, and is checked at once.

    While the text is not TOML, `broken` says why and `recipe` stays the last one that could be read.
    """

    changed = Signal()  # the text, the file or what was saved
    checked = Signal()  # the problems; also sent after every change
    refused = Signal(str)  # a change that cannot be made now, with the reason

    def __init__(self, catalog: Catalog | None = None, parent: QObject | None = None):
        super().__init__(parent)
        self.stack = QUndoStack(self)
        self.catalog = catalog
        self.recipe = Recipe.parse("")
        self.broken: Problem | None = None
        self.problems: list[Problem] = []
        self._state = State("")
        self._deep: tuple[str, list[Problem]] = ("", [])
        self._settled = True
        self._last_key = ""
        self._plain: dict[str, Any] | None = None
        self._saved: tuple[str, Recipe] | None = None  # the saved text, read
        self._differences: list[Difference] | None = None

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        return self._state.text

    @property
    def path(self) -> Path | None:
        """The file that it was opened from or saved to."""
        return self._state.path

    @property
    def plain(self) -> dict[str, Any]:
        """The recipe as plain data, read once after each change."""
        if self._plain is None:
            self._plain = self.recipe.document
        return self._plain

    @property
    def modified(self) -> bool:
        """Whether it differs from what was last opened or saved."""
        return self._state.text != self._state.saved

    def get(self, path: str, default: Any = None) -> Any:
        """The plain value at a path."""
        here: Any = self.plain
        for key in path.split(".") if path else ():
            if isinstance(here, list) and key.isdigit() and int(key) < len(here):
                here = here[int(key)]
            elif isinstance(here, Mapping) and key in here:
                here = here[key]
            else:
                return default
        return here

    def use(self, path: str) -> str | None:
        """The part that a section, or an item of a list, names; the catalog's default where it names none."""
        value = self.get(path)
        if isinstance(value, Mapping):
            use = value.get("use")
            return use if isinstance(use, str) else None
        section = BY_NAME.get(path)
        optional = section is None or not section.kind or path in PLANS
        return None if optional or self.catalog is None or section is None else self.catalog.default(section.kind)

    def entry(self, path: str) -> Entry | None:
        """The catalog's entry of the part at a path."""
        use = self.use(path)
        return self.catalog.parts.get(use) if self.catalog is not None and use is not None else None

    def problems_at(self, path: str) -> list[Problem]:
        """The problems at a path and below it."""
        return [p for p in self.problems if p.path == path or p.path.startswith(f"{path}.")]

    def differences(self) -> list[Difference]:
        """What differs from the saved text; nothing where one of the two cannot be read."""
        if self._differences is None:
            try:
                if self._saved is None or self._saved[0] != self._state.saved:
                    self._saved = (self._state.saved, Recipe.parse(self._state.saved))
                self._differences = self.recipe.difference(self._saved[1])
            except RecipeError:
                self._differences = []
        return self._differences

    # -- changes ---------------------------------------------------------------------------------------------------

    def set(self, path: str, value: Any) -> None:
        """Writes one setting. Changes of one setting that follow each other are one step of undo."""
        nested = isinstance(value, Mapping | list) and path not in BY_NAME
        written = _inline(value) if nested else value
        words = f"Change {_words(path)}"
        self.edit(words, lambda recipe: recipe.set(path, written), key=path)

    def remove(self, path: str) -> None:
        """Takes one setting away, so that its default holds."""
        self.edit(f"Reset {_words(path)}", lambda recipe: recipe.remove(path), key=path)

    def choose(self, path: str, use: str) -> None:
        """Puts another part at a path, keeping the settings that it takes as well."""
        catalog = self._catalog()
        name = catalog.parts[use].name
        self.edit(f"Choose {name}", lambda recipe: recipe.choose(path, use, catalog))

    def add(self, section: str, use: str, index: int | None = None) -> str:
        """Adds a part to a list section; returns its path."""
        at = len(self.get(section, [])) if index is None else index
        name = self._catalog().parts[use].name
        self.edit(f"Add {name}", lambda recipe: recipe.insert_part(section, at, {"use": use}))
        return f"{section}.{at}"

    def add_phase(self) -> str:
        """Adds a phase after the others; returns its path."""
        names = [phase.get("name") for phase in self.get(PHASES, []) if isinstance(phase, Mapping)]
        number = next(n for n in range(len(names) + 1, 2 * len(names) + 2) if f"phase {n}" not in names)
        phase = {"name": f"phase {number}", "budget": _inline({"epochs": 5})}
        self.edit("Add a phase", lambda recipe: recipe.insert_part(PHASES, len(names), phase))
        return f"{PHASES}.{len(names)}"

    def take(self, path: str) -> None:
        """Takes a whole part out: an item of a list, or an optional section."""
        entry = self.entry(path)
        self.edit(f"Take {entry.name if entry else _words(path)} out", lambda recipe: recipe.remove(path))

    def move(self, section: str, index: int, to: int) -> None:
        """Moves an item of a list section."""
        if index != to:
            self.edit("Change the order", lambda recipe: recipe.move_part(section, index, to))

    def enable(self, path: str, on: bool) -> None:
        """Switches an item of a list section on or off; it keeps its settings."""
        entry = self.entry(path)
        words = f"Switch {entry.name if entry else _words(path)} {'on' if on else 'off'}"
        if on:
            self.edit(words, lambda recipe: recipe.remove(f"{path}.enabled"))
        else:
            self.edit(words, lambda recipe: recipe.set(f"{path}.enabled", False))

    def apply(self, patch: Mapping[str, Any], words: str) -> None:
        """Lays a recipe patch over the document; tables merge, other values replace."""

        def lay(recipe: Recipe) -> None:
            for path, value in _leaves(patch, recipe.document):
                recipe.set(path, value)

        self.edit(words, lay)

    def edit_text(self, text: str) -> None:
        """Takes the whole text as a person typed it, also while it is not TOML."""
        self._push("Edit the text", replace(self._state, text=text), "text")

    def drop_broken(self) -> None:
        """Goes back to the last text that could be read."""
        self._push("Drop the unreadable text", replace(self._state, text=self.recipe.text()))

    def open(self, text: str, path: Path | None, words: str, saved: str | None = None) -> None:
        """Puts another recipe in the place of this one; undo brings the old one back."""
        self._push(words, State(text, path, text if saved is None else saved))

    def start(self, text: str, path: Path | None = None, saved: str | None = None) -> None:
        """The same without a step of undo: what the window opens with."""
        self.stack.clear()
        self._take_state(State(text, path, text if saved is None else saved))

    def mark_saved(self, path: Path) -> None:
        """The present text now lies in a file."""
        self._take_state(replace(self._state, path=path, saved=self._state.text))

    def settle(self) -> None:
        """What follows is a step of undo of its own: the field was left."""
        self._settled = True

    def edit(self, words: str, change: Callable[[Recipe], None], key: str = "") -> None:
        """Carries out a change of the recipe. With a key, it joins the step before of the same key.

        While the text cannot be read it is refused: what was typed there would be lost.
        """
        if self.broken is not None:
            self.refused.emit("The recipe's text cannot be read. Mend it first, in the tab TOML.")
            return
        recipe = Recipe.parse(self.recipe.text())
        change(recipe)
        text = _tidied(recipe)
        if text != self._state.text:
            self._push(words, replace(self._state, text=text), key)

    # -- checks ----------------------------------------------------------------------------------------------------

    def set_catalog(self, catalog: Catalog) -> None:
        """The catalog has arrived, or is a new one."""
        self.catalog = catalog
        self.check()

    def add_problems(self, text: str, problems: Sequence[Problem]) -> None:
        """What the engine found wrong by building the parts; forgotten when the text changes."""
        self._deep = (text, list(problems))
        self.check()

    def check(self) -> None:
        """Finds every problem of the present text."""
        if self.broken is not None:
            self.problems = [self.broken]
        else:
            found = self.recipe.check(self.catalog) if self.catalog is not None else []
            known = {(p.path, p.message) for p in found}
            text, deep = self._deep
            further = [p for p in deep if (p.path, p.message) not in known] if text == self._state.text else []
            self.problems = [*found, *further]
        self.checked.emit()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _catalog(self) -> Catalog:
        if self.catalog is None:
            raise RecipeError([Problem("", None, "the catalog of parts is still being read; try again in a moment.")])
        return self.catalog

    def _push(self, words: str, state: State, key: str = "") -> None:
        joins = bool(key) and key == self._last_key and not self._settled
        self._last_key, self._settled = key, False
        self.stack.push(_Edit(self, words, self._state, state, joins))

    def _take_state(self, state: State) -> None:
        self._state = state
        self._plain = self._differences = None
        try:
            self.recipe = Recipe.parse(state.text)
            self.broken = None
        except RecipeError as error:
            self.broken = error.problems[0]
        self.check()
        self.changed.emit()


class _Edit(QUndoCommand):
    """One step of undo: the state before and after."""

    def __init__(self, document: RecipeDocument, words: str, before: State, after: State, joins: bool):
        super().__init__(words)
        self.document, self.before, self.after, self.joins = document, before, after, joins
        self.first = True

    def id(self) -> int:
        return 1

    def mergeWith(self, other: QUndoCommand) -> bool:
        if not (isinstance(other, _Edit) and other.joins):
            return False
        self.after = other.after
        return True

    def redo(self) -> None:
        if not self.first:
            self.document.settle()
        self.first = False
        self.document._take_state(self.after)

    def undo(self) -> None:
        self.document.settle()
        self.document._take_state(self.before)


def blank(catalog: Catalog | None) -> Recipe:
    """The smallest recipe: the catalog's default part in each section that must have one."""
    document: dict[str, Any] = {"name": "", "seed": 0}
    for section in SECTIONS:
        default = catalog.default(section.kind) if catalog is not None and section.required else None
        if default:
            document[section.name] = {"use": default}
    return Recipe.of(document)


def section_of(kind: str) -> Section | None:
    """The section of a recipe that takes parts of a kind, if one does."""
    return next((section for section in SECTIONS if section.kind and section.kind == kind), None)


def trial_of(entry: Entry, catalog: Catalog, base: Recipe) -> Recipe | None:
    """The smallest change of a recipe that shows a part at work: the part, and its own example laid over it."""
    section = section_of(entry.kind)
    document = base.document
    if section is not None:
        part: Any = {"use": entry.id}
        document = merge(document, {section.name: [part] if section.many else part})
    elif not entry.example:
        return None
    document = merge(document, entry.example)
    return Recipe.of({**document, "name": f"try {entry.name}"})


def _leaves(patch: Mapping[str, Any], document: Any, path: str = "") -> list[tuple[str, Any]]:
    """The writes that lay a patch over a document: a table that names another part is written whole."""
    writes = []
    for key, value in patch.items():
        here = f"{path}.{key}" if path else str(key)
        old = document.get(key) if isinstance(document, Mapping) else None
        tables = isinstance(value, Mapping) and isinstance(old, Mapping)
        same = tables and value.get("use", (old or {}).get("use")) == (old or {}).get("use")
        if same or (isinstance(value, Mapping) and old is None and not path and "use" not in value):
            writes += _leaves(value, old, here)
        else:
            writes.append((here, dict(value) if isinstance(value, Mapping) else value))
    return writes


def _inline(value: Any) -> Any:
    """Tables inside a section in one line, where they fit one; TOML's own form where they do not."""
    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        for key, item in value.items():
            table.append(key, _inline(item))
        return table if len(table.as_string()) <= INLINE_WIDTH else dict(value)
    if isinstance(value, list):
        array = tomlkit.array()
        for item in value:
            array.append(_inline(item))
        if len(array.as_string()) > INLINE_WIDTH:
            array.multiline(True)
        return array
    return value


def _tidied(recipe: Recipe) -> str:
    """The recipe's text with an empty line above each heading; unchanged where that would change what it says."""
    text = recipe.text()
    lines: list[str] = []
    for line in text.split("\n"):
        # A comment right above a heading belongs to it.
        if HEADING.match(line) and lines and lines[-1].strip() and not lines[-1].lstrip().startswith("#"):
            lines.append("")
        lines.append(line)
    tidy = "\n".join(lines)
    if tidy == text:
        return text
    try:
        return tidy if Recipe.parse(tidy).document == recipe.document else text
    except RecipeError:
        return text


def _words(path: str) -> str:
    """A path as words: 'optimizer.weight_decay' is 'weight decay of optimizer'."""
    *parents, last = [key for key in path.split(".") if not key.isdigit()] or [path]
    return last.replace("_", " ") + (f" of {parents[0]}" if parents else "")
