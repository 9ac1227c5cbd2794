"""Distances, neighbours and violations against slow loops."""

from __future__ import annotations

import torch

from engine.kit import embedding
from engine.kit.embedding import distances, pairs_of, recall_at_1, worst_violation

RNG = torch.Generator().manual_seed(0)
POINTS = torch.randn(30, 3, generator=RNG, dtype=torch.float64)
LABELS = torch.randint(0, 4, (30,), generator=RNG)


def test_distances_are_exact_where_points_coincide_and_their_gradient_is_finite() -> None:
    points = (1e6 + torch.zeros(4, 3)).requires_grad_()
    apart = distances(points)
    assert torch.equal(apart, torch.zeros(4, 4))
    (grad,) = torch.autograd.grad(apart.sum(), points)
    assert torch.equal(grad, torch.zeros(4, 3))
    expected = torch.stack([torch.stack([(a - b).norm() for b in POINTS]) for a in POINTS])
    torch.testing.assert_close(distances(POINTS), expected, rtol=1e-12, atol=1e-12)


def test_pairs() -> None:
    same, other = pairs_of(LABELS)
    for i in range(30):
        for j in range(30):
            assert same[i, j] == (i != j and LABELS[i] == LABELS[j]) and other[i, j] == (LABELS[i] != LABELS[j])


def test_recall_is_the_share_of_right_neighbours_whatever_the_chunks(monkeypatch) -> None:
    hits = 0
    for i in range(30):
        order = sorted((float((POINTS[i] - POINTS[j]).norm()), j) for j in range(30) if j != i)
        hits += int(LABELS[order[0][1]] == LABELS[i])
    assert 0 < hits < 30
    for rows in (7, 512):
        monkeypatch.setattr(embedding, "ROWS", rows)
        assert float(recall_at_1(POINTS, LABELS)) == hits / 30


def test_the_worst_violation_is_the_worst_of_all_triplets() -> None:
    def slow(points: torch.Tensor, labels: torch.Tensor, margin: float) -> float:
        worst = 0.0
        for a in range(len(points)):
            for p in range(len(points)):
                for n in range(len(points)):
                    if p != a and labels[p] == labels[a] and labels[n] != labels[a]:
                        gap = (points[a] - points[p]).norm() - (points[a] - points[n]).norm()
                        worst = max(worst, margin + float(gap))
        return worst

    apart = distances(POINTS)
    assert abs(float(worst_violation(apart, *pairs_of(LABELS), 0.7)) - slow(POINTS, LABELS, 0.7)) < 1e-12
    spread = POINTS + 1000 * LABELS.unsqueeze(1)
    assert float(worst_violation(distances(spread), *pairs_of(LABELS), 0.7)) == 0.0
    assert float(worst_violation(apart, *pairs_of(torch.zeros(30)), 0.7)) == 0.0, "no triplet, no violation"


def test_half_the_violation_is_a_bound_on_the_distance_to_every_embedding_that_meets_the_margins() -> None:
    bound = float(worst_violation(distances(POINTS), *pairs_of(LABELS), 1.0)) / 2
    met = 0
    for seed in range(200):
        rng = torch.Generator().manual_seed(seed)
        scale = 10 ** (2 * torch.rand(1, generator=rng, dtype=torch.float64) - 1)
        corners = torch.eye(4, dtype=torch.float64)[LABELS] * scale * 3
        ideal = corners + scale * 0.3 * torch.rand(30, 4, generator=rng, dtype=torch.float64)
        if float(worst_violation(distances(ideal), *pairs_of(LABELS), 1.0)) > 0:
            continue
        met += 1
        assert float((distances(POINTS) - distances(ideal)).abs().max()) >= bound - 1e-9
    assert met > 50
