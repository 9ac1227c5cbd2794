"""A role: a named module of a run with its optimizer and schedule, and the one place that updates it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.errors import AthanorError
from engine.kit.curvature import gradient
from engine.kit.surgery import carry_optimizer, followed
from engine.parts import POSITIONS, Moves, Progress, Schedule, Technique, Terms, info, matches, roles_of
from engine.training.oracle import Oracle, mean_of, total_of

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
    names: list[str] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)
    optimizer: torch.optim.Optimizer | None = None
    schedule: Schedule | None = None
    scaler: torch.amp.GradScaler | None = None
    base: list[dict[str, Any]] = field(default_factory=list)
    oracle: Oracle | None = None
    external: bool = True  # whether the schedule sets the rate
    lr: float = 0.0
    others: list[Tensor] = field(default_factory=list)  # parameters of the module that another role moves
    before: list[Hook] = field(default_factory=list)
    after: list[Hook] = field(default_factory=list)
    per_term: bool = False  # a technique combines the gradients of the terms
    owns_shards: bool = False  # a technique reduces the gradients of the workers
    _terms: dict[str, list[Tensor]] = field(default_factory=dict)
    _shards: list[list[Tensor]] = field(default_factory=list)

    # -- gradients, beside those of a backward pass ----------------------------------------------------------------

    def put(self, grads: Sequence[Tensor]) -> None:
        """Makes these the gradients, in the order of the parameters."""
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad

    def add(self, grads: Sequence[Tensor | None]) -> None:
        """Adds these to the gradients that are there."""
        for parameter, grad in zip(self.parameters, grads, strict=True):
            if grad is not None:
                parameter.grad = grad.clone() if parameter.grad is None else parameter.grad.add_(grad)

    def add_term(self, name: str, grads: list[Tensor]) -> None:
        """Adds to the gradient of one named term."""
        if name in self._terms:
            torch._foreach_add_(self._terms[name], grads)
        else:
            self._terms[name] = grads

    def take_terms(self) -> dict[str, list[Tensor]]:
        """The gradient of each term of this step; they are given once."""
        terms, self._terms = self._terms, {}
        return terms

    def keep_shard(self, share: float) -> None:
        """Puts the gradient that is there aside, as the mean over one worker's samples."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self._shards.append(list(torch._foreach_div(grads, share)))
        for parameter in self.parameters:
            parameter.grad = None

    def take_shards(self) -> list[list[Tensor]]:
        """The gradient of each worker here; of the one there is, where nobody asked for workers."""
        if not self._shards:
            return [[torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]]
        shards, self._shards = self._shards, []
        return shards

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

    def collect(self) -> None:
        """Finds the trainable parameters of the module, in its order."""
        others = set(self.others)
        named = [(n, p) for n, p in self.module.named_parameters() if p.requires_grad and p not in others]
        self.names, self.parameters = [name for name, _ in named], [parameter for _, parameter in named]

    def on_surgery(self, moves: Moves, groups: Callable[[str, Any, Any], list[dict[str, Any]]]) -> None:
        """Follows the module's parameters: the optimizer with its state, groups for what is new, the lists."""
        self.others = followed(self.others, moves)
        self.collect()
        if self.optimizer is None:
            return
        carry_optimizer(self.optimizer, moves)
        held = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        gone = held.difference(self.module.parameters())
        if gone:
            raise RuntimeError(
                f"A rewrite took {len(gone)} parameters out of {self.name} and did not say what became of them."
            )
        fresh = [(n, p) for n, p in zip(self.names, self.parameters, strict=True) if p not in held]
        for group in groups(self.name, self.module, fresh) if fresh else []:
            self.optimizer.add_param_group(group)
            self.base.append(dict(self.optimizer.param_groups[-1]))

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


def collect_hooks(role: Role, techniques: list[Any], procedure: Any = None) -> None:
    """The update's hooks of a role, by position; recipe order decides inside a position. A procedure's `project` comes
    after those of techniques.

    What combines the gradients of the terms comes first in its position: it makes the gradient that others change.
    """
    bound = [t for t in techniques if matches(role.name, roles_of(t))]
    role.before = []
    for position in BEFORE:
        for technique in _at(position, bound):
            role.before.append(_hook(role, technique, position))
    role.after = []
    for position in AFTER:
        if position == "remask":
            role.after.append(_remask)
        role.after += [getattr(t, position) for t in bound if hasattr(t, position)]
        if position == "project" and hasattr(procedure, position):
            role.after.append(procedure.project)


def _remask(run: Run, role: Role) -> None:
    run.masks.apply()


def _hook(role: Role, technique: Any, position: str) -> Hook:
    """What the update calls; the owners of `reduce` and of the terms are given more than the gradient."""
    method = getattr(technique, position)
    if position == "reduce":
        role.owns_shards = True
        return lambda run, role: role.put(method(run, role, role.take_shards()))
    if position == "combine" and technique.per_term:
        role.per_term = True
        return lambda run, role: role.put(method(run, role, role.take_terms()))
    return method


def order_of(techniques: list[Any]) -> list[dict[str, Any]]:
    """The effective order of a step: each place with the parts that act there, once before the first step ("model"),
    then on the batch, on the loss terms, at each position of the update, and at the end of an epoch."""
    rows = [
        _acting("model", [t for t in techniques if type(t).prepare_model is not Technique.prepare_model]),
        _acting("batch", [t for t in techniques if hasattr(t, "on_batch")]),
        _acting("terms", [t for t in techniques if hasattr(t, "on_terms")]),
        *(_acting(position, _at(position, techniques)) for position in POSITIONS),
        _acting("epoch", [t for t in techniques if any(hasattr(t, hook) for hook in AT_EPOCHS)]),
    ]
    return [row for row in rows if row["parts"] or row["position"] in OWN]


def _acting(position: str, techniques: list[Any]) -> dict[str, Any]:
    return {"position": position, "parts": [info(t).id for t in techniques]}


def _at(position: str, techniques: list[Any]) -> list[Any]:
    """The techniques that act at a position of the update, in the order in which they do."""
    return sorted((t for t in techniques if hasattr(t, position)), key=lambda t: not t.per_term)


def update(
    run: Run,
    role: Role,
    terms: Terms,
    weight: Tensor | None = None,
    grads: Sequence[Tensor | None] | None = None,
    alone: bool = False,
) -> Tensor:
    """backward -> unscale -> reduce -> ... -> step -> project -> remask -> average. Returns the loss, detached.

    `grads`, where given, take the place of the backward pass. With gradient accumulation only the last micro-batch's
    call goes past the backward pass, and with several workers only the last one's past `unscale`.
    """
    optimizer, scaler = role.optimizer, role.scaler
    loss = total_of(terms, weight)
    if grads is None:
        _differentiate(run, role, terms, loss, weight, scaler, alone)
    else:
        _take(run, role, grads)
    if optimizer is None or not run.last_micro:
        return loss.detach()
    if run.workers.many and not _all_workers_in(run, role):
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
        optimizer.step(_closure(run, role, loss, alone))  # type: ignore[arg-type]
    elif scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for hook in role.after:
        hook(run, role)
    return loss.detach()


def _differentiate(
    run: Run,
    role: Role,
    terms: Terms,
    loss: Tensor,
    weight: Tensor | None,
    scaler: torch.amp.GradScaler | None,
    alone: bool = False,
) -> None:
    """Adds the micro-batch's gradient to what is there: by one backward pass, or one a term where that is asked for."""
    if not role.per_term:
        run.count("gradient-passes")
        scaled = loss if run.share == 1.0 else loss * run.share
        own = [p for p in role.parameters if p.requires_grad] if alone else None
        (scaler.scale(scaled) if scaler else scaled).backward(inputs=own or None)
        return
    names = list(terms)
    for name in names:
        run.count("gradient-passes")
        found = gradient(mean_of(terms[name], weight) * run.share, role.parameters, retain=name != names[-1])
        role.add(found)
        role.add_term(name, found)


def _take(run: Run, role: Role, grads: Sequence[Tensor | None]) -> None:
    """Adds gradients that a procedure knows without a backward pass, scaled as one would have left them."""
    if role.per_term:
        raise AthanorError(f"The role {role.name} has gradients without a backward pass, so none for each term.")
    scale = role.scaler.scale if role.scaler else lambda g: g
    role.add([None if g is None else scale(g * run.share) for g in grads])


def _all_workers_in(run: Run, role: Role) -> bool:
    """Puts the gradient of the worker that is done aside; true when it was the last, its role then holding the mean."""
    workers = run.workers
    role.keep_shard(workers.shares[run.worker])
    if run.worker != workers.here[-1]:
        return False
    if not role.owns_shards:
        role.put(workers.mean(role.take_shards()))
    return True


def _closure(run: Run, role: Role, loss: Tensor, alone: bool = False) -> Callable[[], Tensor]:
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
            terms = role.oracle.terms()
            weight = role.oracle.batch.weight if role.oracle.batch is not None else None
            value = total_of(terms, weight)
            for parameter in role.parameters:
                parameter.grad = None
            _differentiate(run, role, terms, value, weight, None, alone)
        for hook in role.before:
            hook(run, role)
        return value.detach()

    return again
