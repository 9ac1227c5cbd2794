"""`kill -9`, of the worker and of the service: what was seen stays, and the end is what it would have been."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from engine.log import Log
from engine.recipe import Recipe
from engine.service.client import Engine
from engine.service.processes import environment, python
from engine.training.assemble import build_task, filled
from engine.workspace import Workspace
from tests.end_to_end.steps import (
    LONG,
    LONG_STATEFUL,
    PATIENCE,
    STEPS,
    answer,
    assert_same_curves,
    curves,
    end_processes_of,
    kill,
    never_interrupted,
    processes_of,
    recipe,
    row_of,
    wait_for,
    wait_for_checkpoint_file,
    wait_for_step,
)
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def test_a_killed_worker_costs_nothing_but_time(engine: Engine, log: Log) -> None:
    text = recipe(LONG_STATEFUL)
    outcome, expected = never_interrupted(text)
    per_epoch = -(-outcome_samples(text) // 16)
    run = engine.queue(text)
    wait_for(log, run, "training")
    beyond = 0
    for damaged in (False, True):  # the second time from what was resumed, and with a file that was half written
        row = wait_for_checkpoint_file(log, run, lambda step, last=beyond: step > last and step % per_epoch != 0)
        kill(row["pid"])
        killed = time.monotonic()
        row = wait_for(log, run, "interrupted")
        assert time.monotonic() - killed < 5, "within seconds"
        assert "SIGKILL" in row["message"] and "Resume goes on from its newest checkpoint." in row["message"]
        assert row["pid"] is None and row["ended"] and row["step"] < STEPS
        assert row["message"] in log.events(run)[-1]["text"]
        files = sorted(engine.workspace.run_folder(run).glob("step-*.pt"))
        beyond = int(files[-1].stem.removeprefix("step-"))
        if damaged:
            files[-1].write_bytes(files[-1].read_bytes()[:1000])
        seen = curves(log, run)["train/loss"]
        assert answer(engine, engine.resume(run)) == {"result": "queued"}
        wait_for(log, run, "training")
        assert curves(log, run)["train/loss"][1][: len(seen[1])] == seen[1], "nothing that was shown is lost"
    row = wait_for(log, run, "done")
    assert (row["weights"], row["step"]) == (outcome.weights, STEPS)
    assert row["metrics"] == outcome.metrics
    assert_same_curves(curves(log, run), expected)


def outcome_samples(text: str) -> int:
    return build_task(filled(Recipe.parse(text))).size("train")


def test_a_run_outlives_its_service(engine: Engine, log: Log) -> None:
    text = recipe(LONG)
    run = engine.queue(text)
    row = wait_for_step(log, run)
    first = service_pid(engine)
    kill(first)
    until(lambda: not engine.alive(), 10)
    wait_for_step(log, run, beyond=row_of(log, run)["step"])
    assert row_of(log, run)["pid"] == row["pid"], "the worker trains on"

    engine.ensure()
    until(engine.alive, PATIENCE)
    second = service_pid(engine)
    assert second != first
    assert answer(engine, engine.pause(run)) == {"result": "asked"}, "the new service has taken it over"
    paused = wait_for(log, run, "paused")
    answer(engine, engine.resume(run))
    row = wait_for_step(log, run, beyond=paused["step"])
    assert row["pid"] == paused["pid"]

    kill(second)
    kill(row["pid"])
    until(lambda: not engine.alive(), 10)
    assert row_of(log, run)["state"] == "training", "nobody is there to see it"
    engine.ensure()
    row = wait_for(log, run, "interrupted")
    assert "Resume goes on from its newest checkpoint." in row["message"]
    answer(engine, engine.resume(run))
    row = wait_for(log, run, "done")
    outcome, expected = never_interrupted(text)
    assert (row["weights"], row["metrics"]) == (outcome.weights, outcome.metrics)
    assert_same_curves(curves(log, run), expected)


def service_pid(engine: Engine) -> int:
    service = engine.service()
    assert service is not None
    return int(service["pid"])


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
