"""`main.py train`: trains a recipe here. The run stays in the workspace, and a window that is open shows it live."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from engine.commands.check import add_settings, preview_problems, read_recipe
from engine.commands.cli import DONE, FAILED, INTERRUPTED, add_json, add_workspace, open_workspace
from engine.commands.output import console, duration, print_json, print_table
from engine.errors import AthanorError, RecipeError
from engine.service import verbs
from engine.service.client import create_run
from engine.service.scheduler import Scheduler
from engine.service.states import ACTIVE, RESUMABLE, TERMINAL
from engine.workspace import Workspace

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

REFRESH = 0.2
LINE_EVERY = 5.0
"""Seconds between two lines where the output is no terminal and a bar cannot move."""

LOSS = "train/loss"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.toml")
    add_settings(parser)
    parser.add_argument("--seed", type=int, metavar="N", help="the seed of all random numbers")
    add_workspace(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    workspace = open_workspace(options.workspace)
    settings = list(options.settings)
    if options.seed is not None:
        settings.append(f"seed={options.seed}")
    return train_file(workspace, options.recipe, settings, as_json=options.json)


def train_file(workspace: Workspace, path: str | Path, settings: Sequence[str] = (), *, as_json: bool = False) -> int:
    """Checks a recipe, trains it, prints the result; returns the exit code. Nothing starts where it is not in order."""
    text = read_recipe(str(path), settings)
    require_contacts(text)
    with Session(workspace, as_json=as_json) as session:
        session.begin(text)
        return session.follow()


def require_contacts(text: str) -> None:
    """Raises ContactError, before a run is made, where the recipe would talk to a machine that is not allowed."""
    from engine.catalog import Catalog
    from engine.endpoints import require_all
    from engine.recipe import Recipe

    catalog = Catalog.load()
    require_all(Recipe.parse(text).filled(catalog), catalog)


class Session:
    """One run, followed from this terminal to its end."""

    def __init__(self, workspace: Workspace, *, as_json: bool = False, **commands: Any):
        """`commands` are the Scheduler's: what is started in place of our own workers."""
        self.workspace = workspace
        self.as_json = as_json
        self.run = ""
        self.interrupts = 0
        self._asked = False
        self.scheduler = Scheduler(workspace, only="", **commands)
        self.log = self.scheduler.log
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Session:
        for name in (signal.SIGINT, signal.SIGTERM):
            self._before[name] = signal.signal(name, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)
        self.scheduler.close()

    def _interrupt(self, *_: object) -> None:
        self.interrupts += 1
        if not self.run:
            raise KeyboardInterrupt

    # ---------------------------------------------------------------- starting

    def begin(self, text: str) -> None:
        """Starts a worker, asks whether the parts fit while it imports torch, and gives it the run when they do."""
        self.scheduler.warm_up()
        problems = preview_problems(self.workspace, text)
        if problems:
            raise RecipeError(problems)
        # Not queued: a background service would take it.
        self.run = create_run(self.log, text, state="starting")
        self._start(["starting"])

    def resume(self, name: str) -> None:
        """Goes on with a run wherever it stands; one that another process trains is followed from here."""
        row = verbs.find(self.log, name)
        state = row["state"]
        self.run = self.scheduler.only = row["id"]
        if verbs.has_process(row):
            if state == "paused":
                verbs.resume(self.log, row)
            else:
                print(f"Run {self.run} is {state} already: this follows it.", file=sys.stderr)
        elif state == "done":
            print(f"Run {self.run} is done: nothing is left to train.", file=sys.stderr)
        else:
            # Active without a process: all was killed at once, and nobody was left to write it down.
            self._start([*RESUMABLE, *ACTIVE, "queued"])

    def _start(self, states: list[str]) -> None:
        self.scheduler.only = self.run
        if not self.scheduler.start(self.run, states):
            row = verbs.find(self.log, self.run)
            raise AthanorError(row["message"] or f"Run {self.run} could not be started: it is {row['state']}.")
        # A search trains many runs: the next worker gets ready while one trains.
        self.scheduler.keep_spare = verbs.find(self.log, self.run)["kind"] == "sweep"

    # ---------------------------------------------------------------- following

    def follow(self) -> int:
        """Shows the progress until the run has ended, then its result."""
        with self._progress() as show:
            shown = 0.0
            while True:
                self.scheduler.turn()
                row = verbs.find(self.log, self.run)
                self._pass_interrupts_on(row)
                if time.monotonic() - shown > REFRESH:
                    shown = time.monotonic()
                    show(row)
                if row["state"] in TERMINAL and not self.scheduler.workers:
                    break
                self.scheduler.wait()
            show(row)
        self._print(row)
        if row["state"] == "stopped":
            return INTERRUPTED if self.interrupts else DONE
        return DONE if row["state"] == "done" else FAILED

    def _pass_interrupts_on(self, row: dict[str, Any]) -> None:
        if self.interrupts > 1:
            for run in {self.run, *self.scheduler.workers}:
                self.scheduler.kill(run)
        elif self.interrupts and not self._asked and row["state"] not in TERMINAL:
            self._asked = True
            verbs.stop(self.log, row)
            print("\nStopping after a checkpoint. Ctrl+C again ends it at once.", file=sys.stderr)

    def _progress(self) -> _Bar | _Lines:
        if self.as_json and not sys.stderr.isatty():
            return _Lines(None)
        return _Bar() if sys.stderr.isatty() else _Lines(LINE_EVERY)

    # ---------------------------------------------------------------- the result

    def document(self, row: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": row["id"],
            "state": row["state"],
            "steps": row["step"],
            "seconds": row["seconds"],
            "metrics": row["metrics"] or {},
            "weights": row["weights"],
            **({"verdict": row["message"]} if row["kind"] == "sweep" and row["state"] == "done" else {}),
        }

    def _print(self, row: dict[str, Any]) -> None:
        if row["message"] and row["state"] != "done":
            print(row["message"], file=sys.stderr)
        if self.as_json:
            print_json(self.document(row))
            return
        plans = row["kind"] == "sweep"
        rows = [("run", row["id"]), ("state", row["state"]), ("runs" if plans else "steps", row["step"])]
        rows += [] if plans else [("time", duration(row["seconds"]))]
        rows += list((row["metrics"] or {}).items())
        rows += [] if plans else [("weights", (row["weights"] or "-")[:16])]
        print_table(("", row["name"] or "result"), rows, numbers=(1,))
        if plans and row["state"] == "done":
            print(f"\n{row['message']}")  # the best run, or a study's verdict
        self._draw_loss()

    def _draw_loss(self) -> None:
        from engine.commands.curve import draw

        points = self.log.points(self.run, LOSS, width=128)
        braille = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        lines = draw(points.steps.tolist(), points.values.tolist(), braille=braille)
        if lines:
            print(f"\n{LOSS} by step\n" + "\n".join(lines))


def progress_of(row: dict[str, Any]) -> tuple[float, float | None]:
    """How much is done of how much: steps, or epochs where their number is what is known."""
    if row["steps"]:
        return float(row["step"] or 0), float(row["steps"])
    if row["epochs"]:
        return float(row["epoch"] or 0), float(row["epochs"])
    return float(row["step"] or 0), None


def describe(row: dict[str, Any]) -> str:
    from engine.commands.runs import best_metrics

    results = "  ".join(f"{name} {value:.4f}" for name, value in best_metrics(row, 2).items() if value is not None)
    return f"{row['state']}  {results}".strip()


class _Bar:
    """A bar with the steps, the time left and the newest results."""

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self.progress: Progress = Progress(*columns, console=console(error=True), refresh_per_second=5)
        self.task: TaskID = self.progress.add_task("starting", total=None)
        self.progress.start()
        return self._show

    def _show(self, row: dict[str, Any]) -> None:
        done, total = progress_of(row)
        self.progress.update(self.task, completed=done, total=total, description=describe(row))

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


class _Lines:
    """A line at the start, one now and then, and one at the end: for logs and pipes. `every` None prints none."""

    def __init__(self, every: float | None):
        self.every = every
        self.last = -math.inf
        self.line = ""

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        return self._show

    def _show(self, row: dict[str, Any]) -> None:
        done, total = progress_of(row)
        of = f" of {total:.0f}" if total else ""
        self.line = f"{'run' if row['kind'] == 'sweep' else 'step'} {done:.0f}{of}  {describe(row)}"
        if self.every is not None and time.monotonic() - self.last >= self.every:
            self._print()

    def _print(self) -> None:
        self.last = time.monotonic()
        print(self.line, file=sys.stderr, flush=True)
        self.line = ""

    def __exit__(self, *_: object) -> None:
        if self.every is not None and self.line:
            self._print()
