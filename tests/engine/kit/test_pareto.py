"""Fronts, crowding and hypervolume against definitions and pymoo; an archive that survives a checkpoint."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from engine.kit.pareto import Archive, best, crowding, fronts, hypervolume, non_dominated
from engine.training.state import capture, restore


def drawn(n: int = 60, m: int = 2, seed: int = 0, whole: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 6, (n, m)).astype(float) if whole else rng.random((n, m))


def slow(values: np.ndarray) -> list[int]:
    beaten = [any((o <= v).all() and (o < v).any() for o in values) for v in values]
    return [i for i, b in enumerate(beaten) if not b]


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("whole", [False, True])
def test_what_is_not_dominated(m: int, whole: bool) -> None:
    for seed in range(5):
        values = drawn(m=m, seed=seed, whole=whole)
        assert non_dominated(values).tolist() == slow(values), "equal rows stand beside each other"


def test_fronts_are_those_of_pymoo() -> None:
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    values = drawn(80, 3, whole=True)
    mine = [sorted(front.tolist()) for front in fronts(values)]
    assert mine == [sorted(int(i) for i in front) for front in NonDominatedSorting().do(values)]
    assert sum(len(f) for f in fronts(values, 10)) >= 10 and len(list(fronts(values, 1))) == 1


def test_the_best_are_first_fronts_and_lonely_ones() -> None:
    values = np.array([[0, 4], [1, 3], [1.1, 2.9], [4, 0], [5, 5]], dtype=float)
    assert crowding(values[:4]).tolist() == pytest.approx([np.inf, 1.1 / 4 + 1.1 / 4, 3 / 4 + 3 / 4, np.inf])
    assert sorted(best(values, 3).tolist()) == [0, 2, 3] and best(values, 5)[-1] == 4
    assert len(best(values, 9)) == 5


def test_hypervolume_of_boxes_and_of_a_grid() -> None:
    assert hypervolume(np.array([[0.5, 0.5], [0.2, 0.8]]), [1, 1]) == pytest.approx(0.25 + 0.3 * 0.2)
    assert hypervolume(np.array([[2.0, 0.1]]), [1, 1]) == 0 == hypervolume(np.empty((0, 2)), [1, 1])
    values = np.round(drawn(12, 3) * 10)
    cells = np.stack(np.meshgrid(*[np.arange(10) + 0.5] * 3, indexing="ij"), -1).reshape(-1, 3)
    counted = sum(bool((values < cell).all(1).any()) for cell in cells)
    assert hypervolume(values, [10, 10, 10]) == pytest.approx(counted)


def test_an_archive_grows_never_shrinks_and_is_kept() -> None:
    class Holder:
        def __init__(self) -> None:
            self.archive = Archive()

    one = Holder()
    won = []
    for number, values in enumerate(drawn(30, 2)):
        one.archive.add((number, 0), values.tolist(), number // 10)
        won.append(one.archive.hypervolume([1.0, 2.0]))
    assert all(b >= a for a, b in pairwise(won)) and 0 < won[0] < won[-1] < 1
    with pytest.raises(ValueError, match="measured before"):
        one.archive.add((3, 0), [0, 0], 4)
    front = one.archive.front()
    assert [e.genes[0] for e in front] == sorted(slow(drawn(30, 2)), key=lambda i: tuple(drawn(30, 2)[i]))
    other = Holder()
    import torch

    restore(other, capture(one), torch.device("cpu"))
    assert other.archive.entries == one.archive.entries and (3, 0) in other.archive
