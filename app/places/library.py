"""Every part there is: found by words, slot and kind; its card says what it does, takes and was measured to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PySide6.QtCore import Qt, QUrl
from PySide6.QtGui import QDesktopServices
from PySide6.QtWidgets import QHBoxLayout, QHeaderView, QLineEdit, QScrollArea, QVBoxLayout, QWidget

from app.forms.chooser import EntryList, Finder, Index
from app.forms.evidence import Measured, Measurement, read_evidence
from app.forms.fields import UNSET, ComboBox, fixed_font, list_text, title_of, toml_text
from app.forms.previews import Table
from app.places import CatalogState, Context, Empty, Place, button, label
from app.recipes import section_of
from app.theme import SPACE_L, SPACE_M, SPACE_S, SPACE_XS
from engine.catalog import Catalog, Entry
from engine.settings import a_kind, describe

ROOT = Path(__file__).resolve().parent.parent.parent
ALL_SLOTS, ALL_KINDS = "all slots", "all kinds"
CARD_WIDTH = 820


class LibraryPlace(Place):
    """The list of parts at the left, the card of the chosen one at the right."""

    id = "library"
    title = "Library"
    icon = "library"

    def __init__(self, context: Context, parent: QWidget | None = None):
        super().__init__(context, parent)
        self.finder = Finder([])
        self._wanted = str(context.settings.value("library/part") or "")
        self._build()
        context.catalog_ready.connect(self.show_catalog)
        if context.catalog is not None:
            self.show_catalog(context.catalog)

    # -- called by the window ----------------------------------------------------------------------------------------

    def shown(self) -> None:
        self._read_evidence()

    def opened(self, **what: Any) -> None:
        """Comes with `part`, the id of a part whose card is wanted."""
        if what.get("part"):
            self.show_part(str(what["part"]))

    def focus_search(self) -> None:
        self.search.setFocus()
        self.search.selectAll()

    def save(self) -> None:
        current = self.list.current
        for name, value in (
            ("part", current.id if current else ""),
            ("slot", self.slots.currentText()),
            ("kind", self.kinds.currentText()),
        ):
            self.context.settings.setValue(f"library/{name}", value)

    # -- what it shows -----------------------------------------------------------------------------------------------

    def show_catalog(self, catalog: Catalog) -> None:
        """Fills the list; the chosen part stays."""
        current = self.list.current
        wanted = current.id if current else self._wanted
        self.finder = Finder(list(catalog.parts.values()))
        kinds = sorted({entry.kind for entry in catalog.parts.values()})
        self._fill(self.slots, [ALL_SLOTS, *catalog.slots()], "slot")
        self._fill(self.kinds, [ALL_KINDS, *kinds], "kind")
        self.filter()
        self._read_evidence()
        self._select(wanted)

    def show_part(self, part: str) -> None:
        """Shows a part's card, and finds it in the list."""
        self._wanted = part
        if self.list.entries.row_of(part) < 0:
            self.search.clear()
            self.slots.setCurrentIndex(0)
            self.kinds.setCurrentIndex(0)
            self.filter()
        self._select(part)

    def filter(self) -> None:
        """Shows the parts that have the words, the slot and the kind."""
        slot, kind = self.slots.currentText(), self.kinds.currentText()
        found = [
            entry
            for entry in self.finder.find(self.search.text())
            if slot in (ALL_SLOTS, "", entry.slot) and kind in (ALL_KINDS, "", entry.kind)
        ]
        current = self.list.current
        self.list.entries.show_entries(found)
        total = len(self.finder.entries)
        self.count.setText(f"{len(found)} of {total} parts" if len(found) != total else f"{total} parts")
        self.none.setVisible(not found and total > 0)
        self.list.setVisible(bool(found) or total == 0)
        self._select(current.id if current else "")

    # -- building ----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search parts, papers, words")
        self.search.setAccessibleName("Search the library")
        self.search.setClearButtonEnabled(True)
        self.search.textChanged.connect(self.filter)
        self.slots, self.kinds = ComboBox(), ComboBox()
        for box, name in ((self.slots, "Slot"), (self.kinds, "Kind")):
            box.setAccessibleName(f"{name} of the parts")
            box.activated.connect(lambda _index: self.filter())
        self.count = label("", "small")
        self.list = EntryList("Parts")
        self.list.selectionModel().currentChanged.connect(self._current_changed)
        self.list.activated.connect(lambda _index: self._add())
        self.none = Empty("No part has these words in this slot and kind.", "Show all parts", self._show_all)
        self.none.hide()
        filters = QHBoxLayout()
        filters.setSpacing(SPACE_S)
        filters.addWidget(self.slots, 1)
        filters.addWidget(self.kinds, 1)
        top = QVBoxLayout()
        top.setContentsMargins(SPACE_M, SPACE_M, SPACE_M, SPACE_S)
        top.setSpacing(SPACE_S)
        top.addWidget(self.search)
        top.addLayout(filters)
        top.addWidget(self.count)
        side = QWidget()
        column = QVBoxLayout(side)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addLayout(top)
        column.addWidget(self.list, 1)
        column.addWidget(self.none, 1)
        side.setMinimumWidth(260)
        self.card = Card(self.context)
        self.card.add.clicked.connect(self._add)
        self.card.trial.clicked.connect(self._try)
        area = QScrollArea()
        area.setWidgetResizable(True)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setWidget(self.card)
        area.setAccessibleName("Card of the chosen part")
        self.area = area
        columns = self.splitter("columns", side, area, sizes=[360, 860])
        columns.setStretchFactor(0, 0)
        columns.setStretchFactor(1, 1)
        row = QVBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(columns)

    def _fill(self, box: ComboBox, names: list[str], setting: str) -> None:
        kept = box.currentText() or str(self.context.settings.value(f"library/{setting}") or "")
        box.clear()
        box.addItems(names)
        box.setCurrentIndex(max(box.findText(kept), 0))

    def _select(self, part: str) -> None:
        row = max(self.list.entries.row_of(part), 0)
        if self.list.entries.rowCount():
            self.list.setCurrentIndex(self.list.entries.index(row))
            self.list.scrollTo(self.list.currentIndex())

    def _current_changed(self, index: Index, _before: Index) -> None:
        entry = self.list.current
        if entry is not None:
            self.card.show_entry(entry)
            self.area.verticalScrollBar().setValue(0)

    def _show_all(self) -> None:
        self.search.clear()
        self.slots.setCurrentIndex(0)
        self.kinds.setCurrentIndex(0)
        self.filter()
        self.search.setFocus()

    def _read_evidence(self) -> None:
        def read(evidence: Measured) -> None:
            self.list.entries.show_evidence(evidence)
            self.card.show_evidence(evidence)

        self.context.worker.ask(lambda _: read_evidence(), read, key="library-evidence", owner=self)

    def _add(self) -> None:
        entry = self.list.current
        if entry is not None and section_of(entry.kind) is not None:
            self.context.go("recipe", add=entry.id)

    def _try(self) -> None:
        entry = self.list.current
        if entry is not None:
            self.context.go("recipe", trial=entry.id)


class Card(QWidget):
    """All that is known of one part."""

    def __init__(self, context: Context):
        super().__init__()
        self.context = context
        self.entry: Entry | None = None
        self.evidence: Measured = {}
        inside = QWidget()
        inside.setMaximumWidth(CARD_WIDTH)
        self.column = QVBoxLayout(inside)
        self.column.setContentsMargins(SPACE_L, SPACE_L, SPACE_L, SPACE_L)
        self.column.setSpacing(SPACE_S)
        self.column.setAlignment(Qt.AlignmentFlag.AlignTop)
        outside = QHBoxLayout(self)
        outside.setContentsMargins(0, 0, 0, 0)
        outside.addWidget(inside, 1)
        outside.addStretch(0)
        self.waiting = CatalogState(context)
        self.column.addWidget(self.waiting)
        self.body = QWidget()
        self.column.addWidget(self.body)
        self.column.addStretch(1)
        self._build(QVBoxLayout(self.body))
        self.body.hide()
        context.theme.changed.connect(self._restyle)
        self._restyle()

    def _build(self, column: QVBoxLayout) -> None:
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(SPACE_S)
        self.title = label("", "title", wrap=True, selectable=True)
        self.chips = [label("", "chip") for _ in range(3)]
        chips = QHBoxLayout()
        chips.setSpacing(SPACE_XS)
        for chip in self.chips:
            chips.addWidget(chip)
        chips.addStretch(1)
        self.summary = label("", wrap=True, selectable=True)
        self.add = button("Add to the recipe", lambda: None, "primary")
        self.trial = button("Try it", lambda: None, tip="Opens the smallest recipe that shows it at work.")
        self.source = button("Open its source file", self._open_source)
        buttons = QHBoxLayout()
        buttons.setSpacing(SPACE_S)
        for widget in (self.add, self.trial, self.source):
            buttons.addWidget(widget)
        buttons.addStretch(1)
        self.where = label("", "small", wrap=True)
        column.addWidget(self.title)
        column.addLayout(chips)
        column.addWidget(self.summary)
        column.addLayout(buttons)
        column.addWidget(self.where)
        self.formula = label("", selectable=True)
        self.formula.setObjectName("formula")
        self.formula.setMargin(SPACE_M)
        self.formula_area = QScrollArea()
        self.formula_area.setWidget(self.formula)
        self.formula_area.setWidgetResizable(True)
        self.formula_area.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.blocks: dict[str, tuple[QWidget, Any]] = {}
        self._block(column, "Formula", self.formula_area)
        for name in ("When it helps", "When it does not", "What it costs", "What it lacks here"):
            self._block(column, name, label("", wrap=True, selectable=True))
        self._block(column, "Measured here", self._evidence_block())
        self.parameters = Table(("name", "default", "takes", "meaning"), "Parameters", stretch=3)
        self.parameters.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.parameters.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.parameters.setWordWrap(True)
        self._block(column, "Parameters", self.parameters)
        self._block(column, "Good to know", label("", wrap=True, selectable=True))
        self.papers = label("", wrap=True, selectable=True)
        self.papers.setTextFormat(Qt.TextFormat.RichText)
        self.papers.setTextInteractionFlags(Qt.TextInteractionFlag.TextBrowserInteraction)
        self.papers.setOpenExternalLinks(True)
        self._block(column, "Paper", self.papers)

    def _block(self, column: QVBoxLayout, name: str, content: Any) -> None:
        holder = QWidget()
        inside = QVBoxLayout(holder)
        inside.setContentsMargins(0, SPACE_S, 0, 0)
        inside.setSpacing(SPACE_XS)
        inside.addWidget(label(name.upper(), "section"))
        inside.addWidget(content)
        column.addWidget(holder)
        self.blocks[name] = (holder, content)

    def _evidence_block(self) -> QWidget:
        block = QWidget()
        inside = QVBoxLayout(block)
        inside.setContentsMargins(0, 0, 0, 0)
        inside.setSpacing(SPACE_L)
        self.measurements: list[Measurement] = []
        return block

    # -- showing -----------------------------------------------------------------------------------------------------

    def show_entry(self, entry: Entry) -> None:
        """Fills the card."""
        if entry == self.entry:
            return
        self.entry = entry
        self.waiting.hide()
        self.body.show()
        self.title.setText(entry.name)
        texts = (entry.slot, entry.kind if entry.kind != entry.slot else "", entry.id)
        for chip, text in zip(self.chips, texts, strict=True):
            chip.setText(text)
            chip.setVisible(bool(text))
        self.summary.setText(entry.summary)
        self._show_buttons(entry)
        self.formula.setText(entry.formula)
        self._fit_formula()
        self._text("When it helps", entry.helps)
        self._text("When it does not", entry.hurts)
        self._text("What it costs", entry.cost)
        self._text("What it lacks here", entry.lacks[:1].upper() + entry.lacks[1:])
        self._text("Good to know", "\n".join(declarations(entry)))
        self.blocks["Formula"][0].setVisible(bool(entry.formula))
        self._show_parameters(entry)
        self._show_papers(entry)
        self._show_measured()

    def show_evidence(self, evidence: Measured) -> None:
        """What was measured, by part."""
        self.evidence = evidence
        self._show_measured()

    def _show_buttons(self, entry: Entry) -> None:
        section = section_of(entry.kind)
        self.add.setEnabled(section is not None)
        self.trial.setEnabled(section is not None or bool(entry.example))
        self.source.setEnabled(bool(entry.file))
        self.source.setToolTip(entry.file)
        if section is None:
            self.where.setText(f"{a_kind(entry.kind).capitalize()} is chosen in a field of another part.")
        self.where.setVisible(section is None)

    def _text(self, name: str, text: str) -> None:
        holder, content = self.blocks[name]
        content.setText(text[:1].upper() + text[1:])
        holder.setVisible(bool(text))

    def _show_parameters(self, entry: Entry) -> None:
        fields = entry.schema.get("properties", {})
        rows = []
        for name, schema in fields.items():
            default = schema.get("default", UNSET)
            shown = "must be given" if default is UNSET else "none" if default in (None, "", []) else _shown(default)
            rows.append((title_of(name, schema), shown, describe(schema), str(schema.get("description", ""))))
        self.parameters.show_rows(rows)
        self.blocks["Parameters"][0].setVisible(bool(rows))
        self._fit_parameters()

    def _show_papers(self, entry: Entry) -> None:
        lines = []
        for paper in entry.papers:
            title = _escaped(paper.get("title", ""))
            number = _escaped(paper.get("arxiv", ""))
            link = f' &nbsp; <a href="https://arxiv.org/abs/{number}">arXiv {number}</a>' if number else ""
            lines.append(f"{title}{link}")
        self.papers.setText("<br>".join(lines))
        self.blocks["Paper"][0].setVisible(bool(lines))

    def _show_measured(self) -> None:
        found = self.evidence.get(self.entry.id, []) if self.entry is not None else []
        holder, block = self.blocks["Measured here"]
        holder.setVisible(bool(found))
        while len(self.measurements) < len(found):
            self.measurements.append(Measurement(self.context.theme))
            block.layout().addWidget(self.measurements[-1])
        for number, measurement in enumerate(self.measurements):
            measurement.setVisible(number < len(found))
            if number < len(found):
                measurement.show_data(found[number])

    def _fit_parameters(self) -> None:
        header = self.parameters.horizontalHeader()
        header.setSectionResizeMode(2, QHeaderView.ResizeMode.Interactive)
        rest = self.parameters.viewport().width() - header.sectionSize(0) - header.sectionSize(1)
        self.parameters.setColumnWidth(2, max(round(rest * 0.4), 80))
        self.parameters.resizeRowsToContents()
        for row in range(self.parameters.rowCount()):
            self.parameters.setRowHeight(row, self.parameters.rowHeight(row) + SPACE_S)
        height = self.parameters.horizontalHeader().sizeHint().height() + 2
        height += sum(self.parameters.rowHeight(row) for row in range(self.parameters.rowCount()))
        self.parameters.setFixedHeight(height)

    def _fit_formula(self) -> None:
        bar = self.formula_area.horizontalScrollBar().sizeHint().height()
        wide = self.formula.sizeHint().width() > self.width() - 2 * SPACE_L
        self.formula_area.setFixedHeight(self.formula.sizeHint().height() + 2 + (bar if wide else 0))

    def resizeEvent(self, event: Any) -> None:
        super().resizeEvent(event)
        self._fit_parameters()
        self._fit_formula()

    def _restyle(self) -> None:
        tokens = self.context.theme.tokens
        font = fixed_font(self.context.theme)
        self.formula_area.setStyleSheet(
            f"QScrollArea {{ background: {tokens.raised}; border: 1px solid {tokens.line}; border-radius: 6px; }}"
            f"QLabel#formula {{ font-family: '{font.family()}'; font-size: {font.pixelSize()}px; }}"
        )
        for measurement in self.measurements:
            measurement.plot.update()

    def _open_source(self) -> None:
        if self.entry is None:
            return
        path = ROOT / self.entry.file
        if not path.is_file() or not QDesktopServices.openUrl(QUrl.fromLocalFile(str(path))):
            self.context.message(f"{path} could not be opened. Open it in an editor.", level="warning")


def declarations(entry: Entry) -> list[str]:
    """What a part declares of itself, in sentences; what every part does is not said."""
    said = []
    if entry.precision != "any":
        said.append(f"It needs {entry.precision} arithmetic.")
    if entry.graph != "safe":
        never = (
            "It cannot run in a compiled graph." if entry.graph == "never" else "Its graph is captured again at times."
        )
        said.append(never)
    if entry.nondeterministic:
        said.append(f"Two runs with one seed can differ: {entry.nondeterministic}.")
    if entry.kind == "optimizer" and entry.lr != "external":
        said.append("It sets the learning rate itself." if entry.lr == "internal" else "It has no learning rate.")
    if entry.recommends:
        said.append(f"It recommends {_patch(entry.recommends)}.")
    return said


def _patch(patch: Mapping[str, Any], path: str = "") -> str:
    parts = []
    for name, value in patch.items():
        here = f"{path}.{name}" if path else name
        inner = isinstance(value, Mapping) and "use" not in value
        parts.append(_patch(value, here) if inner else f"{here} = {toml_text(value)}")
    return ", ".join(parts)


def _shown(value: Any) -> str:
    """A default as its field shows it."""
    if isinstance(value, Mapping) and "use" in value:
        return str(value["use"])
    return toml_text(value) if isinstance(value, bool | Mapping) else list_text(value)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
