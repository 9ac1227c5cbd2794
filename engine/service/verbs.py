"""What a person asks of a run, carried out in the database: the same for the service and for the terminal."""

from __future__ import annotations

import shutil
import time
from typing import Any

from engine import replies, sources
from engine.errors import ServiceError
from engine.log import Log
from engine.recipe import Recipe
from engine.service.processes import kill, lives
from engine.service.states import ACTIVE, RESUMABLE, TERMINAL
from engine.workspace import Workspace

Run = dict[str, Any]

GRACE = 5.0
"""Seconds that a run may be active before it names its process."""


def find(log: Log, run: str | None) -> Run:
    """The run's row; the start of an id is enough where only one run has it."""
    if not run:
        raise ServiceError("No run was named. Name one by its id.")
    row = log.run(run)
    if row is not None:
        return row
    matches = [other for other in log.runs(archived=None) if other["id"].startswith(run)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        some = ", ".join(other["id"] for other in matches[:5])
        raise ServiceError(f"{run!r} is the start of {len(matches)} runs ({some}). Give more of the id.")
    raise ServiceError(f"There is no run {run!r} in this workspace. `python main.py runs` lists the runs there are.")


def has_process(run: Run) -> bool:
    return run["state"] in ACTIVE and lives(run["pid"], run["heartbeat"])


def is_lost(run: Run) -> bool:
    """Whether a run counts as active although no process trains it any more."""
    if run["state"] not in ACTIVE:
        return False
    if run["pid"]:
        return not lives(run["pid"], run["heartbeat"])
    return time.time() - max(run["created"] or 0.0, run["heartbeat"] or 0.0) > GRACE


def mark_interrupted(log: Log, run: str, how: str, last_words: str = "") -> None:
    """Says of an active run that its process ended before it did; does nothing when it has ended properly."""
    text = f"The training process ended before the run did ({how}). Resume goes on from its newest checkpoint."
    if log.transition(run, list(ACTIVE), "interrupted", message=text, pid=None, request="", ended=time.time()):
        log.event(f"{text}\n{last_words}".strip(), run=run, level="error", kind="worker")


def mark_lost(log: Log) -> None:
    """Marks every run whose process is gone, where no service watches."""
    for run in log.runs(states=ACTIVE, archived=None):
        if is_lost(run):
            mark_interrupted(log, run["id"], "it is gone")


def stop(log: Log, run: Run) -> str:
    """Asks for a checkpoint and the end of training; returns what will happen, in a word."""
    answer = _stop(log, run)
    if run["kind"] == "sweep":
        # After the sweep itself: a run that it sees stopped is then known to be no result.
        for child in log.runs(sweep=run["id"], archived=None):
            if child["state"] not in TERMINAL:
                stop(log, child)
    return answer


def _stop(log: Log, run: Run) -> str:
    name = run["id"]
    if log.transition(name, ["queued"], "stopped", message="Stopped before it started.", ended=time.time()):
        return "stopped"
    if has_process(run):
        log.request(name, "stop")
        return "asked"
    if log.transition(name, list(ACTIVE), "interrupted", pid=None, request="", ended=time.time()):
        return "interrupted"
    raise ServiceError(f"Run {name} is {run['state']} already.")


def end(log: Log, run: Run) -> None:
    """Ends a run's process at once, whether or not it still listens."""
    if has_process(run):
        kill(run["pid"])
    mark_interrupted(log, run["id"], "it was ended by force")


def pause(log: Log, run: Run) -> str:
    if run["state"] in ("starting", "training"):
        log.request(run["id"], "pause")
        return "asked"
    raise ServiceError(f"Run {run['id']} is {run['state']}: only a run that trains can be paused.")


def resume(log: Log, run: Run) -> str:
    """Lets a paused run go on, and puts one that ended early back into the queue."""
    name, state = run["id"], run["state"]
    if state == "paused" and has_process(run):
        log.request(name, "resume")
        return "asked"
    if state in ("starting", "training") and run["request"] == "pause":
        log.request(name, "resume")
        return "asked"
    # A worker that stops has to end before the next one may take its checkpoints.
    resumable = [*RESUMABLE, "paused"]
    if state in resumable and log.transition(name, resumable, "queued", request="", message="", pid=None, ended=None):
        return "queued"
    if state == "done":
        raise ServiceError(f"Run {name} is done: nothing is left to train. Branch from it to train on.")
    raise ServiceError(f"Run {name} is {state} already.")


def prioritize(log: Log, run: Run, priority: int | None, position: float | None) -> str:
    columns: dict[str, Any] = {}
    if priority is not None:
        columns["priority"] = int(priority)
    if position is not None:
        columns["position"] = float(position)
    if not columns:
        raise ServiceError("Neither a priority nor a position was given.")
    log.update_run(run["id"], **columns)
    return "done"


def checkpoint(log: Log, run: Run) -> str:
    if not has_process(run):
        raise ServiceError(f"Run {run['id']} is {run['state']}: only a run that trains can write a checkpoint.")
    log.request(run["id"], "checkpoint")
    return "asked"


def _names(run: Run, source: str) -> bool:
    """Whether a run's recipe names another one as a source. (A run that has begun keeps what it needs of it.)"""
    named = (sources.parse(text) for _, text in sources.named_in(Recipe.parse(run["recipe"]).document))
    return any(each.kind == "run" and source.startswith(each.name) for each in named)


def delete(log: Log, workspace: Workspace, run: Run) -> str:
    """Takes a run out of the database and its folder off the disk."""
    name = run["id"]
    if has_process(run):
        raise ServiceError(f"Run {name} is {run['state']}. Stop it first, then delete it.")
    for other in log.runs(archived=None):
        if other["id"] != name and other["state"] not in TERMINAL and _names(other, name):
            raise ServiceError(f"Run {other['id']} takes run {name} as a source. Delete it when that one has ended.")
    # A queued run must not start between this look and its end.
    log.transition(name, ["queued"], "stopped")
    log.delete_run(name)
    replies.forget(workspace.replies, name)
    shutil.rmtree(workspace.run_folder(name), ignore_errors=True)
    return "deleted"
