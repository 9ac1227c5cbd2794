"""Evolution of whole numbers: bounds, budget, seeds, and generators that stay as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.kit.evolving import evolve, offspring
from engine.kit.pareto import non_dominated

SIZES = [4, 1, 3, 5]


def two(genes: np.ndarray) -> np.ndarray:
    return np.stack([(genes**2).sum(1), ((genes - np.array(SIZES) + 1) ** 2).sum(1)], 1).astype(float)


def every() -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(s) for s in SIZES], indexing="ij"), -1).reshape(-1, len(SIZES))


@pytest.mark.parametrize("algorithm", ["nsga2", "u-nsga3"])
def test_it_finds_the_front_within_bounds_and_repeats_itself(algorithm: Any) -> None:
    np.random.seed(5)
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    asked = []

    def told(genes: np.ndarray) -> np.ndarray:
        asked.append(len(genes))
        return two(genes)

    settings: Any = {"population": 10, "evaluations": 400, "seed": 3, "algorithm": algorithm}
    genes, values = evolve(SIZES, told, mutation=0.2, **settings)
    assert sum(asked) <= 410 and np.array_equal(values, two(genes))
    assert len({tuple(g) for g in genes.tolist()}) == len(genes)
    assert (genes >= 0).all() and (genes < np.array(SIZES)).all()
    whole = two(every())
    front = {tuple(v) for v in whole[non_dominated(whole)]}
    found = {tuple(v) for v in values[non_dominated(values)]}
    assert len(front & found) >= 0.8 * len(front)
    again, _ = evolve(SIZES, two, mutation=0.2, **settings)
    other, _ = evolve(SIZES, two, mutation=0.2, **{**settings, "seed": 4})
    assert np.array_equal(again, genes) and not np.array_equal(other[:10], genes[:10])
    assert np.array_equal(np.random.get_state()[1], before)  # type: ignore[index]


def test_children_come_from_their_parents() -> None:
    parents = np.array([[0, 0, 0, 0], [3, 0, 2, 4], [0, 0, 2, 0], [3, 0, 0, 4]])
    made = offspring(SIZES, parents, two(parents), seed=1, mutation=0.0)
    assert 0 < len(made) <= 4 and (made < np.array(SIZES)).all()
    assert not {tuple(p) for p in parents.tolist()} & {tuple(m) for m in made.tolist()}, "repeats are left out"
    assert np.array_equal(made, offspring(SIZES, parents, two(parents), seed=1, mutation=0.0))


def test_three_objectives() -> None:
    def three(genes: np.ndarray) -> np.ndarray:
        return np.concatenate([two(genes), genes[:, :1] * 1.0], 1)

    for algorithm in ("nsga2", "u-nsga3"):
        _, values = evolve(SIZES, three, population=30, evaluations=90, seed=0, objectives=3, algorithm=algorithm)  # type: ignore[arg-type]
        assert values.shape[1] == 3
