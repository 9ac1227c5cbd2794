"""L2O-PA: an optimizer that is learned within the form that convergence demands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from engine.fields import Count
from engine.kit.learned import CoordinateLSTM, Problems, State, detached, segments, stated, structured_step
from engine.parts import Batch, Procedure, Task, procedure

if TYPE_CHECKING:
    from engine.training.run import Run

ID = "l2o-pa"


class StructuredRule(nn.Module):
    """The network and what its outputs mean: a preconditioner P, a momentum A, and B, where to start from."""

    def __init__(self, hidden: int = 20, layers: int = 2, use_p: bool = True, use_a: bool = True, use_b: bool = False):
        super().__init__()
        self.names = [name for name, used in (("p", use_p), ("a", use_a), ("b", use_b)) if used]
        self.lstm = CoordinateLSTM(2, max(len(self.names), 1), hidden, layers)

    def factors(self, slope: Tensor, x: Tensor, state: State) -> tuple[dict[str, Tensor], State]:
        """P and A (and B) for every coordinate, all between 0 and 2, from the gradient and the place."""
        features = torch.stack([slope.detach(), x.detach()], -1).view(-1, 2)
        outputs, state = self.lstm(features, state)
        found = 2 * outputs.sigmoid()
        return {name: found[:, i].view_as(x) for i, name in enumerate(self.names)}, state

    def forward(
        self, problems: Problems, x: Tensor, z: Tensor, step: Tensor, state: State
    ) -> tuple[Tensor, Tensor, State]:
        """One iteration on some problems."""
        factors, state = self.factors(problems.gradient(x), x, state)
        x, z = structured_step(problems, x, z, step, **factors)
        return x, z, state


@procedure(
    id=ID,
    name="Structured learned optimizer (L2O-PA)",
    paper="Towards Constituting Mathematical Structures for Learning to Optimize",
    arxiv="2305.18577",
    recommends={
        "optimizer": {"use": "adamw", "lr": 0.01, "weight_decay": 0.0},
        "training": {"batch_size": 64},
        "budget": {"steps": 500},
    },
    example={
        "task": {"use": "sparse-problems", "rows": 4, "columns": 6, "nonzero": 2, "instances": 3, "early": 2},
        "procedure": {"horizon": 4, "unroll": 2, "lstm_hidden": 3},
        "training": {"batch_size": 3},
        "budget": {"steps": 3},
    },
)
class L2OPA(Procedure):
    """Learns how to optimize: a small recurrent network, shared by all coordinates, chooses the length and the momentum
    of a proximal gradient method at every coordinate and iteration. Theory fixes the form, learning fills it.

        u = x_k - P s f'(x_k);   z_(k+1) = soft threshold(u, penalty P s);   x_(k+1) = z_(k+1) + A (z_(k+1) - z_k)
        P, A = 2 sigmoid(LSTM(f'(x_k), x_k)) in (0, 2), for each coordinate;   s = step_safety / L, fixed for a problem
        loss = mean of F(x_k) over a stretch of `unroll` iterations and the batch;   one update a stretch

    A step draws fresh problems and runs `horizon` iterations on them; after each stretch the state goes on without its
    gradient. A minimum is a fixed point of the update, whatever the network says.

    Helps: Many problems of one kind. On LASSO problems like those of its training the gap to the minimum came out at a
        third of FISTA's after 20 iterations, and, trained for that, at about a tenth after 100.
    Hurts: Problems unlike those of the training. The training is on the edge of stability: at the rate of 0.01 and
        without clipping one in five broke down, or diverged on rare problems. 0.003 with the gradient clipped at 1 did
        not on runs of 20 iterations, nor 0.01 with a limit of 0.01 and 400 steps on runs of 100. FISTA needs none.
    Cost: As FISTA, plus a small network for every coordinate. Training takes `horizon` / `unroll` backward passes a
        step.
    Choices: the LSTM's states start as normal random numbers, at test time from a fixed seed. Its inputs carry no
        gradient, the gradient within the update does. Of the general form only P and A are kept by default; B, with
        the same activation, mixes the places x_k and z_k that the step is taken from. All is in float64.

    Args:
        horizon: Iterations on each problem.
        unroll: Iterations of a stretch.
        lstm_layers: Layers of the network.
        lstm_hidden: Its width.
        use_p: Whether the lengths are learned; 1 otherwise.
        use_a: Whether the momentum is learned; 0 otherwise.
        use_b: Whether the mixture of places is learned; x_k alone otherwise.
        step_safety: The base length, as a share of 1 / L.
    """

    uses = ("optimizer",)
    offers = ("gradients", "terms")
    inputs = ("problems",)
    divisible = False  # it updates once a stretch
    brings_objective = True

    def __init__(
        self,
        horizon: Count = 100,
        unroll: Count = 20,
        lstm_layers: Count = 2,
        lstm_hidden: Count = 20,
        use_p: bool = True,
        use_a: bool = True,
        use_b: bool = False,
        step_safety: Annotated[float, Field(gt=0, le=1)] = 0.9999,
    ):
        if not (use_p or use_a or use_b):
            raise ValueError("Nothing would be learned: switch on use_p, use_a or use_b.")
        self.horizon, self.unroll = horizon, unroll
        self.lstm_layers, self.lstm_hidden = lstm_layers, lstm_hidden
        self.use_p, self.use_a, self.use_b, self.step_safety = use_p, use_a, use_b, step_safety

    def make_model(self, task: Task) -> nn.Module:
        rule = StructuredRule(self.lstm_hidden, self.lstm_layers, self.use_p, self.use_a, self.use_b)
        return rule.double()

    def step(self, run: Run, batch: Batch) -> None:
        rule: Any = run.model
        problems = stated(run.task, batch)
        count, n = problems.size
        x = z = problems.a.new_zeros(count, n)
        step = self.step_safety / problems.smoothness()
        state = rule.lstm.start(count * n, run.rng(ID))
        for length in segments(self.horizon, self.unroll):
            values = []
            for _ in range(length):
                x, z, state = rule(problems, x, z, step, state)
                values.append(problems.value(x))
            run.update("main", {"task": torch.stack(values).mean(0)})
            x, z, state = x.detach(), z.detach(), detached(state)
        run.count("oracle-calls", self.horizon * count * (2 if self.use_b else 1))

    def predict(self, run: Run, batch: Batch) -> Tensor:
        """All iterates."""
        rng = torch.Generator(run.device).manual_seed(run.seed)
        return iterates(run.model, stated(run.task, batch), self.horizon, rng, self.step_safety)


@torch.no_grad()
def iterates(rule: Any, problems: Problems, horizon: int, rng: torch.Generator, safety: float = 0.9999) -> Tensor:
    """What a rule makes of problems, from zero: x_1 to x_K as [B, K, n]."""
    count, n = problems.size
    x = z = problems.a.new_zeros(count, n)
    step, state = safety / problems.smoothness(), rule.lstm.start(count * n, rng)
    found = []
    for _ in range(horizon):
        x, z, state = rule(problems, x, z, step, state)
        found.append(x)
    return torch.stack(found, 1)
