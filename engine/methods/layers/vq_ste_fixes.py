"""Vectors replaced by the nearest of a learned list, with a list that keeps up with the vectors."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Decay, Fraction, NonNegative, Positive, Whole
from engine.kit.anatomy import Site
from engine.kit.clustering import k_means, nearest, sums
from engine.kit.masks import straight_through
from engine.parts import Layer, layer

ID = "vq-ste-fixes"
MOMENTUM = 0.1  # of running statistics
NOISE = 0.01  # of a replaced code, relative to its length
TINY = 1e-8
AtLeastTwo = Annotated[int, Field(ge=2)]
Groups = Annotated[int, Field(ge=1)]


class LearnedAffine(nn.Module):
    """c = (1 + rate s) c~ + rate m, with one s and m for each group of codes: every code moves in every step."""

    def __init__(self, features: int, rate: float, groups: int):
        super().__init__()
        self.rate = rate
        self.scale, self.shift = (nn.Parameter(torch.zeros(groups, 1, features)) for _ in range(2))

    def coefficients(self) -> tuple[Tensor, Tensor]:
        return 1 + self.rate * self.scale, self.rate * self.shift

    def watch(self, z: Tensor, codes: Tensor) -> None:
        """Nothing to keep: it learns."""


class RunningAffine(nn.Module):
    """c = s c~ + m that gives the codes the mean and deviation of the vectors, from running statistics of both."""

    def __init__(self, features: int):
        super().__init__()
        self.z_mean: Tensor
        self.z_var: Tensor
        self.c_mean: Tensor
        self.c_var: Tensor
        self.started: Tensor
        for name, value in (("z_mean", 0.0), ("z_var", 1.0), ("c_mean", 0.0), ("c_var", 1.0)):
            self.register_buffer(name, torch.full((1, 1, features), value))
        self.register_buffer("started", torch.zeros(()))

    def coefficients(self) -> tuple[Tensor, Tensor]:
        scale = (self.z_var / (self.c_var + TINY)).sqrt()
        return scale, self.z_mean - scale * self.c_mean

    @torch.no_grad()
    def watch(self, z: Tensor, codes: Tensor) -> None:
        """Follows the statistics of a batch; takes those of the first one as they are."""
        share = 1 - self.started * (1 - MOMENTUM)
        for rows, mean, var in ((z, self.z_mean, self.z_var), (codes, self.c_mean, self.c_var)):
            now_var, now_mean = torch.var_mean(rows, 0, correction=0)
            mean.lerp_(now_mean.to(mean.dtype), share)
            var.lerp_(now_var.to(var.dtype), share)
        self.started.fill_(1)


@layer(
    id=ID,
    paper="Straightening Out the Straight-Through Estimator: Overcoming Optimization Challenges in Vector Quantized "
    "Networks",
    arxiv="2305.08842",
    name="Vector quantization with affine codes",
    graph="never",
    example={
        "task": {"use": "reconstruction", "of": {"use": "digits"}},
        "model": {"use": "conv-autoencoder", "width": 4, "latent": 4, "quantizer": {"use": ID, "codes": 16}},
        "techniques": [],
    },
)
class VQSTEFixes(Layer):
    """Replaces each vector by the nearest of a learned list of codes, and lets the gradient pass as if nothing had
    happened. Three changes keep the codes where the vectors are, which plain ones lose sight of.

        q = argmin_k |z - c_k|;   out = z + [c_q - z] + nu (c_q - [c_q]);   [.] has no gradient
        loss = alpha ((1 - beta) mean (z - [c_q])^2 + beta mean ([z] - c_q)^2)
        affine:       c_k = s c~_k + m, with s and m shared: learned (1 + rate s', rate m'), or from running statistics
        alternating:  before each step the codes alone go down mean (c_q - [z])^2, and there is no loss beside the task
        synchronous:  nu > 0: the task's gradient reaches the codes too, which move along with the vectors

    Helps: Discrete codes of images, sounds or features, whenever many codes go unused.
    Hurts: Where plain quantization uses its codes well already, the additions bring little; where a start without data
    leaves few codes in use, they do not bring the others back. The alternating step runs away where one code takes most
    vectors: inner_lr times its share of them must stay well below the length of a vector.
    Cost: The distances of all vectors to all codes; a few numbers more than plain quantization.

    Choices: Vectors are the channels at each pixel, or the last axis of anything else. The alternating step has its own
    momentum and keeps the first lookup, as the reference does; it replaces beta. Splitting batches, and whatever passes
    the model several times in a step, makes as many alternating steps. An unused code becomes a vector of the next
    batch plus noise, taken back through the affine map.

    Args:
        site: What it follows; the number of its channels is the length of a vector.
        codes: Vectors in the list.
        alpha: Weight of the loss beside the task's.
        beta: Share of that loss that moves the codes; the rest draws the vectors to them.
        affine: Whether codes share a scale and a shift, and where these come from.
        affine_rate: Factor on the learned scale and shift, in effect their learning rate.
        affine_groups: Groups of codes with a learned scale and shift of their own; they divide the codes.
        sync_nu: Weight of the task's gradient at the codes; 0 leaves it out.
        alternating: Whether the codes take a step of their own before each step of the network.
        inner_lr: Learning rate of that step; the mean over all numbers makes its gradients tiny.
        inner_momentum: Momentum of that step.
        timeout: Training batches after which an unused code is replaced; 0 never replaces one.
        k_means_start: Whether the codes start as the cluster centres of the first batch.
        normalize: What is done to vectors and codes first: nothing, length 1, or mean 0 and deviation 1.

    Raises:
        ValueError: Where the number of channels is not known, or groups do not divide the codes.
    """

    role = "activation"
    left: Tensor
    velocity: Tensor

    def __init__(
        self,
        site: Site | int,
        codes: AtLeastTwo = 256,
        alpha: NonNegative = 10.0,
        beta: Fraction = 0.95,
        affine: Literal["learned", "running", "none"] = "learned",
        affine_rate: Positive = 2.0,
        affine_groups: Groups = 1,
        sync_nu: NonNegative = 2.0,
        alternating: bool = False,
        inner_lr: Positive = 50.0,
        inner_momentum: Decay = 0.9,
        timeout: Whole = 0,
        k_means_start: bool = True,
        normalize: Literal["none", "l2", "layer"] = "none",
    ):
        super().__init__()
        features = site if isinstance(site, int) else site.features
        if features < 1:
            raise ValueError("vector quantization needs to know how long a vector is, and this place does not say.")
        if codes % affine_groups:
            raise ValueError(f"{affine_groups} groups do not divide {codes} codes. Write a number that does.")
        self.features, self.codes, self.alpha, self.beta, self.sync_nu = features, codes, alpha, beta, sync_nu
        self.alternating, self.inner_lr, self.inner_momentum = alternating, inner_lr, inner_momentum
        self.groups, self.timeout = affine_groups if affine == "learned" else 1, timeout
        self.k_means_start, self.normalize = k_means_start, normalize
        self.codebook = nn.Parameter(torch.randn(codes, features))
        self.affine: LearnedAffine | RunningAffine | None = None
        if affine != "none":
            learned = affine == "learned"
            self.affine = LearnedAffine(features, affine_rate, affine_groups) if learned else RunningAffine(features)
        self.register_buffer("left", torch.full((codes,), float(timeout)) if timeout else None)
        self.register_buffer("velocity", torch.zeros(codes, features) if alternating else None)
        self._loss: Tensor | None = None
        self._seen: tuple[Tensor, Tensor] | None = None  # what the last training batch was given, and how far off

    @classmethod
    def for_site(cls, site: Site, **settings: Any) -> nn.Module:
        """It follows what is there; where nothing is, it stands alone."""
        made = cls(site, **settings)
        if isinstance(site.module, nn.Identity):
            return made
        return nn.Sequential(OrderedDict([(site.role or "before", site.module), ("quantizer", made)]))

    # -- the codes -----------------------------------------------------------------------------------------------------

    def table(self) -> Tensor:
        """The codes as vectors are compared with them, [K, d]."""
        codes = self.codebook.clone()  # what is changed in place later must not be what the gradient needs
        if self.affine is not None:
            scale, shift = self.affine.coefficients()
            codes = (scale * codes.view(self.groups, -1, self.features) + shift).flatten(0, 1)
        return _normalized(codes, self.normalize)

    def lookup(self, z: Tensor) -> Tensor:
        """The number of the nearest code of each row."""
        with torch.no_grad():
            return nearest(z, self.table())

    @torch.no_grad()
    def init_from(self, x: Tensor) -> None:
        """Puts the codes at the cluster centres of these vectors."""
        if self.k_means_start:
            self.codebook.copy_(k_means(self._rows(x), self.codes))

    @torch.no_grad()
    def step_codes(self, z: Tensor, q: Tensor) -> None:
        """One step of the codebook alone down mean (c_q - z)^2, by gradient descent with momentum."""
        with torch.enable_grad():
            error = (self.table()[q] - z.detach()).square().mean()
            (gradient,) = torch.autograd.grad(error, self.codebook)
        self.velocity.mul_(self.inner_momentum).add_(gradient)
        self.codebook.sub_(self.inner_lr * self.velocity)

    @torch.no_grad()
    def replace_unused(self, z: Tensor) -> None:
        """Codes that no vector has chosen for too long become vectors of this batch, a little off."""
        unused = (self.left <= 0).unsqueeze(1)
        rows = z[torch.randint(len(z), (self.codes,), device=z.device)]
        length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        rows = rows + NOISE * length * torch.randn_like(rows)
        if self.affine is not None:
            scale, shift = self.affine.coefficients()
            rows = ((rows.view(self.groups, -1, self.features) - shift) / scale).flatten(0, 1)
        self.codebook.copy_(torch.where(unused, rows.to(self.codebook.dtype), self.codebook))
        self.left.masked_fill_(unused.squeeze(1), float(self.timeout))

    # -- the pass ------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        z = self._rows(x)
        learns = self.training and torch.is_grad_enabled()
        if learns:
            self._prepare(z.detach())
        q = self.lookup(z)
        if learns and self.alternating:
            self.step_codes(z, q)
        chosen = F.embedding(q, self.table())
        self._loss = self._commitment(z, chosen) if self.training and not self.alternating else None
        if self.training:
            self._note(z, q, chosen)
        out = straight_through(chosen, z)
        if self.sync_nu:
            out = out + self.sync_nu * (chosen - chosen.detach())
        return self._back(out, x)

    def _prepare(self, z: Tensor) -> None:
        if self.timeout:
            self.replace_unused(z)
        if self.affine is not None:
            self.affine.watch(z, self.codebook.detach())

    def _commitment(self, z: Tensor, chosen: Tensor) -> Tensor:
        to_codes, to_vectors = (z - chosen.detach()).square().mean(), (z.detach() - chosen).square().mean()
        return self.alpha * ((1 - self.beta) * to_codes + self.beta * to_vectors)

    @torch.no_grad()
    def _note(self, z: Tensor, q: Tensor, chosen: Tensor) -> None:
        _, used = sums(z.detach()[:, :1], q, self.codes)
        self._seen = used, (z - chosen).square().mean()
        if self.timeout:
            self.left.sub_(1).masked_fill_(used > 0, float(self.timeout))

    def aux_loss(self) -> Tensor | None:
        return self._loss

    def measures(self) -> dict[str, Tensor]:
        """The share of the codes in use, their perplexity, and the squared error of a number, in a training batch."""
        if self._seen is None:
            return {}
        used, error = self._seen
        share = used / used.sum()
        entropy = -(share * share.clamp_min(1e-12).log()).sum()
        return {"active": (used > 0).float().mean(), "perplexity": entropy.exp(), "error": error}

    # -- shapes --------------------------------------------------------------------------------------------------------

    def _rows(self, x: Tensor) -> Tensor:
        """Every vector as a row: the channels of an image's pixels, else the last axis."""
        rows = x.movedim(1, -1).flatten(0, -2) if x.dim() > 3 else x.flatten(0, -2)
        return _normalized(rows.float(), self.normalize)

    def _back(self, rows: Tensor, x: Tensor) -> Tensor:
        if x.dim() <= 3:
            return rows.view(x.shape).to(x.dtype)
        shape = (x.shape[0], *x.shape[2:], self.features)
        return rows.view(shape).movedim(-1, 1).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.codes} codes of {self.features}"


def _normalized(rows: Tensor, kind: str) -> Tensor:
    if kind == "l2":
        return F.normalize(rows, dim=-1)
    return F.layer_norm(rows, rows.shape[-1:]) if kind == "layer" else rows
