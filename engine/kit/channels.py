"""The channels of a model that can be cut out, numbered through: sums over their own parameters, and masks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.kit.surgery import own_members, tensors_of
from engine.kit.tied import Group, Member


@dataclass(frozen=True)
class _Place:
    """Where a group's channels stand in a parameter: the number of the parameter, and of the first channel."""

    parameter: int
    first: int
    size: int
    member: Member

    def rows(self, tensor: Tensor) -> Tensor:
        """The parameter's entries as (channels, entries of each), a view where there can be one."""
        turned = tensor.movedim(self.member.dim, 0)
        return turned.narrow(0, self.member.start, self.size * self.member.repeat).reshape(self.size, -1)


class Channels:
    """The channels of some groups. A channel's own parameters are its weights, bias, gain and shift: all that makes it
    zero when they are."""

    def __init__(self, model: nn.Module, groups: Sequence[Group]):
        self.groups = list(groups)
        self.firsts = [sum(group.size for group in self.groups[:i]) for i in range(len(self.groups))]
        self.count = sum(group.size for group in self.groups)
        tensors = tensors_of(model)
        found: dict[Tensor, int] = {}
        places: dict[tuple[int, int, int, int], _Place] = {}  # a shared parameter counts once, under whatever name
        for first, group in zip(self.firsts, self.groups, strict=True):
            for member in own_members(group, model):
                number = found.setdefault(tensors[member.name], len(found))
                place = _Place(number, first, group.size, member)
                places.setdefault((number, member.dim, member.start, first), place)
        self.parameters = list(found)
        self._places = list(places.values())
        self.device = self.parameters[0].device if self.parameters else torch.device("cpu")

    def sums(self, values: Sequence[Tensor]) -> Tensor:
        """For every channel, the sum over its own entries of tensors in the parameters' shapes, one a parameter."""
        found = torch.zeros(self.count, dtype=values[0].dtype, device=self.device)
        for place in self._places:
            found[place.first : place.first + place.size] += place.rows(values[place.parameter]).sum(1)
        return found

    def sizes(self) -> Tensor:
        """How many entries each channel has of its own."""
        return self.sums([torch.ones_like(p) for p in self.parameters])

    def layers(self) -> Tensor:
        """The number of each channel's group."""
        sizes = torch.tensor([group.size for group in self.groups], device=self.device)
        return torch.arange(len(self.groups), device=self.device).repeat_interleave(sizes)

    def marks(self, chosen: Tensor) -> list[Tensor]:
        """Ones at the entries of the chosen channels (a boolean a channel), in each parameter's type; else zeros."""
        found = [torch.zeros_like(p) for p in self.parameters]
        for place in self._places:
            member = place.member
            line = chosen[place.first : place.first + place.size].repeat_interleave(member.repeat)
            shape = [1] * found[place.parameter].dim()
            shape[member.dim] = -1
            slab = found[place.parameter].narrow(member.dim, member.start, len(line))
            slab.copy_(torch.maximum(slab, line.to(slab).view(shape).expand_as(slab)))
        return found

    def marked(self, marks: Sequence[Tensor]) -> Tensor:
        """The channels all of whose own entries are marked: what `marks` was given."""
        return self.sums([(mark == 0).to(torch.float32) for mark in marks]) == 0

    def removals(self, chosen: Tensor) -> list[tuple[Group, Tensor]]:
        """Each group with the numbers of its chosen channels, where it has some."""
        parts = [chosen[first : first + group.size] for first, group in zip(self.firsts, self.groups, strict=True)]
        found = [part.nonzero().flatten() for part in parts]
        return [(group, numbers) for group, numbers in zip(self.groups, found, strict=True) if len(numbers)]
