"""Distillation in which every sample has its own mixture of teacher and truth, learned on held-out samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.fields import Count, Fraction, Positive, Rate, SourceField, Whole
from engine.parts import Batch, Source, Task, Technique, Terms, technique

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "tgeo-kd"
LOG_EVERY = 10


def distance(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """tau^2 KL(teacher || student) of softened answers, a value a sample."""
    target = F.log_softmax(teacher / tau, -1)
    return tau**2 * F.kl_div(F.log_softmax(student / tau, -1), target, reduction="none", log_target=True).sum(-1)


def triangle(student: Tensor, teacher: Tensor, truth: Tensor) -> Tensor:
    """The sides of the triangle between three points in probability space: S - G, T - G, S - T, side by side."""
    return torch.cat([student - truth, teacher - truth, student - teacher], -1)


def look_ahead(loss: Tensor, parameters: Sequence[Tensor], rate: float) -> list[Tensor]:
    """The parameters after one plain gradient step, differentiable in whatever the loss depends on."""
    grads = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    return [p if g is None else p - rate * g for p, g in zip(parameters, grads, strict=True)]


class Mixer(nn.Module):
    """From the geometry of a sample to the teacher's share of its loss, in (0, 1). It starts at one share for all."""

    def __init__(self, inputs: int, hidden: int, start: float, rng: torch.Generator):
        super().__init__()
        self.inner = nn.Linear(inputs, hidden, device=rng.device)
        self.outer = nn.Linear(hidden, 1, device=rng.device)
        bound = inputs**-0.5
        nn.init.uniform_(self.inner.weight, -bound, bound, generator=rng)
        nn.init.zeros_(self.inner.bias)
        nn.init.zeros_(self.outer.weight)
        odds = math.log(start / (1 - start)) if 0 < start < 1 else math.copysign(math.inf, start - 0.5)
        nn.init.constant_(self.outer.bias, odds)

    def forward(self, geometry: Tensor) -> Tensor:
        return torch.sigmoid(self.outer(torch.relu(self.inner(geometry)))).squeeze(-1)


@technique(
    id=ID,
    name="TGeo-KD",
    paper="Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation",
    arxiv="2312.15112",
    precision="fp32",
    example={
        "task": {"use": "digits"},
        "techniques": [{"use": ID, "teacher": "recipe:sources/small-digits.toml", "hidden": 8}],
        "training": {"outer": 0.1},
    },
)
class TGeoKD(Technique):
    """Lets a student learn from a teacher and from the labels, in a mixture that a small network chooses for each
    sample. That network learns on held-out samples which of the two helps.

        loss of sample i = a_i tau^2 KL(T_i^tau || S_i^tau) + (1 - a_i) CE(S_i, y_i)
        a_i = f_omega(S - G, T - G, S - T;  S - M, M - G, T - M),   M the teacher's mean answer to the sample's class
        theta' = theta - lr grad_theta mean loss(theta, a(omega))
        omega <- Adam step on grad_omega CE(theta'; held-out batch);   then the student's own step, with the new omega

    S, T and the truth G are points in probability space; what f_omega sees of the student carries no gradient.

    Helps: small students, few labels, teachers that are wrong on some samples.
    Hurts: nothing to speak of but time; with a good teacher and enough samples a constant share does as well.
    Cost: the teacher's forward pass, and, every `update_every` steps, a second-order step: about three passes.
    Choices: the held-out batch is drawn from the split `outer`, as large as a training batch. The look-ahead is plain
        gradient descent at the schedule's rate whatever optimizer the student has; it replays no draw and moves no
        running statistics. f_omega's last layer starts at zero, so that every sample starts with init_alpha. The
        teacher answers to the batch as it is trained on, augmented or not.

    Args:
        teacher: The trained model to learn from.
        tau: Temperature of the softened answers.
        hidden: Width of the network that chooses.
        omega_lr: Its learning rate.
        update_every: Steps between its updates; 0 keeps the share init_alpha, which is ordinary distillation.
        use_inter: Show it also how a sample's teacher differs from the teacher's mean for the class.
        init_alpha: The teacher's share at the start.

    Raises:
        ValueError: Where the teacher takes other inputs than the task has, or answers with other classes.
    """

    reads = ("gradients", "output")

    def __init__(
        self,
        teacher: SourceField,
        tau: Positive = 4.0,
        hidden: Count = 64,
        omega_lr: Rate = 1e-3,
        update_every: Whole = 1,
        use_inter: bool = True,
        init_alpha: Fraction = 0.5,
    ):
        self.teacher: Source = teacher
        self.tau, self.hidden, self.omega_lr = tau, hidden, omega_lr
        self.update_every, self.use_inter, self.init_alpha = update_every, use_inter, init_alpha
        self.net: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    def setup(self, run: Run) -> None:
        self._model = self.teacher.model()
        self._classes = run.offer.size
        self._means = self._mean_answers(run)
        sides = 6 if self.use_inter else 3
        self.net = Mixer(sides * self._classes, self.hidden, self.init_alpha, run.rng(ID))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=self.omega_lr)

    @torch.no_grad()
    def _mean_answers(self, run: Run) -> Tensor:
        """The teacher's mean answer to the training samples of each class: [classes, classes]."""
        totals = torch.zeros(self._classes, self._classes, device=run.device)
        counts = torch.zeros(self._classes, device=run.device)
        for batch in run.batches("train"):
            try:
                answers = batch.call(self._model)
            except RuntimeError as error:
                raise ValueError(f"{self.teacher.label} does not take this task's inputs: {error}.") from None
            if answers.shape[-1] != self._classes:
                raise ValueError(
                    f"{self.teacher.label} answers with {answers.shape[-1]} classes, the task has {self._classes}."
                )
            totals.index_add_(0, batch.target, answers.softmax(-1))
            counts += torch.bincount(batch.target, minlength=self._classes)
        return totals / counts.clamp_min(1).unsqueeze(1)

    # -- the step ------------------------------------------------------------------------------------------------------

    def geometry(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """What the choosing network sees of each sample."""
        s, t = student.detach().softmax(-1), teacher.softmax(-1)
        truth = F.one_hot(target, s.shape[-1]).to(s.dtype)
        sides = triangle(s, t, truth)
        if not self.use_inter:
            return sides
        mean = self._means[target].to(s.dtype)
        return torch.cat([sides, s - mean, mean - truth, t - mean], -1)

    def on_terms(self, run: Run, terms: Terms, output: Tensor, batch: Batch) -> Terms:
        assert self.net is not None
        with torch.no_grad():
            answers = batch.call(self._model)
        taught, told = distance(output, answers, self.tau), terms["task"]
        seen = self.geometry(output, answers, batch.target)
        if self.update_every and run.step % self.update_every == 0 and run.last_micro:
            self._learn(run, taught, told, seen)
        with torch.no_grad():
            share = self.net(seen)
        if run.step % LOG_EVERY == 0:
            run.log(f"{ID}/alpha", share.mean())
        return {**terms, "task": share * taught + (1 - share) * told}

    def _learn(self, run: Run, taught: Tensor, told: Tensor, seen: Tensor) -> None:
        """One step of the choosing network on a held-out batch, through one step of the student."""
        assert self.net is not None and self.optimizer is not None
        role = run.roles["main"]
        share = self.net(seen)
        inner = (share * taught + (1 - share) * told).mean()
        rate = role.optimizer.param_groups[0].get("lr", 0.0) if role.optimizer is not None else 0.0
        ahead = look_ahead(inner, role.parameters, rate)
        held_out = run.stream_of("outer", ID).next()
        value = run.oracle(held_out).total(dict(zip(role.names, ahead, strict=True)))
        grads = torch.autograd.grad(value, list(self.net.parameters()))
        for parameter, grad in zip(self.net.parameters(), grads, strict=True):
            parameter.grad = grad
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if task.offer.output != "classes":
            return "It compares the answers with one true class a sample; choose a task with classes."
        if settings["update_every"] and not task.size("outer"):
            return (
                "it learns on the split outer, which this recipe has not; write training.outer = 0.1, a share of the "
                "training samples, or update_every = 0."
            )
        if settings["update_every"] and not 0 < settings["init_alpha"] < 1:
            return "A share of exactly 0 or 1 cannot be learned further; write init_alpha between them."
        return None
