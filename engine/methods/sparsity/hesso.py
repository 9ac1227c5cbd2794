"""Structured pruning inside the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from engine.fields import Betas, Count, Decay, Fraction, NonNegative, Rate, Whole
from engine.kit.channels import Channels
from engine.kit.optimizing import fused_fits, listed
from engine.kit.surgery import cut, own_members, places_without
from engine.kit.tied import Group, find_groups
from engine.parts import Model, Moves, Task, optimizer

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Role, Run

ID = "hesso"
LOG_EVERY = 10
TRIALS = (0.25, 0.5, 0.75)  # shares of a layer that the corrective variant sets to zero for a look
Weights = tuple[NonNegative, NonNegative, NonNegative, NonNegative, NonNegative]


def importance(square: Tensor, moved: Tensor, dot: Tensor, sizes: Tensor, weights: Weights, cosine: str) -> Tensor:
    """The score of each channel, low for what is redundant, from sums over its own entries: of x^2, d^2 and x d."""
    length = square.sqrt()
    near = dot / (length * moved.sqrt()).clamp_min(1e-12)
    taylor = dot.abs()
    criteria = (length, length / sizes, 1 - near if cosine == "redundant" else 1 + near, taylor, 0.5 * taylor.square())
    total = torch.zeros_like(length)
    for weight, criterion in zip(weights, criteria, strict=True):
        total += weight * criterion / torch.linalg.vector_norm(criterion).clamp_min(1e-12)
    return total


@dataclass
class Cycles:
    """The state of the corrective variant while it makes up its mind."""

    cached: list[Tensor]  # the weights that it comes back to, in the order of the groups
    losses: Tensor  # a channel's share of what the loss did when parts of its layer were set to zero
    total: Tensor  # of the scores so far
    violating: Tensor
    waiting: Tensor  # became low while the violating ones shrank
    past: Tensor
    samples: int = 0
    cycle: int = 1
    at: int = 0  # the step in the cycle


@optimizer(
    id=ID,
    name="HESSO / HESSO-CRIC",
    paper="HESSO: Towards Automatic Efficient and User Friendly Any Neural Network Training and Pruning",
    arxiv="2409.09085",
    graph="never",
    example={
        "task": {"use": "digits"},
        "model": {"use": "cnn", "widths": [4, 6]},
        "optimizer": {
            "use": ID,
            "lr": 1e-3,
            "start_pruning_step": 2,
            "pruning_steps": 6,
            "pruning_periods": 2,
            "slicing": "pruned",
        },
        "techniques": [{"use": "switch-ema", "decay": 0.9}],
        "training": {"batch_size": 150},
        "budget": {"steps": 14},
    },
)
class HESSO(Optimizer):
    """Trains and prunes whole channels in one go. It finds the channels that matter least, shrinks them to exactly zero
    while all others train on, and then cuts them out of the model.

        d: the base optimizer's direction;   x <- x - lr d for all
        score of a channel g:  sum of w_i c_i / |c_i over all channels|,   low ones are redundant
            c = |x_g|,   |x_g| / entries,   1 - cos(d_g, x_g),   |d_g x_g|,   (d_g x_g)^2 / 2
        period of T steps:  the K / P lowest of all become redundant,   x_g <- x_g (T - t - 1) / (T - t),   t < T
        afterwards x_g = 0;   channels that are added or share a norm count as one

    Helps: A smaller, faster dense network at once, without a pretrained one, a penalty to tune or a fine-tuning phase.
    Hurts: Few steps a period, in which the others cannot make up for what leaves; models whose channels all matter:
        half of those of a small network for digits cost it 4 points of accuracy.
    Cost: That of the base optimizer; a masked product a step. A period's first step copies the weights once. The
        corrective variant also passes each layer three times through the loss, and scores at every step.

    Choices: The public code scores 1 + cos, the reverse of what the authors write; `cosine` offers both. Where a pick
        would empty a layer, the next lowest channel elsewhere goes instead, so that the count is kept where it can be;
        what `group_divisible` holds back in one period is tried again in the next.
        The first step of a period already shrinks. The corrective variant tries its projections on one batch, restores
        the weights at the end of a cycle, and leaves the optimizer's memory as it is. What stands between two
        normalizations over channels cannot be cut exactly and is left alone.

    Args:
        params: the parameters or groups to optimize
        lr: the learning rate of the base optimizer
        variant: the base optimizer
        momentum: what SGD keeps of its last step
        betas: the decays of Adam's running mean and square
        eps: what Adam adds to the spread
        weight_decay: the base optimizer's decay, decoupled in AdamW alone
        target_group_sparsity: share of all removable channels that goes
        start_pruning_step: steps before the first channels are chosen
        pruning_steps: steps over which channels shrink, all periods together
        pruning_periods: how many times channels are chosen
        group_divisible: where a layer loses channels, those that stay are a multiple of this
        score_weights: weights of the five criteria: magnitude, its mean, cosine, first and second Taylor term
        cosine: whether a direction that already leads a channel to zero makes it redundant, or important
        cric: choose corrected: shrink on trial, look who else turns redundant, restore, until nobody new turns up
        cric_max_cycles: the most trials
        cric_tolerance: as many new ones do not make another trial
        cric_sampling_steps: steps of a trial
        slicing: when the zero channels are cut out: at the end, as soon as all are zero, or never

    Raises:
        ValueError: when there are fewer pruning steps than periods
    """

    rewrites = True

    def __init__(
        self,
        params: ParamsT,
        lr: Rate = 1e-3,
        variant: Literal["adamw", "adam", "sgd"] = "adamw",
        momentum: Decay = 0.9,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 0.01,
        target_group_sparsity: Fraction = 0.5,
        start_pruning_step: Whole = 0,
        pruning_steps: Count = 1000,
        pruning_periods: Count = 10,
        group_divisible: Count = 1,
        score_weights: Weights = (0.2, 0.2, 0.2, 0.2, 0.2),
        cosine: Literal["redundant", "important"] = "redundant",
        cric: bool = False,
        cric_max_cycles: Count = 10,
        cric_tolerance: Whole = 0,
        cric_sampling_steps: Count = 10,
        slicing: Literal["end", "pruned", "never"] = "end",
    ) -> None:
        if pruning_steps < pruning_periods:
            raise ValueError(
                f"{pruning_steps} pruning steps cannot be split into {pruning_periods} periods; give each at least one."
            )
        params = listed(params)
        common: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "fused": fused_fits(params) or None}
        if variant == "sgd":
            self._base: Optimizer = torch.optim.SGD(params, momentum=momentum, **common)
        else:
            kind = torch.optim.AdamW if variant == "adamw" else torch.optim.Adam
            self._base = kind(params, betas=(betas[0], betas[1]), eps=eps, **common)
        super().__init__(self._base.param_groups, self._base.defaults)
        self._share()
        self.variant, self.target_group_sparsity, self.group_divisible = variant, target_group_sparsity, group_divisible
        self.start_pruning_step, self.pruning_periods = start_pruning_step, 1 if cric else pruning_periods
        self.period = pruning_steps // self.pruning_periods
        self.score_weights, self.cosine, self.slicing = score_weights, cosine, slicing
        self.cric, self.cric_max_cycles, self.cric_tolerance = cric, cric_max_cycles, cric_tolerance
        self.cric_sampling_steps = cric_sampling_steps
        self.done = 0  # steps
        self.begin: int | None = None if cric else start_pruning_step  # the step at which shrinking begins
        self.redundant = self.pruned = torch.zeros(0, dtype=torch.bool)
        self.cycles: Cycles | None = None
        self.goal = 0  # channels that go in all
        self._channels: Channels | None = None
        self._model: nn.Module | None = None
        self._oracle: Any = None
        self._shrinking: tuple[list[Tensor], list[Tensor]] = ([], [])  # parameters, ones where they shrink
        self._clamped: tuple[list[Tensor], list[Tensor]] = ([], [])  # parameters, zeros where they are held
        self._changed = False

    def _share(self) -> None:
        """One list of groups and one state for the base optimizer and this one."""
        self._base.param_groups, self._base.state = self.param_groups, self.state

    def attach(self, model: nn.Module, oracle: Any) -> None:
        """Gives it the model whose channels it prunes, and ``oracle.value(params)`` for the corrective variant.

        A model without an anatomy is followed on the first batch that the oracle is bound to.
        """
        self._model, self._oracle = model, oracle
        if self.target_group_sparsity and (isinstance(model, Model) or getattr(oracle, "batch", None) is not None):
            self._find()

    def _find(self) -> None:
        if self._model is None:
            raise RuntimeError("HESSO prunes channels of a model and was given none. Call attach(model, oracle) first.")
        groups = removable(self._groups(self._model), self.group_divisible)
        if not groups:
            raise ValueError("This model has no channels that can be cut out: HESSO has nothing to prune.")
        self._channels = Channels(self._model, groups)
        if not self.goal:
            self.goal = int(self._channels.count * self.target_group_sparsity)
        if len(self.pruned) != self._channels.count:
            self.redundant = torch.zeros(self._channels.count, dtype=torch.bool, device=self._channels.device)
            self.pruned = self.redundant.clone()
        self._lists()

    def _groups(self, model: nn.Module) -> list[Group]:
        if isinstance(model, Model):
            return model.anatomy().tied()
        return find_groups(model, self._oracle.batch.x[:2].to("meta"))

    # -- the step ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the base optimizer, then what the pruning is at."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._channels is None and self.target_group_sparsity:
            self._find()
        if not self.goal:
            self._base.step()
            return loss
        trying = self.begin is None and self.done >= self.start_pruning_step
        at = self.done - self.begin if self.begin is not None else -1
        shrinking = 0 <= at < self.pruning_periods * self.period
        picking = shrinking and at % self.period == 0 and not self.cric
        before = [p.clone() for group in self.param_groups for p in group["params"]] if trying or picking else []
        self._base.step()
        if before:
            scores = self._scores(before)
            if trying:
                self._try(before, scores)
            else:
                self._pick(scores, at // self.period)
        if shrinking:
            self._shrink(at % self.period, self.period)
            if at % self.period == self.period - 1:
                self.pruned = self.pruned | self.redundant
                self.redundant = torch.zeros_like(self.redundant)
                self._lists()
        if self._clamped[0]:
            torch._foreach_mul_(*self._clamped)
        self.done += 1
        return loss

    def _shrink(self, at: int, length: int) -> None:
        parameters, marks = self._shrinking
        if parameters:
            factor = (length - at - 1) / (length - at)
            scales = torch._foreach_mul(marks, factor - 1)
            torch._foreach_add_(scales, 1.0)
            torch._foreach_mul_(parameters, scales)

    def _scores(self, before: Sequence[Tensor]) -> Tensor:
        """The score of each channel at the weights before the step, from the step that the base optimizer took."""
        assert self._channels is not None
        olds = dict(zip((p for group in self.param_groups for p in group["params"]), before, strict=True))
        rates = {p: group for group in self.param_groups for p in group["params"]}
        values, directions = [], []
        for parameter in self._channels.parameters:
            old = olds.get(parameter, parameter.detach())
            group = rates.get(parameter, {"lr": 0.0})
            rate = float(group["lr"])
            decayed = old * (1 - rate * group["weight_decay"]) if self.variant == "adamw" and rate else old
            values.append(old)
            directions.append((decayed - parameter) / rate if rate else torch.zeros_like(old))
        square = self._channels.sums(torch._foreach_mul(values, values))
        moved = self._channels.sums(torch._foreach_mul(directions, directions))
        dot = self._channels.sums(torch._foreach_mul(values, directions))
        return importance(square, moved, dot, self._channels.sizes(), self.score_weights, self.cosine)

    def _pick(self, scores: Tensor, period: int) -> None:
        """Makes the lowest channels redundant, as many as must be gone after this period."""
        last = period == self.pruning_periods - 1
        until = self.goal if last else self.goal // self.pruning_periods * (period + 1)
        self.redundant = self._lowest(scores, until - int(self.pruned.sum()))
        self._lists()

    def _lowest(self, scores: Tensor, count: int) -> Tensor:
        """As many channels as said with the lowest scores, none that is pruned, and no layer below what must stay."""
        assert self._channels is not None
        layers = self._channels.layers().tolist()
        gone = self.pruned.tolist()
        left = [0] * len(self._channels.groups)
        for layer, out in zip(layers, gone, strict=True):
            left[layer] += not out
        chosen: list[list[int]] = [[] for _ in left]
        for channel in scores.argsort(stable=True).tolist():
            layer = layers[channel]
            if count and not gone[channel] and left[layer] > self.group_divisible:
                chosen[layer].append(channel)
                left[layer] -= 1
                count -= 1
        for layer, channels in enumerate(chosen):
            while channels and left[layer] % self.group_divisible:
                channels.pop()
                left[layer] += 1
        found = torch.zeros(self._channels.count, dtype=torch.bool)
        found[[channel for channels in chosen for channel in channels]] = True
        return found.to(self._channels.device)

    def _lists(self, shrinking: Tensor | None = None) -> None:
        """The tensors of each step, from who is redundant (or violating) and who is pruned."""
        assert self._channels is not None
        shrinking = self.redundant if shrinking is None else shrinking
        self._shrinking = _some(self._channels.parameters, self._channels.marks(shrinking))
        held, marks = _some(self._channels.parameters, self._channels.marks(self.pruned))
        self._clamped = held, [1 - mark for mark in marks]
        self._changed = True

    # -- the corrective variant ----------------------------------------------------------------------------------------

    def _try(self, before: list[Tensor], scores: Tensor) -> None:
        """One step of a trial, after the base optimizer's."""
        assert self._channels is not None
        lowest = torch.zeros_like(self.pruned).scatter_(0, scores.topk(self.goal, largest=False).indices, True)
        if self.cycles is None:
            nobody = torch.zeros_like(lowest)
            losses = self._project(before, scores)
            self.cycles = Cycles(before, losses, torch.zeros_like(scores), lowest, nobody, lowest.clone())
            self._lists(lowest)
        cycles = self.cycles
        cycles.total += scores
        cycles.samples += 1
        cycles.waiting |= lowest & ~cycles.past
        self._shrink(cycles.at, self.cric_sampling_steps)
        cycles.at += 1
        if cycles.at == self.cric_sampling_steps:
            self._end_cycle(cycles)

    def _end_cycle(self, cycles: Cycles) -> None:
        torch._foreach_copy_([p for group in self.param_groups for p in group["params"]], cycles.cached)
        if cycles.cycle < self.cric_max_cycles and int(cycles.waiting.sum()) > self.cric_tolerance:
            cycles.violating, cycles.past = cycles.waiting, cycles.past | cycles.waiting
            cycles.waiting = torch.zeros_like(cycles.waiting)
            cycles.cycle, cycles.at = cycles.cycle + 1, 0
            self._lists(cycles.violating)
            return
        self.redundant = self._lowest(cycles.total / cycles.samples + cycles.losses, self.goal)
        self.begin, self.cycles = self.done + 1, None
        self._lists()

    def _project(self, before: Sequence[Tensor], scores: Tensor) -> Tensor:
        """Sets a quarter, half and three quarters of each layer to zero for a look: the mean ratio of the losses, which
        the layer's channels share."""
        assert self._channels is not None and self._model is not None
        if not hasattr(self._oracle, "value"):
            raise RuntimeError("The corrective variant looks at the loss at other weights. Attach an oracle that can.")
        olds = dict(zip((p for group in self.param_groups for p in group["params"]), before, strict=True))
        weights = {name: olds.get(p, p.detach()) for name, p in self._model.named_parameters()}
        names: dict[Tensor, str] = {p: name for name, p in self._model.named_parameters()}
        reference = self._oracle.value(weights)
        found = torch.zeros_like(scores)
        for first, group in zip(self._channels.firsts, self._channels.groups, strict=True):
            here = slice(first, first + group.size)
            order = scores[here].argsort() + first
            for share in TRIALS:
                chosen = torch.zeros_like(self.pruned)
                chosen[order[: max(int(group.size * share), 1)]] = True
                marks = zip(self._channels.parameters, self._channels.marks(chosen), strict=True)
                masked = {names[p]: weights[names[p]] * (1 - mark) for p, mark in marks}
                found[here] += self._oracle.value({**weights, **masked}) / reference / len(TRIALS) / group.size
        return found

    # -- state, surgery ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, and where the pruning is."""
        found = super().state_dict()
        cycles = None
        if self.cycles is not None:
            cycles = {field.name: getattr(self.cycles, field.name) for field in fields(Cycles)}
        pruning = {"done": self.done, "begin": self.begin, "goal": self.goal, "cycles": cycles}
        return {**found, "pruning": {**pruning, "redundant": self.redundant, "pruned": self.pruned}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes both; a state without a pruning (of another optimizer) leaves that at its start."""
        super().load_state_dict({name: state_dict[name] for name in ("state", "param_groups")})
        self._share()
        saved = state_dict.get("pruning")
        if saved is None:
            return
        device = self.param_groups[0]["params"][0].device
        self.done, self.begin, self.goal = saved["done"], saved["begin"], saved["goal"]
        self.redundant, self.pruned = (saved[name].to(device, copy=True) for name in ("redundant", "pruned"))
        self.cycles = None
        if saved["cycles"] is not None:
            moved = {name: _to(value, device) for name, value in saved["cycles"].items()}
            self.cycles = Cycles(**moved)
        if self._channels is not None:
            self._lists(self.cycles.violating if self.cycles is not None else None)

    def on_step_end(self, run: Run, role: Role) -> None:
        """Tells the run what is held at zero, and cuts it out when it is time."""
        if self._channels is None:
            return
        if run.step % LOG_EVERY == 0 or self._changed:
            run.log("group-sparsity", self.pruned.sum() / self._channels.count)
        if self._changed and role.module is run.model:
            self._changed = False
            for parameter, mask in zip(*self._clamped, strict=True):
                run.masks.hold(ID, parameter, mask)
            if self.slicing == "pruned" and self._finished:
                self._slice(run)

    def on_end(self, run: Run, role: Role) -> None:
        if self.slicing == "end" and role.module is run.model:
            self._slice(run)

    @property
    def _finished(self) -> bool:
        return self.begin is not None and self.done >= self.begin + self.pruning_periods * self.period

    def _slice(self, run: Run) -> None:
        if self._channels is not None and bool(self.pruned.any()):
            kept = places_without(run.model, self._channels.removals(self.pruned))
            run.rewrite(ID, "slice", {"kept": kept})

    @classmethod
    def rewrite(cls, run: Run, operation: str, arguments: Mapping[str, Any]) -> Moves:
        return cut(run.model, arguments["kept"])

    def on_surgery(self, run: Run, moves: Moves) -> None:
        """Finds the channels anew and who of them is redundant or pruned; a trial that was under way starts again."""
        if self._channels is None:
            return
        olds = self._channels.parameters
        marks = {
            name: dict(zip(olds, self._channels.marks(getattr(self, name)), strict=True))
            for name in ("redundant", "pruned")
        }
        self.cycles = None
        groups = removable(self._groups(self._model), self.group_divisible)  # type: ignore[arg-type]
        self._channels = Channels(self._model, groups)  # type: ignore[arg-type]
        for name, by_old in marks.items():
            by_new: dict[Tensor, Tensor] = {}
            for old, mark in by_old.items():
                moved = moves.get(old)
                if moved is None:
                    by_new[old] = mark
                elif moved.new is not None and moved.take is not None:
                    by_new[moved.new] = moved.take(mark)
            found = [by_new.get(p, torch.zeros_like(p)) for p in self._channels.parameters]
            setattr(self, name, self._channels.marked(found))
        self._lists()

    @classmethod
    def claims(cls, settings: Mapping[str, Any], anatomy: Anatomy) -> dict[str, str]:
        if not settings["target_group_sparsity"]:
            return {}
        groups = removable(anatomy.tied(), settings["group_divisible"])
        return {member.name: "mask" for group in groups for member in own_members(group, anatomy.module)}

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        if not settings["target_group_sparsity"]:
            return None
        try:
            groups = anatomy.tied()
        except ValueError as error:
            return str(error)
        if removable(groups, settings["group_divisible"]):
            return None
        reasons = ", ".join(dict.fromkeys(group.reason for group in groups if group.reason)) or "no layer has enough"
        return f"No channels of this model can be cut out: {reasons}."


def removable(groups: Sequence[Group], divisible: int) -> list[Group]:
    """The groups that may lose channels: those that are more than what must stay."""
    return [group for group in groups if group.removable and group.size > divisible]


def _some(parameters: Sequence[Tensor], marks: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters with a mark, and their marks."""
    there = torch.stack([mark.any() for mark in marks]).tolist()
    pairs = [pair for pair, any_ in zip(zip(parameters, marks, strict=True), there, strict=True) if any_]
    return [p for p, _ in pairs], [mark for _, mark in pairs]


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_to(each, device) for each in value]
    return value.to(device, copy=True) if isinstance(value, Tensor) else value
