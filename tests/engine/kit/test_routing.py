"""Tours: lengths, the best one by brute force, nearest neighbours by hand, symmetries, and how a policy builds them."""

from __future__ import annotations

from itertools import pairwise, permutations
from math import dist

import pytest
import torch
from torch import Tensor

from engine.kit import routing
from engine.kit.routing import Partial, every_start, greedy, roll_out, sampler


def points(batch: int, n: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def length(places: list[list[float]], order: tuple[int, ...]) -> float:
    return sum(dist(places[a], places[b]) for a, b in pairwise((*order, order[0])))


def test_the_length_of_a_tour_goes_back_to_its_beginning() -> None:
    x = points(3, 6)
    tours = torch.stack([torch.randperm(6) for _ in range(12)]).view(3, 4, 6)
    found = routing.tour_length(x, tours)
    for b in range(3):
        expected = [length(x[b].tolist(), tuple(tour)) for tour in tours[b].tolist()]
        assert found[b].tolist() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(routing.tour_length(x, tours[:, 1]), found[:, 1])
    assert torch.equal(routing.closest(x, tours), tours[torch.arange(3), found.argmin(1)])
    assert routing.is_tour(torch.tensor([[0, 2, 1], [0, 1, 1]])).tolist() == [True, False]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7])
def test_the_best_tour_is_that_of_all_orders(n: int) -> None:
    x = points(6, n, n)
    best = routing.held_karp(x)
    assert routing.is_tour(best).all()
    expected = [min(length(places, (0, *rest)) for rest in permutations(range(1, n))) for places in x.tolist()]
    assert routing.tour_length(x, best).tolist() == pytest.approx(expected, rel=1e-9)


def test_twelve_points_are_the_most() -> None:
    with pytest.raises(ValueError, match="at most 12 points; there are 13"):
        routing.held_karp(points(1, 13))
    assert routing.is_tour(routing.reference_tours(points(3, 20))).all()


def test_nearest_neighbours_are_those_found_by_hand() -> None:
    x = points(4, 8)
    found = routing.nearest_neighbour(x, every_start(4, 8, x.device))
    for b, places in enumerate(x.tolist()):
        for start in range(8):
            order, left = [start], set(range(8)) - {start}
            while left:
                order.append(min(left, key=lambda j: dist(places[order[-1]], places[j])))
                left.remove(order[-1])
            assert found[b, start].tolist() == order


def test_exchanging_edges_ends_where_no_exchange_helps() -> None:
    x = points(20, 9)
    first = torch.stack([torch.randperm(9) for _ in range(20)])
    better = routing.two_opt(x, first)
    assert routing.is_tour(better).all()
    before, after = routing.tour_length(x, first), routing.tour_length(x, better)
    best = routing.tour_length(x, routing.held_karp(x))
    assert (after <= before + 1e-12).all() and (after >= best - 1e-9).all() and (after / best - 1).mean() < 0.05
    for b in range(20):
        for i in range(8):
            for j in range(i + 1, 9):
                order = better[b].tolist()
                order[i : j + 1] = order[i : j + 1][::-1]
                assert length(x[b].tolist(), tuple(order)) >= float(after[b]) - 1e-9


def test_the_eight_pictures_keep_every_distance_and_are_different() -> None:
    x = points(2, 5)
    views = routing.dihedral(x)
    assert torch.equal(views[0], x)
    for view in views:
        torch.testing.assert_close(routing.distances(view), routing.distances(x))
        assert view.min() >= 0 and view.max() <= 1
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8


class Liking:
    """A policy that likes points by fixed numbers."""

    def __init__(self, likes: Tensor):
        self.likes = likes

    def encode(self, points: Tensor) -> Tensor:
        return self.likes.expand(len(points), 1, -1)

    def scores(self, encoded: Tensor, partial: Partial) -> Tensor:
        return encoded.expand_as(partial.visited).masked_fill(partial.visited, -torch.inf)


def test_a_given_first_point_is_no_choice() -> None:
    likes = torch.tensor([0.1, 2.0, -1.0, 0.7])
    policy, x = Liking(likes), points(1, 4)
    free = roll_out(policy, x, greedy)
    assert free.tours.tolist() == [[[1, 3, 0, 2]]]
    given = roll_out(policy, x, greedy, torch.tensor([[2, 1]]))
    assert given.tours.tolist() == [[[2, 1, 3, 0], [1, 3, 0, 2]]]
    logs = [likes[left].log_softmax(0)[0] for left in ([1, 3, 0, 2], [3, 0, 2], [0, 2], [2])]
    torch.testing.assert_close(free.log_prob[0, 0], sum(logs))  # type: ignore[arg-type]
    torch.testing.assert_close(given.log_prob[0, 1], sum(logs[1:]))  # type: ignore[arg-type]


def test_draws_follow_the_policy_and_its_temperature() -> None:
    likes = torch.tensor([0.1, 2.0, -1.0, 0.7])
    for temperature in (1.0, 0.5):
        drawn = roll_out(
            Liking(likes), points(1, 4), sampler(torch.Generator().manual_seed(0), temperature), None, 8000
        )
        share = drawn.tours[0, :, 0].bincount(minlength=4) / 8000
        assert (share - (likes / temperature).softmax(0)).abs().max() < 4 * (0.25 / 8000) ** 0.5
        assert routing.is_tour(drawn.tours).all()
