"""Forms: every kind of field shows what the recipe says and reports what a person does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QLabel, QWidget

from app.forms.chooser import Chooser, Finder
from app.forms.fields import (
    UNSET,
    ChoiceField,
    Field,
    FileField,
    FormContext,
    ListField,
    LooseField,
    NumberField,
    SitesField,
    SourceField,
    SourcesField,
    SwitchField,
    TextField,
    TomlField,
    TupleField,
    list_text,
    make_field,
    number_text,
    read_list,
    read_number,
    read_toml,
)
from app.forms.form import Form
from app.forms.parts import PartField, PartsField, SpaceField, ValueField
from engine.settings import check_settings
from tests.app.small_catalog import small_catalog

CATALOG = small_catalog()
CONTEXT = FormContext(CATALOG, paths=lambda: ["optimizer.lr", "model.hidden"], sites=lambda: {"norm": ["blocks.0.n"]})


class Held:
    """A form over plain settings: what a document does, without one."""

    def __init__(self, qtbot: Any, use: str, settings: Mapping[str, Any] | None = None):
        self.entry = CATALOG.parts[use]
        self.settings: dict[str, Any] = dict(settings or {})
        self.form = Form(self.entry.schema, "at", CONTEXT)
        self.form.edited.connect(self.edit)
        self.edits: list[tuple[str, Any]] = []
        qtbot.addWidget(self.form)
        self.form.resize(440, 600)
        self.form.show()
        self.refresh()

    def edit(self, path: str, value: Any) -> None:
        self.edits.append((path, value))
        _, *keys = path.split(".")
        here: Any = self.settings
        for key in keys[:-1]:
            here = here[int(key)] if isinstance(here, list) else here[key]
        if value is UNSET:
            here.pop(keys[-1], None)
        else:
            here[keys[-1]] = value
        self.refresh()

    def refresh(self) -> None:
        self.form.show_values(self.settings, check_settings(self.entry.schema, self.settings, "at", CATALOG, "it"))

    def field(self, name: str) -> Any:
        return self.form.rows[name].field

    def problem(self, name: str) -> str:
        words = self.form.rows[name].problem
        return words.text() if words.isVisible() else ""


def write(widget: QWidget, text: str) -> None:
    """Types over what stands in a line, as a person does."""
    widget.setFocus()
    QTest.keySequence(widget, "Ctrl+A")
    QTest.keyClick(widget, Qt.Key.Key_Delete)
    QTest.keyClicks(widget, text)


def open_chooser() -> Chooser:
    found = [w for w in QApplication.topLevelWidgets() if isinstance(w, Chooser) and w.isVisible()]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "number"}, NumberField),
        ({"type": "integer"}, NumberField),
        ({"type": "number", "exclusiveMinimum": 0, "x-log": True}, NumberField),
        ({"type": "boolean"}, SwitchField),
        ({"enum": ["a", "b"]}, ChoiceField),
        ({"type": "string"}, TextField),
        ({"type": "string", "x-sites": True}, SitesField),
        ({"type": "string", "x-file": True}, FileField),
        ({"type": "string", "x-source": True}, SourceField),
        ({"type": "array", "items": {"type": "string", "x-source": True}}, SourcesField),
        ({"type": "array", "items": {"type": "integer"}}, ListField),
        ({"type": "array", "prefixItems": [{"type": "number"}]}, TupleField),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, NumberField),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, LooseField),
        ({"x-part": "layer"}, PartField),
        ({"anyOf": [{"x-part": "layer"}, {"type": "null"}]}, PartField),
        ({"x-parts": "layer"}, PartsField),
        ({"type": "number", "x-value": True}, ValueField),
        ({"type": "object", "x-space": True}, SpaceField),
        ({"type": "object"}, TomlField),
    ],
)
def test_each_schema_has_its_field(qtbot: Any, schema: dict[str, Any], kind: type[Field]) -> None:
    field = make_field("a.b", schema, CONTEXT)
    qtbot.addWidget(field)
    assert type(field) is kind
    assert field.inputs()


@pytest.mark.parametrize("value", [1, -3, 0.1, 3e-4, 1e-8, 1.0, 2.5e10, 123456.789, 0])
def test_numbers_survive_their_text(value: float) -> None:
    back = read_number(number_text(value))
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize("value", [[1, 2, 3], [0.5], [], [[1], [2, 3]], [1e-3, 2.0]])
def test_lists_survive_their_text(value: list[Any]) -> None:
    assert read_list(list_text(value), {"items": {"type": "number"}}) == value


def test_what_is_no_toml_stays_text() -> None:
    assert read_toml("{a = 1") == "{a = 1"
    assert read_toml("{a = 1}") == {"a": 1}


def test_typing_a_number_changes_marks_and_resets(qtbot: Any) -> None:
    held = Held(qtbot, "crawl")
    row = held.form.rows["lr"]
    assert row.field.line.text() == "0.001" and not row.mark.on and not row.reset.isVisible()
    write(row.field.line, "3e-4")
    assert held.settings["lr"] == 3e-4
    assert row.field.line.text() == "3e-4", "what is typed is not rewritten under the cursor"
    assert row.mark.on and row.reset.isVisible()
    assert row.reset.accessibleName() == "Reset lr to 0.001"
    row.field.line.editingFinished.emit()
    qtbot.mouseClick(row.reset, Qt.MouseButton.LeftButton)
    assert held.settings == {} and not row.mark.on and row.field.line.text() == "0.001"


def test_a_wrong_value_is_kept_and_explained_under_its_field(qtbot: Any) -> None:
    held = Held(qtbot, "crawl")
    write(held.field("lr").line, "-1")
    assert held.settings["lr"] == -1
    assert held.problem("lr") == "-1 is not a number greater than 0."
    assert held.field("lr").line.property("invalid") is True
    assert held.field("lr").line.accessibleDescription() == "-1 is not a number greater than 0."
    write(held.field("lr").line, "fast")
    assert held.problem("lr") == '"fast" is not a number greater than 0.'
    write(held.field("lr").line, "0.5")
    assert held.problem("lr") == "" and held.field("lr").line.property("invalid") is False


def test_emptying_a_field_brings_its_default_back(qtbot: Any) -> None:
    held = Held(qtbot, "crawl", {"lr": 0.5})
    line = held.field("lr").line
    line.setFocus()
    QTest.keySequence(line, "Ctrl+A")
    QTest.keyClick(line, Qt.Key.Key_Delete)
    assert held.settings == {}
    line.editingFinished.emit()
    assert line.text() == "0.001"


def test_arrows_step_on_the_scale_of_the_field(qtbot: Any) -> None:
    held = Held(qtbot, "leap")
    line = held.field("lr").line
    line.setFocus()
    for wanted in (0.2, 0.5, 1.0):
        QTest.keyClick(line, Qt.Key.Key_Up)
        assert held.settings["lr"] == pytest.approx(wanted, rel=1e-12)
    QTest.keyClick(line, Qt.Key.Key_Down)
    assert held.settings["lr"] == pytest.approx(0.5)
    reach = held.field("reach").line
    for _ in range(5):
        QTest.keyClick(reach, Qt.Key.Key_Down)
    assert held.settings["reach"] == 1, "never below the least that it takes"


def test_a_slider_on_a_log_scale_agrees_with_its_number(qtbot: Any) -> None:
    held = Held(qtbot, "crawl")
    field = held.field("lr")
    assert field.slider.value() == pytest.approx(120), "the default is the middle"
    field.slider.setValue(160)
    assert held.settings["lr"] == pytest.approx(0.01, rel=0.01)
    assert field.line.text() == number_text(held.settings["lr"])


def test_switch_choice_list_and_pair(qtbot: Any) -> None:
    held = Held(qtbot, "plain")
    QTest.keyClick(held.field("bias").box, Qt.Key.Key_Space)
    assert held.settings["bias"] is False
    held.field("act").box.setFocus()
    QTest.keyClick(held.field("act").box, Qt.Key.Key_Down)
    assert held.settings["act"] == "gelu"
    write(held.field("hidden").line, "128, 64")
    assert held.settings["hidden"] == [128, 64]
    write(held.field("hidden").line, "128, 0")
    assert held.problem("hidden") == "0 is not a whole number of at least 1."
    pair = Held(qtbot, "crawl")
    write(pair.field("betas").items[1].line, "0.5")
    assert pair.settings["betas"] == [0.9, 0.5]


def test_a_value_that_is_no_choice_is_shown_and_marked(qtbot: Any) -> None:
    held = Held(qtbot, "plain", {"act": "rleu"})
    assert held.field("act").box.currentText() == '"rleu"'
    assert held.problem("act") == '"rleu" is not one of "relu", "gelu".'


def test_a_nested_part_is_chosen_in_the_popup_and_its_form_edits_below_it(qtbot: Any) -> None:
    held = Held(qtbot, "plain")
    field = held.field("norm")
    assert field.form is None
    qtbot.mouseClick(field.button, Qt.MouseButton.LeftButton)
    chooser = open_chooser()
    QTest.keyClicks(chooser.search, "cent")
    QTest.keyClick(chooser.search, Qt.Key.Key_Return)
    assert held.settings["norm"] == {"use": "centre"}
    eps = field.form.rows["eps"]
    write(eps.field.line, "0.1")
    assert held.edits[-1] == ("at.norm.eps", 0.1)
    qtbot.mouseClick(field.none, Qt.MouseButton.LeftButton)
    assert "norm" not in held.settings and field.form is None


def test_switching_a_nested_part_keeps_the_settings_that_fit(qtbot: Any) -> None:
    held = Held(qtbot, "plain", {"norm": {"use": "centre", "eps": 0.1}})
    held.field("norm")._choose("squeeze")
    assert held.settings["norm"] == {"use": "squeeze"}
    held.field("norm")._choose("centre")
    assert held.settings["norm"] == {"use": "centre"}


def test_a_list_of_parts_grows_moves_and_shrinks(qtbot: Any) -> None:
    held = Held(qtbot, "plain")
    field = held.field("stack")
    for word in ("centre", "squeeze"):
        qtbot.mouseClick(field.add, Qt.MouseButton.LeftButton)
        chooser = open_chooser()
        QTest.keyClicks(chooser.search, word)
        QTest.keyClick(chooser.search, Qt.Key.Key_Return)
    assert held.settings["stack"] == [{"use": "centre"}, {"use": "squeeze"}]
    field._move(1, 0)
    assert [part["use"] for part in held.settings["stack"]] == ["squeeze", "centre"]
    write(field.lines[0].form.rows["ratio"].field.line, "7")
    assert held.settings["stack"][0]["ratio"] == 7
    assert field.lines[0].form.rows["ratio"].problem.text() == "7 is not a number from 0 to 1."
    assert held.problem("stack") == ""
    field._send([])
    assert held.settings["stack"] == [] and field.lines == []


def test_a_number_over_time(qtbot: Any) -> None:
    held = Held(qtbot, "shake")
    field = held.field("amount")
    field.over_time.click()
    assert held.settings["amount"] == {"value": 0.1, "schedule": {"use": "still"}}
    field.schedule._choose("fall")
    write(field.schedule.form.rows["floor"].field.line, "0.5")
    write(field.number.line, "0.3")
    assert held.settings["amount"] == {"value": 0.3, "schedule": {"use": "fall", "floor": 0.5}}
    field.over_time.click()
    assert held.settings["amount"] == 0.3


def test_what_a_search_varies(qtbot: Any) -> None:
    held = Held(qtbot, "every")
    assert held.problem("space").startswith("It needs 'space': what to vary, such as {")
    field = held.field("space")
    qtbot.mouseClick(field.add, Qt.MouseButton.LeftButton)
    line = field.lines[0]
    line.path_box.setCurrentIndex(line.path_box.findText("optimizer.lr"))
    line.changed()
    write(line.list, "0.1, 0.2")
    assert held.settings["space"] == {"optimizer.lr": [0.1, 0.2]}
    line.how.setCurrentIndex(1)
    line._how_changed()
    line.log.click()
    assert held.settings["space"] == {"optimizer.lr": {"low": 0.1, "high": 0.2, "log": True}}
    field._remove(line)
    assert held.settings == {}


def test_a_setting_that_the_part_does_not_have_is_shown_and_can_be_taken_out(qtbot: Any) -> None:
    held = Held(qtbot, "crawl", {"rate": 3})
    words = held.form.findChild(QLabel, "problem-at.rate")
    assert not words.isHidden() and "rate = 3" in words.text()
    _, take = held.form._unknown["at.rate"]
    qtbot.mouseClick(take, Qt.MouseButton.LeftButton)
    assert held.settings == {} and not held.form._unknown


def test_tooltips_say_meaning_range_and_default(qtbot: Any) -> None:
    held = Held(qtbot, "plain")
    tip = held.form.rows["hidden"].label.toolTip()
    assert tip == "Units of each layer.\nTakes a list, each a whole number of at least 1.\nBy default: [64]."


def test_every_input_has_a_name_for_screen_readers(qtbot: Any) -> None:
    for part in CATALOG.parts:
        held = Held(qtbot, part)
        for row in held.form.rows.values():
            assert all(widget.accessibleName() for widget in row.field.inputs()), (part, row.name)


def test_a_file_field_takes_a_path(qtbot: Any) -> None:
    held = Held(qtbot, "table")
    assert held.problem("file") == "It needs 'file': text."
    held.field("file")._take("/tmp/a.csv")
    assert held.settings["file"] == "/tmp/a.csv" and held.problem("file") == ""


def test_a_value_of_several_types(qtbot: Any) -> None:
    held = Held(qtbot, "look")
    write(held.field("limit").line, "12")
    assert held.settings["limit"] == 12
    write(held.field("limit").line, "few")
    assert held.settings["limit"] == "few"


def test_finding_puts_names_first() -> None:
    finder = Finder(list(CATALOG.parts.values()))
    assert finder.find("lea")[0].id == "leap"
    assert [entry.id for entry in finder.find("valleys 2001.00001")] == ["leap"]
    assert finder.find("no such words") == []


def test_the_popup_is_driven_by_keys(qtbot: Any) -> None:
    chooser = Chooser(CATALOG.of_kind("technique"), "technique", "prune")
    qtbot.addWidget(chooser)
    chooser.show()
    assert chooser.list.current is not None and chooser.list.current.id == "prune"
    with qtbot.waitSignal(chooser.chosen) as chosen:
        QTest.keyClick(chooser.search, Qt.Key.Key_Down)
        QTest.keyClick(chooser.search, Qt.Key.Key_Return)
    assert chosen.args == ["shake"]
