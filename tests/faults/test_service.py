"""Services that start together, are killed, or find what others have left; workers that hang; a machine that slept."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.log import Log
from engine.service import scheduler as scheduler_module
from engine.service.client import Engine
from engine.service.processes import environment
from engine.service.scheduler import Scheduler
from engine.service.states import RESUMABLE
from engine.workspace import Workspace
from tests.end_to_end.steps import end_processes_of
from tests.engine.service.conftest import CLERK, WORKER
from tests.faults.tries import tries
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

# The real service, with workers that count instead of training.
SERVICE = f"""
import logging
from engine.service import scheduler
from engine.service.__main__ import locked, parser
logging.basicConfig(level=logging.INFO)
scheduler.SILENT = 1.5
locked(parser().parse_args(), worker_command={WORKER!r}, clerk_command={CLERK!r}, gpus=0)
"""
COMMAND = [sys.executable, "-c", SERVICE]
ENDLESS = "steps = 1000000\npause = 0.01"


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path / "workspace")
    yield workspace
    end_processes_of(workspace)


@pytest.fixture
def engine(workspace: Workspace) -> Iterator[Engine]:
    engine = Engine(workspace, service_command=COMMAND)
    yield engine
    engine.close()


@pytest.fixture
def log(engine: Engine) -> Log:
    return engine.log


@pytest.fixture
def scheduler(workspace: Workspace) -> Iterator[Scheduler]:
    scheduler = Scheduler(workspace, worker_command=WORKER, gpus=0)
    yield scheduler
    scheduler.close()


def serve(workspace: Workspace) -> subprocess.Popen[bytes]:
    command = [*COMMAND, "--workspace", str(workspace.folder)]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)


def row(log: Log, run: str) -> dict[str, Any]:
    found = log.run(run)
    assert found is not None
    return found


def starts(workspace: Workspace, run: str) -> int:
    """How many workers have trained a run."""
    return len((workspace.run_folder(run) / "starts").read_text().split())


def answers(log: Log, commands: list[int], seconds: float = 30.0) -> list[dict[str, Any]]:
    until(lambda: all(log.command_state(c)["state"] in ("done", "failed") for c in commands), seconds)
    return [log.command_state(command)["answer"] for command in commands]


def ended(engine: Engine, workspace: Workspace) -> None:
    engine.shutdown(now=True)
    until(lambda: not engine.alive(), 20)


def test_services_that_start_at_once(workspace: Workspace, engine: Engine, log: Log) -> None:
    for _ in tries(3):
        runs = [log.create_run("steps = 3\npause = 0.01") for _ in range(4)]
        question = log.command("prioritize", run=runs[0], priority=3)
        services = [serve(workspace) for _ in range(3)]
        until(lambda left=services: sum(s.poll() is None for s in left) == 1, 40)  # type: ignore[misc]
        (winner,) = [service for service in services if service.poll() is None]
        assert all(service.returncode == 0 for service in services if service is not winner)
        until(lambda wanted=runs: all(row(log, run)["state"] == "done" for run in wanted), 40)  # type: ignore[misc]
        assert [starts(workspace, run) for run in runs] == [1] * 4, "no run is trained twice"
        assert answers(log, [question]) == [{"result": "done"}]
        assert (engine.service() or {})["pid"] == winner.pid
        ended(engine, workspace)
        assert winner.wait(20) == 0


def test_clients_that_start_a_service_at_once(workspace: Workspace, log: Log) -> None:
    clients = [Engine(workspace, service_command=COMMAND) for _ in range(3)]
    runs = [client.log.create_run("steps = 2") for client in clients]
    for client in clients:
        client.ensure()
    until(lambda: all(row(log, run)["state"] == "done" for run in runs), 40)
    assert [starts(workspace, run) for run in runs] == [1] * 3
    pids = {(client.service() or {})["pid"] for client in clients}
    assert len(pids) == 1, "all of them are with one"
    for client in clients:
        client.close()


def test_a_killed_service_loses_no_command_and_does_none_twice(workspace: Workspace, engine: Engine, log: Log) -> None:
    training = [log.create_run(ENDLESS) for _ in range(2)]
    engine.ensure()
    answers(log, [engine.configure(slots=2)])
    until(lambda: all(row(log, run)["state"] == "training" for run in training), 40)
    workers = [row(log, run)["pid"] for run in training]
    waiting = log.create_run("steps = 1")  # there is no room for it
    done = log.create_run("", state="done")
    rng = random.Random(5)
    for number in tries(6):
        with log.transaction():
            commands = [log.command(("stop", "resume")[i % 2], run=waiting) for i in range(20)]
            last = [log.command("prioritize", run=done, priority=number * 100 + i) for i in range(10)]
            newer = log.command("preview", recipe="abc", client=f"c{number}")
        time.sleep(rng.uniform(0.0, 0.12))
        os.kill((until(engine.service, 20) or {})["pid"], signal.SIGKILL)
        until(lambda: not engine.alive(), 20)
        engine.ensure()
        # A second time one of these would be refused: what is stopped is stopped already.
        assert answers(log, commands) == [{"result": "stopped"}, {"result": "queued"}] * 10
        assert answers(log, last) == [{"result": "done"}] * 10
        assert row(log, done)["priority"] == number * 100 + 9
        assert answers(log, [newer]) == [{"length": 3, "verb": "preview"}]
        assert row(log, waiting)["state"] == "queued"
    assert [row(log, run)["pid"] for run in training] == workers, "the runs have gone on"
    assert [starts(workspace, run) for run in training] == [1, 1]


def test_a_service_that_is_killed_while_runs_start(workspace: Workspace, engine: Engine, log: Log) -> None:
    rng = random.Random(6)
    runs = [log.create_run("steps = 20\npause = 0.002") for _ in range(12)]
    for _ in tries(6):
        engine.ensure()
        service = until(engine.service, 20) or {}
        time.sleep(rng.uniform(0.0, 0.5))
        os.kill(service["pid"], signal.SIGKILL)
        until(lambda: not engine.alive(), 20)
        active = [r for r in log.runs(states=["starting", "training"]) if r["pid"]]
        assert len({r["pid"] for r in active}) == len(active)
    engine.ensure()
    deadline = time.monotonic() + 60
    interrupted: dict[str, int] = dict.fromkeys(runs, 0)
    while any(row(log, run)["state"] != "done" for run in runs):
        assert time.monotonic() < deadline, [row(log, run)["state"] for run in runs]
        for run in runs:
            if row(log, run)["state"] in RESUMABLE:
                interrupted[run] += 1
                assert answers(log, [engine.resume(run)]) == [{"result": "queued"}]
        time.sleep(0.05)
    for run in runs:
        assert starts(workspace, run) <= 1 + interrupted[run], "each is trained once, or resumed once"
        assert log.points(run, "train/loss").steps.tolist() == list(range(1, 21))


def test_commands_held_by_the_dead(workspace: Workspace, engine: Engine, log: Log) -> None:
    done = log.create_run("", state="done")
    held = [log.command("prioritize", run=done, priority=i) for i in range(5)]
    assert len(log.take_commands()) == 5
    newer = [log.command("prioritize", run=done, priority=9)]
    engine.ensure()
    assert answers(log, [*held, *newer]) == [{"result": "done"}] * 6
    assert row(log, done)["priority"] == 9, "in the order in which they were given"


def test_a_worker_that_hangs(workspace: Workspace, engine: Engine, log: Log) -> None:
    run = log.create_run(ENDLESS)
    engine.ensure()
    until(lambda: row(log, run)["state"] == "training", 40)
    os.kill(row(log, run)["pid"], signal.SIGSTOP)
    until(lambda: "no sign of life" in row(log, run)["message"], 20)
    assert row(log, run)["state"] == "training", "it may come back"
    os.kill(row(log, run)["pid"], signal.SIGCONT)
    until(lambda: row(log, run)["message"] == "", 20)
    pid = row(log, run)["pid"]
    os.kill(pid, signal.SIGSTOP)
    until(lambda: "no sign of life" in row(log, run)["message"], 20)
    assert [e["kind"] for e in log.events(run) if e["kind"] == "hung"] == ["hung"] * 2
    assert answers(log, [engine.stop(run)]) == [{"result": "killed"}]
    until(lambda: row(log, run)["state"] == "interrupted", 10)
    assert not psutil.pid_exists(pid)
    assert answers(log, [engine.resume(run)]) == [{"result": "queued"}]
    until(lambda: row(log, run)["state"] == "training", 40)


def test_a_worker_that_hangs_after_it_was_asked_to_stop(engine: Engine, log: Log) -> None:
    run = log.create_run(ENDLESS)
    engine.ensure()
    until(lambda: row(log, run)["state"] == "training", 40)
    os.kill(row(log, run)["pid"], signal.SIGSTOP)
    assert answers(log, [engine.stop(run)]) == [{"result": "asked"}]
    until(lambda: row(log, run)["state"] == "interrupted", 20)


def test_a_terminal_can_stop_what_hangs(
    workspace: Workspace,
    log: Log,
    scheduler: Scheduler,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from engine.commands.cli import run as main

    run = log.create_run(ENDLESS)
    until(lambda: scheduler.turn() and row(log, run)["state"] == "training", 40)
    os.kill(row(log, run)["pid"], signal.SIGSTOP)
    words = ["stop", run, "--workspace", str(workspace.folder)]
    assert main([*words, "--wait", "0.2"], lambda *_: 0) == 1
    assert "--force" in capsys.readouterr().out
    assert main([*words, "--force"], lambda *_: 0) == 0
    assert row(log, run)["state"] == "interrupted"


def test_a_machine_that_slept(workspace: Workspace, engine: Engine, log: Log) -> None:
    """All processes stand still, and every sign of life is an hour old when they go on."""
    runs = [log.create_run(ENDLESS) for _ in range(2)]
    engine.ensure()
    answers(log, [engine.configure(slots=2)])
    until(lambda: all(row(log, run)["state"] == "training" for run in runs), 40)
    first = (engine.service() or {})["pid"]
    os.kill(first, signal.SIGKILL)  # the one that watches is not their parent
    until(lambda: not engine.alive(), 20)
    engine.ensure()
    service = (until(engine.service, 20) or {})["pid"]
    workers = [row(log, run)["pid"] for run in runs]
    for pid in (service, *workers):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(2.0)  # longer than a worker may be silent here
    for run in runs:
        log.update_run(run, heartbeat=time.time() - 3600)
    os.kill(service, signal.SIGCONT)  # the service looks first, while the workers are not awake yet
    time.sleep(0.7)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    steps = [log.points(run, "train/loss").steps.size for run in runs]
    until(lambda: all(log.points(r, "train/loss").steps.size > n for r, n in zip(runs, steps, strict=True)), 20)
    time.sleep(1.0)
    assert [(row(log, run)["state"], row(log, run)["pid"]) for run in runs] == [("training", pid) for pid in workers]
    assert not [event for run in runs for event in log.events(run) if event["kind"] in ("worker", "hung")]


def test_a_clock_that_was_set_back_and_forth(
    workspace: Workspace,
    log: Log,
    scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the clock was set forward a living process seems to have started after its own last sign of life."""
    monkeypatch.setattr(scheduler_module, "DOUBT", 0.6)
    monkeypatch.setattr(scheduler_module, "WATCH", 0.05)
    alive, other = (log.create_run("", state="training") for _ in range(2))
    for run in (alive, other):
        log.update_run(run, pid=os.getpid(), heartbeat=time.time() - 3600 * 24 * 365)
    ends = time.monotonic() + 0.4
    while time.monotonic() < ends:
        scheduler.turn()
        time.sleep(0.02)
    assert row(log, alive)["state"] == "training"
    log.update_run(alive, heartbeat=time.time())
    until(lambda: scheduler.turn() is not None and row(log, other)["state"] == "interrupted", 5)
    assert row(log, alive)["state"] == "training"
