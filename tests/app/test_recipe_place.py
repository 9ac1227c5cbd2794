"""The recipe place, used as a person does: clicking, typing, dragging, and waiting for nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QMimeData, QPointF, QSettings, Qt, QUrl
from PySide6.QtGui import QDropEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QLabel

from app.forms.chooser import Chooser
from app.forms.outline import switch_rect
from app.forms.toml import line_of
from app.places import Context
from app.places.recipe import DRAFT, RecipePlace, read_seeds
from app.reader import EngineDesk
from app.theme import Theme
from engine.log import Log
from engine.recipe import Recipe
from engine.service.client import Engine
from engine.workspace import Workspace
from tests.app.small_catalog import small_catalog

TEXT = """name = "first"
seed = 3

[task]
use = "toy"

[model]
use = "plain"

[optimizer]
use = "crawl"
lr = 0.01

[[techniques]]
use = "prune"

[[techniques]]
use = "shake"
"""


class LoneDesk(EngineDesk):
    """The engine's desk with a service that ends at once: what is queued stays queued, for the test to read."""

    def open(self) -> Engine:
        return Engine(self._workspace, service_command=[sys.executable, "-c", "pass"])


@pytest.fixture
def context(qapp: Any, tmp_path: Path) -> Iterator[Context]:
    workspace = Workspace(tmp_path / "workspace")
    (workspace.folder / DRAFT).write_text(TEXT, encoding="utf-8")
    settings = QSettings(str(tmp_path / "settings.ini"), QSettings.Format.IniFormat)
    made = Context(workspace, settings, Theme(settings))
    made.engine.close()
    made.engine = LoneDesk(workspace, made)
    yield made
    made.close()


@pytest.fixture
def place(qtbot: Any, context: Context) -> RecipePlace:
    made = RecipePlace(context)
    qtbot.addWidget(made)
    made.resize(1200, 640)
    made.show()
    context._set_catalog(small_catalog())
    qtbot.waitUntil(lambda: made.loaded)
    return made


def open_chooser() -> Chooser:
    found = [w for w in QApplication.topLevelWidgets() if isinstance(w, Chooser) and w.isVisible()]
    assert len(found) == 1
    return found[0]


def choose(words: str) -> None:
    chooser = open_chooser()
    QTest.keyClicks(chooser.search, words)
    QTest.keyClick(chooser.search, Qt.Key.Key_Return)


def click_line(place: RecipePlace, path: str) -> None:
    rect = place.outline.line_rect(path)
    QTest.mouseClick(place.outline.viewport(), Qt.MouseButton.LeftButton, pos=rect.center())


def write(widget: Any, text: str) -> None:
    QTest.keySequence(widget, "Ctrl+A")
    QTest.keyClick(widget, Qt.Key.Key_Delete)
    QTest.keyClicks(widget, text)


def test_it_opens_on_the_draft_of_the_workspace(place: RecipePlace) -> None:
    assert place.document.text == TEXT and place.toml.edit.toPlainText() == TEXT
    assert place.name.text() == "first" and place.train_button.isEnabled()
    titles = [line.title for line in place.outline.lines.lines]
    assert titles[:3] == ["Recipe", "Task", "Model"]
    assert titles.index("Prune") + 1 == titles.index("Shake") == titles.index("Add a technique") - 1


def test_choosing_an_optimizer_through_the_popup(place: RecipePlace) -> None:
    click_line(place, "optimizer")
    QTest.mouseClick(place.pane.chooser_button, Qt.MouseButton.LeftButton)
    choose("leap")
    assert place.document.get("optimizer") == {"use": "leap", "lr": 0.01}
    assert 'use = "leap"' in place.toml.edit.toPlainText()
    assert place.pane.chooser_button.text().startswith("Leap")
    assert set(place.pane.form.rows) == {"lr", "reach"}


def test_what_a_procedure_does_not_need_is_kept_and_said(place: RecipePlace) -> None:
    before = place.document.get("model")
    place.document.choose("procedure", "solve")
    lines = {line.path: line for line in place.outline.lines.lines}
    assert [lines[name].part for name in ("model", "optimizer", "schedule")] == ["not used"] * 3
    assert lines["model"].words.startswith("Solve needs none") and not lines["model"].chosen
    assert place.document.get("model") == before
    place.document.take("model")
    assert not place.document.problems, "a recipe without a model is whole for it"
    place.document.choose("procedure", "direct")
    assert [problem.path for problem in place.document.problems] == ["model"]


def test_enter_on_a_line_opens_the_popup(place: RecipePlace) -> None:
    place.outline.select("model")
    QTest.keyClick(place.outline, Qt.Key.Key_Return)
    choose("wide")
    assert place.document.use("model") == "wide"


def test_a_wrong_value_shows_its_sentence_everywhere_and_stops_training(place: RecipePlace) -> None:
    click_line(place, "optimizer")
    line = place.pane.form.rows["lr"].field.line
    write(line, "-1")
    words = place.pane.form.findChild(QLabel, "problem-optimizer.lr")
    assert words.text() == "-1 is not a number greater than 0."
    assert not place.train_button.isEnabled()
    assert place.train_button.toolTip() == "optimizer.lr: -1 is not a number greater than 0."
    assert place.reason.text()
    assert place.problems.list.item(0).text() == "optimizer.lr: -1 is not a number greater than 0."
    row = place.outline.lines.row_of("optimizer")
    assert place.outline.lines.lines[row].mark == "problem"
    assert place.toml.edit.extraSelections()
    write(line, "0.5")
    assert place.train_button.isEnabled() and place.problems.list.count() == 0


def test_phases_are_added_edited_moved_and_taken_out(place: RecipePlace) -> None:
    lines = place.outline.lines

    def add() -> None:
        row = next(r for r, line in enumerate(lines.lines) if line.what == "add" and line.path == "phases")
        place.outline.scrollTo(lines.index(row))
        rect = place.outline.visualRect(lines.index(row))
        QTest.mouseClick(place.outline.viewport(), Qt.MouseButton.LeftButton, pos=rect.center())

    add()
    add()
    assert [phase["name"] for phase in place.document.get("phases")] == ["phase 1", "phase 2"]
    assert place.pane.title.text() == "PHASE" and place.pane.path == "phases.1"
    rows = place.pane.form.rows
    write(rows["name"].field.line, "sparse")
    write(rows["repeat"].field.line, "3")
    write(rows["optimizer"].field.line, "{ lr = 0.5 }")
    assert place.document.get("phases.1") == {
        "name": "sparse", "budget": {"epochs": 5}, "repeat": 3, "optimizer": {"lr": 0.5}
    }  # fmt: skip
    line = lines.lines[lines.row_of("phases.1")]
    assert (line.title, line.part, line.mark) == ("sparse", "3 times, 5 epochs", "changed")
    write(rows["optimizer"].field.line, "{ lr = -1 }")
    assert lines.lines[lines.row_of("phases.1")].mark == "problem" and not place.train_button.isEnabled()
    assert "phases.1.optimizer.lr" in place.problems.list.item(0).text()
    write(rows["optimizer"].field.line, "{ lr = 0.1 }")
    QTest.keyClick(place.outline, Qt.Key.Key_Up, Qt.KeyboardModifier.AltModifier)
    assert [phase["name"] for phase in place.document.get("phases")] == ["sparse", "phase 1"]
    QTest.keyClick(place.outline, Qt.Key.Key_Delete)
    assert [phase["name"] for phase in place.document.get("phases")] == ["phase 1"]
    place.document.stack.undo()
    assert len(place.document.get("phases")) == 2 and place.train_button.isEnabled()


def test_adding_switching_moving_and_taking_out_a_technique(place: RecipePlace) -> None:
    model = place.outline.lines
    row = next(r for r, line in enumerate(model.lines) if line.what == "add" and line.path == "techniques")
    rect = place.outline.visualRect(model.index(row))
    QTest.mouseClick(place.outline.viewport(), Qt.MouseButton.LeftButton, pos=rect.center())
    choose("table")
    uses = lambda: [part["use"] for part in place.document.get("techniques", [])]  # noqa: E731
    assert uses() == ["prune", "shake", "table"]
    assert place.pane.path == "techniques.2"
    assert place.pane.form.rows["file"].problem.text() == "table needs 'file': text."
    at = switch_rect(place.outline.line_rect("techniques.2")).center()
    QTest.mouseClick(place.outline.viewport(), Qt.MouseButton.LeftButton, pos=at)
    assert place.document.get("techniques.2.enabled") is False
    QTest.keyClick(place.outline, Qt.Key.Key_Space)
    assert place.document.get("techniques.2.enabled") is None
    QTest.keyClick(place.outline, Qt.Key.Key_Up, Qt.KeyboardModifier.AltModifier)
    assert uses() == ["prune", "table", "shake"] and place.outline.path == "techniques.1"
    QTest.keyClick(place.outline, Qt.Key.Key_Delete)
    assert uses() == ["prune", "shake"]
    for _ in range(5):
        QTest.mouseClick(place.tools["undo"], Qt.MouseButton.LeftButton)
    assert place.document.text == TEXT and not place.tools["undo"].isEnabled()


def test_dragging_changes_the_order_only_inside_its_list(place: RecipePlace) -> None:
    model = place.outline.lines
    first = model.row_of("techniques.0")
    data = model.mimeData([model.index(first)])
    move = Qt.DropAction.MoveAction
    nowhere = model.index(-1)
    assert not model.canDropMimeData(data, move, 1, 0, nowhere)
    assert model.canDropMimeData(data, move, first + 2, 0, nowhere)
    assert model.dropMimeData(data, move, first + 2, 0, nowhere)
    assert [part["use"] for part in place.document.get("techniques")] == ["shake", "prune"]
    assert place.outline.path == "techniques.1"
    place.document.stack.undo()
    assert [part["use"] for part in place.document.get("techniques")] == ["prune", "shake"]


def test_editing_the_text_changes_the_form_and_undo_brings_it_back(qtbot: Any, place: RecipePlace) -> None:
    click_line(place, "optimizer")
    edit = place.toml.edit
    edit.setPlainText(TEXT.replace("0.01", "0.25"))
    qtbot.waitUntil(lambda: place.document.get("optimizer.lr") == 0.25)
    assert place.pane.form.rows["lr"].field.line.text() == "0.25"
    QTest.keySequence(edit, "Ctrl+Z")
    assert edit.toPlainText() == TEXT and place.pane.form.rows["lr"].field.line.text() == "0.01"


def test_broken_text_waits_for_the_person(qtbot: Any, place: RecipePlace) -> None:
    place.toml.edit.setPlainText(TEXT + "[budget\n")
    qtbot.waitUntil(lambda: place.document.broken is not None)
    assert not place.toml.sentence.isHidden() and "not valid TOML" in place.toml.sentence.text()
    assert not place.pane.banner.isHidden() and not place.pane.area.isEnabled()
    assert not place.train_button.isEnabled()
    place.save()
    assert (place.context.workspace.folder / DRAFT).read_text() == TEXT + "[budget\n", "nothing typed is lost"
    with qtbot.waitSignal(place.context.said) as said:
        place.document.take("techniques.0")
    assert "Mend it first" in said.args[0] and place.document.text == TEXT + "[budget\n"
    place.document.drop_broken()
    assert place.pane.banner.isHidden() and place.train_button.isEnabled()


def test_the_form_of_a_default_makes_it_the_recipes_own(place: RecipePlace) -> None:
    place.outline.select("schedule")
    assert "(the default)" in place.pane.chooser_button.text()
    QTest.mouseClick(place.pane.chooser_button, Qt.MouseButton.LeftButton)
    choose("fall")
    assert place.document.get("schedule") == {"use": "fall"}
    place.outline.select("budget")
    write(place.pane.form.rows["epochs"].field.line, "3")
    assert place.document.get("budget") == {"epochs": 3}
    assert "epochs 3" in place.outline.lines.lines[place.outline.lines.row_of("budget")].part


def test_name_and_seed_are_a_form_too(place: RecipePlace) -> None:
    place.outline.select("")
    write(place.pane.form.rows["name"].field.line, "second")
    write(place.pane.form.rows["seed"].field.line, "-4")
    assert place.name.text() == "second"
    assert "not a whole number" in place.pane.form.rows["seed"].problem.text()


def test_advice_is_taken_in_one_step(place: RecipePlace) -> None:
    place.document.choose("optimizer", "leap")
    place.outline.select("optimizer")
    QTest.mouseClick(place.pane.advice, Qt.MouseButton.LeftButton)
    assert place.document.get("schedule") == {"use": "fall"} and place.document.get("training.batch_size") == 64
    place.document.stack.undo()
    assert place.document.get("schedule") is None and place.document.get("training") is None


def test_train_queues_one_run_a_seed(qtbot: Any, place: RecipePlace) -> None:
    with qtbot.waitSignal(place.context.went, timeout=10_000) as went:
        write(place.seeds, "1, 4-5")
        QTest.mouseClick(place.train_button, Qt.MouseButton.LeftButton)
    with Log(place.context.workspace.database) as log:
        runs = log.runs()
    assert sorted(run["seed"] for run in runs) == [1, 4, 5]
    assert went.args[0] == "runs" and went.args[1]["run"] in {run["id"] for run in runs}
    assert all(Recipe.parse(run["recipe"]).get("optimizer.lr") == 0.01 for run in runs)


def test_seeds_are_read_or_refused(place: RecipePlace) -> None:
    assert read_seeds("", 7) == [7] and read_seeds("2", 7) == [2] and read_seeds("0-2, 9", 7) == [0, 1, 2, 9]
    for wrong in ("a", "3-1", "-1", "0-1000", "1.5"):
        assert read_seeds(wrong, 0) is None
    write(place.seeds, "some")
    assert not place.train_button.isEnabled() and "Seeds are whole numbers" in place.train_button.toolTip()


def test_it_says_that_the_catalog_is_being_read(qtbot: Any, context: Context) -> None:
    made = RecipePlace(context)
    qtbot.addWidget(made)
    assert not made.train_button.isEnabled() and "catalog" in made.why_not()


def test_parts_come_from_the_library_also_before_it_is_ready(qtbot: Any, context: Context) -> None:
    made = RecipePlace(context)
    qtbot.addWidget(made)
    made.opened(add="shake")
    made.opened(add="leap")
    context._set_catalog(small_catalog())
    qtbot.waitUntil(lambda: made.loaded)
    assert [part["use"] for part in made.document.get("techniques")] == ["prune", "shake", "shake"]
    assert made.document.use("optimizer") == "leap"
    made.opened(trial="leap")
    assert made.document.get("techniques") is None and made.document.recipe.name == "try Leap"
    made.document.stack.undo()
    assert made.document.use("optimizer") == "leap" and made.document.get("techniques") is not None


def test_a_dropped_file_opens_and_saves_where_it_lies(qtbot: Any, place: RecipePlace, tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text(TEXT.replace("first", "other"), encoding="utf-8")
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(file))])
    left, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    place.dropEvent(QDropEvent(QPointF(5, 5), Qt.DropAction.CopyAction, data, left, none))
    qtbot.waitUntil(lambda: place.document.path == file)
    assert place.name.text() == "other" and place.file.text() == "other.toml"
    place.document.set("optimizer.lr", 0.125)
    assert place.file.text() == "other.toml · changed" and place.difference.table.rowCount() == 1
    place.save_file()
    qtbot.waitUntil(lambda: not place.document.modified)
    assert "0.125" in file.read_text(encoding="utf-8") and place.difference.table.rowCount() == 0


def test_a_file_that_is_no_recipe_is_refused_and_nothing_is_lost(
    qtbot: Any, place: RecipePlace, tmp_path: Path
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("[[", encoding="utf-8")
    with qtbot.waitSignal(place.context.said) as said:
        place.open_file(file)
    assert "not valid TOML" in said.args[0] and said.args[2] == "error"
    assert place.document.text == TEXT
    with qtbot.waitSignal(place.context.said) as said:
        place.open_file(tmp_path / "none.toml")
    assert "there is no recipe file" in said.args[0]


def test_every_edit_is_kept_in_the_workspace(qtbot: Any, place: RecipePlace) -> None:
    draft = place.context.workspace.folder / DRAFT
    place.document.set("optimizer.lr", 0.75)
    qtbot.waitUntil(lambda: "0.75" in draft.read_text(encoding="utf-8"))


def test_no_edit_blocks_the_window(place: RecipePlace) -> None:
    """The median of many edits, in the time of this thread: a busy machine must not decide."""
    click_line(place, "optimizer")
    line = place.pane.form.rows["lr"].field.line
    took = []
    for digit in "1234567890" * 3:
        begun = time.thread_time()
        QTest.keyClicks(line, digit)
        took.append(time.thread_time() - begun)
    assert sorted(took)[len(took) // 2] < 0.016


def test_a_path_is_found_in_the_text() -> None:
    lines = TEXT.split("\n")
    assert lines[line_of(TEXT, "optimizer.lr") or 0] == "lr = 0.01"
    assert lines[(line_of(TEXT, "techniques.1.n") or 0) + 1] == 'use = "shake"'
    assert line_of(TEXT, "budget.epochs") is None


def test_the_outline_speaks(place: RecipePlace) -> None:
    model = place.outline.lines
    place.document.enable("techniques.1", False)
    words = [model.index(r).data(Qt.ItemDataRole.AccessibleTextRole) for r in range(model.rowCount())]
    assert "Shake, off, changed" in words and "Optimizer, Crawl" in words
