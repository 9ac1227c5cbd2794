"""Metrics by group against plain counting."""

from __future__ import annotations

import pytest
import torch

from engine.kit.groups import by_group, group_means, of_groups

GROUP = torch.tensor([0, 0, 2, 2, 2, 0, 2, 3])
RIGHT = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
ERROR = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])


def test_metrics_of_each_group_of_the_worst_and_weighted() -> None:
    metrics = {"accuracy": RIGHT, "mae": ERROR, "_hidden": ERROR}
    parts = [by_group({n: v[cut] for n, v in metrics.items()}, GROUP[cut], 4) for cut in (slice(0, 5), slice(5, 8))]
    totals = {name: float(torch.cat([part[name] for part in parts]).double().mean()) for name in parts[0]}
    found = of_groups(totals, ("a", "b", "c", "d"), (10, 50, 30, 60))
    assert found == pytest.approx(
        {
            "accuracy/a": 2 / 3, "accuracy/c": 3 / 4, "accuracy/d": 0.0, "worst-group accuracy": 0.0,
            "weighted accuracy": (10 * 2 / 3 + 30 * 3 / 4) / 100,
            "mae/a": 3.0, "mae/c": 19 / 4, "mae/d": 8.0, "worst-group mae": 8.0,
            "weighted mae": (10 * 3 + 30 * 19 / 4 + 60 * 8) / 100,
        }
    )  # fmt: skip
    assert of_groups({}, ("a",), (1,)) == {}


def test_means_over_groups() -> None:
    values = ERROR.double().requires_grad_()
    torch.testing.assert_close(group_means(values, GROUP, 5), torch.tensor([3.0, 0, 19 / 4, 8, 0], dtype=torch.float64))
    weight = torch.tensor([1.0, 0, 2, 0, 0, 1, 2, 0]).double()
    found = group_means(values, GROUP, 4, weight)
    torch.testing.assert_close(found, torch.tensor([3.5, 0, 5, 0], dtype=torch.float64))
    (grad,) = torch.autograd.grad(found.sum(), values)
    torch.testing.assert_close(grad, torch.tensor([0.5, 0, 0.5, 0, 0, 0.5, 0.5, 0], dtype=torch.float64))
