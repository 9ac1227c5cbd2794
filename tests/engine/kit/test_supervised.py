"""Objective and metrics of each kind of output, splits, wrong labels, the long tail."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from engine.kit import supervised
from engine.kit.supervised import Supervised, long_tail, seeded, split_indices, symmetric_noise
from engine.parts import Batch, Offer


def task(output: str, size: int) -> Supervised:
    made = Supervised()
    made.offer = Offer("vector", (2,), output, size)
    return made


def batch(target: torch.Tensor, mask: torch.Tensor | None = None) -> Batch:
    return Batch({"x": torch.zeros(len(target), 2)}, target, torch.arange(len(target)), mask=mask)


def test_classes() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
    target = torch.tensor([0, 1])
    expected = [math.log(1 + math.exp(-2) + math.exp(-1)), math.log(2 + math.exp(3))]
    found = task("classes", 3).objective(logits, batch(target))
    torch.testing.assert_close(found["task"], torch.tensor(expected, dtype=torch.float64))
    assert task("classes", 3).metrics(logits, batch(target))["accuracy"].tolist() == [1.0, 0.0]


def test_soft_targets_equal_hard_ones_where_they_are_sure() -> None:
    logits, hard = torch.randn(5, 4), torch.tensor([0, 3, 1, 2, 3])
    soft = F.one_hot(hard, 4).float()
    made = task("classes", 4)
    torch.testing.assert_close(made.objective(logits, batch(soft))["task"], made.objective(logits, batch(hard))["task"])
    assert torch.equal(made.metrics(logits, batch(soft))["accuracy"], made.metrics(logits, batch(hard))["accuracy"])
    mixed = 0.7 * soft + 0.3 * soft.flip(0)
    expected = 0.7 * F.cross_entropy(logits, hard, reduction="none")
    expected = expected + 0.3 * F.cross_entropy(logits, hard.flip(0), reduction="none")
    torch.testing.assert_close(made.objective(logits, batch(mixed))["task"], expected)


def test_tokens_are_a_mean_over_positions_and_bits_are_base_two() -> None:
    logits, target = torch.zeros(3, 5, 8), torch.randint(8, (3, 5))
    made = task("next-token", 8)
    assert made.objective(logits, batch(target))["task"].shape == (3,)
    torch.testing.assert_close(made.metrics(logits, batch(target))["bits"], torch.full((3,), 3.0))
    logits[0, :2] = F.one_hot(target[0, :2], 8) * 9.0
    mask = torch.zeros(3, 5)
    mask[:, :2] = 1
    assert made.metrics(logits, batch(target, mask))["accuracy"][0] == 1.0
    torch.testing.assert_close(
        made.objective(logits, batch(target, mask))["task"][0],
        F.cross_entropy(logits[0, :2], target[0, :2]),
    )
    assert made.metric == ("bits", "min")


def test_values_and_explained_variance() -> None:
    made = task("values", 2)
    target, output = torch.randn(50, 2, dtype=torch.float64), torch.randn(50, 2, dtype=torch.float64)
    measured = {name: float(v.mean()) for name, v in made.metrics(output, batch(target)).items()}
    summary = made.summary(measured)
    residual, total = (target - output).square().sum(), (target - target.mean(0)).square().sum()
    assert summary["r2"] == pytest.approx(float(1 - residual / total), rel=1e-10)
    assert summary["mse"] == pytest.approx(float((target - output).square().mean()), rel=1e-10)
    assert sorted(summary) == ["mae", "mse", "r2"]
    flat = task("values", 1)
    assert flat.objective(torch.ones(4, 1), batch(torch.zeros(4)))["task"].tolist() == [1.0] * 4


def test_splits_are_disjoint_complete_stratified_and_repeatable() -> None:
    labels = torch.tensor([0] * 100 + [1] * 50)
    shares = {"test": 0.2, "val": 0.1, "outer": 0.0}
    first, second, other = (split_indices(150, labels, shares, seeded(seed)) for seed in (3, 3, 4))
    assert sorted(torch.cat(list(first.values())).tolist()) == list(range(150))
    assert {name: labels[i].bincount().tolist() for name, i in first.items()} == {
        "test": [20, 10],
        "val": [10, 5],
        "train": [70, 35],
    }
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["test"], other["test"])


def test_wrong_labels_are_exactly_so_many_and_always_wrong() -> None:
    labels = torch.arange(10).repeat(100)
    noisy = symmetric_noise(labels, 0.3, 10, seeded(0))
    changed = noisy != labels
    assert int(changed.sum()) == 300
    shift = (noisy - labels)[changed] % 10
    assert shift.bincount(minlength=10)[1:].min() > 15 and int((shift == 0).sum()) == 0
    assert torch.equal(symmetric_noise(labels, 0.0, 10, seeded(0)), labels)


def test_the_long_tail() -> None:
    labels = torch.arange(4).repeat(64)
    kept = labels[long_tail(labels, 0.5, seeded(0))]
    assert kept.bincount().tolist() == [64, 32, 16, 8]
    assert labels[long_tail(labels, 0.01, seeded(0))].bincount().tolist() == [64, 1, 1, 1]
    assert torch.equal(long_tail(labels, 1.0, seeded(0)), torch.arange(256))


def test_missing_data_say_what_to_install() -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv is missing: it comes with scikit-learn"):
        supervised.bundled("nothing.csv")
