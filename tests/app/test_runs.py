"""Runs: the list, the dashboard, the details, and what can be done with a run on the real engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PySide6.QtCore import QItemSelectionModel, QSettings, Qt
from PySide6.QtGui import QGuiApplication
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QInputDialog, QMessageBox

from app import words
from app.forms.chooser import Chooser
from app.places import Context
from app.places.dashboard import chart_of, chart_title, plan_charts
from app.places.runlist import main_metric, order, progress, row_text, time_left
from app.places.runs import RunsPlace, headline
from app.states import RunColours
from engine.log import Log, SeriesInfo, SeriesWriter
from engine.workspace import Workspace
from tests.app.conftest import TOML


@pytest.fixture
def place(qtbot: Any, frame_context: Context, write_run: Callable[..., str]) -> RunsPlace:
    """The place with three ended runs, the newest selected."""
    for number in range(3):
        write_run(f"run {number}")
    return opened(qtbot, frame_context)


def opened(qtbot: Any, context: Context) -> RunsPlace:
    made = RunsPlace(context)
    qtbot.addWidget(made)
    made.resize(1200, 800)
    made.show()
    context.reader.changed.connect(made.refresh)
    made.refresh()
    qtbot.waitUntil(lambda: bool(made.selected()) or made._stack.currentWidget() is made._empty)
    return made


def row(workspace: Workspace, run: str) -> dict[str, Any]:
    with Log(workspace.database, readonly=True) as log:
        found = log.run(run)
    assert found is not None
    return found


def select(place: RunsPlace, *rows: int) -> None:
    model = place.list.selectionModel()
    place.list.setCurrentIndex(place.model.index(rows[0]))
    for number in rows[1:]:
        model.select(place.model.index(number), QItemSelectionModel.SelectionFlag.Select)


# -- the list ----------------------------------------------------------------------------------------------------------


def test_live_runs_come_first_then_the_queue_then_the_newest() -> None:
    def run(id: str, state: str, created: float, **more: Any) -> dict[str, Any]:
        return {"id": id, "state": state, "created": created, "priority": 0, "position": created, **more}

    runs = [run("old", "done", 1), run("new", "failed", 9), run("live", "training", 2), run("q2", "queued", 4),
            run("q1", "queued", 3), run("urgent", "queued", 5, priority=1)]  # fmt: skip
    assert [entry["id"] for entry in order(runs)] == ["live", "urgent", "q1", "q2", "new", "old"]


def test_progress_and_time_left() -> None:
    run = {"state": "training", "step": 100, "steps": 400, "epochs": None, "epoch": 0, "seconds": 30.0, "ended": None}
    assert progress(run) == 0.25 and time_left(run) == pytest.approx(90.0)
    assert row_text(run) == "25 % · 1 min 30 s left"
    assert progress({**run, "steps": None}) is None and time_left({**run, "state": "done"}) is None


@pytest.mark.parametrize(
    ("metrics", "name"),
    [({"train/loss": 1, "val/loss": 2, "val/accuracy": 3}, "val/accuracy"), ({"val/loss": 2}, "val/loss"),
     ({"train/loss": 1}, "train/loss"), ({}, None)],
)  # fmt: skip
def test_the_metric_at_a_glance(metrics: dict[str, float], name: str | None) -> None:
    assert main_metric(metrics) == name


def test_the_list_keeps_the_selection_while_rows_come_and_go(
    qtbot: Any, place: RunsPlace, workspace: Workspace, write_run: Callable[..., str]
) -> None:
    chosen = place.selected()[0]["id"]
    live = write_run("live", state="training", started=time.time())
    qtbot.waitUntil(lambda: place.model.shown[0]["id"] == live)
    assert [run["id"] for run in place.selected()] == [chosen]
    with Log(workspace.database) as log:
        log.delete_run(place.model.shown[-1]["id"])
    qtbot.waitUntil(lambda: len(place.model.shown) == 3)
    assert [run["id"] for run in place.selected()] == [chosen]


def test_search_and_states(qtbot: Any, place: RunsPlace, write_run: Callable[..., str]) -> None:
    write_run("other thing", state="failed")
    qtbot.waitUntil(lambda: len(place.model.shown) == 4)
    place.focus_search()
    qtbot.keyClicks(place.search, "run 1")
    assert [run["name"] for run in place.model.shown] == ["run 1"]
    place.search.clear()
    place._show_states(("failed", "diverged", "interrupted"))
    assert [run["name"] for run in place.model.shown] == ["other thing"]


def test_spark_lines_come_for_rows_on_screen(qtbot: Any, place: RunsPlace) -> None:
    run = place.model.shown[0]["id"]
    qtbot.waitUntil(lambda: run in place.model.sparks)
    line = place.model.sparks[run]
    assert line == sorted(line) and line[-1] == pytest.approx(1 - 0.9 * np.exp(-4))
    assert place.list.grab().width() > 100  # the delegate paints


def test_a_queued_run_is_dragged_between_its_neighbours(
    qtbot: Any, with_engine: Context, place: RunsPlace, workspace: Workspace
) -> None:
    with Log(workspace.database) as log:
        queued = [log.create_run(TOML, name=f"q{number}") for number in range(3)]
        for number, run in enumerate(queued):
            log.update_run(run, position=float(number))
    qtbot.waitUntil(lambda: [run["id"] for run in place.model.shown[:3]] == queued)
    model = place.model
    assert model.position(queued[2], 1) == 0.5
    assert model.position(queued[0], 6) == 3.0 and model.position(queued[2], 0) == -1.0
    assert model.flags(model.index(0)) & Qt.ItemFlag.ItemIsDragEnabled
    assert not model.flags(model.index(4)) & Qt.ItemFlag.ItemIsDragEnabled
    data = model.mimeData([model.index(2)])
    with qtbot.waitSignal(model.moved) as caught:
        model.dropMimeData(data, Qt.DropAction.MoveAction, 1, 0, model.index(-1))
    assert caught.args == [queued[2], 0.5]


def test_without_runs_it_says_what_to_do(qtbot: Any, frame_context: Context) -> None:
    place = opened(qtbot, frame_context)
    went: list[str] = []
    frame_context.went.connect(lambda where, _what: went.append(where))
    place._empty.findChildren(type(place.header.pause))[0].click()
    assert went == ["recipe"]


# -- the dashboard -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("series", "found"),
    [("train/loss", ("loss", "train", "train")), ("val@ema/accuracy", ("accuracy", "val ema", "val")),
     ("sparsity", ("sparsity", "", "")), ("sparsity/blocks.0", ("sparsity by layer", "blocks.0", "")),
     ("critic/lr", ("lr", "critic", "")), ("throughput", ("throughput", "", "")),
     ("train/term/penalty", ("term/penalty", "train", "train"))],
)  # fmt: skip
def test_a_series_finds_its_chart(series: str, found: tuple[str, str, str]) -> None:
    assert chart_of(series) == found


def test_titles_are_words() -> None:
    assert [chart_title(name) for name in ("lr", "gradient-norm", "probe/x/sharp_ness")] == [
        "Learning rate", "Gradient norm", "X · sharp ness"]  # fmt: skip


def test_the_dashboard_shows_every_series_of_the_run(qtbot: Any, place: RunsPlace) -> None:
    board = place.dashboard
    qtbot.waitUntil(lambda: len(board.charts) == 8)
    names = "loss accuracy sparsity lr gradient-norm throughput utilization"
    assert board.order() == [*names.split(), "sparsity by layer"]
    qtbot.waitUntil(lambda: len(board.charts["loss"].drawn) == 2)
    loss = board.charts["loss"]
    assert [(curve.name, curve.validation) for curve in loss.curves] == [("train", False), ("val", True)]
    assert len({curve.colour for curve in loss.curves}) == 1  # one run, one colour
    run = place.selected()[0]["id"]
    np.testing.assert_allclose(loss.drawn[f"{run} val/loss"].y[-1], 2.1 * np.exp(-4) + 0.15, rtol=1e-12)
    assert all(chart.view.viewRange()[0] == [0.0, 200.0] for chart in board.charts.values() if chart.drawn)


def test_live_points_appear(qtbot: Any, frame_context: Context, workspace: Workspace) -> None:
    with Log(workspace.database) as log:
        run = log.create_run(TOML, name="live")
    with SeriesWriter(workspace.database, run, interval=0.05) as writer:
        handle = writer.series("train/loss")
        writer.run(state="training", started=time.time(), step=1, steps=1000)
        writer.extend(handle, np.arange(100), np.linspace(3, 2, 100))
        place = opened(qtbot, frame_context)
        key = f"{run} train/loss"
        chart = lambda: place.dashboard.charts.get("loss")  # noqa: E731
        qtbot.waitUntil(lambda: chart() is not None and key in chart().drawn, timeout=10_000)
        writer.extend(handle, np.arange(100, 150), np.linspace(2, 1, 50))
        writer.run(step=150)
        qtbot.waitUntil(lambda: chart().drawn[key].last == 1.0, timeout=10_000)
        qtbot.waitUntil(lambda: place.header.bar.value() == 150)
        assert place.header.line.text().startswith("step 150 of 1,000")


def test_several_runs_lie_over_each_other_in_their_colours(qtbot: Any, place: RunsPlace) -> None:
    select(place, 0, 1, 2)
    qtbot.waitUntil(lambda: "loss" in place.dashboard.charts and len(place.dashboard.charts["loss"].drawn) == 6)
    curves = place.dashboard.charts["loss"].curves
    assert {curve.name for curve in curves} == {f"run {n} {split}" for n in range(3) for split in ("train", "val")}
    for curve in curves:
        assert curve.colour == place.context.colours.index(curve.run)
    assert "utilization" not in place.dashboard.charts and "and 2 more" in place.header.name.text()


def test_zooming_one_chart_zooms_all_and_reset_brings_them_back(qtbot: Any, place: RunsPlace) -> None:
    board = place.dashboard
    qtbot.waitUntil(lambda: len(board.charts) == 8 and len(board.charts["lr"].drawn) == 1)
    board.charts["loss"].spanned.emit((50.0, 100.0))
    qtbot.waitUntil(lambda: board.charts["lr"].view.viewRange()[0] == [50.0, 100.0])
    place.context.actions.carry_out("charts.reset")
    qtbot.waitUntil(lambda: board.charts["lr"].view.viewRange()[0] == [0.0, 200.0])


def test_one_chart_fills_the_dashboard_and_charts_are_arranged(qtbot: Any, place: RunsPlace) -> None:
    board = place.dashboard
    qtbot.waitUntil(lambda: len(board.charts) == 8)
    board.toggle("accuracy")
    assert [name for name, chart in board.charts.items() if not chart.isHidden()] == ["accuracy"]
    board.toggle("accuracy")
    assert not any(chart.isHidden() for chart in board.charts.values())
    qtbot.waitUntil(lambda: board.charts["throughput"].y() > 0 or board.charts["throughput"].x() > 300)
    board.move_chart("throughput", board.charts["loss"].geometry().center())
    assert board.order()[:2] == ["throughput", "loss"]
    board.save()
    assert str(place.context.settings.value("runs/charts")).startswith("throughput\nloss")


def test_time_runs_along_x_when_asked(qtbot: Any, place: RunsPlace) -> None:
    board = place.dashboard
    qtbot.waitUntil(lambda: "lr" in board.charts)
    board.set_clock("time")
    qtbot.waitUntil(lambda: board.charts["loss"].clock == "time" and board.charts["loss"].bottom.clock == "time")
    board.set_clock("step")


def test_whatever_a_run_has_counted_runs_along_x(
    qtbot: Any, frame_context: Context, write_run: Callable[..., str], workspace: Workspace
) -> None:
    id = write_run("counted")
    with SeriesWriter(workspace.database, id) as writer:
        for name, each in (("count/gradient-passes", 3.0), ("epoch", 0.1)):
            handle = writer.series(name)
            for step in range(10, 201, 10):
                writer.add(handle, step, step * each)
    place = opened(qtbot, frame_context)
    board = place.dashboard
    qtbot.waitUntil(
        lambda: "loss" in board.charts and board._axis.findData("count/gradient-passes") >= 0, timeout=20000
    )
    assert not any(name.startswith(("count/", "epoch")) for name in board.charts), "they are axes, not charts"
    at = board._axis.findData("count/gradient-passes")
    assert board._axis.itemText(at) == "by gradient passes"
    board._axis.setCurrentIndex(at)
    board._axis.activated.emit(at)
    ends = lambda: max((drawn.last_x for drawn in board.charts["loss"].drawn.values()), default=0)  # noqa: E731
    qtbot.waitUntil(lambda: 550 < ends() <= 600 and board.charts["loss"].view.viewRange()[0][1] == 600, timeout=20000)
    board.save()
    assert frame_context.settings.value("runs/clock") == "count/gradient-passes"
    plain = write_run("plain")
    place.opened(run=plain)
    qtbot.waitUntil(lambda: board.clock == "step" and [run["id"] for run in board.runs] == [plain], timeout=20000)


# -- the details -------------------------------------------------------------------------------------------------------


def test_details_tell_recipe_metrics_events_and_checkpoints(
    qtbot: Any, frame_context: Context, write_run: Callable[..., str]
) -> None:
    parent = write_run("parent")
    write_run("child", parent=parent, recipe=TOML.replace("1e-3", "2e-3"), parent_step=100)
    place = opened(qtbot, frame_context)
    details = place.details
    qtbot.waitUntil(lambda: bool(details._built))
    assert "2e-3" in details.recipe.toPlainText() and details.parent_line.text() == "Branched from parent at step 100"
    texts = [details.differences.item(0, column).text() for column in range(3)]
    assert texts == ["optimizer.lr", "0.001", "0.002"]
    details.tabs.setCurrentIndex(1)
    assert [details.metrics.item(1, column).text() for column in range(2)] == ["val/accuracy", "0.95"]
    details._copy_metrics()
    assert QGuiApplication.clipboard().text() == "val/loss\t0.2\nval/accuracy\t0.95"
    details.tabs.setCurrentIndex(3)
    assert details.events.item(0, 1).text() == "Began on the cpu."
    details.tabs.setCurrentIndex(4)
    assert [details.checkpoints.item(line, 0).text() for line in range(2)] == ["100", "best"]
    assert not details.branch.isEnabled()
    details.checkpoints.selectRow(1)
    with qtbot.waitSignal(details.branched) as caught:
        details.branch.click()
    assert caught.args == [place.selected()[0]["id"], "best"]


def test_headline() -> None:
    run = {"state": "training", "step": 1200, "steps": 3000, "epoch": 12.0, "epochs": 30.0, "seconds": 80.0,
           "device": "cpu", "message": ""}  # fmt: skip
    assert headline(run) == "step 1,200 of 3,000 · epoch 12 of 30 · trained for 1 min 20 s · 2 min left · on cpu"


# -- what can be done, on the real engine ------------------------------------------------------------------------------


@pytest.fixture
def with_engine(qtbot: Any, frame_context: Context) -> Iterator[Context]:
    yield frame_context
    ended: list[int] = []
    frame_context.engine.ask(lambda engine: engine.shutdown(now=True), ended.append)
    qtbot.waitUntil(lambda: bool(ended))


def test_notes_names_and_archive_with_undo(
    qtbot: Any, with_engine: Context, workspace: Workspace, write_run: Callable[..., str], monkeypatch: Any
) -> None:
    run = write_run("before")
    place = opened(qtbot, with_engine)
    undo: list[Any] = []
    with_engine.said.connect(lambda _text, how, _level: undo.append(how))
    monkeypatch.setattr(QInputDialog, "getText", lambda *_, **__: ("after", True))
    place.rename()
    qtbot.waitUntil(lambda: row(workspace, run)["name"] == "after" and len(undo) == 1)
    undo.pop()()
    qtbot.waitUntil(lambda: row(workspace, run)["name"] == "before")
    place.archive()
    qtbot.waitUntil(lambda: row(workspace, run)["archived"] == 1 and place.model.shown == [])
    next(how for how in undo if how is not None)()
    qtbot.waitUntil(lambda: row(workspace, run)["archived"] == 0 and len(place.model.shown) == 1)
    select(place, 0)
    place.details.tabs.setCurrentIndex(5)
    qtbot.waitUntil(lambda: place.details._notes_of[0] == run)
    place.details.notes.setPlainText("the good one")
    place.save()
    qtbot.waitUntil(lambda: row(workspace, run)["notes"] == "the good one")


def test_deleting_asks_first(qtbot: Any, place: RunsPlace, workspace: Workspace, monkeypatch: Any) -> None:
    said: list[str] = []
    monkeypatch.setattr(QMessageBox, "exec", lambda box: said.append(box.text() + box.informativeText()))
    place.delete()
    assert len(said) == 1 and "cannot be undone" in said[0] and "2.2 kB" in said[0]
    with Log(workspace.database, readonly=True) as log:
        assert len(log.runs()) == 3 and log._rows("SELECT * FROM commands") == []


def act(page: Any, kind: str, words: str) -> None:
    """Chooses what to do with the run, and the part to do it with."""
    page.choice.setCurrentIndex(page.choice.findData(kind))
    page.choice.activated.emit(page.choice.currentIndex())
    page.field.button.click()
    chooser = page.field.findChild(Chooser)
    QTest.keyClicks(chooser.search, words)
    QTest.keyClick(chooser.search, Qt.Key.Key_Return)


def test_a_probe_looks_at_a_saved_run(
    qtbot: Any, with_engine: Context, workspace: Workspace, write_run: Callable[..., str]
) -> None:
    """On the real engine: the probe's settings are a form, its figures appear, and what goes wrong is said."""
    lost = write_run("its files are gone")
    text = TOML.replace("epochs = 30", "epochs = 1")
    made: list[str] = []
    with_engine.engine.ask(lambda engine: engine.queue(text, name="short"), made.append)
    with_engine.load_catalog()
    place = opened(qtbot, with_engine)
    qtbot.waitUntil(lambda: bool(made) and row(workspace, made[0])["state"] == "done", timeout=60_000)
    qtbot.waitUntil(lambda: with_engine.catalog is not None, timeout=30_000)
    place.opened(run=made[0])
    place.refresh()
    qtbot.waitUntil(lambda: place.details.run == made[0], timeout=5000)
    tabs = place.details.tabs
    titles = [tabs.tabText(index) for index in range(tabs.count())]
    at = tabs.tabBar().tabRect(titles.index("Figures")).center()
    qtbot.mouseClick(tabs.tabBar(), Qt.MouseButton.LeftButton, pos=at)
    qtbot.waitUntil(lambda: hasattr(place.details, "figures"), timeout=5000)  # once the run is read
    page = place.details.figures
    qtbot.waitUntil(lambda: page.look.isEnabled(), timeout=5000)
    assert not page.none.isHidden() and not page.cards
    qtbot.mouseClick(page.field.button, Qt.MouseButton.LeftButton)
    chooser = page.field.findChild(Chooser)
    qtbot.keyClicks(chooser.search, "landscape")  # a probe that fits every model
    qtbot.keyClick(chooser.search, Qt.Key.Key_Return)
    assert page.field.form is not None and not page.field.form.isVisible()
    qtbot.mouseClick(page.settings, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(page.field.form.isVisible, timeout=5000)
    for name, value in (("samples", "16"), ("grid", "5")):
        if page.field.form is not None and name in page.field.form.rows:
            line = page.field.form.rows[name].field.inputs()[0]
            line.setFocus()
            qtbot.keyClick(line, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
            qtbot.keyClicks(line, value)
            qtbot.keyClick(line, Qt.Key.Key_Tab)
            assert page.use[name] == int(value)
    qtbot.mouseClick(page.look, Qt.MouseButton.LeftButton)
    assert "looks at" in page.state.text() and not page.look.isEnabled()
    qtbot.waitUntil(lambda: bool(page.cards) or "no figure" in page.state.text(), timeout=90_000)
    assert page.cards, page.state.text()
    with Log(workspace.database, readonly=True) as log:
        stored = {(made[0], figure["probe"], figure["name"]): figure["data"] for figure in log.figures(made[0])}
    assert {key: card.view.figure for key, card in page.cards.items()} == stored
    qtbot.waitUntil(lambda: page.look.isEnabled() and "edge" in page.state.text(), timeout=5000)
    act(page, "decoder", "shifted")
    assert page.look.text() == "Answer again" and page.use["use"] == "shifted-copies"
    qtbot.mouseClick(page.look, Qt.MouseButton.LeftButton)
    was = words.number(row(workspace, made[0])["metrics"]["test/accuracy"])
    qtbot.waitUntil(lambda: f"(was {was})" in page.state.text(), timeout=90_000)
    assert "test/accuracy " in page.state.text()
    act(page, "transform", "fold")
    qtbot.mouseClick(page.look, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: "transform/fold/error" in page.state.text(), timeout=90_000)
    act(page, "probe", "landscape")
    place.opened(run=lost)
    qtbot.waitUntil(lambda: page.run.get("id") == lost and not page.cards, timeout=5000)
    qtbot.mouseClick(page.look, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: "no checkpoint" in page.state.text(), timeout=30_000)
    assert page.look.isEnabled()


def test_a_run_is_watched_paused_resumed_and_stopped(qtbot: Any, with_engine: Context, workspace: Workspace) -> None:
    """The whole way: the engine trains in its own processes, the window only reads and asks."""
    place = RunsPlace(with_engine)
    qtbot.addWidget(place)
    place.resize(1200, 800)
    place.show()
    with_engine.reader.changed.connect(place.refresh)
    text = TOML.replace("epochs = 30", "epochs = 100000")
    with_engine.engine.ask(lambda engine: engine.queue(text), lambda run: place.opened(run=run))
    place.refresh()

    def is_now(state: str) -> Callable[[], bool]:
        return lambda: bool(place.selected()) and place.selected()[0]["state"] == state

    qtbot.waitUntil(is_now("training"), timeout=60_000)
    charts = place.dashboard.charts
    qtbot.waitUntil(lambda: "loss" in charts and bool(charts["loss"].drawn), timeout=20_000)
    assert with_engine.actions.enabled("run.pause") and not with_engine.actions.enabled("run.delete")
    with_engine.actions.carry_out("run.pause")
    qtbot.waitUntil(is_now("paused"), timeout=20_000)
    assert place.header.pause.text() == "Resume"
    step = place.selected()[0]["step"]
    with_engine.actions.carry_out("run.pause")
    qtbot.waitUntil(is_now("training"), timeout=20_000)
    qtbot.waitUntil(lambda: place.selected()[0]["step"] > step, timeout=20_000)
    with_engine.actions.carry_out("run.stop")
    qtbot.waitUntil(is_now("stopped"), timeout=20_000)
    assert place.header.branch.isEnabled() and place.selected()[0]["checkpoints"]


def test_a_single_run_is_drawn_solid_and_runs_together_are_dashed_only_where_colours_repeat(tmp_path: Path) -> None:
    colours = RunColours(QSettings(str(tmp_path / "colours.ini"), QSettings.Format.IniFormat))
    runs = [f"run{number:02}" for number in range(20)]
    colours.assign(runs)
    assert colours.together([runs[15]]) == [7]
    assert colours.together(runs[9:17]) == [1, 2, 3, 4, 5, 6, 7, 0]
    assert colours.together([runs[1], runs[9], runs[17]]) == [1, 9, 17]
    info = SeriesInfo("train/loss", 10, 9, 0.5)
    plans = plan_charts([{"id": runs[12], "name": "a"}], {runs[12]: [info]}, colours, 0)
    assert plans["loss"].curves[0].colour == 4
    layers = [SeriesInfo(f"sparsity/layer {number}", 10, 9, 0.5) for number in range(9)]
    plans = plan_charts([{"id": runs[15], "name": "a"}], {runs[15]: layers}, colours, 0)
    assert [curve.colour for curve in plans["sparsity by layer"].curves] == [7, 0, 1, 2, 3, 4, 5, 6, 15]
