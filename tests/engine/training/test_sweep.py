"""Sweeps with the real search process, real workers and the scheduler that both run under."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from engine.log import Log
from engine.recipe import Recipe, merge
from engine.service import verbs
from engine.service.client import create_run
from engine.service.scheduler import Scheduler
from engine.training.sweep import main
from engine.workspace import Workspace
from tests.end_to_end.steps import PATIENCE, SMALL, Row, end_processes_of, kill, recipe, row_of, wait_for
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

RATES = [0.0001, 0.05, 0.1]
GRID = {"search": {"use": "grid", "space": {"optimizer.lr": RATES}}, "name": "rates"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path_factory.mktemp("sweeps"))
    ended = threading.Event()

    def schedule() -> None:
        scheduler = Scheduler(workspace, gpus=0, slots=2, keep_spare=True)
        while not ended.is_set():
            scheduler.turn()
            scheduler.wait()
        scheduler.close()

    thread = threading.Thread(target=schedule)
    thread.start()
    yield workspace
    ended.set()
    thread.join()
    end_processes_of(workspace)


@pytest.fixture(scope="module")
def log(workspace: Workspace) -> Iterator[Log]:
    with Log(workspace.database) as log:
        yield log


def children(log: Log, sweep: str) -> list[Row]:
    return log.runs(sweep=sweep)[::-1]


def tried(rows: list[Row], path: str = "optimizer.lr") -> list[Any]:
    return [Recipe.parse(row["recipe"]).get(path) for row in rows]


def best_of(rows: list[Row]) -> Row:
    """The first with the highest validation accuracy."""
    return max(rows, key=lambda row: row["metrics"].get("val/accuracy", -1.0))


def test_a_grid_goes_through_pause_kill_and_stop_without_doing_a_run_twice(workspace: Workspace, log: Log) -> None:
    sweep = create_run(log, recipe(GRID))
    row = wait_for(log, sweep, "training")
    assert row["kind"] == "sweep"
    until(lambda: len(children(log, sweep)) == len(RATES), PATIENCE)
    first = [child["id"] for child in children(log, sweep)]
    assert tried(children(log, sweep)) == RATES
    assert [child["name"] for child in children(log, sweep)] == [f"rates: lr {rate}" for rate in RATES]

    kill(row_of(log, sweep)["pid"])
    row = wait_for(log, sweep, "interrupted")
    verbs.resume(log, row)
    wait_for(log, sweep, "training")
    verbs.pause(log, row_of(log, sweep))
    paused = wait_for(log, sweep, "paused")
    assert paused["request"] == ""
    verbs.resume(log, paused)
    wait_for(log, sweep, "training", "done")

    row = wait_for(log, sweep, "done")
    rows = children(log, sweep)
    assert [child["id"] for child in rows] == first and {child["state"] for child in rows} == {"done"}
    assert (row["step"], row["steps"]) == (3, 3)
    best = max(child["metrics"]["val/accuracy"] for child in rows)
    assert row["metrics"] == {"best val/accuracy": best}
    named = next(child for child in rows if child["id"] in row["message"])
    assert named["metrics"]["val/accuracy"] == best and row["message"] == f"The best run is {named['id']}."
    for child, rate in zip(rows, RATES, strict=True):
        wanted = Recipe.of(merge(SMALL, {"optimizer": {"lr": rate}}))
        assert Recipe.parse(child["recipe"]).get("search") is None
        assert Recipe.parse(child["recipe"]).digest() == Recipe.of({**wanted.document, "name": child["name"]}).digest()


def test_a_random_search_stops_and_goes_on(workspace: Workspace, log: Log) -> None:
    space = {"optimizer.lr": {"low": 1e-3, "high": 1e-1, "log": True}, "model.hidden": [[4], [8, 8]]}
    text = recipe({"search": {"use": "random", "space": space, "trials": 4}, "seed": 4})
    sweep = create_run(log, text)
    until(lambda: any(child["state"] == "done" for child in children(log, sweep)), PATIENCE)
    verbs.stop(log, row_of(log, sweep))
    row = wait_for(log, sweep, "stopped")
    ids = [child["id"] for child in children(log, sweep)]
    assert len(ids) == 4 and row["message"].startswith("Stopped after ")
    for run in ids:
        wait_for(log, run, "done", "stopped")
    assert any(row_of(log, run)["state"] == "stopped" for run in ids)
    verbs.resume(log, row)
    row = wait_for(log, sweep, "done")
    rows = children(log, sweep)
    assert [child["id"] for child in rows] == ids and {child["state"] for child in rows} == {"done"}
    assert all(1e-3 <= rate <= 1e-1 for rate in tried(rows)) and len(set(tried(rows))) == 4
    assert all(hidden in ([4], [8, 8]) for hidden in tried(rows, "model.hidden"))
    assert row["metrics"] == {"best val/accuracy": best_of(rows)["metrics"]["val/accuracy"]}


def test_a_space_that_cannot_be_searched_is_one_sentence(workspace: Workspace, log: Log) -> None:
    search = {"use": "grid", "space": {"optimizer.lr": {"low": 0.1, "high": 1.0}}}
    run = create_run(log, recipe({"search": search}), state="starting")
    log.update_run(run, pid=os.getpid(), heartbeat=time.time())
    assert main(["--workspace", str(workspace.folder), "--run", run]) == 0, "what went wrong is recorded"
    row = wait_for(log, run, "failed")
    assert row["message"].startswith("search: ") and "this search needs a list of values" in row["message"]
    assert [event["text"] for event in log.events(run)] == [row["message"]] and children(log, run) == []


def test_where_no_run_comes_to_an_end_none_is_the_best(log: Log) -> None:
    task = {"use": "tabular", "dataset": "diabetes"}
    sweep = create_run(log, recipe({"search": {"use": "grid", "space": {"optimizer.lr": [1e4]}}, "task": task}))
    row = wait_for(log, sweep, "done")
    assert (row["message"], row["metrics"], row["step"]) == ("No run gave a value.", {}, 1)
    assert [child["state"] for child in children(log, sweep)] == ["diverged"]
