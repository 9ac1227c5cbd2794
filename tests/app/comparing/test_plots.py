"""Points, bars and bands: what is drawn, not how it looks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PySide6.QtCore import QPointF, QSettings

from app.comparing.panels import axis_of
from app.comparing.plots import Axis, Bar, Bars, Point, Scatter, front_of, read_band
from app.places import Context
from app.theme import Theme
from engine.workspace import Workspace


@pytest.fixture
def context(qtbot, tmp_path):
    settings = QSettings(str(tmp_path / "settings.ini"), QSettings.Format.IniFormat)
    context = Context(Workspace(tmp_path), settings, Theme(settings))
    yield context
    context.close()


def points(*pairs: tuple[float, float]) -> list[Point]:
    return [Point(str(i), f"run {i}", x, y, i) for i, (x, y) in enumerate(pairs)]


def test_the_front_runs_from_left_to_right():
    cost, score = Axis("cost", higher=False), Axis("score", higher=True)
    assert front_of(points((3, 9), (1, 5), (2, 4), (2, 8), (math.nan, 99)), cost, score) == [1, 3, 0]
    assert front_of(points((1, 1)), Axis("lr"), score) == []


def test_a_place_on_the_plot_tells_its_run(qtbot, context):
    plot = Scatter(context)
    qtbot.addWidget(plot)
    plot.resize(400, 300)
    plot.show()
    plot.show_points(points((1, 1), (2, 2), (math.nan, 3)), Axis("a", False), Axis("b", True))
    assert "of 2 on the Pareto front" in plot.note.text()
    qtbot.waitUntil(lambda: plot.view.width() > 100)
    place = plot.view.mapViewToScene(QPointF(2, 2))
    assert plot.at(place).key == "1"
    assert plot.at(place + QPointF(-40, 0)) is None
    assert plot.text().splitlines()[1] == "run 0,1,1,yes"


def test_a_logarithmic_axis_leaves_out_what_is_not_positive(qtbot, context):
    plot = Scatter(context)
    qtbot.addWidget(plot)
    plot.show_points(points((0, 1), (1e-4, 2), (1e-1, 3)), Axis("lr", logarithmic=True), Axis("b", True))
    assert len(plot._spots.data) == 2


def test_words_stand_at_whole_places():
    axis, places = axis_of("setting:optimizer.use", ["lion", "adamw", None, "lion"])
    assert axis.ticks == ("adamw", "lion") and places[:2] == [1.0, 0.0] and math.isnan(places[2])
    axis, places = axis_of("setting:optimizer.lr", [1e-4, 1e-1, None])
    assert axis.logarithmic and places[:2] == [1e-4, 1e-1] and math.isnan(places[2])
    assert not axis_of("setting:n", [1, 2])[0].logarithmic


def test_bars_start_at_zero_unless_the_values_are_close(qtbot, context):
    bars = Bars(context)
    qtbot.addWidget(bars)
    bars.show_bars([Bar("a", "a", 1.0), Bar("b", "b", 3.0)], "")
    assert bars.canvas.span() == (0.0, 3.0, True)
    bars.show_bars([Bar("a", "a", 0.97, 0.01), Bar("b", "b", 0.96, 0.01)], "")
    low, high, from_zero = bars.canvas.span()
    assert not from_zero and 0.9 < low < 0.95 and 0.98 < high < 1
    assert bars.text().splitlines()[1] == "a,0.97,0.01,1"


def test_a_band_is_mean_and_standard_deviation():
    random = np.random.default_rng(0)
    steps, values = np.arange(50), random.normal(size=(4, 50))
    x, mean, low, high = read_band([(steps, row) for row in values])
    assert (x == steps).all()
    assert np.allclose(mean, values.mean(axis=0), rtol=1e-12)
    assert np.allclose((high - low) / 2, values.std(axis=0, ddof=1), rtol=1e-12)


def test_a_band_of_runs_of_other_lengths_and_steps():
    x, mean, _low, _high = read_band([(np.array([0, 10]), np.array([0.0, 10.0])), (np.array([5]), np.array([7.0]))])
    assert x.tolist() == [0, 5, 10] and mean.tolist() == [0.0, 6.0, 10.0]
    assert read_band([(np.array([1]), np.array([math.nan]))]) is None


def test_a_long_band_keeps_the_means_of_its_stretches():
    steps = np.arange(100_000)
    x, mean, low, high = read_band([(steps, steps * 2.0), (steps, steps * 2.0 + 4.0)], width=200)
    assert len(x) <= 200
    assert np.allclose(mean, x * 2.0 + 2.0, atol=1e-6)
    assert np.allclose(high - low, 2 * 2.0 * math.sqrt(2), atol=1e-6)
