"""Where a run's points lie along steps, time, epochs and what it has counted."""

from __future__ import annotations

import numpy as np
import pytest

from engine import axes

STEPS, TIMES = np.array([0, 5, 10, 20]), np.array([100.0, 101.0, 103.0, 109.0])


def test_axes_are_those_that_runs_know() -> None:
    names = ["count/tokens", "train/loss", "epoch", "count/gradient-passes"]
    assert axes.axes_of(names) == ["step", "time", "epoch", "count/gradient-passes", "count/tokens"]
    assert axes.axes_of([]) == ["step", "time"]
    assert [axes.words(each) for each in ("step", "time", "epoch", "count/gradient-passes")] == [
        "steps", "time", "epochs", "gradient passes",
    ]  # fmt: skip
    assert [name for name in names if axes.measures_progress(name)] == [names[0], *names[2:]]


def test_points_lie_on_steps_and_seconds() -> None:
    assert axes.along("step", STEPS, TIMES, 0.0).tolist() == [0.0, 5.0, 10.0, 20.0]
    assert axes.along("time", STEPS, TIMES, 99.0).tolist() == [1.0, 2.0, 4.0, 10.0]


def test_between_two_counts_a_point_is_interpolated() -> None:
    told = np.array([10, 20]), np.array([40.0, 100.0])
    assert axes.along("count/samples", STEPS, TIMES, 0.0, told).tolist() == [0.0, 20.0, 40.0, 100.0]


def test_a_run_that_has_not_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="has not counted its environment steps"):
        axes.along("count/environment-steps", STEPS, TIMES, 0.0, (np.empty(0), np.empty(0)))
