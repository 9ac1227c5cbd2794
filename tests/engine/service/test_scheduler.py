"""The scheduler with real processes on a real database."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.log import Log
from engine.service.scheduler import Room, Scheduler
from engine.service.states import ACTIVE
from engine.workspace import Workspace
from tests.engine.service.conftest import WORKER
from tests.waiting import until

Make = Callable[..., Scheduler]


def turn_until(scheduler: Scheduler, predicate: Callable[[], Any], seconds: float = 8.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        scheduler.turn()
        value = predicate()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s"
        scheduler.wait()


def state(log: Log, run: str) -> str:
    row = log.run(run)
    assert row is not None
    return str(row["state"])


def test_trains_a_queued_run_to_its_end(log: Log, make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    run = log.create_run("steps = 3")
    turn_until(scheduler, lambda: state(log, run) == "done" and not scheduler.workers)
    assert log.points(run, "train/loss").values.tolist() == [1.0, 0.5, 1 / 3]


def test_serves_priority_then_position(log: Log, make_scheduler: Make) -> None:
    low, first, high = (log.create_run("steps = 1", priority=p) for p in (0, 0, 5))
    log.update_run(low, position=2.0)
    log.update_run(first, position=1.0)
    assert [run["id"] for run in make_scheduler().queued()] == [high, first, low]


def test_keeps_to_its_slots(log: Log, make_scheduler: Make) -> None:
    scheduler = make_scheduler(slots=2)
    runs = [log.create_run("steps = 20\npause = 0.01") for _ in range(4)]
    most = 0

    def all_done() -> bool:
        nonlocal most
        most = max(most, len(log.runs(states=ACTIVE)))
        return all(state(log, run) == "done" for run in runs)

    turn_until(scheduler, all_done)
    assert most == 2


def test_a_killed_worker_leaves_an_interrupted_run_at_once(log: Log, make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    run = log.create_run("steps = 100\ncrash = 3")
    turn_until(scheduler, lambda: state(log, run) == "interrupted")
    event = log.events(run)[-1]
    assert "SIGKILL" in event["text"] and "told to crash" in event["text"]
    row = log.run(run)
    assert row is not None and row["pid"] is None and "Resume" in row["message"]


def test_marks_a_run_whose_process_is_another_one_now(log: Log, make_scheduler: Make) -> None:
    run = log.create_run("steps = 1", state="training")
    # Our own process lives, but it began long after the worker's last sign of life: the number was given away again.
    log.update_run(run, pid=os.getpid(), heartbeat=psutil.Process().create_time() - 60)
    scheduler = make_scheduler()
    turn_until(scheduler, lambda: state(log, run) == "interrupted")


def test_a_run_just_claimed_elsewhere_is_left_alone(log: Log, make_scheduler: Make) -> None:
    run = log.create_run("steps = 1", state="starting")
    scheduler = make_scheduler()
    scheduler.turn()
    assert state(log, run) == "starting"


def test_the_next_scheduler_adopts_a_worker_and_notices_its_end(log: Log, make_scheduler: Make) -> None:
    run = log.create_run("steps = 2000\npause = 0.02")
    first = make_scheduler()
    turn_until(first, lambda: state(log, run) == "training")
    worker = first.workers.pop(run)
    second = make_scheduler()
    turn_until(second, lambda: second.active())
    assert state(log, run) == "training" and not second.workers
    began = time.monotonic()
    worker.process.kill()
    turn_until(second, lambda: state(log, run) == "interrupted", seconds=2.0)
    assert time.monotonic() - began < 2.0


def test_one_of_two_schedulers_gets_a_run(log: Log, make_scheduler: Make) -> None:
    run = log.create_run("steps = 2000\npause = 0.02")
    one, other = make_scheduler(), make_scheduler()
    assert [one.start(run), other.start(run)] == [True, False]


def test_a_run_resumed_before_its_worker_is_gone_waits_for_its_end(log: Log, make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    run = log.create_run("steps = 2000\npause = 0.02")
    turn_until(scheduler, lambda: state(log, run) == "training")
    first = scheduler.workers[run]
    log.update_run(run, state="queued", pid=None)
    scheduler.turn()
    assert scheduler.workers[run] is first and state(log, run) == "queued"
    first.process.kill()
    turn_until(scheduler, lambda: state(log, run) == "training")
    assert scheduler.workers[run] is not first


def test_a_restricted_scheduler_leaves_other_runs_alone(log: Log, make_scheduler: Make) -> None:
    other, mine = log.create_run("steps = 1"), log.create_run("steps = 1")
    child = log.create_run("steps = 1", sweep=mine)
    scheduler = make_scheduler(mine)
    turn_until(scheduler, lambda: state(log, mine) == state(log, child) == "done")
    assert state(log, other) == "queued"


def test_a_sweep_takes_no_slot_and_holds_its_runs_while_paused(log: Log, make_scheduler: Make) -> None:
    sweep = log.create_run("", kind="sweep", state="paused")
    log.update_run(sweep, pid=os.getpid(), heartbeat=time.time())
    child = log.create_run("steps = 1", sweep=sweep)
    scheduler = make_scheduler()
    scheduler.turn()
    assert state(log, child) == "queued"
    log.update_run(sweep, state="training")
    turn_until(scheduler, lambda: state(log, child) == "done")


def test_a_command_that_cannot_start_fails_the_run_with_a_sentence(log: Log, make_scheduler: Make) -> None:
    run = log.create_run("steps = 1")
    make_scheduler(worker_command=["/nowhere/python"]).turn()
    row = log.run(run)
    assert row is not None and row["state"] == "failed" and "could not be started" in row["message"]


def test_a_spare_takes_the_run_and_is_replaced(log: Log, make_scheduler: Make) -> None:
    scheduler = make_scheduler(keep_spare=True)
    spare = turn_until(scheduler, lambda: scheduler.spare if scheduler.spare and scheduler.spare.ready else None)
    run = log.create_run("steps = 2")
    turn_until(scheduler, lambda: run in scheduler.workers)
    assert scheduler.workers[run].process is spare.process
    turn_until(scheduler, lambda: state(log, run) == "done")
    turn_until(scheduler, lambda: scheduler.spare is not None and scheduler.spare is not spare)


def test_a_spare_with_old_sources_is_not_used(
    log: Log, make_scheduler: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    monkeypatch.setenv("ATHANOR_PARTS", str(parts))
    scheduler = make_scheduler(keep_spare=True)
    spare = turn_until(scheduler, lambda: scheduler.spare)
    (parts / "mine.py").write_text("")
    run = log.create_run("steps = 2")
    turn_until(scheduler, lambda: state(log, run) == "done")
    assert spare.process.returncode is not None


def test_workers_outlive_their_scheduler(log: Log, workspace: Workspace) -> None:
    script = (
        "import sys; from engine.service.scheduler import Scheduler; from engine.workspace import Workspace\n"
        f"s = Scheduler(Workspace({str(workspace.folder)!r}), worker_command={WORKER!r}, gpus=0, keep_spare=True)\n"
        "while not (s.spare and s.spare.ready): s.turn(); s.wait()\n"
        "print(s.spare.process.pid, flush=True)\n"
        "while True: s.turn(); s.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent:
        # The run goes through the spare: the pipe to it must not be what keeps it alive.
        spare = int(parent.stdout.readline())
        run = log.create_run("steps = 40\npause = 0.01")
        until(lambda: state(log, run) == "training")
        parent.kill()
    assert state(log, run) == "training"
    until(lambda: state(log, run) == "done")
    row = log.run(run)
    assert row is not None and row["pid"] == spare


def test_room_spreads_runs_over_gpus() -> None:
    room = Room(1, 2, [{"state": "training", "kind": "run", "device": "cuda:0"}])
    assert [room.take("auto"), room.take("auto"), room.take("cpu"), room.take("cpu")] == ["cuda:1", None, "cpu", None]


def test_room_on_one_gpu_leaves_the_name_to_the_worker() -> None:
    room = Room(1, 1, [{"state": "paused", "kind": "run", "device": "auto"}])
    assert [room.take("auto"), room.take("cuda")] == ["auto", None]
