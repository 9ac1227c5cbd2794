"""Permutations of hidden units: one network's units in the order that brings it closest to another one.

A permutation is a vector p: the unit i of the first network belongs to the unit p[i] of the second. What permutes
together is a group (`engine.kit.tied`); permuting every group of a network leaves what it computes as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from engine.kit.tied import Group, Member

State = Mapping[str, Tensor]
BESIDE = ("running_mean", "running_var")  # a norm's statistics, which stand beside its gains and shifts


def assign(gain: Tensor) -> Tensor:
    """The permutation p with the largest sum of gain[i, p[i]]: the linear assignment problem."""
    _, columns = linear_sum_assignment(gain.double().cpu().numpy(), maximize=True)
    return torch.from_numpy(columns).to(gain.device)


def members_of(group: Group, state: State) -> list[Member]:
    """A group's places, those in running statistics with them."""
    found = {(member.name, member.dim, member.start): member for member in group.members}
    for member in group.members:
        for name in BESIDE if member.side == "along" else ():
            beside = f"{member.name.rpartition('.')[0]}.{name}"
            if beside in state:
                found[beside, 0, member.start] = Member(beside, 0, "along", member.start, member.repeat)
    return list(found.values())


def permuted(state: State, groups: Sequence[Group], orders: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """A state dict with the channels of each group in another order; None leaves a group as it is."""
    result = dict(state)
    for group, order in zip(groups, orders, strict=True):
        if order is None:
            continue
        for member in members_of(group, state):
            tensor = result[member.name]
            index = torch.arange(tensor.shape[member.dim], device=tensor.device)
            channels = torch.arange(group.size, device=tensor.device)
            index[member.places(channels)] = member.places(order.to(tensor.device))
            result[member.name] = tensor.index_select(member.dim, index)
    return result


def _rows(tensor: Tensor, member: Member, size: int) -> Tensor:
    """A parameter as one row a channel of the group."""
    places = member.places(torch.arange(size, device=tensor.device))
    return tensor.index_select(member.dim, places).movedim(member.dim, 0).reshape(size, -1).double()


def gain(one: State, other: State, group: Group) -> Tensor:
    """What putting unit j of the other network at the place of unit i of the first adds to the inner product of their
    weights, the other groups as they stand: [units, units]."""
    total = torch.zeros(group.size, group.size, dtype=torch.float64, device=next(iter(one.values())).device)
    for member in dict.fromkeys(group.members):
        total += _rows(one[member.name], member, group.size) @ _rows(other[member.name], member, group.size).T
    return total


def product(one: State, other: State, groups: Sequence[Group]) -> float:
    """The inner product of two networks' weights, over every parameter in which a group stands."""
    names = {member.name for group in groups for member in group.members}
    return float(sum((one[name].double() * other[name].double()).sum() for name in names))


def match_weights(
    one: State, other: State, groups: Sequence[Group], rng: torch.Generator, rounds: int = 100
) -> tuple[list[Tensor], list[float]]:
    """Permutations of the other network that bring its weights close to the first one's, by coordinate ascent.

    In each round every group, in random order, is assigned anew with the others as they stand, until none gains. Also
    returns the inner product before the first round and after each: it never falls.
    """
    device = next(iter(one.values())).device
    orders = [torch.arange(group.size, device=device) for group in groups]
    heights = [product(one, other, groups)]
    for _ in range(rounds):
        better = False
        for k in torch.randperm(len(groups), generator=rng, device=rng.device).tolist():
            apart: list[Tensor | None] = [order if i != k else None for i, order in enumerate(orders)]
            gains = gain(one, permuted(other, groups, apart), groups[k])
            found = assign(gains)
            rows = torch.arange(groups[k].size, device=device)
            before, after = (float(gains[rows, order].sum()) for order in (orders[k], found))
            if after > before + 1e-12 * max(1.0, abs(before)):
                orders[k], better = found, True
        heights.append(product(one, permuted(other, groups, orders), groups))
        if not better:
            break
    return orders, heights
