"""Sweep: the plan becomes a queued recipe; runs and insight come from the log."""

from __future__ import annotations

import math

import pytest
from PySide6.QtCore import QSettings, Qt

from app.comparing.listing import View, build
from app.comparing.plan import combinations
from app.places import Context
from app.places.sweep import SweepPlace, best_of, importance
from app.theme import Theme
from engine.catalog import Catalog
from engine.log import Log
from engine.recipe import Recipe
from engine.workspace import Workspace
from tests.app.saved_runs import recipe, saved_run


@pytest.fixture(scope="module")
def catalog():
    return Catalog.load()


class Asked:
    """Keeps what the place asks of the engine; a real engine would start a service and train."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def queue(self, text: str, allow: object = ()) -> str:
        self.texts.append(text)
        return "sweep1"


@pytest.fixture
def place(qtbot, tmp_path, catalog, monkeypatch):
    workspace = Workspace(tmp_path / "workspace")
    settings = QSettings(str(tmp_path / "settings.ini"), QSettings.Format.IniFormat)
    context = Context(workspace, settings, Theme(settings))
    context.catalog = catalog
    asked = Asked()
    monkeypatch.setattr(context.engine, "open", lambda: asked)
    place = SweepPlace(context)
    place.asked = asked
    qtbot.addWidget(place)
    place.resize(1200, 700)
    place.show()
    place.on_screen = True
    place.refresh()
    yield place
    context.close()


def search(catalog) -> str:
    """Any search whose form has a space of lists."""
    return next(entry.id for entry in catalog.of_kind("search"))


def test_a_plan_becomes_a_recipe_with_a_search(qtbot, place, catalog):
    place.opened(recipe=recipe(name="mine"))
    plan = place.plan
    assert not plan.start.isEnabled() and "vary" in plan.start.toolTip()
    place.plan.document.choose("search", search(catalog))
    field = next(row.field for row in plan.pane.form.rows.values() if row.field.schema.get("x-space"))
    qtbot.mouseClick(field.add, Qt.MouseButton.LeftButton)
    line = field.lines[0]
    qtbot.keyClicks(line.path_box.lineEdit(), "optimizer.lr")
    qtbot.keyClick(line.path_box.lineEdit(), Qt.Key.Key_Return)
    qtbot.keyClicks(line.list, "0.001, 0.01, 0.1")
    qtbot.keyClick(line.list, Qt.Key.Key_Return)
    qtbot.waitUntil(plan.start.isEnabled, timeout=3000)
    assert plan.count.text() == "3 combinations"
    qtbot.mouseClick(plan.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: bool(place.asked.texts), timeout=3000)
    queued = Recipe.parse(place.asked.texts[0])
    assert queued.get("search.use") == search(catalog)
    assert queued.get("search.space") == {"optimizer.lr": [0.001, 0.01, 0.1]}
    assert queued.name == "mine" and queued.check(catalog) == []


def test_the_settings_on_offer_are_those_of_the_recipe(place):
    place.opened(recipe=recipe())
    paths = place.plan.paths()
    assert paths[0] == "seed" and "optimizer.lr" in paths and "training.batch_size" in paths
    assert not [path for path in paths if path.startswith("search") or path.endswith(".use")]


def test_another_base_keeps_the_search(place, catalog):
    place.opened(recipe=recipe(name="first"))
    place.plan.document.set("search.space", {"optimizer.lr": [0.1, 0.2]})
    place.opened(recipe=recipe(name="second"))
    assert place.plan.document.get("name") == "second"
    assert place.plan.space() == {"optimizer.lr": [0.1, 0.2]}


def test_a_wrong_value_is_named_and_nothing_starts(qtbot, place):
    place.opened(recipe=recipe(epochs=-1))
    place.plan.document.set("search.space", {"optimizer.lr": [0.1, 0.2]})
    assert not place.plan.start.isEnabled()
    assert "budget.epochs" in place.plan.problem.text()


def test_runs_of_the_sweep_and_the_best_of_them(qtbot, place):
    with Log(place.context.workspace.database) as log:
        sweep = log.create_run(recipe(), name="lr", kind="sweep", state="training")
        log.update_run(sweep, steps=12, metrics={"best val/accuracy": 0.9})
    for i in range(10):
        lr = 10 ** (-4 + i / 3)
        saved_run(place.context.workspace, sweep=sweep, name=f"lr {i}", lr=lr, points=20,
                  metrics={"val/accuracy": 0.9 - 0.01 * (i - 4) ** 2, "val/loss": 1.0})  # fmt: skip
    saved_run(place.context.workspace, name="another", points=20)
    place.refresh()
    qtbot.waitUntil(lambda: len(place.table.runs.rows) == 10, timeout=5000)
    assert place.measure.key == "val/accuracy"
    qtbot.waitUntil(lambda: place.best_name.text() == "lr 4", timeout=3000)
    assert "Training, 10 of 12 runs ended" in place.state.text()
    assert place.progress.value() == 10 and place.progress.maximum() == 12
    assert place.scatter.across.key == "setting:optimizer.lr" and len(place.scatter.plot.points) == 10
    went = []
    place.context.went.connect(lambda where, what: went.append((where, what)))
    qtbot.mouseClick(place.open_best, Qt.MouseButton.LeftButton)
    assert went[0][0] == "recipe" and Recipe.parse(went[0][1]["text"]).get("optimizer.lr") == pytest.approx(
        10 ** (-4 + 4 / 3)
    )
    qtbot.mouseClick(place.compare_all, Qt.MouseButton.LeftButton)
    assert went[1][0] == "compare" and len(went[1][1]["runs"]) == 10


def test_without_a_sweep_it_says_what_to_do(qtbot, place):
    qtbot.waitUntil(lambda: place.listing is not None, timeout=5000)
    assert place.middle.currentIndex() == 0
    assert not place.insight.isVisible()
    assert not place.plan.start.isEnabled()


def rows(outcome):
    made = []
    for i in range(40):
        lr, width = 0.1 * (i % 8 + 1), [16, 64][i // 8 % 2]
        made.append({
            "id": f"r{i}", "name": "", "state": "done", "seed": 0, "recipe": recipe(lr=lr, hidden=[width]),
            "metrics": {"val/accuracy": outcome(lr, width)}, "seconds": 1.0, "created": float(i), "checkpoints": [],
        })  # fmt: skip
    listing = build(made, View())
    return listing, listing.rows


def test_importance_names_what_matters():
    listing, made = rows(lambda lr, width: (lr - 0.4) ** 2)
    shares = importance(listing, made, "val/accuracy")
    assert (
        list(shares) == ["optimizer.lr", "model.hidden"]
        and shares["optimizer.lr"] > 0.7
        and shares["model.hidden"] < 0.05
    )


def test_best_is_of_finished_runs_only():
    listing, made = rows(lambda lr, width: math.nan if width == 16 else lr)
    assert best_of(made, "val/accuracy").metrics["val/accuracy"]["mean"] == pytest.approx(0.8)
    assert best_of(made, "missing") is None and listing.metrics == ("val/accuracy",)


def test_a_study_is_planned_and_started_like_a_search(qtbot, place, catalog):
    study = catalog.of_kind("study")[0]
    example = Recipe.of({key: value for key, value in catalog.example(study.id).items() if key != "study"})
    place.opened(recipe=example.text())
    plan = place.plan
    plan.document.set("search.space", {"optimizer.lr": [0.1, 0.2]})
    assert plan.section == "search" and [plan.kind.itemData(i) for i in range(plan.kind.count())] == ["search", "study"]
    plan.kind.choose("study")
    plan._kind_chosen("study")
    assert plan.document.get("study.use") == study.id and plan.document.get("search") is None
    assert plan.pane.path == "study" and plan.pane.form is not None, "its form comes from its schema"
    assert plan.why_not() == "" and plan.start.isEnabled()
    plan._counted({"runs": 12})
    assert plan.count.text() == "12 runs"
    qtbot.mouseClick(plan.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: bool(place.asked.texts), timeout=3000)
    queued = Recipe.parse(place.asked.texts[0])
    assert queued.plan == "study" and queued.check(catalog) == []
    plan._kind_chosen("search")
    assert plan.space() == {"optimizer.lr": [0.1, 0.2]}, "what was planned before is still there"


def test_a_study_shows_its_verdict_its_numbers_and_its_figures(qtbot, place):
    verdict = "The larger rate is better, over 4 runs."
    curve = {"kind": "curve", "title": "Ends", "series": [{"name": "loss", "x": [0.1, 0.2], "y": [2.0, 1.0]}]}
    with Log(place.context.workspace.database) as log:
        other = log.create_run(recipe(), name="other", kind="sweep", state="training")
        sweep = log.create_run(recipe(), name="rates", kind="sweep", state="done")
        log.update_run(sweep, steps=2, step=2, metrics={"difference": -1.0}, message=verdict)
        for _ in range(2):  # of two drawings of the same figure the newer one is shown
            log.add_figure(sweep, "any", "ends", curve)
    saved_run(place.context.workspace, sweep=sweep, name="one", points=20, metrics={"val/accuracy": 0.9})
    place.opened(run=sweep)
    qtbot.waitUntil(lambda: len(place.figures.cards) == 1, timeout=5000)
    assert place.verdict.text() == verdict and place.findings.text().startswith("difference: ")
    assert place.verdict.isVisible() and place.answer.isVisible()
    (card,) = place.figures.cards.values()
    assert card.view.figure["title"] == "Ends"
    place.which.choose(other)
    place.refresh()
    qtbot.waitUntil(lambda: not place.figures.cards, timeout=5000)
    assert not place.answer.isVisible(), "a sweep that still trains has no verdict"


def test_a_condition_survives_the_form_and_can_be_written_in_it(qtbot, place, catalog):
    place.opened(recipe=recipe())
    document = place.plan.document
    document.choose("search", search(catalog))
    space = {
        "optimizer": [{"use": "sgd"}, {"use": "adamw"}],
        "optimizer.lr": {"low": 0.1, "high": 1.0, "when": {"optimizer.use": ["sgd"]}},
        "model.dropout": {"values": [0.0, 0.1], "when": {"optimizer.use": ["adamw"]}},
    }
    document.set("search.space", space)
    field = next(row.field for row in place.plan.pane.form.rows.values() if row.field.schema.get("x-space"))
    qtbot.waitUntil(lambda: len(field.lines) == 3, timeout=3000)
    assert {line.path_text(): line.values() for line in field.lines} == space
    line = field.lines[2]
    assert line.sometimes.isChecked() and line.when.text() == '"optimizer.use" = ["adamw"]'
    line.when.clear()
    qtbot.keyClicks(line.when, '"optimizer.use" = ["sgd", "adamw"]')
    qtbot.keyClick(line.when, Qt.Key.Key_Return)
    assert document.get("search.space")["model.dropout"]["when"] == {"optimizer.use": ["sgd", "adamw"]}
    assert place.plan.count.text() == "2 of 3 settings count only with certain values of others."
    line.sometimes.click()
    assert document.get("search.space")["model.dropout"] == [0.0, 0.1]


def test_how_many_runs_a_space_makes():
    assert combinations({"a": [1, 2, 3], "b": ["x", "y"]}) == "6 combinations (3 × 2)"
    assert combinations({"a": {"low": 0, "high": 1}, "b": [1]}).startswith("1 of 2 settings from a range")
    assert combinations({}) == ""
