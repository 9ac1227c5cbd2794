"""Equations of what moves and spreads on a circle, solved by training a model on their residual."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from engine.fields import NonNegative, Positive
from engine.figures import curve, image, line, panel
from engine.parts import Answering, Batch, Figure, Offer, Task, Terms, task

LENGTH = 2 * math.pi
MODES = 256  # points of the reference solution, and steps of it in a unit of time
STEPS = 1000
SHAPES = {"val": (64, 21), "test": (128, 41)}  # places and times
SMALLEST_VISCOSITY = 0.005  # below it the reference's points do not resolve the front
CURVES = 16  # characteristic curves in a figure


@task(
    id="transport-equation",
    name="Convection and Burgers equations",
    example={"task": {"places": 8, "times": 4}, "training": {"evaluate_every": 3}, "budget": {"steps": 4}},
)
class TransportEquation(Task):
    """Finds u(x, t), the solution of an equation of motion on a circle, from the equation alone: the loss is how far
    the model is from obeying it at the points of a grid. No solution is shown in training, but one is compared with.

        u_t + c(u) u_x = viscosity u_xx + reaction u,   u(x, 0) = sin x,   x in [0, 2 pi), t in [0, duration]
        c(u) = speed (convection) or u (Burgers);   inputs (cos x, sin x, t)
        one answer u:   loss = state_weight |R| + initial_weight |u(x, 0) - sin x|,   R the equation's two sides apart
        two answers X, U along the curves that start at x:
            loss = place_weight |X_t - c(U)| + state_weight |U_t - viscosity U_xx - reaction U|
                   + initial_weight (|X(x, 0) - x| + |U(x, 0) - sin x|)
            U_xx by the chain rule: U_x = (dU/dx) / (dX/dx), twice

    `relative-l2` is |u - truth| / |truth| on a finer grid; `crossed` is the share of points at which curves have
    crossed (dX/dx <= 0), so that the answer means nothing there.

    Helps: trying out networks and optimizers on equations; an equation with few data or none.
    Hurts: fast convection (a speed of 30) is beyond a plain network that answers u: it stays near zero.
    Cost: Two passes back a step, three with viscosity. Every step takes the whole grid.

    Choices: The inputs close the circle, so that every answer is periodic. |.| is the root of the sum over the grid, as
    it stands, or the mean of squares. A model says by its answer which residual is meant: a tensor is u, the names
    "place" and "state" are X and U. So every optimizer, technique and figure serves both kinds. What is carried is
    brought to the fixed grid by straight lines between the carried points. The truth is exact for convection, and for
    Burgers a spectral solution.

    Args:
        equation: Convection with a constant speed, or Burgers, where u is the speed.
        speed: The speed of convection.
        viscosity: How fast differences even out.
        reaction: Rate at which u grows (or shrinks, below 0).
        duration: The last time.
        places: Points of the training grid around the circle.
        times: Its times, both ends among them.
        norm: Roots of sums, or means of squares.
        place_weight: Weight of the curves' residual.
        state_weight: Weight of the residual of u.
        initial_weight: Weight of the error at time 0.

    Raises:
        ValueError: For Burgers with a viscosity that is too small for the reference.
    """

    metric = ("relative-l2", "min")
    stream = "whole"
    collects = True
    input_gradients = ("x",)

    def __init__(
        self,
        equation: Literal["convection", "burgers"] = "convection",
        speed: float = 30.0,
        viscosity: NonNegative = 0.0,
        reaction: float = 0.0,
        duration: Positive = 1.0,
        places: Annotated[int, Field(ge=4)] = 32,
        times: Annotated[int, Field(ge=2)] = 20,
        norm: Literal["unsquared", "squared"] = "unsquared",
        place_weight: NonNegative = 1.0,
        state_weight: NonNegative = 1.0,
        initial_weight: NonNegative = 1.0,
    ):
        if equation == "burgers" and viscosity < SMALLEST_VISCOSITY:
            raise ValueError(
                f"With viscosity = {viscosity:g} the front of the Burgers equation is too steep for the reference "
                f"solution. Write {SMALLEST_VISCOSITY:g} or more; 0.01 is usual."
            )
        self.equation, self.speed, self.viscosity, self.reaction = equation, speed, viscosity, reaction
        self.duration, self.shapes = duration, {"train": (places, times), **SHAPES}
        self.norm = norm
        self.place_weight, self.state_weight, self.initial_weight = place_weight, state_weight, initial_weight
        carried = {"place": place_of, "time": time_of, "state": start_of}
        self.offer = Offer("vector", (3,), "values", 1, about={"carried": carried})

    def load(self) -> None:
        self.splits = {}
        for name, (places, times) in self.shapes.items():
            x = np.arange(places) * LENGTH / places
            t = np.linspace(0, self.duration, times)
            truth = at_places(self._solve(t), x)
            self.splits[name] = {
                "x": inputs_of(torch.from_numpy(x), torch.from_numpy(t)).float(),
                "target": torch.from_numpy(truth).reshape(-1, 1).float(),
            }

    def columns(self, split: str) -> dict[str, Tensor]:
        return self.splits.get(split, {})

    def _solve(self, times: np.ndarray) -> np.ndarray:
        speed = self.speed if self.equation == "convection" else None
        start = np.sin(np.arange(MODES) * LENGTH / MODES)
        return spectral_solution(start, times, speed, self.viscosity, self.reaction)

    # -- the residual --------------------------------------------------------------------------------------------------

    def objective(self, output: Any, batch: Batch) -> Terms:
        x = batch.x
        at_start = (time_of(x) == 0).to(x.dtype)
        if isinstance(output, Mapping):
            place, state = output["place"], output["state"]
            moves, changes = self.carried_residual(place, state, x)
            off = [(place - place_of(x)) * at_start, (state - start_of(x)) * at_start]
            terms = {"place": self.place_weight * self._size(moves)}
        else:
            changes, off, terms = self.residual(output, x), [(output - start_of(x)) * at_start], {}
        initial = [self._size(each, at_start.mean()) for each in off]
        return {
            **terms,
            "state": self.state_weight * self._size(changes),
            "initial": self.initial_weight * torch.stack(initial).sum(0),
        }

    def _size(self, residual: Tensor, share: Tensor | float = 1.0) -> Tensor:
        """The root of a residual's sum of squares, or its square at each point; `share` of the points count at all."""
        if self.norm == "unsquared":
            return torch.linalg.vector_norm(residual)
        return residual.square()[:, 0] / share

    def velocity(self, u: Tensor) -> Tensor | float:
        return self.speed if self.equation == "convection" else u

    def residual(self, u: Tensor, x: Tensor) -> Tensor:
        """How far the two sides of the equation are apart for an answer u at the inputs x."""
        u_x, u_t = derivatives(u, x)
        found = u_t + self.velocity(u) * u_x - self.reaction * u
        return found - self.viscosity * derivatives(u_x, x)[0] if self.viscosity else found

    def carried_residual(self, place: Tensor, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same along curves: that of their places, and that of the state on them."""
        stretch, place_t = derivatives(place, x)
        by_label, state_t = derivatives(state, x)
        found = state_t - self.reaction * state
        if self.viscosity:
            found = found - self.viscosity * derivatives(by_label / stretch, x)[0] / stretch
        return place_t - self.velocity(state), found

    # -- how good it is ------------------------------------------------------------------------------------------------

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        if not isinstance(output, Mapping):
            return {}
        stretch, _ = derivatives(output["place"], batch.x)
        return {"crossed": (stretch[:, 0] <= 0).float()}

    def overall(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        truth = batch.target.double()
        found = torch.from_numpy(self.on_grid(output, batch.split)).to(truth.device).view_as(truth)
        return {"relative-l2": torch.linalg.vector_norm(found - truth) / torch.linalg.vector_norm(truth)}

    def on_grid(self, output: Any, split: str) -> np.ndarray:
        """An answer to a split as u at its times (rows) and places."""
        places, times = self.shapes[split]
        if not isinstance(output, Mapping):
            return output.detach().double().cpu().view(times, places).numpy()
        carried, state = (output[n].detach().double().cpu().view(times, places).numpy() for n in ("place", "state"))
        grid = np.arange(places) * LENGTH / places
        return np.stack([np.interp(grid, x, u, period=LENGTH) for x, u in zip(carried, state, strict=True)])

    # -- to look at ----------------------------------------------------------------------------------------------------

    def figure(self) -> dict[str, Any]:
        places, times = self.shapes["val"]
        truth = self.splits["val"]["target"].view(times, places)
        return image(self._title(), panel("truth", truth), extent=self._extent(), x="x", y="t")

    def figures(self, answer: Answering, rng: torch.Generator) -> dict[str, Figure]:
        places, times = self.shapes["val"]
        columns = {name: tensor.to(rng.device) for name, tensor in self.splits["val"].items()}
        batch = Batch({"x": columns["x"]}, columns["target"], torch.arange(places * times, device=rng.device), "val")
        output = answer(batch)
        found, truth = self.on_grid(output, "val"), columns["target"].view(times, places).cpu().numpy()
        panels = [panel("answer", found), panel("truth", truth), panel("error", found - truth, diverging=True)]
        drawn = {"field": image(self._title(), *panels, shared=True, extent=self._extent(), x="x", y="t")}
        if isinstance(output, Mapping):
            t = np.linspace(0, self.duration, times)
            paths = output["place"].view(times, places).T[:: max(places // CURVES, 1)]
            lines = [line(f"from {path[0]:.2f}", path, t) for path in paths.tolist()]
            drawn["curves"] = curve("What is carried, and where to", *lines, x="X", y="t")
        return drawn

    def _title(self) -> str:
        named = f"Convection, speed {self.speed:g}" if self.equation == "convection" else "Burgers equation"
        return f"{named}, viscosity {self.viscosity:g}"

    def _extent(self) -> tuple[float, float, float, float]:
        return 0.0, LENGTH, 0.0, self.duration


# -- points of the circle and of time ----------------------------------------------------------------------------------


def inputs_of(x: Tensor, t: Tensor) -> Tensor:
    """The inputs (cos x, sin x, t) of a grid, one time after the other."""
    t, x = (each.reshape(-1) for each in torch.meshgrid(t, x, indexing="ij"))
    return torch.stack([x.cos(), x.sin(), t], 1)


def place_of(x: Tensor) -> Tensor:
    """The place from 0 to 2 pi that inputs stand for."""
    return torch.remainder(torch.atan2(x[:, 1:2], x[:, 0:1]), LENGTH)


def time_of(x: Tensor) -> Tensor:
    return x[:, 2:3]


def start_of(x: Tensor) -> Tensor:
    """u at time 0: the sine of the place."""
    return x[:, 1:2]


def derivatives(value: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The derivatives by place and by time of a value [n, 1] at inputs (cos, sin, t): around the circle, a small step
    changes the cosine by minus the sine and the sine by the cosine."""
    by_input = torch.autograd.grad(value.sum(), x, create_graph=True, materialize_grads=True)[0]
    return x[:, 0:1] * by_input[:, 1:2] - x[:, 1:2] * by_input[:, 0:1], by_input[:, 2:3]


# -- the reference -----------------------------------------------------------------------------------------------------


def spectral_solution(
    start: np.ndarray, times: np.ndarray, speed: float | None, viscosity: float, reaction: float
) -> np.ndarray:
    """The Fourier coefficients of u at the times: exact where the speed is constant; else (None) u is its own speed.

    There the linear part is exact too, by an integrating factor, and the rest advances by Runge-Kutta of order four.
    Products are freed of aliases by the two-thirds rule.
    """
    k = np.arange(len(start) // 2 + 1)
    linear = reaction - viscosity * k**2 - (0j if speed is None else 1j * speed * k)
    first = np.fft.rfft(start)
    if speed is not None:
        return first * np.exp(linear * times[:, None])
    kept = k < len(start) / 3

    def rest(v: np.ndarray) -> np.ndarray:
        return -0.5j * k * kept * np.fft.rfft(np.fft.irfft(v * kept) ** 2)

    found, v = [first], first
    for length in np.diff(times):
        steps = max(math.ceil(STEPS * length), 1)
        dt = length / steps
        half, whole = np.exp(linear * dt / 2), np.exp(linear * dt)
        for _ in range(steps):
            a = rest(v)
            b = rest(half * (v + dt / 2 * a))
            c = rest(half * v + dt / 2 * b)
            d = rest(whole * v + dt * half * c)
            v = whole * v + dt / 6 * (whole * a + 2 * half * (b + c) + d)
        found.append(v)
    return np.stack(found)


def at_places(coefficients: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The sum of a Fourier series, one row of coefficients a time, at any places."""
    k = np.arange(coefficients.shape[1])
    weight = np.where(k == 0, 1.0, 2.0) / MODES
    return np.real((coefficients * weight) @ np.exp(1j * np.outer(k, x)))
