"""An average of the weights that takes their place once an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from engine.fields import Decay, Whole
from engine.kit.surgery import carried
from engine.parts import Moves, Technique, technique

if TYPE_CHECKING:
    from engine.kit.masks import Masks
    from engine.training.run import Role, Run


@technique(
    paper="Switch EMA: A Free Lunch for Better Flatness and Sharpness",
    arxiv="2402.09240",
    name="Switch EMA",
    recommends={"optimizer": {"use": "sgd", "lr": 0.1}, "training": {"batch_size": 64}},
    example={"techniques": [{"use": "switch-ema", "decay": 0.9}]},
)
class SwitchEma(Technique):
    """Keeps a running average of the weights beside them, and puts it in their place at the end of each epoch.

    The average sits in the flat middle of the valley; training goes on from there and finds its bottom.

        after each step:    e <- d e + (1 - d) w
        after an epoch:     measure with e, then w <- e          (the optimizer's own state is left alone)
        warm-up:            d_t = d (1 - exp(-(t + 1) / warmup_steps))

    Helps: Constant or high learning rates, noisy batches: the validation curve gets smoother and usually better.

    Hurts: A decay whose memory 1 / (1 - d) is many epochs long: each switch then throws away most of the progress.

    Cost: One copy of the weights, one pass over them a step.

    Choices: The average is the variant `ema` of every evaluation; switch_interval 0 makes it an ordinary average. It
    covers parameters and running statistics, and steps are optimizer steps, not micro-batches.

    Args:
        decay: how much of the average stays in a step; its memory, 1 / (1 - decay) steps, should fit into an epoch
        switch_interval: epochs (or steps) between switches; 0 never switches
        switch_start: epochs (or steps) before the first switch
        unit: what interval and start count
        include_buffers: average running statistics too; off takes them from the live model
        warmup_steps: steps over which the decay grows to its value; 0 has it at once
    """

    def __init__(
        self,
        decay: Decay = 0.9998,
        switch_interval: Whole = 1,
        switch_start: Whole = 0,
        unit: Literal["epoch", "step"] = "epoch",
        include_buffers: bool = True,
        warmup_steps: Whole = 0,
    ) -> None:
        self.decay = decay
        self.switch_interval = switch_interval
        self.switch_start = switch_start
        self.unit = unit
        self.include_buffers = include_buffers
        self.warmup_steps = warmup_steps
        self.shadow: list[Tensor] = []
        self.epochs = 0
        self._live: list[Tensor] = []
        self._masks: Masks | None = None

    def setup(self, run: Run) -> None:
        self._live = averaged(run.model, self.include_buffers)
        self.shadow = [live.detach().clone() for live in self._live]
        self._masks = run.masks

    def on_surgery(self, run: Run, moves: Moves) -> None:
        before, self._live = self._live, averaged(run.model, self.include_buffers)
        self.shadow = carried(self.shadow, before, self._live, moves)

    @torch.no_grad()
    def average(self, run: Run, role: Role) -> None:
        step = run.progress.step
        decay = self.decay
        if self.warmup_steps:
            decay *= 1.0 - math.exp(-(step + 1) / self.warmup_steps)
        torch._foreach_lerp_(self.shadow, self._live, 1.0 - decay)
        if self.unit == "step" and self._due(step + 1):
            self.switch()

    def after_epoch(self, run: Run) -> None:
        """Comes after the epoch's evaluation, which still saw the live weights beside the average."""
        self.epochs += 1
        if self.unit == "epoch" and self._due(self.epochs):
            self.switch()

    def _due(self, done: int) -> bool:
        return self.switch_interval > 0 and done > self.switch_start and done % self.switch_interval == 0

    @torch.no_grad()
    def switch(self) -> None:
        """Puts the average in the place of the live weights; what is held at zero stays there."""
        torch._foreach_copy_(self._live, self.shadow)
        if self._masks is not None:
            self._masks.apply()

    def variants(self, run: Run) -> dict[str, Callable[[], AbstractContextManager[None]]]:
        return {"ema": self._swapped}

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        kept = [live.detach().clone() for live in self._live]
        self.switch()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._live, kept)


def averaged(model: nn.Module, buffers: bool = True) -> list[Tensor]:
    """The tensors of a model that can be averaged: its saved entries of a floating type, each once."""
    parameters = {id(p) for p in model.parameters()}
    found = {
        id(tensor): tensor
        for tensor in model.state_dict(keep_vars=True).values()
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and (buffers or id(tensor) in parameters)
    }
    return list(found.values())
