"""The log as readers and the service use it."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from engine.errors import LogError
from engine.log import Log, SeriesWriter
from tests.waiting import until


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with Log(tmp_path / "athanor.db") as log:
        yield log


def test_a_run_comes_back_with_its_columns_decoded(log: Log) -> None:
    run = log.create_run("seed = 3", name="first", seed=3, priority=2, device="cpu", digest="abc")
    row = log.run(run)
    assert row is not None
    assert (row["recipe"], row["name"], row["seed"], row["priority"], row["device"]) == (
        "seed = 3",
        "first",
        3,
        2,
        "cpu",
    )
    assert (row["state"], row["kind"], row["request"], row["metrics"], row["tags"]) == ("queued", "run", "", {}, [])
    assert log.update_run(run, tags=["a", "b"], metrics={"x": np.float32(0.5)}, step=np.int64(7), favourite=True)
    row = log.run(run)
    assert row is not None
    assert (row["tags"], row["metrics"], row["step"], row["favourite"]) == (["a", "b"], {"x": 0.5}, 7, 1)
    assert log.run("nothing") is None
    assert not log.update_run("nothing", step=1)


def test_numbers_that_are_not_finite_survive_in_json(log: Log) -> None:
    run = log.create_run("")
    log.update_run(run, metrics={"nan": math.nan, "up": math.inf, "down": -math.inf})
    row = log.run(run)
    assert row is not None
    assert math.isnan(row["metrics"]["nan"])
    assert (row["metrics"]["up"], row["metrics"]["down"]) == (math.inf, -math.inf)


def test_wrong_columns_are_refused_by_name(log: Log) -> None:
    run = log.create_run("")
    with pytest.raises(TypeError, match="colour"):
        log.update_run(run, colour="red")
    with pytest.raises(TypeError, match="seed"):
        log.update_run(run, seed=2**64)
    with pytest.raises(TypeError, match="notes"):
        log.update_run(run, notes=["a"])
    with pytest.raises(LogError, match="already there"):
        log.create_run("", id=run)


def test_ids_are_short_distinct_and_sort_by_time(log: Log) -> None:
    first = log.create_run("")
    until(lambda: time.time() * 1000 // 1 > int(first[:8], 36) + 1, 1, 0.001)
    with log.transaction():
        ids = [log.create_run("") for _ in range(300)]
    assert len({first, *ids}) == 301
    assert all(len(id) == 10 and id.isalnum() and id == id.lower() for id in ids)
    assert first < min(ids)
    assert [run["id"] for run in log.runs()][-1] == first


def test_runs_are_filtered(log: Log) -> None:
    sweep = log.create_run("", kind="sweep", state="training")
    child = log.create_run("", sweep=sweep)
    old = log.create_run("", state="done")
    log.update_run(old, archived=True)
    ids = lambda **filters: {run["id"] for run in log.runs(**filters)}  # noqa: E731
    assert ids() == {sweep, child}
    assert ids(archived=True) == {old}
    assert ids(archived=None) == {sweep, child, old}
    assert ids(states=["queued", "training"]) == {sweep, child}
    assert ids(states="queued") == ids(sweep=sweep) == {child}
    assert ids(kind="sweep") == {sweep}
    assert ids(states=[]) == set()
    assert len(log.runs(limit=1)) == 1


def test_only_one_of_many_makes_a_transition(log: Log) -> None:
    run = log.create_run("")

    def take(number: int) -> bool:
        with Log(log.path) as mine:
            return mine.transition(run, ["queued"], "starting", pid=number)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(take, range(16)))
    row = log.run(run)
    assert row is not None
    assert won.count(True) == 1
    assert (row["state"], row["pid"]) == ("starting", won.index(True))
    assert not log.transition(run, "queued", "training")
    assert not log.transition("nothing", "queued", "training")


def test_each_command_is_taken_once_and_answered(log: Log) -> None:
    ids = [log.command("queue", None, recipe="x", n=number) for number in range(40)]

    def take(_: int) -> list[int]:
        with Log(log.path) as mine:
            return [command["id"] for command in mine.take_commands()]

    with ThreadPoolExecutor(4) as pool:
        taken = [id for some in pool.map(take, range(8)) for id in some]
    assert sorted(taken) == ids
    assert log.take_commands() == []
    log.answer(ids[0], {"run": "a"})
    log.answer(ids[1], {"error": "no"}, failed=True)
    assert log.command_state(ids[0])["answer"] == {"run": "a"}
    assert [log.command_state(id)["state"] for id in ids[:3]] == ["done", "failed", "taken"]
    assert log.release_commands() == 38
    again = log.take_commands()
    assert [command["id"] for command in again] == ids[2:]
    assert again[0]["args"] == {"recipe": "x", "n": 2}
    with pytest.raises(LogError, match="no command 999"):
        log.command_state(999)


def test_events_newest_first_come_in_order(log: Log) -> None:
    run = log.create_run("")
    ids = [
        log.event(str(number), run=run if number % 2 else None, level="warning", step=number) for number in range(10)
    ]
    assert [event["text"] for event in log.events()] == [str(number) for number in range(10)]
    assert [event["text"] for event in log.events(limit=3)] == ["7", "8", "9"]
    assert [event["text"] for event in log.events(after=ids[4], limit=3)] == ["5", "6", "7"]
    assert [event["step"] for event in log.events(run)] == [1, 3, 5, 7, 9]


def test_machine_samples_are_thinned_after_a_day(log: Log) -> None:
    now = 1_000_000_020.0
    with log.transaction():
        for second in range(0, 86_400 + 300, 10):
            log.add_machine({"cpu": second}, time=now + second)
        log._samples = 0
        log.add_machine({"cpu": -1, "gpus": [{"power": math.nan}]}, time=now + 86_400 + 300)
    samples = log.machine(0)
    old = [sample["cpu"] for sample in samples if sample["time"] < now + 300]
    assert old == [0, 60, 120, 180, 240]
    assert len(samples) == 5 + 8640 + 1
    assert [sample["cpu"] for sample in log.machine(now + 86_400, limit=2)] == [86_690, -1]
    assert math.isnan(log.machine(0, limit=1)[0]["gpus"][0]["power"])


def test_figures_and_meta(log: Log) -> None:
    run = log.create_run("")
    log.add_figure(run, "histogram", "weights", {"kind": "bars", "y": np.arange(3)}, step=4)
    figure = log.figures(run)[0]
    assert (figure["probe"], figure["name"], figure["step"], figure["data"]["y"]) == (
        "histogram",
        "weights",
        4,
        [0, 1, 2],
    )
    assert log.meta("service") is None
    log.set_meta("service", {"pid": 1})
    log.set_meta("service", {"pid": 2})
    assert log.meta("service") == {"pid": 2}
    log.set_meta("service", None)
    assert log.meta("service") is None


def test_the_version_changes_when_another_has_written(log: Log) -> None:
    with Log(log.path, readonly=True) as reader:
        before = reader.version()
        assert reader.version() == before
        log.set_meta("a", 1)
        assert reader.version() != before
        with pytest.raises(LogError, match="may not be written"):
            reader.set_meta("a", 2)


def test_a_deleted_run_takes_everything_along_and_stops_its_writer(log: Log) -> None:
    kept, run = log.create_run(""), log.create_run("")
    for id in (kept, run):
        with SeriesWriter(log.path, id) as writer:
            writer.extend(writer.series("loss"), np.arange(1000), np.random.default_rng(0).normal(size=1000))
            writer.event("x")
    with SeriesWriter(log.path, run, interval=0.01) as writer:
        assert log.delete_run(run)
        assert not log.delete_run(run)
        writer.add(writer.series("loss"), 2000, 1.0)
        until(lambda: writer.requested == "stop", 5)
    counts = [log._rows(f"SELECT count(*) n FROM {table}")[0]["n"] for table in ("runs", "series", "chunks", "events")]
    assert counts == [1, 1, 1, 1]
    assert len(log.points(kept, "loss")) == 1000


def test_a_transaction_is_all_or_nothing(log: Log) -> None:
    with pytest.raises(RuntimeError), log.transaction():
        log.create_run("")
        raise RuntimeError
    assert log.runs() == []


def test_a_closed_log_is_closed(log: Log) -> None:
    other = Log(log.path)
    other.close()
    with pytest.raises(sqlite3.ProgrammingError):
        other.runs()
