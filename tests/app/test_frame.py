"""The window around the places: navigation, keys, palette, messages, memory; and the threads behind it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QObject, QSettings, Qt, QTimer
from PySide6.QtGui import QColor
from PySide6.QtWidgets import QAbstractButton, QComboBox, QLineEdit, QWidget

from app.actions import TABLE, Actions
from app.frames import Frames
from app.icons import pixmap
from app.palette import score
from app.places import ORDER, Context, Place
from app.reader import Reader, Worker
from app.states import STATES, RunColours, state
from app.theme import DARK, ICONS, LIGHT, Theme, Tokens
from app.window import Window, settings_of, summary
from app.words import duration, number, size
from engine.log import Log
from engine.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def window(qtbot: Any, workspace: Workspace) -> Iterator[Window]:
    """A window that reads; the engine is left alone."""
    made = Window(workspace, "machine")
    qtbot.addWidget(made)
    made.show()
    made.watch()
    made.go("machine")
    qtbot.waitUntil(lambda: made.current == "machine", timeout=20_000)
    yield made
    made.close()


# -- reading off the GUI thread ----------------------------------------------------------------------------------------


def test_work_runs_elsewhere_and_answers_come_here(qtbot: Any, qapp: Any) -> None:
    worker, found = Worker(), []
    worker.ask(lambda _: threading.get_ident(), lambda ident: found.append((ident, threading.get_ident())))
    qtbot.waitUntil(lambda: len(found) == 1)
    assert found[0][0] != threading.get_ident() == found[0][1]
    worker.close()


def test_of_questions_with_one_key_the_newest_is_answered(qtbot: Any, qapp: Any) -> None:
    worker, held, found = Worker(), threading.Event(), []
    worker.ask(lambda _: held.wait(5), lambda _: None)
    for value in range(5):
        worker.ask(lambda _, value=value: value, found.append, key="same")
    worker.ask(lambda _: "last", found.append)
    held.set()
    qtbot.waitUntil(lambda: "last" in found)
    assert found == [4, "last"]
    worker.close()


def test_errors_are_told_and_answers_to_the_dead_are_dropped(qtbot: Any, qapp: Any) -> None:
    worker, problems, failed, found = Worker(), [], [], []
    worker.problem.connect(problems.append)
    worker.ask(lambda _: 1 / 0)
    worker.ask(lambda _: int("x"), failed=failed.append)
    owner = QObject()
    held = threading.Event()
    worker.ask(lambda _: held.wait(5), found.append, owner=owner)
    import shiboken6

    shiboken6.delete(owner)
    held.set()
    worker.ask(lambda _: "end", found.append)
    qtbot.waitUntil(lambda: found == ["end"])
    assert problems == ["division by zero"] and isinstance(failed[0], ValueError)
    worker.close()


def test_the_reader_sees_what_others_write(qtbot: Any, workspace: Workspace) -> None:
    reader, seen = Reader(workspace.database), []
    reader.changed.connect(lambda: seen.append(1))
    reader.ask(lambda log: log.runs(), lambda runs: seen.append(len(runs)))
    qtbot.waitUntil(lambda: 0 in seen and 1 in seen)
    seen.clear()
    with Log(workspace.database) as log:
        log.create_run("")
    qtbot.waitUntil(lambda: seen == [1])
    reader.watch(False)
    seen.clear()
    with Log(workspace.database) as log:
        log.create_run("")
    qtbot.wait(350)
    assert seen == []
    reader.close()


def test_the_reader_finds_a_log_that_could_not_be_read_at_first(qtbot: Any, workspace: Workspace) -> None:
    reader, problems, seen = Reader(workspace.database), [], []
    reader.problem.connect(problems.append)
    reader.changed.connect(lambda: seen.append(1))
    workspace.database.write_bytes(b"this is not a database " * 100)
    reader.ask(lambda log: log.runs())
    qtbot.waitUntil(lambda: bool(problems))
    qtbot.wait(350)
    assert len(problems) <= 2 and not seen  # said once for the question, once by the watch
    workspace.database.unlink()
    with Log(workspace.database) as log:
        log.create_run("")
    qtbot.waitUntil(lambda: bool(seen))
    reader.close()


def test_changes_are_seen_while_questions_never_cease(qtbot: Any, workspace: Workspace) -> None:
    reader, seen, on = Reader(workspace.database), [], [True]

    def again(_: Any = None) -> None:
        if on[0]:
            reader.ask(lambda log: log.runs(), again)

    reader.changed.connect(lambda: seen.append(1))
    again()
    qtbot.waitUntil(lambda: bool(seen))
    seen.clear()
    with Log(workspace.database) as log:
        log.create_run("")
    qtbot.waitUntil(lambda: bool(seen))
    on[0] = False
    reader.close()


def test_one_widget_is_drawn_a_frame(qtbot: Any, qapp: Any) -> None:
    frames, drawn, turns = Frames(), [], []
    turning = QTimer()
    turning.timeout.connect(lambda: turns.append(1))
    turning.start(0)  # once in each turn of the event loop
    owners = [QObject() for _ in range(3)]
    for number_, owner in enumerate(owners):
        frames.draw(owner, lambda number_=number_: drawn.append((number_, len(turns))))
    frames.draw(owners[1], lambda: drawn.append((7, len(turns))))
    qtbot.waitUntil(lambda: len(drawn) == 3)
    turning.stop()
    assert sorted(entry[0] for entry in drawn) == [0, 2, 7]
    assert len({turn for _, turn in drawn}) == 3, "each in a turn of its own"


# -- theme, icons, states, words ---------------------------------------------------------------------------------------


def contrast(one: str, other: str) -> float:
    def light(name: str) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in QColor(name).getRgbF()[:3]]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("tokens", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast(tokens: Tokens) -> None:
    for ground in (tokens.background, tokens.surface):
        for name in ("text", "muted", "accent", "good", "warning", "bad", "info"):
            least = 4.3 if name == "accent" else 4.5  # the accent of the design on its own light background is 4.4
            assert contrast(getattr(tokens, name), ground) >= least, (name, ground)
    assert contrast(tokens.accent_text, tokens.accent) >= 4.3
    assert contrast(tokens.text, tokens.selected) >= 4.5
    for colour in tokens.series:
        assert contrast(colour, tokens.surface) >= 2.9, colour


def test_the_sheet_has_no_token_left(qapp: Any) -> None:
    theme = Theme()
    for choice in ("light", "dark"):
        theme.choose(choice)
        assert not re.search(r"@[a-z]", theme.sheet())
        assert theme.tokens.dark == (choice == "dark")
    theme.choose("light")


def test_every_icon_is_drawn_in_the_colour_asked_for(qapp: Any) -> None:
    names = {file.stem for file in ICONS.glob("*.svg")}
    wanted = {action.icon for action in TABLE if action.icon} | {entry.icon for entry in STATES.values()} | set(ORDER)
    assert wanted <= names
    for name in sorted(wanted):
        image = pixmap(name, "#ff0000", 24).toImage()
        seen = [image.pixelColor(x, y) for x in range(24) for y in range(24) if image.pixelColor(x, y).alpha() > 80]
        assert len(seen) >= 2, name
        assert all(colour.red() > 200 and colour.blue() < 60 for colour in seen), name


def test_states_have_icon_colour_and_word() -> None:
    assert len({entry.icon for entry in STATES.values()}) == len(STATES) == 10
    assert state("training").word == "Training" and state("unheard-of").word == "Unheard-of"


def test_a_run_keeps_its_colour(tmp_path: Path) -> None:
    settings = QSettings(str(tmp_path / "a.ini"), QSettings.Format.IniFormat)
    colours = RunColours(settings)
    colours.assign(["c", "a", "b"])
    assert [colours.index(run) for run in "abc"] == [0, 1, 2]
    assert colours.index("0") == 3  # an older run that is seen later does not shift the others
    settings.sync()
    again = RunColours(QSettings(str(tmp_path / "a.ini"), QSettings.Format.IniFormat))
    assert [again.index(run) for run in "abc0"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.96521, "0.9652"), (0.002, "0.002"),
     (0.97001, "0.9700"), (12345.6, "12.35 k"), (0.00012345, "1.23e−4"), (0, "0"), (float("nan"), "not a number"),
     (1234.5, "1234"), (-3.14159, "−3.142"), (None, "–"), (2.5e9, "2.500 G")],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.25, "1.2 s"), (42, "42 s"), (130, "2 min 10 s"), (3600, "1 h"), (7322, "2 h 2 min"), (90061, "1 d 1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes() -> None:
    assert [size(value) for value in (12, 18.2e9, 1.5e6)] == ["12 B", "18.2 GB", "1.5 MB"]


# -- actions and the palette -------------------------------------------------------------------------------------------


def test_no_two_actions_share_a_key_in_one_place() -> None:
    everywhere = [action.key for action in TABLE if action.key and not action.place]
    assert len(everywhere) == len(set(everywhere))
    for place in ORDER:
        here = everywhere + [action.key for action in TABLE if action.place == place and action.key]
        assert len(here) == len(set(here)), place


def test_an_action_runs_only_when_it_can(qapp: Any) -> None:
    actions, done = Actions(), []
    allowed = [False]
    actions.bind("window.quit", lambda: done.append(1), lambda: allowed[0])
    actions.start("window.quit")
    allowed[0] = True
    actions.start("window.quit")
    assert done == [1]
    with pytest.raises(KeyError):
        actions.bind("no.such", lambda: None)


def test_the_palette_ranks_what_begins_with_the_letters_first() -> None:
    texts = ["Dark theme", "Read the catalog again", "Train", "Rename the run"]
    assert sorted(texts, key=lambda text: -score("tra", text))[0] == "Train"
    assert score("dk", "Dark theme") > 0 and score("xyz", "Dark theme") == 0
    assert score("look", "Dark theme", "look colour") > 0


# -- the window --------------------------------------------------------------------------------------------------------


def test_keys_reach_every_place(qtbot: Any, window: Window) -> None:
    for digit, place in (("6", "machine"), ("3", "runs")):
        qtbot.keyClick(window, Qt.Key(ord(digit)), Qt.KeyboardModifier.ControlModifier)
        qtbot.waitUntil(lambda place=place: window.current == place, timeout=20_000)
        assert window.rail.buttons[place].isChecked()
        assert window.places[place].on_screen
    assert not window.places["machine"].on_screen


def test_only_the_place_on_screen_is_refreshed(qtbot: Any, window: Window, workspace: Workspace) -> None:
    calls: list[str] = []

    class Counting(Place):
        def __init__(self, context: Context, id: str):
            self.id = id
            super().__init__(context)

        def refresh(self) -> None:
            calls.append(self.id)

    for id in ("compare", "sweep"):
        window.places[id] = Counting(window.context, id)
        window.stack.addWidget(window.places[id])
    window.go("compare")
    qtbot.waitUntil(lambda: calls == ["compare"])
    with Log(workspace.database) as log:
        log.create_run("")
    qtbot.waitUntil(lambda: calls.count("compare") >= 2)
    assert "sweep" not in calls


def test_the_palette_opens_a_run(qtbot: Any, window: Window, write_run: Callable[..., str]) -> None:
    run = write_run("the one run")
    qtbot.keyClick(window, Qt.Key.Key_K, Qt.KeyboardModifier.ControlModifier)
    assert window.palette_.isVisible()
    qtbot.waitUntil(lambda: any(entry.text == "the one run" for entry in window.palette_._entries))
    qtbot.keyClicks(window.palette_.field, "one run")
    qtbot.keyClick(window.palette_.field, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: window.current == "runs", timeout=20_000)
    place: Any = window.places["runs"]
    qtbot.waitUntil(lambda: [entry["id"] for entry in place.selected()] == [run])
    assert not window.palette_.isVisible()


def test_the_palette_closes_on_escape(qtbot: Any, window: Window) -> None:
    window.palette_.open()
    qtbot.keyClick(window.palette_.field, Qt.Key.Key_Escape)
    assert not window.palette_.isVisible()


def test_an_action_of_another_place_opens_it_first(qtbot: Any, window: Window) -> None:
    window.context.actions.start("charts.reset")
    qtbot.waitUntil(lambda: window.current == "runs", timeout=20_000)


def test_a_message_can_be_undone(qtbot: Any, window: Window) -> None:
    undone: list[int] = []
    window.context.message("Three runs archived.", lambda: undone.append(1))
    assert window.status.message.text() == "Three runs archived." and window.status.undo.isVisible()
    qtbot.mouseClick(window.status.undo, Qt.MouseButton.LeftButton)
    assert undone == [1] and not window.status.undo.isVisible()
    window.context.message("That failed.", level="error")
    assert window.status.message.property("level") == "error"


def test_the_summary_tells_engine_and_machine(qtbot: Any, window: Window, workspace: Workspace) -> None:
    with Log(workspace.database) as log:
        log.create_run("", state="training")
        log.create_run("", state="queued")
        log.set_meta("service", {"pid": 1, "heartbeat": time.time()})
        log.add_machine({"cpu": 41.2, "memory": 18.2e9, "gpus": [{"utilization": 93.0}]})
        found = summary(log)
    assert found["alive"] and found["counts"] == {"training": 1, "queued": 1}
    qtbot.waitUntil(lambda: window.top.engine.text() == "engine: 1 training, 1 queued")
    assert window.status.figures.text() == "cpu 41 %   gpu0 93 %   18.2 GB"


def test_a_place_that_cannot_be_opened_says_why(qtbot: Any, window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "app.places.sweep", None)  # as when a file of it is damaged
    window.places.pop("sweep", None)
    window.go("sweep")
    qtbot.waitUntil(lambda: "Sweep could not be opened" in window.status.message.text())
    assert window.status.message.property("level") == "error"


def test_what_a_person_set_survives_a_restart(qtbot: Any, window: Window, workspace: Workspace) -> None:
    window.go("runs")
    qtbot.waitUntil(lambda: window.current == "runs", timeout=20_000)
    window.resize(1111, 666)
    window.theme.choose("dark")
    window.close()
    again = Window(workspace)
    qtbot.addWidget(again)
    assert again._first == "runs" and again.theme.choice == "dark"
    assert again.height() == 666  # the width is cut to this screen of 800 pixels
    again.theme.choose("light")
    again.close()


def test_settings_go_where_they_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> None:
    assert Path(settings_of(workspace).fileName()).parent == workspace.folder
    monkeypatch.setenv("ATHANOR_CONFIG", str(tmp_path / "config"))
    assert Path(settings_of(workspace).fileName()).parent == tmp_path / "config"


def unnamed(root: QWidget) -> list[str]:
    """Controls that a screen reader could not name."""
    controls = (QAbstractButton, QLineEdit, QComboBox)
    found = [widget for kind in controls for widget in root.findChildren(kind)]
    named = [w for w in found if not (w.accessibleName() or (isinstance(w, QAbstractButton) and w.text()))]
    return [f"{type(w).__name__} {w.objectName()}" for w in named if not w.objectName().startswith("qt_")]


def test_every_control_has_a_name(qtbot: Any, window: Window, write_run: Callable[..., str]) -> None:
    write_run()
    window.go("runs")
    qtbot.waitUntil(lambda: window.current == "runs", timeout=20_000)
    place: Any = window.places["runs"]
    qtbot.waitUntil(lambda: len(place.dashboard.charts) > 4)
    left_out = ("ScrollLeftButton", "ScrollRightButton", "QTableCornerButton")
    assert [name for name in unnamed(window) if not name.endswith(left_out) and name != "QToolButton "] == []


def test_the_window_is_there_without_its_places() -> None:
    """pyqtgraph and the catalog load after the window is on screen."""
    look = (
        "import sys; from PySide6.QtWidgets import QApplication; a = QApplication([]); from app.window import Window;"
        "from engine.workspace import Workspace; import tempfile; w = Window(Workspace(tempfile.mkdtemp())); w.show();"
        "print([m for m in ('pyqtgraph', 'torch', 'engine.catalog', 'app.charts') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
