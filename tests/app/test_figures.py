"""Figures as a person meets them: every kind drawn, hovered, zoomed, turned, copied, enlarged, and gone back in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PySide6.QtCore import QPoint, QPointF, Qt
from PySide6.QtGui import QGuiApplication, QImage, QWheelEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QWidget

from app.figures import VIEWS, FigureView
from app.figures.isolines import isolines
from app.figures.reading import differences
from app.figures.view import Canvas, short
from app.places import Context
from app.places.figures import FiguresPage, read_figures, recipe_with
from app.places.sweep import SweepPlace
from engine import figures
from engine.figures import KINDS, problems
from engine.log import Log
from engine.recipe import Recipe
from tests.app import example_figures
from tests.app.example_figures import EXAMPLES
from tests.app.saved_runs import recipe, saved_run

PAINTED = [name for name, make in EXAMPLES.items() if issubclass(VIEWS[make()["kind"]], Canvas)]


@pytest.fixture
def shown(qtbot: Any, frame_context: Context) -> Iterator[Callable[..., FigureView]]:
    """Shows a figure and waits until it is drawn."""

    def show(figure: Any, width: int = 520, height: int = 340) -> FigureView:
        frame = FigureView(frame_context)
        qtbot.addWidget(frame)
        frame.resize(width, height)
        frame.show()
        frame.show_figure(figure)
        qtbot.waitUntil(lambda: frame.view is not None or not frame.sorry.isHidden())
        return frame

    yield show


def pixels(widget: QWidget) -> np.ndarray:
    image = widget.grab().toImage().convertToFormat(QImage.Format.Format_RGB32)
    return np.array(image.constBits()).reshape(image.height(), image.width(), 4)[:, :, :3].astype(int)


def hover(view: Any, at: QPointF) -> np.ndarray:
    """Moves the mouse there and returns what is then on screen."""
    QTest.mouseMove(view, at.toPoint() + QPoint(1, 1))
    QTest.mouseMove(view, at.toPoint())
    return pixels(view)


def wheel(view: QWidget, at: QPointF, turns: int = 1, held: Any = Qt.KeyboardModifier.NoModifier) -> bool:
    """Turns the wheel over a view; whether the view took it."""
    event = QWheelEvent(at, view.mapToGlobal(at), QPoint(), QPoint(0, 120 * turns), Qt.MouseButton.NoButton, held,
                        Qt.ScrollPhase.NoScrollPhase, False)  # fmt: skip
    event.ignore()
    QGuiApplication.sendEvent(view, event)
    return event.isAccepted()


def test_there_is_a_view_and_an_example_for_every_kind() -> None:
    assert set(VIEWS) == set(KINDS) == {make()["kind"] for make in EXAMPLES.values()}
    assert all(problems(make()) == [] for make in EXAMPLES.values())


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_kind_is_drawn_and_said(shown: Any, frame_context: Context, name: str, theme: str) -> None:
    frame_context.theme.choose(theme)
    figure = EXAMPLES[name]()
    frame = shown(figure)
    drawn = pixels(frame.view)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 20, "more than a blank sheet"
    assert frame.sorry.isHidden() and frame.title.text() == figure["title"]
    assert len(frame.text()) > 20 and frame.view.accessibleDescription() == frame.text()
    for size in ((90, 60), (200, 150), (1400, 900)):
        frame.resize(*size)
        frame.grab()
    assert frame.sorry.isHidden(), frame.sorry.text()


def emptied(value: Any) -> Any:
    """The same figure with no number that is finite."""
    if isinstance(value, dict):
        kept = ("edges", "faces", "marked", "extent", "boxes")
        return {key: each if key in kept else emptied(each) for key, each in value.items()}
    if isinstance(value, list):
        return [emptied(each) for each in value]
    return math.nan if isinstance(value, float) else value


@pytest.mark.parametrize("name", EXAMPLES)
def test_numbers_that_are_not_finite_are_gaps(shown: Any, name: str) -> None:
    figure = emptied(EXAMPLES[name]())
    if problems(figure):
        pytest.skip("cannot have gaps there")
    frame = shown(figure)
    pixels(frame)
    if isinstance(frame.view, Canvas):
        hover(frame.view, QPointF(frame.view.rect().center()))
    assert frame.sorry.isHidden(), frame.sorry.text()
    assert frame.text()


@pytest.mark.parametrize(
    "figure",
    [
        figures.curve("One point", figures.line("a", [1], [2])),
        figures.curve("None", figures.line("a", [], [])),
        figures.scatter("None", figures.dots("a", [], [])),
        figures.scatter("Log of nothing", figures.dots("a", [0, -1], [1, 2]), x=figures.axis("x", log=True)),
        figures.bars("None", figures.line("a", [], [])),
        figures.histogram("All alike", figures.counts("a", [1.0, 1.0])),
        figures.heatmap("One", [[1.0]]),
        figures.surface("Flat", [[1.0, 1.0], [1.0, 1.0]]),
        figures.surface("A row", [[1.0, 2.0]]),
        figures.image("One", figures.panel("", [[1.0]])),
        figures.graph("Lone", [figures.node(0, 0)], [[0, 0]]),
        figures.graph("Together", [figures.node(0, 0), figures.node(0, 0)], [[0, 1, -1.0]], directed=True),
        figures.quiver("None", [], [], [], []),
        figures.quiver("Still", [0], [0], [0], [0]),
        figures.boxes("None", []),
        figures.points("One", [[0, 0, 0]]),
        figures.points("Flat", [[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]),
        figures.text("Nothing", ""),
        figures.table("None", ["a"], []),
    ],
    ids=lambda figure: f"{figure['kind']}: {figure['title']}",
)
def test_little_or_nothing_is_drawn_too(shown: Any, figure: dict[str, Any]) -> None:
    assert problems(figure) == []
    frame = shown(figure)
    pixels(frame)
    if isinstance(frame.view, Canvas):
        hover(frame.view, QPointF(frame.view.rect().center()))
    frame.menu().close()
    assert frame.sorry.isHidden(), frame.sorry.text()


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        ({"kind": "hologram", "title": "New"}, "'hologram' is no kind of figure"),
        ({"kind": "curve", "title": "T", "series": [{"x": [1, 2], "y": [1]}]}, "series[0].y has 1 number"),
        ({"kind": "table", "columns": 3, "rows": None}, "columns must be a list, not 3."),
        ({"title": 3}, "is no kind of figure"),
    ],
)
def test_what_cannot_be_drawn_is_a_sentence(shown: Any, qtbot: Any, figure: dict[str, Any], said: str) -> None:
    frame = shown(figure)
    assert frame.sorry.isVisible() and said in frame.text() and frame.view is None
    frame.show_figure(EXAMPLES["curve"]())
    qtbot.waitUntil(lambda: frame.view is not None and frame.sorry.isHidden())


def test_a_view_that_fails_says_so_once_and_the_next_figure_is_drawn(shown: Any, qtbot: Any, monkeypatch: Any) -> None:
    frame = shown(EXAMPLES["tour"]())

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("nobody thought of it")

    with monkeypatch.context() as patch:
        patch.setattr(VIEWS["graph"], "paint", broken)
        frame.view.redraw()
        qtbot.waitUntil(lambda: not frame.sorry.isHidden())
    assert "nobody thought of it" in frame.text()
    frame.show_figure(EXAMPLES["graph"]())
    qtbot.waitUntil(lambda: frame.view is not None)
    assert len(np.unique(pixels(frame.view).reshape(-1, 3), axis=0)) > 20


def test_many_points_of_a_line_are_a_line_and_few_are_points(shown: Any) -> None:
    """A fit beside what was measured."""
    measured = figures.dots("measured", [0, 1], [0, 1])
    inked = []
    for count in (30, 300):
        at = np.linspace(0, 1, count)
        fit = figures.dots("fit", at, at**2, joined=True)
        view = shown(figures.scatter("Fit", measured, fit)).view
        colour = view.theme.series(1)
        near = np.abs(pixels(view) - [colour.blue(), colour.green(), colour.red()]).sum(2) < 40
        inked.append(int(near[40:].sum()))
    assert inked[1] < inked[0] / 2


# -- what follows the mouse --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAINTED)
def test_the_mouse_lights_something_up_and_leaves_it(shown: Any, name: str) -> None:
    view = shown(EXAMPLES[name]()).view
    calm = pixels(view)
    at = [QPointF(x, y) for x in range(20, view.width(), 16) for y in range(20, view.height(), 16)]
    assert any((hover(view, place) != calm).any() for place in at)
    view.leaveEvent(None)
    assert (pixels(view) == calm).all()


def test_the_cell_under_the_cursor_tells_its_value(shown: Any) -> None:
    z = np.arange(12.0).reshape(3, 4)
    columns, rows = figures.axis("c", values=[1, 2, 3, 4]), figures.axis("r", values=[5, 6, 7])
    view = shown(figures.heatmap("Z", z, columns, rows)).view
    pixels(view)
    rect = view.plane.rect
    wide, high = rect.width() / 4, rect.height() / 3
    for row in range(3):
        for column in range(4):
            at = QPointF(rect.left() + (column + 0.5) * wide, rect.bottom() - (row + 0.5) * high)
            assert view.cell_at(at) == (row, column), "rows of numbers grow upward"
    words = figures.axis("r", values=["a", "b", "c"])
    view.take(figures.heatmap("Z", z, y=words))
    pixels(view)
    assert view.cell_at(view.plane.rect.topLeft() + QPointF(3, 3)) == (0, 0), "rows of words are read from the top"


def test_isolines_lie_where_the_value_is() -> None:
    at = np.linspace(-2, 2, 41)
    x, y = np.meshgrid(at, at)
    (ring,) = isolines(x**2 + y**2, [1.0])
    ends = ring.reshape(-1, 2) / 10 - 2  # from grid to plane
    assert len(ring) > 60 and np.hypot(ends[:, 0], ends[:, 1]) == pytest.approx(1.0, abs=2e-3)
    length = np.hypot(ring[:, 2] - ring[:, 0], ring[:, 3] - ring[:, 1]).sum() / 10
    assert length == pytest.approx(2 * math.pi, rel=2e-3), "one closed ring, nothing drawn twice"
    saddle = isolines(np.array([[1.0, 0.0], [0.0, 1.0]]), [0.5])[0]
    assert len(saddle) == 2
    assert len(isolines(np.full((3, 3), np.nan), [0.0])[0]) == 0


# -- zoom, turn, keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["curve", "scatter", "surface", "field", "graph", "boxes", "quiver", "mesh"])
def test_the_wheel_is_the_pages_unless_control_is_held_and_show_all_undoes_it(shown: Any, name: str) -> None:
    view = shown(EXAMPLES[name]()).view
    before = pixels(view)
    middle = QPointF(view.width() / 2, view.height() / 2)
    assert not wheel(view, middle) and (pixels(view) == before).all()
    assert wheel(view, middle, 4, Qt.KeyboardModifier.ControlModifier)
    near = pixels(view)
    assert (near != before).any()
    QTest.mousePress(view, Qt.MouseButton.LeftButton, pos=middle.toPoint())
    QTest.mouseMove(view, middle.toPoint() + QPoint(30, 20))
    QTest.mouseMove(view, middle.toPoint() + QPoint(60, 40))
    QTest.mouseRelease(view, Qt.MouseButton.LeftButton, pos=middle.toPoint() + QPoint(60, 40))
    view.leaveEvent(None)
    assert (pixels(view) != near).any(), "dragged"
    QTest.keyClick(view, Qt.Key.Key_0)
    view.clearFocus()
    assert (pixels(view) == before).all()


def test_a_zoom_stays_where_the_mouse_is_and_survives_the_next_figure(shown: Any) -> None:
    view = shown(EXAMPLES["scatter"]()).view
    pixels(view)
    at = view.plane.rect.topLeft() + QPointF(60, 40)
    before = view.plane.at(at)
    wheel(view, at, 5, Qt.KeyboardModifier.ControlModifier)
    pixels(view)
    low, high = view.plane.x.seen
    assert view.plane.at(at) == pytest.approx(before, abs=0.03 * (high - low)) and view.plane.zoomed
    seen = view.plane.x.seen
    view.take(EXAMPLES["scatter"]())
    pixels(view)
    assert view.plane.x.seen == pytest.approx(seen)


def test_a_cloud_is_turned_by_dragging_and_nearer_points_hide_farther_ones(shown: Any) -> None:
    corners = [[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    view = shown(figures.points("Cube", corners, values=range(8))).view
    pixels(view)
    x, y, depth = view.project(view.unit)
    size = max(np.ptp(x), np.ptp(y))
    apart = np.hypot(x[:, None] - x, y[:, None] - y) / size
    QTest.mousePress(view, Qt.MouseButton.LeftButton, pos=QPoint(200, 150))
    QTest.mouseMove(view, QPoint(240, 150))
    QTest.mouseMove(view, QPoint(280, 150))
    QTest.mouseRelease(view, Qt.MouseButton.LeftButton, pos=QPoint(280, 150))
    x1, y1, _ = view.project(view.unit)
    assert not np.allclose(x, x1)
    rotation = view.rotation()
    assert rotation @ rotation.T == pytest.approx(np.eye(3)) and np.linalg.det(rotation) == pytest.approx(1.0)
    assert apart.shape == (8, 8) and view.vertex_at(QPointF(float(x1[0]), float(y1[0]))) is not None
    view.turn, view.tilt = 0.0, 0.0  # from the front: four pairs, one behind the other
    pixels(view)
    x, y, depth = view.project(view.unit)
    found = view.vertex_at(QPointF(float(x[0]), float(y[0])))
    pair = np.flatnonzero(np.hypot(x - x[0], y - y[0]) < 1e-6)
    assert len(pair) == 2 and found == pair[depth[pair].argmax()]


def test_the_keys_go_through_the_points_and_open_one(shown: Any) -> None:
    frame = shown(EXAMPLES["archive"]())
    opened: list[dict[str, Any]] = []
    frame.opened.connect(opened.append)
    view = frame.view
    view.setFocus()
    QTest.keyClick(view, Qt.Key.Key_Return)
    assert not opened
    for _ in range(50):
        QTest.keyClick(view, Qt.Key.Key_Right)
        if view.changes_of(view.chosen):
            break
    said = view.accessibleDescription()
    assert said.startswith("child ") and "Pareto front" in said
    QTest.keyClick(view, Qt.Key.Key_Return)
    assert opened == [view.changes_of(view.chosen)]


def test_a_click_on_a_point_opens_what_it_stands_for(shown: Any) -> None:
    frame = shown(EXAMPLES["archive"]())
    opened: list[dict[str, Any]] = []
    frame.opened.connect(opened.append)
    pixels(frame.view)
    other = frame.view.place_of(1, 3).toPoint()
    hover(frame.view, QPointF(other))
    QTest.mouseClick(frame.view, Qt.MouseButton.LeftButton, pos=other)
    assert not opened and frame.view.cursor().shape() == Qt.CursorShape.ArrowCursor
    place = frame.view.place_of(0, 2).toPoint()
    hover(frame.view, QPointF(place))
    assert frame.view.cursor().shape() == Qt.CursorShape.PointingHandCursor
    QTest.mouseClick(frame.view, Qt.MouseButton.LeftButton, pos=place)
    assert opened == [{"model.hidden": [64], "optimizer.lr": 0.001}]


# -- copies, windows ---------------------------------------------------------------------------------------------------


def entry(frame: FigureView, text: str) -> Any:
    """An entry of the figure's menu."""
    return next(action for action in frame.menu().actions() if action.text() == text)


@pytest.mark.parametrize("name", EXAMPLES)
def test_numbers_words_and_picture_are_copied_from_the_menu(shown: Any, qtbot: Any, name: str) -> None:
    frame = shown(EXAMPLES[name]())
    clipboard = QGuiApplication.clipboard()
    entry(frame, "Copy in words").trigger()
    assert clipboard.text() == frame.text()
    entry(frame, "Copy the picture").trigger()
    picture = clipboard.image()
    assert picture.width() > 2 * frame.view.width()
    assert picture.pixelColor(2, 2) == frame.context.theme.colour("surface"), "not clear, and no buttons on it"
    if isinstance(frame.view, Canvas):
        coarse, fine = (frame.view.drawn(ratio).toImage() for ratio in (1.0, 2.0))
        assert fine.size() == 2 * coarse.size() and coarse.scaled(fine.size()) != fine, "drawn anew, not enlarged"
    numbers = frame.view.csv()
    assert frame.view.has_numbers() == (numbers is not None)
    if numbers is None:
        assert frame.figure["kind"] in ("image-grid",)
        return
    what = "Copy the text" if frame.figure["kind"] == "text" else "Copy the numbers"
    entry(frame, what).trigger()
    qtbot.waitUntil(lambda: clipboard.text() == numbers)
    assert len(numbers.splitlines()) > 2


def test_the_copied_numbers_are_those_of_the_figure(shown: Any) -> None:
    frame = shown(figures.curve("C", figures.line("a", [1, 2], [0.25, None], [0, 0], [1, 1]), x="step", y="loss"))
    assert frame.view.csv() == "series,step,loss,low,high\na,1.0,0.25,0.0,1.0\na,2.0,nan,0.0,1.0\n"
    frame = shown(figures.heatmap("H", [[1, 2]], figures.axis("x", values=["p, q", "r"])))
    assert frame.view.csv() == ',"p, q",r\n0,1.0,2.0\n'
    frame = shown(figures.tour("T", [[0, 0], [1, 1]], [1, 0], ["home", "shop"]))
    assert frame.view.csv() == "from,to,weight\nshop,home,1.0\nhome,shop,1.0\n"
    assert "The way: shop, home" in frame.text()


def test_a_double_click_or_the_button_enlarges_and_escape_closes(shown: Any, qtbot: Any) -> None:
    frame = shown(EXAMPLES["surface"]())
    QTest.mouseDClick(frame.view, Qt.MouseButton.LeftButton, pos=frame.view.rect().center())
    qtbot.waitUntil(lambda: frame.window_ is not None and frame.window_.frame.view is not None)
    window = frame.window_
    assert window.isVisible() and window.isWindow() and window.windowTitle() == "Loss along two random directions"
    large = window.frame.view
    assert large.width() > frame.view.width() and not window.frame.larger.isVisible()
    assert wheel(large, QPointF(200, 200), 3), "in its own window the wheel is the figure's"
    assert large.plane.zoomed and not frame.view.plane.zoomed
    QTest.mouseDClick(large, Qt.MouseButton.LeftButton, pos=large.rect().center())
    assert not large.plane.zoomed
    frame.show_figure(EXAMPLES["tour"]())
    qtbot.waitUntil(lambda: type(window.frame.view) is VIEWS["graph"])
    QTest.keyClick(window, Qt.Key.Key_Escape)
    assert not window.isVisible()
    QTest.mouseClick(frame.larger, Qt.MouseButton.LeftButton)
    assert window.isVisible() and frame.window_ is window
    window.close()


def test_a_table_is_sorted_by_its_heads_and_copied(shown: Any) -> None:
    rows = [["b", 10, None], ["a", 9, 0.5], ["c", 100, 0.25]]
    table = shown(figures.table("T", ["name", "n", "p"], rows)).view.table
    header = table.horizontalHeader()

    def click(column: int) -> list[str]:
        at = QPoint(header.sectionViewportPosition(column) + 8, header.height() // 2)
        QTest.mouseClick(header.viewport(), Qt.MouseButton.LeftButton, pos=at)
        return [table.model().index(r, 0).data() for r in range(3)]

    assert click(1) == ["a", "b", "c"], "as numbers, not as words"
    assert click(1) == ["c", "b", "a"]
    assert click(2) == ["c", "a", "b"] and click(2) == ["a", "c", "b"], "what is missing stays at the end"
    table.selectRow(1)
    table.setFocus()
    QTest.keyClick(table, Qt.Key.Key_C, Qt.KeyboardModifier.ControlModifier)
    assert QGuiApplication.clipboard().text() == "name\tn\tp\nc\t100\t0.25"


def test_sentences_in_a_table_are_read_whole(shown: Any, qtbot: Any) -> None:
    low = shown(figures.table("T", ["name"], [["a"], ["b"]])).view
    rows = [[1, "a word and another " * 8], [2, "short"]]
    frame = shown(figures.table("T", ["step", "said"], rows), 300)
    table = frame.view.table
    qtbot.waitUntil(lambda: table.rowHeight(0) > 2 * low.table.rowHeight(0) >= table.rowHeight(1))
    wide = table.rowHeight(0)
    frame.resize(900, 300)
    qtbot.waitUntil(lambda: table.rowHeight(0) < wide)


def test_differences_are_whole_words_and_give_either_text_back() -> None:
    before, after = example_figures.BEFORE, example_figures.AFTER
    gone, come = differences(before, after)
    words = [before[start:end] for start, end in gone]
    assert "few" in " ".join(words) and "Question" not in " ".join(words)

    def left(text: str, spans: list[tuple[int, int]]) -> str:
        for start, end in reversed(spans):
            text = text[:start] + text[end:]
        return text

    assert left(before, gone) == left(after, come), "what is not marked is the same on both sides"
    assert differences("same\n", "same\n") == ([], [])
    assert differences("", "new") == ([], [(0, 3)])


def test_marked_words_are_struck_or_underlined_and_both_sides_scroll(shown: Any) -> None:
    long = "\n".join(f"line {i}" for i in range(200))
    columns = (("a", long), ("b", long.replace("line 3\n", "line three\n")))
    view = shown(figures.texts("T", *columns, difference=True)).view
    one, two = (edit.extraSelections() for edit in view.edits)
    assert [mark.cursor.selectedText() for mark in one] == ["3"] and one[0].format.fontStrikeOut()
    assert [mark.cursor.selectedText() for mark in two] == ["three"] and two[0].format.fontUnderline()
    bar = view.edits[0].verticalScrollBar()
    bar.setValue(bar.maximum())
    assert view.edits[1].verticalScrollBar().value() == view.edits[1].verticalScrollBar().maximum() > 0


# -- on the page of a run ----------------------------------------------------------------------------------------------


@pytest.fixture
def page(qtbot: Any, frame_context: Context) -> FiguresPage:
    made = FiguresPage(frame_context)
    qtbot.addWidget(made)
    made.resize(360, 700)
    made.show()
    return made


def stored(context: Context, steps: list[int | None], **changes: Any) -> dict[str, Any]:
    """A run with a curve for each step; returns its row."""
    run = saved_run(context.workspace, points=20, name="mine", **changes)
    with Log(context.workspace.database) as log:
        for step in steps:
            y = [float(step or 0), 1.0]
            log.add_figure(run, "any", "told", figures.curve(f"At {step}", figures.line("a", [0, 1], y)), step)
        row = log.run(run)
        assert row is not None
        return row


def test_the_slider_goes_back_through_the_steps(qtbot: Any, page: FiguresPage) -> None:
    context = page.context
    run = stored(context, [100, 200, 300])
    page.show_run(run)
    qtbot.waitUntil(lambda: len(page.cards) == 1)
    (card,) = page.cards.values()
    qtbot.waitUntil(lambda: card.view.title.text() == "At 300")
    assert card.view.past.isVisible() and card.view.when.text() == "step 300   3 of 3"
    card.view.slider.setFocus()
    QTest.keyClick(card.view.slider, Qt.Key.Key_Left)
    QTest.keyClick(card.view.slider, Qt.Key.Key_Left)
    qtbot.waitUntil(lambda: card.view.title.text() == "At 100")
    assert card.view.when.text() == "step 100   1 of 3"
    with Log(context.workspace.database) as log:
        log.add_figure(run["id"], "any", "told", figures.curve("At 400", figures.line("a", [0], [4])), 400)
    page.read()
    qtbot.waitUntil(lambda: card.view.when.text() == "step 100   1 of 4")
    assert card.view.title.text() == "At 100", "who looks back is not pulled forward"
    QTest.keyClick(card.view.slider, Qt.Key.Key_End)
    qtbot.waitUntil(lambda: card.view.title.text() == "At 400")
    with Log(context.workspace.database) as log:
        log.add_figure(run["id"], "any", "told", figures.curve("At 500", figures.line("a", [0], [4])), 500)
    page.read()
    qtbot.waitUntil(lambda: card.view.title.text() == "At 500")


def test_a_card_is_as_high_as_its_figure_asks_for(qtbot: Any, page: FiguresPage) -> None:
    run = stored(page.context, [])
    flat, square = ([[0, 0], [2.2, 1.0]], [[0, 0], [1.0, 1.0]])
    with Log(page.context.workspace.database) as log:
        for name, places in (("flat", flat), ("square", square)):
            log.add_figure(run["id"], "any", name, figures.tour("A title that takes two lines here", places, [0, 1]), 1)
    page.show_run(run)
    qtbot.waitUntil(lambda: len(page.cards) == 2)
    views = {key[2]: card.view for key, card in page.cards.items()}
    qtbot.waitUntil(lambda: all(view.view is not None and view.view.height() > 50 for view in views.values()))
    qtbot.waitUntil(lambda: 150 < views["flat"].view.height() < 180)
    assert 250 < views["square"].view.height() < 350
    page.resize(360, 1600)
    qtbot.waitUntil(lambda: page.height() == 1600)
    assert all(card.height() < card.view.height() + 60 for card in page.cards.values())


def test_one_figure_has_no_slider_and_a_step_drawn_again_counts_once(qtbot: Any, page: FiguresPage) -> None:
    run = stored(page.context, [100, 100])
    page.show_run(run)
    qtbot.waitUntil(lambda: len(page.cards) == 1)
    (card,) = page.cards.values()
    qtbot.waitUntil(lambda: card.view.view is not None)
    assert not card.view.past.isVisible() and card.caption.text() == "any, step 100"
    with Log(page.context.workspace.database, readonly=True) as log:
        (kept,) = read_figures(log, run["id"], [])
        assert [step for _, step in kept.history] == [100] and kept.figure is not None and kept.problems == ()
        (again,) = read_figures(log, run["id"], [kept.id])
        assert again.figure is None, "what is known is not read again"


def test_another_run_has_other_cards_and_a_wrong_figure_is_a_sentence(qtbot: Any, page: FiguresPage) -> None:
    page.show_run(stored(page.context, [100]))
    qtbot.waitUntil(lambda: len(page.cards) == 1)
    other = stored(page.context, [])
    with Log(page.context.workspace.database) as log:
        log.add_figure(other["id"], "any", "wrong", {"kind": "curve", "series": []}, 1)
        log.add_figure(other["id"], "any", "right", EXAMPLES["tour"](), 1)
    page.show_run(other)
    qtbot.waitUntil(lambda: {key[2] for key in page.cards} == {"wrong", "right"})
    by_name = {key[2]: card for key, card in page.cards.items()}
    qtbot.waitUntil(lambda: "series is empty" in by_name["wrong"].view.text())
    qtbot.waitUntil(lambda: by_name["right"].view.view is not None)
    page.show_run(stored(page.context, []))
    qtbot.waitUntil(lambda: not page.cards)
    assert page.none.isVisible()


def test_a_point_opens_the_runs_recipe_with_its_changes(qtbot: Any, page: FiguresPage) -> None:
    run = stored(page.context, [])
    with Log(page.context.workspace.database) as log:
        log.add_figure(run["id"], "any", "archive", EXAMPLES["archive"](), 1)
    went: list[tuple[str, dict[str, Any]]] = []
    page.context.went.connect(lambda place, what: went.append((place, what)))
    page.show_run(run)
    qtbot.waitUntil(lambda: len(page.cards) == 1)
    (card,) = page.cards.values()
    qtbot.waitUntil(lambda: card.view.view is not None)
    pixels(card.view.view)
    at = card.view.view.place_of(0, 0).toPoint()
    QTest.mouseClick(card.view.view, Qt.MouseButton.LeftButton, pos=at)
    qtbot.waitUntil(lambda: bool(went))
    place, what = went[0]
    opened = Recipe.parse(what["text"])
    assert place == "recipe" and what["name"] == "mine"
    assert opened.get("model.hidden") == [16] and opened.get("optimizer.lr") == 0.001
    assert opened.get("task") == Recipe.parse(run["recipe"]).get("task")


def test_a_point_of_a_sweep_opens_one_run_of_it(qtbot: Any, frame_context: Context) -> None:
    plan = recipe() + '\n[search]\nuse = "grid"\n\n[search.space]\n"optimizer.lr" = [0.1, 0.2]\n'
    with Log(frame_context.workspace.database) as log:
        sweep = log.create_run(plan, name="rates", kind="sweep", state="done")
        log.add_figure(sweep, "grid", "archive", EXAMPLES["archive"]())
    place = SweepPlace(frame_context)
    qtbot.addWidget(place)
    place.resize(1200, 700)
    place.show()
    went: list[tuple[str, dict[str, Any]]] = []
    frame_context.went.connect(lambda where, what: went.append((where, what)))
    place.opened(run=sweep)
    qtbot.waitUntil(lambda: len(place.figures.cards) == 1)
    (card,) = place.figures.cards.values()
    qtbot.waitUntil(lambda: card.view.view is not None)
    pixels(card.view.view)
    at = card.view.view.place_of(0, 1).toPoint()
    QTest.mouseClick(card.view.view, Qt.MouseButton.LeftButton, pos=at)
    qtbot.waitUntil(lambda: bool(went))
    opened = Recipe.parse(went[0][1]["text"])
    assert opened.plan == "" and opened.get("model.hidden") == [32]


def test_of_points_on_each_other_the_top_one_opens(shown: Any) -> None:
    figure = figures.scatter(
        "Archive",
        figures.dots("measured", [1.0, 2.0], [3.0, 4.0]),
        figures.dots("front", [2.0], [4.0], opens=[{"optimizer.lr": 0.5}]),
        x="cost",
        y="error",
    )
    frame = shown(figure)
    opened: list[Any] = []
    frame.opened.connect(opened.append)
    pixels(frame.view)
    QTest.mouseClick(frame.view, Qt.MouseButton.LeftButton, pos=frame.view.place_of(0, 1).toPoint())
    assert opened == [{"optimizer.lr": 0.5}]


def test_nothing_takes_away_what_stands_there() -> None:
    text = recipe_with(recipe() + "\n[training]\nbatch_size = 8\n", {"training.batch_size": None, "optimizer.lr": 0.5})
    assert Recipe.parse(text).get("training.batch_size") is None and Recipe.parse(text).get("optimizer.lr") == 0.5


def test_changes_may_exchange_a_part() -> None:
    text = recipe_with(recipe(), {"model": {"use": "cnn"}, "techniques": [{"use": "clip"}], "optimizer.lr": 0.5})
    made = Recipe.parse(text)
    assert made.get("model") == {"use": "cnn"} and made.get("techniques.0.use") == "clip"
    assert made.get("optimizer.lr") == 0.5


# -- cost and numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "figure",
    [
        example_figures.coloured(10_000),
        example_figures.large_map(200),
        example_figures.surface(200),
        example_figures.large_graph(500),
        example_figures.long_curve(10_000),
        example_figures.points(10_000),
        example_figures.mesh(28),
    ],
    ids=lambda figure: figure["title"],
)
def test_no_frame_takes_long(shown: Any, figure: dict[str, Any]) -> None:
    """Processor time of taking the data, of drawing all of it, and of following the mouse; the best of a few tries."""
    view = shown(figure, 700, 460).view

    def cost(work: Callable[[], Any]) -> float:
        tries = []
        for _ in range(6):
            begun = time.thread_time()
            work()
            tries.append(time.thread_time() - begun)
        return 1000 * min(tries)

    def drawn() -> None:
        view.redraw()
        view.repaint()

    def followed() -> None:
        view.spot = QPointF(300, 200)
        view.repaint()

    taken = {"check": cost(lambda: problems(figure)), "take": cost(lambda: view.take(figure)), "draw": cost(drawn)}
    assert {**taken, "over": cost(followed)} == {name: pytest.approx(0, abs=16) for name in (*taken, "over")}


def test_short_numbers() -> None:
    said = {0.5: "0.5", 1e-4: "1e−4", 2e6: "2 M", 1234.5: "1230", 0.037037: "0.037", math.nan: "not a number", 0: "0"}
    assert {value: short(value) for value in said} == said
