"""Searches over shares of a budget, runs that go on, and studies, in this process and in their own."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine import registry
from engine.errors import AthanorError, RecipeError
from engine.log import Log, SeriesWriter
from engine.parts import Ask, Report
from engine.recipe import Recipe, merge
from engine.service import verbs
from engine.service.client import create_run
from engine.service.scheduler import Scheduler
from engine.training import checkpoint
from engine.training.assemble import filled
from engine.training.evidence import run as arm
from engine.training.loop import Outcome, Trainer, train
from engine.training.preview import preview
from engine.training.recorder import Memory
from engine.training.sweep import Sweep, carry_out, shorten
from engine.training.worker import work
from engine.workspace import Workspace
from tests.contract.test_runs import comparable
from tests.end_to_end.steps import PATIENCE, STATEFUL, end_processes_of, kill, row_of, wait_for
from tests.engine.training.own_parts import HALVING
from tests.waiting import until

TINY: dict[str, Any] = {
    "name": "tiny",
    "task": {"use": "two-moons", "samples": 200},
    "model": {"use": "mlp", "hidden": [8]},
    "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9},
    "training": {"batch_size": 16, "evaluate_every": 1, "threads": 1},
    "budget": {"epochs": 4},
}


@pytest.fixture(scope="module", autouse=True)
def own_parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "halving.py").write_text(HALVING)
    before = os.environ.get("ATHANOR_PARTS")
    os.environ["ATHANOR_PARTS"] = str(folder)
    registry.classes.cache_clear()
    yield
    os.environ.pop("ATHANOR_PARTS")
    if before is not None:
        os.environ["ATHANOR_PARTS"] = before
    registry.classes.cache_clear()


def halving(**settings: Any) -> Recipe:
    return Recipe.of({**TINY, "search": {"use": "halving", **settings}})


# -- a share of a run --------------------------------------------------------------------------------------------------


def trained(document: dict[str, Any], folder: Path, sink: Memory, share: float, go_on: bool = False) -> Outcome:
    def load(trainer: Trainer) -> None:
        state = checkpoint.newest(folder)
        assert state is not None
        trainer.load(state)

    recipe = Recipe.of(merge(document, {"budget": {"share": share}}))
    return train(filled(recipe), sink, folder, load if go_on else None)


def test_a_run_that_goes_on_from_its_share_is_the_whole_run(tmp_path: Path) -> None:
    """Also where an evaluation, and hooks before the end, fall on the very step at which the share ends."""
    document = merge(TINY, {**STATEFUL, "model": {"hidden": [16, 16]}, "training": {"evaluate_every": 2}})
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, parts = Memory(), Memory()
    one = trained(document, tmp_path / "whole", whole, 1.0)
    first = trained(document, tmp_path / "parts", parts, 0.25)
    second = trained(document, tmp_path / "parts", parts, 0.5, go_on=True)
    third = trained(document, tmp_path / "parts", parts, 1.0, go_on=True)
    assert [first.steps, second.steps, third.steps] == [one.steps // 4, one.steps // 2, one.steps]
    assert {first.state, second.state, third.state} == {"done"} and "test/accuracy" in first.metrics
    assert third.weights == one.weights != second.weights
    assert third.metrics == one.metrics
    for name, points in comparable(whole.points, 0).items():
        got: dict[int, float] = {}
        for step, value in comparable(parts.points, 0)[name]:
            got.setdefault(step, value)  # the log keeps the first point of a step: the run's, not its end's
        assert {step: got[step] for step, _ in points} == dict(points), name


def test_schedules_span_the_whole_of_a_share_and_the_share_of_a_small_run(tmp_path: Path) -> None:
    cosine = merge(TINY, {"schedule": {"use": "cosine"}})
    sink = Memory()
    trained(cosine, tmp_path, sink, 0.25)
    rates = sink.points["lr"][1]
    assert rates[-1] > 0.8 * rates[0], "the rate has only begun to fall"
    small = Recipe.of(cosine)
    shorten(small, 0.25)
    assert small.get("budget.epochs") == 1.0
    sink = Memory()
    outcome = train(filled(small), sink)
    assert outcome.steps == len(rates) and sink.points["lr"][1][-1] < 0.05 * rates[0]


def test_what_a_small_run_is_shortened_by() -> None:
    for budget, expected in (
        ({"steps": 90, "epochs": 3.0}, {"steps": 30, "epochs": 1.0}),
        ({"seconds": 6.0}, {"seconds": 2.0}),
        ({"steps": 1}, {"steps": 1}),
        ({}, {"epochs": 10 / 3}),
    ):
        recipe = Recipe.of({"budget": budget})
        shorten(recipe, 1 / 3)
        assert recipe.document["budget"] == pytest.approx(expected)


def test_phases_with_budgets_of_their_own_are_shortened_too() -> None:
    recipe = Recipe.of({
        **TINY, "phases": [{"name": "first", "budget": {"steps": 30}}, {"name": "second"}], "budget": {"epochs": 6.0},
    })  # fmt: skip
    shorten(recipe, 1 / 3)
    assert recipe.document["phases"] == [{"name": "first", "budget": {"steps": 10}}, {"name": "second"}]
    assert recipe.document["budget"] == {"epochs": 2.0} and recipe.check(registry.catalog()) == []


# -- a search over shares ----------------------------------------------------------------------------------------------


class Here:
    """A workspace whose sweeps are carried out in this process; `fails(n)`: the n-th training does not take place."""

    def __init__(self, folder: Path, recipe: Recipe):
        self.workspace = Workspace(folder)
        self.log = Log(self.workspace.database)
        self.id = create_run(self.log, recipe.text(), state="starting")
        self.trained: list[str] = []

    def go(self, fails: int | None = None) -> None:
        def one(run: str) -> None:
            if len(self.trained) == fails:
                raise KeyboardInterrupt
            self.trained.append(run)
            work(self.workspace, run)

        with SeriesWriter(self.workspace.database, self.id) as sink:
            Sweep(self.log, sink, row_of(self.log, self.id), train=one).carry_out()

    def entries(self, kind: str) -> list[dict[str, Any]]:
        return [each["data"] for each in self.log.ledger(self.id) if each["kind"] == kind]

    def asked(self) -> list[dict[str, Any]]:
        return [{**ask, "run": ""} for entry in self.entries("ask") for ask in entry["asks"]]

    def told(self) -> list[dict[str, Any]]:
        return [{**report, "run": "", "seconds": 0.0, "metrics": timeless(report)} for report in self.entries("tell")]


def timeless(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report["metrics"].items() if "seconds" not in name}


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Here:
    here = Here(tmp_path_factory.mktemp("uncut"), halving())
    here.go()
    return here


def test_a_bracket_keeps_one_run_a_configuration_and_whole_curves(uncut: Here) -> None:
    asks, reports = uncut.entries("ask"), uncut.entries("tell")
    shares = [ask["budget"] for entry in asks for ask in entry["asks"]]
    assert shares == [0.25] * 4 + [0.5] * 2 + [1.0]
    runs = uncut.log.runs(sweep=uncut.id)
    assert len(runs) == 4, "what goes on is the same run"
    by_ask = {report["ask"]: report for report in reports}
    assert [by_ask[id]["steps"] for id in "0123456"] == [9] * 4 + [18] * 2 + [36]
    last = by_ask["6"]
    assert [step for step, _ in last["curve"]] == [9, 18, 27, 36]
    assert last["curve"][-1][1] == last["objective"] == -last["metrics"]["val/accuracy"]
    # The run that went all the way is, bit for bit, the one that a person would have trained in one go.
    winner = row_of(uncut.log, last["run"])
    recipe = Recipe.parse(winner["recipe"])
    assert winner["tags"][-1] == "ask:6" and recipe.get("budget.share") == 1.0
    recipe.remove("budget.share")
    outcome = train(filled(recipe))
    assert outcome.weights == winner["weights"] and outcome.metrics["val/loss"] == last["metrics"]["val/loss"]
    row = row_of(uncut.log, uncut.id)
    assert (row["state"], row["step"], row["metrics"]["told"]) == ("done", 7, 7.0)
    assert row["metrics"]["best val/accuracy"] == -min(report["objective"] for report in reports)
    assert [figure["name"] for figure in uncut.log.figures(uncut.id)] == ["told"]


@pytest.mark.parametrize("cut", range(7))
def test_a_sweep_killed_anywhere_in_a_bracket_goes_on_as_if_never_killed(cut: int, uncut: Here, tmp_path: Path) -> None:
    here = Here(tmp_path, halving())
    with pytest.raises(KeyboardInterrupt):
        here.go(fails=cut)
    here.go()
    assert len(here.trained) == 7, "no run is trained twice"
    assert here.asked() == uncut.asked() and here.told() == uncut.told()


def test_a_search_that_starts_anew_makes_a_small_whole_run_of_each_share() -> None:
    with_runs: dict[str, float] = carry_out(halving(whole=False)).metrics
    assert with_runs["runs"] == 7 and with_runs["steps"] == 4 * 9 + 2 * 18 + 36
    again = arm({**TINY, "search": {"use": "halving", "whole": False}}, seed=0)
    assert again.metrics == with_runs and {"best val/accuracy", "best test/loss", "told"} <= set(with_runs)


def asking(answers: Iterator[list[Ask]], spans: str = "whole") -> Callable[[Sweep], None]:
    def change(sweep: Sweep) -> None:
        sweep.search.spans = spans
        sweep.search.ask = lambda n: next(answers)  # type: ignore[method-assign]

    return change


def refused(tmp_path: Path, change: Callable[[Sweep], None], words: str) -> None:
    here = Here(tmp_path, halving())
    with SeriesWriter(here.workspace.database, here.id) as sink, pytest.raises(AthanorError, match=words):
        sweep = Sweep(here.log, sink, row_of(here.log, here.id), train=partial(work, here.workspace))
        change(sweep)
        sweep.carry_out()


def test_what_cannot_go_on_is_told(tmp_path: Path) -> None:
    first = iter([[Ask("a", {}, 0.25)], [Ask("b", {}, 0.5, "c")]])
    refused(tmp_path / "1", asking(first), "'c', which has not ended")
    second = iter([[Ask("a", {}, 0.5)], [Ask("b", {}, 0.25, "a")]])
    refused(tmp_path / "2", asking(second), "the share is no larger")
    third = iter([[Ask("a", {}, 0.25)], [Ask("b", {}, 0.5, "a")]])
    refused(tmp_path / "3", asking(third, "share"), "schedules end with their own share")


def test_a_search_that_asks_other_things_than_before_is_refused(tmp_path: Path) -> None:
    here = Here(tmp_path, halving())
    with pytest.raises(KeyboardInterrupt):
        here.go(fails=3)
    recipe = Recipe.parse(row_of(here.log, here.id)["recipe"])
    recipe.set("seed", 5)  # other draws: as if the method had been changed in between
    here.log.update_run(here.id, recipe=recipe.text())
    with pytest.raises(AthanorError, match="no longer asks what it asked before"):
        here.go()


def test_a_run_that_fails_counts_as_infinitely_bad(tmp_path: Path) -> None:
    here = Here(tmp_path, Recipe.of({**TINY, "search": {"use": "grid", "space": {"optimizer.lr": [1e30, 0.1]}}}))
    here.go()
    reports = [Report(**report) for report in here.entries("tell")]
    assert (reports[0].state, reports[0].objective) == ("diverged", float("inf"))
    assert reports[1].state == "done" and row_of(here.log, here.id)["message"] == f"The best run is {reports[1].run}."


# -- studies -----------------------------------------------------------------------------------------------------------

STUDY = {**TINY, "study": {"use": "rates"}}


def test_a_study_answers_with_numbers_a_figure_and_a_verdict(tmp_path: Path) -> None:
    here = Here(tmp_path, Recipe.of(STUDY))
    assert row_of(here.log, here.id)["kind"] == "sweep"
    here.go()
    row = row_of(here.log, here.id)
    ends = []
    for rate in (0.01, 0.1):
        losses = []
        for seed in (0, 1):
            sink = Memory()
            train(filled(Recipe.of(merge(TINY, {"optimizer": {"lr": rate}, "seed": seed}))), sink)
            losses.append(sink.points["train/loss"][1][-1])
        ends.append(sum(losses) / 2)
    assert row["metrics"] == {"difference": ends[1] - ends[0]}
    assert row["state"] == "done" and row["message"] == "yes, over 4 runs."
    (figure,) = here.log.figures(here.id)
    assert figure["probe"] == "rates" and figure["data"]["series"][0]["y"] == ends
    assert [event["text"] for event in here.log.events(here.id) if event["kind"] == "verdict"] == [row["message"]]
    names = [run["name"] for run in here.log.runs(sweep=here.id)][::-1]
    assert names == [f"tiny: lr {rate:.3g}, seed {seed}" for rate in (0.01, 0.1) for seed in (0, 1)]
    assert arm(STUDY, seed=0).metrics["difference"] == ends[1] - ends[0]


def test_a_study_that_was_killed_trains_only_what_is_left(tmp_path: Path) -> None:
    here = Here(tmp_path, Recipe.of(STUDY))
    with pytest.raises(KeyboardInterrupt):
        here.go(fails=2)
    here.go()
    assert len(here.trained) == len(set(here.trained)) == 4 and row_of(here.log, here.id)["state"] == "done"


def test_a_plan_is_checked_before_it_starts() -> None:
    text = Recipe.of({**STUDY, "study": {"use": "rates", "rates": [-1.0, 0.1]}}).text()
    (problem,) = preview(text)["problems"]
    assert problem["path"] == "optimizer.lr" and "greater than 0" in problem["message"]
    text = Recipe.of({**STUDY, "optimizer": {"use": "adamw"}}).text()
    (problem,) = preview(text)["problems"]
    assert (problem["path"], problem["message"]) == ("study", "it compares the rates of plain gradient descent.")
    both = Recipe.of({**STUDY, "search": {"use": "halving"}})
    with pytest.raises(RecipeError, match="a sweep carries out one of them"):
        both.require(registry.catalog())


# -- with processes of their own ---------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_sweep_process_killed_in_the_middle_of_a_bracket(tmp_path: Path, uncut: Here) -> None:
    workspace = Workspace(tmp_path)
    ended = threading.Event()

    def schedule() -> None:
        scheduler = Scheduler(workspace, gpus=0, slots=1, keep_spare=True)
        while not ended.is_set():
            scheduler.turn()
            scheduler.wait()
        scheduler.close()

    thread = threading.Thread(target=schedule)
    thread.start()
    try:
        with Log(workspace.database) as log:
            sweep = create_run(log, halving().text())

            def told() -> int:
                return sum(entry["kind"] == "tell" for entry in log.ledger(sweep))

            until(lambda: told() >= 5, PATIENCE)  # of four and two: in the middle of the second rung
            kill(row_of(log, sweep)["pid"])
            verbs.resume(log, wait_for(log, sweep, "interrupted"))
            row = wait_for(log, sweep, "done")
            here = Here.__new__(Here)
            here.log, here.id = log, sweep
            assert here.asked() == uncut.asked() and here.told() == uncut.told()
            assert row["metrics"] == row_of(uncut.log, uncut.id)["metrics"]
    finally:
        ended.set()
        thread.join()
        end_processes_of(workspace)
