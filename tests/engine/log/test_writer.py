"""The writer: what it takes it keeps, in order, once, whatever the number of flushes."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest

from engine.errors import LogError
from engine.log import Log, SeriesWriter
from engine.log import writer as writer_module
from tests.waiting import until


@pytest.fixture
def log(tmp_path: Path):
    with Log(tmp_path / "athanor.db") as log:
        yield log


def test_points_come_back_in_order_through_many_flushes_and_merges(log: Log) -> None:
    run = log.create_run("")
    expected: dict[str, list[tuple[int, float]]] = {"a": [], "b": [], "c": []}
    random = np.random.default_rng(0)
    with SeriesWriter(log.path, run, interval=0.002) as writer:
        handles = {name: writer.series(name) for name in expected}
        step = 0
        for turn in range(400):
            for name, handle in handles.items():
                for _ in range(int(random.integers(0, 4))):
                    step += int(random.integers(1, 50))
                    value = float(random.normal())
                    writer.add(handle, step, value)
                    expected[name].append((step, value))
            if turn % 2:
                writer.flush()
        before = {name: log.points(run, name) for name in expected}
    for name, pairs in expected.items():
        for points in (before[name], log.points(run, name)):
            pairs = pairs[: len(points)]
            assert points.steps.tolist() == [step for step, _ in pairs]
            assert points.values.tolist() == [value for _, value in pairs]
            assert (np.diff(points.times) >= 0).all()
        assert len(log.points(run, name)) == len(expected[name])
    assert log._rows("SELECT max(n) n FROM (SELECT count(*) n FROM chunks GROUP BY series)")[0]["n"] == 1


def test_a_resumed_run_doubles_nothing_and_loses_nothing(log: Log) -> None:
    run = log.create_run("")
    with SeriesWriter(log.path, run) as writer:
        for step in range(10):
            writer.add(writer.series("loss"), step, step / 2)
            writer.add(writer.series("accuracy"), step, step / 3)
    with SeriesWriter(log.path, run) as writer:
        for step in range(6, 20):
            writer.add(writer.series("loss"), step, step / 2)
            writer.add(writer.series("accuracy"), step, step / 3)
            writer.add(writer.series("new"), step, 0.0)
    assert log.points(run, "loss").steps.tolist() == list(range(20))
    assert log.points(run, "accuracy").values.tolist() == [step / 3 for step in range(20)]
    assert [(info.name, info.count, info.last_step) for info in log.series(run)] == [
        ("loss", 20, 19), ("accuracy", 20, 19), ("new", 14, 19)
    ]  # fmt: skip


def test_two_writers_of_one_run_keep_order_and_double_nothing(log: Log) -> None:
    run = log.create_run("")
    with SeriesWriter(log.path, run, interval=10) as one, SeriesWriter(log.path, run, interval=10) as two:
        for turn in range(60):
            for number, writer in enumerate((one, two)):
                writer.add(writer.series("shared"), 2 * turn + number, 1.0)
                writer.add(writer.series(f"own {number}"), turn, 1.0)
                writer.flush()
    assert log.points(run, "shared").steps.tolist() == list(range(120))
    for number in range(2):
        assert log.points(run, f"own {number}").steps.tolist() == list(range(60))


def test_requests_columns_events_and_figures(log: Log) -> None:
    run = log.create_run("")
    with SeriesWriter(log.path, run, interval=0.01) as writer:
        writer.run(state="training", step=3, metrics={"val/loss": math.nan}, tags=["a"])
        writer.event("went well", kind="note", step=3)
        writer.figure("weights", "histogram", {"kind": "bars", "z": np.eye(2)}, step=3)
        log.request(run, "pause")
        until(lambda: writer.requested == "pause", 2)
        writer.answered("pause")
        assert writer.requested == ""
        writer.flush()
        row = log.run(run)
        assert row is not None
        assert (row["state"], row["step"], row["request"], row["tags"]) == ("training", 3, "", ["a"])
        assert math.isnan(row["metrics"]["val/loss"])
        assert row["heartbeat"] > 0
        assert [event["text"] for event in log.events(run)] == ["went well"]
        assert log.figures(run)[0]["data"]["z"] == [[1, 0], [0, 1]]


def test_what_is_no_number_is_left_out_and_said(log: Log) -> None:
    run = log.create_run("")
    with SeriesWriter(log.path, run) as writer:
        handle = writer.series("loss")
        for step, value in ((0, 1), (1, None), (2, "x"), (3.0, np.float32(0.5)), (2**70, 1.0), (4, np.array(2.0))):
            writer.add(handle, step, value)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="as many"):
            writer.extend(handle, [5, 6], [1.0])
    points = log.points(run, "loss")
    assert (points.steps.tolist(), points.values.tolist()) == ([0, 3, 4], [1.0, 0.5, 2.0])
    assert [event["level"] for event in log.events(run)] == ["error"] * 3


def test_steps_that_do_not_ascend_are_dropped(log: Log) -> None:
    run = log.create_run("")
    with SeriesWriter(log.path, run, interval=10) as writer:
        handle = writer.series("loss")
        for number, step in enumerate((3, 3, 1, 5, 4, 6)):
            writer.add(handle, step, number)
        writer.flush()
        writer.extend(handle, [6, 2, 7, 7, 8], [10, 11, 12, 13, 14])
    points = log.points(run, "loss")
    assert (points.steps.tolist(), points.values.tolist()) == ([3, 5, 6, 7, 8], [0, 3, 5, 12, 14])


def test_nothing_is_torn_while_the_thread_takes_points_away(log: Log) -> None:
    run = log.create_run("")
    with SeriesWriter(log.path, run, interval=0.0005) as writer:
        handle = writer.series("loss")
        for step in range(200_000):
            writer.add(handle, step, -step)
    points = log.points(run, "loss")
    assert len(points) == 200_000
    assert (points.values == -points.steps).all()


def test_a_point_is_readable_within_the_interval(log: Log) -> None:
    run = log.create_run("")
    with SeriesWriter(log.path, run, interval=0.25) as writer:
        handle = writer.series("loss")
        waits = []
        for step in range(4):
            began = time.monotonic()
            writer.add(handle, step, 1.0)
            until(lambda step=step: len(log.points(run, "loss")) > step, 5, 0.005)
            waits.append(time.monotonic() - began)
        assert sorted(waits)[1] <= 0.3  # a busy machine may hold up one of them
        points = log.points(run, "loss")
    assert abs(points.times[-1] - time.time()) < 5
    assert (np.diff(points.times) > 0).all()


def test_the_clock_never_runs_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, steady = 1000.0, 50.0
    monkeypatch.setattr(writer_module.clock, "time", lambda: wall)
    monkeypatch.setattr(writer_module.clock, "monotonic", lambda: steady)
    times = writer_module.Clock()
    wall, steady = 1001.0, 51.0
    assert times.now() == 1001
    wall, steady = 401.0, 52.0  # set back by ten minutes
    assert times.now() == 1002
    wall, steady = 402.0, 53.0
    assert times.now() == 1003
    wall, steady = 4002.0, 54.0  # asleep for an hour
    assert times.now() == 4603


def test_an_unknown_run_is_refused(log: Log) -> None:
    with pytest.raises(LogError, match="no run nothing"):
        SeriesWriter(log.path, "nothing")
