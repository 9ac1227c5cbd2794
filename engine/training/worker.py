"""The process that trains one run: `python -m engine.training.worker --workspace DIR (--run ID | --spare)`.

A spare one imports everything, prints "ready" and waits for a run's id on standard input. States reach the database
from here; the exit code is 0 whenever the run's end, good or bad, was recorded.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine import endpoints, registry
from engine.errors import AthanorError, CheckpointError, LogError
from engine.log import Log, SeriesWriter
from engine.recipe import Recipe
from engine.training import checkpoint, sources
from engine.training.assemble import filled
from engine.training.loop import Trainer, train
from engine.workspace import Workspace


def work(workspace: Workspace, id: str) -> None:
    """Trains a run, from its newest checkpoint if it has one, and records how it ends."""
    with Log(workspace.database) as log:
        row = log.run(id)
        if row is None:
            raise AthanorError(f"There is no run {id} in {workspace.database}.")
        log.update_run(id, pid=os.getpid(), started=row["started"] or time.time(), ended=None, message="")
    folder = workspace.run_folder(id)
    with SeriesWriter(workspace.database, id) as sink, endpoints.around(runs=runs_of(row)):
        guarded(sink, lambda: _train(sink, row, folder, workspace))


def claimed(workspace: Workspace, id: str) -> bool:
    """Takes the run for this process; False where it is not, or no longer, this one's to train.

    A scheduler that is killed right after it has started a worker leaves one that nobody knows of. By the time that it
    has imported all, the run may count as interrupted, or another worker may train it.
    """
    with Log(workspace.database) as log, log.transaction():
        row = log.run(id)
        if row is None:
            raise AthanorError(f"There is no run {id} in {workspace.database}.")
        if row["state"] != "starting" or row["pid"] not in (None, os.getpid(), os.getppid()):
            print(f"Run {id} is {row['state']}, of process {row['pid']}: not this one's to train.", flush=True)
            return False
        return log.update_run(id, pid=os.getpid())


def runs_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Those whose permissions hold for a run: its own, and those of the sweep that planned it."""
    return (row["id"], *([row["sweep"]] if row["sweep"] else []))


def _train(sink: SeriesWriter, row: dict[str, Any], folder: Path, workspace: Workspace) -> None:
    recipe = Recipe.parse(row["recipe"])
    if row["device"] and row["device"] != "auto":  # the scheduler's choice among several
        recipe.set("training.device", row["device"])
    with sources.around(workspace=workspace, folder=folder):
        document = filled(recipe)
    train(document, sink, folder, lambda trainer: go_on(trainer, row, folder, workspace), workspace)


def go_on(trainer: Trainer, row: dict[str, Any], folder: Path, workspace: Workspace) -> None:
    """Loads the run's own newest checkpoint, or, for a branch that has none yet, its parent's."""
    device = trainer.run.device
    own = checkpoint.resume(folder, device, lambda text: trainer.run.note(text, "warning", "checkpoint"))
    if own is not None:
        trainer.load(own)
    elif row["parent"]:
        trainer.load(checkpoint.load(workspace.origin(row["id"]), device), branch=True)


def guarded(sink: SeriesWriter, act: Callable[[], object]) -> None:
    """Runs a piece of work; whatever goes wrong becomes the run's state, a sentence, and an event with the details."""
    try:
        act()
    except torch.OutOfMemoryError as error:
        fail(
            sink,
            "The device ran out of memory. Lower training.batch_size, raise training.accumulate, or use bf16.",
            error,
        )
    except CheckpointError as error:
        fail(sink, str(error), error)
    except AthanorError as error:
        fail(sink, str(error), error)
    except Exception as error:  # a part's own mistake: the process must still say what happened
        line = (str(error).strip().splitlines() or [""])[0]
        fail(sink, f"{type(error).__name__}: {line}", error)


def fail(sink: SeriesWriter, message: str, error: BaseException) -> None:
    sink.run(state="failed", message=message, ended=time.time())
    sink.event(message, level="error", kind="failed")
    details = "".join(traceback.format_exception(error))
    if not isinstance(error, AthanorError):
        sink.event(details, level="error", kind="traceback")
    with contextlib.suppress(LogError):  # what waits is written, or complained of, when the log is closed
        sink.flush(wait=True)


def main(arguments: list[str] | None = None) -> int:
    ask = argparse.ArgumentParser(prog="engine.training.worker", description="Trains one run.")
    ask.add_argument("--workspace", required=True)
    which = ask.add_mutually_exclusive_group(required=True)
    which.add_argument("--run")
    which.add_argument("--spare", action="store_true")
    given = ask.parse_args(arguments)
    workspace = Workspace(given.workspace)
    registry.catalog()
    id = given.run
    if given.spare:
        warm_up()
        print("ready", flush=True)
        id = sys.stdin.readline().strip()
        if not id:
            return 0
    if claimed(workspace, id):
        work(workspace, id)
    return 0


def warm_up() -> None:
    """Does once what the first step of a run would otherwise wait for."""
    weight = torch.zeros(2, 2, requires_grad=True)
    torch.optim.AdamW([weight], foreach=True)
    (weight @ weight).sum().backward()
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")


if __name__ == "__main__":
    sys.exit(main())
