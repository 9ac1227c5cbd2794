"""The service as a process of its own, spoken to through the client."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.errors import RecipeError, ServiceError
from engine.log import Log
from engine.service.client import Engine
from engine.workspace import Workspace
from tests.engine.service.conftest import CLERK, WORKER
from tests.waiting import until

# The service with the stand-ins in place of what imports torch.
SERVICE = f"""
import argparse, logging
from engine.service.__main__ import locked, parser
from engine.service.service import Service
logging.basicConfig(level=logging.INFO)
options = parser().parse_args()
locked(options, worker_command={WORKER!r}, clerk_command={CLERK!r}, gpus=0)
"""


@pytest.fixture
def engine(workspace: Workspace) -> Iterator[Engine]:
    engine = Engine(workspace, service_command=[sys.executable, "-c", SERVICE])
    yield engine
    engine.close()


@pytest.fixture
def served(engine: Engine) -> Engine:
    engine.ensure()
    until(engine.alive)
    return engine


def answer(engine: Engine, command: int) -> dict[str, Any]:
    return until(lambda: engine.answer(command), seconds=8) or {}


def state(engine: Engine, run: str) -> str:
    row = engine.log.run(run)
    assert row is not None
    return str(row["state"])


def queue(engine: Engine, text: str, **columns: Any) -> str:
    run = engine.log.create_run(text, **columns)
    engine.ensure()
    return run


def test_starts_detached_and_once(engine: Engine, workspace: Workspace) -> None:
    assert not engine.alive()
    engine.ensure()
    until(engine.alive)
    first = engine.service()
    assert first is not None
    assert os.getsid(first["pid"]) != os.getsid(0)
    second = subprocess.run(
        [*engine.service_command, "--workspace", str(workspace.folder)], capture_output=True, text=True, timeout=20
    )
    assert second.returncode == 0 and "lives already" in second.stderr
    engine.ensure()
    now = engine.service()
    assert now is not None and now["pid"] == first["pid"]


def test_pause_resume_and_stop(served: Engine) -> None:
    run = queue(served, "steps = 5000\npause = 0.01")
    until(lambda: state(served, run) == "training")
    assert answer(served, served.pause(run)) == {"result": "asked"}
    until(lambda: state(served, run) == "paused")
    assert answer(served, served.resume(run)) == {"result": "asked"}
    until(lambda: state(served, run) == "training")
    assert answer(served, served.stop(run)) == {"result": "asked"}
    until(lambda: state(served, run) == "stopped")


def test_a_stopped_run_is_resumed_where_it_was(served: Engine) -> None:
    run = queue(served, "steps = 60\npause = 0.01")
    until(lambda: len(served.log.points(run, "train/loss").steps) > 3)
    answer(served, served.stop(run))
    until(lambda: state(served, run) == "stopped")
    assert answer(served, served.resume(run)) == {"result": "queued"}
    until(lambda: state(served, run) == "done")
    assert served.log.points(run, "train/loss").steps.tolist() == list(range(1, 61))


def test_wrong_commands_are_refused_with_a_sentence(served: Engine) -> None:
    done = served.log.create_run("", state="done")
    refusals = {
        served.pause("nothing-like-it"): "no run 'nothing-like-it'",
        served.resume(done): "is done",
        served.stop(done): "is done already",
        served.checkpoint(done): "only a run that trains",
        served.prioritize(done): "Neither",
        served.configure(slots=0): "whole number from 1 to 256",
        served.log.command("dance"): "knows no command 'dance'",
        served.log.command("preview"): "needs the recipe's text",
        served.log.command("prioritize", run=done, priority="high"): "could not carry out",
        served.log.command("hello", pid="x"): "no client process",
    }
    for command, words in refusals.items():
        assert words in answer(served, command)["error"]
        assert served.log.command_state(command)["state"] == "failed"
    assert served.alive()


def test_a_run_is_deleted_with_its_folder_but_not_while_it_trains(served: Engine, workspace: Workspace) -> None:
    run = queue(served, "steps = 5000\npause = 0.01")
    until(lambda: state(served, run) == "training")
    assert "Stop it first" in answer(served, served.delete(run))["error"]
    assert answer(served, served.stop(run, force=True)) == {"result": "killed"}
    until(lambda: state(served, run) == "interrupted", seconds=2)
    assert answer(served, served.delete(run)) == {"result": "deleted"}
    assert served.log.run(run) is None and not (workspace.folder / "runs" / run).exists()


def test_a_queued_run_stops_before_it_starts(served: Engine) -> None:
    first = queue(served, "steps = 5000\npause = 0.01")
    second = queue(served, "steps = 1")
    until(lambda: state(served, first) == "training")
    assert answer(served, served.stop(second)) == {"result": "stopped"}
    assert answer(served, served.stop(first)) == {"result": "asked"}
    until(lambda: state(served, first) == "stopped")


def test_stopping_a_sweep_stops_its_runs(served: Engine) -> None:
    sweep = served.log.create_run("", kind="sweep", state="training")
    served.log.update_run(sweep, pid=os.getpid(), heartbeat=time.time())
    child = served.log.create_run("steps = 5000\npause = 0.01", sweep=sweep)
    waiting = served.log.create_run("steps = 1", sweep=sweep)
    until(lambda: state(served, child) == "training" or state(served, waiting) == "training")
    answer(served, served.stop(sweep))
    until(lambda: {state(served, child), state(served, waiting)} <= {"stopped", "done"})
    row = served.log.run(sweep)
    assert row is not None and row["request"] == "stop"


def test_slots_are_kept_over_a_restart(served: Engine, workspace: Workspace) -> None:
    assert answer(served, served.configure(slots=3)) == {"slots": 3}
    assert served.log.meta("engine") == {"slots": 3}


def test_a_killed_service_leaves_its_worker_to_the_next(served: Engine) -> None:
    run = queue(served, "steps = 5000\npause = 0.01")
    until(lambda: state(served, run) == "training")
    before = served.service()
    assert before is not None
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: not served.alive())
    served.ensure()
    after = until(served.service)
    assert after is not None and after["pid"] != before["pid"]
    assert state(served, run) == "training"
    row = served.log.run(run)
    assert row is not None
    os.kill(row["pid"], signal.SIGKILL)
    until(lambda: state(served, run) == "interrupted", seconds=2)


def test_previews_are_answered_by_the_clerk(served: Engine) -> None:
    assert answer(served, served.preview("steps")) == {"length": 5, "verb": "preview"}
    assert answer(served, served.preview("refuse")) == {"error": "No such recipe."}
    assert "exit code 7" in answer(served, served.preview("die"))["error"]
    assert answer(served, served.preview("again")) == {"length": 5, "verb": "preview"}


def test_a_newer_preview_replaces_one_not_begun(served: Engine) -> None:
    served.ensure()
    with served.log.transaction():  # all three are there when the service looks, however slow this machine is
        first, second, third = (served.preview(text) for text in ("one", "old", "new!"))
    assert answer(served, third) == {"length": 4, "verb": "preview"}
    assert answer(served, first) == {"superseded": True}
    assert answer(served, second) == {"superseded": True}


def test_a_probe_of_no_run_is_refused(served: Engine) -> None:
    assert "no run" in answer(served, served.probe("zzz", {"use": "x"}))["error"]
    assert "no run" in answer(served, served.evaluate("zzz"))["error"]


def test_an_evaluation_of_a_saved_run_is_the_clerks(served: Engine) -> None:
    run = served.log.create_run("", state="done")
    assert answer(served, served.evaluate(run[:10], "val", {"decoder.use": "x"}))["verb"] == "evaluate"


def test_shutdown_waits_for_the_last_run(served: Engine) -> None:
    run = queue(served, "steps = 30\npause = 0.01")
    until(lambda: state(served, run) == "training")
    assert answer(served, served.shutdown()) == {"result": "after the last run"}
    until(lambda: not served.alive())
    assert state(served, run) == "done"


def test_shutdown_now_leaves_workers_training(served: Engine) -> None:
    run = queue(served, "steps = 100\npause = 0.01")
    until(lambda: state(served, run) == "training")
    served.shutdown(now=True)
    until(lambda: not served.alive())
    assert state(served, run) == "training"
    until(lambda: state(served, run) == "done")


def test_ends_when_idle_without_a_client(workspace: Workspace, engine: Engine) -> None:
    service = subprocess.Popen(
        [*engine.service_command, "--workspace", str(workspace.folder), "--idle-minutes", "0.01"],
        stderr=subprocess.DEVNULL,
    )
    assert service.wait(timeout=10) == 0


def test_stays_for_a_client_however_idle(workspace: Workspace, engine: Engine) -> None:
    client = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    command = [*engine.service_command, "--workspace", str(workspace.folder), "--idle-minutes", "0.01"]
    with subprocess.Popen([*command, "--client", str(client.pid)], stderr=subprocess.DEVNULL) as service:
        with pytest.raises(subprocess.TimeoutExpired):
            service.wait(timeout=2)
        client.communicate(b"\n")
        assert service.wait(timeout=10) == 0


def test_machine_samples_keep_their_beat(served: Engine) -> None:
    samples = until(lambda: samples if len(samples := served.log.machine(0)) >= 3 else None) or []
    times = [sample["time"] for sample in samples]
    assert all(0.8 < later - earlier < 1.3 for earlier, later in itertools.pairwise(times))
    last = samples[-1]
    assert 0 <= last["cpu"] <= 100 and len(last["cpus"]) == psutil.cpu_count()
    assert 0 < last["memory"] < last["memory_total"] == psutil.virtual_memory().total


def test_samples_tell_what_a_run_takes(served: Engine) -> None:
    run = queue(served, "steps = 5000\npause = 0.01")

    def seen() -> dict[str, Any] | None:
        found = [p for s in served.log.machine(0) for p in s["processes"].values() if p["run"] == run]
        return found[-1] if found else None

    assert (until(seen) or {})["memory"] > 5_000_000
    answer(served, served.stop(run))
    until(lambda: state(served, run) == "stopped")


def test_queue_writes_seed_device_and_name_into_the_recipe(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ensure", lambda: None)
    run = engine.queue("# kept\nname = 'a'\n[task]\nuse = 'x'\n", seed=7, device="cpu", name="b", priority=2)
    row = engine.log.run(run)
    assert row is not None
    assert (row["seed"], row["device"], row["name"], row["priority"], row["kind"]) == (7, "cpu", "b", 2, "run")
    assert "# kept" in row["recipe"] and 'device = "cpu"' in row["recipe"] and "seed = 7" in row["recipe"]
    with pytest.raises(RecipeError, match="not valid TOML"):
        engine.queue("a = ")


def test_branching_starts_from_a_checkpoint(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ensure", lambda: None)
    run = engine.queue("[optimizer]\nlr = 1.0\n")
    with pytest.raises(ServiceError, match="no checkpoint yet"):
        engine.branch(run, {})
    folder = engine.workspace.run_folder(run)
    for name in ("step-10", "step-20", "best"):
        (folder / f"{name}.pt").write_text(name)
    entries = [{"name": f"step-{step}", "step": step, "whole": True} for step in (10, 20)]
    engine.log.update_run(run, checkpoints=[{"name": "best", "step": 15, "whole": False}, *entries])
    found = [engine.branch(run, {"optimizer.lr": 0.5}, step) for step in ("last", "step-10", 20)]
    assert [(engine.log.run(child) or {})["parent_step"] for child in found] == [20, 10, 20]
    child = engine.log.run(found[0])
    assert child is not None and child["parent"] == run and "0.5" in child["recipe"]
    for step in (15, "best"):  # weights alone: nothing to go on from
        with pytest.raises(ServiceError, match=rf"no checkpoint {step!r} to go on from. It has those of steps 10, 20."):
            engine.branch(run, {}, step)
    for path in folder.iterdir():
        path.unlink()  # the parent trains on
    texts = [engine.workspace.origin(child).read_text() for child in found]
    assert texts == ["step-20", "step-10", "step-20"]
    with pytest.raises(ServiceError, match="is not there any more"):
        engine.branch(run, {}, 10)


def test_any_thread_may_ask(engine: Engine, workspace: Workspace, in_thread: Callable[..., Any]) -> None:
    assert in_thread(engine.alive) is False
    run = engine.log.create_run("steps = 1")
    assert in_thread(lambda: (engine.log.run(run) or {})["id"]) == run


@pytest.fixture
def in_thread() -> Callable[[Callable[[], Any]], Any]:
    from concurrent.futures import ThreadPoolExecutor

    def call(function: Callable[[], Any]) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(function).result()

    return call


def test_a_missing_interpreter_is_one_sentence(workspace: Workspace, tmp_path: Path) -> None:
    engine = Engine(workspace, service_command=[str(tmp_path / "nothing")])
    with pytest.raises(ServiceError, match="could not be started"):
        engine.ensure()
    engine.close()


def test_a_damaged_database_is_one_sentence(workspace: Workspace) -> None:
    workspace.database.write_bytes(b"this is no database" * 1000)
    done = subprocess.run(
        [sys.executable, "-m", "engine.service", "--workspace", str(workspace.folder)], capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr and str(workspace.database) in done.stderr


def test_commands_held_by_a_dead_service_are_carried_out(workspace: Workspace, engine: Engine) -> None:
    with Log(workspace.database) as log:
        run = log.create_run("steps = 1", state="done")
        number = log.command("prioritize", run=run, priority=4)
        assert [command["id"] for command in log.take_commands()] == [number]
    engine.ensure()
    assert answer(engine, number) == {"result": "done"}


def test_a_transform_of_no_run_is_refused(served: Engine) -> None:
    assert "no run" in answer(served, served.transform("zzz", {"use": "x"}))["error"]
