"""The process behind a sweep: asks a search or a study what to try, queues a run for each answer, and tells it how
they came out.

`python -m engine.training.sweep --workspace DIR --run ID`. The runs themselves are trained by whoever works off the
queue, or in this process (`carry_out`). What was asked and told, in which order, stands in the sweep's ledger: a sweep
that is resumed, wherever it was killed, has its search asked and told the same again and goes on from there.

A configuration that a search wants to go on with keeps its run: the run gets a larger share of its budget and goes on
from its own checkpoint, so that its curves stay whole and equal those of a run that was never interrupted.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch

from engine.errors import AthanorError
from engine.log import Log, SeriesWriter
from engine.log.values import dump
from engine.parts import Answer, Ask, Finding, Report, Row, Search, Study, info
from engine.recipe import PLANS, Recipe
from engine.training import sources
from engine.training.assemble import DEFAULT_EPOCHS, build_search, build_study, build_task, filled, planned
from engine.training.loop import Outcome
from engine.training.random import derive_seed
from engine.training.worker import claimed, guarded, work
from engine.workspace import Workspace

TERMINAL = ("done", "stopped", "diverged", "failed", "interrupted")
UNFINISHED = ("stopped", "interrupted")
WITHOUT_VALUE = ("diverged", "failed")
LIMITS = ("epochs", "steps", "seconds")
POLL = 0.1


class Listed(Search):
    """A plan that is known beforehand, as a search that learns nothing."""

    def __init__(self, asks: list[Ask]):
        self.asks = asks
        self.asked = 0

    def total(self) -> int:
        return len(self.asks)

    def ask(self, n: int) -> list[Ask]:
        first, self.asked = self.asked, min(self.asked + n, len(self.asks))
        return self.asks[first : self.asked]

    def tell(self, report: Report) -> None:
        """It asks the same whatever comes out."""


class Sweep:
    """One sweep: its search or study, the runs that it made, and what they showed.

    `train`, where given, trains a queued run here and now; otherwise somebody else works off the queue.
    """

    def __init__(
        self, log: Log, sink: SeriesWriter, row: Mapping[str, Any], train: Callable[[str], None] | None = None
    ):
        self.log = log
        self.sink = sink
        self.id = row["id"]
        self.name = row["name"]
        self.train = train
        self.recipe = Recipe.parse(row["recipe"])
        with sources.around(workspace=Workspace(log.path.parent)):
            document = filled(self.recipe)
        self.metric, self.goal = build_task(document).metric
        self.study: Study | None = build_study(document) if document["study"] else None
        self.search = Listed(planned(document, self.study)) if self.study else build_search(document)
        self.search.start(torch.Generator().manual_seed(derive_seed(document["seed"], "search")))
        self.ahead = 1 if train else self.search.ahead  # one at a time learns from all before it
        for name in PLANS:
            self.recipe.remove(name)
        self.asks: dict[str, Ask] = {}
        self.runs: dict[str, str] = {}  # ask -> run
        self.known = {tag: run["id"] for run in log.runs(sweep=self.id, archived=None) for tag in run["tags"] or []}
        self.waiting: dict[str, Ask] = {}
        self.reports: dict[str, Report] = {}
        self.best: tuple[float, str] | None = None
        self._may_ask = True
        self._wake = threading.Event()

    def carry_out(self) -> Finding:
        """Goes on until the search has nothing more to ask and every run has ended, or someone says stop."""
        self.sink.run(state="training", steps=self.search.total(), step=0)
        self._replay()
        while True:
            if self._asked() == "pause":
                self._pause()
            if self._asked() == "stop":
                self._stop()
                return Finding()
            if self._may_ask and len(self.waiting) < self.ahead:
                self._ask()
            if not self.waiting:
                return self._conclude()
            self._work_off()
            for ask in [ask for ask in self.waiting if self._ended(ask)]:
                self._tell(ask)

    def _work_off(self) -> None:
        """Trains what is queued, or leaves it to somebody else and waits a moment."""
        if self.train is None:
            self._wake.wait(POLL)
            return
        for run in [self.runs[ask] for ask in self.waiting]:
            row = self.log.run(run)
            if row is not None and row["state"] == "queued":
                self.train(run)

    # -- asking ----------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Asks for as many as there is room, and queues them. Ledger and runs are written in one transaction: what the
        next process finds is always both or neither."""
        room = self.ahead - len(self.waiting)
        asks = self.search.ask(room)
        with self.log.transaction():
            for ask in asks:
                self._accept(ask, self._prolong(ask) if ask.resume is not None else self._queue(ask))
            entries = [{**asdict(ask), "run": self.runs[ask.id]} for ask in asks]
            self.log.enter(self.id, "ask", {"n": room, "asks": entries})
        self._may_ask = bool(asks)

    def _accept(self, ask: Ask, run: str) -> None:
        self.asks[ask.id] = self.waiting[ask.id] = ask
        self.runs[ask.id] = run

    def _queue(self, ask: Ask) -> str:
        tag = f"ask:{ask.id}"
        if tag in self.known:  # made by a version that kept no ledger
            self._requeue(self.known[tag])
            return self.known[tag]
        child = self.recipe.copy()
        for path, value in ask.changes.items():
            child.set(path, value)
        if ask.budget < 1 and self.search.spans == "whole":
            child.set("budget.share", float(child.get("budget.share", 1.0)) * ask.budget)
        elif ask.budget < 1:
            shorten(child, ask.budget)
        child.set("name", self._name_of(ask))
        run = self.log.create_run(
            child.text(),
            name=child.name,
            seed=child.seed,
            sweep=self.id,
            digest=child.digest(),
            device=child.get("training.device", "auto"),
        )
        self.log.update_run(run, tags=[tag])
        return run

    def _requeue(self, run: str) -> None:
        """What this sweep left unfinished when it was stopped, or died, is finished now."""
        self.log.transition(run, UNFINISHED, "queued", message="", request="", pid=None, ended=None)

    def _prolong(self, ask: Ask) -> str:
        """Gives the run of an earlier ask a larger share of its budget; it goes on from its checkpoint."""
        earlier = self.asks.get(str(ask.resume))
        if earlier is None or earlier.id not in self.reports:
            raise AthanorError(f"The search goes on from its ask {ask.resume!r}, which has not ended.")
        if self.search.spans != "whole" or ask.budget <= earlier.budget:
            reason = "schedules end with their own share" if self.search.spans != "whole" else "the share is no larger"
            raise AthanorError(f"The search goes on from its ask {ask.resume!r}, but its run cannot go on: {reason}.")
        run = self.runs[earlier.id]
        row = self.log.run(run)
        if row is None:  # somebody deleted it: trained again
            return self._queue(Ask(ask.id, earlier.changes, ask.budget))
        child = Recipe.parse(row["recipe"])
        child.set("budget.share", float(self.recipe.get("budget.share", 1.0)) * ask.budget)
        child.set("name", self._name_of(Ask(ask.id, earlier.changes, ask.budget, labels=ask.labels)))
        columns = {"recipe": child.text(), "digest": child.digest(), "name": child.name}
        self.log.transition(run, TERMINAL, "queued", message="", request="", pid=None, ended=None, **columns)
        self.log.update_run(run, tags=[*(row["tags"] or []), f"ask:{ask.id}"])
        return run

    def _name_of(self, ask: Ask) -> str:
        said = ask.labels or {path.rpartition(".")[2]: value for path, value in ask.changes.items()}
        words = [f"{name} {_short(value)}" for name, value in said.items()]
        words += [f"{ask.budget:.3g} of the budget"] * (ask.budget < 1)
        return f"{self.name}: {', '.join(words)}" if self.name else ", ".join(words)

    # -- telling ---------------------------------------------------------------------------------------------------

    def _ended(self, ask: str) -> bool:
        row = self.log.run(self.runs[ask])
        if row is not None and row["state"] not in TERMINAL:
            return False
        # Stopped with the sweep: no result.
        return not (row is not None and row["state"] in UNFINISHED and self._asked() == "stop")

    def _tell(self, ask: str) -> None:
        report = self._report(ask)
        self.log.enter(self.id, "tell", asdict(report))
        self._take(report)
        self.sink.run(step=len(self.reports), metrics=self._result())

    def _take(self, report: Report) -> None:
        del self.waiting[report.ask]
        self.search.tell(report)
        self.reports[report.ask] = report
        if math.isfinite(report.objective) and (self.best is None or report.objective < self.best[0]):
            self.best = (report.objective, report.run)
        self._may_ask = True

    def _report(self, ask: str) -> Report:
        run = self.runs[ask]
        row = self.log.run(run) or {}
        metrics = row.get("metrics") or {}
        name, sign = f"val/{self.metric}", -1.0 if self.goal == "max" else 1.0
        value = metrics.get(name)
        known = value is not None and not math.isnan(value) and row["state"] not in WITHOUT_VALUE
        points = self.log.points(run, name)
        curve = [(int(s), sign * float(v)) for s, v in zip(points.steps, points.values, strict=True)]
        objective = sign * value if value is not None and known else math.inf
        steps, seconds = int(row.get("step") or 0), float(row.get("seconds") or 0.0)
        return Report(ask, objective, metrics, run, row.get("state", "deleted"), steps, seconds, curve)

    def _replay(self) -> None:
        """Asks and tells the search what an earlier process of this sweep has asked and told it."""
        for entry in self.log.ledger(self.id):
            data = entry["data"]
            if entry["kind"] == "tell":
                curve = [(int(step), float(value)) for step, value in data.pop("curve")]
                self._take(Report(**data, curve=curve))
                continue
            asks = self.search.ask(data["n"])
            if dump([asdict(ask) for ask in asks]) != dump([_without(each, "run") for each in data["asks"]]):
                raise AthanorError(
                    "This sweep cannot go on: its search no longer asks what it asked before, so its method has "
                    "changed since. Start the sweep anew."
                )
            for ask, each in zip(asks, data["asks"], strict=True):
                self._accept(ask, each["run"])
            self._may_ask = bool(asks)
        self.sink.run(step=len(self.reports), metrics=self._result())
        for id in self.waiting:
            self._requeue(self.runs[id])

    # -- requests --------------------------------------------------------------------------------------------------

    def _asked(self) -> str:
        """What is asked of the sweep at this moment; the sink's word may be a quarter of a second old."""
        row = self.log.run(self.id)
        return str(row["request"] or "") if row is not None else "stop"

    def _pause(self) -> None:
        """Runs that train go on to their end; no other starts before the sweep is resumed."""
        self.sink.run(state="paused", message=f"Paused after {len(self.reports)} runs.")
        self.sink.answered("pause")
        self.sink.flush(wait=True)
        while self._asked() not in ("resume", "stop"):
            self._wake.wait(POLL)
        if self._asked() == "resume":
            self.sink.run(state="training", message="")
            self.sink.answered("resume")

    def _stop(self) -> None:
        for ask in self.waiting:
            run = self.runs[ask]
            if not self.log.transition(run, ["queued"], "stopped", message="The sweep was stopped."):
                self.log.request(run, "stop")
        self.sink.answered("stop")
        message = f"Stopped after {len(self.reports)} runs."
        self.sink.run(state="stopped", message=message, ended=time.time(), metrics=self._result())
        self.sink.event(message, kind="stopped")
        self.sink.flush(wait=True)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _conclude(self) -> Finding:
        """What a study answers, or a search has learned: figures, numbers and a sentence, kept with the sweep."""
        finding = self.study.report(self._table()) if self.study else self.search.result()
        message = f"The best run is {self.best[1]}." if self.best else "No run gave a value."
        if isinstance(finding, Answer):
            message = finding.verdict or message
        part = info(self.study or self.search).id
        for name, figure in finding.figures.items():
            self.sink.figure(part, name, figure)
        metrics = self._result() | finding.scalars
        self.sink.run(state="done", message=message, ended=time.time(), metrics=metrics)
        self.sink.event(message, kind="verdict" if self.study else "done")
        self.sink.flush(wait=True)
        return finding

    def _result(self) -> dict[str, Any]:
        if self.best is None or self.study:
            return {}
        return {f"best val/{self.metric}": -self.best[0] if self.goal == "max" else self.best[0]}

    def _table(self) -> list[Row]:
        """The runs of a study in the order of its plan."""
        assert self.study is not None
        rows = []
        for id, ask in self.asks.items():
            report = self.reports[id]
            names = [series.name for series in self.log.series(report.run)]
            wanted = [name for name in names if any(fnmatchcase(name, pattern) for pattern in self.study.reads)]
            points = {name: self.log.points(report.run, name) for name in wanted}
            series = {name: (found.steps.tolist(), found.values.tolist()) for name, found in points.items()}
            cost = (report.steps, report.seconds)
            rows.append(Row(ask.labels, report.metrics, report.state, *cost, series, report.run))
        return rows


def shorten(recipe: Recipe, share: float) -> None:
    """Makes a recipe one with a share of its budget, and of its phases' own, which its schedules then span."""
    document = recipe.document
    places = {"budget": document.get("budget") or {}}
    for i, phase in enumerate(document.get("phases") or []):
        places[f"phases.{i}.budget"] = phase.get("budget") or {}
    for place, budget in places.items():
        given = {name: budget[name] for name in LIMITS if budget.get(name)}
        if not given and place == "budget":
            given = {"epochs": DEFAULT_EPOCHS}
        for name, value in given.items():
            recipe.set(f"{place}.{name}", max(1, round(value * share)) if name == "steps" else value * share)


def carry_out(recipe: Recipe) -> Outcome:
    """Carries a recipe's search or study out in this process, its runs one after the other, in a workspace that is
    gone afterwards. The outcome's metrics are the study's numbers, or those of the search's best run."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(folder)
        with Log(workspace.database) as log:
            id = log.create_run(recipe.text(), name=recipe.name, kind="sweep", state="starting")
            with SeriesWriter(workspace.database, id) as sink:
                sweep = Sweep(log, sink, log.run(id) or {}, train=partial(work, workspace))
                finding = sweep.carry_out()
                runs = log.runs(sweep=id)
                found = [run["message"] for run in runs if run["state"] == "failed"]
                if len(found) == len(runs):
                    raise AthanorError(f"No run of the sweep could be trained: {(found or ['none was asked for'])[0]}")
                winner = sweep.best[1] if sweep.best and not sweep.study else ""
                best: dict[str, float] = next((run["metrics"] for run in runs if run["id"] == winner), {})
                metrics = {f"best {name}": value for name, value in best.items()} | finding.scalars
                totals = {"runs": float(len(runs)), "steps": float(sum(run["step"] for run in runs))}
                seconds = sum(run["seconds"] for run in runs)
    return Outcome("done", int(totals["steps"]), seconds, metrics | totals)


def _without(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != name}


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("use", "table"))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> int:
    ask = argparse.ArgumentParser(prog="engine.training.sweep", description="Carries out one sweep.")
    ask.add_argument("--workspace", required=True)
    ask.add_argument("--run", required=True)
    given = ask.parse_args(arguments)
    if not claimed(Workspace(given.workspace), given.run):
        return 0
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
