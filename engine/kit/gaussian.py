"""Networks whose weights and units are independent Gaussians: moments forward, observations backward, in closed form.

A Gaussian is a pair (mean, variance), entry by entry. A *delta* (d_mean, d_var) says what an observation has taught of
it, divided by its own variance: afterwards it has mean + variance d_mean and variance + variance^2 d_var. What is
correlated with it, by a covariance c, moves by c d_mean and c^2 d_var. Nothing here differentiates anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.kit.anatomy import trace

FLOOR = 1e-5  # what a variance is reset to where an update has taken all of it


class Gaussian(NamedTuple):
    """Independent Gaussians, entry by entry."""

    mean: Tensor
    var: Tensor

    def moved(self, d_mean: Tensor, d_var: Tensor) -> Gaussian:
        """After an observation, of which these are the deltas."""
        return Gaussian(self.mean + self.var * d_mean, self.var + self.var.square() * d_var)


Delta = Gaussian  # a pair (d_mean, d_var)

# -- nonlinearities ----------------------------------------------------------------------------------------------------


class Nonlinear(NamedTuple):
    """A function of one number with its first two derivatives."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    bend: Callable[[Tensor], Tensor]


def _sigmoid_slope(z: Tensor) -> Tensor:
    s = z.sigmoid()
    return s * (1 - s)


def _silu_slope(z: Tensor) -> Tensor:
    s = z.sigmoid()
    return s * (1 + z * (1 - s))


def _silu_bend(z: Tensor) -> Tensor:
    s = z.sigmoid()
    return s * (1 - s) * (2 + z * (1 - 2 * s))


def _normal(z: Tensor) -> Tensor:
    return (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi)


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1 + (z / math.sqrt(2)).erf())


NONLINEAR: dict[type[nn.Module], Nonlinear] = {
    nn.ReLU: Nonlinear(torch.relu, lambda z: (z > 0).to(z.dtype), torch.zeros_like),
    nn.Tanh: Nonlinear(torch.tanh, lambda z: 1 - z.tanh() ** 2, lambda z: -2 * z.tanh() * (1 - z.tanh() ** 2)),
    nn.Sigmoid: Nonlinear(torch.sigmoid, _sigmoid_slope, lambda z: _sigmoid_slope(z) * (1 - 2 * z.sigmoid())),
    nn.SiLU: Nonlinear(nn.functional.silu, _silu_slope, _silu_bend),
    nn.GELU: Nonlinear(
        lambda z: z * _normal_cdf(z),
        lambda z: _normal_cdf(z) + z * _normal(z),
        lambda z: (2 - z.square()) * _normal(z),
    ),
}

# -- a network as a chain ----------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One place of a chain: a linear layer, or a nonlinearity (None where it changes nothing)."""

    path: str
    linear: nn.Linear | None
    nonlinear: Nonlinear | None


def chain_of(model: nn.Module) -> list[Step]:
    """The model as linear layers and nonlinearities that follow each other.

    Raises ValueError with the reason where it is anything else.
    """
    graph = trace(model)
    modules = dict(model.named_modules())
    steps: list[Step] = []
    before: Any = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if before is not None:
                raise ValueError("the model takes more than one input")
        elif node.op == "output":
            if node.args[0] is not before:
                raise ValueError("the model's answer is not that of its last layer")
        elif node.op != "call_module" or list(node.all_input_nodes) != [before]:
            raise ValueError(f"its layers do not simply follow each other ({node.name})")
        else:
            step = _step(str(node.target), modules[str(node.target)])
            steps += [step] if step is not None else []
        before = node
    if not any(step.linear is not None for step in steps):
        raise ValueError("it has no linear layer")
    return steps


def _step(path: str, module: nn.Module) -> Step | None:
    if type(module) is nn.Linear:
        return Step(path, module, None)
    if isinstance(module, nn.GELU) and module.approximate != "none":
        raise ValueError(f"{path} is an approximate GELU; only the exact one is known")
    if type(module) in NONLINEAR:
        return Step(path, None, NONLINEAR[type(module)])
    if isinstance(module, nn.Identity | nn.Flatten):
        return None
    known = ", ".join(["Linear", *sorted(kind.__name__ for kind in NONLINEAR)])
    raise ValueError(f"{path} is a {type(module).__name__}, and Gaussians pass through {known} alone")


def give_variances(model: nn.Module, gain: float, rng: torch.Generator | None = None) -> None:
    """Makes the parameters of a model's linear layers Gaussians of a prior: their values are means, drawn from
    N(0, 1 / fan_in); buffers beside them hold the variances, gain^2 / fan_in."""
    for step in chain_of(model):
        if step.linear is None:
            continue
        linear = step.linear
        for name, parameter in linear.named_parameters(recurse=False):
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=rng) / math.sqrt(linear.in_features))
            linear.register_buffer(variance_name(name), torch.full_like(parameter, gain**2 / linear.in_features))


def variance_name(parameter: str) -> str:
    """The buffer beside a parameter that holds its variance."""
    return f"{parameter}_variance"


def belief(linear: nn.Linear, name: str) -> Gaussian | None:
    """What is believed of a parameter; None where the layer has none of this name."""
    parameter = getattr(linear, name)
    if parameter is None:
        return None
    return Gaussian(parameter.detach(), getattr(linear, variance_name(name)))


# -- forward -----------------------------------------------------------------------------------------------------------


def linear_moments(a: Gaussian, weight: Gaussian, bias: Gaussian | None) -> Gaussian:
    """W a + b, all of them independent Gaussians: a [B, in], W [out, in], b [out]."""
    mean = a.mean @ weight.mean.T
    var = (a.mean.square() + a.var) @ weight.var.T + a.var @ weight.mean.square().T
    return Gaussian(mean, var) if bias is None else Gaussian(mean + bias.mean, var + bias.var)


@dataclass
class Trace:
    """What a pass left behind for the way back: what entered each linear layer, and each nonlinearity's place."""

    entered: list[Gaussian]  # a linear layer's input, else what the nonlinearity was given
    answer: Gaussian


def forward(chain: Sequence[Step], x: Gaussian) -> Trace:
    """Moments of the answer to inputs [B, ...]; nonlinearities are taken as straight lines at their mean."""
    at = Gaussian(x.mean.flatten(1), x.var.flatten(1))
    entered = []
    for step in chain:
        entered.append(at)
        if step.linear is not None:
            weight = belief(step.linear, "weight")
            assert weight is not None
            at = linear_moments(at, weight, belief(step.linear, "bias"))
        elif step.nonlinear is not None:
            slope = step.nonlinear.slope(at.mean)
            at = Gaussian(step.nonlinear.value(at.mean), slope.square() * at.var)
    return Trace(entered, at)


# -- backward ----------------------------------------------------------------------------------------------------------


def observed(answer: Gaussian, y: Tensor, noise: float | Tensor) -> Delta:
    """The deltas of an answer that was seen as y, with noise of that variance."""
    precision = 1 / (answer.var + noise)
    return Delta((y - answer.mean) * precision, -precision)


def backward(chain: Sequence[Step], seen: Trace, delta: Delta) -> tuple[list[tuple[Delta, Delta]], Delta]:
    """From the answer's deltas [B, out] to those of each linear layer's weight and bias, summed over the samples, in
    the order of the chain; and those of the inputs. All with the weights as they were."""
    found: list[tuple[Delta, Delta]] = []
    for step, entered in zip(reversed(chain), reversed(seen.entered), strict=True):
        if step.linear is not None:
            weight = step.linear.weight.detach()
            of_weight = Delta(delta.mean.T @ entered.mean, delta.var.T @ entered.mean.square())
            found.append((of_weight, Delta(delta.mean.sum(0), delta.var.sum(0))))
            delta = Delta(delta.mean @ weight, delta.var @ weight.square())
        elif step.nonlinear is not None:
            slope = step.nonlinear.slope(entered.mean)
            delta = Delta(slope * delta.mean, slope.square() * delta.var)
    return found[::-1], delta


def cap_of(batch: int) -> float:
    """By what a parameter's change is bounded: sqrt(variance) / cap. Large batches count their samples too often."""
    return 0.1 if batch == 1 else 2.0 if batch < 256 else 3.0


def capped(change: Tensor, var: Tensor, cap: float) -> Tensor:
    """A change kept within sqrt(var) / cap."""
    bound = var.sqrt() / cap
    return torch.minimum(torch.maximum(change, -bound), bound)


@torch.no_grad()
def learn(chain: Sequence[Step], deltas: Sequence[tuple[Delta, Delta]], cap: float | None) -> None:
    """Moves the beliefs in place by what `backward` has found; None moves them by all of it."""
    layers = [step.linear for step in chain if step.linear is not None]
    for linear, pair in zip(layers, deltas, strict=True):
        for name, delta in zip(("weight", "bias"), pair, strict=True):
            old = belief(linear, name)
            if old is None:
                continue
            new = old.moved(*delta)
            if cap is not None:
                var = old.var + capped(new.var - old.var, old.var, cap)
                mean = old.mean + capped(new.mean - old.mean, old.var, cap)
                new = Gaussian(mean, torch.where(var > 0, var, FLOOR))
            old.mean.copy_(new.mean)
            old.var.copy_(new.var)


# -- what is to be inferred of the inputs ------------------------------------------------------------------------------


def infer_input(chain: Sequence[Step], x: Gaussian, y: Tensor, noise: float | Tensor) -> Gaussian:
    """Inputs after their answer was seen to be y, the parameters as they are."""
    seen = forward(chain, x)
    _, delta = backward(chain, seen, observed(seen.answer, y, noise))
    return Gaussian(x.mean.flatten(1), x.var.flatten(1)).moved(*delta)


@dataclass
class Derivative:
    """Moments of d answer / d x_j for one answer and every input j, and its covariance with x_j: all [B, in]."""

    mean: Tensor
    var: Tensor
    covariance: Tensor


def derivative(chain: Sequence[Step], x: Gaussian, answer: int = 0) -> Derivative:
    """How an answer changes with each input: a product of slopes and weights, each of them with mean and variance.

    Slopes are taken as straight lines at the mean, as the nonlinearities are: where one does not bend (ReLU), nothing
    connects a derivative with the place where it is taken. Units are independent here, and yet they all move with x:
    taken for itself their variance is too small, so it is at least what the covariance demands (no correlation is
    larger than 1).
    """
    at = Gaussian(x.mean.flatten(1), x.var.flatten(1))
    inputs = at.mean.shape[1]
    eye = torch.eye(inputs, device=at.mean.device, dtype=at.mean.dtype)
    mean = eye.expand(len(at.mean), inputs, inputs)  # [B, of unit, with respect to input]
    var, covariance = torch.zeros_like(mean), torch.zeros_like(mean)
    own = eye * at.var.unsqueeze(1)  # covariance of each unit with each input
    for step in chain:
        if step.linear is not None:
            weight = belief(step.linear, "weight")
            assert weight is not None
            at = linear_moments(at, weight, belief(step.linear, "bias"))
            own = weight.mean @ own
            var = weight.var @ (mean.square() + var) + weight.mean.square() @ var
            mean, covariance = weight.mean @ mean, weight.mean @ covariance
        elif step.nonlinear is not None:
            slope = step.nonlinear.slope(at.mean).unsqueeze(-1)
            bend = step.nonlinear.bend(at.mean).unsqueeze(-1)
            spread = bend.square() * at.var.unsqueeze(-1)
            covariance = slope * covariance + mean * bend * own
            var = slope.square() * var + spread * (mean.square() + var)
            mean = slope * mean
            own = slope * own
            at = Gaussian(step.nonlinear.value(at.mean), slope.squeeze(-1).square() * at.var)
    found = covariance[:, answer]
    least = found.square() / x.var.flatten(1)
    return Derivative(mean[:, answer], torch.maximum(var[:, answer], least.nan_to_num(0.0)), found)
