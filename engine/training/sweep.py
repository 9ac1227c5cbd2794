"""The process behind a sweep: asks a search what to try, queues a run for each answer, and tells it how they came out.

`python -m engine.training.sweep --workspace DIR --run ID`. The runs themselves are trained by whoever works off the
queue. A sweep that is resumed asks again from the start; configurations that have a run already keep it.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from typing import Any

import torch

from engine.log import Log, SeriesWriter
from engine.parts import Ask, Report
from engine.recipe import Recipe
from engine.training import sources
from engine.training.assemble import build_search, build_task, filled
from engine.training.random import derive_seed
from engine.training.worker import guarded
from engine.workspace import Workspace

TERMINAL = ("done", "stopped", "diverged", "failed", "interrupted")
UNFINISHED = ("stopped", "interrupted")
POLL = 0.1


class Sweep:
    """One sweep: its search, the runs that it made, and what they showed."""

    def __init__(self, log: Log, sink: SeriesWriter, row: dict[str, Any]):
        self.log = log
        self.sink = sink
        self.id = row["id"]
        self.name = row["name"]
        self.recipe = Recipe.parse(row["recipe"])
        with sources.around(workspace=Workspace(log.path.parent)):
            document = filled(self.recipe)
        self.metric, self.goal = build_task(document).metric
        self.search = build_search(document)
        self.search.start(torch.Generator().manual_seed(derive_seed(document["seed"], "search")))
        self.recipe.remove("search")
        self.runs: dict[str, str] = {}  # ask -> run
        self.known = {tag: run["id"] for run in log.runs(sweep=self.id, archived=None) for tag in run["tags"] or []}
        self.told = 0
        self.best: tuple[float, str] | None = None
        self._wake = threading.Event()

    def carry_out(self) -> None:
        """Goes on until the search has nothing more to ask and every run has ended, or someone says stop."""
        total = self.search.total()
        self.sink.run(state="training", steps=total, step=0)
        waiting: dict[str, Ask] = {}
        more = True
        while more or waiting:
            if self._asked() == "pause":
                self._pause()
            if self._asked() == "stop":
                self._stop(waiting)
                return
            if more and len(waiting) < self.search.ahead:
                asks = self.search.ask(self.search.ahead - len(waiting))
                more = bool(asks)
                for ask in asks:
                    self._queue(ask)
                    waiting[ask.id] = ask
            for ask_id in [a for a in waiting if self._ended(a)]:
                del waiting[ask_id]
            self._wake.wait(POLL)
        self._finish("done", "")

    def _queue(self, ask: Ask) -> None:
        tag = f"ask:{ask.id}"
        if tag in self.known:
            run = self.runs[ask.id] = self.known[tag]
            # What this sweep left unfinished when it was stopped, or died, is finished now.
            self.log.transition(run, UNFINISHED, "queued", message="", request="", pid=None, ended=None)
            return
        child = self.recipe.copy()
        for path, value in ask.changes.items():
            child.set(path, value)
        words = ", ".join(f"{path.rpartition('.')[2]} {_short(value)}" for path, value in ask.changes.items())
        child.set("name", f"{self.name}: {words}" if self.name else words)
        with self.log.transaction():  # a run without its tag would be made again by the next process
            run = self.log.create_run(
                child.text(),
                name=child.name,
                seed=child.seed,
                sweep=self.id,
                digest=child.digest(),
                device=child.get("training.device", "auto"),
            )
            self.log.update_run(run, tags=[tag])
        self.runs[ask.id] = run

    def _ended(self, ask_id: str) -> bool:
        run = self.log.run(self.runs[ask_id])
        if run is not None and run["state"] not in TERMINAL:
            return False
        if run is not None and run["state"] in UNFINISHED and self._asked() == "stop":
            return False  # stopped with the sweep: no result
        metrics = (run or {}).get("metrics") or {}
        value = metrics.get(f"val/{self.metric}")
        objective = float("inf") if value is None else -value if self.goal == "max" else value
        self.search.tell(Report(ask_id, objective, metrics, self.runs[ask_id]))
        self.told += 1
        if value is not None and (self.best is None or objective < self.best[0]):
            self.best = (objective, self.runs[ask_id])
        self.sink.run(step=self.told, metrics=self._result())
        return True

    def _result(self) -> dict[str, Any]:
        if self.best is None:
            return {}
        return {f"best val/{self.metric}": -self.best[0] if self.goal == "max" else self.best[0]}

    def _asked(self) -> str:
        """What is asked of the sweep at this moment; the sink's word may be a quarter of a second old."""
        row = self.log.run(self.id)
        return str(row["request"] or "") if row is not None else "stop"

    def _pause(self) -> None:
        """Runs that train go on to their end; no other starts before the sweep is resumed."""
        self.sink.run(state="paused", message=f"Paused after {self.told} runs.")
        self.sink.answered("pause")
        self.sink.flush(wait=True)
        while self._asked() not in ("resume", "stop"):
            self._wake.wait(POLL)
        if self._asked() == "resume":
            self.sink.run(state="training", message="")
            self.sink.answered("resume")

    def _stop(self, waiting: dict[str, Ask]) -> None:
        for ask_id in waiting:
            run = self.runs[ask_id]
            if not self.log.transition(run, ["queued"], "stopped", message="The sweep was stopped."):
                self.log.request(run, "stop")
        self.sink.answered("stop")
        self._finish("stopped", f"Stopped after {self.told} runs.")

    def _finish(self, state: str, message: str) -> None:
        best = f"The best run is {self.best[1]}." if self.best else "No run gave a value."
        self.sink.run(state=state, message=message or best, ended=time.time(), metrics=self._result())
        self.sink.event(message or best, kind=state)
        self.sink.flush(wait=True)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> int:
    ask = argparse.ArgumentParser(prog="engine.training.sweep", description="Carries out one sweep.")
    ask.add_argument("--workspace", required=True)
    ask.add_argument("--run", required=True)
    given = ask.parse_args(arguments)
    workspace = Workspace(given.workspace)
    with Log(workspace.database) as log:
        row = log.run(given.run)
        if row is None:
            print(f"There is no run {given.run}.", file=sys.stderr)
            return 2
        log.update_run(given.run, pid=os.getpid(), started=row["started"] or time.time(), ended=None, message="")
        with SeriesWriter(workspace.database, given.run) as sink:
            guarded(sink, lambda: Sweep(log, sink, row).carry_out())
    return 0


if __name__ == "__main__":
    sys.exit(main())
