"""Policies that learn to build tours from the length of their own tours alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from engine.fields import Count, Decay, Fraction, Whole
from engine.kit.routing import builds_tours, every_start, greedy, roll_out, sampler, tour_length
from engine.parts import Batch, Moves, Procedure, Task, procedure

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "rl4co-attention-model"
NO_TOURS = (
    "It trains a policy that builds a tour point by point, which this model does not; choose one that reads points and "
    "scores each next one, such as the attention model."
)


def better(challenger: Tensor, champion: Tensor, level: float) -> bool:
    """Whether the challenger's lengths are shorter, by a one-sided paired t-test at that level."""
    from scipy.stats import ttest_rel

    if not bool((challenger < champion).any()):
        return False
    result = ttest_rel(challenger.double().cpu().numpy(), champion.double().cpu().numpy(), alternative="less")
    return bool(result.pvalue < level)


class Critic(nn.Module):
    """Guesses from the points how long the policy's tour will be: the mean of what it sees in each point."""

    def __init__(self, coordinates: int, width: int):
        super().__init__()
        self.point = nn.Sequential(nn.Linear(coordinates, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, points: Tensor) -> Tensor:
        seen = self.point(points)
        return self.head(torch.cat([seen.mean(1), seen.amax(1)], 1)).squeeze(1)


@procedure(
    id=ID,
    name="Neural routing by REINFORCE",
    paper=[
        ("RL4CO: an Extensive Reinforcement Learning for Combinatorial Optimization Benchmark", "2306.17100"),
        ("Attention, Learn to Solve Routing Problems!", "1803.08475"),
        ("POMO: Policy Optimization with Multiple Optima for Reinforcement Learning", "2010.16011"),
    ],
    recommends={
        "task": {"use": "tsp"},
        "model": {"use": "attention-model"},
        "optimizer": {"use": "adamw", "lr": 1e-4, "weight_decay": 0.0},
        "techniques": [{"use": "gradient-clipping", "limit": 1.0}],
        "training": {"batch_size": 64},
    },
    example={
        "task": {"use": "tsp", "points": 5, "instances": 8},
        "model": {"use": "attention-model", "width": 8, "heads": 2, "layers": 1, "hidden": 16},
        "training": {"batch_size": 4},
    },
)
class NeuralRouting(Procedure):
    """Lets a policy build tours at random as it likes the points, and makes those choices likelier that led to tours
    shorter than expected. No best tour is ever shown to it. What is expected is the heart of it: the baseline.

        gradient = mean of (L(tour) - b) grad log p(tour | points),    b held fixed
        shared:       b = the mean length of the tours of the same points from every first point (POMO)
        exponential:  b <- beta b + (1 - beta) mean L, over batches
        rollout:      b = the greedy tour of the best policy so far, kept frozen; it is replaced at the end of an epoch
                      when the policy's greedy tours are shorter (one-sided paired t-test)
        critic:       b = a network's guess from the points, trained on squared error

    A first point that is given is not part of p(tour).

    Helps: problems that come again and again, where answers are easy to measure and hard to find.
    Hurts: one instance alone, for which a solver is faster; instances larger than, or unlike, those in training. On ten
        points and a hundred steps the exponential baseline comes within a point of the shared one, from as many tours.
    Cost: a pass of the encoder, and a decoding step a point for every tour; the rollout baseline decodes twice.
    Choices: gradients are those of the mean over tours and instances. With given first points the answer begins at
        point 0; else the policy chooses. The rollout baseline uses the exponential one in its first epoch, and draws
        the instances of the comparison anew when the frozen policy was replaced.

    Args:
        baseline: What a tour's length is compared with.
        starts: Tours of each instance, each from another given first point; 0 takes every point, and 1 lets the policy
            choose the first point too, of one tour.
        beta: How much of the exponential baseline stays in a step.
        comparison: Instances on which the rollout baseline's frozen policy is challenged.
        level: Level of the test by which a challenger wins.
        critic_width: Units of the critic's layers.

    Raises:
        ValueError: For a shared baseline of one tour.
    """

    inputs = ("points",)
    outputs = ("tour",)
    brings_objective = True
    offers = ("gradients", "terms")
    makes = ("main", "critic")
    divisible = False  # the exponential baseline is that of a whole batch

    def __init__(
        self,
        baseline: Literal["shared", "exponential", "rollout", "critic"] = "shared",
        starts: Whole = 0,
        beta: Decay = 0.8,
        comparison: Count = 1000,
        level: Fraction = 0.05,
        critic_width: Count = 128,
    ):
        if baseline == "shared" and starts == 1:
            raise ValueError("A shared baseline is the mean over several tours; write starts = 0, or 2 or more.")
        self.baseline, self.starts, self.beta = baseline, starts, beta
        self.comparison, self.level, self.critic_width = comparison, level, critic_width
        self.expected: Tensor | None = None  # the exponential baseline
        self.frozen: nn.Module | None = None
        self.contest: Tensor | None = None  # the instances of the comparison
        self._critic: Critic | None = None

    def setup(self, run: Run) -> None:
        run.add_role("main", run.model)
        if self.baseline == "rollout":
            self.frozen = _frozen(run.model)
        if self.baseline == "critic":
            self._critic = Critic(run.offer.shape[-1], self.critic_width).to(run.device)
            run.add_role("critic", self._critic)

    def on_surgery(self, run: Run, moves: Moves) -> None:
        if self.frozen is not None:
            self.frozen = _frozen(run.model)

    def step(self, run: Run, batch: Batch) -> None:
        points = batch.x
        with run.autocast():
            played = roll_out(run.model, points, sampler(run.rng(ID)), self._first(points))  # type: ignore[arg-type]
        lengths = tour_length(points, played.tours)
        expected = self._expected(run, points, lengths)
        run.log("train/length", lengths.mean())
        loss = ((lengths - expected) * played.log_prob.float()).mean(1)
        run.update("main", run.terms(played.tours, batch, {"policy": loss}))
        if self._critic is not None:
            run.update("critic", {"task": (self._critic(points) - lengths.mean(1)).square()})
        last = run.progress.step + 1
        if self.frozen is not None and last % run.steps_per_epoch == 0:
            self._challenge(run, next(iter(batch.inputs)))

    def _first(self, points: Tensor) -> Tensor | None:
        """The given first points [B, S], or None where the policy chooses."""
        if self.starts == 1:
            return None
        n = points.shape[1]
        return every_start(len(points), n, points.device, min(self.starts, n))

    @torch.no_grad()
    def _expected(self, run: Run, points: Tensor, lengths: Tensor) -> Tensor:
        """The baseline of each tour, in the shape of the lengths or one that goes with it."""
        if self.baseline == "shared":
            return lengths.mean(1, keepdim=True)
        if self._critic is not None:
            return self._critic(points).unsqueeze(1)
        mean = lengths.mean()
        self.expected = mean if self.expected is None else torch.lerp(mean, self.expected, self.beta)
        if self.frozen is None or run.progress.step < run.steps_per_epoch:
            return self.expected
        return tour_length(points, roll_out(self.frozen, points, greedy, self._first(points)).tours)  # type: ignore[arg-type]

    @torch.no_grad()
    def _challenge(self, run: Run, name: str) -> None:
        """Replaces the frozen policy where the trained one is better."""
        if self.contest is None:
            self.contest = run.task.draw(self.comparison, run.rng(f"{ID}/comparison"))[name]
        assert self.frozen is not None
        with run.evaluating():
            challenger, champion = (self._greedy(module, self.contest) for module in (run.model, self.frozen))
        if better(challenger, champion, self.level):
            self.frozen = _frozen(run.model)
            self.contest = None
        run.log("baseline/length", champion.mean())

    def _greedy(self, policy: Any, points: Tensor) -> Tensor:
        starts = self._first(points)
        return tour_length(
            points, roll_out(policy, points, greedy, starts[:, :1] if starts is not None else None).tours
        )

    def predict(self, run: Run, batch: Batch) -> Tensor:
        """The greedy tour."""
        starts = self._first(batch.x)
        given = None if starts is None else starts[:, :1]
        return roll_out(run.model, batch.x, greedy, given).tours.squeeze(1)  # type: ignore[arg-type]

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if not builds_tours(anatomy.module):
            return NO_TOURS
        if settings.get("baseline") == "rollout" and task.stream != "drawn":
            return "Its frozen policy is challenged on fresh instances, which this task does not draw."
        return None


def _frozen(model: nn.Module) -> nn.Module:
    """A copy that answers and does not learn."""
    return copy.deepcopy(model).eval().requires_grad_(False)
