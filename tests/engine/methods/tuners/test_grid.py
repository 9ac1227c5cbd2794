import itertools

import pytest

from engine.methods.tuners.grid import Grid
from engine.parts import Ask

SPACE = {"optimizer.lr": [0.1, 0.2], "model.hidden": [[8], [8, 8], []], "seed": [0, 1]}


def test_every_combination_comes_once_in_the_order_of_nested_loops():
    grid = Grid(SPACE)
    assert grid.total() == 12
    asks = [ask for _ in range(4) for ask in grid.ask(5)]
    expected = [dict(zip(SPACE, values, strict=True)) for values in itertools.product(*SPACE.values())]
    assert [ask.changes for ask in asks] == expected
    assert [ask.id for ask in asks] == [str(number) for number in range(12)]
    assert grid.ask(5) == []


def test_the_place_in_the_grid_is_plain_state():
    first, second = Grid(SPACE), Grid(SPACE)
    first.ask(7)
    second.asked = first.asked
    assert second.ask(1) == first.ask(1) == [Ask("7", {"optimizer.lr": 0.2, "model.hidden": [8], "seed": 1})]


def test_a_range_needs_another_search():
    with pytest.raises(ValueError, match=r"'optimizer\.lr' is a range; this search needs a list"):
        Grid({"optimizer.lr": {"low": 0.1, "high": 1.0}})
    with pytest.raises(ValueError, match=r"give a list of values\.$"):
        Grid({"optimizer.lr": 0.1})
