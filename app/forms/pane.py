"""The middle of the recipe place: the part that is chosen in the outline, and the form of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QScrollArea, QSizePolicy, QVBoxLayout, QWidget

from app.forms.chooser import Chooser
from app.forms.fields import UNSET, FormContext
from app.forms.form import FORM_WIDTH, Form
from app.forms.parts import PartButton
from app.places import button, label
from app.recipes import RECIPE_SCHEMA, RecipeDocument
from app.theme import SPACE_M, SPACE_S
from engine.catalog import Catalog, Entry
from engine.errors import RecipeError
from engine.phases import SCHEMA as PHASE_SCHEMA
from engine.recipe import BY_NAME, PHASES
from engine.settings import a_kind

PHASE_WORDS = "A stretch of the run. Whatever it does not change is as in the recipe around it."


class PartPane(QWidget):
    """Header, summary and form of what is selected. Every change goes to the document."""

    said = Signal(str)  # a sentence for the status line

    def __init__(self, document: RecipeDocument, context: FormContext, waiting: QWidget | None = None):
        super().__init__()
        self.document = document
        self.context = context
        self.waiting = waiting or label("The catalog of parts is being read …", "muted")  # while there is no catalog
        self.path = ""
        self.form: Form | None = None
        self._form_of: tuple[str, str, int] | None = None
        self._build()
        document.checked.connect(self.refresh)

    def _build(self) -> None:
        self.title = label("", "section")
        self.chooser_button = PartButton()
        self.chooser_button.setObjectName("part-button")
        self.chooser_button.clicked.connect(self.open_chooser)
        self.card = button("About it", self._open_card, "link", "Opens its card in the library.")
        self.advice = button("Take its advice", self._take_advice, "link")
        self.out = button("Take it out", self._take_out, "link")
        self.summary = label("", "muted", wrap=True, selectable=True)
        self.banner = QWidget()
        banner = QVBoxLayout(self.banner)
        banner.setContentsMargins(0, 0, 0, 0)
        self.banner_words = label("The text cannot be read, so the forms wait.", "bad", wrap=True)
        banner.addWidget(self.banner_words)
        banner.addWidget(
            button("Go back to the last text that could be read", self.document.drop_broken),
            0,
            Qt.AlignmentFlag.AlignLeft,
        )
        links = QHBoxLayout()
        links.setSpacing(SPACE_S)
        for widget in (self.card, self.advice, self.out):
            links.addWidget(widget)
        links.addStretch(1)
        top = QWidget()
        top.setMaximumWidth(FORM_WIDTH + SPACE_M)
        head = QVBoxLayout(top)
        head.setContentsMargins(SPACE_M, SPACE_M, SPACE_M, 0)
        head.setSpacing(SPACE_S)
        for item in (self.waiting, self.banner, self.title, self.chooser_button, self.summary):
            head.addWidget(item)
        head.addLayout(links)
        inside = QWidget()
        self.holder = QVBoxLayout(inside)
        self.holder.setContentsMargins(SPACE_M - 11, SPACE_S, SPACE_M, SPACE_M)
        self.holder.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.area = QScrollArea()
        self.area.setWidgetResizable(True)
        self.area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.area.setWidget(inside)
        self.area.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(top)
        column.addWidget(self.area, 1)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        self.setMinimumWidth(300)

    def show_path(self, path: str) -> None:
        """Shows another line of the outline."""
        self.path = path
        self.document.settle()
        self.refresh()

    def refresh(self) -> None:
        """Brings everything in line with the document."""
        catalog = self.document.catalog
        self.waiting.setVisible(catalog is None)
        self.title.setVisible(catalog is not None)
        if catalog is None:
            for widget in (self.chooser_button, self.summary, self.card, self.advice, self.out, self.banner):
                widget.hide()
            return
        broken = self.document.broken is not None
        self.banner.setVisible(broken)
        section = BY_NAME.get(self.path.split(".")[0])
        kind = section.kind if section else ""
        entry = self.document.entry(self.path) if kind else None
        self._show_head(section, kind, entry)
        self._show_form(catalog, entry)
        self.area.setEnabled(not broken)
        for widget in (self.chooser_button, self.advice, self.out):
            widget.setEnabled(not broken)

    def _show_head(self, section: Any, kind: str, entry: Entry | None) -> None:
        phase = self.path.startswith(f"{PHASES}.")
        self.title.setText((section.title if section else "Phase" if phase else "Recipe").upper())
        self.chooser_button.setVisible(bool(kind))
        use = self.document.use(self.path) if kind else None
        chosen = self.document.get(self.path) is not None
        name = entry.name if entry else str(use) if use else f"Choose {a_kind(kind)}" if kind else ""
        self.chooser_button.show_part(name if chosen or not entry else f"{name} (the default)")
        self.chooser_button.setAccessibleName(f"{section.title if section else ''}: {name}. Choose another.")
        own = PHASE_WORDS if phase else "What the recipe is called and starts from."
        words = entry.summary if entry else section.words if section else own
        self.summary.setText(words)
        self.summary.show()
        self.card.setVisible(entry is not None)
        self.advice.setVisible(entry is not None and bool(entry.recommends))
        if entry is not None and entry.recommends:
            self.advice.setToolTip("Sets what it recommends: " + ", ".join(_paths(entry.recommends)) + ".")
        optional = section is not None and bool(section.kind) and not section.required
        self.out.setVisible(chosen and (optional or phase))

    def _show_form(self, catalog: Catalog, entry: Entry | None) -> None:
        schema: Mapping[str, Any] | None
        if entry is not None:
            schema = entry.schema
        else:
            schema = RECIPE_SCHEMA if self.path == "" else catalog.sections.get(self.path)
            if self.path.startswith(f"{PHASES}.") and self.document.get(self.path) is not None:
                schema = PHASE_SCHEMA
        wanted = (self.path, entry.id if entry else "", id(catalog)) if schema is not None else None
        if wanted != self._form_of:
            self._form_of = wanted
            self._replace_form(schema)
        if self.form is not None:
            values = self.document.get(self.path, {}) if self.path else self._own_values()
            at = self.document.problems_at(self.path) if self.path else self.document.problems
            self.form.show_values(values if isinstance(values, Mapping) else {}, at)

    def _own_values(self) -> dict[str, Any]:
        return {name: value for name, value in self.document.plain.items() if name in RECIPE_SCHEMA["properties"]}

    def _replace_form(self, schema: Mapping[str, Any] | None) -> None:
        if self.form is not None:
            self.holder.removeWidget(self.form)
            self.form.hide()
            self.form.deleteLater()
            self.form = None
        if schema is not None:
            self.form = Form(schema, self.path, self.context)
            self.form.edited.connect(self._edited)
            self.form.settled.connect(self.document.settle)
            self.holder.addWidget(self.form)
            self.area.verticalScrollBar().setValue(0)

    def _edited(self, path: str, value: Any) -> None:
        try:
            if value is UNSET:
                self.document.remove(path)
            else:
                if self.path and self.document.get(self.path) is None and self.document.use(self.path):
                    # The section is the default one so far; a setting of it makes it the recipe's own.
                    self.document.choose(self.path, str(self.document.use(self.path)))
                self.document.set(path, value)
        except RecipeError as error:
            self.said.emit(str(error))

    def open_chooser(self) -> None:
        """The popup that chooses another part for this line."""
        section = BY_NAME.get(self.path.split(".")[0])
        catalog = self.document.catalog
        if section is None or not section.kind or catalog is None or self.document.broken is not None:
            return
        entries = catalog.of_kind(section.kind)
        chooser = Chooser(entries, section.kind, self.document.use(self.path), self)
        chooser.chosen.connect(lambda use: self.document.choose(self.path, use))
        self.context.judge(section.name, chooser)
        chooser.open_at(self.chooser_button)

    def _open_card(self) -> None:
        use = self.document.use(self.path)
        if use is not None:
            self.context.open_card(use)

    def _take_advice(self) -> None:
        entry = self.document.entry(self.path)
        if entry is not None:
            self.document.apply(entry.recommends, f"Take the advice of {entry.name}")
            self.said.emit(f"Set what {entry.name} recommends: {', '.join(_paths(entry.recommends))}.")

    def _take_out(self) -> None:
        self.document.take(self.path)


def _paths(patch: Mapping[str, Any], path: str = "") -> list[str]:
    """The settings that a patch names."""
    found = []
    for key, value in patch.items():
        here = f"{path}.{key}" if path else key
        found += _paths(value, here) if isinstance(value, Mapping) and "use" not in value else [here]
    return found
