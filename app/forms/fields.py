"""One widget for each kind of field that a schema can describe.

A field shows what the recipe says (`show_value`) and reports what a person does (`edited`). It keeps no truth of its
own: also a value that cannot be right goes into the recipe, where it is checked, so that nothing typed is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit
from PySide6.QtCore import QEvent, QObject, QStringListModel, Qt, Signal
from PySide6.QtGui import QFont, QKeyEvent, QKeySequence, QWheelEvent
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QCompleter,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QSizePolicy,
    QSlider,
    QVBoxLayout,
    QWidget,
)

from app.places import button, label
from app.theme import SIZE_TEXT, SPACE_S, SPACE_XS, Theme
from engine.catalog import Catalog, Entry
from engine.settings import describe, fits

STEPS = 240  # of a slider
DECADES = 3  # a slider's reach to both sides of the default, where a field on a log scale has no limits


class _Unset:
    """Stands for a setting that the recipe does not name, so that its default holds."""

    def __repr__(self) -> str:
        return "unset"


UNSET = _Unset()


@dataclass
class FormContext:
    """What fields need from around them."""

    catalog: Catalog
    paths: Callable[[], list[str]] = list  # the settings of the recipe that a search may vary
    sites: Callable[[], Mapping[str, Sequence[str]]] = dict  # the model's modules by role, as far as they are known
    open_card: Callable[[str], None] = field(default=lambda part: None)
    pick_source: Callable[[QWidget, Callable[[str], None]], None] = field(default=lambda at, take: None)
    judge: Callable[[str, Any], None] = field(default=lambda section, chooser: None)  # greys what does not fit there


class Field(QWidget):
    """The base: a value at a path of the recipe. `below`, where there is one, is shown under the whole row."""

    edited = Signal(str, object)  # path, the new value or UNSET
    settled = Signal()  # the person is done with it for now
    wide = False  # whether it takes the whole row

    def __init__(self, path: str, schema: Mapping[str, Any], context: FormContext):
        super().__init__()
        self.path = path
        self.schema = schema
        self.context = context
        self.default = schema.get("default", UNSET)
        self.value: Any = UNSET
        self.below: QWidget | None = None
        self.row = QHBoxLayout(self)
        self.row.setContentsMargins(0, 0, 0, 0)
        self.row.setSpacing(SPACE_S)

    @property
    def shown(self) -> Any:
        """The value, or the default where the recipe names none."""
        return self.default if self.value is UNSET else self.value

    @property
    def is_changed(self) -> bool:
        """Whether the recipe says something else than the default."""
        return self.value is not UNSET and not same(self.value, self.default)

    def show_value(self, value: Any, problems: Sequence[Any] = ()) -> None:
        """Shows what the recipe says; problems are those of this path and below it."""
        self.value = value
        self.refresh()

    def refresh(self) -> None:
        """Brings the widgets in line with `shown`."""

    def send(self, value: Any) -> None:
        """Reports a change by the person."""
        if value is not self.value and not (value is not UNSET and same(value, self.value)):
            self.edited.emit(self.path, value)

    def inputs(self) -> list[QWidget]:
        """The widgets that a person types or clicks into; the first one gets the focus of the label's key."""
        return []

    def mark(self, sentence: str) -> None:
        """Marks the inputs as wrong, or as right again."""
        for widget in self.inputs():
            if widget.property("invalid") != bool(sentence):
                widget.setProperty("invalid", bool(sentence))
                widget.style().unpolish(widget)
                widget.style().polish(widget)

    def name_for_readers(self, name: str, words: str) -> None:
        """What a screen reader says."""
        for number, widget in enumerate(self.inputs()):
            widget.setAccessibleName(name if number == 0 else f"{name}, {number + 1}")
            widget.setAccessibleDescription(words)

    def own_problems(self, problems: Sequence[Any]) -> list[Any]:
        """Those of the problems that are shown under this row; nested forms show their own."""
        return list(problems)


def same(a: Any, b: Any) -> bool:
    """Equal, and true is not 1."""
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


# -- plain text <-> values -------------------------------------------------------------------------------------------


def number_text(value: Any) -> str:
    """A number as a person would write it; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is UNSET or value is None else str(value)
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    text = repr(value)
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"{mantissa}e{int(exponent)}"
    return text


def read_number(text: str) -> Any:
    """The number that a text says; the text itself where it says none."""
    text = text.strip()
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text.replace("\u2212", "-"))
    except ValueError:
        return text


def list_text(value: Any) -> str:
    """A list as words between commas."""
    if not isinstance(value, list | tuple):
        return number_text(value)
    return ", ".join(toml_text(v) if isinstance(v, list | dict) else number_text(v) for v in value)


def read_list(text: str, schema: Mapping[str, Any]) -> Any:
    """The list that a text says, its items read as the schema asks."""
    text = text.strip()
    if "[" in text or "{" in text:
        return read_toml(text, listed=True)
    items = [item.strip() for item in text.split(",")]
    if items and not items[-1]:
        items.pop()
    numeric = schema.get("items", {}).get("type") in ("number", "integer")
    words = schema.get("items", {}).get("type") == "string"
    return [read_number(item) if numeric else item if words else read_scalar(item) for item in items]


def read_scalar(text: str) -> Any:
    """A number, true, false, or the text."""
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    return read_number(text)


def toml_text(value: Any) -> str:
    """Any value on one line, as TOML."""
    if value is UNSET or value is None:
        return ""
    text = tomlkit.item(value)
    if isinstance(value, Mapping):
        text = tomlkit.inline_table()
        text.update(value)
    return str(text.as_string()).strip()


def read_toml(text: str, listed: bool = False) -> Any:
    """The value that a line of TOML says; the text itself where it is none."""
    for trial in (text, f"[{text}]") if listed else (text,):
        try:
            return tomlkit.parse(f"value = {trial}\n").unwrap()["value"]
        except Exception:  # whatever is wrong with it, the text is kept and the recipe's check says so
            continue
    return text


# -- inputs that behave ------------------------------------------------------------------------------------------------


class SharedUndo(QObject):
    """Leaves the keys of undo to the window: a recipe has one history, whatever has the focus."""

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        keys = (QKeySequence.StandardKey.Undo, QKeySequence.StandardKey.Redo)
        override = event.type() == QEvent.Type.ShortcutOverride and isinstance(event, QKeyEvent)
        if override and any(event.matches(key) for key in keys):  # type: ignore[attr-defined]
            event.ignore()
            return True
        return False


class ComboBox(QComboBox):
    """Does not change by the wheel while a person scrolls past it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setMinimumContentsLength(8)

    def wheelEvent(self, event: QWheelEvent) -> None:
        if self.hasFocus():
            super().wheelEvent(event)
        else:
            event.ignore()


class Slider(QSlider):
    """A slider that the wheel passes over."""

    def __init__(self) -> None:
        super().__init__(Qt.Orientation.Horizontal)
        self.setRange(0, STEPS)
        self.setPageStep(STEPS // 12)
        self.setMinimumWidth(40)

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()


class LineField(Field):
    """A field of one line of text; subclasses say how a value is written and read."""

    def __init__(self, path: str, schema: Mapping[str, Any], context: FormContext):
        super().__init__(path, schema, context)
        self._typing = False  # since the last time that the line was left
        self.line = QLineEdit()
        self.line.installEventFilter(SharedUndo(self.line))
        self.line.textEdited.connect(self._typed)
        self.line.editingFinished.connect(self._left)
        self.line.setPlaceholderText(self.placeholder())
        self.row.addWidget(self.line, 1)

    def inputs(self) -> list[QWidget]:
        return [self.line]

    def placeholder(self) -> str:
        if self.default is UNSET:
            return ""
        return "none" if self.default in (None, "") else self.write(self.default)

    def write(self, value: Any) -> str:
        return number_text(value)

    def read(self, text: str) -> Any:
        return text

    def refresh(self) -> None:
        if self._typing:
            # What is being typed stays, as long as it says the same: '3e-4' does not jump to '0.0003'.
            text = self.line.text()
            said = UNSET if not text.strip() else self.read(text)
            if said is self.value or (said is not UNSET and self.value is not UNSET and same(said, self.value)):
                return
        self.show_text(self.write(self.shown))

    def show_text(self, text: str) -> None:
        if self.line.text() != text:
            self.line.setText(text)
            self.line.setCursorPosition(len(text) if self.line.hasFocus() else 0)

    def _typed(self, text: str) -> None:
        self._typing = True
        self.send(self.read(text) if text.strip() else UNSET)

    def _left(self) -> None:
        self._typing = False
        self.show_text(self.write(self.shown))
        self.settled.emit()


class TextField(LineField):
    """Plain text, with completions where the schema knows some."""

    def read(self, text: str) -> Any:
        return text


class LinesField(Field):
    """Text of several lines."""

    def __init__(self, path: str, schema: Mapping[str, Any], context: FormContext):
        super().__init__(path, schema, context)
        self.text = QPlainTextEdit()
        self.text.setTabChangesFocus(True)
        self.text.installEventFilter(SharedUndo(self.text))
        self.text.setFixedHeight(96)
        self.text.textChanged.connect(self._typed)
        self.row.addWidget(self.text)
        self._showing = False

    def inputs(self) -> list[QWidget]:
        return [self.text]

    def refresh(self) -> None:
        text = "" if self.shown is UNSET else str(self.shown)
        if self.text.toPlainText() != text:
            self._showing = True
            self.text.setPlainText(text)
            self._showing = False

    def _typed(self) -> None:
        if not self._showing:
            self.send(self.text.toPlainText() or UNSET)


class SitesField(TextField):
    """A selection of the model's modules; completes roles and paths once the engine has told them."""

    def __init__(self, path: str, schema: Mapping[str, Any], context: FormContext):
        super().__init__(path, schema, context)
        self._names = QStringListModel(self)
        completer = QCompleter(self._names, self)
        completer.setFilterMode(Qt.MatchFlag.MatchContains)
        completer.activated.connect(self._typed)
        self.line.setCompleter(completer)
        self.line.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.FocusIn:
            sites = self.context.sites()
            self._names.setStringList([*sites, *(path for paths in sites.values() for path in paths)])
        return super().eventFilter(watched, event)


class FileField(TextField):
    """A file: typed, chosen, or dropped."""

    def __init__(self, path: str, schema: Mapping[str, Any], context: FormContext):
        super().__init__(path, schema, context)
        self.choose = button("Choose…", self._choose)
        self.row.addWidget(self.choose)
        self.line.installEventFilter(self)

    def _choose(self) -> None:
        start = str(Path(self.line.text()).expanduser().parent) if self.line.text() else str(Path.home())
        dialog = QFileDialog(self, "Choose a file", start)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.fileSelected.connect(self._take)
        dialog.open()

    def _take(self, name: str) -> None:
        self.send(name)
        self.settled.emit()

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() in (QEvent.Type.DragEnter, QEvent.Type.Drop):
            urls = event.mimeData().urls()  # type: ignore[attr-defined]
            if urls and urls[0].isLocalFile():
                event.accept()
                if event.type() == QEvent.Type.Drop:
                    self._take(urls[0].toLocalFile())
                return True
        return super().eventFilter(watched, event)


class SourceField(TextField):
    """Something trained elsewhere: typed, or chosen among the runs and the recipe files."""

    def __init__(self, path: str, schema: Mapping[str, Any], context: FormContext):
        super().__init__(path, schema, context)
        self.choose = _source_button(self.open_menu)
        self.row.addWidget(self.choose)

    def open_menu(self) -> None:
        self.context.pick_source(self.choose, self._take)

    def _take(self, source: str) -> None:
        self.send(source)
        self.settled.emit()


class NumberField(LineField):
    """A number: typed, stepped with the arrow keys, or dragged where it has a range or a log scale."""

    def __init__(self, path: str, schema: Mapping[str, Any], context: FormContext, slides: bool = True):
        super().__init__(path, schema, context)
        self.whole = schema.get("type") == "integer"
        self.log = bool(schema.get("x-log"))
        self.line.installEventFilter(self)
        self.slider: Slider | None = None
        span = self._span() if slides else None
        if span is not None:
            self.low, self.high = span
            self.slider = Slider()
            self.slider.valueChanged.connect(self._slid)
            self.slider.sliderReleased.connect(self.settled)
            self.row.setStretch(0, 2)
            self.row.addWidget(self.slider, 3)
        if schema.get("x-unit"):
            self.row.addWidget(label(str(schema["x-unit"]), "muted"))
        if span is None and slides:
            self.line.setMaximumWidth(220)
            self.row.addStretch(0)

    def inputs(self) -> list[QWidget]:
        return [self.line] if self.slider is None else [self.line, self.slider]

    def write(self, value: Any) -> str:
        return number_text(value)

    def read(self, text: str) -> Any:
        return read_number(text)

    def refresh(self) -> None:
        super().refresh()
        if self.slider is not None and _is_number(self.shown):
            self.slider.blockSignals(True)
            self.slider.setValue(self._position(float(self.shown)))
            self.slider.blockSignals(False)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.KeyPress and isinstance(event, QKeyEvent):
            way = {Qt.Key.Key_Up: 1, Qt.Key.Key_Down: -1}.get(Qt.Key(event.key()))
            if way is not None and event.modifiers() == Qt.KeyboardModifier.NoModifier:
                self.step(way)
                return True
        return super().eventFilter(watched, event)

    def step(self, way: int) -> None:
        """To the next value: 1, 2, 5, 10 on a log scale, by a unit of the last digit elsewhere."""
        now = self.shown if _is_number(self.shown) else 0
        if self.log and now > 0:
            new: float = _next_nice(float(now), way)
        elif self.whole:
            new = int(now) + way
        else:
            unit = 10.0 ** math.floor(math.log10(abs(now)) - 1) if now else 0.01
            new = round(now + way * unit, 12)
        new = round(new) if self.whole else new
        if fits(self.schema, new):
            self.send(new)
            self.show_text(self.write(new))

    def _span(self) -> tuple[float, float] | None:
        low = self.schema.get("minimum", self.schema.get("exclusiveMinimum"))
        high = self.schema.get("maximum", self.schema.get("exclusiveMaximum"))
        if not self.log:
            return (float(low), float(high)) if low is not None and high is not None and not self.whole else None
        start = float(self.default) if _is_number(self.default) and self.default > 0 else 1e-3
        bottom = float(low) if low else start * 10.0**-DECADES
        return bottom, (float(high) if high else start * 10.0**DECADES)

    def _position(self, value: float) -> int:
        if not self.log:
            share = (value - self.low) / (self.high - self.low)
        elif value <= 0:
            share = 0.0
        else:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(STEPS * min(max(share, 0.0), 1.0))

    def _slid(self, position: int) -> None:
        share = position / STEPS
        if self.log:
            value = self.low * (self.high / self.low) ** share
            value = float(f"{value:.1e}")
        else:
            value = float(f"{self.low + (self.high - self.low) * share:.3g}")
        value = round(value) if self.whole else value
        if fits(self.schema, value):
            self.send(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _next_nice(value: float, way: int) -> float:
    """The next of ... 0.1 0.2 0.5 1 2 5 ... above or below."""
    exponent = math.floor(math.log10(value))
    nice = [float(f"{m}e{e}") for e in (exponent - 1, exponent, exponent + 1) for m in (1, 2, 5)]
    if way > 0:
        return next(n for n in nice if n > value * (1 + 1e-9))
    return next(n for n in reversed(nice) if n < value * (1 - 1e-9))


class SwitchField(Field):
    """True or false."""

    def __init__(self, path: str, schema: Mapping[str, Any], context: FormContext):
        super().__init__(path, schema, context)
        self.box = QCheckBox()
        self.box.clicked.connect(self._clicked)
        self.wrong = QLabel()
        self.box.setMinimumHeight(26)
        self.row.addWidget(self.box)
        self.row.addWidget(self.wrong)
        self.row.addStretch(1)

    def inputs(self) -> list[QWidget]:
        return [self.box]

    def refresh(self) -> None:
        self.box.setChecked(self.shown is True)
        odd = self.shown is not UNSET and not isinstance(self.shown, bool)
        self.wrong.setText(toml_text(self.shown) if odd else "")

    def _clicked(self, on: bool) -> None:
        self.send(on)
        self.settled.emit()


class ChoiceField(Field):
    """One of a few."""

    def __init__(self, path: str, schema: Mapping[str, Any], context: FormContext):
        super().__init__(path, schema, context)
        self.choices = list(schema["enum"])
        self.box = ComboBox()
        self.box.activated.connect(self._chosen)
        self.row.addWidget(self.box, 1)
        self.row.addStretch(1)

    def inputs(self) -> list[QWidget]:
        return [self.box]

    def refresh(self) -> None:
        value = self.shown
        index = next((i for i, choice in enumerate(self.choices) if same(choice, value)), -1)
        extra = [] if index >= 0 or value is UNSET else [toml_text(value)]
        names = [*(number_text(choice) for choice in self.choices), *extra]
        if [self.box.itemText(i) for i in range(self.box.count())] != names:
            self.box.clear()
            self.box.addItems(names)
        self.box.setCurrentIndex(index if index >= 0 else len(names) - 1 if extra else -1)

    def _chosen(self, index: int) -> None:
        if index < len(self.choices):
            self.send(self.choices[index])
            self.settled.emit()


class ListField(LineField):
    """A list of numbers or words, between commas."""

    def write(self, value: Any) -> str:
        return list_text(value)

    def read(self, text: str) -> Any:
        return read_list(text, self.schema)

    def placeholder(self) -> str:
        default = super().placeholder()
        return default or "values between commas"


class SourcesField(ListField):
    """Several things trained elsewhere; what is chosen is added to the list."""

    def __init__(self, path: str, schema: Mapping[str, Any], context: FormContext):
        super().__init__(path, schema, context)
        self.choose = _source_button(self.open_menu)
        self.row.addWidget(self.choose)

    def open_menu(self) -> None:
        self.context.pick_source(self.choose, self._append)

    def _append(self, source: str) -> None:
        self.send([*(self.shown if isinstance(self.shown, list | tuple) else []), source])
        self.settled.emit()


def _source_button(choose: Callable[[], None]) -> QPushButton:
    return button("Choose…", choose, tip="A run of this workspace, or a recipe file that is trained first.")


class TupleField(Field):
    """A fixed number of values, one input each."""

    def __init__(self, path: str, schema: Mapping[str, Any], context: FormContext):
        super().__init__(path, schema, context)
        defaults = self.default if isinstance(self.default, list | tuple) else []
        self.items: list[Field] = []
        for index, item in enumerate(schema["prefixItems"]):
            known = {"default": defaults[index]} if index < len(defaults) else {}
            part = make_field(f"{path}.{index}", {**item, **known}, context, slides=False)
            part.edited.connect(lambda _path, value, index=index: self._edited(index, value))
            part.settled.connect(self.settled)
            self.items.append(part)
            self.row.addWidget(part, 1)

    def inputs(self) -> list[QWidget]:
        return [widget for item in self.items for widget in item.inputs()]

    def refresh(self) -> None:
        values = self.value if isinstance(self.value, list | tuple) else []
        for index, item in enumerate(self.items):
            item.show_value(values[index] if index < len(values) else UNSET)

    def _edited(self, index: int, value: Any) -> None:
        values = [item.shown for item in self.items]
        values[index] = self.items[index].default if value is UNSET else value
        self.send([0 if v is UNSET else v for v in values])


class LooseField(LineField):
    """A value that may be of several types: read as the first type that takes it."""

    def write(self, value: Any) -> str:
        return number_text(value) if not isinstance(value, list | Mapping | bool) else toml_text(value)

    def read(self, text: str) -> Any:
        options = self.schema.get("anyOf", [])
        for trial in (read_scalar(text), read_toml(text), text):
            if any(fits(option, trial) for option in options):
                return trial
        return read_scalar(text)


class TomlField(LineField):
    """Whatever has no field of its own, as a line of TOML."""

    def write(self, value: Any) -> str:
        return toml_text(value)

    def read(self, text: str) -> Any:
        return read_toml(text)


def make_field(path: str, schema: Mapping[str, Any], context: FormContext, slides: bool = True) -> Field:
    """The field that a schema asks for."""
    from app.forms import parts

    schema = unwrapped(schema)
    for mark, kind in (("x-part", parts.PartField), ("x-parts", parts.PartsField), ("x-value", parts.ValueField)):
        if schema.get(mark):
            return kind(path, schema, context)
    if schema.get("x-space"):
        return parts.SpaceField(path, schema, context)
    if "enum" in schema:
        return ChoiceField(path, schema, context)
    if schema.get("type") in ("number", "integer"):
        return NumberField(path, schema, context, slides)
    if schema.get("type") == "string":
        marks = (
            *(("x-sites", SitesField), ("x-source", SourceField)),
            *(("x-file", FileField), ("x-lines", LinesField)),
        )
        return next((kind for mark, kind in marks if schema.get(mark)), TextField)(path, schema, context)
    if schema.get("items", {}).get("x-source"):
        return SourcesField(path, schema, context)
    if schema.get("type") == "array":
        return (TupleField if "prefixItems" in schema else ListField)(path, schema, context)
    if schema.get("type") == "boolean":
        return SwitchField(path, schema, context)
    return (LooseField if "anyOf" in schema else TomlField)(path, schema, context)


def unwrapped(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema that is one type or nothing, as that type; its default stays."""
    options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) != 1:
        return schema
    return {**options[0], **{key: value for key, value in schema.items() if key != "anyOf"}, "x-optional": True}


def help_text(schema: Mapping[str, Any]) -> str:
    """A field's tooltip: what it means, what it takes, what it is by default."""
    lines = [str(schema.get("description", "")).strip()]
    takes = describe(schema)
    if takes:
        lines.append(f"Takes {takes}.")
    default = schema.get("default", UNSET)
    if default is None:
        lines.append("By default: none.")
    elif default is not UNSET and default != "":
        lines.append(f"By default: {toml_text(default)}.")
    return "\n".join(line for line in lines if line)


def title_of(name: str, schema: Mapping[str, Any]) -> str:
    """A field's label."""
    title = str(schema.get("title") or name.replace("_", " "))
    return title[:1].upper() + title[1:] if len(title) > 2 or not title.islower() else title


def entry_line(entry: Entry) -> str:
    """One line of words on a part: the first sentence of its summary."""
    first = entry.summary.split(". ")[0].strip()
    return first if first.endswith(".") or not first else f"{first}."


def fixed_font(theme: Theme) -> QFont:
    """The system's font of equal widths. The family is set by name, because a parent's font would override it."""
    font = theme.font(SIZE_TEXT, fixed=True)
    font.setFamily(font.family())
    return font


def column(parent: QWidget, spacing: int = SPACE_XS) -> QVBoxLayout:
    """A column without margins."""
    layout = QVBoxLayout(parent)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(spacing)
    parent.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
    return layout
