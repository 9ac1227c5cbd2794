"""The curve in the terminal, dot by dot."""

from __future__ import annotations

import math

from engine.commands.curve import draw


def test_a_falling_line_in_stars() -> None:
    assert draw([0, 1, 2, 3], [3, 2, 1, 0], width=4, height=4, braille=False) == [
        "3 |*",
        "  |" + " *",
        "  |" + "  *",
        "0 |" + "   *",
        "   0  3",
    ]


def test_one_braille_letter_holds_two_by_four_dots() -> None:
    # From the lower left dot to the upper right one; one letter wide and high.
    top, below = draw([0, 1], [0, 1], width=2, height=2)[:2]
    assert below.startswith("0 |") and top.startswith("1 |")
    dots = sum(bin(ord(letter) - 0x2800).count("1") for letter in (top + below) if ord(letter) >= 0x2800)
    assert dots == 8  # 2 x 4 letters' rows: one dot in each of the eight


def test_a_flat_line_and_values_that_are_no_numbers() -> None:
    lines = draw([0, 1, 2], [1.0, math.nan, 1.0], width=3, height=2, braille=False)
    assert lines[1] == "1 |***" and math.nan not in lines
    assert draw([0], [1.0]) == []
    assert draw([0, 1], [math.inf, math.nan]) == []
