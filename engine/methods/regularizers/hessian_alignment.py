"""Hessian alignment: the loss should look the same from the head in every domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from engine.fields import Count, NonNegative, Whole
from engine.parts import Batch, Moves, Task, Technique, Terms, technique

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "hessian-alignment"
TINY = 1e-16  # under the root of a gradient's length


def domain_losses(each: Tensor, domain: Tensor, domains: int) -> tuple[Tensor, Tensor]:
    """The mean of a loss [B] over the samples of each domain, and which domains are in the batch (as 0 and 1)."""
    member = (domain.unsqueeze(0) == torch.arange(domains, device=domain.device).unsqueeze(1)).to(each)
    counts = member.sum(1)
    return (member @ each) / counts.clamp_min(1), (counts > 0).to(each)


def derivative(value: Tensor, over: list[Tensor]) -> Tensor:
    """The gradient as one vector, to be differentiated again."""
    grads = torch.autograd.grad(value, over, create_graph=True, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(w).flatten() if g is None else g.flatten() for w, g in zip(over, grads, strict=True)]
    )


def hessian_gradient(grad: Tensor, over: list[Tensor]) -> Tensor:
    """``H g = |g| d|g| / dw`` for a gradient g that has a graph."""
    length = (grad.square().sum() + TINY).sqrt()
    return length * derivative(length, over)


def hessian_diagonal(grad: Tensor, over: list[Tensor], signs: Tensor) -> Tensor:
    """The mean of ``z * H z`` over rows of random signs z."""
    return torch.stack([z * derivative(grad @ z, over) for z in signs]).mean(0)


def distances(losses: Tensor, there: Tensor, over: list[Tensor], signs: Tensor | None) -> tuple[Tensor, Tensor]:
    """How far the domains' gradients, and their Hessians, are from the mean of all, which is held fixed.

    The mean over the domains that are there of squared lengths. The Hessian is seen through its product with the
    gradient, or, where signs are given, through its diagonal.
    """
    share = there / there.sum().clamp_min(1)
    grads = torch.stack([derivative(loss, over) for loss in losses])
    mean = share @ grads
    if signs is None:
        seen = torch.stack([hessian_gradient(grad, over) for grad in grads])
        center = hessian_gradient(mean, over)
    else:
        seen = torch.stack([hessian_diagonal(grad, over, signs) for grad in grads])
        center = share @ seen
    first = (grads - mean.detach()).square().sum(1)
    second = (seen - center.detach()).square().sum(1)
    return share @ first, share @ second


@technique(
    id=ID,
    name="Hessian alignment",
    paper="Understanding Hessian Alignment for Domain Generalization",
    arxiv="2308.11778",
    precision="fp32",
    graph="never",
    recommends={"optimizer": {"use": "adamw", "lr": 0.001, "weight_decay": 0.0}},
    example={
        "task": {"use": "coloured-digits", "rows": 40},
        "techniques": [{"use": ID, "alpha": 1.0, "beta": 1.0, "warmup_steps": 1}],
        "training": {"batch_size": 40},
    },
)
class HessianAlignment(Technique):
    """Asks that every domain pulls and bends the model's last layer in the same way. What only one domain teaches, such
    as a colour that happens to go with the label there, then does not pay.

        loss + mean over domains e of  alpha |H_e g_e - H g|^2 + beta |g_e - g|^2
        g_e, H_e: gradient and Hessian of domain e's loss in the head's weights; g, H: of their mean, held fixed
        H g = |g| d|g|/dw without a Hessian;  with `hutchinson`, the diagonals of H_e, from random signs, instead

    The penalty reaches the layers below through the features. The log shows both distances, without their factors.

    Helps: Data from several known domains, with cues that change between them; tested in a domain never seen.
    Hurts: Accuracy in the training domains, where such cues do help: on coloured digits 64 % are right there instead of
        80, for 38 instead of 24 % in a shifted test, still below chance. Too large, and nothing is learned at all.
    Cost: One gradient through a gradient of the head for each domain; `hutchinson` one for each random vector too.
    Choices: Domains count alike, those missing from a batch not at all. The task's loss stays the mean over samples,
        which is the mean over domains where a batch has as many of each. During the warm-up there is no penalty.

    Args:
        method: What is compared of the Hessians: their products with the gradients, or their diagonals.
        alpha: Factor of the Hessians' distance.
        beta: Factor of the gradients' distance.
        hutchinson_samples: Random vectors for the diagonals.
        warmup_steps: Steps before the penalty begins.
        rescale_after_warmup: Divide all terms by the largest factor, where it is above 1, once the penalty is on.
    """

    additive = False
    needs = ("domain",)

    def __init__(
        self,
        method: Literal["hgp", "hutchinson"] = "hgp",
        alpha: NonNegative = 0.0001,
        beta: NonNegative = 0.005,
        hutchinson_samples: Count = 50,
        warmup_steps: Whole = 0,
        rescale_after_warmup: bool = True,
    ) -> None:
        self.method, self.alpha, self.beta = method, alpha, beta
        self.hutchinson_samples, self.warmup_steps = hutchinson_samples, warmup_steps
        self.rescale_after_warmup = rescale_after_warmup
        self._over: list[Tensor] = []
        self._domains = 0

    def setup(self, run: Run) -> None:
        self.on_surgery(run)
        self._domains = int(run.columns("train")["meta.domain"].max()) + 1

    def on_surgery(self, run: Run, moves: Moves | None = None) -> None:
        self._over = [p for p in run.anatomy.head.parameters() if p.requires_grad]

    def on_terms(self, run: Run, terms: Terms, output: Any, batch: Batch) -> Terms:
        active = run.progress.step >= self.warmup_steps and (self.alpha > 0 or self.beta > 0)
        if not active and not run.wants_gradient_norm:
            return terms
        each = [term for term in terms.values() if term.dim() == 1]
        if not each:
            raise ValueError("Hessian alignment needs a loss with a value for each sample, to tell the domains apart.")
        losses, there = domain_losses(torch.stack(each).sum(0), batch.meta["domain"], self._domains)
        first, second = distances(losses, there, self._over, self._signs(run))
        if run.wants_gradient_norm:
            run.log(f"{ID}/gradient-distance", first.detach())
            run.log(f"{ID}/hessian-distance", second.detach())
        if not active:
            return terms
        found = {**terms, ID: self.alpha * second + self.beta * first}
        largest = max(self.alpha, self.beta, 1.0) if self.rescale_after_warmup else 1.0
        return found if largest == 1.0 else {name: term / largest for name, term in found.items()}

    def _signs(self, run: Run) -> Tensor | None:
        if self.method == "hgp":
            return None
        size = sum(w.numel() for w in self._over)
        drawn = torch.randint(0, 2, (self.hutchinson_samples, size), generator=run.rng(ID), device=run.device)
        return (2 * drawn - 1).to(self._over[0])

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if not any(True for _ in anatomy.head.parameters()):
            return "It looks at the weights of the model's head, and this head has none."
        return None
