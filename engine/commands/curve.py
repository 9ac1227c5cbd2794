"""A curve in the terminal, drawn with the dots of Braille letters (or plain stars where those cannot be printed)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

BRAILLE = 0x2800
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of the dot in each of a letter's four rows and two columns."""


def draw(
    steps: Sequence[float], values: Sequence[float], *, width: int = 64, height: int = 8, braille: bool = True
) -> list[str]:
    """Lines of text with the curve, its highest and lowest value on the left and its first and last step below.

    Values that are no numbers are left out; fewer than two points make no curve, and no lines.
    """
    points = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
    if len(points) < 2:
        return []
    wide, high = (2, 4) if braille else (1, 1)
    columns, rows = width * wide, height * high
    left, right = points[0][0], points[-1][0]
    low, top = min(y for _, y in points), max(y for _, y in points)
    across = (columns - 1) / ((right - left) or 1)
    up = (rows - 1) / ((top - low) or 1)
    places = [(round((x - left) * across), rows - 1 - round((y - low) * up)) for x, y in points]
    cells = [[0] * width for _ in range(height)]
    for one, other in itertools.pairwise(places):
        for x, y in _line(one, other):
            cells[y // high][x // wide] |= DOTS[y % high][x % wide] if braille else 1
    labels = [f"{top:.4g}", *[""] * (height - 2), f"{low:.4g}"]
    margin = max(map(len, labels))
    lines = [f"{label:>{margin}} |{_letters(row, braille)}" for label, row in zip(labels, cells, strict=True)]
    first, last = f"{left:g}", f"{right:g}"
    lines.append(" " * (margin + 2) + first + last.rjust(width - len(first)))
    return [line.rstrip() for line in lines]


def _letters(row: list[int], braille: bool) -> str:
    if braille:
        return "".join(chr(BRAILLE + cell) if cell else " " for cell in row)
    return "".join("*" if cell else " " for cell in row)


def _line(one: tuple[int, int], other: tuple[int, int]) -> list[tuple[int, int]]:
    """Every dot from one place to another."""
    (x, y), (to_x, to_y) = one, other
    length = max(abs(to_x - x), abs(to_y - y), 1)
    return [(round(x + (to_x - x) * i / length), round(y + (to_y - y) * i / length)) for i in range(length + 1)]
