"""Clusters: sums against loops, k-means against separate groups and its own cost."""

from __future__ import annotations

import torch

from engine.kit.clustering import k_means, nearest, sums


def test_sums_and_nearest_are_what_loops_give() -> None:
    torch.manual_seed(0)
    x, centres = torch.randn(30, 4), torch.randn(5, 4)
    group = nearest(x, centres)
    assert group.tolist() == [int((centres - row).square().sum(1).argmin()) for row in x]
    total, count = sums(x, group, 5)
    for k in range(5):
        torch.testing.assert_close(total[k], x[group == k].sum(0))
        assert count[k] == (group == k).sum()


def test_k_means_finds_groups_that_lie_apart_and_each_centre_is_a_mean() -> None:
    rng = torch.Generator().manual_seed(1)
    middles = torch.tensor([[0.0, 0], [9, 0], [0, 9], [9, 9], [20, 20]])
    x = middles.repeat(20, 1) + torch.rand(100, 2, generator=rng)
    centres = k_means(x, 5, rng=rng)
    group = nearest(x, centres)
    assert torch.cdist(centres, middles + 0.5).min(0).values.max() < 0.5
    torch.testing.assert_close(centres, torch.stack([x[group == k].mean(0) for k in range(5)]))


def test_rounds_never_raise_the_cost_and_the_draw_decides() -> None:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))

    def cost(rounds: int, seed: int = 0) -> float:
        centres = k_means(x, 8, rounds, torch.Generator().manual_seed(seed))
        return float((x - centres[nearest(x, centres)]).square().sum())

    costs = [cost(rounds) for rounds in (0, 1, 2, 5, 20)]
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]
    assert cost(3, 4) == cost(3, 4) != cost(3, 5)


def test_more_centres_than_rows_repeat_some() -> None:
    x = torch.tensor([[1.0, 1], [1, 1], [2, 2]])
    centres = k_means(x, 5, rng=torch.Generator().manual_seed(0))
    assert centres.shape == (5, 2) and set(map(tuple, centres.tolist())) == {(1.0, 1.0), (2.0, 2.0)}
