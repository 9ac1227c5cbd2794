"""Tours through points: their length, good ones and the best one, and how a policy builds them point by point.

A tour is the order of the points, a row of indices; it returns to where it began. Points are [B, n, 2]; several tours
of the same points are [B, S, n].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from engine.parts import Batch
    from engine.training.run import Run

EXACT = 12  # points up to which the best tour is found by dynamic programming


def distances(points: Tensor) -> Tensor:
    """Euclidean distances [B, n, n]."""
    return (points.unsqueeze(2) - points.unsqueeze(1)).square().sum(-1).sqrt()


def tour_length(points: Tensor, tours: Tensor) -> Tensor:
    """The length of tours [B, n] or [B, S, n], closed, in the shape of what is before their last axis."""
    rows = tours.reshape(len(tours), -1)
    walk = points.gather(1, rows.unsqueeze(-1).expand(-1, -1, points.shape[-1])).view(*tours.shape, -1)
    return (walk - walk.roll(-1, dims=-2)).square().sum(-1).sqrt().sum(-1)


def is_tour(tours: Tensor) -> Tensor:
    """Whether each row takes every point once."""
    expected = torch.arange(tours.shape[-1], device=tours.device)
    return (tours.sort(-1).values == expected).all(-1)


def closest(points: Tensor, tours: Tensor) -> Tensor:
    """The shortest of several tours [B, S, n] of each instance: [B, n]."""
    best = tour_length(points, tours).argmin(1)
    return tours.gather(1, best.view(-1, 1, 1).expand(-1, 1, tours.shape[-1])).squeeze(1)


def nearest_neighbour(points: Tensor, starts: Tensor) -> Tensor:
    """Tours [B, S, n] that go on to the nearest point not yet visited, from each of the starts [B, S]."""
    between = distances(points)
    current, tours = starts, [starts]
    taken = torch.zeros(*starts.shape, points.shape[1], dtype=torch.bool, device=points.device)
    for _ in range(points.shape[1] - 1):
        taken = taken.scatter(2, current.unsqueeze(-1), True)
        rows = between.gather(1, current.unsqueeze(-1).expand(-1, -1, points.shape[1]))
        current = rows.masked_fill(taken, torch.inf).argmin(-1)
        tours.append(current)
    return torch.stack(tours, -1)


def every_start(batch: int, n: int, device: torch.device, count: int = 0) -> Tensor:
    """The first `count` points (0: all) as starts [B, S]."""
    return torch.arange(count or n, device=device).expand(batch, -1)


def held_karp(points: Tensor) -> Tensor:
    """The shortest tours [B, n], by dynamic programming over subsets: exact, for at most 12 points.

    D(S, j): the shortest way from point 0 through all of S that ends in j, a member of S.
    """
    batch, n = points.shape[:2]
    if not 1 <= n <= EXACT:
        raise ValueError(f"The best tour is found for at most {EXACT} points; there are {n}.")
    if n <= 3:
        return torch.arange(n, device=points.device).expand(batch, -1).clone()
    between, m = distances(points.double()), n - 1
    inner, first = between[:, 1:, 1:], between[:, 0, 1:]
    subsets = torch.arange(1 << m, device=points.device)
    member = (subsets.unsqueeze(1) >> torch.arange(m, device=points.device)) & 1 == 1  # [2^m, m]
    sizes = member.sum(1)
    cost = torch.full((batch, 1 << m, m), torch.inf, dtype=between.dtype, device=points.device)
    before = torch.zeros(batch, 1 << m, m, dtype=torch.long, device=points.device)
    for j in range(m):
        cost[:, 1 << j, j] = first[:, j]
    for size in range(2, m + 1):
        for j in range(m):
            sets = subsets[(sizes == size) & member[:, j]]
            ways = cost[:, sets - (1 << j)] + inner[:, :, j].unsqueeze(1)
            cost[:, sets, j], before[:, sets, j] = ways.min(-1)
    rows = torch.arange(batch, device=points.device)
    at = (cost[:, -1] + first).argmin(-1)
    left = torch.full_like(at, (1 << m) - 1)
    tour = [at]
    for _ in range(m - 1):
        left, at = left - (1 << at), before[rows, left, at]
        tour.append(at)
    return torch.cat([torch.zeros(batch, 1, dtype=torch.long, device=points.device), torch.stack(tour, 1) + 1], 1)


def two_opt(points: Tensor, tours: Tensor) -> Tensor:
    """Tours [B, n] after the best exchange of two edges, again and again, until none shortens any."""
    n = tours.shape[1]
    if n < 4:
        return tours
    between, tours = distances(points.double()), tours.clone()
    i, j = torch.triu_indices(n, n, 2, device=tours.device)
    keep = ~((i == 0) & (j == n - 1))
    i, j = i[keep], j[keep]
    rows = torch.arange(len(tours), device=tours.device).unsqueeze(1)
    place = torch.arange(n, device=tours.device)
    while True:
        a, b = tours[:, i], tours[:, i + 1]
        c, d = tours[:, j], tours[:, (j + 1) % n]
        gain = between[rows, a, b] + between[rows, c, d] - between[rows, a, c] - between[rows, b, d]
        most, which = gain.max(1)
        if not bool((most > 1e-10).any()):
            return tours
        low, high = (i[which] + 1).unsqueeze(1), j[which].unsqueeze(1)
        inside = (place >= low) & (place <= high) & (most > 1e-10).unsqueeze(1)
        tours = tours.gather(1, torch.where(inside, low + high - place, place))


def reference_tours(points: Tensor) -> Tensor:
    """The best tours [B, n] that are to be had here: exact up to 12 points, else nearest neighbour and 2-opt."""
    if points.shape[1] <= EXACT:
        return torch.cat([held_karp(part) for part in points.split(128)])
    starts = every_start(len(points), points.shape[1], points.device)
    return two_opt(points, closest(points, nearest_neighbour(points, starts)))


def dihedral(points: Tensor) -> Tensor:
    """The unit square's eight mirror images and quarter turns of the points: [8, B, n, 2]. The first is as it was."""
    x, y = points.unbind(-1)
    pairs = [(x, y), (1 - x, y), (x, 1 - y), (1 - x, 1 - y), (y, x), (1 - y, x), (y, 1 - x), (1 - y, 1 - x)]
    return torch.stack([torch.stack(pair, -1) for pair in pairs])


# -- building a tour ---------------------------------------------------------------------------------------------------


@dataclass
class Partial:
    """Tours under way, [B, S]: where each began and is now (None before its first point), and what it has visited."""

    visited: Tensor  # [B, S, n]
    first: Tensor | None = None
    last: Tensor | None = None

    @classmethod
    def none(cls, batch: int, rollouts: int, n: int, device: torch.device) -> Partial:
        return cls(torch.zeros(batch, rollouts, n, dtype=torch.bool, device=device))

    def go(self, to: Tensor) -> Partial:
        """The tours with one more point [B, S]."""
        visited = self.visited.scatter(2, to.unsqueeze(-1), True)
        return Partial(visited, to if self.first is None else self.first, to)


class TourPolicy(Protocol):
    """A model that builds tours: it reads the points once, and then says at each step how it likes each next one."""

    def encode(self, points: Tensor) -> Any:
        """What every step needs of the points [B, n, 2]."""
        ...

    def scores(self, encoded: Any, partial: Partial) -> Tensor:
        """A logit for each point [B, S, n], -inf for those that were visited."""
        ...


def builds_tours(module: Any) -> bool:
    """Whether a module is such a policy."""
    return callable(getattr(module, "encode", None)) and callable(getattr(module, "scores", None))


@dataclass
class Rollout:
    """Tours [B, S, n], and the log-probability [B, S] of all choices that were free."""

    tours: Tensor
    log_prob: Tensor


Choose = Callable[[Tensor], Tensor]


def greedy(scores: Tensor) -> Tensor:
    """The likeliest point."""
    return scores.argmax(-1)


def sampler(rng: torch.Generator, temperature: float = 1.0) -> Choose:
    """Draws the next point as the policy likes it; a temperature below 1 makes it surer than it is."""

    def draw(scores: Tensor) -> Tensor:
        rows = (scores / temperature).softmax(-1).flatten(0, -2)
        return torch.multinomial(rows, 1, generator=rng).view(scores.shape[:-1])

    return draw


def roll_out(
    policy: TourPolicy, points: Tensor, choose: Choose, starts: Tensor | None = None, rollouts: int = 1
) -> Rollout:
    """Builds whole tours. From given `starts` [B, S] the first point is no choice and not part of the probability;
    without, the policy chooses it too, for each of the `rollouts`."""
    batch, n = points.shape[:2]
    encoded = policy.encode(points)
    partial = Partial.none(batch, rollouts if starts is None else starts.shape[1], n, points.device)
    steps, logs = [], []
    if starts is not None:
        partial = partial.go(starts)
        steps.append(starts)
    while len(steps) < n:
        scores = policy.scores(encoded, partial)
        chosen = choose(scores.detach())
        logs.append(scores.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1))
        partial = partial.go(chosen)
        steps.append(chosen)
    tours = torch.stack(steps, -1)
    total = torch.stack(logs).sum(0) if logs else torch.zeros(tours.shape[:2], device=points.device)
    return Rollout(tours, total)


def best_answers(run: Run, batch: Batch, choose: Choose, starts: Tensor, augment: bool) -> Tensor:
    """The shortest of a run's tours [B, n] from given starts [B, S], and in eight symmetric pictures of the points
    where `augment` asks for them; every tour counts as a call of the model."""
    found = []
    for view in dihedral(batch.x)[: 8 if augment else 1]:
        run.calls += starts.numel()
        with run.autocast():
            found.append(roll_out(run.model, view, choose, starts).tours)  # type: ignore[arg-type]
    return closest(batch.x, torch.cat(found, 1))
