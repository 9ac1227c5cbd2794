"""Training in the terminal: with a stand-in worker for the ways it can end, and once with the real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.commands.train import Session
from engine.log import Log
from engine.service.clerk import Clerk
from engine.service.processes import ROOT
from engine.workspace import Workspace
from tests.engine.service.conftest import WORKER
from tests.waiting import until


@pytest.fixture
def follow(workspace: Workspace, log: Log) -> Callable[[str], tuple[int, str]]:
    def act(recipe: str) -> tuple[int, str]:
        run = log.create_run(recipe, state="stopped")
        with Session(workspace, as_json=True, worker_command=WORKER) as session:
            session.resume(run)
            return session.follow(), run

    return act


def test_the_document_has_what_others_call_for(
    follow: Callable[[str], tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, run = follow("steps = 3")
    document = json.loads(capsys.readouterr().out)
    assert code == 0 and list(document) == ["id", "state", "steps", "seconds", "metrics", "weights"]
    assert (document["id"], document["state"], document["steps"]) == (run, "done", 3)
    assert document["metrics"] == {"test/score": 0.5} and len(document["weights"]) == 64


def test_a_worker_that_dies_is_a_failure(
    follow: Callable[[str], tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = follow("steps = 9\ncrash = 2")
    captured = capsys.readouterr()
    assert code == 1 and json.loads(captured.out)["state"] == "interrupted" and "SIGKILL" in captured.err


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_stops_with_a_checkpoint(
    follow: Callable[[str], tuple[int, str]], log: Log, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    def press() -> None:
        with Log(workspace.database) as own:
            until(lambda: own.runs(states=["training"]))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    code, _ = follow("steps = 5000\npause = 0.01")
    thread.join()
    captured = capsys.readouterr()
    assert code == 130 and json.loads(captured.out)["state"] == "stopped"
    assert captured.err.count("Stopping after a checkpoint") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_twice_ends_at_once(
    follow: Callable[[str], tuple[int, str]], workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    def press() -> None:
        with Log(workspace.database) as own:
            until(lambda: own.runs(states=["training"]))
            os.kill(os.getpid(), signal.SIGINT)
            until(lambda: [run for run in own.runs() if run["request"] == "stop"])
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    # The pause is longer than the test: only a kill ends it.
    code, _ = follow("steps = 2\npause = 60")
    thread.join()
    assert code == 1 and json.loads(capsys.readouterr().out)["state"] == "interrupted"


@pytest.fixture
def recipe(tmp_path: Path) -> Iterator[Path]:
    from engine.catalog import Catalog

    catalog = Catalog.load()
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'name = "small"\n[task]\nuse = "{catalog.default("task")}"\n[model]\nuse = "{catalog.default("model")}"\n'
    )
    yield path


def main(*words: object) -> tuple[int, Any, str]:
    done = subprocess.run([sys.executable, "main.py", *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def test_a_recipe_whose_parts_do_not_fit_starts_nothing(workspace: Workspace, log: Log, recipe: Path) -> None:
    from engine.catalog import Catalog

    catalog = Catalog.load()
    model = catalog.default("model")
    with Clerk(workspace) as clerk:
        for entry in catalog.of_kind("task"):
            text = f'[task]\nuse = "{entry.id}"\n[model]\nuse = "{model}"\n'
            problems = clerk.ask("preview", recipe=text).result(60)["problems"]
            if problems:
                break
        else:
            pytest.skip("the default model takes every task there is")
    recipe.write_text(text)
    code, document, _ = main("check", recipe, "--json")
    assert (code, document["valid"], document["problems"]) == (2, False, problems)
    code, document, errors = main("train", recipe, "--workspace", workspace.folder, "--json")
    assert (code, document) == (2, None) and errors.startswith(problems[0]["path"])
    assert log.runs() == []


def test_a_search_is_left_when_its_runs_have_ended_too(workspace: Workspace, log: Log) -> None:
    """The process that plans ends first; the run that it planned still trains."""
    plan = (
        "import sys; from engine.log import Log; from engine.workspace import Workspace\n"
        "log = Log(Workspace(sys.argv[2]).database)\n"
        "log.create_run('steps = 50\\npause = 0.01', sweep=sys.argv[4])\n"
        "while not log.runs(states=['training'], kind='run'): pass\n"
        "log.transition(sys.argv[4], 'starting', 'done')\n"
    )
    sweep = log.create_run("", kind="sweep", state="stopped")
    commands = {"worker_command": WORKER, "sweep_command": [sys.executable, "-c", plan]}
    with Session(workspace, as_json=True, **commands) as session:
        session.resume(sweep)
        assert session.follow() == 0
        assert not session.scheduler.workers
    assert [run["state"] for run in log.runs(sweep=sweep)] == ["done"]
