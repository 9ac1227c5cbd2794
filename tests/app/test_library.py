"""The library: finding parts, reading their cards, and taking them to the recipe."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QSettings, Qt
from PySide6.QtTest import QTest

from app.forms.evidence import interval, read_evidence, spoken
from app.places import CatalogState, Context
from app.places.library import LibraryPlace
from app.places.recipe import RecipePlace
from app.theme import Theme
from engine import catalog
from engine.workspace import Workspace
from tests.app.small_catalog import small_catalog

MEASURED = {
    "claim": "Leaping gets further.",
    "metric": "test/accuracy",
    "baseline": {"mean": 0.9, "std": 0.01, "n": 4, "values": [0.89, 0.9, 0.9, 0.91]},
    "method": {"mean": 0.95, "std": 0.02, "n": 4},
    "effect": 0.05,
    "holds": True,
    "seconds": 12.0,
    "machine": "two cores",
    "date": "2026-02-03",
}


@pytest.fixture
def place(qtbot: Any, tmp_path: Path) -> Iterator[LibraryPlace]:
    settings = QSettings(str(tmp_path / "settings.ini"), QSettings.Format.IniFormat)
    context = Context(Workspace(tmp_path / "workspace"), settings, Theme(settings))
    made = LibraryPlace(context)
    qtbot.addWidget(made)
    made.resize(1200, 640)
    made.show()
    context._set_catalog(small_catalog())
    yield made
    context.close()


def shown(place: LibraryPlace) -> list[str]:
    return [entry.id for entry in place.list.entries.entries]


def test_a_catalog_that_cannot_be_made_is_said_and_tried_again(
    qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = QSettings(str(tmp_path / "settings.ini"), QSettings.Format.IniFormat)
    context = Context(Workspace(tmp_path / "workspace"), settings, Theme(settings))
    places = [LibraryPlace(context), RecipePlace(context)]
    for place in places:
        qtbot.addWidget(place)
        place.resize(1200, 640)
        place.show()
    states = [place.findChild(CatalogState) for place in places]
    assert all("is being read" in state.sentence.text() and not state.again.isVisible() for state in states)
    with monkeypatch.context() as broken:
        broken.setattr(catalog, "cache_folder", lambda: tmp_path)
        broken.setattr(catalog.sys, "executable", shutil.which("false"))
        context.load_catalog()
        qtbot.waitUntil(lambda: all(state.again.isVisible() for state in states), timeout=10_000)
    assert all("could not be made" in state.sentence.text() for state in states)
    assert "could not be read" in places[1].why_not()
    qtbot.mouseClick(states[1].again, Qt.MouseButton.LeftButton)
    assert "is being read" in states[0].sentence.text()
    qtbot.waitUntil(lambda: context.catalog is not None, timeout=60_000)
    assert not any(state.isVisible() for state in states) and places[0].card.body.isVisible()
    context.close()


def test_it_lists_every_part_by_name(place: LibraryPlace) -> None:
    assert len(shown(place)) == len(small_catalog().parts)
    names = [entry.name.lower() for entry in place.list.entries.entries]
    assert names == sorted(names)
    assert place.count.text() == f"{len(names)} parts"


def test_words_slot_and_kind_narrow_it(place: LibraryPlace) -> None:
    QTest.keyClicks(place.search, "valleys")
    assert shown(place) == ["leap"] and place.card.title.text() == "Leap"
    place.search.clear()
    place.kinds.setCurrentText("technique")
    place.filter()
    assert shown(place) == ["prune", "shake", "table"]
    place.slots.setCurrentText("sparsity")
    place.filter()
    assert shown(place) == ["prune"]


def test_nothing_found_says_so_and_offers_the_way_back(place: LibraryPlace) -> None:
    QTest.keyClicks(place.search, "zzz")
    assert shown(place) == [] and not place.none.isHidden()
    place._show_all()
    assert len(shown(place)) == len(small_catalog().parts) and place.none.isHidden()


def test_the_card_says_all_that_is_known(place: LibraryPlace) -> None:
    place.show_part("leap")
    card = place.card
    assert card.summary.text().startswith("Does what Leap does")
    assert card.formula.text() == "w <- w - lr g"
    assert card.blocks["When it helps"][1].text() == "Where valleys are wide."
    assert card.blocks["When it does not"][1].text() == "Where they are narrow."
    assert card.blocks["What it costs"][1].text() == "One buffer a weight."
    rows = [[card.parameters.item(r, c).text() for c in range(3)] for r in range(card.parameters.rowCount())]
    assert rows == [["lr", "0.1", "a number greater than 0"], ["Reach", "3", "a whole number of at least 1"]]
    assert "https://arxiv.org/abs/2001.00001" in card.papers.text()
    assert "schedule" in card.blocks["Good to know"][1].text()
    assert card.blocks["Measured here"][0].isHidden()


def test_what_a_part_does_not_say_takes_no_room(place: LibraryPlace) -> None:
    place.show_part("still")
    hidden = {name for name, (holder, _) in place.card.blocks.items() if holder.isHidden()}
    assert hidden == set(place.card.blocks)


def test_a_part_goes_to_the_recipe(qtbot: Any, place: LibraryPlace) -> None:
    place.show_part("shake")
    with qtbot.waitSignal(place.context.went) as went:
        QTest.mouseClick(place.card.add, Qt.MouseButton.LeftButton)
    assert went.args == ["recipe", {"add": "shake"}]
    with qtbot.waitSignal(place.context.went) as went:
        QTest.mouseClick(place.card.trial, Qt.MouseButton.LeftButton)
    assert went.args == ["recipe", {"trial": "shake"}]


def test_a_part_without_a_section_says_where_it_belongs(place: LibraryPlace) -> None:
    place.show_part("centre")
    assert not place.card.add.isEnabled()
    assert place.card.where.text() == "A layer is chosen in a field of another part."


def test_what_was_measured_is_shown(place: LibraryPlace, tmp_path: Path) -> None:
    (tmp_path / "leap.json").write_text(json.dumps(MEASURED), encoding="utf-8")
    (tmp_path / "damaged.json").write_text("{", encoding="utf-8")
    evidence = read_evidence(tmp_path)
    assert set(evidence) == {"leap"}
    place.card.show_evidence(evidence)
    place.show_part("leap")
    assert not place.card.blocks["Measured here"][0].isHidden()
    assert place.card.measurements[0].claim.text() == "Leaping gets further."
    assert place.card.measurements[0].verdict.text().startswith("The claim held: test/accuracy 0.95")
    assert place.card.measurements[0].provenance.text() == "two cores   ·   2026-02-03   ·   12 s"
    place.card.measurements[0].plot.grab()
    low, high = place.card.measurements[0].plot.span()
    assert low < 0.885 and high > 0.981
    assert "did not hold" in spoken({**MEASURED, "holds": False})


def test_the_interval_is_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    for n in (2, 3, 5, 12, 31):
        low, high = interval({"mean": 1.0, "std": 0.3, "n": n})
        half = stats.t.ppf(0.975, n - 1) * 0.3 / math.sqrt(n)
        assert high - 1.0 == pytest.approx(half, rel=1e-3) and 1.0 - low == pytest.approx(half, rel=1e-3)
    assert interval({"mean": 1.0, "std": 0.0, "n": 1}) == (1.0, 1.0)


def test_the_choice_survives_a_restart(qtbot: Any, place: LibraryPlace) -> None:
    place.show_part("shake")
    place.kinds.setCurrentText("technique")
    place.filter()
    place.save()
    again = LibraryPlace(place.context)
    qtbot.addWidget(again)
    assert again.list.current is not None and again.list.current.id == "shake"
    assert again.kinds.currentText() == "technique"


def test_it_can_be_used_by_keys_alone(qtbot: Any, place: LibraryPlace) -> None:
    place.list.setFocus()
    QTest.keyClick(place.list, Qt.Key.Key_End)
    with qtbot.waitSignal(place.context.went) as went:
        QTest.keyClick(place.list, Qt.Key.Key_Return)
    assert went.args[1] == {"add": place.list.current.id}
