"""The model and its proposals by definition, and the paper's function with noise that falls with the budget."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from engine.kit.densities import rank_correlation
from engine.methods.tuners.bohb_joint_nas import BohbJointNas
from engine.methods.tuners.hyperband import Hyperband
from engine.methods.tuners.random import Random
from engine.parts import Ask, Search, minimize

SPACE = {
    "model": [{"use": "mlp"}, {"use": "cnn"}],
    "depth": {"low": 1, "high": 4, "whole": True},
    "lr": {"low": 1e-4, "high": 1.0, "log": True},
    "kernel": {"values": [3, 5, 7], "when": {"model.use": ["cnn"]}},
}


def toy(ask: Ask) -> float:
    """Lowest with a convolutional network of depth 3 at lr = 0.01."""
    value = (math.log10(ask.changes["lr"]) + 2) ** 2 + abs(ask.changes["depth"] - 3)
    return value + (2.0 if ask.changes["model"]["use"] == "mlp" else abs(ask.changes["kernel"] - 5) / 4)


def test_with_chance_alone_it_is_hyperband() -> None:
    for seed in range(3):
        ours = minimize(BohbJointNas(SPACE, brackets=8, random_fraction=1.0), toy, seed)
        assert ours == minimize(Hyperband(SPACE, brackets=8), toy, seed)
        assert ours != minimize(BohbJointNas(SPACE, brackets=8), toy, seed)


def test_the_model_is_that_of_the_largest_budget_with_enough_runs() -> None:
    """d = 4: 5 good and 5 bad ones at least."""
    search = BohbJointNas(SPACE, brackets=2)
    asked: list[Ask] = []

    def seen(ask: Ask) -> float:
        counts = {share: sum(a.budget == share for a in asked) for share in {a.budget for a in asked}}
        enough = [share for share, count in counts.items() if count >= 10]
        found = search.model()
        assert (found is None) == (not enough)
        if found is not None:
            told = [a for a in asked if a.budget == max(enough)]
            ranked = sorted(told, key=lambda a: (toy(a), int(a.id)))
            good, bad = (len(kernel.points) for kernel in found)
            assert good == max(5, math.floor(0.15 * len(told)))
            assert bad == min(max(5, math.floor(0.85 * len(told))), len(told) - good)
            depths = [(a.changes["depth"] - 0.5) / 4 for a in ranked]
            order = [axis.path for axis in search._axes]
            assert found[0].points[:, order.index("depth")].tolist() == pytest.approx(depths[:good])
            assert found[1].points[:, order.index("depth")].tolist() == pytest.approx(depths[good : good + bad])
            models = [float(a.changes["model"]["use"] == "cnn") for a in ranked]
            assert found[0].points[:, order.index("model")].tolist() == models[:good]
        asked.append(ask)
        return toy(ask)

    minimize(search, seen)
    assert len(asked) == 40 + 17


def test_failed_runs_lie_on_the_bad_side_and_make_no_model_alone() -> None:
    search = BohbJointNas({"x": {"low": 0.0, "high": 1.0}}, brackets=1, random_fraction=1.0)
    minimize(search, lambda ask: math.inf if ask.changes["x"] > 0.3 else ask.changes["x"])
    good, bad = search.model() or pytest.fail("there are enough runs")
    assert float(good.points.max()) <= 0.3 < float(bad.points.max())
    search = BohbJointNas({"x": {"low": 0.0, "high": 1.0}}, brackets=1, random_fraction=1.0)
    minimize(search, lambda ask: math.inf)
    assert search.model() is None


def test_a_proposal_has_the_highest_ratio_of_the_candidates_drawn_around_good_ones() -> None:
    search = BohbJointNas(SPACE, brackets=1, random_fraction=0.0)
    minimize(search, toy)
    proposed = [search.propose() for _ in range(40)]
    for changes in proposed:
        assert ("kernel" in changes) == (changes["model"]["use"] == "cnn"), "what does not count is left out"
        assert changes["depth"] in (1, 2, 3, 4) and 1e-4 <= changes["lr"] <= 1.0
    values = [toy(Ask("", changes)) for changes in proposed]
    drawn = [toy(ask) for ask, _ in minimize(Random(SPACE, trials=200), toy)]
    assert statistics.median(values) < 0.5 * statistics.median(drawn)
    # By hand: the same draws, and the best ratio by plain sums over the kernels.
    state = search.own.get_state()
    chosen = search.propose()
    search.own.set_state(state)
    torch.rand((), dtype=torch.float64, generator=search.own)
    good, bad = search.model() or pytest.fail("there is a model")
    centres = good.points[torch.randint(len(good.points), (64,), generator=search.own)]
    drawn_points = list(good.near(centres, 3.0, search.own))
    ratios = [plain(good, x) / max(plain(bad, x), 1e-32) for x in drawn_points]
    assert search._changes(drawn_points[ratios.index(max(ratios))]) == chosen


def plain(kernel, x) -> float:
    """The density at one point, a sum of products."""
    total = 0.0
    for point in kernel.points.tolist():
        product = 1.0
        for value, centre, h, k in zip(x.tolist(), point, kernel.bandwidth.tolist(), kernel.levels, strict=True):
            if k:
                product *= 1 - h if value == centre else h / (k - 1)
            else:
                product *= math.exp(-0.5 * ((value - centre) / h) ** 2) / (h * math.sqrt(2 * math.pi))
        total += product
    return max(total / len(kernel.points), 1e-32)


# -- counting ones -----------------------------------------------------------------------------------------------------

ONES = 4
COUNTING = {f"c{i}": [0, 1] for i in range(ONES)} | {f"x{i}": {"low": 0.0, "high": 1.0} for i in range(ONES)}


def truth(changes: dict[str, float]) -> float:
    """What is missing to all ones: the regret."""
    return 2 * ONES - sum(changes.values())


class Counting:
    """Categories count as they are, a number p as the mean of draws that are 1 with probability p: 243 of them at the
    whole budget, fewer at a share. Stops after as much as `limit` whole evaluations."""

    def __init__(self, seed: int, limit: float):
        self.rng = torch.Generator().manual_seed(1000 + seed)
        self.spent, self.limit = 0.0, limit
        self.best: tuple[float, float] = (math.inf, 0.0)

    def __call__(self, ask: Ask) -> float:
        draws = max(round(243 * ask.budget), 1)
        p = torch.tensor([ask.changes[f"x{i}"] for i in range(ONES)], dtype=torch.float64)
        mean = torch.bernoulli(p.expand(draws, ONES), generator=self.rng).mean(0).sum()
        value = 2 * ONES - sum(ask.changes[f"c{i}"] for i in range(ONES)) - float(mean)
        if self.spent + ask.budget <= self.limit:
            self.spent += ask.budget
            self.best = min(self.best, (value, truth(ask.changes))) if ask.budget == 1.0 else self.best
        return value


def regret(search: Search, seed: int, limit: float = 60.0) -> float:
    """The true regret of the configuration that looked best at the whole budget."""
    function = Counting(seed, limit)
    minimize(search, function, seed)
    assert function.spent > 0.9 * limit
    return function.best[1]


def test_on_counting_ones_it_beats_random_search_and_hyperband() -> None:
    wins = [0, 0]
    for seed in range(5):
        ours = regret(BohbJointNas(COUNTING, brackets=16), seed)
        wins[0] += ours < regret(Random(COUNTING, trials=60), seed)
        wins[1] += ours < regret(Hyperband(COUNTING, brackets=16), seed)
    assert min(wins) >= 4


def test_near_budgets_rank_more_alike_than_far_ones() -> None:
    function = Counting(0, math.inf)
    tried = [ask.changes for ask, _ in minimize(Random(COUNTING, trials=60), lambda ask: 0.0)]
    values = {share: [function(Ask("", changes, share)) for changes in tried] for share in (1 / 27, 1 / 3, 1.0)}
    assert rank_correlation(values[1 / 27], values[1.0]) < rank_correlation(values[1 / 3], values[1.0])
