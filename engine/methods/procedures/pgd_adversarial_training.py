"""Adversarial training by projected gradient ascent on the inputs, and the accuracy that is left under attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from engine.fields import Count, NonNegative, Positive, Whole
from engine.parts import Batch, Finding, Probe, Task, Technique, probe, technique

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

TITLE = "Towards Deep Learning Models Resistant to Adversarial Attacks"
Norm = Literal["linf", "l2"]
Span = tuple[float, float] | None
TINY = 1e-12


def lengths(delta: Tensor) -> Tensor:
    """The Euclidean length of each sample's row, shaped to divide it."""
    return torch.linalg.vector_norm(delta.flatten(1), dim=1).view(-1, *[1] * (delta.dim() - 1))


def random_start(x: Tensor, norm: Norm, eps: float, rng: torch.Generator | None) -> Tensor:
    """A displacement of each sample, uniform in the ball."""
    if norm == "linf":
        return (torch.rand(x.shape, generator=rng, device=x.device, dtype=x.dtype) * 2 - 1) * eps
    direction = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
    radius = torch.rand(len(x), generator=rng, device=x.device, dtype=x.dtype) ** (1 / x[0].numel())
    return direction / lengths(direction).clamp_min(TINY) * radius.view(-1, *[1] * (x.dim() - 1)) * eps


def project(delta: Tensor, norm: Norm, eps: float) -> Tensor:
    """The nearest displacement in the ball."""
    if norm == "linf":
        return delta.clamp(-eps, eps)
    return delta * (eps / lengths(delta).clamp_min(TINY)).clamp_max(1)


def ascend(
    gradient: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    norm: Norm = "linf",
    eps: float = 0.1,
    alpha: float = 0.025,
    steps: int = 7,
    start: bool = True,
    span: Span = None,
    rng: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """The points of projected gradient ascent on the loss: the start, and one after each of the steps.

    `gradient(x)` is that of the samples' summed loss. Every point lies in the ball of radius eps around x and in the
    span of valid values. The start is random in the ball, or x itself.
    """

    def valid(delta: Tensor) -> Tensor:
        point = x + delta
        return point if span is None else point.clamp(*span)

    point = valid(random_start(x, norm, eps, rng)) if start else x
    yield point
    for _ in range(steps):
        slope = gradient(point)
        move = slope.sign() if norm == "linf" else slope / lengths(slope).clamp_min(TINY)
        point = valid(project(point - x + alpha * move, norm, eps))
        yield point


def _refusal(task: Task) -> str | None:
    if task.offer.input == "tokens":
        return "It moves the inputs by small amounts, and tokens have none in between; choose a task with numbers."
    return None


@technique(
    id="pgd-adversarial-training",
    name="PGD adversarial training",
    paper=TITLE,
    arxiv="1706.06083",
)
class PGDAdversarialTraining(Technique):
    """Trains on inputs that are changed, within a small distance, to hurt the model most.
    What it learns then holds for every input in that distance, not for the given one alone.

        min_w E max_(|d| <= eps) L(w, x + d, y)
        d <- project(d + alpha sign(dL/dx))        l2: d <- project(d + alpha g / |g|)
        x + d is cut to the valid range of the inputs

    Only the changed inputs are trained on; d carries no gradient. One step of length eps from x itself is FGSM.

    Helps: accuracy under attack, from nearly none to most of it; gradients that follow what people see.
    Hurts: accuracy on clean inputs, a little; a small model may not fit the harder data at all.
    Cost: one more forward and backward pass for each step of the attack: 1 + steps times the time.
    Choices: the attack sees the model as it trains (the same dropout mask) and leaves its statistics alone.

    Args:
        norm: How distance is measured: the largest change of one number, or the Euclidean length of all.
        eps: The distance, in units of the inputs.
        alpha: Length of one step; from a random start, 2 eps / steps reaches every corner of the ball.
        steps: Steps of the attack.
        random_start: Start at a random point in the ball; without it the attack starts at the input.
    """

    reads = ("output",)

    def __init__(
        self,
        norm: Norm = "linf",
        eps: NonNegative = 0.1,
        alpha: Positive = 0.025,
        steps: Count = 7,
        random_start: bool = True,
    ):
        self.norm: Norm = norm
        self.eps, self.alpha, self.steps = eps, alpha, steps
        self.random_start = random_start

    def on_batch(self, run: Run, batch: Batch) -> Batch:
        *_, point = ascend(
            run.oracle(batch).input_grad,
            batch.x,
            norm=self.norm,
            eps=self.eps,
            alpha=self.alpha,
            steps=self.steps,
            start=self.random_start,
            span=run.offer.span,
            rng=run.rng("pgd-adversarial-training"),
        )
        return batch.with_x(point)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        return _refusal(task)


@probe(id="pgd-robustness", name="Robust accuracy (PGD)", paper=TITLE, arxiv="1706.06083")
class PGDRobustness(Probe):
    """Attacks the trained model's inputs and counts the samples that it still gets right.
    A sample counts as right only if no point that any attack visited was answered wrongly.

        robust(x) = all of: answer(x_t) = y,   x_t from projected gradient ascent, restarts times
        x_0 random in the ball;   x_(t+1) = project(x_t + alpha sign(dL/dx))

    The clean input is among the points, so the robust accuracy is never above the clean one.

    Helps: finding out whether a model that looks robust is; at a large eps nothing should be left.
    Hurts: as a proof: another attack may find more; with masked gradients this one finds little.
    Cost: restarts times steps passes forward and back over the samples.

    Args:
        norm: How distance is measured: the largest change of one number, or the Euclidean length of all.
        eps: The distance, in units of the inputs.
        alpha: Length of one step; 0 takes 2.5 eps / steps.
        steps: Steps of one attack.
        restarts: Attacks, each from another random point.
        split: Which data to attack.
        samples: At most this many samples; 0 takes all.
        seed: Seed of the random starts, apart from the run's own.
    """

    when = "end"
    reads = ("output",)

    def __init__(
        self,
        norm: Norm = "linf",
        eps: NonNegative = 0.1,
        alpha: NonNegative = 0.0,
        steps: Count = 20,
        restarts: Count = 2,
        split: Literal["test", "val", "train"] = "test",
        samples: Whole = 0,
        seed: Whole = 0,
    ):
        self.norm: Norm = norm
        self.eps, self.alpha, self.steps, self.restarts = eps, alpha, steps, restarts
        self.split, self.samples, self.seed = split, samples, seed

    def look(self, run: Run) -> Finding:
        clean, robust = [], []
        with run.evaluating():
            for number, batch in enumerate(run.batches(self.split, limit=self.samples or None)):
                first = self._right(run, batch)
                clean.append(first)
                robust.append(first & self._survives(run, batch, number))
        if not clean:
            return Finding()
        return Finding(
            {
                "accuracy": float(torch.cat(robust).double().mean()),
                "clean": float(torch.cat(clean).double().mean()),
            }
        )

    def _survives(self, run: Run, batch: Batch, number: int) -> Tensor:
        right = torch.ones(len(batch), dtype=torch.bool, device=batch.x.device)
        for restart in range(self.restarts):
            rng = torch.Generator(batch.x.device)
            rng.manual_seed(((self.seed << 40) + (number << 20) + restart) % 2**63)
            points = ascend(
                run.oracle(batch).input_grad,
                batch.x,
                norm=self.norm,
                eps=self.eps,
                alpha=self.alpha or 2.5 * self.eps / self.steps,
                steps=self.steps,
                span=run.offer.span,
                rng=rng,
            )
            for point in points:
                right &= self._right(run, batch.with_x(point))
        return right

    @staticmethod
    def _right(run: Run, batch: Batch) -> Tensor:
        return run.task.metrics(run.predict(batch), batch)["accuracy"] == 1

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if task.offer.output != "classes":
            return f"It counts right answers, and the task offers {task.offer.output}; choose a task with classes."
        return _refusal(task)
