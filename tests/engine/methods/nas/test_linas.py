"""LINAS: what its archive may hold, what it finds with perfect predictors, and what it says of what it found."""

from __future__ import annotations

import itertools
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from engine.errors import RecipeError
from engine.figures import problems
from engine.kit.elastic import Elastic
from engine.kit.pareto import Archive, non_dominated
from engine.kit.supernets import Encoding
from engine.methods.nas import linas
from engine.methods.nas.linas import LINAS, fit, scale_of, tau, topped_up, unseen
from engine.recipe import Recipe, merge
from engine.training.assemble import assemble, filled
from engine.training.loop import Trainer
from engine.training.recorder import Memory, Recorder
from tests.engine.methods.short import ready, train

MODEL = {"use": "elastic-cnn", "widths": [3, 4], "width_shares": [0.5, 0.6, 1.0], "kernels": [1, 3], "depths": [1, 2]}
RECIPE: dict[str, Any] = {
    "task": {"use": "digits", "train_limit": 100},
    "model": MODEL,
    "procedure": {
        "use": "linas", "population": 4, "evaluations": 10, "inner_evaluations": 40, "inner_population": 8,
        "grid": 2, "validation": 64,
    },
    "training": {
        "normalization": "recalibrated", "calibration_batches": 1, "batch_size": 64, "evaluate_every": 0,
    },
    "budget": {"steps": 50},
}  # fmt: skip


class Toy(Elastic):
    """Three choices of four values; the second means nothing where the first has its first value."""

    def choices(self) -> dict[str, list[Any]]:
        return {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3], "c": [0, 1, 2, 3]}

    def canonical(self, config: Any) -> dict[str, Any]:
        return {**config, "b": 0} if config["a"] == 0 else dict(config)


def objectives(genes: Any) -> list[float]:
    """Error falls with each gene, the price rises: of different steps, so that the front is a part of all."""
    a, b, c = (float(g) for g in genes)
    b = b if a else 0.0
    return [10 - 2 * a - b - 0.5 * c - 0.3 * a * c, 1 + a * a + 2 * b + c]


def searched(monkeypatch: pytest.MonkeyPatch, seed: int = 0, rounds: int = 3, **settings: Any) -> LINAS:
    perfect = [lambda x, k=k: np.array([objectives(row)[k] for row in x]) for k in (0, 1)]
    monkeypatch.setattr(linas, "predictors", lambda *_: perfect)
    part = LINAS(population=16, evaluations=48, inner_evaluations=300, inner_population=16, mutation=0.2, **settings)
    part._encoding = Encoding(Toy())
    rng = torch.Generator().manual_seed(seed)
    for number in range(rounds):
        chosen, _ = part.propose(rng, 16)
        for genes in chosen:
            part.archive.add(genes, objectives(genes), number)
    return part


def true_front() -> set[tuple[float, ...]]:
    every = np.array([objectives(g) for g in itertools.product(range(4), repeat=3)])
    return {tuple(v) for v in every[non_dominated(every)]}


@pytest.mark.parametrize("algorithm", ["nsga2", "u-nsga3"])
def test_perfect_predictors_find_the_whole_front(monkeypatch: pytest.MonkeyPatch, algorithm: Any) -> None:
    front = true_front()
    assert 5 < len(front) < 16
    for seed in range(3):
        part = searched(monkeypatch, seed, rounds=2, algorithm=algorithm)
        assert {entry.values for entry in part.archive.front()} == front, "after one round with predictors"


def test_no_network_is_measured_twice_and_the_reported_ones_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    part = searched(monkeypatch)
    genes = [entry.genes for entry in part.archive.entries]
    assert len(genes) == 48 == len(set(genes)) and all(part._encoding.canonical(g) == g for g in genes)
    every = part.archive.values()
    for entry in part.archive.front():
        assert entry.values == tuple(objectives(entry.genes))
        assert not ((every <= entry.values).all(1) & (every < entry.values).any(1)).any()
    whole = searched(monkeypatch, rounds=6)
    assert len(whole.archive) == 16 * 4 - 12, "all that there are, the inactive ones once"
    assert whole.propose(torch.Generator().manual_seed(0), 16)[0] == []


def test_evolution_without_predictors_and_random_search_measure_fresh_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in ({"predictor": "none"}, {"algorithm": "random"}):
        part = searched(monkeypatch, **settings)
        assert len(part.archive.seen()) == 48
        again = searched(monkeypatch, **settings)
        assert again.archive.entries == part.archive.entries


def test_candidates_are_chosen_by_front_and_only_fresh_ones() -> None:
    encoding = Encoding(Toy())
    genes = np.array([[0, 0, 0], [0, 2, 0], [1, 0, 0], [3, 3, 3], [1, 2, 1]])
    values = np.array([[0, 1], [0, 1], [1, 0], [5, 5], [2, 2]], dtype=float)
    assert unseen(encoding, genes, values, set(), 3) == [(0, 0, 0), (1, 0, 0), (1, 2, 1)], "two of these are one"
    assert unseen(encoding, genes, values, {(0, 0, 0), (1, 2, 1)}, 3) == [(1, 0, 0), (3, 3, 3)]
    rng = torch.Generator().manual_seed(0)
    filled_up = topped_up(encoding, [(1, 0, 0)], {(2, 0, 0)}, 9, rng)
    assert filled_up[0] == (1, 0, 0) and len(set(filled_up)) == 9 and (2, 0, 0) not in filled_up


def test_predictors_are_ridge_or_svr_on_scaled_labels() -> None:
    assert [scale_of(np.array(v)) for v in ([0.03, -0.2], [12345.0], [0.0])] == pytest.approx([0.01, 1e3, 1.0])
    rng = np.random.default_rng(0)
    x = np.eye(4)[rng.integers(0, 4, (40, 3))].reshape(40, 12)
    linear = 1000 * (x @ rng.random(12) + 5)
    found = fit(x, linear, "auto", 4)
    assert type(found.best_estimator_).__name__ == "Ridge" and found.cv == 5
    assert found.scoring == "neg_mean_absolute_percentage_error"
    alpha = found.best_params_["alpha"]
    y = linear / scale_of(linear)
    centred = x - x.mean(0)
    w = np.linalg.solve(centred.T @ centred + alpha * np.eye(12), centred.T @ (y - y.mean()))
    assert np.allclose(found.predict(x), centred @ w + y.mean(), atol=1e-8)
    curved = np.prod(x @ rng.random((12, 3)) - 1.5, 1) + 3
    both = [fit(x, curved, kind, 4).best_score_ for kind in ("ridge", "svr", "auto")]
    assert both[2] == max(both[:2]) and both[0] != both[1]
    assert tau(np.array([1.0, 2, 3]), np.array([2.0, 4, 9])) == 1 and tau(np.ones(3), np.arange(3.0)) == 0


def test_a_run_measures_as_many_as_it_says_and_the_volume_never_falls() -> None:
    run, memory = ready(**RECIPE)
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    outcome = Trainer(run).train()
    assert all(torch.equal(weights[name], tensor) for name, tensor in run.model.state_dict().items())
    part: Any = run.procedure
    assert outcome.state == "done" and outcome.steps == 3 and len(part.archive) == 10
    assert outcome.metrics["count/evaluations"] == 11, "the smallest one is measured for the reference"
    assert [entry.round for entry in part.archive.entries] == [0] * 4 + [1] * 4 + [2] * 2
    won = memory.points["hypervolume"][1]
    assert all(b >= a for a, b in pairwise(won)) and won[-1] == pytest.approx(outcome.metrics["result/hypervolume"])
    assert part.archive.hypervolume(part.reference) == pytest.approx(won[-1])
    assert memory.points["train/loss"][1][-1] == pytest.approx(1 - won[-1], abs=1e-6)
    assert len(memory.points["kendall-tau"][1]) == 2
    network: Any = run.model
    for entry in part.archive.front():
        with network.configured(part._encoding.decode(entry.genes)):
            assert entry.values[0] == 1 - run.evaluate("val", limit=64)["accuracy"]
    assert "test@best/accuracy" in outcome.metrics


def test_the_same_seed_is_the_same_archive_and_leaves_numpy_alone() -> None:
    np.random.seed(7)
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    short = {**RECIPE, "procedure": {**RECIPE["procedure"], "evaluations": 6, "validation": 16}}
    archives = [train(**short, seed=seed)[0].procedure.archive.entries for seed in (1, 1, 2)]  # type: ignore[attr-defined]
    assert archives[0] == archives[1] != archives[2]
    assert np.array_equal(np.random.get_state()[1], before)  # type: ignore[index]


def test_points_of_the_front_open_their_recipe() -> None:
    prices = {**RECIPE["procedure"], "prices": ["multiply-adds", "parameters"], "algorithm": "u-nsga3"}
    run, _, outcome = train(**{**RECIPE, "procedure": prices})
    figures = run.procedure.figures(run)
    assert set(figures) == {"multiply-adds", "parameters"} and not any(problems(f) for f in figures.values())
    part: Any = run.procedure
    front = part.archive.front()
    opens = figures["parameters"]["series"][1]["opens"]
    assert len(opens) == len(front) and outcome.found == {"model.chosen": list(front[0].genes)}
    started = merge(RECIPE, {"training": {"start_from": "run:none"}})
    recipe = Recipe.of(merge({name: part for name, part in started.items() if name != "model"}, {"seed": 0}))
    for path, value in opens[0].items():
        if value is None:
            recipe.remove(path)
        else:
            recipe.set(path, value)
    child: Any = assemble(filled(recipe), Recorder(Memory())).model
    assert child.count() == 1 and child.config == part._encoding.decode(front[0].genes)
    assert sum(p.numel() for p in child.extract().parameters()) == front[0].values[2]


def test_an_empty_archive_says_nothing() -> None:
    assert Archive().front() == [] and Archive().hypervolume([1, 1]) == 0
    assert math.isclose(LINAS().pace()["evaluations"], 50)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": {"use": "cnn"}}, "choose a model of many configurations"),
        ({"training": {"normalization": "running"}}, 'write training.normalization = "recalibrated"'),
        ({"techniques": [{"use": "gradient-clipping"}]}, "linas"),
        ({"training": {**RECIPE["training"], "accumulate": 2}}, "accumulate"),
    ],
)
def test_what_does_not_fit_is_refused(changes: Any, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        ready(**{**RECIPE, **changes})
