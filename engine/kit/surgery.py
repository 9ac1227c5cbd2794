"""Surgery on a model that is being trained: channels cut out of it, and what hangs on its parameters brought along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.kit.tied import Group, Member
from engine.parts import Moved, Moves

Kept = dict[str, dict[int, Tensor]]  # parameter or buffer -> dimension -> the places that stay, in their order


# -- what hangs on parameters ------------------------------------------------------------------------------------------


def carried(values: Sequence[Tensor], olds: Sequence[Tensor], news: Sequence[Tensor], moves: Moves) -> list[Tensor]:
    """What was kept for the old tensors, one value each, now for the new ones; a copy of what cannot be carried."""
    kept: dict[Tensor, Tensor] = {}
    for value, old in zip(values, olds, strict=True):
        moved = moves.get(old)
        if moved is None:
            kept[old] = value
        elif moved.new is not None and moved.take is not None:
            kept[moved.new] = moved.take(value)
    return [kept[new] if new in kept else new.detach().clone() for new in news]


def followed(olds: Sequence[Tensor], moves: Moves) -> list[Tensor]:
    """A list of parameters after a rewrite: the moved ones in their places, without those that are gone."""
    found = [moves[old].new if old in moves else old for old in olds]
    return [tensor for tensor in found if tensor is not None]


def carry_optimizer(optimizer: Optimizer, moves: Moves) -> None:
    """Puts the new parameters into an optimizer's groups, in the places of the old ones, with their state.

    A state whose tensors are numbers or have the parameter's shape goes along; any other starts anew.
    """
    for group in optimizer.param_groups:
        group["params"][:] = followed(group["params"], moves)
    for old, moved in moves.items():
        state = optimizer.state.pop(old, None)
        if state and moved.new is not None and moved.take is not None and _follows(state, old):
            optimizer.state[moved.new] = {name: _taken(value, moved) for name, value in state.items()}


def _follows(state: Mapping[str, Any], old: Tensor) -> bool:
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    return all(value.dim() == 0 or value.shape == old.shape for value in tensors)


def _taken(value: Any, moved: Moved) -> Any:
    assert moved.take is not None
    return moved.take(value) if isinstance(value, Tensor) and value.dim() else value


def even_momenta(optimizer: Optimizer) -> None:
    """Gives a parameter that starts anew a momentum of zero where others have one: torch's fused SGD takes all or none.

    Without dampening the next step is the same as without a momentum.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    name = "momentum_buffer"
    if any(optimizer.state.get(parameter, {}).get(name) is not None for parameter in parameters):
        for parameter in parameters:
            if optimizer.state[parameter].get(name) is None:
                optimizer.state[parameter][name] = torch.zeros_like(parameter)


# -- channels ----------------------------------------------------------------------------------------------------------


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and buffers by name, under every name that they have."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def own_members(group: Group, model: nn.Module) -> list[Member]:
    """Where a channel's own parameters are: its weights, biases, gains and shifts; all zero, the channel is zero."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return [member for member in group.members if member.side != "input" and member.name in parameters]


@torch.no_grad()
def channel_mask(member: Member, tensor: Tensor, channels: Tensor) -> Tensor:
    """A mask of a member's parameter, in its type: zeros where the given channels stand, ones elsewhere."""
    line = torch.ones(tensor.shape[member.dim], dtype=tensor.dtype, device=tensor.device)
    line[member.places(channels.to(tensor.device))] = 0
    shape = [1] * tensor.dim()
    shape[member.dim] = -1
    return line.view(shape).expand_as(tensor)


def places_without(model: nn.Module, removals: Sequence[tuple[Group, Tensor]]) -> Kept:
    """The places that stay, by parameter, where some channels (by their numbers) of some groups are removed.

    Raises ValueError where a group cannot lose channels, or would lose all.
    """
    tensors = tensors_of(model)
    going: dict[tuple[str, int], list[Tensor]] = {}
    for group, channels in removals:
        if not group.removable:
            raise ValueError(f"The channels of {group.names()[0]} cannot be removed: {group.reason}.")
        if len(channels.unique()) >= group.size:
            raise ValueError(f"All {group.size} channels of {group.names()[0]} would be removed; one must stay.")
        for member in group.members:
            going.setdefault((member.name, member.dim), []).append(member.places(channels))
    kept: Kept = {}
    for (name, dim), places in going.items():
        stays = torch.ones(tensors[name].shape[dim], dtype=torch.bool)
        stays[torch.cat(places).cpu()] = False
        kept.setdefault(name, {})[dim] = stays.nonzero().flatten()
    return kept


@torch.no_grad()
def cut(model: nn.Module, kept: Kept) -> Moves:
    """Leaves only the given places of the given parameters and buffers, in place, and sets the modules' sizes.

    A tensor that has several names is cut once, along all dimensions that are given under any of them.
    """
    tensors = tensors_of(model)
    places: dict[Tensor, dict[int, Tensor]] = {}
    for name, dims in kept.items():
        for dim, stays in dims.items():
            before = places.setdefault(tensors[name], {}).setdefault(dim, stays)
            if not torch.equal(before, stays):
                raise ValueError(f"{name} is shared, and its other name wants other places to stay.")
    moves = {old: _cut_tensor(old, dims) for old, dims in places.items()}
    for module in model.modules():
        if any([_exchange(module._parameters, moves), _exchange(module._buffers, moves)]):
            _set_sizes(module)
    return moves


def remove_channels(model: nn.Module, removals: Sequence[tuple[Group, Tensor]]) -> Moves:
    """Takes channels out of a model, in place. Where they were all zero, evaluation gives the same answers."""
    return cut(model, places_without(model, removals))


def _cut_tensor(old: Tensor, dims: Mapping[int, Tensor]) -> Moved:
    def take(tensor: Tensor) -> Tensor:
        for dim, stays in dims.items():
            tensor = tensor.index_select(dim, stays.to(tensor.device))
        return tensor

    new = take(old.detach())
    return Moved(nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new, take)


def _exchange(held: dict[str, Any], moves: Moves) -> bool:
    moved = {name: moves[tensor].new for name, tensor in held.items() if tensor is not None and tensor in moves}
    held.update(moved)
    return bool(moved)


def _set_sizes(module: Any) -> None:
    """Writes what a module says of its own size anew, from its tensors."""
    weight: Any = module._parameters.get("weight")
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        if module.groups > 1:
            module.groups = len(weight)  # depthwise: the only grouped convolution whose channels are followed
        module.out_channels, module.in_channels = len(weight), weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        told: Any = module._buffers["running_mean"] if weight is None else weight
        module.num_features = len(told)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)
