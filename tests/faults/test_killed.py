"""`kill -9` of the process that trains, at random moments: what was seen stays, the end is what it would have been."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from engine.log import Log
from engine.recipe import merge
from engine.workspace import Workspace
from tests.end_to_end.steps import (
    STATEFUL,
    Curves,
    assert_same_curves,
    curves,
    never_interrupted,
    recipe,
)
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

STEPS = 1_500
RECIPE = merge(STATEFUL, {"budget": {"epochs": 0, "steps": STEPS}, "training": {"evaluate_every": 5}})


class Worker:
    """A spare process as the service keeps one: it has imported everything and waits for a run's id."""

    def __init__(self, workspace: Workspace):
        command = [sys.executable, "-m", "engine.training.worker", "--workspace", str(workspace.folder), "--spare"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, log: Log, run: str) -> None:
        """As the scheduler does: a worker takes only what is starting."""
        log.update_run(run, state="starting", pid=None)
        assert self.process.stdin and self.process.stdout
        assert self.process.stdout.readline() == "ready\n"
        self.process.stdin.write(f"{run}\n")
        self.process.stdin.close()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


def moves(log: Log, run: str, beyond: int, worker: Worker) -> bool:
    """Whether the run has gone beyond what was logged of it before, or has ended."""
    logged = max((info.count for info in log.series(run) if info.name == "train/loss"), default=0)
    return logged > beyond or worker.process.poll() is not None


def check(log: Log, run: str, expected: Curves, seen: Curves) -> Curves:
    """The database is whole; each series is a beginning of the one never interrupted, and as long as it was seen."""
    assert log._rows("PRAGMA integrity_check")[0]["integrity_check"] == "ok"
    found = curves(log, run)
    for name, (steps, values) in found.items():
        assert steps == expected[name][0][: len(steps)], f"{name}: a gap, a double or a disorder"
        assert values == pytest.approx(expected[name][1][: len(values)], rel=0, abs=0, nan_ok=True)
    for name, (steps, _) in seen.items():
        assert len(found[name][0]) >= len(steps), f"{name}: a point that was read is gone"
    return found


def test_a_worker_killed_at_random_moments(tmp_path: Path, times: Callable[[int], int]) -> None:
    chance = random.Random(int(os.environ.get("ATHANOR_SEED", "1")))
    text = recipe(RECIPE)
    outcome, expected = never_interrupted(text)
    workspace = Workspace(tmp_path)
    kills = trained = 0
    with Log(workspace.database) as log:
        spare = Worker(workspace)
        try:
            while kills < times(2):
                run = log.create_run(text, state="starting")
                trained += 1
                seen: Curves = {}
                while kills < times(2):
                    worker, spare = spare, Worker(workspace)
                    worker.begin(log, run)
                    before = len(seen.get("train/loss", ((), ()))[0])
                    until(partial(moves, log, run, before, worker), 60, 0.005)
                    try:
                        worker.process.wait(chance.uniform(0, 0.5))
                        break  # it came to its end
                    except subprocess.TimeoutExpired:
                        seen = curves(log, run)
                        worker.process.send_signal(signal.SIGKILL)
                        kills += 1
                    finally:
                        worker.end()
                    seen = check(log, run, expected, seen)
                last = Worker(workspace)
                last.begin(log, run)
                assert last.process.wait(120) == 0
                last.end()
                row = log.run(run) or {}
                assert (row["state"], row["step"], row["message"]) == ("done", STEPS, "")
                assert (row["weights"], row["metrics"]) == (outcome.weights, outcome.metrics)
                assert_same_curves(check(log, run, expected, seen), expected)
                assert not list(workspace.run_folder(run).glob("*.part"))
        finally:
            spare.end()
    print(f"{kills} kills of {trained} runs")
