"""SANIA: a step size computed from the loss itself, in a metric that the features' scale does not matter to."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from engine.fields import Count, Decay, NonNegative, Positive
from engine.kit.optimizing import Bundle, ForeachOptimizer, descend, listed
from engine.parts import optimizer


@optimizer(
    paper="SANIA: Polyak-type Optimization Framework Leads to Scale Invariant Stochastic Algorithms",
    arxiv="2312.17369",
    name="SANIA",
    lr="internal",
    graph="never",
)
class Sania(ForeachOptimizer):
    """Works out its own step size from how far the loss is above its lowest possible value.

    Its metric divides each weight's gradient by a square without the root, so that rescaled features change nothing.

        n = sum g^2 / B
        gam = 1 - sqrt(1 - 2 (f - f_star) / n)     where 2 (f - f_star) <= n, else 1        (quadratic)
        gam = (f - f_star) / n                                                              (linear)
        w <- w - lr gam g / B                      one gam for all weights
        f: the batch's loss; B: the preconditioner, plus eps, e.g. the running mean of g^2

    Helps: Models that can fit every sample, on badly scaled features, when nobody wants to tune a learning rate.

    Hurts: A loss that cannot come near f_star (label smoothing, noise, strong decay): the steps stay too long. Without
    eps, an early step along a feature that has hardly a gradient can overshoot far; one run in eight here did.

    Cost: As RMSprop: one buffer a weight. `hutchinson` adds a product with the Hessian a sample, about two passes.

    Choices: lr only multiplies the computed step; leave it at 1. eps breaks exact scale invariance: a linear model
    wants a tiny one, 1e-8, and a network, which diverges with that, a large one: the default of 0.1. gam is computed
    as r / (1 + sqrt(1 - r)), which keeps its digits for small r.

    Args:
        params: the parameters or groups to optimize
        lr: multiplies the computed step
        preconditioner: what the gradient is divided by: nothing, the sum of squares (adagrad) or their running mean
            (adam), each with a root or without (sqr), or an estimate of the Hessian's diagonal
        rule: the model of the loss that the step solves: quadratic never moves past the Newton-like step
        beta2: the decay of the running means
        eps: added to the preconditioner; 1e-8 for linear models
        f_star: the lowest value that the loss can have
        hutchinson_samples: random vectors for the Hessian's diagonal in each step
    """

    buffers: ClassVar[tuple[str, ...]] = ("curvature",)

    def __init__(
        self,
        params: ParamsT,
        lr: Positive = 1.0,
        preconditioner: Literal["identity", "adagrad", "adagrad-sqr", "adam", "adam-sqr", "hutchinson"] = "adam-sqr",
        rule: Literal["quadratic", "linear"] = "quadratic",
        beta2: Decay = 0.999,
        eps: NonNegative = 0.1,
        f_star: float = 0.0,
        hutchinson_samples: Count = 1,
    ) -> None:
        self.preconditioner = preconditioner
        self.rule = rule
        self.f_star = f_star
        self.hutchinson_samples = hutchinson_samples
        self._model: nn.Module | None = None
        self._oracle: Any = None
        self._loss: Any = None
        super().__init__(listed(params), {"lr": lr, "beta2": beta2, "eps": eps})

    def attach(self, model: nn.Module, oracle: Any) -> None:
        """Gives it what it needs beside gradients: ``oracle.loss``, the loss of the step's batch, and, for the
        `hutchinson` preconditioner, ``oracle.hvp(vectors)``, one vector for each trainable parameter of the model."""
        self._model = model
        self._oracle = oracle

    def advance(self, loss: Any) -> None:
        self._loss = loss if loss is not None else getattr(self._oracle, "loss", None)
        if self._loss is None:
            raise RuntimeError(
                "SANIA computes its step from the loss and was told none. Give step a closure that returns the loss, "
                "or attach an oracle that has it."
            )
        super().advance(loss)

    def prepare(self, bundles: list[Bundle]) -> None:
        """Turns all gradients into directions and scales them by the one step size."""
        if not bundles:
            return
        products = self._hessian_diagonal(bundles) if self.preconditioner == "hutchinson" else {}
        home = bundles[0].values[0].device
        total: Tensor | None = None
        for bundle in bundles:
            directions = torch._foreach_div(bundle.gradients, self._metric(bundle, products))
            part = torch.stack(torch._foreach_norm(torch._foreach_mul(bundle.gradients, directions), 1)).sum().to(home)
            total = part if total is None else total + part
            bundle.gradients = list(directions)
        assert total is not None
        step = self._step_size(torch.as_tensor(self._loss).detach().to(home, total.dtype), total)
        for bundle in bundles:
            torch._foreach_mul_(bundle.gradients, step.to(bundle.gradients[0].device, bundle.gradients[0].dtype))

    def update(self, bundle: Bundle) -> None:
        descend(bundle.values, bundle.gradients, bundle.group["lr"])

    def _step_size(self, loss: Tensor, total: Tensor) -> Tensor:
        """gam, from the loss and n."""
        gap = (loss - self.f_star).clamp_min(0.0) / total.clamp_min(torch.finfo(total.dtype).tiny)
        if self.rule == "linear":
            return gap
        twice = (2.0 * gap).clamp_max(1.0)
        return twice / (1.0 + (1.0 - twice).sqrt())

    def _metric(self, bundle: Bundle, products: dict[Tensor, Tensor]) -> list[Tensor]:
        """B of each tensor, with eps, its running state brought up to date."""
        group, gradients = bundle.group, bundle.gradients
        if self.preconditioner == "identity":
            return [torch.ones_like(g) for g in gradients]
        curvature = bundle.buffers("curvature")
        if self.preconditioner in ("adagrad", "adagrad-sqr"):
            torch._foreach_addcmul_(curvature, gradients, gradients, 1.0)
            metric = list(torch._foreach_mul(curvature, 1.0))
        else:
            news = [products[p] for p in bundle.parameters] if products else torch._foreach_mul(gradients, gradients)
            torch._foreach_lerp_(curvature, list(news), 1 - group["beta2"])
            metric = list(torch._foreach_div(curvature, 1 - group["beta2"] ** bundle.step))
        if self.preconditioner in ("adagrad", "adam"):
            torch._foreach_sqrt_(metric)
        if self.preconditioner == "hutchinson":
            torch._foreach_abs_(metric)
        torch._foreach_add_(metric, group["eps"] or torch.finfo(metric[0].dtype).tiny)
        return metric

    def _hessian_diagonal(self, bundles: list[Bundle]) -> dict[Tensor, Tensor]:
        """z * (H z) by parameter, averaged over the random sign vectors z."""
        if self._model is None or not hasattr(self._oracle, "hvp"):
            raise RuntimeError(
                "The hutchinson preconditioner needs products with the Hessian, which gradients alone do not give. "
                "Attach an oracle that has hvp, or choose another preconditioner."
            )
        parameters: list[Tensor] = [p for p in self._model.parameters() if p.requires_grad]
        # The draw depends on the step alone, so that a resumed run repeats it without keeping a generator.
        generator = torch.Generator(parameters[0].device).manual_seed(max(bundle.step for bundle in bundles))
        total: list[Tensor] | None = None
        for _ in range(self.hutchinson_samples):
            signs = _signs(parameters, generator)
            with torch.enable_grad():
                products = [product.detach() for product in self._oracle.hvp(signs)]
            found = torch._foreach_mul(signs, products)
            if total is None:
                total = list(found)
            else:
                torch._foreach_add_(total, found)
        assert total is not None
        torch._foreach_div_(total, float(self.hutchinson_samples))
        return {p: t.to(bundles[0].values[0].dtype) for p, t in zip(parameters, total, strict=True)}


def _signs(parameters: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Random signs in the parameters' shapes, drawn at once."""
    count = sum(p.numel() for p in parameters)
    flat = torch.randint(0, 2, (count,), generator=generator, device=generator.device, dtype=torch.int8)
    pieces = flat.mul_(2).sub_(1).split([p.numel() for p in parameters])
    return [piece.view(p.shape).to(p) for piece, p in zip(pieces, parameters, strict=True)]
