"""Batch normalization for streams: balanced over experiences, with a memory that slows down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Count, Fraction, NonNegative, Positive, Whole
from engine.kit.anatomy import Site
from engine.parts import Layer, Task, layer

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy

ID = "adab2n"
NORM = ("weight", "bias", "running_mean", "running_var")


@layer(
    id=ID,
    name="AdaB2N",
    paper="Overcoming Recency Bias of Normalization Statistics in Continual Learning: Balance and Adaptation",
    arxiv="2310.08855",
    example={
        "task": {"use": "digit-stream"},
        "model": {"use": "cnn", "widths": [4, 4]},
        "sampler": {"use": "experiences"},
        "techniques": [
            {"use": "replace", "layer": {"use": ID}},
            {"use": "experience-replay", "buffer": 20, "replayed": 8},
        ],
        "training": {"batch_size": 16, "evaluate_every": 0},
        "budget": {"steps": 30},
    },
)
class AdaB2N(Layer):
    """A batch normalization for data that come in experiences, some samples of earlier ones among the new. It weighs
    experiences instead of samples, and its running statistics do not run after the newest one.

        p_k = (exp(w_k) + n_k) / sum over present j of (exp(w_j) + n_j);   a_i = p_k(i) / n_k(i)
        mu = sum_i a_i mean(x_i);   var = sum_i a_i mean((x_i - mu)^2);   out = gain (x - mu) / sqrt(var + eps) + shift
        eta_1 = m^kappa;   eta_t = eta_(t-1) / (eta_(t-1) + (1 - m)^kappa);   running <- (1 - eta) running + eta batch
        loss <- loss + pull (mean((mu - running mean)^2) + mean((var - running var)^2))
        n_k: samples of experience k in the batch;  w_k: learned, one a layer and experience, from 0

    Helps: Learning from a stream with replay: the statistics fit all experiences and not the last one alone.
    Hurts: Shuffled data, where it is a batch normalization with more to learn. On a short stream of digits the gain is
        within the spread over seeds.
    Cost: That of batch normalization, and one number for each experience and layer.
    Choices: Experiences that are not in the batch take no part, so that the weights of the samples sum to one; `absent`
        = "reference" leaves those seen before in the denominator, as the published code does, which draws the mean to
        zero. The variance is the biased one, also in the running statistics. eta goes on over all experiences. The
        running statistics in the pull are those after the step's update, held fixed. Evaluation normalizes by them, as
        does a pass that is told no experiences. w does not decay.

    Args:
        site: The batch normalization whose place it takes.
        experiences: How many experiences there can be.
        momentum: m, the share of a new batch in the running statistics where kappa is 1.
        kappa: 1 keeps the share as it is, 0 averages over all batches alike.
        pull: Weight of the term that keeps a batch's statistics near the running ones.
        start: The experience from which on that term counts.
        absent: What becomes of experiences that are not in the batch.
        eps: What is added to the variance.

    Raises:
        ValueError: At a place that is no batch normalization.
    """

    role = "norm"
    needs_side = ("experience",)
    running_mean: Tensor
    running_var: Tensor
    eta: Tensor
    seen: Tensor

    def __init__(
        self,
        site: Site | nn.Module,
        experiences: Count = 10,
        momentum: Fraction = 0.1,
        kappa: Fraction = 0.7,
        pull: NonNegative = 0.1,
        start: Whole = 0,
        absent: Literal["renormalize", "reference"] = "renormalize",
        eps: Positive = 1e-5,
    ):
        super().__init__()
        norm: Any = site.module if isinstance(site, Site) else site
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            raise ValueError(f"AdaB2N takes the place of a batch normalization, and this is a {type(norm).__name__}.")
        self.features, self.experiences, self.absent = norm.num_features, experiences, absent
        self.momentum, self.kappa, self.pull, self.start, self.eps = momentum, kappa, pull, start, eps
        self.weight = nn.Parameter(torch.ones(norm.num_features))
        self.bias = nn.Parameter(torch.zeros(norm.num_features))
        self.balance = nn.Parameter(torch.zeros(experiences))
        self.register_buffer("running_mean", torch.zeros(norm.num_features))
        self.register_buffer("running_var", torch.ones(norm.num_features))
        self.register_buffer("eta", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(experiences, dtype=torch.bool))
        self._plain = type(norm)
        self._experience: Tensor | None = None
        self._apart: Tensor | None = None

    def side(self, experience: Tensor) -> None:
        self._experience = experience

    def param_options(self) -> dict[str, dict[str, float]]:
        return {"balance": {"weight_decay": 0.0}}

    def forward(self, x: Tensor) -> Tensor:
        self._apart = None
        if not self.training or self._experience is None or len(self._experience) != len(x):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        share = self.shares(self._experience).to(x.dtype)
        each = x.flatten(2).mean(2) if x.dim() > 2 else x
        mean = share @ each
        centred = x - shaped(mean, x)
        squares = centred.square()
        var = share @ (squares.flatten(2).mean(2) if x.dim() > 2 else squares)
        self._follow(mean, var)
        if self.pull:
            apart = F.mse_loss(mean, self.running_mean) + F.mse_loss(var, self.running_var)
            self._apart = self.pull * apart * (self._experience.max() >= self.start)
        return centred * shaped(self.weight / (var + self.eps).sqrt(), x) + shaped(self.bias, x)

    def shares(self, experience: Tensor) -> Tensor:
        """How much each sample of a batch weighs."""
        member = F.one_hot(experience, self.experiences).to(self.balance.dtype)
        count = member.sum(0)
        counted = count > 0
        if self.absent == "reference":
            with torch.no_grad():
                self.seen |= counted
            counted = self.seen
        size = (self.balance.exp() + count) * counted
        weight = size / size.sum() / count.clamp_min(1)
        return member @ weight

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        """Takes a batch into the running statistics, by a share that falls from step to step."""
        first = torch.full_like(self.eta, self.momentum**self.kappa)
        later = self.eta / (self.eta + (1 - self.momentum) ** self.kappa)
        self.eta.copy_(torch.where(self.eta > 0, later, first))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.eta)
        self.running_var.lerp_(var.to(self.running_var.dtype), self.eta)

    def aux_loss(self) -> Tensor | None:
        return self._apart

    def fold(self) -> nn.Module:
        """The plain batch normalization that does the same in evaluation."""
        made = self._plain(self.features, eps=self.eps, device=self.weight.device, dtype=self.weight.dtype)
        made.load_state_dict({name: self.state_dict()[name] for name in NORM}, strict=False)
        return made.train(self.training)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        column = task.columns("train").get("meta.experience")
        if column is not None and int(column.max()) >= settings["experiences"]:
            there = int(column.max()) + 1
            return f"The task has {there} experiences, more than {settings['experiences']}; raise experiences."
        return None


def shaped(values: Tensor, like: Tensor) -> Tensor:
    """One value a channel, ready to act on a batch of vectors or images."""
    return values.view(1, -1, *[1] * (like.dim() - 2))
