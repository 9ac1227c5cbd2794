"""What tasks with a given target share: the objective and metrics of each kind of output, and seeded splits."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kit.embedding import recall_at_1
from engine.kit.groups import by_group, of_groups
from engine.parts import Batch, Task, Terms

METRICS = {
    "classes": ("accuracy", "max"),
    "next-token": ("bits", "min"),
    "values": ("r2", "max"),
    "embedding": ("recall@1", "max"),
}


class Supervised(Task):
    """A task whose data are tensors with a target. A subclass sets `offer` and fills `splits` in `load`.

    Where it has `groups` and metadata "group", every metric is told for each group, for the worst one, and as the
    groups' shares of the training samples weigh them. A task that offers an embedding has no objective of its own.
    """

    splits: dict[str, dict[str, Tensor]]

    @property
    def metric(self) -> tuple[str, str]:  # type: ignore[override]
        return METRICS[self.offer.output]

    @property
    def needs_loss(self) -> bool:  # type: ignore[override]
        return self.offer.output == "embedding"

    @property
    def collects(self) -> bool:  # type: ignore[override]
        return self.offer.output == "embedding"

    def columns(self, split: str) -> dict[str, Tensor]:
        return self.splits.get(split, {})

    def objective(self, output: Any, batch: Batch) -> Terms:
        """Cross-entropy for classes and tokens (a mean over positions), squared error (a mean over values) else."""
        if self.offer.output == "embedding":
            return {}
        if self.offer.output == "values":
            return {"task": squared_error(output, batch.target)}
        return {"task": cross_entropy(output, batch.target, batch.mask)}

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        found = self._metrics(output, batch)
        return {**found, **by_group(found, batch.meta["group"], len(self.groups))} if self.groups else found

    def _metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        if self.offer.output == "embedding":
            return {}
        if self.offer.output == "values":
            return value_metrics(output, batch.target)
        return class_metrics(output, batch.target, batch.mask, bits=self.offer.output == "next-token")

    def overall(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Of an embedding: how often the nearest other sample has the same label."""
        return {"recall@1": recall_at_1(output, batch.target)}

    def summary(self, totals: dict[str, float]) -> dict[str, float]:
        shown = explained(totals) if self.offer.output == "values" else totals
        if not self.groups:
            return shown
        shares = self.split("train")["meta.group"].bincount(minlength=len(self.groups)).tolist()
        return {n: v for n, v in shown.items() if not n.startswith("_")} | of_groups(totals, self.groups, shares)


def cross_entropy(output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """A sample's cross-entropy [B] of logits [B, K] or [B, L, K]; the target holds classes or their probabilities."""
    each = F.cross_entropy(output.flatten(0, -2), _rows(target, output), reduction="none")
    return each if output.dim() == 2 else _over_positions(each.view(output.shape[:-1]), mask)


def mean_answer(outputs: Iterable[Tensor], kind: str) -> Tensor:
    """Several answers as one: the mean of values, or the log of the mean of the probabilities that logits stand for."""
    total: Tensor | None = None
    count = 0
    for output in outputs:
        each = output if kind == "values" else output.log_softmax(-1)
        add = torch.add if kind == "values" else torch.logaddexp
        total = each if total is None else add(total, each)
        count += 1
    assert total is not None
    return total / count if kind == "values" else total - math.log(count)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """A sample's squared error [B], the mean over its values."""
    return (output - target.view_as(output)).square().flatten(1).mean(1)


def class_metrics(output: Tensor, target: Tensor, mask: Tensor | None, *, bits: bool) -> dict[str, Tensor]:
    """Accuracy, and for tokens the bits that one costs. A soft target counts as its likeliest class."""
    hard = target.argmax(-1) if target.dim() == output.dim() else target
    right = (output.argmax(-1) == hard).float()
    found = {"accuracy": right if output.dim() == 2 else _over_positions(right, mask)}
    if bits:
        found["bits"] = cross_entropy(output.float(), target, mask) / 0.6931471805599453
    return found


def value_metrics(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Squared and absolute error, and the sums that the explained variance is computed from."""
    target = target.view_as(output).flatten(1)
    output = output.flatten(1)
    found = {"mse": squared_error(output, target), "mae": (output - target).abs().mean(1)}
    for i, value in enumerate(target.unbind(1)):
        found |= {f"_mean.{i}": value, f"_square.{i}": value.square()}
    return found


def explained(totals: dict[str, float]) -> dict[str, float]:
    """Adds r2, the share of the target's variance (over all its values together) that the model explains."""
    shown = {name: value for name, value in totals.items() if not name.startswith("_")}
    squares = {name.split(".")[1]: value for name, value in totals.items() if name.startswith("_square.")}
    if "mse" in shown and squares:
        variance = sum(square - totals[f"_mean.{i}"] ** 2 for i, square in squares.items()) / len(squares)
        shown["r2"] = 1 - shown["mse"] / variance if variance > 0 else float("nan")
    return shown


def _rows(target: Tensor, output: Tensor) -> Tensor:
    return target.flatten(0, -2) if target.dim() == output.dim() else target.flatten()


def _over_positions(values: Tensor, mask: Tensor | None) -> Tensor:
    values = values.flatten(1)
    if mask is None:
        return values.mean(1)
    mask = mask.to(values.dtype).flatten(1)
    return (values * mask).sum(1) / mask.sum(1).clamp_min(1)


# -- data --------------------------------------------------------------------------------------------------------------


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU: data are the same whatever they are trained on."""
    return torch.Generator().manual_seed(seed)


def split_indices(n: int, labels: Tensor | None, shares: dict[str, float], rng: torch.Generator) -> dict[str, Tensor]:
    """Shuffled indices by split. Shares are taken from every class alike; train gets the rest."""
    taken: dict[str, list[Tensor]] = {name: [] for name in (*shares, "train")}
    groups = [torch.arange(n)] if labels is None else [(labels == k).nonzero().flatten() for k in labels.unique()]
    for group in groups:
        group = group[torch.randperm(len(group), generator=rng)]
        start = 0
        for name, share in shares.items():
            count = round(share * len(group))
            taken[name].append(group[start : start + count])
            start += count
        taken["train"].append(group[start:])
    merged = {name: torch.cat(parts) for name, parts in taken.items()}
    return {name: index[torch.randperm(len(index), generator=rng)] for name, index in merged.items() if len(index)}


def symmetric_noise(labels: Tensor, share: float, classes: int, rng: torch.Generator) -> Tensor:
    """The labels with that share of them, drawn at random, changed to another class, each other one equally likely."""
    noisy = labels.clone()
    chosen = torch.randperm(len(labels), generator=rng)[: round(share * len(labels))]
    noisy[chosen] = (labels[chosen] + torch.randint(1, classes, (len(chosen),), generator=rng)) % classes
    return noisy


def long_tail(labels: Tensor, factor: float, rng: torch.Generator) -> Tensor:
    """The indices, in order, of a subset in which class k keeps the share factor^k of its samples (at least one)."""
    kept = []
    for k in labels.unique().tolist():
        group = (labels == k).nonzero().flatten()
        group = group[torch.randperm(len(group), generator=rng)]
        kept.append(group[: max(1, round(len(group) * factor**k))])
    return torch.cat(kept).sort().values


def bundled(name: str) -> Path:
    """A data file that scikit-learn carries. Finding it does not import scikit-learn, which takes two seconds."""
    found = importlib.util.find_spec("sklearn")
    path = Path(found.origin).parent / "datasets" / "data" / name if found and found.origin else None
    if path is None or not path.exists():
        raise FileNotFoundError(f"The data file {name} is missing: it comes with scikit-learn. Install scikit-learn.")
    return path
