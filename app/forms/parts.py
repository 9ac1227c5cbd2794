"""Fields whose value holds parts: one part, a list of them, a number over time, and what a search varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import Qt
from PySide6.QtGui import QPainter, QPaintEvent, QPalette
from PySide6.QtWidgets import QCheckBox, QHBoxLayout, QLineEdit, QPushButton, QToolButton, QVBoxLayout, QWidget

from app.forms.chooser import Chooser
from app.forms.fields import (
    UNSET,
    ComboBox,
    Field,
    FormContext,
    NumberField,
    column,
    list_text,
    number_text,
    read_list,
    read_number,
    read_toml,
    same,
    toml_text,
)
from app.forms.form import Form
from app.places import button
from app.theme import SPACE_M, SPACE_S, SPACE_XS
from engine.catalog import Catalog, Entry
from engine.errors import Problem
from engine.settings import a_kind, check_value


def switched(value: Any, entry: Entry, catalog: Catalog) -> dict[str, Any]:
    """A table that names another part, with the old settings that it takes as well."""
    old = value if isinstance(value, Mapping) else {}
    fields = entry.schema.get("properties", {})
    kept = {
        name: setting
        for name, setting in old.items()
        if name in fields and not check_value(fields[name], setting, name, catalog)
    }
    return {"use": entry.id, **kept}


class Nest(QWidget):
    """A nested form, set off by a line at its left."""

    def __init__(self) -> None:
        super().__init__()
        self.column = column(self)
        self.column.setContentsMargins(SPACE_M, 0, 0, SPACE_XS)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.fillRect(1, 0, 2, self.height() - SPACE_XS, self.palette().color(QPalette.ColorRole.Mid))


class PartButton(QPushButton):
    """Shows which part is chosen, and opens the popup that chooses another."""

    def __init__(self) -> None:
        super().__init__()
        self.setProperty("role", "part")
        self.setStyleSheet("text-align: left;")

    def show_part(self, text: str) -> None:
        self.setText(f"{text}  ▾")


def small_button(text: str, words: str) -> QToolButton:
    """A tool button with one sign, and words for who cannot see it."""
    made = QToolButton()
    made.setText(text)
    made.setToolTip(words)
    made.setAccessibleName(words)
    made.setFixedSize(24, 24)
    return made


class PartField(Field):
    """One part: a button that chooses it and the form of its settings below."""

    def __init__(self, path: str, schema: Mapping[str, Any], context: FormContext):
        super().__init__(path, schema, context)
        self.kind: str = schema["x-part"]
        self.button = PartButton()
        self.button.clicked.connect(self.open_chooser)
        self.row.addWidget(self.button, 1)
        self.none = small_button("×", f"No {self.kind}")
        self.none.clicked.connect(lambda: self.send(UNSET))
        self.none.setVisible(bool(schema.get("x-optional")))
        self.row.addWidget(self.none)
        self.below: Nest = Nest()
        self.below.hide()
        self.form: Form | None = None
        self._form_of = ""
        self._problems: Sequence[Problem] = ()

    def inputs(self) -> list[QWidget]:
        return [self.button]

    def own_problems(self, problems: Sequence[Problem]) -> list[Problem]:
        return [p for p in problems if self.form is None or p.path in (self.path, f"{self.path}.use")]

    def show_value(self, value: Any, problems: Sequence[Problem] = ()) -> None:
        self._problems = problems
        super().show_value(value, problems)

    def refresh(self) -> None:
        value = self.shown
        use = value.get("use") if isinstance(value, Mapping) else None
        entry = self.context.catalog.parts.get(str(use)) if use is not None else None
        name = entry.name if entry else "none" if value in (UNSET, None) else str(use or toml_text(value))
        self.button.show_part(name if entry or use is not None else f"Choose {a_kind(self.kind)}")
        self.none.setVisible(bool(self.schema.get("x-optional")) and self.value is not UNSET)
        self._show_form(entry)
        if self.form is not None and isinstance(value, Mapping):
            self.form.show_values(value, self._problems)

    def _show_form(self, entry: Entry | None) -> None:
        wanted = entry.id if entry is not None and entry.schema.get("properties") else ""
        if wanted == self._form_of:
            return
        if self.form is not None:
            self.form.hide()
            self.form.deleteLater()
            self.form = None
        self._form_of = wanted
        if entry is not None and wanted:
            self.form = Form(entry.schema, self.path, self.context)
            self.form.edited.connect(self._nested)
            self.form.settled.connect(self.settled)
            self.below.column.addWidget(self.form)
        self.below.setVisible(self.form is not None)

    def _nested(self, path: str, value: Any) -> None:
        if self.value is not UNSET:
            self.edited.emit(path, value)
            return
        # The default is being changed: the recipe gets the whole table, because it has none yet.
        name = path.removeprefix(f"{self.path}.")
        whole = {**self.shown, name: value}
        self.edited.emit(self.path, {key: item for key, item in whole.items() if item is not UNSET})

    def open_chooser(self) -> None:
        use = self.shown.get("use") if isinstance(self.shown, Mapping) else None
        chooser = Chooser(self.context.catalog.of_kind(self.kind), self.kind, use, self)
        chooser.chosen.connect(self._choose)
        chooser.open_at(self.button)

    def _choose(self, part: str) -> None:
        entry = self.context.catalog.parts[part]
        self.send(switched(self.shown, entry, self.context.catalog))
        self.settled.emit()


class PartsField(Field):
    """A list of parts, in order."""

    wide = True

    def __init__(self, path: str, schema: Mapping[str, Any], context: FormContext):
        super().__init__(path, schema, context)
        self.kind: str = schema["x-parts"]
        self.lines: list[PartField] = []
        self._holders: list[QWidget] = []
        inside = QWidget()
        self.column = column(inside)
        self.row.addWidget(inside)
        self.add = button(f"Add {a_kind(self.kind)}", self.open_chooser)
        self.column.addWidget(self.add, 0, Qt.AlignmentFlag.AlignLeft)
        self._problems: Sequence[Problem] = ()

    def inputs(self) -> list[QWidget]:
        return [self.add]

    def own_problems(self, problems: Sequence[Problem]) -> list[Problem]:
        nested = [line.path for line in self.lines if line.form is not None]
        return [p for p in problems if not any(_inside(p.path, path) for path in nested)]

    def show_value(self, value: Any, problems: Sequence[Problem] = ()) -> None:
        self._problems = problems
        super().show_value(value, problems)

    def refresh(self) -> None:
        values = list(self.shown) if isinstance(self.shown, list | tuple) else []
        while len(self.lines) > len(values):
            self.lines.pop()
            holder = self._holders.pop()
            holder.hide()
            holder.deleteLater()
        while len(self.lines) < len(values):
            self._add_line(len(self.lines))
        for line, value in zip(self.lines, values, strict=True):
            mine = [p for p in self._problems if p.path == line.path or p.path.startswith(f"{line.path}.")]
            line.show_value(value, mine)
            line.name_for_readers(f"{self.kind} {self.lines.index(line) + 1}", "")

    def _add_line(self, index: int) -> None:
        line = PartField(f"{self.path}.{index}", {"x-part": self.kind}, self.context)
        line.edited.connect(lambda path, value: self._nested(index, path, value))
        line.settled.connect(self.settled)
        up, down = small_button("↑", "Move it up"), small_button("↓", "Move it down")
        out = small_button("×", "Take it out")
        up.clicked.connect(lambda: self._move(index, index - 1))
        down.clicked.connect(lambda: self._move(index, index + 1))
        out.clicked.connect(lambda: self._send([v for i, v in enumerate(self.shown) if i != index]))
        for tool in (up, down, out):
            line.row.addWidget(tool)
        holder = QWidget()
        rows = column(holder)
        rows.addWidget(line)
        rows.addWidget(line.below)
        self.column.insertWidget(self.column.count() - 1, holder)
        self.lines.append(line)
        self._holders.append(holder)

    def _nested(self, index: int, path: str, value: Any) -> None:
        if path != self.lines[index].path and self.value is not UNSET:
            self.edited.emit(path, value)
            return
        values = [dict(item) for item in self.shown]
        if path == self.lines[index].path:
            values[index] = value
        else:
            values[index][path.removeprefix(f"{self.lines[index].path}.")] = value
        self.edited.emit(self.path, values)

    def _move(self, index: int, to: int) -> None:
        values = list(self.shown)
        if 0 <= to < len(values):
            values.insert(to, values.pop(index))
            self._send(values)

    def _send(self, values: list[Any]) -> None:
        self.send(values)
        self.settled.emit()

    def open_chooser(self) -> None:
        chooser = Chooser(self.context.catalog.of_kind(self.kind), self.kind, None, self)
        chooser.chosen.connect(self._append)
        chooser.open_at(self.add)

    def _append(self, part: str) -> None:
        self._send([*(self.shown if isinstance(self.shown, list | tuple) else []), {"use": part}])


class ValueField(Field):
    """A number, or one that follows a schedule over the run."""

    def __init__(self, path: str, schema: Mapping[str, Any], context: FormContext):
        super().__init__(path, schema, context)
        number = {key: value for key, value in schema.items() if key != "x-value"}
        if isinstance(self.default, Mapping):
            number["default"] = self.default.get("value", UNSET)
        self.number = NumberField(path, number, context)
        self.number.edited.connect(lambda _path, value: self._numbered(value))
        self.number.settled.connect(self.settled)
        self.over_time = QCheckBox("over time")
        self.over_time.setToolTip("Let the number follow a schedule over the run.")
        self.over_time.clicked.connect(self._switched)
        self.row.addWidget(self.number, 1)
        self.row.addWidget(self.over_time)
        self.schedule = PartField(f"{path}.schedule", {"x-part": "schedule"}, context)
        self.schedule.edited.connect(self._scheduled)
        self.schedule.settled.connect(self.settled)
        self.below: Nest = Nest()
        self.below.column.addWidget(self.schedule)
        self.below.column.addWidget(self.schedule.below)
        self.below.hide()
        self._problems: Sequence[Problem] = ()

    def inputs(self) -> list[QWidget]:
        return [*self.number.inputs(), self.over_time]

    def name_for_readers(self, name: str, words: str) -> None:
        super().name_for_readers(name, words)
        self.over_time.setAccessibleName(f"{name} over time")
        self.schedule.name_for_readers(f"Schedule of {name.lower()}", "")

    def mark(self, sentence: str) -> None:
        self.number.mark(sentence)

    def own_problems(self, problems: Sequence[Problem]) -> list[Problem]:
        nested = self.schedule.form
        return [p for p in problems if nested is None or not p.path.startswith(f"{self.path}.schedule.")]

    def show_value(self, value: Any, problems: Sequence[Problem] = ()) -> None:
        self._problems = problems
        super().show_value(value, problems)

    def refresh(self) -> None:
        value = self.shown
        timed = isinstance(value, Mapping)
        shown = self.value.get("value", UNSET) if isinstance(self.value, Mapping) else self.value
        self.number.show_value(shown)
        self.over_time.setChecked(timed)
        self.below.setVisible(timed)
        if timed:
            mine = [p for p in self._problems if p.path.startswith(f"{self.path}.schedule")]
            self.schedule.show_value(value.get("schedule", UNSET), mine)

    def _numbered(self, value: Any) -> None:
        if not isinstance(self.shown, Mapping):
            self.send(value)
        elif value is not UNSET:
            self.send({**self.shown, "value": value})

    def _switched(self, on: bool) -> None:
        value = self.shown
        if on:
            schedules = self.context.catalog.of_kind("schedule")
            use = self.context.catalog.default("schedule") or (schedules[0].id if schedules else "")
            start = value if isinstance(value, int | float) else 0.0
            self.send({"value": start, "schedule": {"use": use}})
        elif isinstance(value, Mapping):
            self.send(value.get("value", UNSET))
        self.settled.emit()

    def _scheduled(self, path: str, value: Any) -> None:
        if path == self.schedule.path or not isinstance(self.value, Mapping):
            self.send({**self.shown, "schedule": value} if path == self.schedule.path else self.shown)
        else:
            self.edited.emit(path, value)


class SpaceField(Field):
    """What a search varies: for each setting of the recipe, a list of values or a range."""

    wide = True

    def __init__(self, path: str, schema: Mapping[str, Any], context: FormContext):
        super().__init__(path, schema, context)
        inside = QWidget()
        self.column = column(inside, SPACE_S)
        self.row.addWidget(inside)
        self.lines: list[SpaceLine] = []
        self.add = button("Vary a setting", self.add_line, tip="Adds a setting of the recipe and the values to try.")
        self.column.addWidget(self.add, 0, Qt.AlignmentFlag.AlignLeft)

    def inputs(self) -> list[QWidget]:
        return [self.add]

    def refresh(self) -> None:
        space = dict(self.shown) if isinstance(self.shown, Mapping) else {}
        kept = [line for line in self.lines if line.path_text() and line.path_text() in space]
        waiting = [line for line in self.lines if not line.path_text()]
        for line in [line for line in self.lines if line not in kept and line not in waiting]:
            self._drop(line)
        known = {line.path_text(): line for line in kept}
        for path, values in space.items():
            line = known.get(path) or self._new_line()
            line.show_values(path, values)

    def add_line(self) -> None:
        """An empty line, to be filled by the person; the recipe changes when it names a setting."""
        self._new_line().path_box.setFocus()

    def _new_line(self) -> SpaceLine:
        line = SpaceLine(self.context.paths())
        line.changed = lambda: self._changed(line)
        line.remove = lambda: self._remove(line)
        line.settled = self.settled.emit
        self.column.insertWidget(self.column.count() - 1, line)
        self.lines.append(line)
        line.name_for_readers(len(self.lines))
        return line

    def _changed(self, line: SpaceLine) -> None:
        space = {each.path_text(): each.values() for each in self.lines if each.path_text()}
        self.send(space or UNSET)

    def _remove(self, line: SpaceLine) -> None:
        self._drop(line)
        self._changed(line)
        self.settled.emit()

    def _drop(self, line: SpaceLine) -> None:
        self.lines.remove(line)
        line.hide()
        line.deleteLater()


class SpaceLine(QWidget):
    """One setting that a search varies."""

    def __init__(self, paths: Sequence[str]):
        super().__init__()
        self.changed = self.remove = self.settled = _nothing
        self.path_box = ComboBox()
        self.path_box.setEditable(True)
        self.path_box.setInsertPolicy(ComboBox.InsertPolicy.NoInsert)
        self.path_box.addItems(list(paths))
        self.path_box.setCurrentIndex(-1)
        line = self.path_box.lineEdit()
        if line is not None:
            line.setPlaceholderText("which setting")
            line.editingFinished.connect(lambda: self.changed())
        self.path_box.activated.connect(lambda _index: self.changed())
        self.how = ComboBox()
        self.how.addItems(["values", "range"])
        self.how.activated.connect(lambda _index: self._how_changed())
        out = small_button("×", "Stop varying it")
        out.clicked.connect(lambda: self.remove())
        top = QHBoxLayout()
        top.setSpacing(SPACE_S)
        top.addWidget(self.path_box, 1)
        top.addWidget(self.how)
        top.addWidget(out)
        self.list = QLineEdit()
        self.list.setPlaceholderText("values between commas")
        self.low, self.high = QLineEdit(), QLineEdit()
        self.low.setPlaceholderText("from")
        self.high.setPlaceholderText("to")
        self.log, self.whole = QCheckBox("log scale"), QCheckBox("whole numbers")
        self.sometimes = QCheckBox("only when")
        self.sometimes.setToolTip("Vary it only beside certain values of other varied settings.")
        self.when = QLineEdit()
        self.when.setPlaceholderText('"optimizer.use" = ["a", "b"]')
        bottom = QHBoxLayout()
        bottom.setSpacing(SPACE_S)
        for widget in (self.list, self.low, self.high, self.log, self.whole):
            bottom.addWidget(widget)
        last = QHBoxLayout()
        last.setSpacing(SPACE_S)
        last.addWidget(self.sometimes)
        last.addWidget(self.when, 1)
        for line_edit in (self.list, self.low, self.high, self.when):
            line_edit.textEdited.connect(lambda _text: self.changed())
            line_edit.editingFinished.connect(lambda: self.settled())
        self.sometimes.clicked.connect(lambda on: self.when.setVisible(on))
        for box in (self.log, self.whole, self.sometimes):
            box.clicked.connect(lambda _on: self.changed())
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(SPACE_XS)
        rows.addLayout(top)
        rows.addLayout(bottom)
        rows.addLayout(last)
        self.when.hide()
        self._show_how(False)

    def name_for_readers(self, number: int) -> None:
        names = ((self.path_box, "setting"), (self.how, "values or range"), (self.list, "values"))
        further = ((self.low, "from"), (self.high, "to"), (self.sometimes, "only when"), (self.when, "condition"))
        for widget, name in (*names, *further):
            widget.setAccessibleName(f"Varied setting {number}: {name}")

    def path_text(self) -> str:
        return self.path_box.currentText().strip()

    def values(self) -> Any:
        """What the recipe gets."""
        choice = self._choice()
        if not self.sometimes.isChecked():
            return choice
        return {**(choice if isinstance(choice, dict) else {"values": choice}), "when": read_when(self.when.text())}

    def _choice(self) -> Any:
        if self.how.currentIndex() == 0:
            return read_list(self.list.text(), {}) if self.list.text().strip() else []
        span: dict[str, Any] = {"low": read_number(self.low.text()), "high": read_number(self.high.text())}
        if self.log.isChecked():
            span["log"] = True
        if self.whole.isChecked():
            span["whole"] = True
        return span

    def show_values(self, path: str, values: Any) -> None:
        if self.path_text() != path:
            self.path_box.setCurrentText(path)
        conditional = isinstance(values, Mapping) and "when" in values
        self.sometimes.setChecked(conditional)
        self.when.setVisible(conditional)
        if conditional:
            _show(self.when, when_text(values["when"]), read_when, values["when"])
        if isinstance(values, Mapping) and "values" in values:
            values = values["values"]
        span = values if isinstance(values, Mapping) else None
        self.how.setCurrentIndex(1 if span is not None else 0)
        self._show_how(span is not None)
        if span is not None:
            _show(self.low, number_text(span.get("low", UNSET)), read_number, span.get("low"))
            _show(self.high, number_text(span.get("high", UNSET)), read_number, span.get("high"))
            self.log.setChecked(bool(span.get("log")))
            self.whole.setChecked(bool(span.get("whole")))
        else:
            _show(self.list, list_text(values), lambda text: read_list(text, {}), values)

    def _how_changed(self) -> None:
        as_range = self.how.currentIndex() == 1
        if as_range and not self.low.text():
            numbers = [v for v in read_list(self.list.text(), {}) if isinstance(v, int | float)]
            if numbers:
                self.low.setText(number_text(min(numbers)))
                self.high.setText(number_text(max(numbers)))
        self._show_how(as_range)
        self.changed()
        self.settled()

    def _show_how(self, as_range: bool) -> None:
        self.list.setVisible(not as_range)
        for widget in (self.low, self.high, self.log, self.whole):
            widget.setVisible(as_range)


def _inside(path: str, part: str) -> bool:
    """Whether a problem lies in a part's own form (and not in which part it is)."""
    return path.startswith(f"{part}.") and path != f"{part}.use"


def when_text(condition: Any) -> str:
    """A condition as TOML, without its braces."""
    return toml_text(condition)[1:-1].strip() if isinstance(condition, Mapping) else str(condition)


def read_when(text: str) -> Any:
    """The condition that a line says; the text itself where it is not yet one."""
    read = read_toml(f"{{ {text} }}")
    return read if isinstance(read, Mapping) else text


def _nothing() -> None:
    """Before a line is connected."""


def _show(line: QLineEdit, text: str, read: Any, value: Any) -> None:
    """Writes into a line, unless what stands there says the same."""
    if line.hasFocus() and line.text().strip() and same(read(line.text()), value):
        return
    if line.text() != text:
        line.setText(text)
