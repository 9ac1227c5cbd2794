"""A neural differential equation that stays easy to solve, by a penalty at one random moment of its way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from engine.fields import NonNegativeOverTime
from engine.kit.runge_kutta import PAIRS, Step, first_length, scaled_error, step, stiffness
from engine.parts import Batch, FollowsODE, Task, Technique, Terms, Value, named_modules_with, technique

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "local-reg-neuralde"
TERM = f"penalty:{ID}"
INSIDE = 1e-4  # share of the span that the moment keeps from its ends


def local_step(block: FollowsODE, t: Tensor, z: Tensor, solver: str, grad_first: bool = False) -> Step:
    """The one step that a fresh solver would take from (t, z), with gradients for the parameters of the velocity."""
    pair = PAIRS[solver]
    with torch.set_grad_enabled(grad_first and torch.is_grad_enabled()):
        first = block.velocity(t, z)
    length = first_length(block.velocity, t, z, first.detach(), pair, block.rtol, block.atol)
    return step(block.velocity, t, z, torch.minimum(length, block.span[1] - t), pair, first)


@technique(
    id=ID,
    name="Locally regularized neural ODE",
    paper="Locally Regularized Neural Differential Equations: Some Black Boxes Were Meant to Remain Closed!",
    arxiv="2303.02262",
    precision="fp32",
    graph="never",
    recommends={
        "optimizer": {"use": "adamw", "lr": 0.001},
        "techniques": [{"use": ID, "weight": {"value": 2.5, "schedule": {"use": "geometric", "end": 0.4}}}],
    },
    example={
        "task": {"use": "digits", "train_limit": 100},
        "model": {"use": "neural-ode", "width": 4, "hidden": 8, "rtol": 1e-3},
        "techniques": [{"use": ID, "weight": {"value": 100.0, "schedule": {"use": "geometric", "end": 0.4}}}],
        "training": {"batch_size": 32},
    },
)
class LocalRegNeuralDE(Technique):
    """Keeps a differential equation easy to solve: at one random moment of each pass it takes a single step of its own
    and charges the step's estimated error, or how stiff the equation is there. The solver stays a black box.

        t* ~ U(t_0, t_1),  z* = z(t*), held fixed;   h: the step that a solver would begin with at t*, up to t_1
        error:      R = h rms(h sum_i (b_i - bhat_i) k_i / (atol + rtol max(|z*|, |z_new|)))
        stiffness:  R = rms(k_7 - k_6) / rms(g_7 - g_6) / s,   k_i = f(g_i), s: where the method stops being stable
        loss <- loss + weight R

    Helps: the calls of f that an answer needs, in training and ever after; steps get cheaper as training goes on.
    Hurts: accuracy, where the flow had to be winding. R of the error is in units of the tolerance: each needs another
        weight, so look at the penalty beside the task's loss. A weight that is far too small does nothing at all.
    Cost: six calls of f with a gradient and two without, in training only.
    Choices: the slope at z* is held fixed as well, as in the authors' code. The state there comes out of the pass
        itself: with unbiased moments the solver is asked for one more time, between its steps; biased ones are where
        its steps began, the end left out. The paper's weight falls from 2.5 to 1 over the run for the error and stays
        at 0.1 for the stiffness, at a tolerance of 1.4e-8; at 1e-4 try 100. It need not be the model's own solver whose
        error is charged, but that helps most. Several such blocks are charged each.

    Args:
        measure: What is charged: the step's error, or the stiffness.
        sampling: Where: at any moment alike (unbiased), or at one of those where the solver began a step (biased).
        weight: What a unit of it costs; it may change over the run.
        solver: The pair of methods that take the step.
        grad_k1: Whether the slope at z* has a gradient too.
    """

    reads = ("output", "terms")
    live = ("weight",)

    def __init__(
        self,
        measure: Literal["error", "stiffness"] = "error",
        sampling: Literal["unbiased", "biased"] = "unbiased",
        weight: NonNegativeOverTime = 2.5,
        solver: Literal["tsit5", "dopri5"] = "tsit5",
        grad_k1: bool = False,
    ) -> None:
        self.measure, self.sampling, self.solver, self.grad_k1 = measure, sampling, solver, grad_k1
        self.weight = Value.of(weight)
        self._blocks: list[Any] = []

    def setup(self, run: Run) -> None:
        self._blocks = following(run.model)

    def on_batch(self, run: Run, batch: Batch) -> Batch:
        rng = run.rng(ID)
        for block in self._blocks:
            start, end = block.span
            share = torch.rand((), generator=rng, device=run.device).clamp(INSIDE, 1 - INSIDE)
            block.look_at = start + (end - start) * share if self.sampling == "unbiased" else "steps"
        return batch

    def on_terms(self, run: Run, terms: Terms, output: Any, batch: Batch) -> Terms:
        found = torch.stack([self.charge(block, *self._moment(run, block)) for block in self._blocks]).sum()
        for block in self._blocks:
            block.look_at, block.looked = None, []
        return {**terms, TERM: self.weight.now(run.progress) * found}

    def _moment(self, run: Run, block: FollowsODE) -> tuple[Tensor, Tensor]:
        """The time and the state at which the block is charged."""
        if self.sampling == "unbiased":
            return block.looked[0]
        count = len(block.looked)
        return block.looked[int(torch.randint(count, (), generator=run.rng(ID), device=run.device))]

    def charge(self, block: FollowsODE, t: Tensor, z: Tensor) -> Tensor:
        """R at a time and a state."""
        made = local_step(block, t, z, self.solver, self.grad_k1)
        if self.measure == "stiffness":
            return stiffness(made, PAIRS[self.solver])
        return made.h * scaled_error(made, block.rtol, block.atol)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if not following(anatomy.module):
            return "It acts on models that follow a differential equation, and this one does not; choose a neural ODE."
        return None


def following(model: nn.Module) -> list[Any]:
    """The modules of a model that follow a differential equation."""
    return [module for _, module in named_modules_with(model, "look_at")]
