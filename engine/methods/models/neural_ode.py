"""A network whose depth is a stretch of time: a differential equation leads from the first features to the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engine.fields import Count, Positive
from engine.kit.anatomy import Anatomy
from engine.parts import Model, Offer, model

ACTIVATIONS = {"tanh": nn.Tanh, "softplus": nn.Softplus, "silu": nn.SiLU}


class Field(nn.Module):
    """dz/dt at a time and a state: a network of one hidden layer that is told the time at both. Counts its calls."""

    def __init__(self, width: int, hidden: int, activation: Callable[[], nn.Module]):
        super().__init__()
        self.inner, self.outer = nn.Linear(width + 1, hidden), nn.Linear(hidden + 1, width)
        self.activation = activation()
        self.calls = 0
        self.steps: list[tuple[Tensor, Tensor]] | None = None  # where the solver's steps begin, while somebody looks

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.calls += 1
        time = t.to(z.dtype).expand(*z.shape[:-1], 1)
        h = self.activation(self.inner(torch.cat([z, time], -1)))
        return self.outer(torch.cat([h, time], -1))

    def callback_accept_step(self, t: Tensor, z: Tensor, h: Tensor) -> None:
        """The solver calls this with the begin of each step that it takes."""
        if self.steps is not None:
            self.steps.append((t.detach().to(z.dtype), z.detach()))


def solving(adjoint: bool) -> Any:
    """The solver's function. It is fetched at the first pass: loading it takes a second."""
    import torchdiffeq

    return torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint


class ODEBlock(nn.Module):
    """Leads a state from the begin of a span of time to its end. See `engine.parts.FollowsODE`."""

    def __init__(
        self,
        field: Field,
        span: tuple[float, float] = (0.0, 1.0),
        solver: str = "dopri5",
        rtol: float = 1e-4,
        atol: float = 1e-4,
        adjoint: bool = False,
    ):
        super().__init__()
        self.field, self.span, self.solver = field, span, solver
        self.rtol, self.atol, self.adjoint = rtol, atol, adjoint
        self.look_at: Tensor | Literal["steps"] | None = None
        self.looked: list[tuple[Tensor, Tensor]] = []
        self.evaluations = 0  # of the field, in the last forward pass

    def velocity(self, t: Tensor, z: Tensor) -> Tensor:
        return self.field(t, z)

    def forward(self, z: Tensor) -> Tensor:
        look = self.look_at if self.training else None
        ends = torch.tensor(self.span, dtype=z.dtype, device=z.device)
        times = ends if not isinstance(look, Tensor) else torch.stack([ends[0], look.to(ends), ends[1]])
        self.field.steps = [] if isinstance(look, str) else None
        before = self.field.calls
        states = solving(self.adjoint)(self.field, z, times, rtol=self.rtol, atol=self.atol, method=self.solver)
        self.evaluations = self.field.calls - before
        self.looked = [(times[1], states[1].detach())] if isinstance(look, Tensor) else self.field.steps or []
        self.field.steps = None
        return states[-1]

    def measures(self) -> dict[str, Tensor]:
        return {"nfe": torch.tensor(float(self.evaluations), device=self.field.inner.weight.device)}

    spends = measures


@model(
    id="neural-ode",
    name="Neural ODE",
    packages=("torchdiffeq",),
    paper=[
        ("Neural Ordinary Differential Equations", "1806.07366"),
        (
            "Locally Regularized Neural Differential Equations: Some Black Boxes Were Meant to Remain Closed!",
            "2303.02262",
        ),
    ],
    precision="fp32",
    graph="never",
    recommends={
        "task": {"use": "digits"},
        "optimizer": {"use": "adamw", "lr": 0.005, "weight_decay": 0.0},
        "training": {"batch_size": 256},
        "budget": {"steps": 500},
    },
    example={"task": {"use": "digits", "train_limit": 100}, "model": {"width": 4, "hidden": 8, "rtol": 1e-3}},
)
class NeuralODE(Model):
    """Turns the input into a state, lets it flow for a unit of time as a small network says, and reads the answer off
    where it arrives. A solver takes as many steps as its tolerance asks for, and is not told how to choose them.

        z(0) = W_in x + b;   dz/dt = f(t, z) = W_2 [a(W_1 [z, t] + b_1), t] + b_2;   answer = W z(1) + c

    Helps: memory that does not grow with depth (adjoint), irregular times, and continuous flows.
    Hurts: speed: each call of f waits for the one before, and training makes the flow harder, so that there are ever
        more of them.
    Cost: `nfe` calls of f a pass, which the log and the evaluations show; the same again or more to go back.
    Choices: steps are chosen for the whole batch, so that an answer depends a little on the others beside it. With
        single precision a tolerance below 1e-6 asks for more than the numbers hold. The adjoint's way back is solved
        anew, within the same tolerance, and keeps nothing of the way there.

    Args:
        width: Numbers in the state.
        hidden: Units of f's hidden layer.
        activation: The nonlinearity of f; a smooth one, as solvers expect.
        solver: The adaptive solver.
        rtol: Error that a step may have, as a share of the state.
        atol: Error that a step may have beside that.
        adjoint: Whether gradients come from a second equation solved backwards, or from the solver's own operations.

    Raises:
        ValueError: For inputs that are not numbers, or answers other than classes and values.
    """

    def __init__(
        self,
        offer: Offer,
        width: Count = 16,
        hidden: Count = 64,
        activation: Literal["tanh", "softplus", "silu"] = "tanh",
        solver: Literal["dopri5", "bosh3", "dopri8"] = "dopri5",
        rtol: Positive = 1e-4,
        atol: Positive = 1e-4,
        adjoint: bool = False,
    ):
        super().__init__()
        if offer.input not in ("vector", "image") or offer.output not in ("classes", "values", "embedding"):
            raise ValueError(
                f"It turns numbers into classes, values or an embedding, and the task offers {offer.input} in and "
                f"{offer.output} out."
            )
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(offer.features, width))
        field = Field(width, hidden, ACTIVATIONS[activation])
        self.blocks = nn.Sequential(ODEBlock(field, (0.0, 1.0), solver, rtol, atol, adjoint))
        self.pool = nn.Identity()
        self.head = nn.Linear(width, offer.size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))))

    def anatomy(self) -> Anatomy:
        blocks = list(self.blocks)  # no example of the input: the way cannot be followed without its numbers
        return Anatomy(self, stem=self.stem, blocks=blocks, features=self.pool, head=self.head)
