"""The 1cycle schedule, the learning-rate range test that finds its peak, and an estimate of the rate from curvature."""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import cycle, islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.fields import Count, Decay, Rate
from engine.parts import Batch, Finding, Probe, Progress, Schedule, Technique, probe, schedule, technique

if TYPE_CHECKING:
    from engine.training.run import Run

TITLE = "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates"
ARXIV = "1708.07120"


@schedule(
    paper=TITLE,
    arxiv=ARXIV,
    name="1cycle",
    recommends={"optimizer": {"use": "sgd", "lr": 0.3}, "training": {"batch_size": 128}},
)
class SuperConvergence(Schedule):
    """One rise of the learning rate to a very high peak and back, then a short tail far below where it started.

    The high rate itself regularizes, so that a network can be trained in a fraction of the usual epochs.

        lr:        peak / div  ->  peak  ->  peak / div  ->  peak / (div final_div)
        momentum:  high        ->  low   ->  high        ->  high
        ends of the stretches: up_fraction T - 1, 2 up_fraction T - 2, T - 1;  T: steps of the whole run
        peak: the optimizer's own learning rate

    Helps: Short budgets with SGD and batch normalization, once the peak was found with the range test.

    Hurts: Where a cosine is as good, as on small data; models that diverge at high rates.

    Cost: Nothing.

    Choices: The peak is the optimizer's lr, which no schedule exceeds: set that to 0.3 to 1. The numbers are those of
    torch's OneCycleLR with three phases. Optimizers with betas get the momentum as their first one. Since the high rate
    regularizes, lower weight decay and dropout.

    Args:
        div: the peak over the rate at the start
        final_div: the rate at the start over the rate at the very end
        up_fraction: the share of the run in which the rate rises; it falls as long, and the rest is the tail
        momentum_high: the momentum at low rates
        momentum_low: the momentum at the peak
        cycle_momentum: move the momentum against the rate; off leaves the optimizer's own
        anneal: straight lines, or half cosine waves

    Raises:
        ValueError: when the length of the run is not known
    """

    def __init__(
        self,
        div: Annotated[float, Field(ge=1)] = 10.0,
        final_div: Annotated[float, Field(ge=1)] = 1000.0,
        up_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.45,
        momentum_high: Decay = 0.95,
        momentum_low: Decay = 0.85,
        cycle_momentum: bool = True,
        anneal: Literal["linear", "cosine"] = "linear",
    ) -> None:
        self.div = div
        self.final_div = final_div
        self.up_fraction = up_fraction
        self.momentum_high = momentum_high
        self.momentum_low = momentum_low
        self.cycle_momentum = cycle_momentum
        self.anneal = anneal

    def factor(self, at: Progress) -> float:
        low = 1.0 / self.div
        return self._between(at, (low, 1.0, low, low / self.final_div))

    def options(self, at: Progress, lr: float) -> dict[str, float]:
        options = {"lr": lr * self.factor(at)}
        if self.cycle_momentum:
            high, low = self.momentum_high, self.momentum_low
            options["momentum"] = self._between(at, (high, low, high, high))
        return options

    def _between(self, at: Progress, corners: tuple[float, ...]) -> float:
        """The value at this moment of the path through the corners."""
        if at.steps is None:
            raise ValueError("The cycle needs to know where the run ends. Give the run a budget of steps or epochs.")
        step = min(at.step, at.steps - 1)
        ends = (self.up_fraction * at.steps - 1, 2 * self.up_fraction * at.steps - 2, float(at.steps - 1))
        start = 0.0
        for i, end in enumerate(ends):
            if step <= end or i == len(ends) - 1:
                share = (step - start) / (end - start) if end > start else 1.0
                return self._anneal(corners[i], corners[i + 1], share)
            start = end
        raise AssertionError("a step lies in one of the stretches")

    def _anneal(self, start: float, end: float, share: float) -> float:
        if self.anneal == "linear":
            return start + (end - start) * share
        return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * share))


@probe(id="super-convergence-range-test", paper=TITLE, arxiv=ARXIV, name="Learning-rate range test")
class RangeTest(Probe):
    """Trains a copy of the model for a moment while its learning rate rises, and shows where learning breaks down.

    The best peak for a schedule lies where the curve is best, before it turns; a wide flat top is a good sign.

        lr_i = low (high / low)^(i / (steps - 1))   (or in a straight line)
        stops at a loss that is no number, or above 4 times the lowest so far

    Helps: Choosing the learning rate of a new recipe in seconds instead of by a sweep.

    Hurts: It looks at the first steps alone: what is stable there can still break later.

    Cost: As many training steps as it is given, on a copy.

    Choices: The copy's layers start anew, so that the test can be run on a trained model. It trains on the training
    samples in their stored order with the recipe's optimizer and its settings; techniques are left out.

    Args:
        low: the rate at the first step
        high: the rate at the last step
        steps: training steps
        spacing: let the rate rise by a factor each step, or by a sum
        smoothing: how much of the curve's past each point keeps
        fresh: let the copy's layers start anew; off goes on from the weights as they are
    """

    when: ClassVar[str] = "end"

    def __init__(
        self,
        low: Rate = 1e-4,
        high: Rate = 10.0,
        steps: Annotated[int, Field(ge=2)] = 200,
        spacing: Literal["exponential", "linear"] = "exponential",
        smoothing: Decay = 0.9,
        fresh: bool = True,
    ) -> None:
        self.low = low
        self.high = high
        self.steps = steps
        self.spacing = spacing
        self.smoothing = smoothing
        self.fresh = fresh

    @classmethod
    def requires(cls, settings: Any, task: Any, anatomy: Any, recipe: Any) -> str | None:
        if settings["high"] <= settings["low"]:
            return f"The rate is to rise from {settings['low']} to {settings['high']}. Make high larger than low."
        return None

    def look(self, run: Run) -> Finding:
        make = run.default_optimizer
        if make is None:
            return Finding()
        with run.evaluating(), torch.enable_grad():
            model = deepcopy(run.model).train()
            if self.fresh:
                model.apply(_start_anew)
            optimizer = make([p for p in model.parameters() if p.requires_grad])
            if "lr" not in optimizer.param_groups[0] or hasattr(optimizer, "attach") or hasattr(optimizer, "closure"):
                return Finding()
            rates, losses, scores = self._train(run, model, optimizer)
        return self._finding(run.task.metric, rates, losses, scores)

    def _train(
        self, run: Run, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[list[float], list[float], list[float]]:
        name = run.task.metric[0]
        rates: list[float] = []
        losses: list[float] = []
        scores: list[float] = []
        size = run.recipe["training"]["batch_size"]
        batches = cycle(list(run.batches("train", size)) or [run.training_sample(size)])
        for i, batch in enumerate(islice(batches, self.steps)):
            batch = run.procedure.given(run, batch)
            for group in optimizer.param_groups:
                group["lr"] = self.rate(i)
            output = run.forward(batch, model)
            loss = torch.stack([term.float().mean() for term in run.objective(output, batch).values()]).sum()
            measured = run.task.metrics(output.detach(), batch) if run.task.by_row else {}
            value = loss.item()
            if not math.isfinite(value) or value > 4 * min(losses, default=math.inf):
                break
            rates.append(self.rate(i))
            losses.append(value)
            if name in measured:
                scores.append(measured[name].float().mean().item())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return rates, losses, scores

    def rate(self, i: int) -> float:
        """The learning rate of step i."""
        share = i / (self.steps - 1)
        if self.spacing == "linear":
            return self.low + (self.high - self.low) * share
        return self.low * (self.high / self.low) ** share

    def _finding(
        self, metric: tuple[str, str], rates: list[float], losses: list[float], scores: list[float]
    ) -> Finding:
        if not rates:
            return Finding()
        curves = {"loss": smoothed(losses, self.smoothing)}
        if scores:  # a metric that is no plain mean, such as r2, has no value on a batch
            curves[metric[0]] = smoothed(scores, self.smoothing)
        judged = curves.get(metric[0], curves["loss"])
        pick = max if scores and metric[1] == "max" else min
        scalars = {"best": rates[judged.index(pick(judged))]}
        if len(rates) < self.steps:
            scalars["diverges"] = self.rate(len(rates))
        figure = {
            "kind": "curve",
            "title": "Learning-rate range test",
            "x": {"label": "learning rate", "log": self.spacing == "exponential"},
            "y": {"label": "training batches, smoothed"},
            "series": [{"name": name, "x": rates, "y": values} for name, values in curves.items()],
        }
        return Finding(scalars, {"curve": figure})


def smoothed(values: list[float], keep: float) -> list[float]:
    """A running mean without the pull of its start."""
    out, mean, weight = [], 0.0, 0.0
    for value in values:
        mean = keep * mean + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        out.append(mean / weight)
    return out


def _start_anew(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()


def curvature_rate(first: list[Tensor], second: list[Tensor], third: list[Tensor], lr: float | Tensor) -> Tensor:
    """The best learning rate that three iterates of plain SGD tell: on a quadratic of curvature h it is 1 / h."""
    moved = torch._foreach_sub(second, first)
    bent = torch._foreach_sub(moved, torch._foreach_sub(third, second))
    return lr * _total(moved) / _total(bent)


def _total(some: Any) -> Tensor:
    """The sum of all absolute values."""
    return torch.stack(torch._foreach_norm(some, 1)).sum()


@technique(id="super-convergence-rate", paper=TITLE, arxiv=ARXIV, name="Hessian-free rate estimate")
class RateEstimate(Technique):
    """Shows, while a run trains, which learning rate the curvature of its loss would allow.

    It changes nothing. Values far above the rate in use, early in training, are the sign that a high peak will work.

        rate* = lr sum |w1 - w0| / sum |2 w1 - w0 - w2|        w0, w1, w2: three steps of plain SGD on one batch
        logged after a running mean

    Helps: Deciding whether super-convergence is worth a try, and how high its peak may be.

    Hurts: On a rugged loss the estimate jumps around; only its size is worth reading.

    Cost: Two gradient passes each time it looks: a tenth to a fifth more time at the default.

    Choices: The two virtual steps are taken on the current batch from the current weights and thrown away: with
    iterates on different batches, noise would inflate the denominator. So it works beside every optimizer.

    Args:
        every: steps between looks
        smoothing: how much of its past the logged value keeps
    """

    asks_again = True

    def __init__(self, every: Count = 10, smoothing: Decay = 0.9) -> None:
        self.every = every
        self.smoothing = smoothing
        self.mean: Tensor | None = None

    def on_batch(self, run: Run, batch: Batch) -> Batch:
        if run.progress.step % self.every == 0 and run.last_micro:
            found = self.estimate(run, batch)
            self.mean = found if self.mean is None else torch.lerp(found, self.mean, self.smoothing)
            run.log("super-convergence-rate/rate", self.mean)
        return batch

    def estimate(self, run: Run, batch: Batch) -> Tensor:
        """The rate from two gradients: where the weights are, and one plain step from there."""
        named = {name: p for name, p in run.model.named_parameters() if p.requires_grad}
        lr = _rate_of(run)
        oracle = run.oracle(batch)
        first = [p.detach() for p in named.values()]
        second = list(torch._foreach_add(first, oracle.grad(), alpha=-lr))
        moved = {n: p.requires_grad_() for n, p in zip(named, second, strict=True)}
        gradients = oracle.grad(params=moved)
        second = [p.detach() for p in second]
        return curvature_rate(first, second, list(torch._foreach_add(second, gradients, alpha=-lr)), lr)


def _rate_of(run: Run) -> float:
    """The length of a virtual step: the main role's rate, where it has one."""
    optimizer = run.roles["main"].optimizer if "main" in run.roles else None
    return float(optimizer.param_groups[0].get("lr", 1e-3)) if optimizer is not None else 1e-3
