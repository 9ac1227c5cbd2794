"""The plan of a sweep: the recipe it starts from, the search or the study, and how many runs that makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QFileDialog, QHBoxLayout, QVBoxLayout, QWidget

from app.choice import Choice
from app.forms.around import form_context
from app.forms.pane import PartPane
from app.forms.previews import Previewer
from app.places import Context, button, label
from app.recipes import RecipeDocument
from app.theme import SPACE_M, SPACE_S
from engine import comparison
from engine.catalog import Catalog
from engine.errors import RecipeError
from engine.recipe import BY_NAME, PLANS, Recipe, flatten
from engine.settings import RESERVED
from engine.workspace import RESOURCES

BUILDER, FILE, GIVEN = "builder", "file", "given"
NOT_VARIED = ("name", "notes", *PLANS, "probes")


class Plan(QWidget):
    """Left column of the sweep place. `started` carries the recipe with its search or study."""

    started = Signal(str)

    def __init__(self, context: Context):
        super().__init__()
        self.context = context
        self.document = RecipeDocument(context.catalog, self)
        self.previewer = Previewer(context, self.document, self)
        self._given = ("", "")
        forms = form_context(context, paths=self.paths, sites=lambda: self.previewer.sites)
        self.base = Choice(
            "Recipe that the sweep starts from", "Every run of the sweep is this recipe with other settings."
        )
        self.base.chosen.connect(self._base_chosen)
        self.about = label("", "small", wrap=True)
        self.kind = Choice("What the sweep does", "A search looks for the best settings; a study answers a question.")
        self.kind.chosen.connect(self._kind_chosen)
        self.pane = PartPane(self.document, forms)
        self.pane.show_path(self.section)
        self._kept: dict[str, Any] = {}  # the section of the other kind, should the person come back to it
        self._runs: tuple[str, int | None] = ("", None)  # a text, and how many runs the engine says it makes
        self.pane.said.connect(lambda text: context.message(text, level="error"))
        self.count = label("", "muted", wrap=True)
        self.problem = label("", "bad", wrap=True, selectable=True)
        self.start = button("Start the sweep", self._start, "primary")
        self._build()
        self.document.changed.connect(self._show)
        self.document.checked.connect(self._show)
        self.previewer.answered.connect(self._counted)
        context.catalog_ready.connect(self._take_catalog)
        self._offer()
        self._show()
        if context.catalog is not None:
            self.read_base()

    def _build(self) -> None:
        head = QVBoxLayout()
        head.setContentsMargins(SPACE_M, SPACE_M, SPACE_M, 0)
        head.setSpacing(SPACE_S)
        head.addWidget(label("START FROM", "section"))
        head.addWidget(self.base)
        head.addWidget(self.about)
        head.addWidget(self.kind)
        foot = QVBoxLayout()
        foot.setContentsMargins(SPACE_M, SPACE_S, SPACE_M, SPACE_M)
        foot.setSpacing(SPACE_S)
        foot.addWidget(self.count)
        foot.addWidget(self.problem)
        row = QHBoxLayout()
        row.addWidget(self.start)
        row.addStretch()
        foot.addLayout(row)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addLayout(head)
        column.addWidget(self.pane, 1)
        column.addLayout(foot)

    # -- the base ----------------------------------------------------------------------------------------------------

    def _offer(self) -> None:
        found = [(BUILDER, "the recipe in the builder")]
        if self._given[1]:
            found.insert(0, (GIVEN, self._given[0]))
        folder = RESOURCES / "recipes"
        found += [(str(path), path.stem.replace("-", " ")) for path in sorted(folder.glob("*.toml"))]
        self.base.offer([*found, (FILE, "a file …")])

    def take(self, text: str, name: str) -> None:
        """Plans a sweep of a recipe that somebody brought."""
        self._given = (name or Recipe.parse(text).name or "the recipe you brought", text)
        self._offer()
        self.base.choose(GIVEN)
        self.read_base()

    def _base_chosen(self, key: str) -> None:
        if key == FILE:
            name, _ = QFileDialog.getOpenFileName(self, "Start from a recipe file", "", "Recipes (*.toml)")
            if name:
                self._read(lambda _: Recipe.load(Path(name)).text())
            return
        self.read_base()

    def read_base(self) -> None:
        """Reads the chosen recipe, off the GUI thread. The search or the study stays as it is."""
        key = self.base.key
        if key == GIVEN:
            self._lay(self._given[1])
        elif key == BUILDER:
            self._read(self._read_builder)
        elif key and key != FILE:
            self._read(lambda _: Recipe.load(Path(key)).text())

    def _read_builder(self, _: Any) -> str:
        from app.places.recipe import DRAFT, STARTERS

        for path in (self.context.workspace.folder / DRAFT, STARTERS / "start.toml"):
            if path.is_file():
                return Recipe.load(path).text()
        return ""

    def _read(self, work: Callable[[Any], str]) -> None:
        self.context.worker.ask(
            work, self._lay, key="sweep-base", owner=self, failed=lambda e: self.context.message(str(e), level="error")
        )

    def _lay(self, text: str) -> None:
        """Puts a base under the search or the study; its own counts where it has one."""
        catalog = self.document.catalog
        if catalog is None:
            return
        try:
            recipe = Recipe.parse(text)
        except RecipeError as error:
            self.context.message(str(error), level="error")
            return
        name = self.section
        kept = self.document.get(name) or self._first(name)
        if not recipe.plan and kept:
            recipe.set(name, kept)
        self.document.open(recipe.text(), None, "Start from another recipe")
        self._offer_kinds()
        self.pane.show_path(self.section)

    def _first(self, name: str) -> dict[str, Any] | None:
        """The part that a section begins with; None where the catalog has none."""
        catalog = self.document.catalog
        parts = catalog.of_kind(BY_NAME[name].kind) if catalog is not None else []
        return {"use": catalog.default(name) or parts[0].id} if catalog is not None and parts else None

    @property
    def section(self) -> str:
        """Which of the sections that plan many runs the recipe has; the chosen one where it has none."""
        return next((name for name in PLANS if self.document.get(name) is not None), self.kind.key or PLANS[0])

    def _offer_kinds(self) -> None:
        catalog = self.document.catalog
        there = [name for name in PLANS if catalog is not None and catalog.of_kind(BY_NAME[name].kind)]
        self.kind.wanted = self.section
        self.kind.offer((name, f"{BY_NAME[name].title}: {BY_NAME[name].words}") for name in there)
        self.kind.setVisible(len(there) > 1)

    def _kind_chosen(self, name: str) -> None:
        """Puts the other kind of plan into the recipe."""
        before = self.section
        if name == before or self.document.catalog is None:
            return
        recipe = self.document.recipe.copy()
        self._kept[before] = recipe.get(before)
        recipe.remove(before)
        recipe.set(name, self._kept.get(name) or self._first(name))
        self.document.open(recipe.text(), None, f"Plan a {name}")
        self.pane.show_path(name)

    def _take_catalog(self, catalog: Catalog) -> None:
        self.pane.context.catalog = catalog
        self.document.set_catalog(catalog)
        self._offer_kinds()
        if not self.document.text:
            self.read_base()
        else:
            self.pane.refresh()

    # -- what it says ------------------------------------------------------------------------------------------------

    def paths(self) -> list[str]:
        """The settings that can be varied: numbers, words and switches of the whole recipe, the seed first."""
        if self.document.catalog is None:
            return []
        filled = self.document.recipe.filled(self.document.catalog)
        flat = flatten({key: value for key, value in filled.items() if key not in (*NOT_VARIED, "seed")})
        kept = [path for path, value in flat.items() if value is not None and path.rpartition(".")[2] not in RESERVED]
        return ["seed", *kept]

    def space(self) -> Mapping[str, Any]:
        """What the search varies: the setting that its form marks so."""
        entry = self.document.entry(self.section)
        fields = entry.schema.get("properties", {}) if entry else {}
        name = next((name for name, field in fields.items() if field.get("x-space")), None)
        value = self.document.get(f"{self.section}.{name}") if name else None
        return value if isinstance(value, Mapping) else {}

    @property
    def _varies(self) -> bool:
        """Whether the part takes a space of settings to vary: every search does."""
        entry = self.document.entry(self.section)
        return entry is not None and any(f.get("x-space") for f in entry.schema.get("properties", {}).values())

    def why_not(self) -> str:
        """Why it cannot start; nothing where it can."""
        if self.document.catalog is None:
            return "The catalog of parts is being read."
        if self.document.get(self.section) is None:
            return f"Choose a {self.section}."
        if self._varies and not self.space():
            return "Name at least one setting to vary."
        first = next(iter(self.document.problems), None)
        return str(first) if first else ""

    def _show(self) -> None:
        reason = self.why_not()
        self.start.setEnabled(not reason)
        self.start.setToolTip(reason)
        self.problem.setText(reason if self.space() or not self._varies else "")
        self.problem.setVisible(bool(self.problem.text()))
        self.about.setText(_about(self.document.plain))
        text, runs = self._runs
        known = f"{runs} run{'' if runs == 1 else 's'}" if runs is not None and text == self.document.text else ""
        self.count.setText(combinations(self.space()) or known)

    def _counted(self, answer: Mapping[str, Any]) -> None:
        self._runs = (self.document.text, answer.get("runs"))
        self._show()

    def _start(self) -> None:
        if not self.why_not():
            self.started.emit(self.document.text)


def _about(document: Mapping[str, Any]) -> str:
    """A recipe in a line: its parts and its budget."""
    parts = [str(v["use"]) for k, v in document.items() if isinstance(v, Mapping) and "use" in v and k not in PLANS]
    listed = document.get("techniques")
    techniques = (
        [str(each.get("use")) for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []
    )
    budget = document.get("budget")
    ends = [f"{value} {key}" for key, value in budget.items()] if isinstance(budget, Mapping) else []
    return " · ".join([*parts, *techniques, *ends])


def combinations(space: Mapping[str, Any]) -> str:
    """How many runs there can be."""
    if not space:
        return ""
    conditional = sum(isinstance(values, Mapping) and "when" in values for values in space.values())
    if conditional:
        return f"{conditional} of {len(space)} settings count only with certain values of others."
    if all(isinstance(values, list) for values in space.values()):
        count = math.prod(len(values) for values in space.values())
        sizes = " × ".join(str(len(values)) for values in space.values())
        return f"{count} combination{'' if count == 1 else 's'}" + (f" ({sizes})" if len(space) > 1 else "")
    ranges = sum(not isinstance(values, list) for values in space.values())
    return f"{ranges} of {len(space)} settings from a range: the search draws as many runs as its settings say."


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings one a line, as a recipe would name them."""
    return "\n".join(f"{path} = {comparison.text(value)}" for path, value in settings.items() if value is not None)
