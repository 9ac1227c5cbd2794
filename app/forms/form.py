"""A form made from a JSON schema: labels, fields, marks of what was changed, and each problem under its field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QPainter, QPaintEvent, QPalette
from PySide6.QtWidgets import QGridLayout, QLabel, QSizePolicy, QToolButton, QWidget

from app.forms.fields import UNSET, Field, FormContext, help_text, make_field, title_of, toml_text
from app.places import button, label
from app.theme import SPACE_S, SPACE_XS
from engine.catalog import Catalog
from engine.errors import Problem

LABEL_WIDTH = 116
FORM_WIDTH = 640
RESET = "↺"


class Mark(QWidget):
    """A thin bar beside what differs from its default."""

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.setFixedWidth(3)
        self.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Preferred)

    def sizeHint(self) -> QSize:
        return QSize(3, 12)

    def set_on(self, on: bool) -> None:
        if on != self.on:
            self.on = on
            self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        if self.on:
            painter = QPainter(self)
            painter.fillRect(self.rect().adjusted(0, 3, 0, -3), self.palette().color(QPalette.ColorRole.Accent))


class Row:
    """The widgets of one field."""

    def __init__(self, name: str, field: Field, title: str):
        self.name = name
        self.field = field
        self.title = title
        self.mark = Mark()
        self.label = _field_label(title)
        self.reset = QToolButton()
        self.reset.setText(RESET)
        self.reset.setFixedSize(24, 26)
        policy = self.reset.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        self.reset.setSizePolicy(policy)
        self.problem = label("", "bad", wrap=True, selectable=True)
        self.problem.setObjectName(f"problem-{field.path}")
        self.problem.hide()
        self._describe()

    def show(self, value: Any, problems: Sequence[Problem]) -> None:
        self.field.show_value(value, problems)
        own = self.field.own_problems(problems)
        sentence = "\n".join(_sentence(problem, self.field.context.catalog) for problem in own)
        self.problem.setText(sentence)
        self.problem.setVisible(bool(sentence))
        self.field.mark(sentence)
        self.field.name_for_readers(self.title, sentence or self.words)
        self.mark.set_on(self.field.is_changed)
        self.reset.setVisible(value is not UNSET)

    def _describe(self) -> None:
        self.words = help_text(self.field.schema)
        for widget in (self.label, self.field):
            widget.setToolTip(self.words)
            widget.setWhatsThis(self.words)
        inputs = self.field.inputs()
        if inputs:
            self.label.setBuddy(inputs[0])
        default = self.field.default
        shown = "its default" if default is UNSET else "none" if default in (None, "") else toml_text(default)
        tip = f"Reset {self.title.lower()} to {shown}"
        self.reset.setToolTip(tip)
        self.reset.setAccessibleName(tip)
        self.field.name_for_readers(self.title, self.words)


class Form(QWidget):
    """The settings of one part, or of one section. Shows what it is given and reports what a person changes."""

    edited = Signal(str, object)  # path, the new value or UNSET
    settled = Signal()

    def __init__(self, schema: Mapping[str, Any], path: str, context: FormContext):
        super().__init__()
        self.path = path
        self.context = context
        self.setMaximumWidth(FORM_WIDTH)
        self.rows: dict[str, Row] = {}
        self._unknown: dict[str, tuple[QLabel, QWidget]] = {}
        self.grid = QGridLayout(self)
        self.grid.setContentsMargins(0, 0, 0, 0)
        self.grid.setHorizontalSpacing(SPACE_S)
        self.grid.setVerticalSpacing(SPACE_XS)
        self.grid.setColumnMinimumWidth(1, LABEL_WIDTH)
        self.grid.setColumnStretch(2, 1)
        for name, field_schema in schema.get("properties", {}).items():
            self._add(name, field_schema, context)
        if not self.rows:
            self.grid.addWidget(label("It has no settings.", "muted"), 0, 1, 1, 2)

    def show_values(self, values: Mapping[str, Any], problems: Sequence[Problem] = ()) -> None:
        """Brings every row in line with the recipe."""
        for name, row in self.rows.items():
            path = row.field.path
            mine = [p for p in problems if p.path == path or p.path.startswith(f"{path}.")]
            row.show(values.get(name, UNSET), mine)
        self._show_unknown(values, problems)

    def _add(self, name: str, schema: Mapping[str, Any], context: FormContext) -> None:
        path = f"{self.path}.{name}" if self.path else name
        field = make_field(path, schema, context)
        row = Row(name, field, title_of(name, schema))
        field.edited.connect(self.edited)
        field.settled.connect(self.settled)
        row.reset.clicked.connect(lambda: self._reset(row))
        at = self.grid.rowCount()
        top = Qt.AlignmentFlag.AlignTop
        self.grid.addWidget(row.mark, at, 0)
        self.grid.addWidget(row.label, at, 1, top)
        self.grid.addWidget(row.reset, at, 3, top)
        if field.wide:
            self.grid.addWidget(field, at + 1, 1, 1, 3)
        else:
            self.grid.addWidget(field, at, 2, top)
        if field.below is not None:
            self.grid.addWidget(field.below, at + 1, 1, 1, 3)
        self.grid.addWidget(row.problem, at + 2, 1 if field.wide else 2, 1, 2)
        self.rows[name] = row

    def _reset(self, row: Row) -> None:
        inputs = row.field.inputs()
        if row.reset.hasFocus() and inputs:
            inputs[0].setFocus()
        self.edited.emit(row.field.path, UNSET)
        self.settled.emit()

    def _show_unknown(self, values: Mapping[str, Any], problems: Sequence[Problem]) -> None:
        """A line for each setting that the recipe names and the part does not have."""
        unknown = {}
        for name, value in values.items():
            if name not in self.rows and name not in ("use", "enabled"):
                path = f"{self.path}.{name}" if self.path else name
                sentences = [p.message for p in problems if p.path == path]
                if sentences:
                    unknown[path] = f"{name} = {toml_text(value)}: {' '.join(sentences)}"
        for path in [path for path in self._unknown if path not in unknown]:
            for widget in self._unknown.pop(path):
                widget.hide()
                widget.deleteLater()
        for path, sentence in unknown.items():
            if path not in self._unknown:
                self._unknown[path] = self._unknown_row(path)
            self._unknown[path][0].setText(sentence)

    def _unknown_row(self, path: str) -> tuple[QLabel, QWidget]:
        words = label("", "bad", wrap=True, selectable=True)
        words.setObjectName(f"problem-{path}")
        take = button("Take it out", lambda: self.edited.emit(path, UNSET), tip=f"Removes {path} from the recipe.")
        at = self.grid.rowCount()
        self.grid.addWidget(words, at, 1, 1, 3)
        self.grid.addWidget(take, at + 1, 2, Qt.AlignmentFlag.AlignLeft)
        words.show()
        take.show()
        return words, take


def _field_label(title: str) -> QLabel:
    widget = label(title, wrap=True)
    widget.setFixedWidth(LABEL_WIDTH)
    widget.setMinimumHeight(26)
    return widget


def _sentence(problem: Problem, catalog: Catalog) -> str:
    """The problem's message as a sentence of its own; the id of a part stays as it is written."""
    message = problem.message
    return message if message.split(" ", 1)[0] in catalog.parts else message[:1].upper() + message[1:]
