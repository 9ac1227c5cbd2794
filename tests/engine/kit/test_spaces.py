import math

import pytest
import torch

from engine.kit.spaces import Axis, axes, combinations, count, draw, from_unit, to_unit


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "empty"),
        ({"optimizer..lr": [1]}, "not a path"),
        ({"model": [{"use": "a"}], "model.hidden": [1]}, "holds the second"),
        ({"optimizer.lr": []}, "empty list"),
        ({"optimizer.lr": [0.1, 0.2, 0.1]}, "0.1 twice"),
        ({"optimizer.lr": 0.1}, "a list of values or a range."),
        ({"optimizer.lr": "fast"}, "'fast'"),
        ({"optimizer.lr": {"low": 0.1}}, "not a range"),
        ({"optimizer.lr": {"low": 0.1, "high": 1.0, "step": 0.1}}, "step means nothing"),
        ({"optimizer.lr": {"low": 1.0, "high": 0.1}}, "low must be below high"),
        ({"optimizer.lr": {"low": 0.0, "high": 0.1, "log": True}}, "greater than 0"),
        ({"optimizer.lr": {"low": True, "high": 2}}, "must be a number"),
        ({"optimizer.lr": {"low": 0, "high": math.inf}}, "must be a number"),
        ({"optimizer.lr": {"low": 0.5, "high": 2, "whole": True}}, "whole number"),
        ({"optimizer.lr": {"low": 0.5, "high": 2, "log": "yes"}}, "true or false"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_with_a_sentence(space, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        axes(space)


def test_one_and_true_are_different_values():
    assert axes({"a": [1, True]})[0].values == (1, True)


def test_a_range_reaches_its_ends_and_its_middle():
    assert [Axis("a", (), 2.0, 8.0).at(u) for u in (0.0, 0.5, 1.0)] == [2.0, 5.0, 8.0]
    assert [Axis("a", (), 1e-4, 1e-2, log=True).at(u) for u in (0.0, 0.5, 1.0)] == pytest.approx([1e-4, 1e-3, 1e-2])


def test_whole_numbers_are_equally_likely_and_stay_inside():
    rng = torch.Generator().manual_seed(0)
    axis = Axis("a", (), 3, 6, whole=True)
    drawn = [axis.draw(rng) for _ in range(4000)]
    assert set(drawn) == {3, 4, 5, 6} and all(isinstance(number, int) for number in drawn)
    assert all(abs(drawn.count(k) / 4000 - 0.25) < 0.03 for k in range(3, 7))


def test_a_log_range_draws_each_decade_alike():
    rng = torch.Generator().manual_seed(0)
    axis = Axis("a", (), 1e-4, 1e-1, log=True)
    decades = [math.floor(math.log10(axis.draw(rng))) for _ in range(3000)]
    assert all(abs(decades.count(d) / 3000 - 1 / 3) < 0.03 for d in (-4, -3, -2))


# -- conditions and whole parts ----------------------------------------------------------------------------------------

MOMENTUM = {"low": 0.5, "high": 0.99, "when": {"optimizer.use": ["sgd"]}}
TREE = {
    "optimizer.momentum": MOMENTUM,
    "optimizer": [{"use": "sgd"}, {"use": "adamw"}],
    "model.depth": [1, 2],
    "model.second": {"values": [8, 16, 32], "when": {"model.depth": [2]}},
    "seed": [0, 1],
}


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({**TREE, "optimizer.momentum": {"low": 0.1, "high": 0.2}}, "say with which values of the first"),
        ({"a": {"low": 0, "high": 1, "when": {"b": [1]}}}, "'b' is not varied"),
        ({"a": [1], "b": {"values": [2], "when": {"a": [3]}}}, "when 'a' is 3, which it never is: it is 1"),
        ({"a": [1], "b": {"values": [2], "when": {"a": [True]}}}, "when 'a' is True, which it never is"),
        ({"a": [1], "b": {"values": [2], "when": {"a": 1}}}, "write the values of other paths"),
        ({"a": [1], "b": {"values": [2], "when": ["a"]}}, "write the values of other paths"),
        ({"a": {"values": [1], "when": {"a": [1]}}}, "cannot depend on itself"),
        ({"a": {"values": [1], "when": {"b": [1]}}, "b": {"values": [1], "when": {"a": [1]}}}, "in a circle"),
        ({"a": {"values": [1], "low": 0}}, "beside which low means nothing"),
        ({"a": {"values": []}}, "empty list"),
    ],
)
def test_a_condition_that_cannot_be_met_is_refused_with_a_sentence(space, words):
    with pytest.raises(ValueError, match=words):
        axes(space)


def test_axes_stand_after_what_they_depend_on_and_else_in_their_order():
    paths = [axis.path for axis in axes(TREE)]
    assert paths == ["optimizer", "optimizer.momentum", "model.depth", "model.second", "seed"]


def test_an_axis_is_drawn_only_where_it_counts():
    rng = torch.Generator().manual_seed(0)
    drawn = [draw(axes(TREE), rng) for _ in range(300)]
    for changes in drawn:
        assert ("optimizer.momentum" in changes) == (changes["optimizer"]["use"] == "sgd")
        assert ("model.second" in changes) == (changes["model.depth"] == 2)
    assert {changes["model.depth"] for changes in drawn} == {1, 2}


def test_combinations_leave_out_what_does_not_count():
    lists = {path: choice for path, choice in TREE.items() if path != "optimizer.momentum"}
    found = list(combinations(axes(lists)))
    assert len(found) == count(axes(lists)) == 2 * (1 + 3) * 2
    assert len({repr(changes) for changes in found}) == len(found)
    assert count(axes(TREE)) == math.inf
    assert count(axes({"a": [1, 2], "b": {"low": 1, "high": 5, "whole": True}})) == 10


def test_the_unit_cube_and_back():
    rng = torch.Generator().manual_seed(1)
    space = axes({
        **TREE,
        "lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "width": {"low": 3, "high": 9, "whole": True},
        "batch": {"low": 4, "high": 256, "whole": True, "log": True},
    })  # fmt: skip
    for _ in range(200):
        changes = draw(space, rng)
        point = to_unit(space, changes)
        assert [math.isnan(share) for share in point] == [axis.path not in changes for axis in space]
        assert all(math.isnan(share) or 0 <= share <= 1 for share in point)
        again = from_unit(space, point)
        assert list(again) == list(changes)
        assert all(
            value == pytest.approx(changes[path]) if isinstance(value, float) else value == changes[path]
            for path, value in again.items()
        )
    uniform = [
        from_unit(space, torch.rand(len(space), generator=rng, dtype=torch.float64).tolist()) for _ in range(3000)
    ]
    widths = [changes["width"] for changes in uniform]
    assert all(abs(widths.count(k) / 3000 - 1 / 7) < 0.03 for k in range(3, 10)), "an interval for each whole number"
