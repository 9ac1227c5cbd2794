"""Bilevel optimization where the lower level is touched only now and then, and the upper one moves by steps of one
length."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from engine.fields import Count, Decay, Live, Positive, Whole
from engine.kit.curvature import norm, plus
from engine.kit.live import bounds
from engine.kit.two_level import (
    LearnedValues,
    SampleWeights,
    TwoLevel,
    Upper,
    area_under_curve,
    resting,
    with_slopes,
)
from engine.parts import Batch, Procedure, Progress, Schedule, Task, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "bo-rep"
FLOOR = 1e-10
FIRST_STRETCH = 10  # steps of the refinement's first stretch; each one after it is twice as long


class NormalizedMomentum(Optimizer):
    """Steps of one length: m <- beta m + (1 - beta) g, from m = the first g; x <- x - lr m / |m|, |m| over all x."""

    def __init__(self, params: ParamsT, lr: float = 0.01, beta: float = 0.9, normalize: bool = True):
        super().__init__(params, {"lr": lr, "beta": beta, "normalize": normalize})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        moved = [p for each in self.param_groups for p in each["params"] if p.grad is not None]
        for p in moved:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = p.grad.clone()
        momenta = [self.state[p]["momentum"] for p in moved]
        torch._foreach_lerp_(momenta, [p.grad for p in moved], 1 - group["beta"])
        length = norm(momenta).clamp_min(FLOOR) if group["normalize"] else 1.0
        torch._foreach_sub_(moved, torch._foreach_mul(momenta, group["lr"] / length))


def stretches(steps: int) -> list[int]:
    """Where the refinement's stretches begin, each twice as long as the one before; the last one is cut."""
    begins, length, at = [], FIRST_STRETCH, 0
    while at < steps:
        begins.append(at)
        at, length = at + length, 2 * length
    return begins


class Refining(Schedule):
    """The recipe's curve, halved with each stretch of the refinement; as it is after it."""

    needs_total = False

    def __init__(self, base: Schedule | None, steps: int):
        self.base, self.steps = base, steps
        self._begins = stretches(steps)

    def stretch(self, step: int) -> int:
        """The stretch that a step is in, from 0; 0 after the refinement."""
        return sum(begin <= step for begin in self._begins) - 1 if step < self.steps else 0

    def factor(self, at: Progress) -> float:
        return (self.base.factor(at) if self.base else 1.0) * 0.5 ** self.stretch(at.step)

    def options(self, at: Progress, lr: float) -> dict[str, float]:
        options = self.base.options(at, lr) if self.base else {"lr": lr}
        return {**options, "lr": options["lr"] * 0.5 ** self.stretch(at.step)}


@torch.no_grad()
def project(parameters: list[Tensor], center: list[Tensor], radius: float) -> None:
    """Brings the parameters back into the ball around a center: the nearest point of it."""
    away = plus(parameters, center, -1.0)
    share = (radius / norm(away).clamp_min(FLOOR)).clamp_max(1.0)
    torch._foreach_copy_(parameters, plus(center, away, share))


@procedure(
    id=ID,
    name="BO-REP",
    paper="Bilevel Optimization under Unbounded Smoothness: A New Algorithm and Convergence Analysis",
    arxiv="2401.09587",
    precision="fp32",
    recommends={
        "task": {"use": "digits", "label_noise": 0.4, "outer": 0.2},
        "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.0},
        "techniques": [{"use": "weight-penalty", "strength": 0.001}],
    },
    example={
        "task": {"use": "digits", "train_limit": 60, "label_noise": 0.4, "outer": 0.1},
        "model": {"hidden": [4]},
        "optimizer": {"use": "sgd", "lr": 0.05},
        "training": {"batch_size": 16},
        "procedure": {"use": ID, "init_steps": 4, "interval": 2, "inner_steps": 2},
        "budget": {"steps": 10},
    },
)
class BORep(Procedure):
    """Trains the model on the training split, and beside it what the training should count: a weight for each
    training sample, or numbers of the recipe, so that the trained model does well on samples kept apart for that.

        lower level:  y = the model's weights, least G(x, y) on the training split, touched every `interval` steps
                      y <- y - lr G_y, `inner_steps` times, kept within `radius` of where it stood
        upper level:  z <- z - nu (G_yy z - F_y)                      a running solution of G_yy z = F_y
                      m <- beta m + (1 - beta) (F_x - G_xy z);   x <- x - eta m / |m|
        F: the task's loss on the outer split; sample weights enter G as sigmoid(x_i) loss_i

    Every upper step has the length eta, however steep the loss is, so that the model that was left alone for a while
    is still nearly the right one. The run begins with `init_steps` of the lower level alone, at halving rates.

    Helps: wrong labels, samples of different worth, penalties whose strength is unknown; losses so steep that plain
        gradient steps of the upper level blow up.
    Hurts: where the outer split is small, or no better than the rest: against wrong labels it must be clean, so let the
        task keep it (a share of noisy training samples is as noisy). A run moves x by at most eta times its steps.
    Cost: an upper step takes two passes for products with second derivatives and two of the outer loss; the model
        itself takes inner_steps updates in each interval.
    Choices: z starts at zero and m at the first slope. The refinement's stretches last 10, 20, 40, ... steps; with each
        the rate halves and the radius shrinks by the root of two. F is measured with the model at rest: nothing drops.
        The lower level's rate is the optimizer's, best plain SGD; give it a weight penalty, which makes G curve up.

    Args:
        tune: What the upper level moves: learned values of the recipe. Empty: one weight for each training sample.
        eta: Length of one upper step.
        beta: How much of the upper momentum stays in a step.
        nu: Rate of the steps that solve for z.
        interval: Upper steps between two visits to the lower level.
        inner_steps: Updates of the model at a visit.
        init_steps: Updates of the model alone at the beginning of the run.
        radius: How far the model may move in one visit, over all its weights together.
        normalize: Give every upper step the length eta; without it a step is eta times the momentum.
    """

    needs_outer = True
    makes = ("main", "upper")
    keeps_parameters = True  # a second copy of the weights, and the center of a ball around them

    def __init__(
        self,
        tune: Live = {},  # noqa: B006 - the default is shown in the form; it is never changed
        eta: Positive = 0.01,
        beta: Decay = 0.9,
        nu: Positive = 0.01,
        interval: Count = 3,
        inner_steps: Count = 3,
        init_steps: Whole = 100,
        radius: Positive = 1.0,
        normalize: bool = True,
    ):
        self.tune, self.eta, self.beta, self.nu = dict(tune), eta, beta, nu
        self.interval, self.inner_steps, self.init_steps = interval, inner_steps, init_steps
        self.radius, self.normalize = radius, normalize
        self._bounds = bounds(self.tune)
        self.z: list[Tensor] = []
        self.center: list[Tensor] = []  # of the ball of the current stretch of the refinement
        self._upper: Upper

    def setup(self, run: Run) -> None:
        self._upper = LearnedValues(run.live, self._bounds) if self._bounds else SampleWeights(run.samples)
        self._upper.to(run.device)
        self._schedule = Refining(run.default_schedule(), self.init_steps)
        main = run.add_role("main", run.model, schedule=self._schedule)
        move = partial(NormalizedMomentum, lr=self.eta, beta=self.beta, normalize=self.normalize)
        upper = run.add_role("upper", self._upper, optimizer=move, schedule=False)
        self._problem = TwoLevel(
            upper.parameters, main.parameters, partial(self._inner, run), partial(self._outer, run)
        )
        self.z = [torch.zeros_like(p) for p in main.parameters]

    def step(self, run: Run, batch: Batch) -> None:
        k = run.progress.step - self.init_steps
        if k < 0:
            self._refine(run, batch)
            return
        if k and k % self.interval == 0:
            self._visit(run)
        train, outer = run.stream_of("train", ID), run.stream_of("outer", ID)
        self._upper.enter()
        residual = self._problem.residual(self.z, batch, outer.next())
        self.z = plus(self.z, residual, -self.nu)
        slopes, loss = self._problem.hypergradient(self.z, train.next(), outer.next())
        self._upper.leave()
        run.update("upper", {"task": with_slopes(loss, self._problem.upper, slopes)}, alone=True)
        self._upper.leave()

    def _refine(self, run: Run, batch: Batch) -> None:
        """One step of the lower level alone, in the ball of its stretch."""
        parameters = run.roles["main"].parameters
        step = run.progress.step
        stretch = self._schedule.stretch(step)
        if step in stretches(self.init_steps):
            self.center = [p.detach().clone() for p in parameters]
        self._lower(run, batch)
        project(parameters, self.center, self.radius * 0.5 ** (stretch / 2))

    def _visit(self, run: Run) -> None:
        """A few steps of the lower level, in the ball around where it stands."""
        parameters = run.roles["main"].parameters
        center = [p.detach().clone() for p in parameters]
        stream = run.stream_of("train", ID)
        for _ in range(self.inner_steps):
            self._lower(run, stream.next())
            project(parameters, center, self.radius)

    def _lower(self, run: Run, batch: Batch) -> None:
        run.batch = batch
        run.update("main", self._upper.weigh(run.terms(run.forward(batch), batch), batch), alone=True)

    def _inner(self, run: Run, batch: Batch) -> Tensor:
        """G: the training loss, as the upper variables weigh it."""
        return run.total(self._upper.weigh(run.terms(run.forward(batch), batch), batch), batch)

    def _outer(self, run: Run, batch: Batch) -> Tensor:
        """F: the objective on samples kept apart."""
        with resting(run.model):
            return run.total(run.objective(run.forward(batch), batch), batch)

    def result(self, run: Run) -> dict[str, float]:
        """How well the weights tell right labels from wrong ones, where the task knows which are which."""
        columns = run.columns("train")
        if not isinstance(self._upper, SampleWeights) or "meta.clean" not in columns:
            return {}
        right = columns["meta.clean"] == columns["target"]
        both = bool(right.any()) and not bool(right.all())
        return {"auc": float(area_under_curve(self._upper.logits.detach(), right))} if both else {}

    def found(self, run: Run) -> dict[str, Any]:
        """The learned values where they ended."""
        return self._upper.numbers() if isinstance(self._upper, LearnedValues) else {}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if recipe["training"]["accumulate"] > 1:
            return "It draws batches of its own for both levels, so a step cannot be split; write accumulate = 1."
        return None
