"""Sparse and dense training in turns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from engine.fields import Decay, Fraction, Positive, Sites, SourceField
from engine.kit.masks import top_k_mask
from engine.parts import Progress, Source, Task, Technique, technique

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Role, Run

ID = "sparse-optimization-acdcpp"
LOG_EVERY = 10


def stretches(steps: int, length: int, warmup: float, final: float) -> list[tuple[int, bool]]:
    """When a sparse (True) or a dense (False) phase begins: dense first, then in turns of `length` steps, sparse first,
    and sparse over the last share of all steps."""
    begin, end = math.ceil(warmup * steps), steps - math.floor(final * steps)
    turns = [(at, i % 2 == 0) for i, at in enumerate(range(begin, end, max(length, 1)))]
    found = [(0, False)]
    for at, sparse in [*turns, *([(end, True)] if end < steps else [])]:
        if at == found[-1][0]:
            found[-1] = (at, sparse)
        elif sparse != found[-1][1]:
            found.append((at, sparse))
    return found


def kept(weights: int, sparsity: float) -> int:
    """How many weights stay: the floor of (1 - sparsity) of them, sparsity read as the decimal number that it is."""
    return math.floor((1 - sparsity) * weights + 1e-9 * weights)


def global_masks(scores: list[Tensor], sparsity: float) -> list[Tensor]:
    """Masks that keep the largest scores of all tensors together, exactly `kept` of them."""
    flat = torch.cat([score.flatten() for score in scores])
    mask = top_k_mask(flat, kept(flat.numel(), sparsity))
    pieces = mask.split([score.numel() for score in scores])
    return [piece.view_as(score) for piece, score in zip(pieces, scores, strict=True)]


@technique(
    id=ID,
    name="AC/DC++",
    paper="Accurate Neural Network Pruning Requires Rethinking Sparse Optimization",
    arxiv="2308.02060",
    recommends={
        "optimizer": {"use": "sgd", "lr": 0.1, "momentum": 0.9},
        "schedule": {"use": "cosine"},
    },
    example={"techniques": [{"use": ID, "sparsity": 0.5, "phase_epochs": 0.2, "first_last": "pruned"}]},
)
class SparseOptimizationACDC(Technique):
    """Trains sparse and dense in turns, so that a weight that was pruned too early can come back. It ends sparse, and
    pays off most when the run is several times as long as a dense one would need to be.

        dense for the first share of the steps; then in turns of phase_epochs, sparse first; at last sparse
        sparse begins:  keep the k largest |w| of all prunable weights together, k = floor((1 - sparsity) M);
                        the others are zero and stay so
        dense begins:   the zeros may grow again from zero; the optimizer forgets its momentum

    Helps: high sparsity with long training: sparse networks are under-trained where dense ones are done.
    Hurts: short runs; the recipe must be three to ten times as long as the dense one.
    Cost: one product with a mask a step, one selection of the largest weights a sparse phase.
    Choices: gradients of pruned weights are zero, so no momentum builds up for them. A sparse phase that is followed by
        the last one goes on with its mask. Forgetting clears all of the optimizer's state, its step count too, so that
        adaptive methods start well. The longer budget, the cosine over all of it and the label smoothing are the
        recipe's own. With `by` the masks follow another model's weights: with those of an earlier phase at its end, and
        this phase rewound to its beginning, this finds lottery tickets.

    Args:
        sparsity: Share of the prunable weights that are zero in a sparse phase.
        warmup_share: Share of the steps before the first sparse phase.
        phase_epochs: Epochs in a turn.
        final_share: Share of the steps in the last sparse phase.
        reset_momentum: Let the optimizer forget at the begin of a dense phase.
        first_last: Keep the first and the last of the layers dense, which auto does where two or more are left.
        targets: The layers to prune.
        by: The model whose weights decide what is pruned; the one that is trained where none is named.

    Raises:
        ValueError: Where warm-up and last phase are more than the whole run.
    """

    needs_total = True
    keeps_parameters = True

    def __init__(
        self,
        sparsity: Decay = 0.95,
        warmup_share: Fraction = 0.1,
        phase_epochs: Positive = 5.0,
        final_share: Fraction = 0.15,
        reset_momentum: bool = True,
        first_last: Literal["auto", "dense", "pruned"] = "auto",
        targets: Sites = "weight",
        by: SourceField | None = None,
    ):
        if warmup_share + final_share > 1:
            raise ValueError(
                f"warmup_share = {warmup_share:g} and final_share = {final_share:g} are more than the whole run; "
                "together they must be at most 1."
            )
        self.sparsity, self.warmup_share, self.phase_epochs = sparsity, warmup_share, phase_epochs
        self.final_share, self.reset_momentum, self.first_last = final_share, reset_momentum, first_last
        self.targets = targets
        self.by: Source | None = by
        self.compressed = False
        self.masks: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._scores: list[Tensor] = []

    # -- over time -----------------------------------------------------------------------------------------------------

    def at(self, progress: Progress, per_epoch: int) -> bool:
        """Whether a moment is in a sparse phase."""
        length = max(round(self.phase_epochs * per_epoch), 1)
        plan = stretches(progress.steps or 1, length, self.warmup_share, self.final_share)
        return next(sparse for begin, sparse in reversed(plan) if begin <= progress.step)

    def setup(self, run: Run) -> None:
        self._weights = [weight for _, weight in prunable(run.anatomy, self.targets, self.first_last)]
        self._scores = []
        if self.by is not None:
            theirs = dict(self.by.model().named_parameters())
            names = [name for name, _ in prunable(run.anatomy, self.targets, self.first_last)]
            for name, weight in zip(names, self._weights, strict=True):
                if name not in theirs or theirs[name].shape != weight.shape:
                    raise ValueError(f"{self.by.label} has no weight {name} of this shape to decide by.")
            self._scores = [theirs[name].detach().abs() for name in names]

    def on_batch(self, run: Run, batch: Any) -> Any:
        sparse = self.at(run.progress, run.steps_per_epoch)
        if sparse != self.compressed:
            self.compressed = sparse
            if sparse:
                self.compress()
            else:
                self.release(run)
        return batch

    @torch.no_grad()
    def compress(self) -> None:
        """Takes new masks, and sets to zero what they prune."""
        self.masks = global_masks(self._scores or [weight.abs() for weight in self._weights], self.sparsity)
        self._apply(self._weights)

    def release(self, run: Run) -> None:
        """Lets the zeros grow again."""
        self.masks = []
        for role in run.roles.values() if self.reset_momentum else ():
            if role.optimizer is not None:
                role.optimizer.state.clear()

    def _apply(self, tensors: list[Tensor]) -> None:
        torch._foreach_mul_(tensors, [mask.to(t.dtype) for mask, t in zip(self.masks, tensors, strict=True)])

    # -- hooks ---------------------------------------------------------------------------------------------------------

    @classmethod
    def claims(cls, settings: Mapping[str, Any], anatomy: Anatomy) -> dict[str, str]:
        names = [name for name, _ in prunable(anatomy, settings["targets"], settings["first_last"])]
        return dict.fromkeys(names, "mask")

    @torch.no_grad()
    def mask(self, run: Run, role: Role) -> None:
        if run.step % LOG_EVERY == 0:
            run.log(f"{ID}/compressed", float(self.compressed))
        if self.masks and role.module is run.model:
            for weight, mask in zip(self._weights, self.masks, strict=True):
                if weight.grad is not None:
                    weight.grad.mul_(mask)

    @torch.no_grad()
    def remask(self, run: Run, role: Role) -> None:
        if self.masks and role.module is run.model:
            self._apply(self._weights)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        try:
            found = prunable(anatomy, settings["targets"], settings["first_last"])
        except ValueError as error:
            return str(error)
        if not found:
            return f"No layer that may be pruned is at {settings['targets']!r}; select linear or convolution layers."
        if recipe["optimizer"] is None:
            return "It prunes while an optimizer trains; name an optimizer."
        return None


def prunable(anatomy: Anatomy, targets: str, first_last: str) -> list[tuple[str, Tensor]]:
    """The weights to prune, by the name of their parameter."""
    found: list[tuple[str, Tensor]] = []
    for site in anatomy.select(targets):
        weight = site.module._parameters.get("weight")
        if weight is None or weight.dim() < 2:
            raise ValueError(f"{site.path} has no weight matrix of its own; select linear or convolution layers only.")
        found.append((f"{site.path}.weight", weight))
    inner = found[1:-1]
    return inner if first_last == "dense" or (first_last == "auto" and len(inner) > 1) else found
