"""What a recipe would do, beside its form: problems, model, schedule, data, order of techniques, difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import QObject, Qt, QTimer, Signal
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import (
    QAbstractItemView,
    QApplication,
    QHeaderView,
    QListWidget,
    QListWidgetItem,
    QScrollArea,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from app import words
from app.charts import Chart
from app.curves import Curve
from app.figures import FigureView
from app.forms.fields import toml_text
from app.places import Context, label
from app.questions import Question
from app.recipes import RecipeDocument
from app.theme import SPACE_M, SPACE_S
from engine.errors import Problem

SETTLE_MS = 350
PATIENCE_S = 90.0
SPLITS = ("train", "val", "test", "outer")
WORKING = "The engine works it out …"


class Previewer(QObject):
    """Asks the engine what the recipe would do, a moment after the last change, and hands on the newest answer."""

    answered = Signal(dict)
    state_changed = Signal(str)  # a sentence, or '' when the answer is that of the present text

    def __init__(self, context: Context, document: RecipeDocument, parent: QObject | None = None):
        super().__init__(parent)
        self.context = context
        self.document = document
        self.active = False
        self.state = ""
        self.sites: dict[str, list[str]] = {}
        self.calls: int | None = None  # of language models, roughly; None while no preview has told
        self._text = ""  # what was asked last
        self._question = Question(context, PATIENCE_S, self)
        self._question.answered.connect(self._take)
        self._question.failed.connect(self._failed)
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MS)
        self._settle.timeout.connect(self._ask)
        document.changed.connect(self._changed)
        document.checked.connect(self._changed)

    def set_active(self, on: bool) -> None:
        """Nothing is asked while the place is not on screen."""
        self.active = on
        if on:
            self._changed()

    def _changed(self) -> None:
        if not self.active or self.document.catalog is None:
            return
        if self.document.text == self._text:
            self._say(WORKING if self._question.open else "")
            return
        self._say("" if self._readable() else "The preview comes back when the problems are gone.")
        if self._readable():
            self._settle.start()
        else:
            self._settle.stop()

    def _readable(self) -> bool:
        document = self.document
        assert document.catalog is not None
        return document.broken is None and not document.recipe.check(document.catalog)

    def _ask(self) -> None:
        text = self.document.text
        if not self._readable() or text == self._text:
            return
        self._text = text
        self._say(WORKING)
        self._question.ask(lambda engine: engine.preview(text))

    def _take(self, answer: Mapping[str, Any]) -> None:
        self._say("")
        found = [Problem(p["path"], p.get("value"), p["message"]) for p in answer.get("problems", [])]
        self.calls = answer.get("calls") or None
        if answer.get("sites"):
            self.sites = dict(answer["sites"])
        self.document.add_problems(self._text, found)
        self.answered.emit(dict(answer))

    def _failed(self, error: Exception) -> None:
        self._text = ""
        self._say(f"There is no preview: {str(error) or type(error).__name__}")

    def _say(self, sentence: str) -> None:
        if sentence != self.state:
            self.state = sentence
            self.state_changed.emit(sentence)


class Panel(QWidget):
    """A tab of the preview: its words at the top, what it shows below."""

    def __init__(self, name: str, empty: str):
        super().__init__()
        self.setAccessibleName(name)
        self.empty = empty
        self.line = label(empty, "muted", wrap=True, selectable=True)
        self.column = QVBoxLayout(self)
        self.column.setContentsMargins(SPACE_M, SPACE_M, SPACE_M, SPACE_S)
        self.column.setSpacing(SPACE_S)
        self.column.addWidget(self.line)
        self.column.setAlignment(Qt.AlignmentFlag.AlignTop)


class Table(QTableWidget):
    """A plain table to read and to copy from."""

    def __init__(self, headings: Sequence[str], name: str, stretch: int = 0):
        super().__init__(0, len(headings))
        self.setHorizontalHeaderLabels(list(headings))
        self.setAccessibleName(name)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(24)
        self.setShowGrid(False)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setTabKeyNavigation(False)
        self.setWordWrap(False)
        self.setStyleSheet("QTableView::item { padding: 0 6px; }")
        header = self.horizontalHeader()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(stretch, QHeaderView.ResizeMode.Stretch)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        copy = QShortcut(QKeySequence(QKeySequence.StandardKey.Copy), self)
        copy.setContext(Qt.ShortcutContext.WidgetShortcut)
        copy.activated.connect(self.copy)

    def show_rows(self, rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
        """Fills the table; numbers stand at the right."""
        self.setRowCount(len(rows))
        for r, row in enumerate(rows):
            for c, text in enumerate(row):
                item = QTableWidgetItem(text)
                item.setToolTip(text)
                if c in right:
                    item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                self.setItem(r, c, item)

    def copy(self) -> None:
        """The selected rows, with tabs between the columns."""
        rows = sorted({index.row() for index in self.selectedIndexes()}) or range(self.rowCount())
        lines = ["\t".join(self._text(row, c) for c in range(self.columnCount())) for row in rows]
        QApplication.clipboard().setText("\n".join(lines))

    def _text(self, row: int, column: int) -> str:
        item = self.item(row, column)
        return item.text() if item is not None else ""


class ProblemsPanel(Panel):
    """Everything that is wrong, each in a sentence; a click goes there."""

    picked = Signal(str)

    def __init__(self, document: RecipeDocument):
        super().__init__("Problems", "Nothing is wrong with this recipe.")
        self.document = document
        self.list = QListWidget()
        self.list.setAccessibleName("Problems of the recipe")
        self.list.setWordWrap(True)
        self.list.setSpacing(2)
        self.list.itemClicked.connect(self._pick)
        self.list.itemActivated.connect(self._pick)
        self.column.addWidget(self.list, 1)
        document.checked.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        problems = self.document.problems
        self.list.clear()
        for problem in problems:
            item = QListWidgetItem(str(problem))
            item.setData(Qt.ItemDataRole.UserRole, problem.path)
            self.list.addItem(item)
        count = len(problems)
        self.line.setText(self.empty if not count else "One problem" if count == 1 else f"{count} problems")
        self.list.setVisible(bool(problems))

    def _pick(self, item: QListWidgetItem) -> None:
        self.picked.emit(str(item.data(Qt.ItemDataRole.UserRole)))


class ModelPanel(Panel):
    """Sizes of the model, and its layers."""

    def __init__(self) -> None:
        super().__init__("Model", "The model's layers come here once the engine has built it.")
        self.table = Table(("layer", "type", "output", "parameters"), "Layers of the model")
        self.table.hide()
        self.column.addWidget(self.table, 1)

    def show_answer(self, answer: Mapping[str, Any]) -> None:
        model = answer.get("model")
        if not model:
            return
        frozen = model["parameters"] - model["trainable"]
        parts = [f"{words.number(model['parameters'])} parameters"]
        if frozen:
            parts.append(f"{words.number(frozen)} of them frozen")
        if model.get("flops") is not None:
            flops = words.number(model["flops"])
            parts.append(f"{flops}{'' if flops[-1:].isalpha() else ' '}FLOP a sample")
        parts.append(f"about {words.size(model['memory_bytes'])} to train")
        if answer.get("steps"):
            parts.append(f"{answer['steps']:,} steps".replace(",", "\u202f"))
        self.line.setText("   ·   ".join(parts))
        rows = [
            (each["path"], each["type"], _shape(each.get("output")), f"{each['parameters']:,}".replace(",", "\u202f"))
            for each in model.get("layers", [])
        ]
        self.table.show_rows(rows, right=(3,))
        self.table.show()


def _shape(shape: Sequence[int] | None) -> str:
    return " × ".join(str(size) for size in shape) if shape else "–"


class SchedulePanel(Panel):
    """The learning rate, and whatever else changes over the run."""

    def __init__(self, context: Context):
        super().__init__("Schedule", "The curves of the learning rate and of other numbers over time come here.")
        self.context = context
        self.charts: dict[str, Chart] = {}
        inside = QWidget()
        self.rows = QVBoxLayout(inside)
        self.rows.setContentsMargins(0, 0, 0, 0)
        self.rows.setSpacing(SPACE_S)
        self.rows.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.area = QScrollArea()
        self.area.setWidgetResizable(True)
        self.area.setWidget(inside)
        self.column.addWidget(self.area, 1)

    def show_answer(self, answer: Mapping[str, Any]) -> None:
        schedule = answer.get("schedule")
        if not schedule:
            return
        series = schedule["series"]
        for name in [name for name in self.charts if name not in series]:
            chart = self.charts.pop(name)
            self.rows.removeWidget(chart)
            chart.hide()
            chart.deleteLater()
        for number, (name, values) in enumerate(series.items()):
            chart = self.charts.get(name) or self._new(name, number)
            chart.feed(name, schedule["steps"], values)
        self.line.setText("Over the steps of the run." if series else "Nothing changes over this run.")

    def _new(self, name: str, number: int) -> Chart:
        chart = Chart(self.context, name)
        chart.set_curves([Curve(name, name, number, smooth=False)])
        chart.setFixedHeight(190)
        self.rows.addWidget(chart)
        self.charts[name] = chart
        return chart


class DataPanel(Panel):
    """How much data there is, and some of it."""

    def __init__(self, context: Context):
        super().__init__("Data", "Some samples come here once the engine has loaded the task.")
        self.figure = FigureView(context)
        self.column.addWidget(self.figure, 1)

    def show_answer(self, answer: Mapping[str, Any]) -> None:
        data = answer.get("data")
        if not data:
            return
        splits = sorted(data["splits"].items(), key=lambda item: SPLITS.index(item[0]) if item[0] in SPLITS else 9)
        counts = [f"{count:,} {name}".replace(",", "\u202f") for name, count in splits]
        said = STREAMS.get(data.get("stream", "rows"), ())
        self.line.setText("   ·   ".join([*([f"Samples:   {counts[0]}"] if counts else []), *counts[1:], *said]))
        if data.get("figure"):
            self.figure.show_figure(data["figure"])


# Where training samples come from, where they are no stored rows.
STREAMS = {
    "whole": ("all of them in every step",),
    "drawn": ("training samples are drawn anew in every step",),
    "none": ("one problem, without samples",),
}


class OrderPanel(Panel):
    """In which order the parts of a step act."""

    def __init__(self, document: RecipeDocument):
        super().__init__("Order", "Which technique acts when, in one step, comes here.")
        self.document = document
        self.table = Table(("place", "parts that act there"), "Order of the parts in one step", stretch=1)
        self.table.hide()
        self.column.addWidget(self.table, 1)

    def show_answer(self, answer: Mapping[str, Any]) -> None:
        if "order" not in answer:
            return
        parts = self.document.catalog.parts if self.document.catalog else {}
        rows = []
        for row in answer["order"]:
            names = [parts[part].name if part in parts else part for part in row["parts"]]
            rows.append((row["position"], ", ".join(names) or "the engine"))
        self.line.setText("One step, from top to bottom. The recipe's order decides inside a place.")
        self.table.show_rows(rows)
        self.table.show()


class DifferencePanel(Panel):
    """What differs from the saved recipe."""

    def __init__(self, document: RecipeDocument):
        super().__init__("Difference", "Nothing differs from what was last saved.")
        self.document = document
        self.table = Table(("setting", "saved", "now"), "Difference to the saved recipe")
        self.column.addWidget(self.table, 1)
        document.changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        differences = self.document.differences()
        shown = [(d.path, _value(d.theirs), _value(d.mine)) for d in differences]
        self.line.setText(self.empty if not shown else f"{len(shown)} differ from what was last saved.")
        self.table.setVisible(bool(shown))
        self.table.show_rows(shown)


def _value(value: Any) -> str:
    return "not there" if value is None else toml_text(value)
