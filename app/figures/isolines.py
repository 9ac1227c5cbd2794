"""Isolines of a matrix by marching squares, all cells at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# For each of the 16 cases of corners above the level: the sides of the cell (0 top, 1 right, 2 bottom, 3 left) that the
# line joins. The two saddles (5 and 10) have two lines.
SIDES = {
    1: ((3, 0),), 2: ((0, 1),), 3: ((3, 1),), 4: ((1, 2),), 5: ((3, 0), (1, 2)), 6: ((0, 2),), 7: ((3, 2),),
    8: ((2, 3),), 9: ((0, 2),), 10: ((0, 1), (2, 3)), 11: ((1, 2),), 12: ((3, 1),), 13: ((0, 1),), 14: ((3, 0),),
}  # fmt: skip


def isolines(z: np.ndarray, levels: Sequence[float]) -> list[np.ndarray]:
    """For each level the segments [n, 4] (column, row, column, row) along which a matrix, linear between its entries,
    has that value."""
    z = np.where(np.isfinite(z), z, np.nan)
    corners = np.stack([z[:-1, :-1], z[:-1, 1:], z[1:, 1:], z[1:, :-1]])  # clockwise from the upper left one
    low, high = corners.min(0), corners.max(0)  # NaN where a corner is missing: never crossed
    found = []
    for level in levels:
        row, column = np.nonzero((low <= level) & (high > level))
        found.append(_segments(corners[:, row, column], row, column, level))
    return found


def _segments(corners: np.ndarray, row: np.ndarray, column: np.ndarray, level: float) -> np.ndarray:
    """The segments in cells that the level crosses."""
    case = ((corners > level) * np.array([1, 2, 4, 8])[:, None]).sum(0)
    parts = []
    for number, pairs in SIDES.items():
        mine = np.flatnonzero(case == number)
        if not mine.size:
            continue
        a, b, c, d = corners[:, mine]
        for start, end in pairs:
            (x0, y0), (x1, y1) = _crossing(start, a, b, c, d, level), _crossing(end, a, b, c, d, level)
            at = column[mine], row[mine]
            parts.append(np.stack([at[0] + x0, at[1] + y0, at[0] + x1, at[1] + y1], 1))
    return np.concatenate(parts) if parts else np.empty((0, 4))


def _crossing(
    side: int, a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, level: float
) -> tuple[np.ndarray | float, np.ndarray | float]:
    """Where on a side of the unit cell the level is met."""
    if side == 0:
        return (level - a) / (b - a), 0.0
    if side == 1:
        return 1.0, (level - b) / (c - b)
    if side == 2:
        return (level - d) / (c - d), 1.0
    return 0.0, (level - a) / (d - a)
