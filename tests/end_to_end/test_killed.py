"""`kill -9`, of the worker and of the service: what was seen stays, and the end is what it would have been."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from engine.log import Log
from engine.service.client import Engine
from engine.service.processes import environment, python
from engine.workspace import Workspace
from tests.end_to_end.steps import (
    ENDLESS,
    PATIENCE,
    STATEFUL,
    answer,
    assert_same_curves,
    checkpoint_steps,
    curves,
    end_processes_of,
    kill,
    never_interrupted,
    processes_of,
    recipe,
    row_of,
    wait_for,
    wait_for_checkpoint,
    wait_for_step,
)
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.mark.parametrize(
    ("patch", "steps"), [({}, 20_000), (STATEFUL, 8_000)], ids=["plain", "everything that has a state"]
)
def test_a_killed_worker_costs_nothing_but_time(
    engine: Engine, log: Log, patch: dict[str, Any], steps: int
) -> None:
    text = recipe(patch, {"budget": {"epochs": 0, "steps": steps}, "training": {"evaluate_every": 5}})
    outcome, expected = never_interrupted(text)
    per_epoch = -(-280 // 16)
    run = engine.queue(text)
    wait_for(log, run, "training")
    beyond = 0
    for _ in range(2):  # the second time from what was resumed
        row = wait_for_checkpoint(log, run, lambda step: step > beyond and step % per_epoch != 0)
        kill(row["pid"])
        killed = time.monotonic()
        row = wait_for(log, run, "interrupted")
        assert time.monotonic() - killed < 5, "within seconds"
        assert "SIGKILL" in row["message"] and "Resume goes on from its newest checkpoint." in row["message"]
        assert row["pid"] is None and row["ended"] and row["step"] < steps
        assert row["message"] in log.events(run)[-1]["text"]
        beyond = checkpoint_steps(row)[-1]
        seen = curves(log, run)["train/loss"]
        assert answer(engine, engine.resume(run)) == {"result": "queued"}
        wait_for(log, run, "training")
        assert curves(log, run)["train/loss"][1][: len(seen[1])] == seen[1], "nothing that was shown is lost"
    row = wait_for(log, run, "done")
    assert (row["weights"], row["step"]) == (outcome.weights, steps)
    assert row["metrics"] == outcome.metrics
    assert_same_curves(curves(log, run), expected)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(engine: Engine, log: Log) -> None:
    text = recipe({"budget": {"epochs": 0, "steps": 20_000}})
    outcome, expected = never_interrupted(text)
    run = engine.queue(text)
    row = wait_for_checkpoint(log, run)
    kill(row["pid"])
    wait_for(log, run, "interrupted")
    newest = sorted(engine.workspace.run_folder(run).glob("step-*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    answer(engine, engine.resume(run))
    assert wait_for(log, run, "done")["weights"] == outcome.weights
    assert_same_curves(curves(log, run), expected)


def test_a_run_outlives_its_service(engine: Engine, log: Log, workspace: Workspace) -> None:
    run = engine.queue(recipe({"budget": {"epochs": 0, "steps": 20_000}}))
    waiting = engine.queue(recipe())
    row = wait_for_step(log, run)
    service = engine.service()
    assert service is not None
    kill(service["pid"])
    until(lambda: not engine.alive(), 10)
    wait_for_step(log, run, beyond=row_of(log, run)["step"])
    assert row_of(log, run)["pid"] == row["pid"] and row_of(log, waiting)["state"] == "queued"

    engine.ensure()
    until(engine.alive, PATIENCE)
    fresh = engine.service()
    assert fresh is not None and fresh["pid"] != service["pid"]
    assert answer(engine, engine.pause(run)) == {"result": "asked"}
    wait_for(log, run, "paused")
    answer(engine, engine.resume(run))
    done = wait_for(log, run, "done")
    assert done["step"] == 20_000
    outcome, expected = never_interrupted(recipe({"budget": {"epochs": 0, "steps": 20_000}}))
    assert done["weights"] == outcome.weights
    assert_same_curves(curves(log, run), expected)
    wait_for(log, waiting, "done")


def test_a_worker_that_died_with_its_service_is_found(engine: Engine, log: Log) -> None:
    run = engine.queue(recipe(ENDLESS))
    row = wait_for_checkpoint(log, run)
    service = engine.service()
    assert service is not None
    kill(service["pid"])
    kill(row["pid"])
    until(lambda: not engine.alive(), 10)
    assert row_of(log, run)["state"] == "training", "nobody is there to see it"
    engine.ensure()
    row = wait_for(log, run, "interrupted")
    assert "Resume goes on from its newest checkpoint." in row["message"]
    answer(engine, engine.resume(run))
    wait_for_step(log, run, beyond=checkpoint_steps(row)[-1])
    answer(engine, engine.stop(run, force=True))
    wait_for(log, run, "interrupted")


def test_of_two_services_one_wins(tmp_path_factory: pytest.TempPathFactory) -> None:
    workspace = Workspace(tmp_path_factory.mktemp("two"))
    command = [*python("engine.service"), "--workspace", str(workspace.folder)]
    both = [subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    engine = Engine(workspace)
    try:
        loser = until(lambda: next((p for p in both if p.poll() is not None), None), PATIENCE)
        assert loser is not None and loser.returncode == 0
        assert "a service of this workspace lives already" in loser.communicate()[1]
        winner = next(p for p in both if p is not loser)
        service = until(engine.service, 20)
        assert service is not None and service["pid"] == winner.pid and winner.poll() is None
        engine.shutdown()
        assert winner.wait(20) == 0
        winner.communicate()
        until(lambda: not processes_of(workspace), 20)
        assert not engine.alive() and not psutil.pid_exists(service["pid"])
    finally:
        engine.close()
        end_processes_of(workspace)
        for process in both:
            process.wait(20)
