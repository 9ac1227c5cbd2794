import math

import pytest
import torch

from engine.kit.spaces import Axis, axes


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
