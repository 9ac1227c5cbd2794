"""N:M sparsity that sets in step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from engine.fields import Count, Fraction, NonNegative, Sites
from engine.kit.masks import nm_mask, reduction_last, straight_through
from engine.kit.weight_maps import add_map, latent, maps
from engine.parts import Moves, Progress, Task, Technique, technique

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Role, Run

ID = "progressive-gradient-flow-nm"
LOG_EVERY = 10
Pattern = tuple[int, int]


def decay_factor(kind: str, rate: float, since: int, length: int) -> float:
    """What a pruned weight still counts, `since` steps into a decay phase of `length` steps.

    A rate of 0 is fitted to the phase: linear decay ends at 0, exponential decay at 1 %.
    """
    if kind == "linear":
        return max(0.0, 1 - (rate or 1 / max(length, 1)) * since)
    if kind == "exponential":
        return math.exp(-(rate or -math.log(0.01) / max(length, 1)) * since)
    return 0.0


def patterns(structure: str, n: int, m: int) -> list[Pattern]:
    """The patterns that tighten, in equal stretches of time, to n:m."""
    if structure == "stepwise":
        kept = [m - 1]
        half = m // 2
        while half > n:
            kept.append(half)
            half //= 2
        return [(k, m) for k in dict.fromkeys(kept) if k > n] + [(n, m)]
    if structure == "geometric":
        return [(8 * n, 8 * m), (4 * n, 4 * m), (2 * n, 2 * m), (n, m)]
    return [(n, m)]


class ProgressiveMask(nn.Module):
    """A weight's N:M mask whose pruned entries count `beta`; `pattern` is the mask of the moment.

    Both are buffers, so that a checkpoint of the model holds them. With n = m the weight passes untouched.
    """

    def __init__(self, gradient: str = "ste"):
        super().__init__()
        self.gradient = gradient
        self.beta: Tensor
        self.pattern: Tensor
        self.register_buffer("beta", torch.ones(()))
        self.register_buffer("pattern", torch.ones(2, dtype=torch.long))
        self._pattern: Pattern = (1, 1)
        self._beta = 1.0
        self.register_load_state_dict_post_hook(_read_buffers)

    def set(self, pattern: Pattern, beta: float) -> None:
        """Writes the state of the moment; costs nothing where it has not changed."""
        if pattern != self._pattern:
            self._pattern = pattern
            self.pattern.copy_(torch.tensor(pattern))
        if beta != self._beta:
            self._beta = beta
            self.beta.fill_(beta)

    def mask(self, weight: Tensor) -> Tensor:
        """The mask of the moment: True for what is kept."""
        return nm_mask(weight, *self._pattern)

    def forward(self, weight: Tensor) -> Tensor:
        n, m = self._pattern
        if n == m:
            return weight
        used = torch.where(self.mask(weight), weight, weight * self.beta)
        return used if self.gradient == "autograd" else straight_through(used, weight)


def _read_buffers(module: nn.Module, _keys: Any) -> None:
    assert isinstance(module, ProgressiveMask)
    n, m = module.pattern.tolist()
    module._pattern, module._beta = (n, m), float(module.beta)


@technique(
    id=ID,
    name="Progressive N:M sparsity (MdGf / SdGf)",
    paper="Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers",
    arxiv="2402.04744",
    graph="recapture",
    example={"task": {"use": "digits"}},
)
class ProgressiveGradientFlowNM(Technique):
    """Keeps the n largest of every m neighbouring weights, and lets the others fade out over the run instead of
    removing them at once. What is pruned goes on learning for a while, so that a wrong choice can be undone.

        mask decay:       w_used = w (k + (1 - k) beta_t),   k = 1 for the n largest |w| of each m, else 0
                          beta_t = max(0, 1 - c j) or exp(-c j),   j = steps since the decay began
        structure decay:  w_used = w k,  the pattern going (m-1):m, m/2:m, ... n:m  or  8n:8m, 4n:4m, 2n:2m, n:m
        three phases:     dense, decay, then the bare n:m mask; after the last step w <- w k

    Groups run along the inputs that a product sums over. The mask is found anew from the trained weights in each pass.

    Helps: high sparsity such as 1:8 or 1:16 that hardware can use, where a mask from the start loses accuracy.
    Hurts: short runs, in which the fading is abrupt; at 2:4 simpler ways do as well.
    Cost: one top-n of each weight a forward pass; no memory beside the mask.
    Choices: the reference sends the gradient unchanged to all weights (`ste`); `autograd` multiplies that of the
        pruned ones by beta_t, as the title says; `sr-ste` is the baseline that adds srste_lambda (1 - k) w to it.
        With a structure that decays the mask is bare throughout. A decay_coef of 0 is fitted to the decay phase.
        The optimizer's weight decay acts on pruned weights too.

    Args:
        n: Weights kept of each group.
        m: Weights in a group; the inputs of each selected layer must be a multiple of it.
        decay: How the pruned weights' factor falls; none prunes at once.
        decay_coef: Its rate a step; 0 takes the one that ends with the decay phase.
        structure: Whether the pattern tightens instead of the factor falling.
        dense_fraction: Share of the steps before anything is pruned.
        finetune_fraction: Share of the steps at the end with the bare n:m mask.
        grad: What pruned weights receive: everything, their share of it, or everything and a pull to zero.
        srste_lambda: Strength of that pull.
        targets: The layers to prune.

    Raises:
        ValueError: Where n is above m, or the dense and the last phase leave no time between them.
    """

    needs_total = True  # its phases are shares of the run

    def __init__(
        self,
        n: Count = 1,
        m: Count = 8,
        decay: Literal["linear", "exponential", "none"] = "linear",
        decay_coef: NonNegative = 0.0,
        structure: Literal["none", "stepwise", "geometric"] = "none",
        dense_fraction: Fraction = 0.05,
        finetune_fraction: Fraction = 0.2,
        grad: Literal["ste", "autograd", "sr-ste"] = "ste",
        srste_lambda: NonNegative = 2e-4,
        targets: Sites = "linear, blocks",
    ):
        if n > m:
            raise ValueError(f"n = {n} of m = {m} weights cannot be kept; n must be at most m.")
        if dense_fraction + finetune_fraction > 1:
            raise ValueError(
                f"dense_fraction = {dense_fraction:g} and finetune_fraction = {finetune_fraction:g} are more than the "
                "whole run; together they must be at most 1."
            )
        self.n, self.m, self.decay, self.decay_coef, self.structure = n, m, decay, decay_coef, structure
        self.dense_fraction, self.finetune_fraction = dense_fraction, finetune_fraction
        self.grad, self.srste_lambda, self.targets = grad, srste_lambda, targets
        self._masks: list[ProgressiveMask] = []
        self._pruned: list[tuple[Tensor, ProgressiveMask]] = []

    # -- over time -----------------------------------------------------------------------------------------------------

    def at(self, progress: Progress) -> tuple[Pattern, float]:
        """The pattern and the pruned weights' factor of a moment; (m, m) keeps all."""
        steps = progress.steps or 1
        begin = math.ceil(self.dense_fraction * steps)
        end = steps - math.floor(self.finetune_fraction * steps)
        if progress.step < begin:
            return (self.m, self.m), 1.0
        if progress.step >= end or self.n == self.m:
            return (self.n, self.m), 0.0
        since, length = progress.step - begin, end - begin
        if self.structure == "none":
            return (self.n, self.m), decay_factor(self.decay, self.decay_coef, since, length)
        stages = patterns(self.structure, self.n, self.m)
        return stages[min(since * len(stages) // length, len(stages) - 1)], 0.0

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def prepare_model(self, run: Run, model: nn.Module) -> nn.Module:
        for site in run.anatomy.select(self.targets):
            mask = ProgressiveMask("autograd" if self.grad == "autograd" else "ste")
            add_map(site.module, "weight", mask, "mask", ID)
            self._masks.append(mask)
        return model

    def setup(self, run: Run) -> None:
        self._find(run)
        self._tick(run.progress)

    def on_surgery(self, run: Run, moves: Moves) -> None:
        self._find(run)

    def _find(self, run: Run) -> None:
        by_map = {id(mask) for mask in self._masks}
        found = [entry for entry in maps(run.model) if id(entry.map) in by_map]
        # The reference prunes what is trained; with another map before the mask that is not the same weight.
        first = [e for e in found if e.module.parametrizations[e.name][0] is e.map]  # type: ignore[index]
        self._pruned = [(latent(e.module, e.name), e.map) for e in first]  # type: ignore[misc]
        if len(first) < len(found):
            run.note(f"{ID}: weights with another map before the mask stay masked instead of being set to zero.")

    def _tick(self, progress: Progress) -> None:
        pattern, beta = self.at(progress)
        for mask in self._masks:
            mask.set(pattern, beta)

    def on_batch(self, run: Run, batch: Any) -> Any:
        self._tick(run.progress)
        return batch

    @torch.no_grad()
    def shape(self, run: Run, role: Role) -> None:
        if run.step % LOG_EVERY == 0:
            self._log(run)
        if self.grad != "sr-ste" or not self._pruned or self.srste_lambda == 0:
            return
        (n, m), _ = self.at(run.progress)
        held = [(w, w.grad, mask) for w, mask in self._pruned if w.grad is not None]
        if n < m and held:
            pulls = [w.masked_fill(mask.mask(w), 0.0) for w, _, mask in held]
            torch._foreach_add_([grad for _, grad, _ in held], pulls, alpha=self.srste_lambda)

    def _log(self, run: Run) -> None:
        """How far the pruning is, and how the gradients of pruned and kept weights compare."""
        (n, m), beta = self.at(run.progress)
        run.log(f"{ID}/kept", n / m)
        run.log(f"{ID}/beta", beta)
        held = [(w.grad, mask.mask(w)) for w, mask in self._pruned if w.grad is not None]
        if n < m and held:
            kept = torch.cat([grad[mask] for grad, mask in held])
            pruned = torch.cat([grad[~mask] for grad, mask in held])
            run.log(f"{ID}/gradient-variance-ratio", pruned.var() / kept.var().clamp_min(1e-30))

    @torch.no_grad()
    def on_end(self, run: Run) -> None:
        for mask in self._masks:
            mask.set((self.n, self.m), 0.0)
        for weight, mask in self._pruned:
            weight.mul_(mask.mask(weight))

    @classmethod
    def claims(cls, settings: Mapping[str, Any], anatomy: Anatomy) -> dict[str, str]:
        return {f"{site.path}.weight": "mask" for site in anatomy.select(settings["targets"])}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        try:
            sites = anatomy.select(settings["targets"])
        except ValueError as error:
            return str(error)
        if not sites:
            return f"No layer is at {settings['targets']!r}; select linear or convolution layers."
        group = settings["m"] * (8 if settings["structure"] == "geometric" else 1)
        for site in sites:
            weight = getattr(site.module, "weight", None)
            if not isinstance(weight, Tensor) or weight.dim() < 2:
                return f"{site.path} has no weight matrix; select linear or convolution layers only."
            if (width := reduction_last(weight).shape[-1]) % group:
                return (
                    f"{site.path} has {width} inputs, not a multiple of {group} as its groups of weights need; "
                    "change m, the layer's width or `targets`."
                )
        return None
