"""Metrics by group: for each group of a split, for the worst one, and as the training data would weigh them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

RISING = {"accuracy"}  # the metrics of which more is better; of the others less is


def by_group(metrics: Mapping[str, Tensor], group: Tensor, groups: int) -> dict[str, Tensor]:
    """What `of_groups` computes the metrics of each group from: values a sample, whose means over a split it takes."""
    inside = F.one_hot(group, groups).T
    found = {f"_group.{g}": row for g, row in enumerate(inside)}
    for name, value in metrics.items():
        if not name.startswith("_"):
            found |= {f"_group.{g}.{name}": row * value for g, row in enumerate(inside)}
    return found


def of_groups(totals: Mapping[str, float], names: Sequence[str], shares: Sequence[float]) -> dict[str, float]:
    """Each metric of each group, "accuracy/NAME"; "worst-group accuracy"; and "weighted accuracy", the mean over groups
    weighted by `shares`, their shares of the training data. A group without samples in the split is left out."""
    present = [g for g in range(len(names)) if totals.get(f"_group.{g}", 0.0) > 0]
    if not present:
        return {}
    first = f"_group.{present[0]}."
    found: dict[str, float] = {}
    for metric in [name.removeprefix(first) for name in totals if name.startswith(first)]:
        values = {g: totals[f"_group.{g}.{metric}"] / totals[f"_group.{g}"] for g in present}
        found |= {f"{metric}/{names[g]}": value for g, value in values.items()}
        found[f"worst-group {metric}"] = min(values.values()) if metric in RISING else max(values.values())
        weight = sum(shares[g] for g in present)
        if weight > 0:
            found[f"weighted {metric}"] = sum(shares[g] * value for g, value in values.items()) / weight
    return found


def group_means(values: Tensor, group: Tensor, groups: int, weight: Tensor | None = None) -> Tensor:
    """The mean of the values [B] over each group, 0 for one that is absent; weighted where there are weights.

    A product with the groups' indicators: what lands in a group is added in the same order each time.
    """
    inside = (group.unsqueeze(1) == torch.arange(groups, device=group.device)).to(values.dtype)
    inside = inside if weight is None else inside * weight.unsqueeze(1)
    count = inside.sum(0)
    return (values @ inside) / torch.where(count > 0, count, 1.0)
