"""The ranges of learned values: maps from free numbers against closed forms, and sentences for what is no range."""

from __future__ import annotations

import math

import pytest
import torch

from engine.kit.live import Bound, along, bounds

RANGES = [Bound(0.0, 0.9), Bound(-2.0, 3.0), Bound(1e-4, 10.0, True), Bound(0.0), Bound(0.5)]


@pytest.mark.parametrize("bound", RANGES)
def test_a_free_number_stands_for_one_value(bound: Bound) -> None:
    top = bound.high if math.isfinite(bound.high) else bound.low + 20
    for share in (0.01, 0.3, 0.7, 0.99):
        value = bound.low + share * (top - bound.low)
        assert float(bound.value(torch.tensor(bound.free(value), dtype=torch.float64))) == pytest.approx(
            value, rel=1e-9
        )


@pytest.mark.parametrize("bound", RANGES)
def test_values_rise_and_stay_in_their_range(bound: Bound) -> None:
    free = torch.linspace(-12, 12, 400, dtype=torch.float64)
    values = bound.value(free)
    assert (values.diff() > 0).all() and values.min() >= bound.low and values.max() <= bound.high


def test_the_closed_forms() -> None:
    u = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    assert torch.allclose(Bound(1.0, 5.0).value(u), 1 + 4 / (1 + (-u).exp()), rtol=1e-12)
    assert torch.allclose(Bound(0.01, 100.0, True).value(u).log10(), -2 + 4 / (1 + (-u).exp()), rtol=1e-12)
    assert torch.allclose(Bound(2.0).value(u), 2 + (1 + u.exp()).log(), rtol=1e-12)


def test_a_start_at_the_end_of_a_range_can_still_move() -> None:
    for bound, end in (
        (Bound(0.0, 0.5), 0.0),
        (Bound(0.0, 0.5), 0.5),
        (Bound(1e-3, 1.0, True), 1e-3),
        (Bound(0.0), 0.0),
    ):
        free = torch.tensor(bound.free(end), dtype=torch.float64, requires_grad=True)
        value = bound.value(free)
        value.backward()
        assert float(value.detach()) == pytest.approx(end, abs=1e-3) and free.grad is not None and free.grad > 1e-7
        assert end in bound and 2.0 not in Bound(0.0, 0.5)


def test_ranges_are_read_or_refused_in_a_sentence() -> None:
    read = bounds({"a.b": {"low": 0, "high": 2}, "c": {"low": 1e-3, "high": 1, "log": True}, "d": {"low": 0}})
    assert read == {"a.b": Bound(0.0, 2.0), "c": Bound(1e-3, 1.0, True), "d": Bound(0.0)}
    for wrong, words in (
        ([0, 1], "give its range"),
        ({"low": 0, "high": 1, "whole": True}, "give its range"),
        ({"low": "a"}, "must be a number"),
        ({"low": 2, "high": 1}, "low must be below high"),
        ({"low": 0, "high": 1, "log": True}, "two ends greater than 0"),
        ({"low": 1, "log": True}, "two ends greater than 0"),
        ({"low": 0, "high": 1, "log": 1}, "true or false"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            bounds({"here": wrong})
        assert "'here'" in str(caught.value) and str(caught.value).endswith(".")


def test_one_value_a_sample_acts_on_its_row() -> None:
    x = torch.ones(3, 2, 4)
    scaled = along(torch.tensor([1.0, 2.0, 3.0]), x) * x
    assert torch.equal(scaled[:, 1, 2], torch.tensor([1.0, 2.0, 3.0]))
    assert along(0.5, x) == 0.5 and along(torch.tensor(0.5), x).dim() == 0  # type: ignore[union-attr]
