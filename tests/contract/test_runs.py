"""Every part trains, repeats itself, resumes bit for bit in another process, and leaves nothing behind."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules import module as torch_module

from engine import registry
from engine.parts import Report, Search
from engine.recipe import Recipe
from engine.training import checkpoint
from engine.training.assemble import filled
from engine.training.loop import Outcome, Trainer, train
from engine.training.recorder import Memory
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
        if name not in ("throughput", "seconds/evaluation") and any(s >= start for s in steps)
    }


def test_resumed_equals_uninterrupted(trained: str, tmp_path: Path, another_process: ProcessPoolExecutor) -> None:
    document = example(trained)
    whole = Memory()
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    outcome = train(document, whole, tmp_path / "whole")
    assert outcome.state == "done", outcome.message
    assert outcome.steps == 0 or "train/loss" in whole.points or len(whole.points) > 1
    middle = max(outcome.steps // 2, 1)
    stopped = interrupted(document, tmp_path / "cut", middle)
    assert (stopped.state, stopped.steps) == ("stopped", middle)
    again, points = another_process.submit(resume, document, str(tmp_path / "cut")).result(timeout=120)
    assert again.weights == outcome.weights
    assert again.metrics == pytest.approx(outcome.metrics, rel=0, abs=0, nan_ok=True)
    assert comparable(points, middle) == comparable(whole.points, middle)


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


def test_another_seed_is_another_run(trained: str) -> None:
    document = example(trained)
    points = []
    for seed in (0, 1):
        sink = Memory()
        train({**document, "seed": seed}, sink)
        points.append(comparable(sink.points, 0))
    assert points[0] != points[1]


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
