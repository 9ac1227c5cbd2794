"""A recipe goes through the real service, a real worker and a real database, and comes out trained."""

from __future__ import annotations

import itertools
import time
from typing import Any

import psutil
import pytest

from engine.log import Log
from engine.service.client import Engine, create_run
from tests.end_to_end.steps import (
    ENDLESS,
    PATIENCE,
    answer,
    assert_same_curves,
    checkpoint_steps,
    curves,
    never_interrupted,
    recipe,
    row_of,
    wait_for,
    wait_for_checkpoint,
)
from tests.waiting import until


def spare_of(engine: Engine) -> psutil.Process | None:
    """The process that waits for the next run, once it is ready."""
    service = engine.service()
    if not service or service["spare"] != "ready":
        return None
    children = psutil.Process(service["pid"]).children()
    return next((child for child in children if "--spare" in child.cmdline()), None)


def test_a_run_goes_from_the_queue_to_its_end(engine: Engine, log: Log) -> None:
    text = recipe({"name": "the first", "budget": {"epochs": 200}})
    run = create_run(log, text)  # the service is not asked yet, so that the queue is seen
    seen = [row_of(log, run)["state"]]
    engine.ensure()
    first_point: dict[str, Any] = {}

    def look() -> bool:
        row = row_of(log, run)
        seen.append(row["state"])
        if not first_point and len(log.points(run, "train/loss").steps):
            first_point.update(row)
        return bool(row["state"] in ("done", "failed", "interrupted", "diverged"))

    until(look, PATIENCE)
    assert [state for state, _ in itertools.groupby(seen)] == ["queued", "starting", "training", "done"]
    assert first_point["state"] == "training", "the first points are there while it trains"
    row = row_of(log, run)
    outcome, expected = never_interrupted(text)
    assert (row["weights"], row["step"], row["steps"]) == (outcome.weights, outcome.steps, outcome.steps)
    assert row["metrics"] == pytest.approx(outcome.metrics, rel=0, abs=0)
    assert (row["name"], row["message"], row["request"]) == ("the first", "", "")
    assert row["created"] <= row["started"] <= row["ended"] and 0 < row["seconds"] <= row["ended"] - row["started"]
    assert row["environment"]["parameters"] == 2 * 16 + 16 + 16 * 2 + 2
    assert_same_curves(curves(log, run), expected)
    assert {"train/loss", "val/loss", "val/accuracy", "lr", "sparsity", "gradient-norm"} <= set(expected)
    assert "throughput" in [info.name for info in log.series(run)]


def test_the_spare_worker_takes_the_next_run_and_is_watched(engine: Engine, log: Log) -> None:
    spare = until(lambda: spare_of(engine), PATIENCE)
    assert spare is not None
    asked = time.time()
    run = engine.queue(recipe(ENDLESS), seed=5, name="spare")
    row = wait_for(log, run, "training")
    assert row["pid"] == spare.pid and (row["seed"], row["name"]) == (5, "spare")
    until(lambda: len(log.points(run, "train/loss").steps), 20)
    first = float(log.points(run, "train/loss").times[0])
    assert first - asked < 10, "a worker that has everything imported starts in a moment, also on a busy machine"

    pid = str(row["pid"])

    def sample() -> dict[str, Any] | None:
        samples = log.machine(asked)
        if len(samples) < 3:
            return None
        return next((s for s in samples if s["processes"].get(pid, {}).get("run") == run), None)

    found = until(sample, 30) or {}
    assert found["memory_total"] == psutil.virtual_memory().total and 0 < found["memory"] < found["memory_total"]
    assert len(found["cpus"]) == psutil.cpu_count() and 0 <= found["cpu"] <= 100 and found["disk_free"] > 0
    assert found["processes"][pid]["memory"] > 50e6, "it has torch in it"
    answer(engine, engine.stop(run))
    wait_for(log, run, "stopped")


def test_the_order_of_the_queue_and_what_leaves_it(engine: Engine, log: Log) -> None:
    busy = engine.queue(recipe(ENDLESS))
    wait_for(log, busy, "starting", "training")
    short = recipe({"budget": {"epochs": 1}})
    first, second, gone = (engine.queue(short, priority=priority) for priority in (1, 0, 9))
    assert answer(engine, engine.prioritize(second, 7)) == {"result": "done"}

    assert answer(engine, engine.stop(gone)) == {"result": "stopped"}
    assert row_of(log, gone)["message"] == "Stopped before it started."
    folder = engine.workspace.run_folder(gone)
    assert answer(engine, engine.delete(gone)) == {"result": "deleted"}
    assert log.run(gone) is None and not folder.exists()

    row = wait_for_checkpoint(log, busy)
    assert [row_of(log, run)["state"] for run in (first, second)] == ["queued"] * 2, "one run at a time"
    refused = answer(engine, engine.delete(busy))["error"]
    assert refused == f"Run {busy} is training. Stop it first, then delete it." and log.run(busy)
    folder = engine.workspace.run_folder(busy)
    assert list(folder.glob("step-*.pt")) and checkpoint_steps(row)
    answer(engine, engine.stop(busy))
    wait_for(log, busy, "stopped")
    answer(engine, engine.delete(busy))
    assert log.run(busy) is None and log.series(busy) == [] and log.events(busy) == [] and not folder.exists()

    rows = [wait_for(log, run, "done") for run in (first, second)]
    assert rows[1]["ended"] <= rows[0]["started"], "what was given the higher priority came first"
    assert rows[0]["weights"] == rows[1]["weights"], "the same recipe and seed: the same weights"
