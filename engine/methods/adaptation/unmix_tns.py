"""Normalization for a stream whose classes come one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Count, Fraction, Positive
from engine.parts import Batch, Decoder, Task, decoder

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

NOTHING = "It takes the place of batch normalization over images, and the model has none; choose norm = batch."
BATCH_MAX = 64  # the batch at which a component moves by the layer's whole momentum


def rate_of(momentum: float, batch: int) -> float:
    """How far the components move with one batch of this size: small batches move them slowly."""
    return 1 - (1 - momentum) ** (batch / BATCH_MAX)


class UnMixNorm(nn.Module):
    """Takes the place of a trained BatchNorm2d. Every forward pass, in whatever mode, moves its state, unless frozen.

    The state are the means and variances of K components, each of shape [K, C].
    """

    def __init__(
        self,
        norm: nn.BatchNorm2d,
        components: int = 16,
        temperature: float = 0.07,
        alpha: float = 0.5,
        rate: float = 0.1,
        within: bool = False,
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        self.norm = norm  # its gain and shift, which may be trained on
        self.temperature, self.rate, self.within = temperature, rate, within
        self.frozen = False
        mean, var = norm.running_mean.detach(), norm.running_var.detach()
        spread = alpha if components > 1 else 0.0  # a single component has nothing to differ from
        drawn = torch.randn((components, len(mean)), generator=rng, device=mean.device, dtype=mean.dtype)
        step = (spread * components / max(components - 1, 1)) ** 0.5
        self.register_buffer("means", mean + step * var.sqrt() * drawn)
        self.register_buffer("variances", ((1 - spread) * var).expand(components, -1).clone())
        self.means: Tensor
        self.variances: Tensor

    def forward(self, x: Tensor) -> Tensor:
        mean, var = x.mean((2, 3)), x.var((2, 3), unbiased=False)  # of each sample: [B, C]
        share = self.shares(mean)
        own_mean, own_var = self.mixture(mean, var, share)
        scale = torch.rsqrt(own_var + self.norm.eps)
        if self.norm.weight is not None:
            scale = scale * self.norm.weight
        y = (x - own_mean[..., None, None]) * scale[..., None, None]
        if not self.frozen:
            self.move(mean.detach(), var.detach(), share)
        return y if self.norm.bias is None else y + self.norm.bias.view(1, -1, 1, 1)

    @torch.no_grad()
    def shares(self, mean: Tensor) -> Tensor:
        """How much each sample belongs to each component [B, K]: by the angle between their means."""
        alike = F.cosine_similarity(mean[:, None], self.means[None], dim=-1)
        return (alike / self.temperature).softmax(-1)

    def mixture(self, mean: Tensor, var: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and variance [B, C] that normalize each sample: the components', moved towards the sample."""
        p = share[..., None]
        means = (1 - p) * self.means + p * mean[:, None]
        variances = (1 - p) * self.variances + p * var[:, None]
        if self.within:
            variances = variances + p * (1 - p) * (mean[:, None] - self.means).square()
        mixed = means.mean(1)
        return mixed, variances.mean(1) + means.square().mean(1) - mixed.square()

    @torch.no_grad()
    def move(self, mean: Tensor, var: Tensor, share: Tensor) -> None:
        """Moves the components towards the samples that belong to them: the mean over the batch of share x distance."""
        weight = share.mean(0)[:, None]
        pull = share.T / len(mean)
        self.means, self.variances = (
            self.means + self.rate * (pull @ mean - weight * self.means),
            self.variances + self.rate * (pull @ var - weight * self.variances),
        )


def replaceable(model: nn.Module) -> list[tuple[nn.Module, str, nn.BatchNorm2d]]:
    """The BatchNorm2d with running statistics, each with the module that holds it and its name there."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.BatchNorm2d) and child.running_mean is not None
    ]


@decoder(
    id="unmix-tns",
    name="UnMix-TNS",
    paper="Un-Mixing Test-Time Normalization Statistics: Combatting Label Temporal Correlation",
    arxiv="2401.08328",
    recommends={"training": {"evaluation_batch": 64}},
    example={
        "task": {"use": "corrupted-digits", "passes": 2},
        "model": {"use": "cnn", "widths": [4]},
        "training": {"evaluation_batch": 64},
    },
)
class UnMixTNS(Decoder):
    """Adapts batch normalization to the data that a trained model is tested on, also where the classes come one after
    the other. Each layer keeps several components of statistics; a sample moves those that it resembles, and is
    normalized by their mixture, which stays as broad as a mixed batch would be.

        m_b, s_b = mean and variance of sample b over its pixels
        p_bk = softmax_k(cos(m_b, mu_k) / temperature)
        M_bk = (1 - p_bk) mu_k + p_bk m_b,   V_bk = (1 - p_bk) v_k + p_bk s_b
        mean_b = avg_k M_bk,   var_b = avg_k V_bk + avg_k M_bk^2 - mean_b^2
        y = (x - mean_b) / sqrt(var_b + eps) gamma + beta
        afterwards: mu_k += eta avg_b p_bk (m_b - mu_k),   v_k += eta avg_b p_bk (s_b - v_k)
        eta = 1 - (1 - momentum)^(B / 64),   B = evaluation_batch
        start: mu_k = mu + sqrt(alpha K / (K - 1)) sd N(0, 1),   v_k = (1 - alpha) sd^2   from the trained layer

    Helps: a long test stream under other conditions than the training's, sorted or correlated by class, where the
        statistics of a batch would be those of one class; any batch size.
    Hurts: short streams: a component moves by about eta / K a batch, so it takes hundreds of batches to leave a source
        that is far away. On a mixed stream the statistics of each batch are some points better.
    Cost: one pass, and K C numbers a layer.
    Choices: the layers' momentum is the one that they were trained with. Layers without pixels (after pooling) keep
        their trained statistics. Every evaluation begins at the trained statistics, and what a probe asks in between
        moves nothing. `within` adds the spread between a sample and its component, p (1 - p) (m_b - mu_k)^2, to V.

    Args:
        components: Components of each layer (K); one alone is instance normalization.
        temperature: How sharply a sample belongs to the components that it resembles.
        alpha: Share of the trained variance that lies between the components at the start; the rest is within them.
        within: Whether the spread between a sample and its component counts as variance.

    Raises:
        ValueError: For a model without batch normalization over images.
    """

    ordered = True
    inputs = ("image",)

    def __init__(
        self, components: Count = 16, temperature: Positive = 0.07, alpha: Fraction = 0.5, within: bool = False
    ):
        self.components, self.temperature, self.alpha, self.within = components, temperature, alpha, within
        self._places: list[tuple[nn.Module, str, nn.Module]] = []

    def setup(self, run: Run) -> None:
        if not replaceable(run.model):  # a technique may have taken away what the model began with
            raise ValueError(NOTHING)

    def reset(self, run: Run, rng: torch.Generator) -> None:
        self._places = [(parent, name, self._layer(run, norm, rng)) for parent, name, norm in replaceable(run.model)]

    def _layer(self, run: Run, norm: nn.BatchNorm2d, rng: torch.Generator) -> UnMixNorm:
        rate = rate_of(0.1 if norm.momentum is None else norm.momentum, run.evaluation_batch)
        return UnMixNorm(norm, self.components, self.temperature, self.alpha, rate, self.within, rng)

    def predict(self, run: Run, batch: Batch, rng: torch.Generator) -> Any:
        with self._in_place():
            return run.answer(batch)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        before = [getattr(parent, name) for parent, name, _ in self._places]
        try:
            for parent, name, layer in self._places:
                setattr(parent, name, layer)
            yield
        finally:
            for (parent, name, _), norm in zip(self._places, before, strict=True):
                setattr(parent, name, norm)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        return None if replaceable(anatomy.module) else NOTHING
