"""Every part trains, repeats itself, resumes bit for bit in another process, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules import module as torch_module

from engine import registry
from engine.figures import problems
from engine.parts import Answer, Ask, Report, Row, Search, Study, info
from engine.recipe import Recipe
from engine.training import checkpoint
from engine.training.assemble import assemble, build_task, filled, planned
from engine.training.loop import Outcome, Trainer, train
from engine.training.measure import by_the_clock
from engine.training.random import derive_seed
from engine.training.recorder import Memory, Recorder
from engine.training.sweep import carry_out
from tests.contract.conftest import CATALOG


def example(part: str) -> dict[str, Any]:
    return filled(Recipe.of(CATALOG.example(part)), CATALOG)


def interrupted(document: dict[str, Any], folder: Path, at: int) -> Outcome:
    """Trains up to a step, saves, and drops everything: what a process that is killed after a checkpoint leaves."""

    def cut(trainer: Trainer) -> None:
        whole = trainer._finished

        def finished() -> bool:
            if trainer.run.step >= at:
                trainer.sink.requested = "stop"
                trainer._obey()
            return whole()

        trainer._finished = finished  # type: ignore[method-assign]

    return train(document, Memory(), folder, cut)


def resume(document: dict[str, Any], folder: str) -> tuple[Outcome, dict[str, Any]]:
    """Goes on from the newest checkpoint; runs in another process."""
    sink = Memory()

    def load(trainer: Trainer) -> None:
        state = checkpoint.newest(Path(folder))
        assert state is not None
        trainer.load(state)

    return train(document, sink, Path(folder), load), sink.points


def comparable(points: dict[str, Any], start: int) -> dict[str, Any]:
    """Points from a step on, without those that measure time."""
    return {
        name: [(s, v) for s, v in zip(steps, values, strict=True) if s >= start]
        for name, (steps, values) in points.items()
        if not by_the_clock(name) and any(s >= start for s in steps)
    }


def timeless(outcome: Outcome) -> dict[str, float]:
    """An outcome's metrics, without those that measure time."""
    return {name: value for name, value in outcome.metrics.items() if not by_the_clock(name)}


def check_figures(figures: Mapping[str, Any] | Sequence[dict[str, Any]]) -> None:
    """What parts draw can be drawn by the window, and is plain data."""
    found = figures if isinstance(figures, Mapping) else {f"{f['probe']}/{f['name']}": f["data"] for f in figures}
    for name, figure in found.items():
        assert problems(figure) == [], name
        json.dumps(figure)


def test_resumed_equals_uninterrupted(trained: str, tmp_path: Path, another_process: ProcessPoolExecutor) -> None:
    document = example(trained)
    whole = Memory()
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    outcome = train(document, whole, tmp_path / "whole")
    assert outcome.state == "done", outcome.message
    assert outcome.steps == 0 or "train/loss" in whole.points or len(whole.points) > 1
    middle = max(outcome.steps // 2, min(outcome.steps, 1))  # 0 where nothing is trained: cut before it acts
    stopped = interrupted(document, tmp_path / "cut", middle)
    assert (stopped.state, stopped.steps) == ("stopped", middle)
    again, points = another_process.submit(resume, document, str(tmp_path / "cut")).result(timeout=120)
    assert again.weights == outcome.weights
    assert timeless(again) == pytest.approx(timeless(outcome), rel=0, abs=0, nan_ok=True)
    assert comparable(points, middle) == comparable(whole.points, middle)
    check_figures(whole.figures)


def test_a_task_shows_samples_that_can_be_drawn(posed: str) -> None:
    figure = build_task(example(posed)).figure()
    if figure is not None:
        check_figures({"samples": figure})


def global_state() -> dict[str, Any]:
    """What a run might leave changed."""
    return {
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "rng": torch.get_rng_state().tolist(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "module hooks": [
            len(getattr(torch_module, name))
            for name in vars(torch_module)
            if name.startswith("_global_") and name.endswith("hooks")
        ],
        "functional": {n: id(v) for n, v in vars(torch.nn.functional).items() if callable(v)},
        "tensor": {n: id(v) for n, v in vars(torch.Tensor).items()},
        "module": {n: id(v) for n, v in vars(torch.nn.Module).items()},
        "autocast": torch.is_autocast_enabled("cpu"),
    }


def test_it_repeats_itself_and_leaves_nothing_behind(trained: str) -> None:
    document = example(trained)
    first, second = Memory(), Memory()
    one = train(document, first)  # what is imported or cached once is not the run's doing
    before = global_state()
    two = train(document, second)
    assert global_state() == before
    assert one.weights == two.weights
    assert comparable(first.points, 0) == comparable(second.points, 0)


def held_parameters(value: Any, model: torch.nn.Module) -> bool:
    """Whether something holds parameters of the model, or a tensor in the shape of one of its weights."""
    parameters = list(model.parameters())
    if isinstance(value, torch.Tensor):
        return any(value is p or (p.dim() > 1 and value.shape == p.shape) for p in parameters)
    if isinstance(value, torch.nn.Module):
        inside = set(model.modules())
        return value is not model and any(m in inside for m in value.modules()) and value not in inside
    if isinstance(value, dict):
        return any(held_parameters(each, model) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple | set):
        return any(held_parameters(each, model) for each in value)
    return False


def test_what_holds_on_to_parameters_says_so(trained: str) -> None:
    """Beside a part that exchanges the model's parameters it would go on with those that are gone."""
    run = assemble(example(trained), Recorder(Memory()))
    for part in (run.procedure, run.loss, *run.techniques):
        if part is not None and info(part).id == trained and held_parameters(vars(part), run.model):
            assert hasattr(part, "on_surgery") or part.keeps_parameters


def test_another_seed_is_another_run(trained: str) -> None:
    document = example(trained)
    points = []
    for seed in (0, 1):
        sink = Memory()
        train({**document, "seed": seed}, sink)
        points.append(comparable(sink.points, 0))
    procedure = registry.classes()[document["procedure"]["use"]]
    assert (points[0] != points[1]) == procedure.seeded  # type: ignore[attr-defined]


def equal(one: Any, other: Any) -> bool:
    """Whether two states are the same, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def test_a_transform_measures_its_work_and_leaves_the_run_as_it_was(transforming: str, tmp_path: Path) -> None:
    document = example(transforming)
    states = {}
    for name, transforms in (("with", document["transforms"]), ("without", [])):
        (tmp_path / name).mkdir()
        sink = Memory()
        outcome = train({**document, "transforms": transforms}, sink, tmp_path / name)
        state = checkpoint.newest(tmp_path / name)
        assert outcome.state == "done" and state is not None
        states[name] = {key: value for key, value in state.items() if key not in ("seconds", "metrics")}
        measured = {key: value for key, value in outcome.metrics.items() if key.startswith("transform/")}
        files = sorted((tmp_path / name).glob("transform-*"))
        assert bool(measured) == bool(files) == bool(transforms)
        check_figures(sink.figures)
        if transforms:
            assert [e["text"] for e in sink.events if e["kind"] == "transform" and e["level"] == "info"]
            assert all(measured[f"transform/{transforming}/bytes_{when}"] > 0 for when in ("before", "after"))
            kept = [checkpoint.load(path) for path in files if path.suffix == ".pt"]
            assert all(content["model"] and content["transform"] == transforming for content in kept)
            listed = {row["name"]: row["whole"] for row in sink.columns["checkpoints"]}
            assert not any(listed[path.stem] for path in files if path.suffix == ".pt")
    assert equal(states["with"], states["without"])


def searching(id: str) -> Search:
    search: Search = registry.build(example(id)["search"])
    search.start(torch.Generator().manual_seed(7))
    return search


def test_a_search_repeats_itself_and_keeps_to_its_total(searched: str) -> None:
    seen = []
    for _ in range(2):
        search, asked = searching(searched), []
        while asks := search.ask(3):
            asked += [(ask.id, ask.changes) for ask in asks]
            for ask in asks:
                search.tell(Report(ask.id, float(len(asked))))
            assert len(asked) < 1000
        seen.append(asked)
    assert seen[0] == seen[1] and seen[0]
    assert len({id for id, _ in seen[0]}) == len(seen[0])
    total = searching(searched).total()
    assert total is None or total == len(seen[0])


def test_what_a_search_asks_makes_valid_recipes(searched: str) -> None:
    base = Recipe.of(CATALOG.example(searched))
    base.remove("search")
    for ask in searching(searched).ask(4):
        recipe = base.copy()
        for path, value in ask.changes.items():
            recipe.set(path, value)
        assert recipe.check(CATALOG) == []


def conversation(search: Search, script: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Carries a search on from a script of what it was asked and told, and returns the whole."""
    said = list(script)
    waiting: list[Ask] = []
    for kind, what in script:
        if kind == "ask":
            n, asks = what
            assert search.ask(n) == asks, "told the same, it asks the same"
            waiting += asks
        else:
            search.tell(what)
            waiting = [ask for ask in waiting if ask.id != what.ask]
    while True:
        if not said or said[-1][0] == "tell":
            n = 1 + len(said) % 3
            asks = search.ask(n)
            assert len(asks) <= n
            said.append(("ask", (n, asks)))
            waiting += asks
        if not waiting:
            return said
        ask = waiting.pop(len(said) % len(waiting))  # they end in another order than they began
        value = float("inf") if len(said) % 7 == 0 else derive_seed(3, repr(ask.changes)) % 997 / ask.budget
        report = Report(ask.id, value, steps=int(100 * ask.budget), curve=[(1, 1.0)])
        search.tell(report)
        said.append(("tell", report))


def test_what_a_search_has_learned_can_be_drawn(searched: str) -> None:
    """Before it was told anything, and at its end."""
    search = searching(searched)
    for _ in range(2):
        found = search.result()
        check_figures(found.figures)
        assert all(isinstance(value, float) for value in found.scalars.values())
        conversation(search, [])


def test_a_search_killed_anywhere_goes_on_from_its_ledger(searched: str) -> None:
    whole = conversation(searching(searched), [])
    assert len(whole) < 1000
    for cut in range(0, len(whole), max(len(whole) // 10, 1)):
        assert conversation(searching(searched), whole[:cut]) == whole


def test_a_search_goes_on_only_with_what_has_ended(searched: str) -> None:
    search = searching(searched)
    asked: dict[str, Ask] = {}
    ended: dict[str, Ask] = {}
    for kind, what in conversation(search, []):
        if kind == "tell":
            ended[what.ask] = asked[what.ask]
            continue
        asked |= {ask.id: ask for ask in what[1]}
        for ask in what[1]:
            assert 0 < ask.budget <= 1
            if ask.resume is not None:
                assert search.spans == "whole" and ask.budget > ended[ask.resume].budget


def test_a_study_plans_valid_recipes_and_repeats_itself(studied: str) -> None:
    base = Recipe.of(CATALOG.example(studied))
    plans = [planned(example(studied), registry.build(example(studied)["study"])) for _ in range(2)]
    assert plans[0] == plans[1] and plans[0]
    assert len({ask.id for ask in plans[0]}) == len(plans[0])
    assert len({repr(ask.labels) for ask in plans[0]}) == len(plans[0]), "labels tell the runs apart"
    base.remove("study")
    for ask in plans[0]:
        recipe = base.copy()
        for path, value in ask.changes.items():
            recipe.set(path, value)
        assert recipe.check(CATALOG) == []


def test_a_study_reports_the_same_and_copes_with_runs_that_failed(studied: str) -> None:
    study: Study = registry.build(example(studied)["study"])
    asks = planned(example(studied), study)
    bare = [Row(ask.labels, state="diverged") for ask in asks]
    for table in (bare, bare[:1]):
        one, two = study.report(table), study.report(table)
        assert one.verdict.endswith(".") and json.dumps(asdict(one)) == json.dumps(asdict(two))
        check_figures(one.figures)


def test_a_study_comes_to_its_verdict(studied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Answer] = []
    cls = registry.classes()[CATALOG.example(studied)["study"]["use"]]
    report = cls.report  # type: ignore[attr-defined]

    def kept(study: Study, table: list[Row]) -> Answer:
        assert all(row.state == "done" for row in table), "its example's runs train"
        assert study.reads == () or all(row.series for row in table)
        seen.append(report(study, table))
        return seen[-1]

    monkeypatch.setattr(cls, "report", kept)
    recipe = Recipe.of(CATALOG.example(studied))
    one, two = carry_out(recipe), carry_out(recipe)
    assert one.metrics == two.metrics and one.metrics["runs"] > 1
    assert len(seen) == 2 and seen[0] == seen[1]
    assert seen[0].verdict.endswith(".") and seen[0].figures
    assert all(isinstance(value, float) for value in seen[0].scalars.values())
    check_figures(seen[0].figures)
