"""Brackets, promotions and budgets, by arithmetic."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from engine.methods.tuners.hyperband import Hyperband
from engine.parts import Ask, Report, minimize

SPACE = {"x": {"low": 0.0, "high": 1.0}}


def rungs_of(search: Hyperband, brackets: int) -> list[list[list[tuple[Ask, float]]]]:
    """What was asked and came out, by bracket and rung, on a function that ranks as x does."""
    asked = iter(minimize(search, lambda ask: ask.changes["x"] + 1 / ask.budget))
    return [[[next(asked) for _ in range(size)] for size in search.sizes(b)] for b in range(brackets)]


def test_bracket_sizes_are_the_papers() -> None:
    search = Hyperband(SPACE, brackets=8)
    assert [search.sizes(b) for b in range(8)] == 2 * [[27, 9, 3, 1], [12, 4, 1], [6, 2], [4]]
    floor = Hyperband(SPACE, bracket_rounding="floor")
    assert [floor.sizes(b) for b in range(4)] == [[27, 9, 3, 1], [9, 3, 1], [6, 2], [4]]
    assert [Hyperband(SPACE, eta=2, budgets=3).sizes(b) for b in range(3)] == [[4, 2, 1], [3, 1], [3]]
    assert [Hyperband(SPACE, budgets=1).sizes(b) for b in range(2)] == [[1], [1]]


@pytest.mark.parametrize("rounding", ["ceil", "floor"])
def test_the_epochs_that_it_spends_match_the_formula(rounding: str) -> None:
    """With the budgets 1, 3, 9 and 27 epochs."""
    search = Hyperband(SPACE, bracket_rounding=rounding)
    told = minimize(search, lambda ask: 0.0)
    spent = sum(27 * ask.budget for ask, _ in told)
    expected = 0.0
    for s in (3, 2, 1, 0):
        first = 4 / (s + 1) * 3**s
        first = math.ceil(first) if rounding == "ceil" else (4 // (s + 1)) * 3**s
        expected += sum(first // 3**i * 27 * 3.0 ** (i - s) for i in range(s + 1))
    assert spent == pytest.approx(expected, rel=1e-12) and len(told) == search.total()


def test_exactly_the_best_are_promoted_with_a_larger_budget() -> None:
    for bracket, rungs in enumerate(rungs_of(Hyperband(SPACE), 4)):
        for level, (rung, following) in enumerate(itertools.pairwise(rungs)):
            best = sorted(rung, key=lambda told: told[1])[: len(following)]
            assert [ask.changes for ask, _ in following] == [ask.changes for ask, _ in best]
            assert {ask.budget for ask, _ in rung} == {3.0 ** (level + bracket - 3)}
            assert all(ask.resume is None for ask, _ in following)
        assert {ask.budget for ask, _ in rungs[-1]} == {1.0}


def test_going_on_names_the_ask_to_go_on_from() -> None:
    search = Hyperband(SPACE, go_on=True)
    assert search.spans == "whole" and Hyperband(SPACE).spans == "share"
    seen: dict[str, Ask] = {}
    for rungs in rungs_of(search, 4):
        for number, rung in enumerate(rungs):
            for ask, _ in rung:
                assert (ask.resume is None) == (number == 0)
                if ask.resume is not None:
                    assert seen[ask.resume].changes == ask.changes
                    assert ask.budget == pytest.approx(3 * seen[ask.resume].budget)
                seen[ask.id] = ask


def test_a_rung_waits_for_all_of_the_one_before_and_failures_are_the_worst() -> None:
    search = Hyperband(SPACE, eta=2, budgets=2, brackets=1)
    search.start(torch.Generator().manual_seed(0))
    first = search.ask(10)
    assert len(first) == 2 and search.ask(10) == []
    search.tell(Report(first[0].id, math.nan))
    assert search.ask(10) == []
    search.tell(Report(first[1].id, 1e9))
    (second,) = search.ask(10)
    assert second.changes == first[1].changes and search.ask(1) == []
    search.tell(Report(second.id, math.inf))
    assert search.ask(1) == [], "the last bracket has ended"


def test_the_rank_correlation_between_budgets_is_shown() -> None:
    """The smallest budget ranks by noise, the others by x."""
    rng = torch.Generator().manual_seed(0)

    def value(ask: Ask) -> float:
        noise = float(torch.rand((), generator=rng))
        return noise if ask.budget < 0.04 else ask.changes["x"]

    search = Hyperband(SPACE, brackets=4)
    minimize(search, value, seed=1)
    found = search.result()
    assert found.scalars["rank correlation/0.111 and 0.333"] == pytest.approx(1.0)
    assert abs(found.scalars["rank correlation/0.037 and 0.111"]) < 0.9
    z = found.figures["rank-correlation"]["z"]
    assert [z[i][i] for i in range(4)] == pytest.approx([1.0] * 4) and z[1][2] == z[2][1] == pytest.approx(1.0)
