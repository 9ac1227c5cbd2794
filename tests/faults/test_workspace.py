"""Workspaces that are read only, locked, or damaged: what a person is told, and that nothing is overwritten."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import LogError
from engine.log import Log, SeriesWriter
from engine.training import checkpoint
from engine.training.worker import work
from engine.workspace import Workspace
from tests.end_to_end.steps import assert_same_curves, curves, never_interrupted, recipe
from tests.waiting import until

Mount = Callable[[str], Path]

LOCK = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
"""


def test_a_read_only_workspace_can_be_read(mounted: Mount) -> None:
    folder = mounted("size=8m")
    workspace = Workspace(folder / "athanor")
    with Log(workspace.database) as log:
        run = log.create_run("", name="kept")
        with SeriesWriter(workspace.database, run) as writer:
            writer.add(writer.series("loss"), 1, 2.0)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    Workspace(workspace.folder)
    with Log(workspace.database, readonly=True) as log:
        assert (log.run(run) or {})["name"] == "kept" and log.points(run, "loss").values.tolist() == [2.0]
    with pytest.raises(LogError, match=r"may not be written to\. Make the folder writable, or name another workspace"):
        Log(workspace.database)
    with pytest.raises(LogError, match="may not be written to"):
        SeriesWriter(workspace.database, run)
    with pytest.raises(checkpoint.NotWritten, match=r"its folder may not be written to\. Make the folder writable"):
        checkpoint.save(workspace.folder / "step-000000001.pt", {"step": 1})


def test_training_goes_on_while_another_program_locks_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = recipe({"budget": {"epochs": 0, "steps": 3000}, "training": {"checkpoint_every": 0.05}})
    outcome, expected = never_interrupted(text)
    workspace = Workspace(tmp_path)
    real = SeriesWriter.__init__
    monkeypatch.setattr(SeriesWriter, "__init__", lambda self, path, run: real(self, path, run, patience=0.1))
    with Log(workspace.database) as log:
        run = log.create_run(text, state="starting")
    folder = workspace.run_folder(run)

    def disturb() -> None:
        until(lambda: len(checkpoint.step_files(folder)) > 1, 60, 0.005)
        command = [sys.executable, "-c", LOCK, str(workspace.database)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdin and other.stdout and other.stdout.readline() == "locked\n"
            threading.Event().wait(0.5)
            other.stdin.write("\n")

    thread = threading.Thread(target=disturb)
    thread.start()
    work(workspace, run)
    thread.join()
    with Log(workspace.database) as log:
        row = log.run(run) or {}
        assert (row["state"], row["weights"], row["metrics"]) == ("done", outcome.weights, outcome.metrics)
        assert_same_curves(curves(log, run), expected)
        said = [event["text"] for event in log.events(run) if event["kind"] == "checkpoint"]
        assert "training goes on without" in said[0]
        assert "is locked by another program. Close what else has it open (a database browser)" in said[0]
        assert said[-1] == "Checkpoints are written again."
