"""LAMB and LARS: steps whose length is a share of each layer's weights; and a probe that shows those shares."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.optimizer import ParamsT

from engine import figures
from engine.fields import Betas, Decay, NonNegative, Positive, Rate
from engine.kit.optimizing import Bundle, ForeachOptimizer, descend, listed
from engine.parts import Finding, Probe, optimizer, probe

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.parts import Task
    from engine.training.run import Run


class _Layerwise(ForeachOptimizer):
    """Keeps a step's trust ratio in the state of each adapted tensor; tensors of one dimension may be left out."""

    def bucket(self, parameter: Tensor, group: dict[str, Any]) -> Hashable:
        return group["exclude_1d"] and parameter.ndim <= 1

    def excluded(self, bundle: Bundle) -> bool:
        """Whether this bundle is left out: no decay, no trust ratio."""
        return bundle.group["exclude_1d"] and bundle.parameters[0].ndim <= 1

    def trust(self, bundle: Bundle, directions: list[Tensor], ratio: Tensor) -> None:
        """Scales each tensor's direction by its own ratio, and remembers the ratios."""
        ratios = list(ratio.unbind())
        torch._foreach_mul_(directions, ratios)
        for state, one in zip(bundle.states, ratios, strict=True):
            state["trust_ratio"] = one


def _norms(some: list[Tensor]) -> Tensor:
    return torch.stack(list(torch._foreach_norm(some)))


@optimizer(
    paper="Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
    arxiv="1904.00962",
    name="LAMB",
    graph="never",
    recommends={"optimizer": {"lr": 0.1}, "schedule": {"use": "polynomial", "warm_up": 0.1}},
)
class Lamb(_Layerwise):
    """Adam's direction, with each layer's step made as long as a fixed share of that layer's own weights.

    Every layer then changes by the same proportion, so that very large batches can take very large steps.

        m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
        u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay w
        w <- w - lr phi(|w|) / |u| u             phi(z) = min(max(z, trust_floor), trust_clip)
        |.|: the length of the whole tensor; the ratio is 1 where |w| or |u| is 0

    Helps: Batches so large that few steps are left: it holds the accuracy of small batches longer than Adam or SGD.

    Hurts: Small batches, where it needs a rate of its own and gives nothing over Adam.

    Cost: Two buffers a weight as Adam, and two lengths a tensor.

    Choices: Norms are taken in 32 bits. Tensors of one dimension (biases, norms) get neither decay nor a ratio unless
    exclude_1d is off. With `grad_pre_norm` all gradients together are first brought to length 1, as NVIDIA does.

    Args:
        params: the parameters or groups to optimize
        lr: the relative change of a layer in a step; short runs need 0.03 to 0.2; grows with the root of the batch size
        betas: the decays of the running mean and of the running square
        eps: added to the spread, so that still weights do not jump
        weight_decay: how much of the weights is mixed into the direction, inside the trust ratio
        trust_clip: the longest that a layer's weights count for; 0 lifts the limit
        trust_floor: the shortest that a layer's weights count for
        exclude_1d: leave tensors of one dimension out of decay and trust ratio
        bias_correction: make up for the running means' start at zero
        grad_pre_norm: bring all gradients together to length 1 first
        maximize: climb instead of descend

    Raises:
        ValueError: when trust_floor is above trust_clip
    """

    buffers: ClassVar[tuple[str, ...]] = ("mean", "square")

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-6,
        weight_decay: NonNegative = 0.01,
        trust_clip: NonNegative = 10.0,
        trust_floor: NonNegative = 0.0,
        exclude_1d: bool = True,
        bias_correction: bool = True,
        grad_pre_norm: bool = False,
        maximize: bool = False,
    ) -> None:
        if trust_clip and trust_floor > trust_clip:
            raise ValueError(
                f"trust_floor is {trust_floor}, above trust_clip, which is {trust_clip}: no length lies between them. "
                "Give a trust_floor of at most trust_clip."
            )
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "trust_clip": trust_clip,
            "trust_floor": trust_floor,
            "exclude_1d": exclude_1d,
            "bias_correction": bias_correction,
            "grad_pre_norm": grad_pre_norm,
            "maximize": maximize,
        }
        super().__init__(listed(params), defaults)

    def prepare(self, bundles: list[Bundle]) -> None:
        if bundles and self.defaults["grad_pre_norm"]:
            norm = get_total_norm([g for bundle in bundles for g in bundle.gradients])
            for bundle in bundles:
                scale = norm.clamp_min(torch.finfo(norm.dtype).tiny).reciprocal().to(bundle.gradients[0].device)
                bundle.gradients = list(torch._foreach_mul(bundle.gradients, scale))

    def update(self, bundle: Bundle) -> None:
        directions = self._directions(bundle)
        group = bundle.group
        if not self.excluded(bundle):
            if group["weight_decay"]:
                torch._foreach_add_(directions, bundle.values, alpha=group["weight_decay"])
            weights, lengths = _norms(bundle.values), _norms(directions)
            counted = weights.clamp(group["trust_floor"], group["trust_clip"] or None)
            self.trust(bundle, directions, torch.where((weights > 0) & (lengths > 0), counted / lengths, 1.0))
        descend(bundle.values, directions, group["lr"])

    def _directions(self, bundle: Bundle) -> list[Tensor]:
        """Adam's direction, before decay."""
        group, (beta1, beta2) = bundle.group, bundle.group["betas"]
        mean, square = bundle.buffers("mean"), bundle.buffers("square")
        torch._foreach_lerp_(mean, bundle.gradients, 1 - beta1)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, bundle.gradients, bundle.gradients, 1 - beta2)
        first, second = 1.0, 1.0
        if group["bias_correction"]:
            first, second = 1 - beta1**bundle.step, 1 - beta2**bundle.step
        spread = torch._foreach_div(square, second)
        torch._foreach_sqrt_(spread)
        torch._foreach_add_(spread, group["eps"])
        directions = list(torch._foreach_div(mean, spread))
        if first != 1.0:
            torch._foreach_div_(directions, first)
        return directions


@optimizer(
    paper="Large Batch Training of Convolutional Networks",
    arxiv="1708.03888",
    name="LARS",
    recommends={"schedule": {"use": "polynomial", "warm_up": 0.1, "power": 2.0}},
)
class Lars(_Layerwise):
    """SGD with momentum, with each layer's step made as long as a fixed share of that layer's own weights.

    The elder sibling of LAMB: the same idea on the plain gradient, made for convolutional networks.

        u = g + weight_decay w
        q = trust |w| / (|g| + weight_decay |w|)         1 where |w| or |g| is 0
        m <- momentum m + lr q u;   w <- w - m

    Helps: Convolutional networks at batches of thousands, where SGD's layers would need a rate each.

    Hurts: Small batches, and transformers, for which LAMB was made.

    Cost: One buffer a weight as SGD with momentum, and two lengths a tensor.

    Choices: The rate is inside the momentum, as in the paper. Tensors of one dimension (biases, norms) get neither
    decay nor a ratio unless exclude_1d is off: they move by lr itself.

    Args:
        params: the parameters or groups to optimize
        lr: the learning rate; times trust it is the relative change of a layer in a step
        momentum: how much of the last step is kept
        weight_decay: how much of the weights is mixed into the direction
        trust: the share of a layer's length that a step may have at rate 1
        exclude_1d: leave tensors of one dimension out of decay and trust ratio
        maximize: climb instead of descend
    """

    buffers: ClassVar[tuple[str, ...]] = ("momentum",)

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 1.0,
        momentum: Decay = 0.9,
        weight_decay: NonNegative = 1e-4,
        trust: Positive = 0.001,
        exclude_1d: bool = True,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "exclude_1d": exclude_1d,
            "maximize": maximize,
        }
        super().__init__(listed(params), defaults)

    def update(self, bundle: Bundle) -> None:
        group, momentum, directions = bundle.group, bundle.buffers("momentum"), bundle.gradients
        if not self.excluded(bundle):
            decay = group["weight_decay"]
            directions = list(torch._foreach_add(bundle.gradients, bundle.values, alpha=decay))
            weights, lengths = _norms(bundle.values), _norms(bundle.gradients)
            ratio = group["trust"] * weights / (lengths + decay * weights)
            self.trust(bundle, directions, torch.where((weights > 0) & (lengths > 0), ratio, 1.0))
        torch._foreach_mul_(momentum, group["momentum"])
        descend(momentum, directions, -group["lr"])
        torch._foreach_sub_(bundle.values, momentum)


@probe(
    id="trust-ratios",
    paper="Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
    arxiv="1904.00962",
    example={"optimizer": {"use": "lamb"}},
)
class TrustRatios(Probe):
    """Shows by how much a layer-wise optimizer stretches or shortens the step of each layer.

    Ratios far apart mean that layers needed rates of their own; a ratio that runs away points at a dying layer.

        ratio = phi(|w|) / |u|        of the last step, for each adapted tensor

    Helps: Choosing a rate for LAMB or LARS, and finding the layer that breaks a run.

    Hurts: Nothing; it only reads.

    Cost: Nothing to speak of.
    """

    when: ClassVar[str] = "evaluation"

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if (recipe.get("optimizer") or {}).get("use") not in ("lamb", "lars"):
            return "Only LAMB and LARS have trust ratios. Choose one of them as the optimizer, or leave this probe out."
        return None

    def look(self, run: Run) -> Finding:
        role = run.roles["main"]
        named = dict(zip(role.names, role.parameters, strict=True))
        state = role.optimizer.state if role.optimizer is not None else {}
        kept = {name: state[p]["trust_ratio"] for name, p in named.items() if "trust_ratio" in state.get(p, {})}
        if not kept:
            return Finding()
        ratios = torch.stack(list(kept.values())).tolist()
        series = figures.line("trust ratio", list(kept), ratios)
        figure = figures.bars("Trust ratio of each layer", series, x="parameter", y="trust ratio")
        return Finding({"lowest": min(ratios), "highest": max(ratios)}, {"ratios": figure})
