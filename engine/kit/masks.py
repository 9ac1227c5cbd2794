"""Masks of weights: which are kept, over a whole tensor or in every small group, gradients through them, and the
service of a run that holds weights at zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.parts import Moves


def reduction_last(weight: Tensor) -> Tensor:
    """The weight with the inputs that a matrix product sums over innermost: conv kernels as (out, kh, kw, in)."""
    return weight.movedim(1, -1) if weight.dim() > 2 else weight


@torch.no_grad()
def nm_mask(weight: Tensor, n: int, m: int) -> Tensor:
    """True for the n largest |w| in every group of m consecutive weights along the reduction dimension.

    Exactly n are kept in each group; among equal ones which is not said. Raises ValueError where m does not divide.
    """
    if not 0 < n <= m:
        raise ValueError(f"{n}:{m} keeps no pattern; n must be from 1 to m.")
    turned = reduction_last(weight)
    if turned.shape[-1] % m:
        raise ValueError(f"The {turned.shape[-1]} inputs of a weight are not a multiple of {m}.")
    if n == m:
        return torch.ones_like(weight, dtype=torch.bool)
    groups = turned.abs().reshape(-1, m)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, groups.topk(n, dim=1, sorted=False).indices, True)
    kept = kept.view(turned.shape)
    return kept.movedim(-1, 1) if weight.dim() > 2 else kept


@torch.no_grad()
def top_k_mask(score: Tensor, k: int) -> Tensor:
    """True for the k highest scores of a tensor, exactly k of them."""
    if not 0 <= k <= score.numel():
        raise ValueError(f"Of {score.numel()} scores, {k} cannot be kept.")
    flat = score.flatten()
    kept = torch.zeros_like(flat, dtype=torch.bool)
    return kept.scatter_(0, flat.topk(k, sorted=False).indices, True).view_as(score)


def straight_through(value: Tensor, weight: Tensor) -> Tensor:
    """The value exactly, with the gradient of the weight: what comes back passes to the weight unchanged."""
    return value.detach() + (weight - weight.detach())


@dataclass
class _Held:
    owner: str
    parameter: Tensor
    mask: Tensor  # in the parameter's type, so that a product applies it


class Masks:
    """Which entries of a run's weights are held at zero, and by which part: the one place that all others ask.

    The engine applies them after each update, before anything is averaged; whoever writes weights at another time
    (an average that takes their place) calls `apply` again. Weights that are masked on their way into the forward pass
    by a weight map (`engine.kit.weight_maps`) need none of this: there the trained weight keeps all entries.
    """

    def __init__(self, model: Callable[[], nn.Module]):
        self._model = model  # asked when names are needed: the model may be put into another
        self._held: dict[Tensor, _Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    @torch.no_grad()
    def hold(self, owner: str, parameter: Tensor, mask: Tensor) -> None:
        """Holds a parameter's entries at zero where the mask is; a later mask of the same owner takes its place.

        Raises ValueError for a second owner or a mask of another shape.
        """
        before = self._held.get(parameter)
        if before is not None and before.owner != owner:
            raise ValueError(
                f"{before.owner} and {owner} both want to mask the weight {self._names()[parameter]!r}. One weight has "
                "one mask: remove one of them, or select different modules."
            )
        if mask.shape != parameter.shape:
            raise ValueError(f"A mask of shape {tuple(mask.shape)} does not fit a weight of {tuple(parameter.shape)}.")
        self._held[parameter] = _Held(owner, parameter, (mask != 0).to(parameter))
        parameter.mul_(self._held[parameter].mask)

    def release(self, owner: str, parameter: Tensor) -> None:
        """Ends an owner's mask of a parameter."""
        if parameter in self._held and self._held[parameter].owner == owner:
            del self._held[parameter]

    def mask(self, parameter: Tensor) -> Tensor | None:
        """The mask of a parameter, ones and zeros in its type, where it has one."""
        held = self._held.get(parameter)
        return held.mask if held is not None else None

    @torch.no_grad()
    def apply(self) -> None:
        """Sets to zero what is held at zero."""
        if self._held:
            held = list(self._held.values())
            torch._foreach_mul_([each.parameter for each in held], [each.mask for each in held])

    @torch.no_grad()
    def clear(self, optimizer: Optimizer) -> None:
        """Lets an optimizer forget what it keeps of held entries, so that one that is let grow again starts at rest."""
        for parameter, held in self._held.items():
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.mul_(held.mask)

    def on_surgery(self, moves: Moves) -> None:
        """Follows the parameters; the mask of what starts anew ends, and so does one that holds nothing any more."""
        for old, moved in moves.items():
            held = self._held.pop(old, None)
            if held is not None and moved.new is not None and moved.take is not None:
                mask = moved.take(held.mask)
                if not bool(mask.all()):
                    self._held[moved.new] = _Held(held.owner, moved.new, mask)

    def state(self) -> dict[str, dict[str, Any]]:
        names = self._names()
        return {names[p]: {"owner": held.owner, "mask": held.mask.bool()} for p, held in self._held.items()}

    def load(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        parameters = {name: parameter for parameter, name in self._names().items()}
        self._held = {}
        for name, held in state.items():
            parameter = parameters[name]
            self._held[parameter] = _Held(held["owner"], parameter, held["mask"].to(parameter))

    def _names(self) -> dict[Tensor, str]:
        return {parameter: name for name, parameter in self._model().named_parameters()}
