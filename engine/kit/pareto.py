"""Several objectives at once, all to be low: what is dominated, what is kept, and how much of the space is won."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Genes = tuple[int, ...]


def non_dominated(values: np.ndarray) -> np.ndarray:
    """Places of the rows [n, m] than which no other is as low everywhere and lower somewhere, in their order."""
    order = np.lexsort(values.T[::-1])
    kept: list[int] = []
    front = np.empty((0, values.shape[1]))
    for place in order:  # whoever dominates a row stands before it in this order
        row = values[place]
        below = (front <= row).all(1)
        if not (below & (front < row).any(1)).any():
            kept.append(int(place))
            front = np.vstack([front, row])
    return np.sort(np.array(kept, dtype=int))


def fronts(values: np.ndarray, enough: int | None = None) -> Iterator[np.ndarray]:
    """The places of the rows in fronts: the best ones, those that are best without them, and so on, until enough."""
    left = np.arange(len(values))
    given = 0
    while len(left) and (enough is None or given < enough):
        best = left[non_dominated(values[left])]
        yield best
        given += len(best)
        left = np.setdiff1d(left, best)


def crowding(values: np.ndarray) -> np.ndarray:
    """How far the neighbours of each row are apart, summed over the objectives; infinite at both ends of each."""
    n, m = values.shape
    found = np.zeros(n)
    for k in range(m):
        order = np.argsort(values[:, k], kind="stable")
        column = values[order, k]
        found[order[[0, -1]]] = np.inf
        span = column[-1] - column[0]
        if span > 0 and n > 2:
            found[order[1:-1]] += (column[2:] - column[:-2]) / span
    return found


def best(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the best rows: front by front, and within a front those whose neighbours are far."""
    chosen: list[int] = []
    for front in fronts(values, count):
        lonely = np.argsort(-crowding(values[front]), kind="stable")
        chosen += front[lonely].tolist()
    return np.array(chosen[:count], dtype=int)


def hypervolume(values: np.ndarray, reference: Sequence[float]) -> float:
    """The volume between a reference point and the rows that are below it everywhere."""
    from pymoo.indicators.hv import HV

    point = np.asarray(reference, dtype=float)
    inside = np.asarray(values, dtype=float).reshape(-1, len(point))
    inside = inside[(inside < point).all(1)]
    return float(HV(ref_point=point)(inside)) if len(inside) else 0.0


@dataclass(frozen=True)
class Entry:
    """A configuration that was measured: its genes, its objectives, and the round that it is from."""

    genes: Genes
    values: tuple[float, ...]
    round: int


@dataclass
class Archive:
    """What was measured, each configuration once, in the order of the measurements. Checkpoints hold it."""

    entries: list[Entry] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, genes: object) -> bool:
        return any(entry.genes == genes for entry in self.entries)

    def add(self, genes: Genes, values: Sequence[float], round: int) -> None:
        """Raises ValueError for what was measured before."""
        if genes in self:
            raise ValueError(f"The configuration {genes} was measured before.")
        self.entries.append(Entry(tuple(genes), tuple(float(v) for v in values), round))

    def seen(self) -> set[Genes]:
        return {entry.genes for entry in self.entries}

    def genes(self) -> np.ndarray:
        return np.array([entry.genes for entry in self.entries], dtype=int)

    def values(self) -> np.ndarray:
        return np.array([entry.values for entry in self.entries], dtype=float)

    def front(self) -> list[Entry]:
        """Those that none dominates, from the lowest first objective on."""
        if not self.entries:
            return []
        found = [self.entries[place] for place in non_dominated(self.values())]
        return sorted(found, key=lambda entry: entry.values)

    def hypervolume(self, reference: Sequence[float]) -> float:
        """The share that is won of the box from zero to the reference point."""
        whole = float(np.prod(np.asarray(reference, dtype=float)))
        return hypervolume(self.values(), reference) / whole if self.entries and whole > 0 else 0.0

    def state(self) -> dict[str, Any]:
        return {"entries": [[list(e.genes), list(e.values), e.round] for e in self.entries]}

    def load(self, state: dict[str, Any]) -> None:
        self.entries = [Entry(tuple(g), tuple(v), r) for g, v, r in state["entries"]]
