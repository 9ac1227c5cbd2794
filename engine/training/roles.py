"""A role: a named module of a run with its optimizer and schedule, and the one place that updates it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.parts import POSITIONS, Progress, Schedule, Technique, Terms, info
from engine.training.oracle import Oracle, total_of

if TYPE_CHECKING:
    from engine.training.run import Run

OWN = ("backward", "unscale", "step")  # the positions that the engine itself fills
BEFORE = tuple(p for p in POSITIONS[: POSITIONS.index("step")] if p not in OWN)
AFTER = tuple(p for p in POSITIONS[POSITIONS.index("step") + 1 :] if p not in OWN)
AT_EPOCHS = ("on_epoch_end", "after_evaluation", "after_epoch")
Hook = Callable[["Run", "Role"], None]


@dataclass
class Role:
    """One player of a run. `base` holds the options of each optimizer group as the recipe gave them."""

    name: str
    module: nn.Module
    names: list[str]
    parameters: list[Tensor]
    optimizer: torch.optim.Optimizer | None = None
    schedule: Schedule | None = None
    scaler: torch.amp.GradScaler | None = None
    base: list[dict[str, Any]] = field(default_factory=list)
    oracle: Oracle | None = None
    external: bool = True  # whether the schedule sets the rate
    lr: float = 0.0
    before: list[Hook] = field(default_factory=list)
    after: list[Hook] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict() if self.optimizer else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def load(self, state: Mapping[str, Any], keep_options: bool = False) -> None:
        """Takes a saved state; `keep_options` leaves the optimizer's settings as this recipe says (a branch)."""
        self.module.load_state_dict(state["module"])
        self.load_optimizer(state, keep_options)

    def load_optimizer(self, state: Mapping[str, Any], keep_options: bool = False) -> None:
        """Takes the optimizer's part of a saved state."""
        if self.optimizer is not None and state["optimizer"] is not None:
            options = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            if keep_options:
                for group, kept in zip(self.optimizer.param_groups, options, strict=True):
                    group.update(kept)
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def set_options(self, at: Progress) -> None:
        """Writes what the schedule says for this step into the optimizer's groups."""
        if self.schedule is None or self.optimizer is None or not self.external:
            return
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            for name, value in self.schedule.options(at, base["lr"]).items():
                if name == "momentum" and "betas" in group:
                    group["betas"] = (value, *group["betas"][1:])
                elif name in group:
                    group[name] = value
        self.lr = self.optimizer.param_groups[0]["lr"]


def collect_hooks(role: Role, techniques: list[Any]) -> None:
    """The update's hooks of a role, by position; recipe order decides inside a position."""
    bound = [t for t in techniques if role.name in info(t).roles]
    role.before = [getattr(t, position) for position in BEFORE for t in bound if hasattr(t, position)]
    role.after = [getattr(t, position) for position in AFTER for t in bound if hasattr(t, position)]


def order_of(techniques: list[Any]) -> list[dict[str, Any]]:
    """The effective order of a step: each place with the parts that act there, once before the first step ("model"),
    then on the batch, on the loss terms, at each position of the update, and at the end of an epoch."""
    rows = [
        _acting("model", [t for t in techniques if type(t).prepare_model is not Technique.prepare_model]),
        _acting("batch", [t for t in techniques if hasattr(t, "on_batch")]),
        _acting("terms", [t for t in techniques if hasattr(t, "on_terms")]),
        *(_acting(position, [t for t in techniques if hasattr(t, position)]) for position in POSITIONS),
        _acting("epoch", [t for t in techniques if any(hasattr(t, hook) for hook in AT_EPOCHS)]),
    ]
    return [row for row in rows if row["parts"] or row["position"] in OWN]


def _acting(position: str, techniques: list[Any]) -> dict[str, Any]:
    return {"position": position, "parts": [info(t).id for t in techniques]}


def update(run: Run, role: Role, terms: Terms, weight: Tensor | None = None, alone: bool = False) -> Tensor:
    """backward -> unscale -> reduce -> ... -> step -> project -> remask -> average. Returns the loss, detached.

    With gradient accumulation only the last micro-batch's call goes past the backward pass.
    """
    optimizer, scaler = role.optimizer, role.scaler
    loss = total_of(terms, weight)
    scaled = loss if run.share == 1.0 else loss * run.share
    own = [p for p in role.parameters if p.requires_grad] if alone else None
    (scaler.scale(scaled) if scaler else scaled).backward(inputs=own or None)
    if optimizer is None or not run.last_micro:
        return loss.detach()
    role.set_options(run.progress)
    if scaler:
        scaler.unscale_(optimizer)
    if run.wants_gradient_norm:
        run.log_gradient_norm(role)
    for hook in role.before:
        hook(run, role)
    if role.oracle is not None and run.batch is not None:
        role.oracle.bind(run.batch, run.draw, loss.detach())
    if getattr(optimizer, "closure", False):
        optimizer.step(_closure(run, role, loss))  # type: ignore[arg-type]
    elif scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for hook in role.after:
        hook(run, role)
    return loss.detach()


def _closure(run: Run, role: Role, loss: Tensor) -> Callable[[], Tensor]:
    """What an optimizer that evaluates several times a step calls: the first call costs nothing, the step's own
    gradients being there; each further one replays the step's draw on the same batch and passes the same hooks."""
    first = True

    def again() -> Tensor:
        nonlocal first
        if first:
            first = False
            return loss.detach()
        with torch.enable_grad():
            assert role.oracle is not None
            value = role.oracle.total()
            grads = torch.autograd.grad(value, role.parameters, allow_unused=True)
        for parameter, grad in zip(role.parameters, grads, strict=True):
            parameter.grad = grad
        for hook in role.before:
            hook(run, role)
        return value.detach()

    return again
