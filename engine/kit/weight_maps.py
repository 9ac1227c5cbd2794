"""Stacked maps from the weight that is trained to the weight that is used: masks, quantizers, reparametrizations.

Every map on a weight is one parametrization of `torch.nn.utils.parametrize`. Whatever the order in which they were
added, they act in the order of `RANKS`, the first one on the trained weight. A weight has one mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import parametrize

RANKS = ("geometry", "low-rank", "mask", "quantize", "noise")


@dataclass(frozen=True)
class WeightMap:
    """One map on one weight: the module's path and the parameter's name, its rank, and the part that added it."""

    path: str
    name: str
    rank: str
    owner: str
    map: nn.Module
    module: nn.Module


def add_map(module: nn.Module, name: str, map: nn.Module, rank: str, owner: str) -> None:
    """Puts a map (a module from tensor to tensor of the same shape, without `right_inverse`) on a module's weight.

    The trained parameter stays the same object, under the name `parametrizations.NAME.original`: an optimizer that
    holds it goes on. Raises ValueError for a second mask, an unknown rank or a missing weight.
    """
    if rank not in RANKS:
        raise ValueError(f"There is no rank {rank!r} of weight maps. There are, in their order: {', '.join(RANKS)}.")
    if module._parameters.get(name) is None and not parametrize.is_parametrized(module, name):
        raise ValueError(f"{type(module).__name__} has no weight {name!r} for the {rank} map of {owner}.")
    entries = _entries(module, name)
    other = next((entry.owner for entry in entries if entry.rank == "mask"), None)
    if rank == "mask" and other is not None:
        raise ValueError(
            f"{other} and {owner} both want to mask the weight {name!r} of a {type(module).__name__}. One weight has "
            "one mask: remove one of them, or select different modules."
        )
    # No check by a trial run: a map may draw random numbers, and that would change the run.
    parametrize.register_parametrization(module, name, map, unsafe=True)
    _list(module, name).weight_map_order = [(entry.rank, entry.owner) for entry in entries] + [(rank, owner)]  # type: ignore[assignment]
    _sort(module, name)


def maps(model: nn.Module) -> list[WeightMap]:
    """Every map in a model, by module and weight, in the order in which they act."""
    found = []
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                found += [WeightMap(path, name, e.rank, e.owner, e.map, module) for e in _entries(module, name)]
    return found


def effective(module: nn.Module, name: str = "weight") -> Tensor:
    """The weight that the module computes with."""
    return getattr(module, name)


def latent(module: nn.Module, name: str = "weight") -> Tensor:
    """The weight that is trained: what the first map takes, or the weight itself where there is none."""
    return _list(module, name).original if parametrize.is_parametrized(module, name) else getattr(module, name)


def upto(module: nn.Module, name: str, rank: str) -> Tensor:
    """The weight before the maps of a rank and those after it: what a mask is computed from."""
    weight = latent(module, name)
    for entry in _entries(module, name):
        if RANKS.index(entry.rank) < RANKS.index(rank):
            weight = entry.map(weight)
    return weight


def remove(module: nn.Module, name: str, owner: str) -> None:
    """Takes an owner's maps off a weight; the trained weight stays as it is."""
    kept = [entry for entry in _entries(module, name) if entry.owner != owner]
    if len(kept) == len(_entries(module, name)):
        raise ValueError(f"{owner} has no map on the weight {name!r} of this {type(module).__name__}.")
    if not kept:
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        return
    _rebuild(module, name, kept)


def fold(model: nn.Module) -> nn.Module:
    """Makes a model plain, in place: every map's result becomes the weight, every module that can fold is replaced.

    Returns the model, or what it folds to itself.
    """
    for child_name, child in list(model.named_children()):
        if child_name == "parametrizations" and parametrize.is_parametrized(model):
            continue
        folded = fold(child)
        if folded is not child:
            model._modules[child_name] = folded
    if callable(getattr(model, "fold", None)):
        return model.fold()  # type: ignore[operator]
    if parametrize.is_parametrized(model):
        for name in list(model.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(model, name, leave_parametrized=True)
    return model


@dataclass(frozen=True)
class _Entry:
    rank: str
    owner: str
    map: nn.Module


def _list(module: nn.Module, name: str) -> parametrize.ParametrizationList:
    return module.parametrizations[name]  # type: ignore[index, return-value]


def _entries(module: nn.Module, name: str) -> list[_Entry]:
    """A weight's maps in their order. One that somebody else registered counts as geometry, of an unnamed owner."""
    if not parametrize.is_parametrized(module, name):
        return []
    stack = _list(module, name)
    order: list[tuple[str, str]] = list(getattr(stack, "weight_map_order", []))
    order += [("geometry", "another parametrization")] * (len(stack) - len(order))
    return [_Entry(rank, owner, map) for (rank, owner), map in zip(order, stack, strict=True)]


def _sort(module: nn.Module, name: str) -> None:
    entries = _entries(module, name)
    _rebuild(module, name, sorted(entries, key=lambda entry: RANKS.index(entry.rank)))


def _rebuild(module: nn.Module, name: str, entries: list[_Entry]) -> None:
    stack = _list(module, name)
    for index in range(len(stack)):
        del stack._modules[str(index)]
    for index, entry in enumerate(entries):
        stack._modules[str(index)] = entry.map
    stack.weight_map_order = [(entry.rank, entry.owner) for entry in entries]  # type: ignore[assignment]
