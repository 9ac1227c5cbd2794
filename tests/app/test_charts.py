"""Charts: what is drawn is what was logged, reduced but not altered."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PySide6.QtCore import QPointF, Qt
from PySide6.QtGui import QColor, QImage, QPainter, QPen

from app.charts import Chart, clock_text, tick_text
from app.curves import Curve, MachineCache, SeriesCache, smoothed, thin, utilization
from app.places import Context
from app.strokes import Line, Strokes
from engine.log import Log, SeriesWriter
from engine.workspace import Workspace


@pytest.fixture
def chart(qtbot: Any, frame_context: Context) -> Chart:
    made = Chart(frame_context, "Loss")
    qtbot.addWidget(made)
    made.resize(420, 260)
    made.show()
    return made


def loss_curves(run: str) -> list[Curve]:
    return [Curve("t", "train", 0, run, "train/loss"), Curve("v", "val", 0, run, "val/loss", validation=True)]


def test_thinning_keeps_every_extreme_and_both_ends() -> None:
    random = np.random.default_rng(0)
    y = random.normal(size=100_000)
    y[777], y[54_321] = 40.0, -40.0
    x = np.arange(len(y), dtype=np.float64)
    few_x, few_y = thin(x, y, 500)
    assert len(few_x) <= 2 * 500 + 200 and np.all(np.diff(few_x) > 0)
    assert few_y.max() == 40.0 and few_y.min() == -40.0 and few_x[0] == 0 and few_x[-1] == x[-1]
    np.testing.assert_array_equal(few_y, y[few_x.astype(int)])  # points of the series, not means of them


def test_thinning_leaves_gaps_where_values_are_missing() -> None:
    y = np.sin(np.arange(10_000) / 100)
    y[4000:6000] = np.nan
    few_x, few_y = thin(np.arange(10_000.0), y, 100)
    assert np.nanmax(few_y) == np.nanmax(y)
    assert np.isnan(few_y[(few_x > 4100) & (few_x < 5900)]).all()


def test_smoothing_keeps_a_straight_line_and_takes_the_noise() -> None:
    x = np.arange(20_000.0)
    noise = np.random.default_rng(1).normal(size=len(x))
    at, line = smoothed(x, 3.0 * x + 5.0, 400.0, 500)
    inner = (at > 500) & (at < 19_500)
    np.testing.assert_allclose(line[inner], 3.0 * at[inner] + 5.0, rtol=1e-6)
    _, calm = smoothed(x, noise, 2000.0, 500)
    assert calm.std() < 0.1 * noise.std()


def test_smoothing_leaves_out_what_is_not_finite() -> None:
    y = np.ones(1000)
    y[::7] = np.nan
    y[3] = np.inf
    _, calm = smoothed(np.arange(1000.0), y, 50.0, 200)
    np.testing.assert_allclose(calm, 1.0, rtol=1e-12)


def test_the_cache_reads_only_what_is_new(workspace: Workspace) -> None:
    with Log(workspace.database) as log:
        run = log.create_run("")
        cache = SeriesCache()
        with SeriesWriter(workspace.database, run) as writer:
            handle = writer.series("a")
            for start in (0, 100):
                writer.extend(handle, np.arange(start, start + 100), np.arange(start, start + 100) ** 0.5)
                writer.flush()
                steps, values, _ = cache.points(log, run, "a")
                assert steps.tolist() == list(range(start + 100))
                np.testing.assert_array_equal(values, np.arange(start + 100) ** 0.5)


def test_the_cache_forgets_the_least_used_series(workspace: Workspace) -> None:
    with Log(workspace.database) as log:
        run = log.create_run("")
        with SeriesWriter(workspace.database, run) as writer:
            for name in "abc":
                writer.extend(writer.series(name), np.arange(100), np.arange(100.0))
        cache = SeriesCache(limit=250)
        for name in "abc":
            assert len(cache.points(log, run, name)[0]) == 100
        assert list(cache._series) == [(run, "b"), (run, "c")]


def test_a_chart_shows_the_logged_points(qtbot: Any, chart: Chart, write_run: Callable[..., str]) -> None:
    run = write_run(points=200)
    chart.set_smoothing(0.0)
    chart.set_curves(loss_curves(run))
    chart.refresh()
    qtbot.waitUntil(lambda: len(chart.drawn) == 2)
    drawn = chart.drawn["t"]
    np.testing.assert_allclose(drawn.y, 2.0 * np.exp(-drawn.x / 50) + 0.1, rtol=1e-12)
    assert chart._legend.accessibleName().startswith(f"train {0.1 + 2 * np.exp(-4):.4g}")
    name, at, value = chart.values_at(40.2)[0]
    assert (name, at) == ("train", 40.0) and value == pytest.approx(2.0 * np.exp(-40 / 50) + 0.1)


def test_zooming_reads_the_stretch_that_is_seen(qtbot: Any, chart: Chart, workspace: Workspace) -> None:
    with Log(workspace.database) as log:
        run = log.create_run("")
    values = np.random.default_rng(0).normal(size=50_000)
    with SeriesWriter(workspace.database, run) as writer:
        writer.extend(writer.series("a"), np.arange(50_000), values)
    chart.set_curves([Curve("a", "a", 0, run, "a")])
    chart.refresh()
    qtbot.waitUntil(lambda: "a" in chart.drawn)
    assert len(chart.drawn["a"].x) < 2_500
    chart.set_span((1000.0, 1100.0))
    qtbot.waitUntil(lambda: len(chart.drawn["a"].x) < 120)
    inside = chart.drawn["a"].x.astype(int)
    np.testing.assert_array_equal(chart.drawn["a"].y, values[inside])
    assert set(range(1000, 1101)) <= set(inside.tolist())
    chart._reset()
    qtbot.waitUntil(lambda: len(chart.drawn["a"].x) > 500)


def test_a_logarithmic_axis_leaves_out_what_has_no_logarithm(chart: Chart) -> None:
    chart.set_curves([Curve("a", "a")])
    chart.set_logarithmic(True)
    chart.feed("a", [1, 2, 3, 4], [10.0, 0.0, -1.0, 1000.0])
    (_, _), (low, high) = chart.view.viewRange()
    assert 0.8 < low <= 1.0 and 3.0 <= high < 3.2


def test_fed_numbers_and_bands(chart: Chart) -> None:
    chart.set_curves([Curve("a", "mean", 2)])
    chart.feed("a", [0, 1, 2], [1.0, 2.0, 3.0], low=[0.0, 1.0, 2.0], high=[2.0, 3.0, 4.0])
    (left, right), (low, high) = chart.view.viewRange()
    assert (left, right) == (0.0, 2.0) and low < 0.0 and high > 4.0
    assert "mean,2,3" in chart.text()


def test_curves_that_leave_are_no_longer_drawn(qtbot: Any, chart: Chart) -> None:
    chart.set_curves([Curve("a", "a"), Curve("b", "b", 1)])
    chart.feed("a", [0, 1], [0.0, 1.0])
    chart.feed("b", [0, 1], [5.0, 6.0])
    chart.set_curves([Curve("b", "b", 1)])
    qtbot.waitUntil(lambda: list(chart.strokes.layers) == ["b"])
    assert chart.view.viewRange()[1][0] > 4.0


def test_the_y_axis_stays_while_the_data_fill_it(chart: Chart) -> None:
    chart.set_curves([Curve("a", "a")])
    chart.feed("a", [0, 1, 2], [0.0, 1.0, 0.5])
    before = chart.view.viewRange()[1]
    chart.feed("a", [0, 1, 2], [0.0, 0.97, 0.5])
    assert chart.view.viewRange()[1] == before
    chart.feed("a", [0, 1, 2], [0.0, 0.1, 0.05])
    assert chart.view.viewRange()[1][1] < 0.2


def test_the_theme_reaches_the_chart(chart: Chart) -> None:
    chart.set_curves([Curve("a", "a", 0)])
    chart.feed("a", np.arange(50), np.sin(np.arange(50)))
    chart.theme.choose("dark")
    layer = chart.strokes.layers["a"][-1]
    assert isinstance(layer, Line) and layer.pen.color() == QColor(chart.theme.tokens.series[0])
    assert chart.grab().toImage().pixelColor(210, 30).lightness() < 80


def test_the_crosshair_says_all_values(qtbot: Any, chart: Chart) -> None:
    chart.set_curves([Curve("a", "first"), Curve("b", "second", 1)])
    chart.feed("a", [0, 10, 20], [1.0, 2.0, 3.0])
    chart.feed("b", [0, 10, 20], [5.0, 6.0, 7.0])
    chart._hover(chart.view.mapViewToScene(QPointF(10.0, 2.0)))
    assert chart._values.isVisible()
    assert chart._values.text().splitlines() == ["step 10", "first  2", "second  6"]


def line_pixels(pen: QPen, count: int) -> QImage:
    """A horizontal line of `count` points, painted on 400 x 20 pixels."""
    image = QImage(400, 20, QImage.Format.Format_RGB32)
    image.fill(Qt.GlobalColor.white)
    strokes = Strokes()
    strokes.set_layers("a", [Line(np.linspace(0, 399, count), np.full(count, 10.0), pen, (1.0, 1.0))])
    painter = QPainter(image)
    strokes.paint(painter)
    painter.end()
    return image


@pytest.mark.parametrize("count", [20, 2000])
def test_dashes_show_whether_qt_or_we_draw_them(count: int) -> None:
    pen = QPen(QColor("black"))
    pen.setCosmetic(True)
    pen.setWidthF(2.0)
    image = line_pixels(pen, count)
    dark = [image.pixelColor(x, 10).lightness() < 128 for x in range(2, 398)]
    assert all(dark)
    pen.setDashPattern([4.0, 4.0])
    image = line_pixels(pen, count)
    dark = [image.pixelColor(x, 10).lightness() < 128 for x in range(2, 398)]
    changes = sum(a != b for a, b in pairwise(dark))
    assert 0.3 < sum(dark) / len(dark) < 0.7 and 35 <= changes <= 60  # 396 px, 8 on and 8 off (caps eat some)


def test_a_noisy_line_is_cheap() -> None:
    """The reason for Strokes: as one path this line takes 30 ms and more."""
    pen = QPen(QColor("black"))
    pen.setCosmetic(True)
    pen.setWidthF(1.5)
    noise = np.random.default_rng(0).random(600) * 150
    line = Line(np.linspace(0, 250, 600), noise, pen, (1.0, 1.0))
    image = QImage(260, 160, QImage.Format.Format_RGB32)
    spent = []
    for _ in range(5):
        painter = QPainter(image)
        began = time.thread_time()
        line.paint(painter)
        spent.append(time.thread_time() - began)
        painter.end()
    assert min(spent) < 0.012


def test_utilization_lies_on_the_steps_of_the_run(workspace: Workspace) -> None:
    with Log(workspace.database) as log:
        run = log.create_run("")
        with SeriesWriter(workspace.database, run, interval=0.01) as writer:
            handle = writer.series("train/loss")
            for step in range(40):
                writer.add(handle, step, 1.0)
                writer.flush()
        times = log.points(run, "train/loss").times
        for share in (0.25, 0.5, 0.75):
            log.add_machine({"cpu": 100 * share, "gpus": []}, time=times[0] + share * (times[-1] - times[0]))
        log.update_run(run, started=float(times[0]))
        row = log.run(run)
        assert row is not None
        drawn = utilization(log, SeriesCache(), MachineCache(), row, "step", 500)["cpu"]
        expected = np.interp(times[0] + np.array([0.25, 0.5, 0.75]) * (times[-1] - times[0]), times, np.arange(40))
        np.testing.assert_allclose(drawn.x, expected, atol=1e-6)
        assert drawn.y.tolist() == [25.0, 50.0, 75.0]
        seconds = utilization(log, SeriesCache(), MachineCache(), row, "time", 500)["cpu"]
        np.testing.assert_allclose(seconds.x, np.array([0.25, 0.5, 0.75]) * (times[-1] - times[0]), atol=1e-5)


@pytest.mark.parametrize(
    ("value", "spacing", "text"),
    [(0.0, 0.5, "0"), (0.5, 0.5, "0.5"), (1500, 500, "1.5k"), (2_000_000, 500_000, "2M"), (-0.25, 0.05, "−0.25"),
     (3e-5, 1e-5, "3e−5"), (0.001, 0.0005, "0.0010")],
)  # fmt: skip
def test_ticks(value: float, spacing: float, text: str) -> None:
    assert tick_text(value, spacing) == text


@pytest.mark.parametrize(("value", "text"), [(12, "12 s"), (80, "1:20"), (7500, "2:05:00"), (-3, "−3 s")])
def test_clock_ticks(value: float, text: str) -> None:
    assert clock_text(value, 1) == text


@pytest.mark.parametrize("low, high", [(0.002843, 0.003143), (0.0, 1.04), (2.9930e-3, 2.9931e-3), (0.2, 5e6), (-3, 3),
                                       (99_999, 100_001), (0.957, 0.961)])  # fmt: skip
@pytest.mark.parametrize("pixels", [70, 110, 400])
def test_an_axis_has_two_labels_at_least_that_fit(
    qtbot: Any, chart: Chart, low: float, high: float, pixels: int
) -> None:
    chart.resize(300, pixels + 45)
    chart.set_smoothing(0.0)
    chart.set_curves([Curve("a", "a")])
    chart.feed("a", [1, 2, 3], [low, high, (low + high) / 2])
    for logarithmic in (False, True):
        chart.set_logarithmic(logarithmic)
        qtbot.waitUntil(lambda: chart.left.range == list(chart.view.viewRange()[1]))
        picture = QImage(10, 10, QImage.Format.Format_ARGB32)
        painter = QPainter(picture)
        painter.setFont(chart.left.style["tickFont"])
        chart.left.fit(chart.view.height())
        qtbot.wait(20)
        _, _, labels = chart.left.generateDrawSpecs(painter)
        painter.end()
        texts = [text for _, _, text in labels]
        assert len(texts) >= 2 and len(set(texts)) == len(texts), texts


def test_a_single_point_is_a_dot(qtbot: Any, chart: Chart) -> None:
    chart.set_curves([Curve("a", "a", 0)])
    chart.feed("a", [7.0], [0.5])
    qtbot.waitUntil(lambda: dotted(chart))


def dotted(chart: Chart) -> bool:
    """Whether the middle of the plotted area has the curve's colour."""
    image = chart.canvas.grab().toImage()
    at = chart.canvas.mapFromScene(chart.view.mapViewToScene(QPointF(7.0, 0.5)))
    seen, wanted = image.pixelColor(at), chart.theme.series(0)
    return sum(abs(a - b) for a, b in zip(seen.getRgb()[:3], wanted.getRgb()[:3], strict=True)) < 30
