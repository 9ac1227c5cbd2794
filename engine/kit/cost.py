"""What a module costs: multiply-adds, parameters, bytes and activations for an input, and the time it really takes."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Cost:
    """One forward pass counted. `flops` is None where an operation has no form on the input's device."""

    flops: int | None  # floating point operations: a multiply-add counts as two
    parameters: int
    trainable: int
    bytes: int  # of parameters and buffers as they are stored
    activations: int  # numbers that the modules give out for one sample, what a backward pass keeps of them
    shapes: dict[str, list[int]] = field(default_factory=dict)  # one sample's output by module

    @property
    def multiply_adds(self) -> int | None:
        return None if self.flops is None else self.flops // 2


def cost_of(model: nn.Module, *inputs: Tensor) -> Cost:
    """Passes the inputs once, in evaluation mode and without gradients; works on the meta device too, free of charge.

    Operations are counted for the whole batch, activations and shapes for one sample of it.
    """
    shapes: dict[str, list[int]] = {}
    kept = 0

    def remember(path: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            nonlocal kept
            if isinstance(output, Tensor):
                shapes[path] = list(output.shape[1:])
                kept += math.prod(output.shape[1:])

        return hook

    hooks = [m.register_forward_hook(remember(p)) for p, m in model.named_modules() if p]
    modes = [(module, module.training) for module in model.modules()]
    flops: int | None = None
    try:
        from torch.utils.flop_counter import FlopCounterMode

        model.eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*inputs)
        flops = int(counter.get_total_flops())
    except (NotImplementedError, RuntimeError, TypeError):
        # An operation without a meta form, or a model that its procedure calls in another way: sizes are then unknown.
        pass
    finally:
        for module, training in modes:
            module.training = training
        for hook in hooks:
            hook.remove()
    stored = [*model.parameters(), *model.buffers()]
    return Cost(
        flops,
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        sum(t.numel() * t.element_size() for t in stored),
        kept,
        shapes,
    )


@torch.no_grad()
def latency(model: nn.Module, *inputs: Tensor, repeats: int = 20, warm: int = 3) -> float:
    """The median time of one forward pass in seconds, measured here and now; the device is waited for."""
    device = inputs[0].device if inputs else torch.device("cpu")
    wait = torch.cuda.synchronize if device.type == "cuda" else _nothing
    taken = []
    for turn in range(warm + repeats):
        wait()
        started = time.perf_counter()
        model(*inputs)
        wait()
        if turn >= warm:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _nothing() -> None:
    """On the CPU a call has ended when it returns."""
