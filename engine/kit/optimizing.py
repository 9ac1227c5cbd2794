"""What optimizers need once: which of torch's kernels fit the parameters, and the frame of our own foreach ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT, _get_fused_kernels_supported_devices


def listed(params: ParamsT) -> list[Any]:
    """The parameters, groups or named parameters as a list: what an optimizer is given may be an iterator."""
    return [{**p, "params": _many(p["params"])} if isinstance(p, dict) else p for p in params]


def _many(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)


def tensors(params: Sequence[Any]) -> Iterable[Tensor]:
    """The tensors in a list made by `listed`."""
    for entry in params:
        if isinstance(entry, dict):
            yield from tensors(entry["params"])
        else:
            yield entry[1] if isinstance(entry, tuple) else entry


def fused_fits(params: Sequence[Any]) -> bool:
    """Whether torch's fused kernels take these parameters: real floats on a device that has the kernels."""
    devices = set(_get_fused_kernels_supported_devices())
    found = list(tensors(params))
    return bool(found) and all(p.is_floating_point() and p.device.type in devices for p in found)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in: at least 32 bits, since a running mean in 16 bits loses its small increments."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def widened(some: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one type in the type to compute in: the same tensors where they have it, else copies."""
    if not some or wide(some[0].dtype) == some[0].dtype:
        return list(some)
    copies = [torch.empty_like(t, dtype=wide(t.dtype)) for t in some]
    torch._foreach_copy_(copies, list(some))
    return copies


@dataclass
class Bundle:
    """Parameters of one group that are computed together: same device, same type, same number of steps done.

    `values` and `gradients` have at least 32 bits; `step` counts this one.
    """

    group: dict[str, Any]
    parameters: list[Tensor]
    values: list[Tensor]
    gradients: list[Tensor]
    states: list[dict[str, Any]]
    step: int

    def buffers(self, name: str) -> list[Tensor]:
        """The state tensors of that name."""
        return [state[name] for state in self.states]


class ForeachOptimizer(Optimizer):
    """An optimizer that computes with whole lists of tensors; a subclass says what one step does to a bundle.

    It names its state tensors in `buffers` (zeros at a parameter's first gradient, never below 32 bits) and implements
    `update(bundle)`, which changes `bundle.values` in place. What needs all gradients at once goes into `prepare`.
    """

    buffers: ClassVar[tuple[str, ...]] = ()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if not parameter.is_floating_point():
                raise ValueError(
                    f"{type(self).__name__} was given a parameter of type {parameter.dtype} and computes with real "
                    "numbers only. Keep its real and imaginary parts as two parameters, or choose another optimizer."
                )

    def bucket(self, parameter: Tensor, group: dict[str, Any]) -> Hashable:
        """What parameters must have in common, beside device, type and steps, to be computed together."""
        return None

    def prepare(self, bundles: list[Bundle]) -> None:
        """Called before the first `update` of a step, with all bundles."""

    def update(self, bundle: Bundle) -> None:
        """Changes `bundle.values` in place."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. A closure, where given, computes the loss and the gradients; its answer is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.advance(loss)
        return loss

    def advance(self, loss: Any) -> None:
        """Moves the weights by the gradients that are there; `loss` is what the closure returned, else None."""
        bundles = self._bundles()
        self.prepare(bundles)
        for bundle in bundles:
            self.update(bundle)
            if bundle.values[0] is not bundle.parameters[0]:
                torch._foreach_copy_(bundle.parameters, bundle.values)

    def _bundles(self) -> list[Bundle]:
        bundles = []
        for group in self.param_groups:
            buckets: dict[Hashable, tuple[list[Tensor], list[Tensor], list[dict[str, Any]]]] = {}
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    self._first(state, parameter, gradient)
                state["step"] += 1
                key = (parameter.device, parameter.dtype, state["step"], self.bucket(parameter, group))
                bucket = buckets.setdefault(key, ([], [], []))
                bucket[0].append(parameter)
                bucket[1].append(gradient)
                bucket[2].append(state)
            for parameters, gradients, states in buckets.values():
                gradients = widened(gradients)
                if group.get("maximize"):
                    gradients = list(torch._foreach_neg(gradients))
                bundles.append(Bundle(group, parameters, widened(parameters), gradients, states, states[0]["step"]))
        return bundles

    def _first(self, state: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
        if gradient.layout != torch.strided:
            raise RuntimeError(
                f"{type(self).__name__} was given a sparse gradient, and its state covers every entry at every step. "
                "Build the embedding with sparse=False, or choose an optimizer for sparse gradients."
            )
        state["step"] = 0
        for name in self.buffers:
            state[name] = torch.zeros_like(parameter, dtype=wide(parameter.dtype))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state; unlike torch, keeps the 32 bits that state has beside 16-bit weights."""
        super().load_state_dict(state_dict)
        saved = (number for group in state_dict["param_groups"] for number in group["params"])
        parameters = (parameter for group in self.param_groups for parameter in group["params"])
        for number, parameter in zip(saved, parameters, strict=True):
            if wide(parameter.dtype) == parameter.dtype:
                continue
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][name] = value.to(parameter.device, wide(parameter.dtype), copy=True)


def descend(values: list[Tensor], directions: list[Tensor], rate: float | Tensor) -> None:
    """``values <- values - rate directions``, the rate being a number or, on captured graphs, a tensor."""
    if isinstance(rate, Tensor):
        torch._foreach_sub_(values, torch._foreach_mul(directions, rate))
    else:
        torch._foreach_add_(values, directions, alpha=-rate)
