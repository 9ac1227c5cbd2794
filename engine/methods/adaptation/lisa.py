"""Fine-tuning that trains a few layers at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.fields import Count, Whole
from engine.parts import Batch, Task, Technique, technique

if TYPE_CHECKING:
    from engine.kit.anatomy import Anatomy
    from engine.training.run import Run

ID = "lisa"


@technique(
    id=ID,
    name="LISA (layer-sampled training)",
    paper="LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning",
    arxiv="2403.17919",
    graph="never",
    recommends={"optimizer": {"use": "adamw", "lr": 1e-5, "weight_decay": 0.0}},
    example={"task": {"use": "python-text", "characters": 20000, "length": 16},
             "model": {"use": "transformer", "width": 16, "depth": 3, "heads": 2},
             "techniques": [{"use": ID, "n_active": 1, "interval": 3}]},
)  # fmt: skip
class Lisa(Technique):
    """Trains only a few blocks of the model at a time, drawn anew every few steps, and everything around the blocks
    always. The optimizer keeps its state for what is being trained alone, so that a large model needs far less memory.

        every K steps:  A <- n of the N blocks, each choice as likely
        w_t+1 = optimizer(w_t, g_t)   for the embedding, the norms outside of blocks, the head, and the blocks of A
        w_t+1 = w_t                   for all other blocks: no gradient, no decay, no optimizer state

    Helps: Fine-tuning a model that is large for its memory; it comes close to training everything.
    Hurts: Training from scratch, where every block has much to learn; and short runs, in which a block is drawn rarely.
    Cost: Less than without it: the optimizer's state is that of what is trained. The backward pass still goes through
        every block.
    Choices: The first draw comes before the first step. A block that is frozen loses its optimizer state and starts
        anew when it is drawn again, step count included; one that is drawn twice in a row keeps it. With drop_state off
        every block keeps its state, as the published code does, and the memory grows to that of full training.
        Every parameter that is in no block is always trained; tied weights count where they are used outside.

    Args:
        n_active: Blocks that are trained at a time; 0 trains only what is around them.
        interval: Optimizer steps between two draws.
        drop_state: Forget the optimizer's state of blocks that are frozen.
    """

    keeps_parameters = True  # the blocks, by their weights

    def __init__(self, n_active: Whole = 2, interval: Count = 20, drop_state: bool = True) -> None:
        self.n_active, self.interval, self.drop_state = n_active, interval, drop_state
        self.active: list[int] = []
        self.drawn_at = -1
        self._blocks: list[list[Tensor]] = []
        self._applied: list[int] | None = None

    def setup(self, run: Run) -> None:
        if "main" not in run.roles or run.roles["main"].optimizer is None:
            raise ValueError("It freezes blocks of the model and needs one optimizer that trains the whole of it.")
        self._blocks = block_parameters(run.model, run.anatomy.blocks)
        self._applied = None

    def on_batch(self, run: Run, batch: Batch) -> Batch:
        if run.step % self.interval == 0 and run.step != self.drawn_at:
            self.drawn_at = run.step
            drawn = torch.randperm(len(self._blocks), generator=run.rng(ID), device=run.device)[: self.n_active]
            self.active = sorted(drawn.tolist())
            for block in range(len(self._blocks)):
                run.log(f"{ID}/active/{block}", float(block in self.active))
        if self._applied != self.active:
            self.apply(run.roles["main"].optimizer)
        return batch

    def apply(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Lets the active blocks train and freezes the others; frozen ones lose gradients and optimizer state."""
        for number, parameters in enumerate(self._blocks):
            for parameter in parameters:
                parameter.requires_grad_(number in self.active)
                if number in self.active:
                    continue
                parameter.grad = None
                if self.drop_state and optimizer is not None:
                    optimizer.state.pop(parameter, None)
        self._applied = list(self.active)

    @classmethod
    def requires(
        cls, settings: Mapping[str, Any], task: Task, anatomy: Anatomy, recipe: Mapping[str, Any]
    ) -> str | None:
        blocks = len(anatomy.blocks)
        if not blocks:
            return "It trains some of a model's blocks at a time, and this model has none; choose one with blocks."
        if settings["n_active"] > blocks:
            return f"n_active = {settings['n_active']}, but the model has {blocks} blocks; write at most {blocks}."
        return None


def block_parameters(model: nn.Module, blocks: list[nn.Module]) -> list[list[Tensor]]:
    """The trainable parameters of each block; one that is used outside of the blocks too belongs to none."""
    inside = {id(module) for block in blocks for module in block.modules()}
    outside = {
        id(parameter)
        for module in model.modules()
        if id(module) not in inside
        for parameter in module.parameters(recurse=False)
    }
    return [[p for p in block.parameters() if p.requires_grad and id(p) not in outside] for block in blocks]
