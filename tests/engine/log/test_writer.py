"""The writer: what it takes it keeps, in order, once, whatever the number of flushes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from engine.errors import LogError
from engine.log import Log, SeriesWriter
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


def test_an_unknown_run_is_refused(log: Log) -> None:
    with pytest.raises(LogError, match="no run nothing"):
        SeriesWriter(log.path, "nothing")
