"""The triplet loss against brute force over all triplets."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import RecipeError
from engine.methods.losses.hard_negative_isometric import HardNegativeIsometric
from engine.parts import Batch
from engine.recipe import Recipe
from engine.training.assemble import assemble, filled
from engine.training.loop import train
from engine.training.recorder import Memory, Recorder

RNG = torch.Generator().manual_seed(0)
POINTS = torch.randn(20, 3, generator=RNG, dtype=torch.float64)
LABELS = (torch.arange(20) % 4)[torch.randperm(20, generator=RNG)]
MINING = ("batch-hard", "batch-all", "semi-hard", "random")


def loss(points: Tensor, labels: Tensor = LABELS, **settings: Any) -> Tensor:
    batch = Batch({"x": points}, labels, torch.arange(len(points)))
    return HardNegativeIsometric(**settings)(points, batch)["task"]


def triplets(points: Tensor, labels: Tensor, margin: float, squared: bool = False) -> list[list[list[tuple]]]:
    """By anchor and positive: (distance to the positive, to the negative, hinge) of every triplet."""
    power = 2 if squared else 1
    found = []
    for a in range(len(points)):
        rows = []
        for p in range(len(points)):
            if p == a or labels[p] != labels[a]:
                continue
            near = float((points[a] - points[p]).norm()) ** power
            far = [float((points[a] - points[n]).norm()) ** power for n in range(len(points)) if labels[n] != labels[a]]
            rows.append([(near, f, max(0.0, margin + near - f)) for f in far])
        found.append(rows)
    return found


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("margin", [0.3, 2.0])
def test_each_mining_is_what_its_name_says(margin: float, squared: bool) -> None:
    all_of = triplets(POINTS, LABELS, margin, squared)
    assert all(all_of), "every anchor has a positive"
    hard = mean([max(t[2] for row in rows for t in row) for rows in all_of])
    whole = mean([t[2] for rows in all_of for row in rows for t in row])
    semi = []
    for row in (row for rows in all_of for row in rows):
        farther = [t for t in row if t[1] > t[0]]
        semi += [min(farther, key=lambda t: t[1])[2]] if farther else []
    for mining, expected in (("batch-hard", hard), ("batch-all", whole), ("semi-hard", mean(semi))):
        found = loss(POINTS, margin=margin, squared=squared, mining=mining)
        assert float(found) == pytest.approx(expected, abs=1e-9), mining


def test_random_mining_draws_every_triplet_of_an_anchor_alike() -> None:
    expected = mean([mean([t[2] for row in rows for t in row]) for rows in triplets(POINTS, LABELS, 1.0)])
    torch.manual_seed(0)
    draws = torch.stack([loss(POINTS, mining="random") for _ in range(3000)])
    assert float(draws.mean()) == pytest.approx(expected, abs=4 * float(draws.std()) / 3000**0.5)
    assert float(draws.std()) > 0


@pytest.mark.parametrize("mining", MINING)
def test_it_is_zero_where_every_triplet_meets_the_margin_and_only_there(mining: str) -> None:
    corners = torch.eye(4, dtype=torch.float64)[LABELS] * 10 + 0.01 * POINTS[:, :1]
    assert float(loss(corners, mining=mining)) == 0.0
    assert float(loss(POINTS, mining=mining)) > 0.0


@pytest.mark.parametrize("mining", ["batch-hard", "batch-all", "random"])
def test_a_collapsed_embedding_costs_the_margin_and_has_a_finite_gradient(mining: str) -> None:
    points = (3.7 + torch.zeros(20, 3)).requires_grad_()
    found = loss(points, mining=mining, margin=0.8)
    assert float(found.detach()) == pytest.approx(0.8, abs=1e-6)
    (grad,) = torch.autograd.grad(found, points)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("mining", ["batch-hard", "batch-all", "semi-hard"])
def test_rigid_motions_change_nothing(mining: str) -> None:
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=RNG, dtype=torch.float64))
    moved = POINTS @ turn + torch.tensor([5.0, -3.0, 8.0], dtype=torch.float64)
    torch.testing.assert_close(loss(moved, mining=mining), loss(POINTS, mining=mining), rtol=1e-10, atol=1e-10)
    assert abs(float(loss(2 * POINTS, mining=mining) - loss(POINTS, mining=mining))) > 1e-3


@pytest.mark.parametrize("mining", MINING)
def test_anchors_without_a_triplet_do_not_count(mining: str) -> None:
    labels = torch.tensor([0, 0, 1])
    points = POINTS[:3].clone().requires_grad_()
    found = loss(points, labels, mining=mining, margin=10.0)
    near = (points[0] - points[1]).norm().detach()
    expected = mean([10 + float(near - (points[a] - points[2]).norm().detach()) for a in (0, 1)])
    if mining == "semi-hard":
        assert torch.isfinite(found)
    else:
        assert float(found.detach()) == pytest.approx(expected, abs=1e-9)
    alone = loss(points, torch.zeros(3), mining=mining)
    assert float(alone.detach()) == 0.0
    assert torch.isfinite(torch.autograd.grad(alone, points)[0]).all()


RECIPE: dict[str, Any] = {
    "task": {"use": "digit-retrieval", "dimensions": 8, "train_limit": 300},
    "model": {"use": "mlp", "hidden": [32]},
    "optimizer": {"use": "adamw", "lr": 0.003},
    "loss": {"use": "hard-negative-isometric"},
    "sampler": {"use": "p-by-k", "each": 4},
    "training": {"batch_size": 32, "evaluate_every": 0, "threads": 1},
    "budget": {"steps": 60},
}


def test_it_teaches_neighbours_and_is_not_split() -> None:
    sink = Memory()
    outcome = train(filled(Recipe.of(RECIPE)), sink)
    assert outcome.metrics["test/recall@1"] > 0.75
    losses = sink.points["train/loss"][1]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10]) and "test/loss" not in outcome.metrics
    with pytest.raises(RecipeError, match="hard-negative-isometric couples the samples"):
        train(filled(Recipe.of({**RECIPE, "training": {"batch_size": 32, "accumulate": 4}})))


def test_it_takes_embeddings_and_embeddings_take_a_loss() -> None:
    with pytest.raises(RecipeError, match="it takes embedding, but the task offers classes"):
        assemble(filled(Recipe.of({**RECIPE, "task": {"use": "digits"}})), Recorder(Memory()))
    bare = {name: value for name, value in RECIPE.items() if name != "loss"}
    with pytest.raises(RecipeError, match=r"digit-retrieval has no objective of its own; write \[loss\] with hard-neg"):
        assemble(filled(Recipe.of(bare)), Recorder(Memory()))
